//! What a specification must be beyond its types.

use std::fmt;

use super::{
    Evaluate, InferInput, InferSpec, JobSpec, KEEP_ROUNDS_MAX, Keep, LocalTraining, Loss,
    PATTERNS_MAX, Schedule, Strategy, TensorHeader, TrainSpec, UpdateEncoding, WorkSpec,
};
use crate::round::MASKED_DEVICES_MAX;

mod participation;

const DAY_MS: u64 = 24 * 3_600_000;

/// What is wrong with one field of a specification.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}: expected {expected}")]
pub struct Problem {
    /// The field's path, such as `work.participation.quorum`.
    pub field: String,
    /// Its value.
    pub found: String,
    /// What is accepted.
    pub expected: String,
}

/// Finds everything that is wrong with a specification; nothing is wrong when it is empty.
pub fn validate(spec: &JobSpec) -> Vec<Problem> {
    let mut problems = Problems::default();
    let deadline = spec.deadline_ms.0;
    match &spec.work {
        WorkSpec::Infer(infer) => {
            problems.whole("deadline_ms", deadline, 1, 30 * DAY_MS);
            problems.infer(infer);
        }
        WorkSpec::Telemetry => problems.whole("deadline_ms", deadline, 1, 30 * DAY_MS),
        WorkSpec::Train(train) => {
            problems.whole("deadline_ms", deadline, 1, 30 * DAY_MS);
            problems.train(train);
        }
    }
    problems.0
}

#[derive(Default)]
struct Problems(Vec<Problem>);

impl Problems {
    fn infer(&mut self, spec: &InferSpec) {
        self.whole("work.top", spec.top.into(), 0, 1000);
        let InferInput::Tensors { tensors } = &spec.input else { return };
        self.whole("work.input.tensors.length", tensors.len() as u64, 1, 64);
        for (index, tensor) in tensors.iter().enumerate() {
            self.tensor(&format!("work.input.tensors[{index}]"), tensor);
        }
    }

    fn tensor(&mut self, field: &str, tensor: &TensorHeader) {
        let width = match tensor.datatype.as_str() {
            "FP64" | "INT64" => 8,
            "FP32" | "INT32" => 4,
            "INT8" | "UINT8" | "BOOL" => 1,
            other => {
                let datatypes = "FP32, FP64, INT64, INT32, INT8, UINT8 or BOOL";
                self.add(format!("{field}.datatype"), format!("{other:?}"), datatypes);
                return;
            }
        };
        let size = tensor.shape.iter().try_fold(width, |size: u64, n| size.checked_mul(*n));
        if size != Some(tensor.size.0) {
            let shape = &tensor.shape;
            let of_shape = size.map_or("fewer".to_owned(), |size| size.to_string());
            let expected = format!("{of_shape} bytes, as {} {shape:?} has", tensor.datatype);
            self.add(format!("{field}.size"), tensor.size, expected);
        }
    }

