//! What evaluation said of the rounds so far: which was the best, and whether a better one is
//! still to be expected.

use serde::{Deserialize, Serialize};

use crate::id::{BlobRef, RoundNumber};
use crate::round::Outcome;
use crate::spec::{EarlyStopping, Keep, Metric, TrainSpec};

/// The best round so far, for people.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Which.
    pub round: RoundNumber,
    /// What rounds are compared by.
    pub metric: Metric,
    /// Its value of that.
    pub value: f64,
    /// Judged rounds in a row that did not improve enough for early stopping.
    pub stale: u32,
}

/// Parameters that may become the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The round that made them.
    pub round: RoundNumber,
    /// Rounds that gave new parameters until then.
    pub rounds_done: u32,
    /// Where they are.
    pub parameters: BlobRef,
    /// How they were judged, if they were.
    pub accuracy: Option<f64>,
}

/// Why a job needs no further round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Enough {
    /// As many as were asked for gave new parameters.
    Rounds,
    /// The judgement reached what was aimed at.
    TargetAccuracy,
    /// The judgement does not improve any more.
    EarlyStopping,
    /// Another would exceed the budget of a private job.
    PrivacyBudget,
}

impl Enough {
    /// The word for it in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Enough::Rounds => "rounds",
            Enough::TargetAccuracy => "target_accuracy",
            Enough::EarlyStopping => "early_stopping",
            Enough::PrivacyBudget => "privacy_budget",
        }
    }
}

/// The judgements of a job that looks at them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Progress {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    best: Option<(f64, Candidate)>,
    /// The value that the next improvement has to better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reference: Option<f64>,
    /// Judged rounds in a row that did not.
    #[serde(default)]
    stale: u32,
}

impl Progress {
    /// Whether nothing was judged, or nobody looks.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Takes in a round that gave new parameters. Nothing is said by one that nobody judged; one
    /// whose value is no number is no improvement.
    pub(super) fn note(&mut self, spec: &TrainSpec, outcome: &Outcome, rounds_done: u32) {
        if spec.early_stopping.is_none() && spec.keep == Keep::Last {
            return;
        }
        let metric = metric(spec);
        let value = match metric {
            Metric::Loss => outcome.loss(),
            Metric::Accuracy => outcome.accuracy(),
        };
        let Some(value) = value else { return };
        let improves = |than: Option<f64>, delta| {
            value.is_finite() && than.is_none_or(|than| metric.is_better(value, than, delta))
        };
        if improves(self.best.as_ref().map(|(value, _)| *value), 0.0) {
            let (round, accuracy) = (outcome.round, outcome.accuracy());
            let parameters = outcome.parameters.clone();
            self.best = Some((value, Candidate { round, rounds_done, parameters, accuracy }));
        }
        if improves(self.reference, spec.early_stopping.map_or(0.0, |early| early.min_delta)) {
            (self.reference, self.stale) = (Some(value), 0);
        } else {
            self.stale = self.stale.saturating_add(1);
        }
    }

    /// The best round, for people.
    pub(super) fn best(&self, spec: &TrainSpec) -> Option<Best> {
        let (value, candidate) = self.best.as_ref()?;
        let (round, metric) = (candidate.round, metric(spec));
        Some(Best { round, metric, value: *value, stale: self.stale })
    }

    /// The best round's parameters, if those are to be kept.
    pub(super) fn kept(&self, spec: &TrainSpec) -> Option<&Candidate> {
        self.best.as_ref().filter(|_| spec.keep == Keep::Best).map(|(_, candidate)| candidate)
    }

    /// Whether no improvement came for as long as was agreed.
    pub(super) fn is_stale(&self, early: &EarlyStopping) -> bool {
        self.stale >= early.patience.max(1)
    }
}

