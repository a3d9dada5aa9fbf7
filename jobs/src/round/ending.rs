//! A round when its updates are there: aggregating, evaluating, ending; and its clock.

use super::member::{Member, Standing, shortened};
use super::{Aggregate, Effect, Judgement, Moved, Outcome, Phase, Round, Update};
use crate::id::{Attempt, BlobRef, DeviceId, Millis};
use crate::report::{EvaluationReport, Failure, FailureCode, UpdateReport};
use crate::spec::{Participation, Purpose, Selection};

/// How often devices are looked up while there are too few.
const ASK_AGAIN_MS: Millis = Millis(1000);
/// The same while their hours may not have come yet.
const ASK_AGAIN_IN_WINDOWS_MS: Millis = Millis(30_000);

/// How often devices are looked up while there are too few.
pub(super) fn ask_again_ms(participation: &Participation) -> Millis {
    match participation.selection {
        Selection::Windows { .. } => ASK_AGAIN_IN_WINDOWS_MS,
        Selection::Random
        | Selection::Fraction { .. }
        | Selection::RoundRobin
        | Selection::Cyclic
        | Selection::ByLoss { .. }
        | Selection::BySpeed { .. } => ASK_AGAIN_MS,
    }
}

/// The entry of a device in a list that is ordered by device.
pub(super) fn find<'a, A>(
    members: &'a mut [Member<A>],
    device: &DeviceId,
) -> Option<&'a mut Member<A>> {
    let index = members.binary_search_by(|member| member.device.cmp(device)).ok()?;
    members.get_mut(index)
}

pub(super) fn offer_evaluation(judge: &Member<EvaluationReport>, parameters: &BlobRef) -> Effect {
    Effect::Offer {
        device: judge.device.clone(),
        purpose: Purpose::Evaluate,
        attempt: judge.attempt,
        parameters: parameters.clone(),
    }
}

/// Small parts.
impl Round {
    pub(super) fn quorum(&self) -> usize {
        (self.plan.participation.quorum as usize).max(1)
    }

    /// Updates that new parameters are made of, at least. A sampled round gives new parameters
    /// whoever was drawn: that there are none would tell who was not.
    pub(super) fn updates_min(&self) -> usize {
        if self.plan.sampling.is_some() { 0 } else { self.quorum() }
    }

    /// When this phase ends at the latest.
    pub(super) fn deadline(&self) -> Option<Millis> {
        let all = self.plan.participation.deadline_ms;
        match &self.phase {
            // Hours that will come are waited for: the job's deadline holds.
            Phase::Selecting { .. }
                if matches!(self.plan.participation.selection, Selection::Windows { .. }) =>
            {
                None
            }
            Phase::Selecting { .. } => Some(self.started_at.plus(all)),
            Phase::Collecting { since, .. } => Some(since.plus(all)),
            Phase::Exchanging { since, .. } => Some(since.plus(self.plan.masked.unwrap_or(all))),
            Phase::Evaluating { since, .. } => Some(since.plus(Millis(all.0 / 2))),
            Phase::Aggregating { .. } | Phase::Ended { .. } => None,
        }
    }

    pub(super) fn is_collecting(&self, now: Millis) -> bool {
        matches!(self.phase, Phase::Collecting { since, closed: false }
            if now <= since.plus(self.plan.participation.deadline_ms))
    }

    /// Members whose update is of this kind.
    pub(super) fn count(&self, kind: impl Fn(&Update) -> bool) -> usize {
        self.members.iter().filter_map(Member::answer).filter(|update| kind(update)).count()
    }

    /// The checked updates, ordered by device.
    pub(super) fn counted(&self) -> Vec<(DeviceId, UpdateReport)> {
        let own = self.members.iter().filter_map(|member| {
            let update = member.answer().filter(|update| update.checked)?;
            Some((member.device.clone(), update.report.clone()))
        });
        let late = self.stragglers.counted();
        let late = late.map(|(device, update, _)| (device.clone(), update.clone()));
        let mut counted: Vec<(DeviceId, UpdateReport)> = own.chain(late).collect();
        counted.sort_by(|(a, _), (b, _)| a.cmp(b));
        counted
    }

    pub(super) fn offer_training(&self, member: &Member<Update>) -> Effect {
        Effect::Offer {
            device: member.device.clone(),
            purpose: Purpose::Train,
            attempt: member.attempt,
            parameters: self.plan.parameters.clone(),
        }
    }
}

/// Aggregating, evaluating, ending.
impl Round {
    pub(super) fn aggregated(&mut self, now: Millis, aggregate: &Aggregate) -> Vec<Effect> {
        let Phase::Aggregating { closed_at } = self.phase else { return Vec::new() };
        let parameters = &aggregate.parameters;
        let aggregate = Box::new(aggregate.clone());
        self.phase = Phase::Evaluating { closed_at, since: now, aggregate };
        if self.plan.evaluate.by_devices() {
            let there = self.members.iter().filter(|member| member.answer().is_some());
            let there = there.filter(|member| !member.lost);
            let mut there: Vec<&DeviceId> = there.map(|member| &member.device).collect();
            there.extend(self.stragglers.counted_and_there());
            there.sort();
            let judges = there.into_iter().map(|device| Member::invited(now, device.clone()));
            self.judges = judges.collect();
        }
        let offers = self.judges.iter().map(|judge| offer_evaluation(judge, parameters));
        let offers: Vec<Effect> = offers.chain(self.evaluation_owed(parameters)).collect();
        offers.into_iter().chain(self.judged(now)).collect()
    }