    fn train(&mut self, spec: &TrainSpec) {
        self.whole("work.rounds", spec.rounds.into(), 1, 10_000);
        let local = &spec.local;
        self.whole("work.local.epochs", local.epochs.into(), 0, 1000);
        self.whole("work.local.batch_size", local.batch_size.into(), 1, 65_536);
        if let Some(steps) = local.steps_max {
            self.whole("work.local.steps_max", steps.into(), 1, u32::MAX.into());
        }
        let positive = local.learning_rate > 0.0 && local.learning_rate.is_finite();
        self.check(positive, "work.local.learning_rate", local.learning_rate, "above 0, finite");
        let momentum = (0.0..1.0).contains(&local.momentum);
        self.check(momentum, "work.local.momentum", local.momentum, "0 to below 1");
        let decay = local.weight_decay >= 0.0 && local.weight_decay.is_finite();
        self.check(decay, "work.local.weight_decay", local.weight_decay, "0 or above, finite");
        self.refinements(local);
        self.participation(spec);
        for (name, value, expected) in spec.strategy.problems() {
            self.check(false, &format!("work.strategy.{name}"), value, expected);
        }
        for (name, value, expected) in spec.strategy.conflicts(local) {
            self.check(false, &format!("work.local.{name}"), value, expected);
        }
        for (name, value, expected) in super::privacy::problems(spec) {
            self.add(format!("work.{name}"), value, expected);
        }
        let combined = super::rule::problems(spec).into_iter().chain(super::late::problems(spec));
        for (name, value, expected) in combined {
            self.add(format!("work.{name}"), value, expected);
        }
        let (quorum, (needed, why)) = (spec.participation.quorum, spec.combination().quorum());
        let expected = format!("at least {needed}, because {why}");
        self.check(quorum == 0 || quorum >= needed, "work.participation.quorum", quorum, &expected);
        self.update(spec);
        self.secure_aggregation(spec);
        if let Some(rounds) = spec.keep_rounds {
            self.whole("work.keep_rounds", rounds.into(), 1, KEEP_ROUNDS_MAX.into());
        }
        if let Some(target) = spec.target_accuracy {
            let share = target > 0.0 && target <= 1.0;
            self.check(share, "work.target_accuracy", target, "above 0, at most 1");
        }
        if let Some(early) = spec.early_stopping {
            let (patience, delta) = (early.patience.into(), early.min_delta);
            self.whole("work.early_stopping.patience", patience, 1, 10_000);
            let least = delta >= 0.0 && delta.is_finite();
            self.check(least, "work.early_stopping.min_delta", delta, "0 or above, finite");
        }
        let judged = [
            (spec.target_accuracy.is_some(), "target_accuracy is"),
            (spec.early_stopping.is_some(), "early_stopping is"),
            (spec.keep == Keep::Best, "the best round is"),
        ];
        let nobody = spec.evaluate == Evaluate::None;
        for (_, what) in judged.into_iter().filter(|(asked, _)| *asked && nobody) {
            let expected = format!("devices, broker or both, because {what} judged by evaluation");
            self.check(false, "work.evaluate", spec.evaluate, &expected);
        }
        let whole = local.kept_local.is_empty() || !spec.evaluate.by_broker();
        let expected = "devices or none, because the broker does not know what kept_local names";
        self.check(whole, "work.evaluate", spec.evaluate, expected);
    }

    fn update(&mut self, spec: &TrainSpec) {
        for (name, value, expected) in spec.update.problems() {
            self.check(false, &format!("work.update.{name}"), value, expected);
        }
        let by_coordinate = matches!(
            spec.combination(),
            Strategy::FedMedian {} | Strategy::FedTrimmedAvg(_) | Strategy::Bulyan(_)
        );
        let sparse = matches!(spec.update, UpdateEncoding::TopK(_));
        let expected = "another encoding, because the middle of values that most devices do not \
                        send is 0 in fedmedian, fedtrimmedavg and bulyan";
        self.check(!(by_coordinate && sparse), "work.update.encoding", "topk", expected);
        let expected = if spec.secure_aggregation.is_some() {
            "plain or float32, because masked updates are parameters, which would carry the \
             rounding of what devices were given"
        } else {
            "plain or float32, or an update that is a difference (float32:delta=true, float16, \
             bfloat16, int8, topk), because parameters would carry the rounding of what devices \
             were given"
        };
        let holds = spec.download.is_exact() || spec.update.is_difference();
        self.check(holds, "work.download", spec.download, expected);
    }

    fn secure_aggregation(&mut self, spec: &TrainSpec) {
        let Some(secure) = &spec.secure_aggregation else { return };
        for (name, value, expected) in secure.problems() {
            self.check(false, &format!("work.secure_aggregation.{name}"), value, expected);
        }
        let expected = "fedavg, fedavgm, fedadagrad, fedadam or fedyogi, because secure \
                        aggregation tells no more than the sum of updates";
        let strategy = &spec.strategy;
        self.check(strategy.needs_only_the_sum(), "work.strategy", strategy, expected);
        let is_plain = spec.update == UpdateEncoding::default();
        let expected = "plain, because masked updates travel as they are";
        self.check(is_plain, "work.update", spec.update, expected);
        let part = &spec.participation;
        let expected = "at least 3, because a sum of fewer updates says too much of each";
        self.check(part.quorum >= 3, "work.participation.quorum", part.quorum, expected);
        let expected = "at most 250, because secure aggregation has room for no more";
        for (name, found) in [("devices", part.devices), ("quorum", Some(part.quorum))] {
            let found = found.unwrap_or_default();
            let few = found as usize <= MASKED_DEVICES_MAX;
            self.check(few, &format!("work.participation.{name}"), found, expected);
        }
    }

