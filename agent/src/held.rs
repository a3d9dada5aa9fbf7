//! Updates that wait on the device until the broker asks for them: one file per job, round and
//! attempt, so that an agent that was killed still has them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use jobs::held::{HeldRequest, REQUEST_BYTES_MAX};
use jobs::id::{Bytes as Size, DeviceId, JobId};
use jobs::spec::TaskId;
use jobs::wire;
use link::blobs::BlobError;

use crate::device::Device;
use crate::files;

/// Files that are kept, at most.
const FILES_MAX: usize = 16;
/// A round that did not end for so long will not.
const AGE_MAX: Duration = Duration::from_hours(7 * 24);
/// Bytes that are read from a file at once.
const READ_BYTES: u64 = 480 * 1024;
/// The newest update is in memory too until it was given, if it is no larger: a file of so few bytes
/// takes longer to open than to send.
const IN_MEMORY_MAX: usize = 2 * 1024 * 1024;
/// Requests that are answered side by side; more wait in the subscription.
const ANSWERS_MAX: usize = 2;
const SUFFIX: &str = "update";

/// The directory of updates.
#[derive(Debug)]
pub(crate) struct HeldUpdates {
    dir: PathBuf,
    device: DeviceId,
    bytes_max: u64,
    newest: Mutex<Option<(PathBuf, Bytes)>>,
}

impl HeldUpdates {
    /// Uses what is there; what is old, or was half written, is removed.
    pub(crate) fn open(dir: PathBuf, device: DeviceId, bytes_max: u64) -> Self {
        files::remove_parts(&dir);
        files::remove_older(&dir, AGE_MAX);
        Self { dir, device, bytes_max, newest: Mutex::default() }
    }

    /// The name of a task's update: no other task has it.
    pub(crate) fn name(&self, task: &TaskId) -> String {
        let TaskId { job, round, attempt, .. } = task;
        format!("update/{job}/{round}/{}/{attempt}", self.device)
    }

    /// Keeps the update of a task. Those of the job's rounds before are not asked for any more.
    ///
    /// # Errors
    /// When the disk does not take it.
    pub(crate) fn keep(&self, task: &TaskId, bytes: &Bytes) -> std::io::Result<()> {
        let size = bytes.len() as u64;
        if size > self.bytes_max {
            let problem = format!("{size} bytes, {} are allowed: --cache-bytes", self.bytes_max);
            return Err(std::io::Error::other(problem));
        }
        let TaskId { job, round, attempt, .. } = task;
        let mut before = self.of(job);
        before.retain(|(_, old)| *old < round.0);
        let over = before.pop();
        for (path, _) in before {
            let _ = fs::remove_file(path);
        }
        let path = self.path(job, round.0, attempt.0);
        let spared = over.as_ref().map_or(&path, |(over, _)| over);
        files::make_room(&self.dir, Some(spared), FILES_MAX - 1, self.bytes_max - size);
        match over {
            Some((over, _)) => files::put_over(&over, &path, bytes),
            None => files::put(&path, bytes),
        }?;
        *self.newest() = (bytes.len() <= IN_MEMORY_MAX).then(|| (path, bytes.clone()));
        Ok(())
    }

    /// Removes what is held of a job: nobody asks for it any more. How many updates went.
    pub(crate) fn forget(&self, job: &JobId) -> usize {
        let files = self.of(job);
        self.newest().take_if(|(newest, _)| files.iter().any(|(path, _)| path == newest));
        files.iter().filter(|(path, _)| fs::remove_file(path).is_ok()).count()
    }

    fn newest(&self) -> MutexGuard<'_, Option<(PathBuf, Bytes)>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The part of the newest update that was asked for, if it is in memory; after its end it is not.
    fn part_in_memory(&self, request: &HeldRequest) -> Option<Bytes> {
        let path = self.file_of(&request.name)?;
        let mut newest = self.newest();
        let (_, whole) = newest.as_ref().filter(|(newest, _)| *newest == path)?;
        let from = usize::try_from(request.from).ok()?;
        let end = from.checked_add(usize::try_from(request.bytes.0).ok()?)?;
        let part = whole.get(from..end).map(|part| whole.slice_ref(part))?;
        if end == whole.len() {
            *newest = None;
        }
        Some(part)
    }

