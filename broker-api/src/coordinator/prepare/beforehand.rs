//! What of a training is known not to begin when it is asked for: from models, rounds and data sets
//! that are stored, and from what devices that ever joined declare.
//!
//! All of it is looked at again by [`Core::prepare`], since models go and devices come.

use jobs::device::{DatasetFacts, Hello};
use jobs::report::{Failure, FailureCode};
use jobs::selector::Selector;
use jobs::spec::{Normalization, PATTERNS_MAX, TrainSpec};
use models::train::Definition;

use super::{Unprepared, checks, facts, is_family, read_blocking};
use crate::broker::Core;
use crate::error::{ApiCode, ApiError};
use crate::store::StoreError;

/// Failures that were found, with what to do.
#[derive(Default)]
struct Found(Vec<ApiError>);

impl Found {
    fn add(&mut self, Failure { code, message }: Failure, hint: &str) {
        // No repetition of the request brings back what is gone.
        let is_of_plan = matches!(code, FailureCode::InvalidSpec | FailureCode::BlobUnavailable);
        let code = if is_of_plan { ApiCode::InvalidSpec } else { ApiCode::Job(code) };
        self.0.push(ApiError::new(code, message, hint));
    }

    /// What there is, if it is known.
    fn keep<T>(
        &mut self,
        result: Result<T, Unprepared>,
        hint: &str,
    ) -> Result<Option<T>, StoreError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(Unprepared::Failed(failure)) => {
                self.add(failure, hint);
                Ok(None)
            }
            Err(Unprepared::Nobody) => Ok(None),
            Err(Unprepared::Store(error)) => Err(error),
        }
    }
}

impl Core {
    /// Everything for which a training would not begin. A registered model is read; a family's is
    /// made for the data set, so it is built only where the plan asks something of it.
    ///
    /// # Errors
    /// [`ApiCode::Unavailable`] when the store does not answer.
    pub(crate) async fn check_beginning(
        &self,
        selector: &Selector,
        spec: &TrainSpec,
    ) -> Result<Vec<ApiError>, ApiError> {
        let mut found = Found::default();
        let facts = self.check_facts(selector, spec, &mut found)?;
        let local = &spec.local;
        let names_some = !local.frozen.is_empty() || !local.kept_local.is_empty();
        let few = local.frozen.len().max(local.kept_local.len()) <= PATTERNS_MAX;
        let is_asked = names_some || spec.privacy.is_some() || spec.begin_from.is_some();
        let is_registered = self.registry.look_up(&spec.model).await?.is_some();
        if !few || !(is_asked || is_registered) {
            return Ok(found.0);
        }
        let _turn = self.plans.acquire().await;
        let begin_from = match &spec.begin_from {
            Some(from) => {
                let hint = format!("see its rounds with 'dunlin rounds show {}'", from.job);
                found.keep(self.parameters_of(from).await, &hint)?
            }
            None => None,
        };
        if !is_registered && !is_family(spec) {
            return Ok(found.0);
        }
        let hint = "take another model, or change what the plan asks of it";
        let graph = self.graph(spec, facts.as_ref()).await;
        let Some((onnx, _)) = found.keep(graph, hint)? else { return Ok(found.0) };
        let spec = spec.clone();
        let checked = read_blocking(move || {
            let definition =
                Definition::read(&onnx).map_err(|error| checks::untrainable(&error))?;
            Ok(checks::of_model(&definition, &spec, facts.as_ref(), begin_from.as_ref()))
        });
        for failure in found.keep(checked.await, hint)?.unwrap_or_default() {
            found.add(failure, hint);
        }
        Ok(found.0)
    }

    /// The data set as far as it is known, from the devices that are there, or else from all that
    /// ever were: whether these agree is not known before some of them are back.
    fn check_facts(
        &self,
        selector: &Selector,
        spec: &TrainSpec,
        found: &mut Found,
    ) -> Result<Option<DatasetFacts>, StoreError> {
        let hint = "see what devices declare with 'dunlin devices'";
        let there = self.fleet.matching(selector, Some(&spec.dataset));
        let facts = if there.is_empty() {
            let known = self.fleet.known(selector, &spec.dataset);
            facts::agreed(&known, &spec.dataset).ok().flatten()
        } else {
            found.keep(facts::agreed(&there, &spec.dataset), hint)?.flatten()
        };
        if let Some(facts) = &facts {
            found.keep(facts::check_augment(&spec.local.augment, facts), hint)?;
            found.keep(check_normalization(&spec.local.normalization, &there, facts), hint)?;
        }
        Ok(facts)
    }
}

/// Values of all devices are those of the ones that will be there.
fn check_normalization(
    wanted: &Normalization,
    there: &[Hello],
    facts: &DatasetFacts,
) -> Result<(), Unprepared> {
    let later = *wanted == Normalization::Dataset && facts.format != "text";
    if there.is_empty() && later {
        return Ok(());
    }
    facts::normalization(wanted, there, facts).map(drop)
}