    fn refinements(&mut self, local: &LocalTraining) {
        let proximal = local.proximal >= 0.0 && local.proximal.is_finite();
        self.check(proximal, "work.local.proximal", local.proximal, "0 or above, finite");
        if let Some(norm) = local.gradient_norm_max {
            let positive = norm > 0.0 && norm.is_finite();
            self.check(positive, "work.local.gradient_norm_max", norm, "above 0, finite");
        }
        let smoothing = (0.0..1.0).contains(&local.label_smoothing);
        self.check(smoothing, "work.local.label_smoothing", local.label_smoothing, "0 to below 1");
        if local.loss != Loss::CrossEntropy && local.label_smoothing > 0.0 {
            let expected = "0, because only cross_entropy is smoothed";
            self.check(false, "work.local.label_smoothing", local.label_smoothing, expected);
        }
        let expected = "absent, because privacy says it";
        self.check(local.noised.is_none(), "work.local.noised", "given", expected);
        if let Some(norm) = local.update_norm_max {
            self.check(false, "work.local.update_norm_max", norm, expected);
        }
        let patterns = PATTERNS_MAX as u64;
        self.whole("work.local.frozen.length", local.frozen.len() as u64, 0, patterns);
        self.whole("work.local.kept_local.length", local.kept_local.len() as u64, 0, patterns);
        let words: Vec<&str> = local.augment.iter().map(|augment| augment.as_str()).collect();
        let once = (1..words.len()).all(|at| !words[..at].contains(&words[at]));
        self.check(once, "work.local.augment", words.join(", "), "each word once");
        if let Some(expected) = local.normalization.problem() {
            let found = &local.normalization;
            self.check(false, "work.local.normalization", found, expected);
        }
        self.schedule(local.schedule);
    }

    fn schedule(&mut self, schedule: Schedule) {
        match schedule {
            Schedule::Constant => {}
            Schedule::Step { every, factor } => {
                self.whole("work.local.schedule.every", every.into(), 1, u32::MAX.into());
                let share = factor > 0.0 && factor <= 1.0;
                self.check(share, "work.local.schedule.factor", factor, "above 0, at most 1");
            }
            Schedule::Cosine { floor, steps } => {
                let share = (0.0..=1.0).contains(&floor);
                self.check(share, "work.local.schedule.floor", floor, "0 to 1");
                if let Some(steps) = steps {
                    self.whole("work.local.schedule.steps", steps.into(), 1, u32::MAX.into());
                }
            }
        }
    }

    fn whole(&mut self, field: &str, found: u64, min: u64, max: u64) {
        let expected = format!("{min} to {max}");
        self.check((min..=max).contains(&found), field, found, &expected);
    }

    fn check(&mut self, valid: bool, field: &str, found: impl fmt::Display, expected: &str) {
        if !valid {
            self.add(field.to_owned(), found, expected);
        }
    }