    /// The part of an update that was asked for, or why there is none.
    fn part(&self, request: &HeldRequest) -> Result<Bytes, String> {
        let HeldRequest { name, from, bytes } = request;
        let path = self.file_of(name).ok_or_else(|| format!("{name:?} is no update of its own"))?;
        let length = bytes.0.min(REQUEST_BYTES_MAX);
        let length = usize::try_from(length).map_err(|error| error.to_string())?;
        let mut part = vec![0; length];
        let read = File::open(path).and_then(|file| file.read_exact_at(&mut part, *from));
        read.map_err(|error| format!("{name}: {error}"))?;
        Ok(part.into())
    }

    /// The file of an update of this device, whatever the name says otherwise.
    fn file_of(&self, name: &str) -> Option<PathBuf> {
        let parts: Vec<&str> = name.split('/').collect();
        let ["update", job, round, device, attempt] = parts[..] else { return None };
        let own = device == self.device.as_str();
        let job = JobId::parse(job).ok().filter(|_| own)?;
        Some(self.path(&job, round.parse().ok()?, attempt.parse().ok()?))
    }

    fn path(&self, job: &JobId, round: u32, attempt: u32) -> PathBuf {
        self.dir.join(format!("{job}.{round}.{attempt}.{SUFFIX}"))
    }

    /// A job's updates with their rounds.
    fn of(&self, job: &JobId) -> Vec<(PathBuf, u32)> {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let (prefix, suffix) = (format!("{job}."), format!(".{SUFFIX}"));
        let known = |file: fs::DirEntry| {
            let name = file.file_name().into_string().ok()?;
            let (round, _) = name.strip_prefix(&prefix)?.strip_suffix(&suffix)?.split_once('.')?;
            Some((file.path(), round.parse().ok()?))
        };
        files.filter_map(known).collect()
    }
}

/// Gives brokers what they ask for, until the subscription ends.
pub(crate) async fn give(device: Arc<Device>, requests: Subscriber) {
    requests
        .for_each_concurrent(ANSWERS_MAX, |message| {
            let device = device.clone();
            async move {
                if let Err(error) = give_part(&device, message).await {
                    tracing::debug!("an update was asked for: {error}");
                }
            }
        })
        .await;
}

