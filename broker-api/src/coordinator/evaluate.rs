//! The broker's own judgement of new parameters.

use jobs::id::{BlobRef, RoundNumber};
use jobs::report::{Failure, FailureCode};
use jobs::round;
use jobs::spec::TrainSpec;
use jobs::training::Event;

use super::owner::Owner;
use crate::broker::Core;
use crate::error::{ApiCode, ApiError};

impl Core {
    /// Whether this broker can judge what a job trains, where the job asks for that.
    pub(crate) fn check_judge(&self, spec: &TrainSpec) -> Result<(), ApiError> {
        if !spec.evaluate.by_broker() {
            return Ok(());
        }
        let detail = format!("this broker has no data set {} to judge with", spec.dataset);
        Err(ApiError::new(ApiCode::UnknownDataset, detail, "evaluate by devices"))
    }
}

impl Owner {
    /// Judges new parameters; the answer is an event of the round.
    pub(super) fn judge(&self, round: RoundNumber, _parameters: BlobRef) {
        let done = self.done.clone();
        let message = format!("this broker has no data set {}", self.spec.dataset);
        let failure = Failure::new(FailureCode::UnknownDataset, message);
        self.core.spawn(async move {
            let event = round::Event::JudgementFailed { failure };
            // Nobody listens when the training was let go of.
            let _ = done.send(Event::Round { round, event }).await;
        });
    }
}
