//! Devices that train from the parameters of an earlier round, where their updates still count.
//!
//! When a round closes, a device that is at work is not told to stop: it becomes a straggler, and
//! its update is taken into the next aggregate, whenever it comes. A straggler has one update at
//! most, which counts once: it is not invited to a round before that.

use serde::{Deserialize, Serialize};

use super::member::{Member, Standing, shortened};
use super::{Effect, Event, Update};
use crate::id::{BlobRef, DeviceId, Millis, RoundNumber};
use crate::report::{Failure, FailureCode, UpdateReport};
use crate::spec::{Purpose, is_default};

/// Which versions of the parameters updates may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The version of a round's own parameters: the rounds that gave new ones before it.
    pub newest: u32,
    /// How many versions older an update may be.
    pub staleness_max: u32,
    /// How long a device may go on when its round is over.
    pub timeout_ms: Millis,
    /// Whether a device of the reserve begins when another one has delivered, so that as many as
    /// were invited are at work for as long as there are any.
    #[serde(default, skip_serializing_if = "is_default")]
    pub refills: bool,
}

/// What an update was trained from that is not of the round at work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The round that the task is of.
    pub round: RoundNumber,
    /// The parameters of that round.
    pub parameters: BlobRef,
    /// The same as they travel to devices, where they are encoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoded: Option<BlobRef>,
    /// Their version.
    pub version: u32,
}

/// A device that trains from the parameters of an earlier round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Straggler {
    base: Base,
    member: Member<Update>,
    /// Its update is waited for until then.
    until: Millis,
    /// Its update is in the aggregate that is being made.
    #[serde(default, skip_serializing_if = "is_default")]
    counted: bool,
}

/// All of them, ordered by device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Stragglers(Vec<Straggler>);

impl Straggler {
    /// An effect on a task of its round.
    fn effect(&self, effect: Effect) -> Effect {
        Effect::Earlier { round: self.base.round, effect: Box::new(effect) }
    }

    fn offer(&self) -> Effect {
        self.effect(Effect::Offer {
            device: self.member.device.clone(),
            purpose: Purpose::Train,
            attempt: self.member.attempt,
            parameters: self.base.parameters.clone(),
        })
    }

    fn check(&self, update: &UpdateReport) -> Effect {
        self.effect(Effect::CheckUpdate {
            device: self.member.device.clone(),
            update: update.clone(),
            base: Some(Box::new(self.base.clone())),
        })
    }

    /// Expects nothing more of it; tells it, if it may be at work.
    fn let_go(&mut self, failure: Failure) -> Option<Effect> {
        let member = &self.member;
        let told = (member.is_at_work() && !member.lost).then(|| {
            self.effect(Effect::Withdraw {
                device: member.device.clone(),
                purpose: Purpose::Train,
                attempt: member.attempt,
                reason: failure.message.clone(),
            })
        });
        self.member.standing = Standing::Out(failure);
        told
    }

    fn is_ready(&self) -> bool {
        self.member.answer().is_some_and(|update| update.checked)
    }

    /// Whether anything is still to be expected of it, or its update waits.
    fn goes_on(&self) -> bool {
        !self.counted && !matches!(self.member.standing, Standing::Out(_))
    }
}

impl Stragglers {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Devices that are at work, or whose update waits for the next aggregate.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceId> {
        self.0.iter().filter(|it| it.goes_on()).map(|it| &it.member.device)
    }

    /// What is still needed of the object store: parameters that are trained from, and updates, those
    /// of the aggregate that is being made too.
    pub fn blobs(&self) -> impl Iterator<Item = &BlobRef> {
        let out = |it: &&Straggler| matches!(it.member.standing, Standing::Out(_));
        self.0.iter().filter(move |it| !out(it)).flat_map(|it| {
            let update = it.member.answer().map(|update| &update.report.parameters);
            std::iter::once(&it.base.parameters).chain(&it.base.encoded).chain(update)
        })
    }

    /// What they train from.
    pub fn bases(&self) -> impl Iterator<Item = &Base> {
        self.0.iter().map(|it| &it.base)
    }

