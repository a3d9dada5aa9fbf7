//! What is said of a training to whoever looks at its job.

use jobs::id::JobId;
use jobs::report::{ReportBody, TaskReport};

use super::owner::Owner;
use crate::broker::Core;
use crate::record::{StoredJob, WentOn};
use crate::store::StoreError;

/// Notes on devices, at most.
const ON_DEVICES: usize = 16;
/// How they begin.
const ON_DEVICE: &str = "device ";

/// What a job went on from, and what began anew.
pub(super) async fn tell(
    core: &Core,
    job: &JobId,
    went_on: Option<&WentOn>,
    notes: &[String],
) -> Result<(), StoreError> {
    if went_on.is_none() && notes.is_empty() {
        return Ok(());
    }
    let told = |stored: &mut StoredJob| {
        let known = &mut stored.record.notes;
        let new: Vec<String> = notes.iter().filter(|it| !known.contains(it)).cloned().collect();
        let is_new = !new.is_empty() || stored.went_on.as_ref() != went_on;
        known.extend(new);
        stored.went_on = went_on.cloned();
        is_new
    };
    core.store.jobs.modify(job.as_str(), told).await?;
    Ok(())
}

impl Owner {
    /// A device that had lost its control variate is named, as far as there are not too many.
    pub(super) fn tell_lost(&self, report: &TaskReport) {
        let ReportBody::Trained(update) = &report.body else { return };
        let TaskReport { device, task, .. } = report;
        if !update.control_anew || !self.machine.knows(device) {
            return;
        }
        let round = task.round;
        let note = format!(
            "{ON_DEVICE}{device} had lost its control variate, which began at zero in round {round}"
        );
        let (core, job) = (self.core.clone(), self.job.clone());
        self.core.spawn(async move {
            let told = |stored: &mut StoredJob| {
                let known = &mut stored.record.notes;
                let named = known.iter().filter(|it| it.starts_with(ON_DEVICE)).count();
                let is_new = named < ON_DEVICES && !known.contains(&note);
                if is_new {
                    known.push(note.clone());
                }
                is_new
            };
            if let Err(error) = core.store.jobs.modify(job.as_str(), told).await {
                tracing::warn!(%job, %error, "it is not told that {note}");
            }
        });
    }
}
