//! A device's part in a secure aggregation: its update leaves it masked only.

use bytes::Bytes;
use jobs::report::{ExchangeReport, Failure, FailureCode, ReportBody, UpdateReport};
use jobs::spec::{MaskedTrainTask, Purpose, TaskId, UpdateEncoding};
use secagg::Refusal;

use super::levels::Masking;
use super::{ENGINE, Run, Sums};
use crate::cache;
use crate::masking::{MaskingStore, Session};

/// Values that are masked at once: enough for each thread to have some pieces.
const PIECE: usize = 64 * secagg::PIECE;

impl Run {
    /// Trains, keeps the update, and sends keys in its place. An update that is there already is
    /// not made again: under one seed there is one update.
    pub(in crate::execute) async fn train_masked(
        &self,
        task: MaskedTrainTask,
    ) -> Result<ReportBody, Failure> {
        let device = &self.executor.device;
        let TaskId { job, round, .. } = &self.id;
        let session = if let Some(session) = device.masking.load(job, *round) {
            session
        } else {
            if let Some(refusal) = device.refusal().await {
                return Ok(ReportBody::Declined(refusal));
            }
            self.begin_masked(task).await?
        };
        let keys = serde_json::to_vec(&session.client().map_err(|error| refused(&error))?.keys());
        let keys = keys.map_err(|error| unsaid(&error))?;
        let stored = device.blobs.put_named(self.update_name(), keys.into()).await;
        let parameters = stored.map_err(|error| cache::explain(&error))?;
        let duration_ms = self.duration();
        Ok(ReportBody::Trained(UpdateReport { parameters, duration_ms, ..session.report }))
    }

    async fn begin_masked(&self, task: MaskedTrainTask) -> Result<Session, Failure> {
        let MaskedTrainTask { mut train, levels } = task;
        train.update = UpdateEncoding::default();
        let local = train.local.clone();
        let parameters = train.parameters.clone();
        let (received, examples) = self.received(&train).await?;
        let (values, sums, steps) = if train.local.epochs == 0 {
            (received.clone(), Sums::default(), 0)
        } else {
            let trained = self.trained(train, received.clone()).await?;
            (trained.update.into(), trained.sums, trained.steps)
        };
        let (device, id) = (self.executor.device.clone(), self.id.clone());
        let duration_ms = self.duration();
        let work = move || {
            let seed = random_seed()?;
            let masking = Masking { local: &local, levels, examples, seed };
            let vector = masking.levels(&received, &values)?;
            let report = UpdateReport {
                parameters,
                examples,
                loss: sums.loss(),
                accuracy: sums.accuracy(),
                steps,
                duration_ms,
                engine: ENGINE.to_owned(),
                initial_loss: None,
                control_change: None,
                held: false,
                crc32: None,
                control_anew: false,
            };
            let session = Session::new(seed, report, levels.devices);
            device.masking.begin(&id.job, id.round, &vector, &session)?;
            Ok(session)
        };
        self.executor.compute.train(self.thread_name("levels"), work).await
    }

    /// Answers a stage with what the offer holds.
    pub(in crate::execute) async fn exchange(
        &self,
        question: Bytes,
    ) -> Result<ReportBody, Failure> {
        let (device, id) = (self.executor.device.clone(), self.id.clone());
        let work = move || {
            let answer = match id.purpose {
                Purpose::Share => share(&id, &question, &device.masking),
                Purpose::Mask => mask(&id, &question, &device.masking),
                Purpose::Unmask
                | Purpose::Train
                | Purpose::Evaluate
                | Purpose::Infer
                | Purpose::Telemetry => unmask(&id, &question, &device.masking),
            };
            answer.map(Bytes::from)
        };
        let answer =
            self.executor.compute.train(self.thread_name(self.id.purpose.as_str()), work).await?;
        let device = &self.executor.device;
        let TaskId { job, round, purpose, attempt } = &self.id;
        let (purpose, name) = (purpose.as_str(), &device.config.device);
        let name = format!("exchange/{job}/{round}/{purpose}/{name}/{attempt}");
        let message = device.blobs.put_named(name, answer).await;
        let message = message.map_err(|error| cache::explain(&error))?;
        Ok(ReportBody::Exchanged(ExchangeReport { message }))
    }
}

fn share(id: &TaskId, question: &[u8], store: &MaskingStore) -> Result<Vec<u8>, Failure> {
    let shares = store.ask(&id.job, id.round, |session| {
        let roster: secagg::Roster = understood(question)?;
        let levels = store.length(&id.job, id.round)?;
        let expected = format!("{}.{}", id.job, id.round);
        if roster.purpose != expected
            || roster.length != levels
            || roster.devices.len() > session.devices as usize
        {
            let message = format!(
                "the roster is for {:?}, {} values, {} devices: expected {expected:?}, {levels}, \
                 {} at most",
                roster.purpose,
                roster.length,
                roster.devices.len(),
                session.devices
            );
            return Err(Failure::new(FailureCode::InvalidInput, message));
        }
        let shares = client(session)?.share(&roster).map_err(|error| refused(&error))?;
        session.roster = Some(roster);
        Ok(shares)
    })?;
    serde_json::to_vec(&shares).map_err(|error| unsaid(&error))
}