fn metric(spec: &TrainSpec) -> Metric {
    spec.early_stopping.map_or_else(Metric::default, |early| early.metric)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn spec(early: Option<EarlyStopping>, keep: Keep) -> TrainSpec {
        let spec = json!({"model": "mlp", "dataset": "d", "rounds": 1,
            "early_stopping": early, "keep": keep});
        serde_json::from_value(spec).unwrap()
    }

    /// A round with this loss, and with an accuracy that grows with it.
    fn outcome(round: usize, loss: Option<f64>) -> Outcome {
        let blob = json!({"digest": format!("sha256:{round:064x}"), "size": 1});
        let judged = loss.map(|loss| {
            json!(["a", {"examples": 10, "loss": loss, "accuracy": loss / 128.0, "duration_ms": 1}])
        });
        let judged: Vec<_> = judged.into_iter().collect();
        serde_json::from_value(json!({"round": round, "parameters": blob, "failure": null,
            "updates": [], "evaluations": judged, "missing": [], "started_at": 0, "ended_at": 1}))
        .unwrap()
    }

    fn after(spec: &TrainSpec, values: &[Option<f64>]) -> Progress {
        let mut progress = Progress::default();
        for (index, value) in values.iter().enumerate() {
            let done = u32::try_from(index + 1).unwrap();
            progress.note(spec, &outcome(index + 1, *value), done);
            let stored = serde_json::to_string(&progress).unwrap();
            assert_eq!(serde_json::from_str::<Progress>(&stored).unwrap(), progress);
        }
        progress
    }

    proptest! {
        /// Without a least change both are said in one sentence: the best value is the first of
        /// the smallest (the largest), and it is as long ago as rounds were judged since.
        #[test]
        fn the_best_is_the_first_of_the_best_and_patience_counts_from_there(
            values in prop::collection::vec(prop::option::weighted(0.9, 0_u8..6), 0..30),
            accuracy: bool,
            patience in 1_u32..5,
        ) {
            let metric = if accuracy { Metric::Accuracy } else { Metric::Loss };
            let early = EarlyStopping { patience, min_delta: 0.0, metric };
            let spec = spec(Some(early), Keep::Best);
            let values: Vec<Option<f64>> = values.into_iter().map(|v| v.map(f64::from)).collect();
            let progress = after(&spec, &values);
            let judged: Vec<(usize, f64)> =
                values.iter().enumerate().filter_map(|(at, v)| Some((at + 1, (*v)?))).collect();
            let sorted = |best: fn(f64, f64) -> f64| judged.iter().map(|(_, v)| *v).reduce(best);
            let best = if accuracy { sorted(f64::max) } else { sorted(f64::min) };
            let first = judged.iter().position(|(_, value)| Some(*value) == best);
            let since = first.map_or(0, |first| judged.len() - 1 - first);
            prop_assert_eq!(progress.is_stale(&early), since >= patience as usize);
            let round = first.map(|first| judged[first].0);
            let kept = progress.kept(&spec).map(|kept| kept.round.0 as usize);
            prop_assert_eq!(kept, round);
            prop_assert_eq!(progress.best(&spec).map(|best| best.stale as usize), first.map(|_| since));
            if let Some(kept) = progress.kept(&spec) {
                prop_assert_eq!(&kept.parameters, &outcome(kept.round.0 as usize, None).parameters);
                prop_assert_eq!(kept.rounds_done, kept.round.0);
            }
        }

        /// With a least change: the last improvement is found the slow way, each round against
        /// the improvement before it.
        #[test]
        fn small_changes_are_no_improvements(
            values in prop::collection::vec(0_u8..12, 1..30),
            delta in 0_u8..4,
        ) {
            let values: Vec<f64> = values.into_iter().map(f64::from).collect();
            let delta = f64::from(delta);
            let mut improvements = vec![0];
            for at in 1..values.len() {
                let last = values[improvements[improvements.len() - 1]];
                if last - values[at] > delta {
                    improvements.push(at);
                }
            }
            let since = values.len() - 1 - improvements[improvements.len() - 1];
            let early = EarlyStopping { patience: 1, min_delta: delta, metric: Metric::Loss };
            let spec = spec(Some(early), Keep::Last);
            let progress = after(&spec, &values.iter().copied().map(Some).collect::<Vec<_>>());
            prop_assert_eq!(progress.best(&spec).unwrap().stale as usize, since);
            prop_assert_eq!(progress.kept(&spec), None);
        }
    }

    #[test]
    fn what_is_no_number_is_no_improvement() {
        let early = EarlyStopping { patience: 2, min_delta: 0.0, metric: Metric::Loss };
        let spec = spec(Some(early), Keep::Best);
        let mut progress = after(&spec, &[Some(1.0)]);
        let mut worst = outcome(2, Some(1.0));
        worst.evaluations[0].1.loss = f64::NAN;
        progress.note(&spec, &worst, 2);
        worst.evaluations[0].1.loss = f64::NEG_INFINITY;
        progress.note(&spec, &worst, 3);
        assert!(progress.is_stale(&early));
        assert_eq!(progress.kept(&spec).unwrap().round, RoundNumber(1));
    }

    #[test]
    fn who_does_not_look_keeps_nothing() {
        let spec = spec(None, Keep::Last);
        assert!(after(&spec, &[Some(1.0), Some(2.0)]).is_empty());
    }
}
