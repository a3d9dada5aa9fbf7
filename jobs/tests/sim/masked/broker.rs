//! A broker's part: at each stage the session is made again of what was said before.

use std::rc::Rc;

use jobs::id::{Attempt, BlobRef, DeviceId, RoundNumber};
use jobs::report::{Failure, FailureCode, UpdateReport};
use jobs::round::{self, Exchange, Round};
use jobs::spec::{Offer, PrivacyMode, Purpose, Task, TaskId, TaskWork};
use jobs::training::Event;
use secagg::{Party, Risk, Server, ServerError};

use super::{LENGTH, Question, Said, check, number, value_of};
use crate::Plant;
use crate::world::{Blob, Happening, World};

/// The session of one round at one stage.
#[derive(Debug)]
pub(crate) struct Masking {
    round: RoundNumber,
    stage: Purpose,
    /// In the order of parties.
    devices: Vec<DeviceId>,
    server: Server,
}

impl Masking {
    fn party(&self, device: &DeviceId) -> Result<Party, Failure> {
        let place = self.devices.binary_search(device).ok();
        let party = place.and_then(|place| u32::try_from(place).ok()).map(Party);
        party.ok_or_else(|| Failure::new(FailureCode::InvalidUpdate, format!("{device}: stranger")))
    }

    fn question(&self, device: &DeviceId) -> Result<Question, Failure> {
        let party = self.party(device)?;
        let question = match self.stage {
            Purpose::Share => self.server.roster().cloned().map(Rc::new).map(Question::Roster),
            Purpose::Mask => self.server.inbox(party).map(Rc::new).map(Question::Inbox),
            Purpose::Unmask
            | Purpose::Train
            | Purpose::Evaluate
            | Purpose::Infer
            | Purpose::Telemetry => {
                self.server.unmask_request(party).map(Rc::new).map(Question::Request)
            }
        };
        question.ok_or_else(|| Failure::new(FailureCode::InvalidUpdate, format!("{device}: gone")))
    }

    fn check(&mut self, device: &DeviceId, said: &Said) -> Result<(), Failure> {
        let party = self.party(device)?;
        let checked = match (self.stage, said) {
            (Purpose::Share, Said::Shares(shares)) => self.server.shares(party, shares),
            (Purpose::Mask, Said::Masked(values)) if values.len() == LENGTH => return Ok(()),
            (Purpose::Unmask, Said::Unmasking(unmasking)) => {
                self.server.unmasking(party, unmasking)
            }
            _ => return Err(Failure::new(FailureCode::InvalidUpdate, "not understood")),
        };
        checked.map_err(|error| failure_of(&error))
    }
}

fn failure_of(error: &ServerError) -> Failure {
    let is_quorum = matches!(error, ServerError::TooFew { .. });
    let code = if is_quorum { FailureCode::NoQuorum } else { FailureCode::InvalidUpdate };
    Failure::new(code, error.to_string())
}

impl World {
    fn said(&self, blob: &BlobRef) -> Result<Rc<Said>, Failure> {
        let found = self.read(blob).and_then(|found| self.masked.said.get(&found.value).cloned());
        found.ok_or_else(|| Failure::new(FailureCode::BlobUnavailable, "it is another one by now"))
    }

    /// The session at a stage, made of what was said before.
    fn masking(
        &self,
        round: RoundNumber,
        exchange: &Exchange,
        stage: Purpose,
    ) -> Result<Masking, Failure> {
        let secure = self.spec.secure_aggregation.unwrap_or_default();
        let risk = Risk { drop_out: secure.drop_out, colluding: secure.colluding };
        let server = Server::new(format!("01job.{round}"), LENGTH as u64, risk);
        let devices = exchange.keys.iter().map(|(device, _)| device.clone()).collect();
        let mut made = Masking { round, stage, devices, server };
        let fail = |error: ServerError| failure_of(&error);
        for (device, blob) in &exchange.keys {
            let Said::Keys(keys) = &*self.said(blob)? else {
                return Err(Failure::new(FailureCode::InvalidUpdate, "no keys"));
            };
            let party = made.party(device)?;
            made.server.keys(party.0, *keys).map_err(fail)?;
        }
        made.server.close_keys().map_err(fail)?;
        if stage == Purpose::Share {
            return Ok(made);
        }
        made.stage = Purpose::Share;
        for (device, blob) in &exchange.shares {
            made.check(device, &*self.said(blob)?)?;
        }
        made.stage = stage;
        made.server.close_shares().map_err(fail)?;
        if stage == Purpose::Mask {
            return Ok(made);
        }
        for (device, _) in &exchange.masked {
            let party = made.party(device)?;
            made.server.masked(party).map_err(fail)?;
        }
        made.server.close_masked().map_err(fail)?;
        Ok(made)
    }