fn mask(id: &TaskId, question: &[u8], store: &MaskingStore) -> Result<Vec<u8>, Failure> {
    let masks = store.ask(&id.job, id.round, |session| {
        let inbox: secagg::Inbox = understood(question)?;
        let masks = client(session)?.mask(&inbox).map_err(|error| refused(&error))?;
        session.inbox = Some(inbox);
        Ok(masks)
    })?;
    let mut vector = store.levels(&id.job, id.round)?;
    let mut piece = Vec::with_capacity(PIECE);
    for (number, bytes) in vector.chunks_mut(4 * PIECE).enumerate() {
        piece.clear();
        piece.extend(bytes.as_chunks().0.iter().map(|level| u32::from_le_bytes(*level)));
        masks.apply(number * PIECE, &mut piece);
        for (bytes, level) in bytes.chunks_exact_mut(4).zip(&piece) {
            bytes.copy_from_slice(&level.to_le_bytes());
        }
    }
    Ok(vector)
}

fn unmask(id: &TaskId, question: &[u8], store: &MaskingStore) -> Result<Vec<u8>, Failure> {
    let unmasking = store.ask(&id.job, id.round, |session| {
        let request: secagg::UnmaskRequest = understood(question)?;
        let unmasking = client(session)?.unmask(&request).map_err(|error| refused(&error))?;
        session.request = Some(request);
        Ok(unmasking)
    })?;
    serde_json::to_vec(&unmasking).map_err(|error| unsaid(&error))
}

fn client(session: &Session) -> Result<secagg::Client, Failure> {
    session.client().map_err(|error| refused(&error))
}

/// 32 bytes of the system's randomness.
fn random_seed() -> Result<[u8; 32], Failure> {
    let mut seed = [0; 32];
    aws_lc_rs::rand::fill(&mut seed)
        .map_err(|_| Failure::new(FailureCode::Internal, "the system gives no randomness"))?;
    Ok(seed)
}

fn understood<T: serde::de::DeserializeOwned>(question: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(question).map_err(|error| {
        let message = format!("what the broker asks is not understood: {error}");
        Failure::new(FailureCode::InvalidInput, message)
    })
}

fn unsaid(error: &serde_json::Error) -> Failure {
    Failure::new(FailureCode::Internal, format!("an answer cannot be written: {error}"))
}

/// The device does not answer: to do so would say too much of it or of its neighbours.
fn refused(error: &Refusal) -> Failure {
    let message = format!("refused, to keep updates hidden: {error}");
    Failure::new(FailureCode::InvalidInput, message)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use jobs::id::{BlobRef, Bytes as Size, Millis};
    use secagg::{Client, Inbox, Party, Secret, Server, UnmaskRequest};

    use super::*;

    fn report() -> UpdateReport {
        UpdateReport {
            parameters: BlobRef::by_digest(link::digest::of(b"received"), Size(8)),
            examples: 7,
            loss: 0.5,
            accuracy: 0.25,
            steps: 3,
            duration_ms: Millis(9),
            engine: ENGINE.to_owned(),
            initial_loss: None,
            control_change: None,
            held: false,
            crc32: None,
            control_anew: false,
        }
    }

    fn id(purpose: &str) -> TaskId {
        format!("a-1-{purpose}-1").parse().unwrap()
    }

    fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
        serde_json::to_vec(value).unwrap()
    }

    /// Four devices, of which this one is the first: what it is sent to mask, once it gave shares.
    fn inbox(store: &MaskingStore, session: &Session) -> Inbox {
        let mut others: Vec<Client> =
            (1..4).map(|byte| Client::new(Secret::new([byte; 32]))).collect();
        let mut server = Server::new("a.1".to_owned(), 4, secagg::Risk::default());
        server.keys(0, session.client().unwrap().keys()).unwrap();
        for (number, other) in (1..).zip(&others) {
            server.keys(number, other.keys()).unwrap();
        }
        let roster = server.close_keys().unwrap().clone();
        let said = share(&id("share"), &json(&roster), store).unwrap();
        server.shares(Party(0), &understood(&said).unwrap()).unwrap();
        for (number, other) in (1..).zip(&mut others) {
            server.shares(Party(number), &other.share(&roster).unwrap()).unwrap();
        }
        server.close_shares().unwrap();
        server.inbox(Party(0)).unwrap()
    }

    /// Both answers would give the server both secrets of a device.
    #[test]
    fn of_two_questions_at_the_same_time_one_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let store = MaskingStore::open(dir.path().into(), 10_000);
        let session = Session::new([9; 32], report(), 4);
        let (job, round) = (id("unmask").job, id("unmask").round);
        store.begin(&job, round, &[0; 16], &session).unwrap();
        let inbox = inbox(&store, &session);
        mask(&id("mask"), &json(&inbox), &store).unwrap();
        let masked = store.load(&job, round).unwrap();
        let parties = |parties: std::ops::Range<u32>| parties.map(Party).collect();
        let there =
            UnmaskRequest { session: inbox.session, survivors: parties(1..4), dropped: Vec::new() };
        let gone = UnmaskRequest {
            session: inbox.session,
            survivors: parties(1..3),
            dropped: parties(3..4),
        };
        for _ in 0..4 {
            store.begin(&job, round, &[0; 16], &masked).unwrap();
            let both = Barrier::new(2);
            let ask = |question: &UnmaskRequest| {
                let question = json(question);
                both.wait();
                unmask(&id("unmask"), &question, &store).is_ok()
            };
            let answered = std::thread::scope(|scope| {
                let there = scope.spawn(|| ask(&there));
                let gone = scope.spawn(|| ask(&gone));
                [there.join().unwrap(), gone.join().unwrap()]
            });
            assert!(answered[0] != answered[1], "{answered:?}");
        }
    }
}
