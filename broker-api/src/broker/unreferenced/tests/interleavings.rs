//! Every order in which two that store a blob, one that removes blobs and chunks of uploads that
//! died, and the clock may take their steps, and every step that may be their last.
//!
//! The store is what `link` makes of it: descriptions that are written by compare-and-set, chunks
//! that are not. What is found may be acted on as late as one likes, so it may also be what a server
//! knew that is behind.

use std::collections::{BTreeMap, BTreeSet};

use jobs::id::{Bytes, Digest, Millis, ObjectId};
use link::blobs::Listed;

use super::super::suspects::Suspects;

/// The time that blobs are kept, and what may pass between storing one and referring to it.
const KEPT: u64 = 2;
const REFER_WITHIN: u64 = 1;
/// What may pass between an upload's last chunk and its description.
const REST_MAX: u64 = 1;
const TIME_MAX: u64 = 5;
const STORERS: usize = 2;
const SWEEPS: u8 = 2;
const CRASHES: u8 = 1;

/// A planted mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    None,
    /// A blob that is there is left as it is.
    FoundIsNotRenewed,
    /// A blob is removed whatever its description is by now.
    RemovedUnseen,
    ChunksGoFirst,
    /// The time between storing and referring has no bound.
    ReferredLate,
    /// References are looked for before blobs are listed.
    ReferencesFirst,
    /// The time between an upload's chunks and its description has no bound.
    DescribedLate,
    /// Descriptions are looked at before it is known how old chunks are.
    DescriptionsFirst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Description {
    sequence: u64,
    written_at: u64,
    upload: u8,
    deleted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Asked {
    Anyone,
    Leader { before: Option<u64> },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Storer {
    Idle,
    /// It looked the blob up, for the first time then. Once its renewal was refused it asks the
    /// leader: what was there when it asked for the last time?
    Found {
        description: Option<Description>,
        since: u64,
        asked: Asked,
    },
    /// Its chunks are stored; the description is to replace this one.
    Sent {
        upload: u8,
        expected: u64,
        since: u64,
    },
    Stored {
        since: u64,
    },
    Referring,
    Done,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Remover {
    Idle,
    /// Whether there were references before the list was made.
    Began {
        referred: bool,
    },
    Listed {
        suspects: Suspects,
        referred: bool,
    },
    Removing(Listed),
    Deleted {
        listed: Listed,
        at: u64,
    },
    Purged {
        at: u64,
    },
    /// Uploads that no description named when it looked for the first time.
    Looked(BTreeSet<u8>),
    /// Those of them whose chunks are old.
    Rested(BTreeSet<u8>),
    /// Those of them that no description names.
    Unnamed(BTreeSet<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    now: u64,
    sequence: u64,
    uploads: u8,
    description: Option<Description>,
    /// Uploads whose chunks are there, and since when.
    chunks: BTreeMap<u8, u64>,
    storers: [Storer; STORERS],
    remover: Remover,
    sweeps: u8,
    crashes: u8,
}

impl World {
    /// A blob was stored long ago, and nothing refers to it.
    fn new() -> Self {
        let description = Description { sequence: 1, written_at: 0, upload: 0, deleted: false };
        Self {
            now: KEPT,
            sequence: 1,
            uploads: 1,
            description: Some(description),
            chunks: BTreeMap::from([(0, 0)]),
            storers: [const { Storer::Idle }; STORERS],
            remover: Remover::Idle,
            sweeps: SWEEPS,
            crashes: CRASHES,
        }
    }

    fn is_referred(&self) -> bool {
        self.storers.contains(&Storer::Referring)
    }

    /// Whether the blob can be read.
    fn is_whole(&self) -> bool {
        self.description.is_some_and(|it| !it.deleted && self.chunks.contains_key(&it.upload))
    }

    fn last(&self) -> u64 {
        self.description.map_or(0, |description| description.sequence)
    }

    fn write(&mut self, upload: u8, deleted: bool) -> u64 {
        self.sequence += 1;
        let (sequence, written_at) = (self.sequence, self.now);
        self.description = Some(Description { sequence, written_at, upload, deleted });
        sequence
    }

    /// Everything that may happen next.
    fn next(&self, mistake: Mistake) -> Vec<World> {
        let mut next = Vec::new();
        if self.now < TIME_MAX {
            next.push(World { now: self.now + 1, ..self.clone() });
        }
        for at in 0..STORERS {
            next.extend(self.store(at, mistake));
            if self.crashes > 0 && !matches!(self.storers[at], Storer::Idle | Storer::Done) {
                next.push(self.storer_dies(at));
            }
        }
        next.extend(self.remove(mistake));
        if self.crashes > 0 && self.remover != Remover::Idle {
            let crashes = self.crashes - 1;
            next.push(World { remover: Remover::Idle, crashes, ..self.clone() });
        }
        next
    }

    fn storer_dies(&self, at: usize) -> World {
        let mut next = World { crashes: self.crashes - 1, ..self.clone() };
        next.storers[at] = Storer::Done;
        next
    }

    fn store(&self, at: usize, mistake: Mistake) -> Option<World> {
        let mut next = self.clone();
        next.storers[at] = match self.storers[at].clone() {
            Storer::Idle => {
                let (description, since) = (self.description, self.now);
                Storer::Found { description, since, asked: Asked::Anyone }
            }
            Storer::Found { description, since, asked } => {
                next.renew(description, since, asked, mistake)
            }
            Storer::Sent { upload, since, .. }
                if self.now > since + REST_MAX && mistake != Mistake::DescribedLate =>
            {
                next.chunks.remove(&upload);
                Storer::Done
            }
            Storer::Sent { upload, expected, .. } if expected == self.last() => {
                // What was left of one that was removed goes with its description.
                if let Some(before) = self.description {
                    next.chunks.remove(&before.upload);
                }
                next.write(upload, false);
                // How old they are matters once they are not described any more: as old as can be.
                next.chunks.insert(upload, 0);
                Storer::Stored { since: self.now }
            }
            // Someone else was faster: with the same bytes, or with a removal.
            Storer::Sent { upload, since, .. } => match self.description {
                Some(found) if !found.deleted => {
                    next.chunks.remove(&upload);
                    let (description, since) = (Some(found), self.now);
                    Storer::Found { description, since, asked: Asked::Anyone }
                }
                _ => Storer::Sent { upload, expected: self.last(), since },
            },
            Storer::Stored { since } => {
                let in_time = self.now <= since + REFER_WITHIN;
                if in_time || mistake == Mistake::ReferredLate {
                    Storer::Referring
                } else {
                    Storer::Done
                }
            }
            Storer::Referring => Storer::Done,
            Storer::Done => return None,
        };
        Some(next)
    }

    fn renew(
        &mut self,
        description: Option<Description>,
        since: u64,
        asked: Asked,
        mistake: Mistake,
    ) -> Storer {
        let Some(found) = description.filter(|it| !it.deleted) else {
            let upload = self.uploads;
            self.uploads += 1;
            self.chunks.insert(upload, self.now);
            let expected = description.map_or(0, |it| it.sequence);
            return Storer::Sent { upload, expected, since: self.now };
        };
        let newer = |before| found.sequence > before;
        let written_since =
            matches!(asked, Asked::Leader { before: Some(before) } if newer(before));
        if written_since || mistake == Mistake::FoundIsNotRenewed {
            return Storer::Stored { since };
        }
        if found.sequence == self.last() {
            self.write(found.upload, false);
            return Storer::Stored { since };
        }
        let before = (asked != Asked::Anyone).then_some(found.sequence);
        Storer::Found { description: self.description, since, asked: Asked::Leader { before } }
    }

    fn list(&self) -> Suspects {
        let listed = self.description.map(|description| Listed {
            digest: Digest::parse(&format!("sha256:{:064x}", 7)).unwrap(),
            sequence: description.sequence,
            written_at: Millis(description.written_at),
            size: Bytes(1),
            upload: ObjectId::parse(&description.upload.to_string()).unwrap(),
            deleted: description.deleted,
        });
        Suspects::of(listed, Millis(self.now), Millis(KEPT))
    }

    fn remove(&self, mistake: Mistake) -> Vec<World> {
        let with = |remover| World { remover, ..self.clone() };
        match self.remover.clone() {
            Remover::Idle if self.sweeps == 0 => Vec::new(),
            Remover::Idle => {
                let began = with(Remover::Began { referred: self.is_referred() });
                let looked = with(Remover::Looked(self.unnamed()));
                [looked, began].map(|next| World { sweeps: self.sweeps - 1, ..next }).into()
            }
            Remover::Looked(mut uploads) => {
                let is_old = |since: &u64| self.now >= since + KEPT;
                uploads.retain(|upload| self.chunks.get(upload).is_some_and(is_old));
                vec![with(Remover::Rested(uploads))]
            }
            Remover::Rested(mut uploads) => {
                if mistake != Mistake::DescriptionsFirst {
                    let unnamed = self.unnamed();
                    uploads.retain(|upload| unnamed.contains(upload));
                }
                vec![with(Remover::Unnamed(uploads))]
            }
            Remover::Unnamed(uploads) => {
                let mut next = with(Remover::Idle);
                next.chunks.retain(|upload, _| !uploads.contains(upload));
                vec![next]
            }
            Remover::Began { referred } => {
                let early = mistake == Mistake::ReferencesFirst;
                let referred = if early { referred } else { self.is_referred() };
                vec![with(Remover::Listed { suspects: self.list(), referred })]
            }
            // It sees the references of now, or those at the time of the list alone.
            Remover::Listed { suspects, referred } => {
                let mut seen = BTreeSet::from([referred]);
                if mistake != Mistake::ReferencesFirst {
                    seen.insert(self.is_referred());
                }
                seen.into_iter().map(|referred| with(judged(suspects.clone(), referred))).collect()
            }
            Remover::Removing(listed) => vec![self.delete(listed, mistake)],
            Remover::Deleted { listed, at } => {
                let mut next = with(Remover::Purged { at });
                next.chunks.remove(&number(&listed));
                vec![next]
            }
            Remover::Purged { at } => {
                let description = self.description.filter(|it| it.sequence > at);
                vec![World { description, ..with(Remover::Idle) }]
            }
        }
    }

    /// Uploads that have chunks and that the description, that of a deleted blob too, does not name.
    fn unnamed(&self) -> BTreeSet<u8> {
        let named = self.description.map(|description| description.upload);
        self.chunks.keys().filter(|upload| Some(**upload) != named).copied().collect()
    }

    fn delete(&self, listed: Listed, mistake: Mistake) -> World {
        let mut next = World { remover: Remover::Idle, ..self.clone() };
        let upload = number(&listed);
        if mistake == Mistake::ChunksGoFirst {
            next.chunks.remove(&upload);
        }
        if listed.deleted {
            next.remover = Remover::Deleted { at: listed.sequence, listed };
        } else if listed.sequence == self.last() || mistake == Mistake::RemovedUnseen {
            let at = next.write(upload, true);
            next.remover = Remover::Deleted { listed, at };
        }
        next
    }

    /// Whether the blob goes when everybody has had enough.
    fn is_forgotten_at_last(&self) -> bool {
        let mut world = World { now: self.now + KEPT + 1, sweeps: 2, ..self.clone() };
        for at in 0..STORERS {
            while let Some(next) = world.store(at, Mistake::None) {
                world = next;
            }
        }
        world.now += KEPT;
        while let Some(next) = world.remove(Mistake::None).pop() {
            world = next;
        }
        world.remover = Remover::Looked(world.unnamed());
        for _ in 0..3 {
            world = world.remove(Mistake::None).pop().unwrap();
        }
        world.description.is_none() && world.chunks.is_empty()
    }
}

/// Which upload it was.
fn number(listed: &Listed) -> u8 {
    listed.upload.as_str().parse().unwrap()
}

fn judged(mut suspects: Suspects, referred: bool) -> Remover {
    if referred {
        suspects.spare(&Digest::parse(&format!("sha256:{:064x}", 7)).unwrap().to_bytes());
    }
    suspects.unreferenced().next().map_or(Remover::Idle, Remover::Removing)
}

/// All that can be reached, or the way to where a blob is missed.
fn explore(mistake: Mistake) -> Result<usize, Vec<World>> {
    let mut seen = BTreeSet::from([World::new()]);
    let mut path: Vec<(World, Vec<World>)> = vec![(World::new(), World::new().next(mistake))];
    while let Some((_, next)) = path.last_mut() {
        let Some(world) = next.pop() else {
            path.pop();
            continue;
        };
        if !seen.insert(world.clone()) {
            continue;
        }
        let is_right = !world.is_referred() || world.is_whole();
        let further = world.next(mistake);
        path.push((world, further));
        if !is_right {
            return Err(path.into_iter().map(|(world, _)| world).collect());
        }
    }
    if mistake == Mistake::None {
        for world in &seen {
            assert!(world.is_forgotten_at_last(), "it stays for ever after {world:#?}");
        }
    }
    Ok(seen.len())
}

#[test]
fn what_is_referred_to_is_there_and_what_is_not_goes_at_last() {
    match explore(Mistake::None) {
        Ok(states) => assert!(states > 10_000, "{states} states are few"),
        Err(path) => panic!("missed after {path:#?}"),
    }
}

#[test]
fn planted_mistakes_are_found() {
    for mistake in [
        Mistake::FoundIsNotRenewed,
        Mistake::RemovedUnseen,
        Mistake::ChunksGoFirst,
        Mistake::ReferredLate,
        Mistake::ReferencesFirst,
        Mistake::DescribedLate,
        Mistake::DescriptionsFirst,
    ] {
        assert!(explore(mistake).is_err(), "{mistake:?} is not found");
    }
}