    /// The session of the round at work, with what it was told since.
    fn masking_at(&mut self, round: RoundNumber, stage: Purpose) -> Result<Masking, Failure> {
        let Some(broker) = &mut self.broker else {
            return Err(Failure::new(FailureCode::Internal, "nobody is there"));
        };
        let known = broker.masking.take().filter(|it| (it.round, it.stage) == (round, stage));
        let exchange = broker.machine.round().and_then(|round| round.exchange()).cloned();
        known.map_or_else(|| self.masking(round, &exchange.unwrap_or_default(), stage), Ok)
    }

    fn keep(&mut self, masking: Masking) {
        if let Some(broker) = &mut self.broker {
            broker.masking = Some(masking);
        }
    }

    /// Asks a device for its part in a stage.
    pub(crate) fn offer_stage(
        &mut self,
        round: RoundNumber,
        device: &DeviceId,
        purpose: Purpose,
        attempt: Attempt,
    ) -> Result<(), String> {
        let machine = self.broker.as_ref().map(|broker| &broker.machine);
        let at = machine.and_then(|it| it.round()).and_then(Round::stage);
        if at != Some(purpose) {
            return Ok(());
        }
        let masking = match self.masking_at(round, purpose) {
            Ok(masking) => masking,
            Err(failure) => {
                let event = round::Event::AggregationFailed { failure };
                self.later(30, Event::Round { round, event });
                return Ok(());
            }
        };
        let question = masking.question(device);
        let roster = masking.server.roster().cloned();
        self.keep(masking);
        let mut question = question.map_err(|failure| failure.message)?;
        if self.is(Plant::BothSharesAsked)
            && let Question::Request(request) = &mut question
            && device.as_str().ends_with('0')
            && request.survivors.len() > 1
        {
            let request = Rc::make_mut(request);
            request.dropped.extend(request.survivors.pop());
            request.dropped.sort_unstable();
        }
        check::asked(self, (round, purpose, device), &question, roster.as_ref())?;
        let timeout_ms = self.spec.training_timeout_ms();
        let id = TaskId { job: "01job".parse().unwrap(), round, purpose, attempt };
        let task = Task { id, timeout_ms, work: TaskWork::Exchange };
        self.send_offer(device, &Offer::Task(Box::new(task)), Some(&question));
        Ok(())
    }

    /// Looks into what a device said.
    pub(crate) fn check_message(
        &mut self,
        round: RoundNumber,
        device: DeviceId,
        purpose: Purpose,
        message: BlobRef,
    ) {
        let checked = self.said(&message).and_then(|said| {
            let mut masking = self.masking_at(round, purpose)?;
            let checked = masking.check(&device, &said);
            self.keep(masking);
            checked
        });
        let refused = checked.err();
        if refused.is_none() {
            self.masked.usable.insert(value_of(&message));
        }
        self.note_refused(round, &device, refused.as_ref());
        let event = round::Event::MessageChecked { device, purpose, message, refused };
        self.later(30, Event::Round { round, event });
    }

    /// Makes new parameters of masked updates.
    pub(crate) fn unmask(
        &mut self,
        round: RoundNumber,
        updates: &[(DeviceId, UpdateReport)],
        exchange: &Exchange,
    ) -> Result<(), String> {
        let Some(term) = self.broker.as_ref().map(|broker| broker.term) else { return Ok(()) };
        check::exchanged(self, round, exchange)?;
        if self.is_private(PrivacyMode::Central) {
            let values: Vec<u64> =
                updates.iter().map(|(_, update)| value_of(&update.parameters)).collect();
            self.release(round, &values)?;
        }
        match self.unmasked(round, exchange) {
            Ok(sum) => {
                let name = format!("parameters/01job/{round}/{term}");
                let devices = exchange.masked.iter().map(|(device, _)| device.clone()).collect();
                self.masked.sums.insert(name.clone(), devices);
                let blob = Blob { value: number(&sum), base: 0, bad: false };
                let delay = self.writing();
                self.after(delay, Happening::MeanWritten { term, round, name, blob });
            }
            Err(failure) => {
                self.counts.not_unmasked += 1;
                let event = round::Event::AggregationFailed { failure };
                self.later(30, Event::Round { round, event });
            }
        }
        Ok(())
    }

    /// The sum of the masked updates, once its masks are off.
    fn unmasked(&self, round: RoundNumber, exchange: &Exchange) -> Result<Vec<u32>, Failure> {
        let mut masking = self.masking(round, exchange, Purpose::Unmask)?;
        for (device, blob) in &exchange.unmaskings {
            masking.check(device, &*self.said(blob)?)?;
        }
        let masks = masking.server.finish().map_err(|error| failure_of(&error))?;
        let mut sum = vec![0; LENGTH];
        for (device, blob) in &exchange.masked {
            let said = self.said(blob)?;
            masking.stage = Purpose::Mask;
            masking.check(device, &said)?;
            let Said::Masked(values) = &*said else { continue };
            secagg::add(&mut sum, values);
            if self.is(Plant::AddedTwice) && device.as_str().ends_with('0') {
                secagg::add(&mut sum, values);
            }
        }
        masks.apply(0, &mut sum);
        Ok(sum)
    }
}
