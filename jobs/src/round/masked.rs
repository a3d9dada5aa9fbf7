//! The stages of a round whose updates are added up masked: after collecting, which brings keys
//! instead of updates, devices give shares, send masked updates, and help to unmask their sum.
//!
//! Who does not answer a stage has dropped out; the others go on while the quorum is met.

use serde::{Deserialize, Serialize};

use super::ending::find;
use super::member::{Member, Standing, shortened};
use super::{Effect, Phase, Round};
use crate::id::{Attempt, BlobRef, DeviceId, Millis};
use crate::report::{Failure, FailureCode};
use crate::spec::Purpose;

/// Devices of such a round, at most: what they said has to fit into the stored state.
pub const MASKED_DEVICES_MAX: usize = 250;

/// What devices said at each stage, as blobs; ordered by device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Exchange {
    /// Everyone's keys, which take the place of updates.
    pub keys: Vec<(DeviceId, BlobRef)>,
    /// Shares of secrets, sealed for neighbours.
    pub shares: Vec<(DeviceId, BlobRef)>,
    /// Masked updates.
    pub masked: Vec<(DeviceId, BlobRef)>,
    /// Shares that unmask the sum.
    pub unmaskings: Vec<(DeviceId, BlobRef)>,
}

/// What a device said at the stage at work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Said {
    message: BlobRef,
    /// The shell looked into it and found it usable.
    checked: bool,
}

/// The stages of a round with masks.
impl Round {
    /// What devices said so far; nothing before the first stage, or without masks.
    pub fn exchange(&self) -> Option<&Exchange> {
        self.exchange.as_deref()
    }

    /// What devices sent in an update's place and was found usable; ordered by device.
    pub fn keys(&self) -> Vec<(DeviceId, BlobRef)> {
        let keys = self.counted().into_iter();
        keys.map(|(device, update)| (device, update.parameters)).collect()
    }

    /// The stage at work, if there is one.
    pub fn stage(&self) -> Option<Purpose> {
        match self.phase {
            Phase::Exchanging { purpose, .. } => Some(purpose),
            Phase::Selecting { .. }
            | Phase::Collecting { .. }
            | Phase::Aggregating { .. }
            | Phase::Evaluating { .. }
            | Phase::Ended { .. } => None,
        }
    }

    /// Begins with those whose keys are there.
    pub(super) fn begin_exchange(&mut self, now: Millis) -> Vec<Effect> {
        let keys = self.keys();
        let devices = keys.iter().map(|(device, _)| device.clone()).collect();
        self.exchange = Some(Box::new(Exchange { keys, ..Exchange::default() }));
        self.begin_stage(now, Purpose::Share, devices)
    }

    fn begin_stage(
        &mut self,
        now: Millis,
        purpose: Purpose,
        devices: Vec<DeviceId>,
    ) -> Vec<Effect> {
        let closed_at = self.closed_at(now);
        self.phase = Phase::Exchanging { purpose, closed_at, since: now, closed: false };
        self.speakers = devices
            .into_iter()
            .map(|device| {
                let lost = find(&mut self.members, &device).is_some_and(|member| member.lost);
                let mut speaker = Member::invited(now, device);
                speaker.lost = lost;
                speaker
            })
            .collect();
        let there = self.speakers.iter().filter(|speaker| !speaker.lost);
        let mut effects: Vec<Effect> =
            there.map(|speaker| self.offer_stage(purpose, speaker)).collect();
        effects.extend(self.settle_stage(now));
        effects
    }

    /// When updates, or keys in their place, were not taken any more.
    pub(super) fn closed_at(&self, now: Millis) -> Millis {
        match self.phase {
            Phase::Aggregating { closed_at }
            | Phase::Exchanging { closed_at, .. }
            | Phase::Evaluating { closed_at, .. } => closed_at,
            Phase::Selecting { .. } | Phase::Collecting { .. } | Phase::Ended { .. } => now,
        }
    }

    pub(super) fn offer_stage(&self, purpose: Purpose, speaker: &Member<Said>) -> Effect {
        Effect::Offer {
            device: speaker.device.clone(),
            purpose,
            attempt: speaker.attempt,
            parameters: self.plan.parameters.clone(),
        }
    }

    /// Whether a stage of this purpose is open.
    pub(super) fn is_at_stage(&self, now: Millis, purpose: Purpose) -> bool {
        let in_time = self.deadline().is_some_and(|deadline| now <= deadline);
        matches!(self.phase, Phase::Exchanging { purpose: at, closed: false, .. }
            if at == purpose && in_time)
    }

