//! What is asked for: by a plan, the job as TOML with the field names of the HTTP API, by the flags
//! that override it, or by flags alone, which are those of an empty plan.

use std::path::{Path, PathBuf};

use jobs::id::{DatasetName, Millis, ModelName};
use jobs::spec::{JobSpec, ModelQuery, TrainSpec, WorkSpec};
use serde_json::{Value, json};

use super::mistyped::PLACEHOLDER;
use super::{Given, TrainArgs, millis, spec};
use crate::cli::failure::{self, CliError};
use crate::record::JobRecord;
use crate::request::training::{Training, Unread, at, field_of, put, read as read_fields};

mod endless;
mod named;
mod refused;

pub(super) use named::by_flags;
use refused::Mistakes;
pub(super) use refused::{BROKER_WITHIN, Refused};

/// The flags that say something of the job, and the fields that they are.
const FIELDS: &[(&str, &str)] = &[
    ("continue", "spec.begin_from"),
    ("dataset", "spec.dataset"),
    ("model", "spec.model"),
    ("rounds", "spec.rounds"),
    ("devices", "spec.participation.devices"),
    ("epochs", "spec.local.epochs"),
    ("batch_size", "spec.local.batch_size"),
    ("steps_max", "spec.local.steps_max"),
    ("learning_rate", "spec.local.learning_rate"),
    ("momentum", "spec.local.momentum"),
    ("weight_decay", "spec.local.weight_decay"),
    ("optimizer", "spec.local.optimizer"),
    ("loss", "spec.local.loss"),
    ("schedule", "spec.local.schedule"),
    ("warm_up", "spec.local.warm_up"),
    ("proximal", "spec.local.proximal"),
    ("gradient_norm_max", "spec.local.gradient_norm_max"),
    ("label_smoothing", "spec.local.label_smoothing"),
    ("freeze", "spec.local.frozen"),
    ("keep_local", "spec.local.kept_local"),
    ("augment", "spec.local.augment"),
    ("normalization", "spec.local.normalization"),
    ("strategy", "spec.strategy"),
    ("rule", "spec.rule"),
    ("update", "spec.update"),
    ("download", "spec.download"),
    ("transfer", "spec.transfer"),
    ("quorum", "spec.participation.quorum"),
    ("privacy", "spec.privacy"),
    ("secure_aggregation", "spec.secure_aggregation"),
    ("selection", "spec.participation.selection"),
    ("quarantine", "spec.participation.quarantine"),
    ("late_updates", "spec.participation.late_updates"),
    ("over_selection", "spec.participation.over_selection"),
    ("round_deadline", "spec.participation.deadline_ms"),
    ("failed_rounds_max", "spec.participation.failed_rounds_max"),
    ("target_accuracy", "spec.target_accuracy"),
    ("early_stopping", "spec.early_stopping"),
    ("keep", "spec.keep"),
    ("keep_rounds", "spec.keep_rounds"),
    ("evaluate", "spec.evaluate"),
    ("no_evaluate", "spec.evaluate"),
    ("register_as", "spec.register_as"),
    ("seed", "spec.seed"),
    ("selector", "selector"),
    ("deadline", "deadline_ms"),
];
/// Fields that a job cannot be without, and what they are.
const NEEDED: [(&str, &str); 2] =
    [("model", "a registered model or a family, or --model"), ("dataset", "a name, or --dataset")];
/// Bytes of a plan, at most.
const PLAN_BYTES_MAX: u64 = 1024 * 1024;

/// A training job, as it will be asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Request {
    /// Who may take part.
    pub(super) selector: String,
    /// How long all of it may take.
    pub(super) deadline: Option<Millis>,
    /// What is trained, and how.
    pub(super) spec: TrainSpec,
}

impl Request {
    /// The body for the broker.
    pub(super) fn body(&self) -> Value {
        let mut body = json!({ "kind": "train", "selector": self.selector, "spec": self.spec });
        if let Some(deadline) = self.deadline {
            body["deadline_ms"] = json!(deadline);
        }
        body
    }
}

/// What the command line asks for; `before` is the job that is to be continued.
pub(super) fn request(given: &Given, before: Option<&JobRecord>) -> Result<Request, Refused> {
    let (plan, of) = match (&given.args.plan, before) {
        (Some(path), _) => {
            let text = read(path)?;
            let plan = toml::from_str(&text);
            let plan = plan.map_err(|error| match serde_json::from_str::<Value>(&text) {
                Ok(_) => is_json(path),
                Err(_) => wrong(Some(path), &[error.to_string()]),
            })?;
            (plan, Some(path.clone()))
        }
        (None, Some(job)) => (of_job(job)?, Some(PathBuf::from(format!("job {}", job.id)))),
        (None, None) => (json!({}), None),
    };
    complete(plan, given).map_err(|mistakes| Refused::Mistaken(of, mistakes))
}