    /// Goes on without an update that counts, if enough are left.
    pub(super) fn update_gone(
        &mut self,
        now: Millis,
        device: &DeviceId,
        failure: &Failure,
    ) -> Vec<Effect> {
        if !matches!(self.phase, Phase::Aggregating { .. }) {
            return Vec::new();
        }
        if self.stragglers.contains(device) {
            return self.fail(now, failure);
        }
        let member = find(&mut self.members, device);
        let Some(member) = member.filter(|member| member.answer().is_some()) else {
            return Vec::new();
        };
        member.standing = Standing::Out(shortened(failure));
        let left = self.counted().len();
        if left >= self.updates_min() {
            return vec![self.aggregate_counted()];
        }
        let message = self.no_quorum(left);
        self.fail(now, &Failure::new(FailureCode::NoQuorum, message))
    }

    /// The broker is to judge, and has not.
    pub(super) fn evaluation_owed(&self, parameters: &BlobRef) -> Option<Effect> {
        let owed = self.plan.evaluate.by_broker() && self.judgement.is_none();
        owed.then(|| Effect::Evaluate { parameters: parameters.clone() })
    }

    pub(super) fn broker_judged(
        &mut self,
        now: Millis,
        evaluation: &EvaluationReport,
    ) -> Vec<Effect> {
        let judgement = match evaluation.problem() {
            None => Judgement::Judged(evaluation.clone()),
            Some(problem) => Judgement::Missing(Failure::new(FailureCode::Diverged, problem)),
        };
        self.broker_said(now, judgement)
    }

    /// The first thing that the broker says counts.
    pub(super) fn broker_said(&mut self, now: Millis, judgement: Judgement) -> Vec<Effect> {
        let asked = self.plan.evaluate.by_broker();
        if !asked || self.judgement.is_some() || !matches!(self.phase, Phase::Evaluating { .. }) {
            return Vec::new();
        }
        self.judgement = Some(judgement);
        self.judged(now)
    }

    pub(super) fn evaluation_received(
        &mut self,
        now: Millis,
        device: &DeviceId,
        attempt: Attempt,
        evaluation: &EvaluationReport,
    ) -> Vec<Effect> {
        if !matches!(self.phase, Phase::Evaluating { .. }) {
            return Vec::new();
        }
        let Some(judge) = find(&mut self.judges, device) else { return Vec::new() };
        if judge.answered(attempt, evaluation.clone())
            && let Some(problem) = evaluation.problem()
        {
            judge.failed(now, &Failure::new(FailureCode::Diverged, problem));
        }
        self.judged(now)
    }

    /// Ends the round when no judgement is to be expected any more.
    pub(super) fn judged(&mut self, now: Millis) -> Vec<Effect> {
        let broker_owes = self.plan.evaluate.by_broker() && self.judgement.is_none();
        if broker_owes || self.judges.iter().any(Member::is_reachable) {
            return Vec::new();
        }
        self.succeed(now, None)
    }

    pub(super) fn cancel(&mut self, now: Millis, reason: &str) -> Vec<Effect> {
        let stopped = Failure::new(FailureCode::Cancelled, reason);
        match &self.phase {
            Phase::Selecting { .. }
            | Phase::Collecting { .. }
            | Phase::Exchanging { .. }
            | Phase::Aggregating { .. } => self.fail(now, &stopped),
            // The new parameters are there: the round did what it is for.
            Phase::Evaluating { .. } => self.succeed(now, Some(stopped)),
            Phase::Ended { .. } => Vec::new(),
        }
    }

    pub(super) fn tick(&mut self, now: Millis) -> Vec<Effect> {
        let mut effects = self.stragglers.due(now);
        if !self.stragglers.is_empty() {
            effects.extend(self.settle(now));
        }
        effects.extend(self.tick_own(now));
        effects
    }