    pub(super) fn said(
        &mut self,
        now: Millis,
        device: &DeviceId,
        purpose: Purpose,
        attempt: Attempt,
        message: &BlobRef,
    ) -> Vec<Effect> {
        if !self.is_at_stage(now, purpose) {
            return Vec::new();
        }
        let Some(speaker) = find(&mut self.speakers, device) else { return Vec::new() };
        if !speaker.answered(attempt, Said { message: message.clone(), checked: false }) {
            return Vec::new();
        }
        self.exchanged.note(device, message);
        vec![check(device, purpose, message)]
    }

    pub(super) fn said_checked(
        &mut self,
        now: Millis,
        device: &DeviceId,
        purpose: Purpose,
        message: &BlobRef,
        refused: Option<&Failure>,
    ) -> Vec<Effect> {
        let Phase::Exchanging { purpose: at, closed, .. } = self.phase else { return Vec::new() };
        if at != purpose {
            return Vec::new();
        }
        let Some(speaker) = find(&mut self.speakers, device) else { return Vec::new() };
        let Standing::Answered(said) = &mut speaker.standing else { return Vec::new() };
        if said.checked || said.message != *message {
            return Vec::new();
        }
        match refused {
            None => said.checked = true,
            Some(failure) => speaker.refused(now, closed, failure),
        }
        self.settle_stage(now)
    }

    pub(super) fn stage_failed(
        &mut self,
        now: Millis,
        device: &DeviceId,
        purpose: Purpose,
        attempt: Attempt,
        failure: &Failure,
    ) -> Vec<Effect> {
        if !self.is_at_stage(now, purpose) {
            return Vec::new();
        }
        if let Some(speaker) = find(&mut self.speakers, device) {
            speaker.task_failed(now, attempt, failure);
        }
        self.settle_stage(now)
    }

    pub(super) fn speaker_returned(&mut self, now: Millis, device: &DeviceId) -> Vec<Effect> {
        let Phase::Exchanging { purpose, .. } = self.phase else { return Vec::new() };
        let open = self.is_at_stage(now, purpose);
        let Some(speaker) = find(&mut self.speakers, device) else { return Vec::new() };
        if !open {
            speaker.lost = false;
        } else if speaker.returned(now) {
            let speaker = speaker.clone();
            return vec![self.offer_stage(purpose, &speaker)];
        }
        self.settle_stage(now)
    }

    pub(super) fn speakers_due(&mut self, now: Millis) -> Vec<Effect> {
        let Phase::Exchanging { purpose, .. } = self.phase else { return Vec::new() };
        let due = self
            .speakers
            .iter_mut()
            .filter_map(|speaker| speaker.is_due(now).then(|| speaker.clone()));
        let due: Vec<Member<Said>> = due.collect();
        due.iter().map(|speaker| self.offer_stage(purpose, speaker)).collect()
    }

    /// Gives up on those who have not answered; waits for the checks of what has arrived.
    pub(super) fn close_stage_at_deadline(&mut self, now: Millis) -> Vec<Effect> {
        let Phase::Exchanging { purpose, since, .. } = self.phase else { return Vec::new() };
        let waited = now.since(since);
        let mut effects = Vec::new();
        for speaker in self.speakers.iter_mut().filter(|speaker| speaker.is_open()) {
            let failure = speaker.overdue(waited);
            if speaker.is_at_work() && !speaker.lost {
                let (device, attempt) = (speaker.device.clone(), speaker.attempt);
                let reason = failure.message.clone();
                effects.push(Effect::Withdraw { device, purpose, attempt, reason });
            }
            speaker.standing = Standing::Out(failure);
        }
        effects.extend(self.settle_stage(now));
        effects
    }

    /// Tells those who may be at work on a stage that the round is over; who had dropped out by then
    /// has its own reason.
    pub(super) fn dismiss_speakers(&mut self, failure: &Failure) -> Vec<Effect> {
        let Phase::Exchanging { purpose, .. } = self.phase else { return Vec::new() };
        let speakers = std::mem::take(&mut self.speakers);
        // A masked update that was in the sum is not used, whoever unmasks it.
        for speaker in speakers.iter().filter(|_| purpose != Purpose::Unmask) {
            if let Some(own) = speaker.own_failure() {
                self.drop_out(&speaker.device, &own);
            }
        }
        let speakers = speakers.into_iter();
        let at_work = speakers.filter(|speaker| speaker.is_at_work() && !speaker.lost);
        let withdraw = |speaker: Member<Said>| {
            let (device, attempt, reason) =
                (speaker.device, speaker.attempt, failure.message.clone());
            Effect::Withdraw { device, purpose, attempt, reason }
        };
        at_work.map(withdraw).collect()
    }