/// The mistakes of a plan, or of flags alone.
fn wrong(plan: Option<&Path>, problems: &[String]) -> CliError {
    let Some(plan) = plan else {
        let error = CliError::usage(failure::listed(problems), "see 'dunlin train --help'");
        return CliError { errors: problems.to_vec(), ..error };
    };
    let count = match problems.len() {
        1 => "a mistake".to_owned(),
        count => format!("{count} mistakes"),
    };
    let detail = format!("{} has {count}:\n  {}", plan.display(), problems.join("\n  "));
    let hint = "its fields are those of POST /v1/jobs, see /openapi.json of the broker";
    CliError { errors: problems.to_vec(), ..CliError::usage(detail, hint) }
}

fn is_json(plan: &Path) -> CliError {
    let detail = format!("{} is JSON, expected a plan in TOML", plan.display());
    let hint = "write the same fields as TOML, such as [spec] and model = \"mlp\" below it, or send the \
        file to POST /v1/jobs with \"kind\": \"train\"";
    CliError::usage(detail, hint)
}

/// A training that was asked for before, as a plan.
fn of_job(job: &JobRecord) -> Result<Value, CliError> {
    let JobSpec { selector, deadline_ms, work } = &job.spec;
    let WorkSpec::Train(spec) = work else {
        let detail = format!("job {} is no training", job.id);
        return Err(CliError::usage(detail, "see which jobs there are with: dunlin jobs"));
    };
    Ok(json!({ "selector": selector, "deadline_ms": deadline_ms, "spec": spec }))
}

fn read(path: &Path) -> Result<String, CliError> {
    let file = |error| CliError::file(path, &error);
    let bytes = std::fs::metadata(path).map_err(file)?.len();
    if bytes > PLAN_BYTES_MAX {
        let detail =
            format!("{} has {bytes} bytes, expected {PLAN_BYTES_MAX} at most", path.display());
        return Err(CliError::usage(detail, "a plan is a few lines of TOML"));
    }
    std::fs::read_to_string(path).map_err(file)
}

/// What flags alone ask for. A model and a data set that were not given, or cannot be read, are
/// placeholders.
fn of_flags(args: &TrainArgs) -> Request {
    let model = args.model.clone().unwrap_or_else(|| ModelQuery {
        name: ModelName::parse(PLACEHOLDER).expect("letters are a name"),
        version: None,
    });
    let dataset = args.dataset.clone();
    let dataset =
        dataset.unwrap_or_else(|| DatasetName::parse(PLACEHOLDER).expect("letters are a name"));
    Request {
        selector: args.selector.clone(),
        deadline: args.deadline.map(millis),
        spec: spec(args, model, dataset),
    }
}

/// The plan with the flags that were typed; everything that is wrong with it.
fn complete(mut plan: Value, given: &Given) -> Result<Request, Mistakes> {
    let flags = of_flags(&given.args).body();
    let typed = FIELDS.iter().filter(|(flag, _)| given.typed.contains(*flag));
    for (_, field) in typed {
        put(&mut plan, field, at(&flags, field).cloned());
    }
    if at(&plan, "spec.rounds").is_none() {
        put(&mut plan, "spec.rounds", at(&flags, "spec.rounds").cloned());
    }
    let endless = endless::removed(&mut plan);
    // What cannot be read is asked for as it was typed, so that nothing else is taken for it.
    let mistyped = given.mistyped.iter().filter_map(|mistyped| {
        let (_, field) = FIELDS.iter().find(|(flag, _)| is_flag(flag, &mistyped.flag))?;
        Some((*field, mistyped.value.as_deref()))
    });
    let mut told = Unread::default();
    for problem in &endless {
        told.add(field_of(problem));
    }
    for (field, value) in mistyped {
        put(&mut plan, field, Some(json!(value)));
        told.add(field);
    }
    let reading = read_fields(&plan, &flags, &NEEDED);
    let mut problems = given.mistakes();
    problems.extend(endless);
    problems.extend(reading.problems.into_iter().filter(|problem| !told.has(field_of(problem))));
    match reading.training {
        Some(Training { selector, deadline, spec }) if problems.is_empty() => {
            Ok(Request { selector, deadline, spec })
        }
        training => {
            put(&mut plan, "kind", Some(json!("train")));
            told.extend(reading.unread);
            Err(Mistakes { problems, asked: training.map(|_| plan), told })
        }
    }
}

