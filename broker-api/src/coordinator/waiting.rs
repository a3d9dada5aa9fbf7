//! What a training waits for: who could take part now, and why others cannot. Told when it begins to
//! wait, and when the reason changes.

use std::time::{Duration, Instant};

use jobs::device::Presence;
use jobs::id::{DeviceId, JobId, Millis};
use jobs::report::{Failure, FailureCode};
use jobs::selector::Selector;
use jobs::spec::TrainSpec;
use serde::Serialize;

use super::owner::Owner;
use super::prepare::{eligible, unfit, unjudged};
use super::state::Prepared;
use crate::broker::Core;
use crate::fleet::Fleet;
use crate::record::{EventBody, StoredJob, Waiting};
use crate::store::StoreError;

/// Devices that a reason names, at most.
const NAMED_MAX: usize = 8;
/// Between two looks at what is waited for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Devices that match a job, and cannot take part now.
#[derive(Debug, Default)]
pub(super) struct Absent {
    /// How many others there are that can.
    there: usize,
    /// Those that have its data set, by id, and why.
    away: Vec<(DeviceId, String)>,
    /// Those that have not.
    without: Vec<DeviceId>,
}

impl Absent {
    /// Looks at all devices that ever joined.
    pub(super) fn of(
        fleet: &Fleet,
        selector: &Selector,
        spec: &TrainSpec,
        prepared: Option<&Prepared>,
    ) -> Self {
        let (mut absent, now) = (Self::default(), fleet.now());
        fleet.for_each(|hello, presence| {
            if !selector.matches(hello) {
                return;
            }
            let device = || hello.device.clone();
            if !hello.datasets.iter().any(|facts| facts.name == spec.dataset) {
                absent.without.push(device());
            } else if presence != Presence::Online {
                absent.away.push((device(), "offline".to_owned()));
            } else if let Some(why) = unfit(hello, spec, prepared, now) {
                absent.away.push((device(), why));
            } else {
                absent.there += 1;
            }
        });
        absent
    }

    /// How many devices there are of those that are needed, and why others are not.
    fn text(&self, found: usize, needed: usize, job: (&Selector, &TrainSpec)) -> String {
        let (selector, spec) = job;
        let quorum = spec.participation.quorum.max(1) as usize;
        let of = if needed > quorum { "" } else { "quorum " };
        let away = self.away.iter().map(|(device, why)| format!("{device} {why}"));
        let dataset = &spec.dataset;
        let without = self.without.iter().map(|it| format!("{it} has no data set {dataset}"));
        let mut why: Vec<String> = away.chain(without).take(NAMED_MAX).collect();
        let more = (self.away.len() + self.without.len()).saturating_sub(why.len());
        if more > 0 {
            why.push(format!("{more} more"));
        }
        if why.is_empty() {
            let other = if found > 0 { "no other device" } else { "no device" };
            let selector = selector.to_string();
            why.push(if selector.is_empty() {
                format!("{other} has joined")
            } else {
                format!("{other} matches {selector}")
            });
        }
        format!("{found} of {of}{needed} eligible ({})", why.join(", "))
    }

    /// What a training waits for that found so many; nothing where it is about to find enough.
    pub(super) fn reason(
        &self,
        found: usize,
        needed: usize,
        job: (&Selector, &TrainSpec),
    ) -> Option<String> {
        let mut found = found;
        let mut barred = String::new();
        if self.there < needed {
            found = self.there;
        } else if job.1.participation.quarantine.is_some() {
            barred = format!("; {} in quarantine", self.there.saturating_sub(found));
        } else {
            return None;
        }
        Some(format!("waiting for devices: {}{barred}", self.text(found, needed, job)))
    }
}