    fn tick_own(&mut self, now: Millis) -> Vec<Effect> {
        let is_over = self.deadline().is_some_and(|deadline| deadline <= now);
        match &mut self.phase {
            Phase::Selecting { found, .. } if is_over => {
                let quorum = self.plan.participation.quorum.max(1);
                let message = format!("{found} eligible devices online, quorum is {quorum}");
                self.fail(now, &Failure::new(FailureCode::NoQuorum, message))
            }
            Phase::Selecting { ask_again_at, .. } if *ask_again_at <= now => {
                *ask_again_at = now.plus(ask_again_ms(&self.plan.participation));
                vec![Effect::FindDevices]
            }
            Phase::Collecting { closed, .. } if is_over && !*closed => {
                *closed = true;
                self.close_at_deadline(now)
            }
            Phase::Collecting { closed: false, .. } => {
                let due = self
                    .members
                    .iter_mut()
                    .filter_map(|member| member.is_due(now).then(|| member.clone()));
                let due: Vec<Member<Update>> = due.collect();
                due.iter().map(|member| self.offer_training(member)).collect()
            }
            Phase::Exchanging { closed, .. } if is_over && !*closed => {
                *closed = true;
                self.close_stage_at_deadline(now)
            }
            Phase::Exchanging { closed: false, .. } => self.speakers_due(now),
            Phase::Evaluating { since, .. } if is_over => {
                let message = format!("not judged within {} ms", now.since(*since));
                let overdue = Failure::new(FailureCode::DeadlineExceeded, message);
                self.succeed(now, Some(overdue))
            }
            Phase::Evaluating { aggregate, .. } => {
                let due = self.judges.iter_mut().filter_map(|judge| {
                    judge.is_due(now).then(|| offer_evaluation(judge, &aggregate.parameters))
                });
                due.collect()
            }
            Phase::Selecting { .. }
            | Phase::Collecting { closed: true, .. }
            | Phase::Exchanging { closed: true, .. }
            | Phase::Aggregating { .. }
            | Phase::Ended { .. } => Vec::new(),
        }
    }

    /// Ends the round without new parameters. Who gives nothing because of itself keeps its reason.
    pub(super) fn fail(&mut self, now: Millis, failure: &Failure) -> Vec<Effect> {
        let failure = shortened(failure);
        let before = Aggregate::of(self.plan.parameters.clone());
        let moved = self.moved(&before);
        let mut effects = self.dismiss_speakers(&failure);
        self.stragglers.refuse_counted(&failure);
        if failure.code != FailureCode::Cancelled {
            self.leave_behind(now, |_| failure.code == FailureCode::NoQuorum);
        }
        let dismissed = self.dismiss(|_| false, |member| member.unused(&failure));
        effects.extend(dismissed);
        effects.extend(self.end(now, before, Some(failure), moved));
        effects
    }

    /// Ends the round with its new parameters, if they are there; `silent` is why the broker says
    /// nothing of them, where it has not and should.
    fn succeed(&mut self, now: Millis, silent: Option<Failure>) -> Vec<Effect> {
        let Phase::Evaluating { aggregate, .. } = &self.phase else { return Vec::new() };
        if let (Some(_), Some(why)) = (self.evaluation_owed(&aggregate.parameters), silent) {
            self.judgement = Some(Judgement::Missing(why));
        }
        let aggregate = aggregate.clone();
        let moved = self.moved(&aggregate);
        self.end(now, *aggregate, None, moved)
    }

    fn end(
        &mut self,
        now: Millis,
        aggregate: Aggregate,
        failure: Option<Failure>,
        moved: Moved,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        for judge in self.judges.iter().filter(|judge| judge.is_at_work() && !judge.lost) {
            effects.push(Effect::Withdraw {
                device: judge.device.clone(),
                purpose: Purpose::Evaluate,
                attempt: judge.attempt,
                reason: "the round is over".to_owned(),
            });
        }
        let evaluations = self.judges.iter().filter_map(|judge| {
            judge.answer().map(|answer| (judge.device.clone(), answer.clone()))
        });
        let passed_over = std::mem::take(&mut self.passed_over);
        let missing = self.members.iter().filter_map(missing).chain(self.stragglers.missing());
        let missing = missing.chain(passed_over.into_iter().map(|it| (it, self.no_room())));
        let mut missing: Vec<(DeviceId, Failure)> = missing.collect();
        missing.sort_by(|(a, _), (b, _)| a.cmp(b));
        let outcome = Box::new(Outcome {
            round: self.plan.round,
            parameters: aggregate.parameters,
            server_state: aggregate.server_state,
            encoded: aggregate.encoded,
            influences: aggregate.influences,
            within: aggregate.within,
            privacy: None,
            failure,
            updates: self.counted(),
            evaluations: evaluations.collect(),
            judgement: self.judgement.take(),
            missing,
            stragglers: self.stragglers.devices().cloned().collect(),
            best: None,
            moved: Some(moved),
            exchanged: self.take_said(),
            started_at: self.started_at,
            ended_at: now,
        });
        self.phase = Phase::Ended { outcome: outcome.clone() };
        // The outcome says it all: the stored state stays small.
        (self.members, self.judges, self.spares) = (Vec::new(), Vec::new(), Vec::new());
        (self.speakers, self.exchange) = (Vec::new(), None);
        effects.push(Effect::End(outcome));
        effects
    }
}

/// Why a member's update is not in the mean.
fn missing(member: &Member<Update>) -> Option<(DeviceId, Failure)> {
    let Standing::Out(failure) = &member.standing else { return None };
    let mut failure = failure.clone();
    if let Some(late) = member.late_ms {
        failure.message = format!("{}; an update came {late} ms after the close", failure.message);
    }
    Some((member.device.clone(), failure))
}
