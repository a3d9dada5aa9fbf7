//! A round until its updates are there: selecting and collecting.

use super::ending::{find, offer_evaluation};
use super::member::{Member, Standing};
use super::select::{NAMED_MAX, as_given, invited, shuffled, wanted, with_surplus};
use super::{Base, Effect, Phase, Round, Update};
use crate::id::{Attempt, BlobRef, DeviceId, Millis};
use crate::report::{Failure, FailureCode, UpdateReport};
use crate::spec::Purpose;

/// How long to hope for all wanted devices while the quorum is there, at most.
const SETTLE_MS_MAX: u64 = 10_000;

/// Selecting.
impl Round {
    pub(super) fn devices_found(&mut self, now: Millis, devices: &[DeviceId]) -> Vec<Effect> {
        let (room, participation) = (self.room(), &self.plan.participation);
        let Phase::Selecting { found, .. } = &mut self.phase else { return Vec::new() };
        let mut eligible = if participation.selection.remembers() {
            as_given(devices)
        } else {
            shuffled(self.plan.seed, devices)
        };
        let mut effects = self.stragglers.seen(now, &eligible);
        eligible.retain(|device| !self.stragglers.contains(device));
        let there = eligible.len() + self.stragglers.promising();
        *found = there;
        let wanted = wanted(participation, there).map(|wanted| wanted.min(room));
        let mut invited = invited(participation, there);
        if wanted.is_some() {
            invited = invited.saturating_sub(self.stragglers.promising());
        }
        if there < self.enough(now, there) {
            return effects;
        }
        self.there = there;
        let is_drawn = self.plan.sampling.is_some();
        let all = if is_drawn { eligible.len() } else { invited.min(eligible.len()) };
        self.passed_over = eligible.drain(room.min(all)..all).take(NAMED_MAX - room).collect();
        eligible.truncate(room);
        self.spares = eligible.split_off(invited.min(eligible.len()));
        self.spares.reverse();
        self.target = wanted.unwrap_or(eligible.len());
        if let Some(sampling) = &self.plan.sampling {
            eligible.extend(std::mem::take(&mut self.spares));
            eligible.retain(|device| sampling.draws(device));
            self.target = eligible.len();
        }
        self.phase = Phase::Collecting { since: now, closed: false };
        effects.extend(eligible.into_iter().map(|device| self.invite(now, device)));
        if self.members.is_empty() || !self.stragglers.is_empty() {
            effects.extend(self.settle(now));
        }
        effects
    }

    /// Devices without which it does not begin, where so many are there.
    fn enough(&self, now: Millis, there: usize) -> usize {
        let wait = (self.plan.participation.deadline_ms.0 / 10).min(SETTLE_MS_MAX);
        let (quorum, room) = (self.quorum(), self.room());
        if now >= self.started_at.plus(Millis(wait)) {
            return quorum;
        }
        let wanted = wanted(&self.plan.participation, there).map(|wanted| wanted.min(room));
        let hoped = wanted.map(|wanted| self.plan.hoped.map_or(wanted, |hoped| hoped.min(wanted)));
        hoped.unwrap_or(quorum).max(quorum)
    }

    /// While it waits for devices: how many were there last time, and how many it needs.
    pub fn waits_for(&self, now: Millis) -> Option<(usize, usize)> {
        let Phase::Selecting { found, .. } = self.phase else { return None };
        Some((found, self.enough(now, found)))
    }

    /// Devices that have their hands full and are asked again, where it cannot do without them.
    pub fn waits_for_busy(&self) -> Vec<&DeviceId> {
        let is_collecting = matches!(self.phase, Phase::Collecting { closed: false, .. });
        let may_answer = |it: &&Member<_>| !it.is_busy() && (it.is_open() || it.answer().is_some());
        let others = self.members.iter().filter(may_answer).count();
        let others = others + self.stragglers.ready() + self.stragglers.open();
        if !is_collecting || others >= self.updates_min() {
            return Vec::new();
        }
        let busy = self.members.iter().filter(|member| member.is_busy());
        busy.map(|member| &member.device).collect()
    }