/// Whether a flag such as `--batch-size` is the one of an argument such as `batch_size`.
fn is_flag(argument: &str, flag: &str) -> bool {
    flag.strip_prefix("--").is_some_and(|flag| flag.replace('-', "_") == argument)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Args as _, Command, FromArgMatches as _};
    use jobs::spec::Evaluate;

    pub(super) fn given(words: &str) -> Given {
        let command = Given::augment_args(Command::new("train"));
        let words = ["train"].into_iter().chain(words.split_whitespace());
        Given::from_arg_matches(&command.try_get_matches_from(words).unwrap()).unwrap()
    }

    fn planned(text: &str, flags: &str) -> Result<Request, Vec<String>> {
        let plan = toml::from_str(text).map_err(|error| vec![error.to_string()])?;
        complete(plan, &given(&format!("--plan x {flags}"))).map_err(|mistakes| mistakes.problems)
    }

    const PLAN: &str = r#"
        selector = "label.site=lab"
        deadline_ms = 60000
        [spec]
        model = "mlp"
        dataset = "digits"
        rounds = 7
        seed = 3
        [spec.local]
        learning_rate = 0.5
        schedule = { kind = "step", every = 10, factor = 0.5 }
        [spec.participation]
        devices = 3
        quorum = 2
        [spec.strategy]
        name = "fedadam"
    "#;

    #[test]
    fn every_flag_of_the_job_overrides_a_plan() {
        let others = ["plan", "detach", "dry_run"];
        let command = Given::augment_args(Command::new("train"));
        let of_job = command.get_arguments().map(|flag| flag.get_id().as_str());
        let of_job = of_job.filter(|flag| !others.contains(flag));
        let mut flags: Vec<&str> = of_job.collect();
        let mut fields: Vec<&str> = FIELDS.iter().map(|(flag, _)| *flag).collect();
        flags.sort_unstable();
        fields.sort_unstable();
        assert_eq!(flags, fields, "FIELDS says which field of the job each flag is");
    }

    #[test]
    fn without_a_plan_flags_and_their_defaults_are_the_job() {
        let given = given("--model mlp:2 --dataset digits --no-evaluate -l arch=aarch64");
        let asked = request(&given, None).unwrap();
        assert_eq!((asked.spec.rounds, asked.spec.evaluate), (5, Evaluate::None));
        assert_eq!((asked.selector.as_str(), asked.deadline), ("arch=aarch64", None));
    }

    #[test]
    fn a_plan_is_the_job_and_typed_flags_override_it() {
        let plain = planned(PLAN, "").unwrap();
        assert_eq!(plain.deadline, Some(Millis(60_000)));
        let spec = &plain.spec;
        assert_eq!((spec.rounds, spec.seed, spec.local.epochs), (7, 3, 1));
        assert_eq!((spec.participation.devices, spec.participation.quorum), (Some(3), 2));
        assert!(spec.strategy.to_string().starts_with("fedadam:"), "{}", spec.strategy);
        // Typed as the default is typed all the same.
        let flags = "--rounds 5 --strategy fedavg --learning-rate 0.25 --deadline 1s \
            --selector arch=arm --model resnet8 --freeze stem.* --no-evaluate --seed 0";
        let changed = planned(PLAN, flags).unwrap();
        let spec = &changed.spec;
        assert_eq!((spec.rounds, spec.seed, spec.evaluate), (5, 0, Evaluate::None));
        let judged = planned(&PLAN.replace("seed = 3", "evaluate = \"none\""), "--evaluate both");
        assert_eq!(judged.unwrap().spec.evaluate, Evaluate::Both);
        assert_eq!(spec.strategy.to_string(), "fedavg");
        assert_eq!(
            (spec.model.name.as_str(), &spec.local.frozen[..]),
            ("resnet8", &["stem.*".to_owned()][..])
        );
        assert!((spec.local.learning_rate - 0.25).abs() < f32::EPSILON);
        assert_eq!((changed.deadline, changed.selector.as_str()), (Some(Millis(1000)), "arch=arm"));
        assert_eq!(spec.local.schedule, plain.spec.local.schedule, "what is not typed stays");
    }

    #[test]
    fn what_a_setting_is_without_is_no_mistake() {
        for flags in [
            "--schedule cosine --selection by_loss --devices 3",
            "--schedule cosine:0.1 --quarantine --secure-aggregation --quorum 3",
            "--early-stopping 3 --late-updates staleness:exponent=1 --update topk:share=0.1",
            "--devices 3 --privacy central:initial=1,noise_multiplier=0.2,delta=1e-5,epsilon_budget=900",
        ] {
            let asked = planned("", &format!("--model m --dataset d {flags}"));
            assert!(asked.is_ok(), "{flags}: {asked:?}");
        }
    }

    #[test]
    fn none_takes_away_what_a_plan_has() {
        let settings = "[spec]\nrule = \"krum:byzantine=1\"\nsecure_aggregation = \"\"\n\
            early_stopping = \"3\"\nprivacy = \"central:norm=1,noise_multiplier=1,delta=1e-5,\
            epsilon_budget=8\"";
        let text = PLAN.replace("[spec]", settings).replace("quorum", "quarantine = \"\"\nquorum");
        let all = "--rule none --privacy none --secure-aggregation none --quarantine none \
            --early-stopping none";
        assert!(planned(&text, "").unwrap_err().len() > 1);
        assert_eq!(planned(&text, all), planned(PLAN, ""));
        assert_eq!(planned(PLAN, all), planned(PLAN, ""), "none is there");
    }

    #[test]
    fn a_plan_may_leave_to_flags_what_a_job_needs() {
        let asked = planned("", "--model mlp --dataset digits").unwrap();
        assert_eq!(asked, request(&given("--model mlp --dataset digits"), None).unwrap());
        let problems = planned("kind = \"train\"", "").unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("spec.model: missing, expected"));
    }

    #[test]
    fn all_mistakes_are_told_at_once_with_their_fields() {
        let text = r#"
            kind = "infer"
            colour = "red"
            selector = "arch ~ arm"
            deadline_ms = "soon"
            [spec]
            model = "MLP"
            rounds = 0
            [spec.local]
            epohcs = 3
            batch_size = -1
            learning_rate = -0.5
            augment = ["flip", "spin"]
            [spec.participation]
            quorum = "two"
            [spec.strategy]
            name = "fedsum"
        "#;
        let problems = planned(text, "").unwrap_err();
        let fields: Vec<&str> =
            problems.iter().map(|problem| problem.split([':', ' ']).next().unwrap()).collect();
        let mut sorted = fields.clone();
        sorted.sort_unstable();
        assert_eq!(
            sorted,
            [
                "colour",
                "deadline_ms",
                "kind",
                "selector",
                "spec.dataset",
                "spec.local.augment",
                "spec.local.batch_size",
                "spec.local.epohcs",
                "spec.local.learning_rate",
                "spec.model",
                "spec.participation.quorum",
                "spec.rounds",
                "spec.strategy.name",
            ],
            "{problems:#?}"
        );
    }

    #[test]
    fn a_plan_that_is_no_toml_is_told_with_its_line() {
        let problems = planned("[spec\nmodel = 1", "").unwrap_err();
        assert_eq!(problems.len(), 1);
        assert!(problems[0].contains("line 1"), "{problems:?}");
    }

    #[test]
    fn a_plan_in_json_is_told_to_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("job.json");
        std::fs::write(&file, r#"{"spec": {"model": "mlp", "dataset": "digits"}}"#).unwrap();
        let refused = request(&given(&format!("--plan {}", file.display())), None).unwrap_err();
        let Refused::Unread(error) = refused else { panic!("{refused:?}") };
        assert!(error.detail.ends_with("is JSON, expected a plan in TOML"), "{error}");
        assert!(error.hint.contains("[spec]") && error.hint.contains("/v1/jobs"), "{}", error.hint);
    }

    #[test]
    fn a_job_goes_on_with_its_settings_and_typed_flags_override_them() {
        let plan: Value = toml::from_str(PLAN).unwrap();
        let mut work = plan["spec"].clone();
        work["kind"] = json!("train");
        let job = json!({"id": "old", "state": "failed", "accepted_at": 0, "ended_at": 1,
            "devices": [], "failure": null, "result": null,
            "spec": {"selector": plan["selector"], "deadline_ms": 60_000, "work": work}});
        let job: JobRecord = serde_json::from_value(job).unwrap();
        let asked = request(&given("--continue old:4 --rounds 3"), Some(&job)).unwrap();
        let spec = &asked.spec;
        assert_eq!(spec.begin_from, Some("old:4".parse().unwrap()));
        assert_eq!((spec.model.name.as_str(), spec.rounds, spec.seed), ("mlp", 3, 3));
        assert_eq!(
            (asked.deadline, asked.selector.as_str()),
            (Some(Millis(60_000)), "label.site=lab")
        );
        let flags = given("--continue old:4 --schedule step:10:nan --selection fraction:inf");
        let Err(Refused::Mistaken(_, mistakes)) = request(&flags, Some(&job)) else { panic!() };
        let mut problems = mistakes.problems;
        problems.sort_unstable();
        assert_eq!(
            problems,
            [
                "spec.local.schedule.factor: expected a finite number",
                "spec.participation.selection.fraction: expected a finite number",
            ]
        );
    }

    #[test]
    fn what_is_no_table_is_a_mistake_and_ends_the_search() {
        for text in ["spec = 3", "spec.participation = 3", "[[spec]]"] {
            let problems = planned(text, "--devices 3 --model mlp --dataset d").unwrap_err();
            assert!(!problems.is_empty() && problems.len() < 4, "{text}: {problems:?}");
        }
    }
}