    /// Whether a device's update from this round may still come.
    pub(crate) fn awaits(&self, round: RoundNumber, device: &DeviceId) -> bool {
        let mut open = self.0.iter().filter(|it| it.member.is_open());
        open.any(|it| it.base.round == round && it.member.device == *device)
    }

    /// How many were left behind by this round.
    pub(super) fn left_by(&self, round: RoundNumber) -> usize {
        self.0.iter().filter(|it| it.base.round == round).count()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    fn find(&mut self, device: &DeviceId) -> Option<&mut Straggler> {
        let index = self.0.binary_search_by(|it| it.member.device.cmp(device)).ok()?;
        self.0.get_mut(index)
    }

    pub(super) fn contains(&self, device: &DeviceId) -> bool {
        self.0.binary_search_by(|it| it.member.device.cmp(device)).is_ok()
    }

    /// Takes a member of a round that goes on without it.
    pub(super) fn take(&mut self, base: Base, until: Millis, member: Member<Update>) {
        let index = self.0.partition_point(|it| it.member.device < member.device);
        self.0.insert(index, Straggler { base, member, until, counted: false });
    }

    /// Applies what happened to a task of round `of`; `None` when that is no straggler's.
    pub(super) fn step(
        &mut self,
        now: Millis,
        of: RoundNumber,
        event: &Event,
    ) -> Option<Vec<Effect>> {
        let (Event::Accepted { device, purpose: Purpose::Train, .. }
        | Event::UpdateReceived { device, .. }
        | Event::UpdateChecked { device, .. }
        | Event::TaskFailed { device, purpose: Purpose::Train, .. }) = event
        else {
            return None;
        };
        let straggler = self.find(device).filter(|it| it.base.round == of)?;
        let member = &mut straggler.member;
        let mut effects = Vec::new();
        if let Event::UpdateReceived { attempt, update, .. } = event {
            if straggler.counted {
                return Some(effects);
            }
            let update = member.update_received(now, *attempt, update);
            effects.extend(update.map(|update| straggler.check(&update)));
        } else if let Event::UpdateChecked { parameters, refused, .. } = event {
            member.update_checked(now, true, parameters, refused.as_ref());
        } else if let Event::Accepted { attempt, .. } = event {
            member.accepted(*attempt);
        } else if let Event::TaskFailed { attempt, failure, .. } = event
            && member.ends(*attempt)
        {
            member.standing = Standing::Out(shortened(failure));
        }
        Some(effects)
    }

    /// The same while no round is at work, which otherwise tells who is there.
    pub(crate) fn between_rounds(
        &mut self,
        now: Millis,
        of: RoundNumber,
        event: &Event,
    ) -> Vec<Effect> {
        if let Event::DeviceLost { device } = event {
            self.lost(device);
            return Vec::new();
        }
        if let Event::DeviceReturned { device } = event {
            return self.returned(now, device).into_iter().collect();
        }
        self.step(now, of, event).unwrap_or_default()
    }

    pub(super) fn lost(&mut self, device: &DeviceId) {
        if let Some(straggler) = self.find(device) {
            straggler.member.lost = true;
        }
    }

    /// Offers its task again to one that came back.
    pub(super) fn returned(&mut self, now: Millis, device: &DeviceId) -> Option<Effect> {
        let straggler = self.find(device)?;
        straggler.member.returned(now).then(|| straggler.offer())
    }

    /// Notes who is there, after a time in which nobody looked.
    pub(super) fn seen(&mut self, now: Millis, devices: &[DeviceId]) -> Vec<Effect> {
        let mut effects = Vec::new();
        for straggler in &mut self.0 {
            if !devices.contains(&straggler.member.device) {
                straggler.member.lost = true;
            } else if straggler.member.returned(now) {
                effects.push(straggler.offer());
            }
        }
        effects
    }

    /// Lets go of those whose update would be too old in a round.
    pub(super) fn outdate(&mut self, versions: Versions) -> Vec<Effect> {
        let Versions { newest, staleness_max, .. } = versions;
        let mut effects = Vec::new();
        for straggler in &mut self.0 {
            let age = newest.saturating_sub(straggler.base.version);
            if age > staleness_max && straggler.goes_on() {
                let message = format!(
                    "trained from round {}, {age} versions ago; updates count for {staleness_max}",
                    straggler.base.round
                );
                effects.extend(straggler.let_go(Failure::new(FailureCode::Cancelled, message)));
            }
        }
        effects
    }

    /// Lets go of all that are at work: the job is over.
    pub(crate) fn dismiss(&mut self) -> Vec<Effect> {
        let reason = || Failure::new(FailureCode::Cancelled, "the training is over");
        let told = self.0.iter_mut().filter_map(|straggler| straggler.let_go(reason())).collect();
        self.0.clear();
        told
    }

    /// Those whose update is there and usable.
    pub(super) fn ready(&self) -> usize {
        self.0.iter().filter(|it| it.is_ready()).count()
    }

    /// Those whose update is there, or may be expected.
    pub(super) fn promising(&self) -> usize {
        self.0.iter().filter(|it| it.member.is_reachable() || it.member.answer().is_some()).count()
    }

    pub(super) fn unchecked(&self) -> usize {
        let answers = self.0.iter().filter_map(|it| it.member.answer());
        answers.filter(|update| !update.checked).count()
    }

    /// Those whose update may still come.
    pub(super) fn open(&self) -> usize {
        self.0.iter().filter(|it| it.member.is_open()).count()
    }

    /// The same, of those that are there.
    pub(super) fn reachable(&self) -> usize {
        self.0.iter().filter(|it| it.member.is_reachable()).count()
    }

    /// Puts the updates that are there into the aggregate that is made now.
    pub(super) fn count(&mut self) {
        for straggler in &mut self.0 {
            straggler.counted = straggler.is_ready();
        }
    }

    /// The updates in that aggregate, with what each was trained from.
    pub(super) fn counted(&self) -> impl Iterator<Item = (&DeviceId, &UpdateReport, &Base)> {
        self.0.iter().filter(|it| it.counted).filter_map(|it| {
            let update = it.member.answer()?;
            Some((&it.member.device, &update.report, &it.base))
        })
    }

    /// Devices of that aggregate that are there.
    pub(super) fn counted_and_there(&self) -> impl Iterator<Item = &DeviceId> {
        let there = self.0.iter().filter(|it| it.counted && !it.member.lost);
        there.map(|it| &it.member.device)
    }

    /// That aggregate is not made: its updates are not used.
    pub(super) fn refuse_counted(&mut self, failure: &Failure) {
        for straggler in self.0.iter_mut().filter(|it| it.counted) {
            straggler.member.standing = Standing::Out(straggler.member.unused(failure));
            straggler.counted = false;
        }
    }

    /// Those of whom nothing more is expected, and why.
    pub(super) fn missing(&self) -> impl Iterator<Item = (DeviceId, Failure)> {
        self.0.iter().filter_map(|it| {
            let Standing::Out(failure) = &it.member.standing else { return None };
            Some((it.member.device.clone(), failure.clone()))
        })
    }

    /// Forgets those that the round that ends has accounted for.
    pub(super) fn accounted(mut self) -> Self {
        self.0.retain(Straggler::goes_on);
        self
    }

    pub(super) fn due_at(&self) -> Option<Millis> {
        let open = self.0.iter().filter(|it| it.member.is_open());
        open.filter_map(|it| it.member.due_at().into_iter().chain([it.until]).min()).min()
    }

    /// Offers that are to be made again now, and devices that are not waited for any more.
    pub(super) fn due(&mut self, now: Millis) -> Vec<Effect> {
        let mut effects = Vec::new();
        for straggler in self.0.iter_mut().filter(|it| it.member.is_open()) {
            if straggler.until <= now {
                let message = format!("no update came, long after round {}", straggler.base.round);
                let failure = Failure::new(FailureCode::DeadlineExceeded, message);
                effects.extend(straggler.let_go(failure));
            } else if straggler.member.is_due(now) {
                effects.push(straggler.offer());
            }
        }
        effects
    }

    /// What is still owed after a restart.
    pub(crate) fn pending(&self) -> impl Iterator<Item = Effect> {
        self.0.iter().filter_map(|it| match it.member.answer() {
            Some(update) => (!update.checked).then(|| it.check(&update.report)),
            None => it.member.is_at_work().then(|| it.offer()),
        })
    }
}