    fn invite(&mut self, now: Millis, device: DeviceId) -> Effect {
        let member = Member::invited(now, device);
        let effect = self.offer_training(&member);
        let index = self.members.partition_point(|other| other.device < member.device);
        self.members.insert(index, member);
        effect
    }
}

/// Collecting.
impl Round {
    pub(super) fn accepted(&mut self, device: &DeviceId, purpose: Purpose, attempt: Attempt) {
        match purpose {
            Purpose::Train => {
                if let Some(member) = find(&mut self.members, device) {
                    member.accepted(attempt);
                }
            }
            Purpose::Evaluate => {
                if let Some(judge) = find(&mut self.judges, device) {
                    judge.accepted(attempt);
                }
            }
            Purpose::Share | Purpose::Mask | Purpose::Unmask => {
                let at_work = matches!(self.phase, Phase::Exchanging { purpose: at, .. }
                    if at == purpose);
                if let Some(speaker) = find(&mut self.speakers, device).filter(|_| at_work) {
                    speaker.accepted(attempt);
                }
            }
            Purpose::Infer | Purpose::Telemetry => {}
        }
    }

    pub(super) fn update_received(
        &mut self,
        now: Millis,
        device: &DeviceId,
        attempt: Attempt,
        update: &UpdateReport,
    ) -> Vec<Effect> {
        let collecting = self.is_collecting(now);
        let closed_at = match self.phase {
            Phase::Aggregating { closed_at }
            | Phase::Exchanging { closed_at, .. }
            | Phase::Evaluating { closed_at, .. } => closed_at,
            Phase::Selecting { .. } | Phase::Collecting { .. } | Phase::Ended { .. } => {
                self.deadline().unwrap_or(now)
            }
        };
        let Some(member) = find(&mut self.members, device) else { return Vec::new() };
        if !collecting {
            if member.answer().is_none() && member.late_ms.is_none() {
                member.late_ms = Some(now.since(closed_at));
            }
            return Vec::new();
        }
        match member.update_received(now, attempt, update) {
            Some(update) => {
                vec![Effect::CheckUpdate { device: device.clone(), update, base: None }]
            }
            None => self.settle(now),
        }
    }

    pub(super) fn update_checked(
        &mut self,
        now: Millis,
        device: &DeviceId,
        parameters: &BlobRef,
        refused: Option<&Failure>,
    ) -> Vec<Effect> {
        let Phase::Collecting { closed, .. } = self.phase else { return Vec::new() };
        let Some(member) = find(&mut self.members, device) else { return Vec::new() };
        if member.update_checked(now, closed, parameters, refused) {
            self.settle(now)
        } else {
            Vec::new()
        }
    }

    pub(super) fn task_failed(
        &mut self,
        now: Millis,
        device: &DeviceId,
        purpose: Purpose,
        attempt: Attempt,
        failure: &Failure,
    ) -> Vec<Effect> {
        match purpose {
            Purpose::Train if self.is_collecting(now) => {
                if let Some(member) = find(&mut self.members, device) {
                    member.task_failed(now, attempt, failure);
                }
                self.settle(now)
            }
            Purpose::Evaluate if matches!(self.phase, Phase::Evaluating { .. }) => {
                if let Some(judge) = find(&mut self.judges, device) {
                    judge.task_failed(now, attempt, failure);
                }
                self.judged(now)
            }
            Purpose::Share | Purpose::Mask | Purpose::Unmask => {
                self.stage_failed(now, device, purpose, attempt, failure)
            }
            Purpose::Train | Purpose::Evaluate | Purpose::Infer | Purpose::Telemetry => Vec::new(),
        }
    }