    /// What is owed to the stage at work.
    pub(super) fn stage_owes(&self, purpose: Purpose) -> Vec<Effect> {
        let owed = self.speakers.iter().filter_map(|speaker| match speaker.answer() {
            Some(said) => (!said.checked).then(|| check(&speaker.device, purpose, &said.message)),
            None => speaker.is_at_work().then(|| self.offer_stage(purpose, speaker)),
        });
        owed.collect()
    }

    /// Decides, after a change, whether the stage is over.
    pub(super) fn settle_stage(&mut self, now: Millis) -> Vec<Effect> {
        let Phase::Exchanging { purpose, .. } = self.phase else { return Vec::new() };
        let answers = || self.speakers.iter().filter_map(Member::answer);
        let (answered, checked) = (answers().count(), answers().filter(|it| it.checked).count());
        let open = self.speakers.iter().filter(|speaker| speaker.is_open()).count();
        // The sum is there by then: the shell knows how many it takes to unmask it.
        let needed = if purpose == Purpose::Unmask { 1 } else { self.quorum() };
        if answered + open < needed {
            let (all, stage) = (self.speakers.len(), purpose.as_str());
            let message =
                format!("{answered} of {all} devices answered to {stage}, quorum is {needed}");
            return self.fail(now, &Failure::new(FailureCode::NoQuorum, message));
        }
        let is_waited_for = self.speakers.iter().any(Member::is_reachable);
        if answered != checked || is_waited_for || checked < needed {
            return Vec::new();
        }
        self.close_stage(now, purpose)
    }

    fn close_stage(&mut self, now: Millis, purpose: Purpose) -> Vec<Effect> {
        let mut said = Vec::new();
        for speaker in std::mem::take(&mut self.speakers) {
            match &speaker.standing {
                Standing::Answered(answer) => {
                    said.push((speaker.device.clone(), answer.message.clone()));
                }
                // A masked update that is in the sum counts, whoever unmasks it.
                _ if purpose == Purpose::Unmask => {}
                Standing::Out(failure) => self.drop_out(&speaker.device, failure),
                Standing::Offered { .. } | Standing::Working | Standing::Resting { .. } => {
                    let failure = speaker.overdue(now.since(self.closed_at(now)));
                    self.drop_out(&speaker.device, &failure);
                }
            }
        }
        let devices = said.iter().map(|(device, _)| device.clone()).collect();
        let exchange = self.exchange.get_or_insert_default();
        match purpose {
            Purpose::Share => {
                exchange.shares = said;
                self.begin_stage(now, Purpose::Mask, devices)
            }
            Purpose::Mask => {
                exchange.masked = said;
                self.begin_stage(now, Purpose::Unmask, devices)
            }
            Purpose::Train
            | Purpose::Evaluate
            | Purpose::Infer
            | Purpose::Telemetry
            | Purpose::Unmask => {
                exchange.unmaskings = said;
                self.phase = Phase::Aggregating { closed_at: self.closed_at(now) };
                vec![self.aggregate_counted()]
            }
        }
    }

    /// Asks for the new parameters.
    pub(super) fn aggregate_counted(&self) -> Effect {
        let updates = self.counted();
        if let Some(exchange) = &self.exchange {
            return Effect::Unmask { updates, exchange: exchange.clone() };
        }
        let late = self.stragglers.counted();
        let stale = late.map(|(device, _, base)| (device.clone(), base.clone())).collect();
        Effect::Aggregate { updates, stale }
    }

    fn drop_out(&mut self, device: &DeviceId, failure: &Failure) {
        if let Some(member) = find(&mut self.members, device) {
            let message = format!("dropped out of the secure aggregation: {}", failure.message);
            let failure = Failure::new(failure.code, message);
            member.standing = Standing::Out(shortened(&failure));
        }
    }
}

fn check(device: &DeviceId, purpose: Purpose, message: &BlobRef) -> Effect {
    Effect::CheckMessage { device: device.clone(), purpose, message: message.clone() }
}