async fn give_part(device: &Arc<Device>, message: Message) -> Result<(), BlobError> {
    let Some(reply) = &message.reply else { return Ok(()) };
    let request: HeldRequest = match wire::decode(&message.payload) {
        Ok(request) => request,
        Err(error) => return device.blobs.refuse(reply, &error.to_string()).await,
    };
    if let Some(part) = device.held.part_in_memory(&request) {
        return device.blobs.give(reply, request.from, part).await;
    }
    let HeldRequest { name, mut from, bytes } = request;
    let end = from.saturating_add(bytes.0.min(REQUEST_BYTES_MAX));
    while from < end {
        let bytes = Size((end - from).min(READ_BYTES));
        let (shared, next) = (device.clone(), HeldRequest { name: name.clone(), from, bytes });
        let part = tokio::task::spawn_blocking(move || shared.held.part(&next)).await;
        match part.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(part) => device.blobs.give(reply, from, part).await?,
            Err(reason) => {
                return device.blobs.refuse(reply, &reason.replace(['\r', '\n'], " ")).await;
            }
        }
        from += bytes.0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(job: &str, round: u32, attempt: u32) -> TaskId {
        format!("{job}-{round}-train-{attempt}").parse().unwrap()
    }

    fn open(dir: &tempfile::TempDir) -> HeldUpdates {
        HeldUpdates::open(dir.path().into(), "pi".parse().unwrap(), 1000)
    }

    fn keep(held: &HeldUpdates, task: &TaskId, bytes: &[u8]) -> std::io::Result<()> {
        held.keep(task, &Bytes::copy_from_slice(bytes))
    }

    fn part(held: &HeldUpdates, task: &TaskId, from: u64, bytes: u64) -> Result<Bytes, String> {
        held.part(&HeldRequest { name: held.name(task), from, bytes: Size(bytes) })
    }

    #[test]
    fn an_update_outlives_the_agent_until_a_later_round_has_one() {
        let dir = tempfile::tempdir().unwrap();
        for (attempt, bytes) in [(1, b"first "), (2, b"second")] {
            keep(&open(&dir), &task("a", 3, attempt), bytes).unwrap();
        }
        keep(&open(&dir), &task("ab", 1, 1), b"other").unwrap();
        fs::write(dir.path().join("a.4.1.part"), b"half").unwrap();
        let held = open(&dir);
        assert_eq!(part(&held, &task("a", 3, 1), 0, 6).unwrap(), "first ");
        assert_eq!(part(&held, &task("a", 3, 2), 3, 3).unwrap(), "ond");
        keep(&held, &task("a", 4, 1), b"4th").unwrap();
        assert_eq!(part(&held, &task("a", 4, 1), 0, 3).unwrap(), "4th");
        assert!(part(&held, &task("a", 4, 1), 0, 4).is_err(), "nothing is left of the others");
        assert!(part(&held, &task("a", 3, 2), 3, 3).is_err());
        assert_eq!(part(&held, &task("ab", 1, 1), 0, 5).unwrap(), "other");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_newest_is_in_memory_until_it_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let held = open(&dir);
        let old = task("a", 1, 1);
        keep(&held, &old, b"old").unwrap();
        let newest = task("a", 2, 1);
        keep(&held, &newest, b"update").unwrap();
        let asked = |task: &TaskId, from, bytes| {
            let name = held.name(task);
            held.part_in_memory(&HeldRequest { name, from, bytes: Size(bytes) })
        };
        assert_eq!(asked(&old, 0, 3), None);
        assert_eq!(asked(&newest, 0, 3).unwrap(), "upd");
        assert_eq!(asked(&newest, 4, 3), None, "it has no such bytes");
        assert_eq!(asked(&newest, u64::MAX, u64::MAX), None);
        assert_eq!(asked(&newest, 0, 6).unwrap(), "update");
        assert_eq!(asked(&newest, 0, 6), None);
        assert_eq!(part(&held, &newest, 0, 6).unwrap(), "update", "the file is there");
        let held = HeldUpdates { bytes_max: u64::MAX, ..open(&dir) };
        held.keep(&newest, &vec![0; IN_MEMORY_MAX + 1].into()).unwrap();
        assert!(held.newest().is_none());
    }

    #[test]
    fn what_is_held_of_a_job_that_is_over_goes() {
        let dir = tempfile::tempdir().unwrap();
        let held = open(&dir);
        for (job, round, attempt) in [("ab", 1, 1), ("a", 3, 1), ("a", 3, 2)] {
            keep(&held, &task(job, round, attempt), b"update").unwrap();
        }
        assert_eq!(held.forget(&JobId::parse("a").unwrap()), 2);
        assert!(held.newest().is_none());
        assert!(part(&held, &task("a", 3, 2), 0, 6).is_err());
        assert_eq!(part(&held, &task("ab", 1, 1), 0, 6).unwrap(), "update");
        assert_eq!(held.forget(&JobId::parse("a").unwrap()), 0);
    }

    #[test]
    fn nothing_else_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let held = open(&dir);
        keep(&held, &task("a", 1, 1), b"update").unwrap();
        assert!(part(&held, &task("a", 1, 1), 1, 6).unwrap_err().contains("update/a/1/pi/1"));
        let names = [
            "update/a/1/pu/1",
            "update/a/1/pi",
            "update/../1/pi/1",
            "update/a/x/pi/1",
            "a.1.1.update",
            "control/a/1/pi/1",
            "",
        ];
        for name in names {
            let request = HeldRequest { name: name.to_owned(), from: 0, bytes: Size(1) };
            let refusal = held.part(&request).unwrap_err();
            assert!(refusal.contains("no update of its own"), "{name}: {refusal}");
        }
    }

    #[test]
    fn updates_are_few_and_small_together() {
        let dir = tempfile::tempdir().unwrap();
        let held = open(&dir);
        for number in 0..20 {
            keep(&held, &task(&format!("j{number}"), 1, 1), b"x").unwrap();
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), FILES_MAX);
        keep(&held, &task("big", 1, 1), &[1; 1000]).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let refusal = keep(&held, &task("huge", 1, 1), &[1; 1001]).unwrap_err();
        assert!(refusal.to_string().contains("--cache-bytes"), "{refusal}");
    }
}