/// Who would take part in a job if it began now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Devices that could be given work.
    pub devices: Vec<DeviceId>,
    /// What keeps it from beginning at once, or some devices from taking part.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Core {
    /// Who would take part in a training now.
    pub(crate) fn would_take_part(&self, selector: &Selector, spec: &TrainSpec) -> Checked {
        let devices = eligible(&self.fleet, selector, spec, None);
        let unjudged = unjudged(&devices, spec);
        let devices: Vec<DeviceId> = devices.into_iter().map(|hello| hello.device).collect();
        let absent = Absent::of(&self.fleet, selector, spec, None);
        let part = &spec.participation;
        let (quorum, wanted) = (part.quorum.max(1), part.devices.unwrap_or(0).max(part.quorum));
        let (found, quorum, wanted) = (devices.len(), quorum as usize, wanted as usize);
        let mut warnings = Vec::new();
        if found < quorum {
            let text = absent.text(found, quorum, (selector, spec));
            warnings.push(format!("the job would wait for devices: {text}"));
        } else if found < wanted {
            let text = absent.text(found, wanted, (selector, spec));
            warnings.push(format!("the job would wait for devices at first: {text}"));
        } else if part.devices.is_none() && !absent.away.is_empty() {
            let away = absent.away.iter().take(NAMED_MAX);
            let away: Vec<String> = away.map(|(device, why)| format!("{device} {why}")).collect();
            let more = absent.away.len().saturating_sub(NAMED_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            warnings.push(format!("the job would begin without {}{more}", away.join(", ")));
        }
        warnings.extend(unjudged);
        Checked { devices, warnings }
    }

    /// Says what a training waits for, to who looks at the job and who follows it; or that it goes on.
    pub(super) async fn tell_waiting(
        &self,
        job: &JobId,
        waiting: Option<Waiting>,
    ) -> Result<(), StoreError> {
        let mut is_new = false;
        let change = |stored: &mut StoredJob| {
            let key = |waiting: &Waiting| (waiting.round, waiting.reason.clone());
            let record = &mut stored.record;
            is_new = !record.state.is_final()
                && record.waiting.as_ref().map(key) != waiting.as_ref().map(key);
            if is_new {
                record.waiting.clone_from(&waiting);
            }
            is_new
        };
        self.store.jobs.modify(job.as_str(), change).await?;
        if let (true, Some(waiting)) = (is_new, waiting) {
            let id = format!("waiting.{}", waiting.since);
            self.store.publish_event(job, &id, EventBody::Waiting(waiting)).await?;
        }
        Ok(())
    }
}

/// What an owner has told.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// The round that waits, and for what.
    last: Option<(u32, String)>,
    looked_at: Option<Instant>,
}

impl Owner {
    /// Notes for the round that is to begin who is not there.
    pub(super) fn note_absent(&mut self) {
        if self.waits_for(self.core.fleet.now()).is_none() {
            return;
        }
        let not_there = |(device, why)| (device, Failure::new(FailureCode::NotThere, why));
        let away = self.look_for_absent().away;
        self.machine.absent(away.into_iter().map(not_there).collect());
    }

    /// While the round at work waits for devices: how many there are, and how many it needs.
    pub(super) fn waits_for(&self, now: Millis) -> Option<(usize, usize)> {
        self.machine.round()?.waits_for(now)
    }

    fn look_for_absent(&self) -> Absent {
        let (fleet, selector) = (&self.core.fleet, &self.job_spec.selector);
        Absent::of(fleet, selector, &self.spec, Some(&self.prepared))
    }

    /// Devices without which the round at work cannot go on, and which have their hands full.
    fn busy(&self) -> Vec<String> {
        let busy = self.machine.round().map(|round| round.waits_for_busy()).unwrap_or_default();
        let more = busy.len().saturating_sub(NAMED_MAX);
        let mut named: Vec<String> =
            busy.into_iter().take(NAMED_MAX).map(|it| format!("{it} is busy")).collect();
        if more > 0 {
            named.push(format!("{more} more are"));
        }
        named
    }

    /// Says what the round at work waits for, if it does. What cannot be stored is said later.
    pub(super) async fn tell_waiting(&mut self) {
        let now = self.core.fleet.now();
        let (selecting, busy) = (self.waits_for(now), self.busy());
        let told = if selecting.is_some() || !busy.is_empty() {
            if self.told.looked_at.is_some_and(|at| at.elapsed() < LOOK_EVERY) {
                return;
            }
            self.told.looked_at = Some(Instant::now());
            let reason = if let Some((found, needed)) = selecting {
                let job = (&self.job_spec.selector, &self.spec);
                self.look_for_absent().reason(found, needed, job)
            } else {
                Some(format!("waiting for devices: {}", busy.join(", ")))
            };
            let Some(reason) = reason else { return };
            Some((self.machine.number().0, reason))
        } else {
            self.told.looked_at = None;
            None
        };
        if self.told.last == told {
            return;
        }
        let round = self.machine.round().and_then(|round| round.status().deadline);
        let job = self.machine.deadline();
        let until = round.map_or(job, |round| round.min(job));
        let waiting =
            told.clone().map(|(round, reason)| Waiting { round, reason, since: now, until });
        match self.core.tell_waiting(&self.job, waiting).await {
            Ok(()) => self.told.last = told,
            Err(error) => tracing::debug!(job = %self.job, %error, "what it waits for is not told"),
        }
    }
}