    fn add(&mut self, field: String, found: impl fmt::Display, expected: impl Into<String>) {
        self.0.push(Problem { field, found: found.to_string(), expected: expected.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> JobSpec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn defaults_are_valid() {
        for work in [
            r#"{"kind":"train","model":"resnet8","dataset":"cifar10","rounds":3}"#,
            r#"{"kind":"train","model":"mlp","dataset":"digits","rounds":3,"target_accuracy":1,
                "participation":{"devices":2,"quorum":2,"over_selection":0.5}}"#,
            r#"{"kind":"infer","model":"digits","input":{"type":"picture"}}"#,
            r#"{"kind":"infer","model":"digits","input":{"type":"tensors","tensors":[
                {"name":"","datatype":"FP32","shape":[2,3],"size":24}]}}"#,
            r#"{"kind":"telemetry"}"#,
        ] {
            let spec = spec(&format!(r#"{{"deadline_ms":1000,"work":{work}}}"#));
            assert_eq!(validate(&spec), []);
        }
    }

    #[test]
    fn every_problem_is_found_at_once() {
        let mut spec = spec(
            r#"{"deadline_ms":0,"work":{"kind":"train","model":"mlp","dataset":"digits",
            "rounds":0,"evaluate":false,"target_accuracy":0,
            "local":{"epochs":1001,"batch_size":0,"steps_max":0,"learning_rate":0,"momentum":1,
                "weight_decay":-1,"proximal":-1,"gradient_norm_max":0,"label_smoothing":1,
                "augment":["flip","flip"],"normalization":{"fixed":{"mean":[0],"std":[0]}}},
            "participation":{"devices":2,"quorum":3,"over_selection":-0.5,"deadline_ms":0,
                "failed_rounds_max":0}}}"#,
        );
        let problems = validate(&spec);
        let mut fields: Vec<&str> = problems.iter().map(|problem| &problem.field[..]).collect();
        fields.dedup();
        assert_eq!(
            fields.join(" ").replace("work.", "").replace("participation.", "p."),
            "deadline_ms rounds local.epochs local.batch_size local.steps_max \
             local.learning_rate local.momentum local.weight_decay local.proximal \
             local.gradient_norm_max local.label_smoothing local.augment \
             local.normalization p.quorum p.over_selection p.deadline_ms p.failed_rounds_max target_accuracy evaluate"
        );
        assert!(problems.iter().any(
            |problem| problem.to_string() == "work.participation.quorum is 3: expected 1 to 2"
        ));
        let WorkSpec::Train(train) = &mut spec.work else { panic!() };
        train.local.learning_rate = f32::NAN;
        train.participation.over_selection = f64::INFINITY;
        assert_eq!(validate(&spec).len(), problems.len());
    }

    #[test]
    fn schedules_and_losses_are_checked() {
        for (local, fields) in [
            (
                r#""schedule":{"kind":"step","every":0,"factor":0}"#,
                "schedule.every schedule.factor",
            ),
            (
                r#""schedule":{"kind":"cosine","floor":2,"steps":0}"#,
                "schedule.floor schedule.steps",
            ),
            (r#""loss":"mse","label_smoothing":0.1"#, "label_smoothing"),
            (r#""loss":"bce","warm_up":7,"schedule":{"kind":"step","every":9,"factor":1}"#, ""),
        ] {
            let spec = spec(&format!(
                r#"{{"deadline_ms":1,"work":{{"kind":"train","model":"mlp","dataset":"digits",
                "rounds":1,"local":{{{local}}}}}}}"#
            ));
            let problems = validate(&spec);
            let found: Vec<&str> = problems.iter().map(|problem| &problem.field[..]).collect();
            assert_eq!(found.join(" ").replace("work.local.", ""), fields);
        }
    }

    #[test]
    fn strategies_are_checked_with_the_quorum_that_they_need() {
        for (strategy, quorum, fields) in [
            (r#"{"name":"fedadam","beta1":1,"tau":0}"#, 1, "strategy.beta1 strategy.tau"),
            (r#"{"name":"krum","byzantine":1}"#, 4, "participation.quorum"),
            (r#"{"name":"krum","byzantine":1}"#, 5, ""),
            (r#"{"name":"multikrum","byzantine":1,"selected":5}"#, 5, "participation.quorum"),
            (r#"{"name":"bulyan","byzantine":1}"#, 6, "participation.quorum"),
            (r#"{"name":"bulyan","byzantine":1}"#, 7, ""),
            (r#"{"name":"fedtrimmedavg"}"#, 4, "participation.quorum"),
            (r#"{"name":"fedtrimmedavg"}"#, 5, ""),
            (r#"{"name":"fedtrimmedavg","fraction":0}"#, 1, "strategy.fraction"),
            (r#"{"name":"multikrum"}"#, 3, "strategy.byzantine"),
            (r#"{"name":"fedmedian"}"#, 2, "participation.quorum"),
            (r#"{"name":"geometricmedian"}"#, 2, "participation.quorum"),
            (r#"{"name":"geometricmedian"}"#, 3, ""),
            (r#"{"name":"fedtrimmedavg","fraction":0.5}"#, 1, "strategy.fraction"),
        ] {
            let spec = spec(&format!(
                r#"{{"deadline_ms":1,"work":{{"kind":"train","model":"mlp","dataset":"digits",
                "rounds":1,"participation":{{"quorum":{quorum}}},"strategy":{strategy}}}}}"#
            ));
            let problems = validate(&spec);
            let found: Vec<&str> = problems.iter().map(|problem| &problem.field[..]).collect();
            assert_eq!(found.join(" ").replace("work.", ""), fields);
        }
    }

    #[test]
    fn selections_are_checked_with_the_number_of_devices() {
        for (members, fields) in [
            (r#""selection":{"kind":"fraction","fraction":0.5}"#, ""),
            (
                r#""devices":2,"selection":{"kind":"fraction","fraction":2}"#,
                "selection.fraction devices",
            ),
            (r#""over_selection":0.5,"selection":{"kind":"fraction","fraction":0.5}"#, ""),
            (r#""over_selection":0.5"#, "over_selection"),
            (r#""selection":{"kind":"round_robin"}"#, "devices"),
            (
                r#""devices":3,"selection":{"kind":"by_loss","candidates":2}"#,
                "selection.candidates",
            ),
            (
                r#""devices":3,"selection":{"kind":"by_speed","exploration":-1}"#,
                "selection.exploration",
            ),
            (r#""selection":{"kind":"windows","label":""}"#, "selection.label"),
            (r#""selection":{"kind":"cyclic"}"#, ""),
            (r#""devices":1,"selection":{"kind":"cyclic"}"#, ""),
            (
                r#""devices":3,"quorum":2,"over_selection":0.5,"selection":{"kind":"cyclic"}"#,
                "devices quorum over_selection",
            ),
        ] {
            let spec = spec(&format!(
                r#"{{"deadline_ms":1,"work":{{"kind":"train","model":"mlp","dataset":"digits",
                "rounds":1,"participation":{{{members}}}}}}}"#
            ));
            let problems = validate(&spec);
            let found: Vec<&str> = problems.iter().map(|problem| &problem.field[..]).collect();
            assert_eq!(found.join(" ").replace("work.participation.", ""), fields);
        }
    }

    #[test]
    fn what_is_judged_needs_evaluation() {
        for (members, fields) in [
            (
                r#""early_stopping":{"patience":0,"min_delta":-1}"#,
                "early_stopping.patience early_stopping.min_delta",
            ),
            (r#""early_stopping":{"patience":3},"keep":"best""#, ""),
            (
                r#""evaluate":false,"early_stopping":{"patience":3},"keep":"best""#,
                "evaluate evaluate",
            ),
            (r#""evaluate":false,"keep":"last""#, ""),
            (r#""evaluate":"broker","keep":"best","target_accuracy":0.5"#, ""),
            (r#""evaluate":"both","local":{"kept_local":["*norm*"]}"#, "evaluate"),
            (r#""evaluate":"devices","local":{"kept_local":["*norm*"]}"#, ""),
        ] {
            let spec = spec(&format!(
                r#"{{"deadline_ms":1,"work":{{"kind":"train","model":"mlp","dataset":"digits",
                "rounds":1,{members}}}}}"#
            ));
            let problems = validate(&spec);
            let found: Vec<&str> = problems.iter().map(|problem| &problem.field[..]).collect();
            assert_eq!(found.join(" ").replace("work.", ""), fields);
        }
    }

    #[test]
    fn encodings_are_checked_with_the_strategy() {
        for (update, strategy, fields) in [
            (r#"{"encoding":"int8","block":9}"#, "fedmedian", "update.block"),
            (
                r#"{"encoding":"topk","share":0}"#,
                "bulyan",
                "strategy.byzantine update.share update.encoding",
            ),
            (r#"{"encoding":"topk"}"#, "fedmedian", "update.encoding"),
            (r#"{"encoding":"topk"}"#, "geometricmedian", ""),
            (r#"{"encoding":"float16"}"#, "fedtrimmedavg", ""),
            (r#"{"encoding":"float16"},"download":"bfloat16""#, "fedavg", ""),
            (r#"{"encoding":"float32"},"download":"float32""#, "fedavg", ""),
            (r#"{"encoding":"float32"},"download":"bfloat16""#, "fedavg", "download"),
            (r#"{"encoding":"int8"},"download":"int8""#, "fedadam", ""),
            (r#"{"encoding":"int8","delta":false},"download":"int8""#, "fedavg", "download"),
            (r#"{"encoding":"plain"},"download":"int8""#, "fedadam", "download"),
        ] {
            let spec = spec(&format!(
                r#"{{"deadline_ms":1,"work":{{"kind":"train","model":"mlp","dataset":"digits",
                "rounds":1,"participation":{{"quorum":5}},"strategy":{{"name":"{strategy}"}},
                "update":{update}}}}}"#
            ));
            let problems = validate(&spec);
            let found: Vec<&str> = problems.iter().map(|problem| &problem.field[..]).collect();
            assert_eq!(found.join(" ").replace("work.", ""), fields);
        }
    }

    #[test]
    fn tensors_have_the_bytes_of_their_shape() {
        let spec = spec(
            r#"{"deadline_ms":1,"work":{"kind":"infer","model":"mlp","input":{"type":"tensors",
            "tensors":[{"name":"","datatype":"FP16","shape":[1],"size":2},
            {"name":"a","datatype":"FP32","shape":[2,3],"size":12},
            {"name":"b","datatype":"INT8","shape":[9223372036854775807,3],"size":12}]}}}"#,
        );
        let problems = validate(&spec);
        assert_eq!(problems.len(), 3);
        assert!(problems[0].to_string().contains("\"FP16\""));
        assert_eq!(
            problems[1].to_string(),
            "work.input.tensors[1].size is 12: expected 24 bytes, as FP32 [2, 3] has"
        );
    }
}