    pub(super) fn device_lost(&mut self, now: Millis, device: &DeviceId) -> Vec<Effect> {
        if let Some(member) = find(&mut self.members, device) {
            member.lost = true;
        }
        if let Some(judge) = find(&mut self.judges, device) {
            judge.lost = true;
        }
        if let Some(speaker) = find(&mut self.speakers, device) {
            speaker.lost = true;
        }
        self.stragglers.lost(device);
        self.spares.retain(|spare| spare != device);
        match self.phase {
            Phase::Collecting { .. } => self.settle(now),
            Phase::Exchanging { .. } => self.settle_stage(now),
            Phase::Evaluating { .. } => self.judged(now),
            Phase::Selecting { .. } | Phase::Aggregating { .. } | Phase::Ended { .. } => Vec::new(),
        }
    }

    pub(super) fn device_returned(&mut self, now: Millis, device: &DeviceId) -> Vec<Effect> {
        if let Some(offer) = self.stragglers.returned(now, device) {
            return vec![offer];
        }
        let in_time = self.deadline().is_some_and(|deadline| now < deadline);
        if let Phase::Evaluating { aggregate, .. } = &self.phase {
            let judge = find(&mut self.judges, device).filter(|_| in_time);
            let judge = judge.and_then(|judge| judge.returned(now).then_some(judge));
            return judge
                .map(|judge| offer_evaluation(judge, &aggregate.parameters))
                .into_iter()
                .collect();
        }
        let collecting = in_time && self.is_collecting(now);
        let Some(member) = find(&mut self.members, device) else { return Vec::new() };
        if !collecting {
            member.lost = false;
            return self.speaker_returned(now, device);
        }
        if member.returned(now) {
            let member = member.clone();
            return vec![self.offer_training(&member)];
        }
        self.settle(now)
    }

    /// Decides, after a change, whether collecting is over.
    pub(super) fn settle(&mut self, now: Millis) -> Vec<Effect> {
        let Phase::Collecting { closed, .. } = self.phase else { return Vec::new() };
        let late = &self.stragglers;
        let (own, ready) = (self.count(|update| update.checked), late.ready());
        // Who takes part in all rounds waits for those of this one.
        let counting = if self.takes_all() { own } else { own + ready };
        if counting >= self.target && own + ready >= self.updates_min() {
            return self.aggregate(now, Some(own + ready));
        }
        let mut effects = Vec::new();
        if self.is_collecting(now) {
            for _ in 0..self.lacking() {
                let Some(spare) = self.spares.pop() else { break };
                effects.push(self.invite(now, spare));
            }
        }
        let late = &self.stragglers;
        let unchecked = self.count(|update| !update.checked) + late.unchecked();
        let answered = self.count(|_| true) + late.ready() + late.unchecked();
        let open = self.members.iter().filter(|member| member.is_open()).count() + late.open();
        let open = if closed { 0 } else { open };
        let waits = self.members.iter().any(Member::is_reachable)
            || (!self.takes_all() || answered < self.updates_min()) && late.reachable() > 0;
        if answered + open < self.updates_min() {
            if self.lets_busy_rest(now, answered + open) {
                return effects;
            }
            let message = self.no_quorum(answered);
            effects.extend(self.fail(now, &Failure::new(FailureCode::NoQuorum, message)));
        } else if unchecked == 0 && answered >= self.updates_min() && (closed || !waits) {
            effects.extend(self.aggregate(now, None));
        }
        effects
    }

    /// Waits for devices that have their hands full, if with them there are enough.
    fn lets_busy_rest(&mut self, now: Millis, others: usize) -> bool {
        let busy = self.members.iter().filter(|member| member.was_busy()).count();
        let waits = self.is_collecting(now) && others + busy >= self.updates_min();
        if waits {
            let busy = self.members.iter_mut().filter(|member| member.was_busy());
            busy.for_each(|member| member.waited_for(now));
        }
        waits
    }

