//! What of a training is known not to begin when it is asked for: from models, rounds and data sets
//! that are stored, and from what devices that ever joined declare.
//!
//! All of it is looked at again by [`Core::prepare`], since models go and devices come.

use std::collections::BTreeSet;

use jobs::device::{DatasetFacts, Hello};
use jobs::id::DatasetName;
use jobs::report::{Failure, FailureCode};
use jobs::selector::Selector;
use jobs::spec::{Normalization, PATTERNS_MAX, TrainSpec};
use models::train::Definition;

use super::{Unprepared, checks, facts, is_family, read_blocking};
use crate::broker::Core;
use crate::error::{ApiCode, ApiError};
use crate::request::training::{Reading, Training, Unread};
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
    /// What is wrong with a training of which fields cannot be read, with what is known of the rest;
    /// `first` where there is no training to be read.
    pub(crate) async fn unreadable(&self, first: ApiError, reading: Reading) -> ApiError {
        let Reading { problems, training, unread } = reading;
        if problems.is_empty() {
            return first;
        }
        let mut errors = vec![ApiError { errors: problems, ..first.clone() }];
        if let Some(Training { selector, spec, .. }) = training {
            let selector = Selector::parse(&selector).unwrap_or_default();
            // A store that does not answer hides no mistakes.
            let known = self.check_training(&selector, &spec, &unread).await;
            errors.extend(known.unwrap_or_default());
        }
        ApiError::all(errors).unwrap_or(first)
    }

    /// Everything for which a training would not begin, beyond what it says by itself. Of `unread`
    /// fields, and of what rests on them, nothing is said.
    ///
    /// # Errors
    /// [`ApiCode::Unavailable`] when the store does not answer.
    pub(crate) async fn check_training(
        &self,
        selector: &Selector,
        spec: &TrainSpec,
        unread: &Unread,
    ) -> Result<Vec<ApiError>, ApiError> {
        let mut found = Found::default();
        if !unread.touches("spec.model") {
            match self.check_trainable(spec).await {
                Err(error) if error.code == ApiCode::Unavailable => return Err(error),
                trainable => found.0.extend(trainable.err()),
            }
        }
        let facts = if unread.touches("spec.dataset") {
            None
        } else {
            found.0.extend(self.check_dataset(&spec.dataset).err());
            found.0.extend(self.check_judge(spec).err());
            let selector = (!unread.touches("selector")).then_some(selector);
            self.check_facts(selector, spec, &mut found)?
        };
        self.check_model(spec, facts, unread, &mut found).await?;
        Ok(found.0)
    }

    /// Whether any device that ever joined has the data set: one that has may come back.
    fn check_dataset(&self, dataset: &DatasetName) -> Result<(), ApiError> {
        let known: BTreeSet<DatasetName> = self
            .fleet
            .records()
            .into_iter()
            .flat_map(|record| record.hello.datasets)
            .map(|facts| facts.name)
            .collect();
        if known.contains(dataset) {
            return Ok(());
        }
        let hint = if known.is_empty() {
            "no device declares any: start one with dunlin-agent --data NAME=PATH".to_owned()
        } else {
            let known: Vec<&str> = known.iter().map(DatasetName::as_str).collect();
            format!("known data sets are: {}", known.join(", "))
        };
        let detail = format!("no device has a data set {dataset}");
        Err(ApiError::new(ApiCode::UnknownDataset, detail, hint))
    }

    /// The data set as far as it is known, from the devices that are there, or else from all that
    /// ever were: whether these agree is not known before some of them are back. Without a selector
    /// nobody knows which of them will be asked.
    fn check_facts(
        &self,
        selector: Option<&Selector>,
        spec: &TrainSpec,
        found: &mut Found,
    ) -> Result<Option<DatasetFacts>, StoreError> {
        let hint = "see what devices declare with 'dunlin devices'";
        let there = selector.map(|selector| self.fleet.matching(selector, Some(&spec.dataset)));
        let there = there.unwrap_or_default();
        let facts = if there.is_empty() {
            let anyone = Selector::default();
            let known = self.fleet.known(selector.unwrap_or(&anyone), &spec.dataset);
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

    /// Looks into the model, and for the round to begin from. A registered model is read; a family's
    /// is made for the data set, so it is built only where the plan asks something of it.
    async fn check_model(
        &self,
        spec: &TrainSpec,
        facts: Option<DatasetFacts>,
        unread: &Unread,
        found: &mut Found,
    ) -> Result<(), ApiError> {
        let local = &spec.local;
        let names_some = !local.frozen.is_empty() || !local.kept_local.is_empty();
        let few = local.frozen.len().max(local.kept_local.len()) <= PATTERNS_MAX;
        let is_asked = names_some || spec.privacy.is_some() || spec.begin_from.is_some();
        let is_named = !unread.touches("spec.model");
        let is_registered = is_named && self.registry.look_up(&spec.model).await?.is_some();
        if !few || !(is_asked || is_registered) {
            return Ok(());
        }
        let _turn = self.plans.acquire().await;
        let begin_from = match &spec.begin_from {
            Some(from) => {
                let hint = format!("see its rounds with 'dunlin rounds show {}'", from.job);
                found.keep(self.parameters_of(from).await, &hint)?
            }
            None => None,
        };
        if !(is_registered || is_named && is_family(spec)) {
            return Ok(());
        }
        let hint = "take another model, or change what the plan asks of it";
        let graph = self.graph(spec, facts.as_ref()).await;
        let Some((onnx, _)) = found.keep(graph, hint)? else { return Ok(()) };
        let (spec, unread) = (spec.clone(), unread.clone());
        let checked = read_blocking(move || {
            let definition =
                Definition::read(&onnx).map_err(|error| checks::untrainable(&error))?;
            let asked = checks::Asked { spec: &spec, unread: &unread };
            Ok(checks::of_model(&definition, asked, facts.as_ref(), begin_from.as_ref()))
        });
        for failure in found.keep(checked.await, hint)?.unwrap_or_default() {
            found.add(failure, hint);
        }
        Ok(())
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
