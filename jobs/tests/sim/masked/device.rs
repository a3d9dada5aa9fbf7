//! A device's part: one update for each round under one seed, and one answer to each question, all
//! of it on its disk before it is said.

use std::collections::BTreeMap;
use std::rc::Rc;

use jobs::id::RoundNumber;
use jobs::report::{ExchangeReport, Failure, FailureCode, ReportBody};
use jobs::spec::{Purpose, TaskId};
use rand::RngExt as _;
use secagg::{Client, Inbox, Keys, Refusal, Roster, Secret, UnmaskRequest};

use super::{LENGTH, Question, Said, Update, check};
use crate::Plant;
use crate::world::{Blob, World, reference};

/// What a device has of masked rounds.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    /// On its disk.
    sessions: BTreeMap<RoundNumber, Session>,
    /// In memory, with the round that they are of.
    client: Option<(RoundNumber, Client)>,
    answers: BTreeMap<TaskId, Result<Said, Failure>>,
}

impl Desk {
    /// The process ends; `loses` the disk's content as well.
    pub(crate) fn crash(&mut self, loses: bool) {
        self.client = None;
        self.answers.clear();
        if loses {
            self.sessions.clear();
        }
    }
}

#[derive(Debug)]
struct Session {
    seed: [u8; 32],
    vector: Vec<u32>,
    roster: Option<Rc<Roster>>,
    inbox: Option<Rc<Inbox>>,
    request: Option<Rc<UnmaskRequest>>,
}

impl Session {
    /// The client, told all that this session was told.
    fn client(&self) -> Result<Client, Refusal> {
        let seed = Secret::new(self.seed);
        let (roster, inbox, request) =
            (self.roster.as_deref(), self.inbox.as_deref(), self.request.as_deref());
        Client::restored(seed, roster, inbox, request)
    }
}

impl World {
    /// Trains, keeps the update, and makes the keys to send in its place.
    pub(crate) fn keys_for(&mut self, device: usize, round: RoundNumber, base: u64) -> Blob {
        let kept = self.devices[device].desk.sessions.get(&round);
        let seed = kept.map(|session| session.seed);
        if seed.is_none() || self.is(Plant::UpdateTwice) {
            let seed = seed.unwrap_or_else(|| self.random.random());
            let mut vector: Vec<u32> = (1..LENGTH).map(|_| self.random.random()).collect();
            vector.push(1);
            let (roster, inbox, request) = (None, None, None);
            let session = Session { seed, vector, roster, inbox, request };
            let desk = &mut self.devices[device].desk;
            desk.client = None;
            desk.sessions.clear();
            desk.sessions.insert(round, session);
        }
        let session = &self.devices[device].desk.sessions[&round];
        let update = Update { base, vector: session.vector.clone() };
        let said = Said::Keys(Client::new(Secret::new(session.seed)).keys());
        let bad = self.goes_wrong();
        let said = if bad { Said::Nonsense(self.random.random()) } else { said };
        let value = self.say(said);
        self.masked.updates.entry(value).or_insert(update);
        Blob { value, base, bad }
    }

    /// Does a stage's work ahead of its end.
    pub(crate) fn answer_ahead(
        &mut self,
        device: usize,
        task: &TaskId,
        question: Option<Question>,
    ) -> Result<(), String> {
        let answer = match question {
            Some(question) => self.answer(device, task, question)?,
            None => Err(Failure::new(FailureCode::InvalidInput, "nothing is asked")),
        };
        self.devices[device].desk.answers.insert(task.clone(), answer);
        Ok(())
    }