    /// Devices to invite in addition, if there are any in reserve.
    fn lacking(&self) -> usize {
        let at_work = self.members.iter().filter(|member| member.is_reachable()).count();
        if self.plan.versions.is_some_and(|versions| versions.refills) {
            let wanted = with_surplus(self.target, self.plan.participation.over_selection);
            return wanted.saturating_sub(at_work + self.stragglers.reachable());
        }
        let promising = at_work + self.count(|_| true) + self.stragglers.promising();
        self.target.saturating_sub(promising)
    }

    /// Whether a round is of all eligible devices, and not of a number of them.
    fn takes_all(&self) -> bool {
        wanted(&self.plan.participation, 0).is_none()
    }

    pub(super) fn no_quorum(&self, updates: usize) -> String {
        let (quorum, invited) = (self.quorum(), self.members.len() + self.stragglers.len());
        format!("{updates} usable updates of {invited} invited devices, quorum is {quorum}")
    }

    /// Closes collecting and asks for the mean; `reached` when it was for enough updates.
    fn aggregate(&mut self, now: Millis, reached: Option<usize>) -> Vec<Effect> {
        let since = match self.phase {
            Phase::Collecting { since, .. } => since,
            Phase::Selecting { .. }
            | Phase::Exchanging { .. }
            | Phase::Aggregating { .. }
            | Phase::Evaluating { .. }
            | Phase::Ended { .. } => self.started_at,
        };
        self.stragglers.count();
        self.leave_behind(now, |update| !update.checked);
        let mut effects = self.dismiss(
            |update| update.checked,
            |member| match reached {
                Some(count) if !member.lost || member.answer().is_some() => {
                    let message = format!("not needed: {count} updates were there without it");
                    Failure::new(FailureCode::Cancelled, message)
                }
                _ => member.overdue(now.since(since)),
            },
        );
        self.phase = Phase::Aggregating { closed_at: now };
        if self.plan.masked.is_some() {
            effects.extend(self.begin_exchange(now));
        } else {
            effects.push(self.aggregate_counted());
        }
        effects
    }

    /// Goes on without the members that are at work, and those with such an update, where late
    /// updates count.
    pub(super) fn leave_behind(&mut self, now: Millis, such: impl Fn(&Update) -> bool) {
        let Some(versions) = self.plan.versions else { return };
        let until = now.plus(versions.timeout_ms);
        let base = Base {
            round: self.plan.round,
            parameters: self.plan.parameters.clone(),
            encoded: self.plan.encoded.clone(),
            version: versions.newest,
        };
        let goes_on = |member: &mut Member<Update>| match &member.standing {
            Standing::Working => true,
            Standing::Answered(update) => such(update),
            Standing::Offered { .. } | Standing::Resting { .. } | Standing::Out(_) => false,
        };
        for member in self.members.extract_if(.., goes_on) {
            self.stragglers.take(base.clone(), until, member);
        }
    }

    /// Gives up on members that have not answered; waits for the checks of those that have.
    pub(super) fn close_at_deadline(&mut self, now: Millis) -> Vec<Effect> {
        self.leave_behind(now, |_| false);
        let waited = self.plan.participation.deadline_ms;
        let mut effects = self.dismiss(|_| true, |member| member.overdue(waited));
        effects.extend(self.settle(now));
        effects
    }

    /// Lets go of every member whose update is not kept. Those that may be at work are told.
    pub(super) fn dismiss(
        &mut self,
        is_kept: impl Fn(&Update) -> bool,
        why: impl Fn(&Member<Update>) -> Failure,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        for member in &mut self.members {
            if !member.is_open() && member.answer().is_none_or(&is_kept) {
                continue;
            }
            let failure = why(member);
            if member.is_at_work() && !member.lost {
                let (device, attempt) = (member.device.clone(), member.attempt);
                let (purpose, reason) = (Purpose::Train, failure.message.clone());
                effects.push(Effect::Withdraw { device, purpose, attempt, reason });
            }
            member.standing = Standing::Out(failure);
        }
        effects
    }
}
