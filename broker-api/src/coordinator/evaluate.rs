//! Judgements of new parameters: the task for devices, and the broker's own.

use std::time::{Duration, Instant};

use jobs::id::{BlobRef, DatasetName, RoundNumber};
use jobs::report::{EvaluationReport, Failure, FailureCode};
use jobs::round;
use jobs::spec::{EvaluateTask, LocalTraining, TrainSpec};

use super::owner::Owner;
use super::prepare::fits;
use crate::broker::Core;
use crate::error::{ApiCode, ApiError};
use crate::judge::Candidate;

impl Core {
    /// Whether this broker can judge what a job trains, where the job asks for that.
    pub(crate) fn check_judge(&self, spec: &TrainSpec) -> Result<(), ApiError> {
        if !spec.evaluate.by_broker() {
            return Ok(());
        }
        let name = &spec.dataset;
        match self.judge.facts_of(name) {
            Some(facts) if facts.test_examples > 0 => Ok(()),
            Some(_) => {
                let detail = format!("this broker's data set {name} has no test examples");
                Err(ApiError::new(ApiCode::InvalidSpec, detail, "evaluate by devices"))
            }
            None => {
                let detail = format!("this broker has no data set {name} to judge with");
                let names = self.judge.names();
                let known: Vec<&str> = names.iter().map(DatasetName::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let hint = format!(
                    "evaluate by devices, or start it with 'dunlin serve --data FOLDER'; it has: \
                     {known}"
                );
                Err(ApiError::new(ApiCode::UnknownDataset, detail, hint))
            }
        }
    }

    async fn judged(
        &self,
        task: EvaluateTask,
        until: Instant,
        is_wanted: impl Fn() -> bool + Send + 'static,
    ) -> Result<EvaluationReport, Failure> {
        let turn = self.judge.turn(until).await?;
        let unavailable = |error: link::blobs::BlobError| {
            Failure::new(FailureCode::BlobUnavailable, error.to_string())
        };
        let graph = self.store.blobs.get(&task.graph).await.map_err(unavailable)?;
        let parameters = self.store.blobs.get(&task.parameters).await.map_err(unavailable)?;
        let candidate = Candidate { graph, parameters, task };
        self.judge.judge(turn, candidate, until, is_wanted).await
    }
}

impl Owner {
    /// What is to be done to judge parameters.
    pub(super) fn evaluation(&self, parameters: BlobRef) -> EvaluateTask {
        let LocalTraining { batch_size, loss, kept_local, .. } = self.spec.local.clone();
        EvaluateTask {
            graph: self.prepared.graph.clone(),
            parameters,
            dataset: self.spec.dataset.clone(),
            batch_size,
            normalization: self.prepared.normalization.clone(),
            loss,
            kept_local,
            encoded: None,
        }
    }

    /// Judges new parameters on the broker's own data; the answer is an event of the round.
    pub(super) fn judge(&self, round: RoundNumber, parameters: BlobRef) {
        let (core, done) = (self.core.clone(), self.done.clone());
        let allowed = Duration::from_millis(self.spec.participation.deadline_ms.0 / 2);
        let until = Instant::now() + allowed;
        let task = self.evaluation(parameters);
        let unfit = self.unfit();
        let judge = async move {
            let closing = core.closing.clone();
            let is_wanted = move || !closing.is_cancelled() && !done.is_closed();
            match unfit {
                Some(failure) => Err(failure),
                None => core.judged(task, until, is_wanted).await,
            }
        };
        self.beside(round, judge, Err, |judged| match judged {
            Ok(evaluation) => round::Event::Judged { evaluation },
            Err(failure) => round::Event::JudgementFailed { failure },
        });
    }

    /// Why this broker's data cannot judge what is trained, if it cannot.
    fn unfit(&self) -> Option<Failure> {
        let name = &self.spec.dataset;
        let Some(facts) = self.core.judge.facts_of(name) else {
            let message = format!("the broker that leads the training has no data set {name}");
            return Some(Failure::new(FailureCode::UnknownDataset, message));
        };
        (!fits(&facts, &self.prepared)).then(|| {
            let message =
                format!("the broker's data set {name} has other examples, classes or columns");
            Failure::new(FailureCode::InvalidDataset, message)
        })
    }
}