    fn answer(
        &mut self,
        device: usize,
        task: &TaskId,
        question: Question,
    ) -> Result<Result<Said, Failure>, String> {
        let refused = |reason: String| Failure::new(FailureCode::InvalidInput, reason);
        let Desk { sessions, client, .. } = &mut self.devices[device].desk;
        let Some(session) = sessions.get_mut(&task.round) else {
            return Ok(Err(refused("this device has no update of this round".to_owned())));
        };
        if client.as_ref().is_none_or(|(round, _)| *round != task.round) {
            match session.client() {
                Ok(made) => *client = Some((task.round, made)),
                Err(error) => return Err(format!("a session cannot go on: {error}")),
            }
        }
        let Some((_, client)) = client else { return Ok(Err(refused("no client".to_owned()))) };
        let keys = client.keys();
        let answer = match &question {
            Question::Roster(roster) => {
                let expected = (format!("{}.{}", task.job, task.round), LENGTH as u64);
                if (&roster.purpose, roster.length) != (&expected.0, expected.1) {
                    return Err(format!("a roster for {:?}", roster.purpose));
                }
                client.share(roster).map(Said::Shares)
            }
            Question::Inbox(inbox) => client.mask(inbox).map(|masks| {
                let mut vector = session.vector.clone();
                masks.apply(0, &mut vector);
                Said::Masked(vector)
            }),
            Question::Request(request) => client.unmask(request).map(Said::Unmasking),
        };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.counts.refused_to_answer += 1;
                return Ok(Err(refused(error.to_string())));
            }
        };
        match question {
            Question::Roster(roster) => session.roster = Some(roster),
            Question::Inbox(inbox) => session.inbox = Some(inbox),
            Question::Request(request) => {
                if let Some(roster) = &session.roster {
                    check::shown(&mut self.masked, roster, &request)?;
                }
                session.request = Some(request);
            }
        }
        if let Said::Masked(_) = &answer {
            check::sent_masked(&mut self.masked, keys, &answer)?;
        }
        Ok(Ok(answer))
    }

    /// The answer becomes an object under the name of the task.
    pub(crate) fn upload_answer(&mut self, device: usize, task: &TaskId) -> ReportBody {
        let said = match self.devices[device].desk.answers.remove(task) {
            Some(Ok(said)) => said,
            Some(Err(failure)) => return ReportBody::Failed(failure),
            None => {
                let failure = Failure::new(FailureCode::BlobUnavailable, "no such answer");
                return ReportBody::Failed(failure);
            }
        };
        let said = if self.goes_wrong() { self.spoilt(said) } else { said };
        let value = self.say(said);
        let TaskId { job, round, purpose, attempt } = task;
        let (purpose, id) = (purpose.as_str(), &self.devices[device].id);
        let name = format!("exchange/{job}/{round}/{purpose}/{id}/{attempt}");
        let blob = Blob { value, base: 0, bad: false };
        let message = reference(&name, &blob);
        self.objects.insert(name, blob);
        ReportBody::Exchanged(ExchangeReport { message })
    }

    /// Something else than what a device should say.
    fn spoilt(&mut self, said: Said) -> Said {
        let number: u64 = self.random.random();
        match said {
            _ if number.is_multiple_of(2) => Said::Nonsense(number),
            // What neighbours cannot open.
            Said::Shares(mut shares) => {
                let (first, last) = (0, shares.sealed.len() - 1);
                let sealed = shares.sealed[first].1;
                shares.sealed[first].1 = std::mem::replace(&mut shares.sealed[last].1, sealed);
                Said::Shares(shares)
            }
            // Forged shares.
            Said::Unmasking(mut unmasking) => {
                let values = unmasking.survivors.iter_mut().chain(&mut unmasking.dropped);
                values.for_each(|share| share.0[0] ^= 1);
                Said::Unmasking(unmasking)
            }
            Said::Masked(mut values) => {
                values.pop();
                Said::Masked(values)
            }
            Said::Keys(_) | Said::Nonsense(_) => Said::Nonsense(number),
        }
    }

    fn say(&mut self, said: Said) -> u64 {
        let value = said.value();
        self.masked.said.insert(value, Rc::new(said));
        value
    }

    /// The keys of a device that has an update of this round.
    pub(super) fn keys_of(&self, said: u64) -> Option<Keys> {
        match self.masked.said.get(&said).map(|said| &**said) {
            Some(Said::Keys(keys)) => Some(*keys),
            _ => None,
        }
    }
}

/// The stage before or after, for a device that takes one for the other.
pub(crate) fn confused(purpose: Purpose) -> Option<Purpose> {
    match purpose {
        Purpose::Share => Some(Purpose::Mask),
        Purpose::Mask => Some(Purpose::Unmask),
        Purpose::Unmask => Some(Purpose::Share),
        Purpose::Train | Purpose::Evaluate | Purpose::Infer | Purpose::Telemetry => None,
    }
}
