//! What a device's training brings.

use serde::{Deserialize, Serialize};

use super::member::{Member, Standing};
use crate::id::{Attempt, BlobRef, Millis};
use crate::report::{Failure, FailureCode, UpdateReport};

/// Characters of an engine's name that are kept.
const ENGINE_MAX: usize = 64;

/// An update in the object store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Update {
    pub(super) report: UpdateReport,
    /// The shell looked into it and found it usable.
    pub(super) checked: bool,
}

impl Member<Update> {
    /// Takes an update that arrived; what is to be looked into, unless nothing changed or the
    /// update is of no use.
    pub(super) fn update_received(
        &mut self,
        now: Millis,
        attempt: Attempt,
        update: &UpdateReport,
    ) -> Option<UpdateReport> {
        let engine = update.engine.chars().take(ENGINE_MAX).collect();
        let report = UpdateReport { engine, ..update.clone() };
        let answer = Update { report: report.clone(), checked: false };
        if !self.replaced(attempt, &answer) && !self.answered(attempt, answer) {
            return None;
        }
        if let Some(problem) = report.problem() {
            self.failed(now, &Failure::new(FailureCode::InvalidUpdate, problem));
            return None;
        }
        Some(report)
    }

    /// Takes another update of the attempt that brought the one before: its device had forgotten
    /// that and made it again, so the first is not to be had any more. It is the second chance.
    fn replaced(&mut self, attempt: Attempt, again: &Update) -> bool {
        let may_be = !self.retried && attempt == self.ended;
        let Standing::Answered(update) = &mut self.standing else { return false };
        let digest = &again.report.parameters.digest;
        let replaced = may_be && update.report.parameters.digest != *digest;
        if replaced {
            *update = again.clone();
            self.retried = true;
        }
        replaced
    }

    /// Takes what was found in its update; whether that was awaited. After the close there is no
    /// second chance.
    pub(super) fn update_checked(
        &mut self,
        now: Millis,
        closed: bool,
        parameters: &BlobRef,
        refused: Option<&Failure>,
    ) -> bool {
        let Standing::Answered(update) = &mut self.standing else { return false };
        if update.checked || update.report.parameters != *parameters {
            return false;
        }
        match refused {
            None => update.checked = true,
            Some(failure) => self.refused(now, closed, failure),
        }
        true
    }
}
