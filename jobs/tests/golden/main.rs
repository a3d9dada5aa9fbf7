//! Every message as it travels, byte by byte, against the files in `golden/`.
//!
//! A change of a file is a change of the protocol: devices in the field run older agents. After
//! one that is wanted, `DUNLIN_BLESS=1 cargo test -p jobs --test golden` writes the files anew.
//! Files named `*.old.json` are never written: they hold what older or other programs send,
//! without the members that have a default, and must be understood for ever.

#![expect(clippy::unwrap_used, reason = "a test program: it stops at the first surprise")]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::PathBuf;

use jobs::engine::EnginePolicy;
use jobs::held::Forget;
use jobs::id::{Attempt, BlobRef, Bytes, Digest, Millis, ModelRef, RoundNumber};
use jobs::report::{
    Class, EvaluationReport, ExchangeReport, Failure, FailureCode, InferReport, Progress,
    RefusedEngine, ReportBody, TaskReport, UpdateReport,
};
use jobs::selector::Selector;
use jobs::spec::{
    Augment, ControlVariates, Download, Evaluate, EvaluateTask, InferInput, InferSpec, InferTask,
    JobSpec, Keep, LateUpdates, Levels, LocalTraining, Loss, MaskedTrainTask, Noised,
    Normalization, Offer, Optimizer, Participation, Purpose, Rounding, Schedule, SecureAggregation,
    Selection, Strategy, Task, TaskId, TaskWork, TensorHeader, TrainSpec, TrainTask, Transfer,
    UpdateEncoding, WorkSpec,
};
use jobs::wire;
use serde::Serialize;
use serde::de::DeserializeOwned;

use self::fleet::{fleet, telemetry};

mod fleet;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden")
}

fn parse<T: std::str::FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().unwrap()
}

/// Names of the files that were looked at.
#[derive(Default)]
struct Golden(BTreeSet<String>);

impl Golden {
    /// The message is written as the file has it, and read back from there.
    fn same<T: Serialize + DeserializeOwned + PartialEq + Debug>(&mut self, name: &str, value: &T) {
        let file = format!("{name}.json");
        let path = folder().join(&file);
        let encoded = wire::encode(value);
        if std::env::var_os("DUNLIN_BLESS").is_some() {
            std::fs::write(&path, [&encoded[..], b"\n"].concat()).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap();
        assert_eq!(std::str::from_utf8(&encoded).unwrap(), stored.trim_end(), "{file}");
        assert_eq!(wire::decode::<T>(stored.as_bytes()).unwrap(), *value, "{file}");
        self.0.insert(file);
    }

    /// An older message is understood so.
    fn old<T: DeserializeOwned + PartialEq + Debug>(&mut self, name: &str, value: &T) {
        let file = format!("{name}.old.json");
        let stored = std::fs::read(folder().join(&file)).unwrap();
        assert_eq!(wire::decode::<T>(&stored).unwrap(), *value, "{file}");
        self.0.insert(file);
    }
}

#[test]
fn messages_travel_as_agreed() {
    let mut golden = Golden::default();
    fleet(&mut golden);
    offers(&mut golden);
    reports(&mut golden);
    masked(&mut golden);
    jobs(&mut golden);
    let there: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(there, golden.0, "files, and messages that are compared with them");
}

fn offer(purpose: Purpose, work: TaskWork) -> Offer {
    let task = Task { id: task_id(purpose), timeout_ms: Millis(600_000), work };
    Offer::Task(Box::new(task))
}

fn offers(golden: &mut Golden) {
    let train = TrainTask {
        graph: BlobRef::by_digest(digest(1), Bytes(1000)),
        parameters: blob(),
        dataset: parse("digits"),
        local: LocalTraining { steps_max: Some(100), ..LocalTraining::default() },
        seed: 12_884_901_889,
        rounds_done: 0,
        rounds: 0,
        initial_loss: false,
        control: None,
        update: UpdateEncoding::default(),
        encoded: None,
        hold: false,
        next: None,
        counted: None,
        accept_at_once: false,
    };
    golden.same("offer-train", &offer(Purpose::Train, TaskWork::Train(train.clone())));
    let hold = TrainTask { hold: true, ..train.clone() };
    let at_once = TrainTask { accept_at_once: true, ..train.clone() };
    golden.same("offer-train-at-once", &offer(Purpose::Train, TaskWork::Train(at_once)));
    golden.same("offer-train-hold", &offer(Purpose::Train, TaskWork::Train(hold)));
    let next = Some(parse("rZ7yq0Nn2m3bT5kd8wLx1C"));
    let next = TrainTask { next, ..train.clone() };
    golden.same("offer-train-next", &offer(Purpose::Train, TaskWork::Train(next)));
    let (server, device) = (Some(blob()), Some(RoundNumber(7)));
    let before = Some(parse("00job"));
    let since = Some(RoundNumber(4));
    for (name, job, kept_since) in
        [("", None, None), ("-carried", before, None), ("-kept", None, since)]
    {
        let control = Some(ControlVariates { server: server.clone(), device, job, kept_since });
        let control = TrainTask { control, ..train.clone() };
        let offer = offer(Purpose::Train, TaskWork::Train(control));
        golden.same(&format!("offer-train-control{name}"), &offer);
    }
    let local = LocalTraining {
        loss: Loss::Bce,
        schedule: Schedule::Cosine { floor: 0.125, steps: None },
        warm_up: 7,
        ..train.local.clone()
    };
    let scheduled = TrainTask { local, rounds_done: 2, rounds: 15, ..train.clone() };
    golden.same("offer-train-scheduled", &offer(Purpose::Train, TaskWork::Train(scheduled)));
    let update = "topk:share=0.25,values=int8".parse().unwrap();
    let encoded = TrainTask { update, ..train.clone() };
    golden.same("offer-train-encoded", &offer(Purpose::Train, TaskWork::Train(encoded)));
    let download = TrainTask { encoded: Some(blob()), ..train.clone() };
    golden.same("offer-train-download", &offer(Purpose::Train, TaskWork::Train(download)));
    let noised = Some(Noised { norm: 0.5, noise_multiplier: 2.25 });
    let noised = TrainTask { local: LocalTraining { noised, ..train.local.clone() }, ..train };
    golden.same("offer-train-noised", &offer(Purpose::Train, TaskWork::Train(noised)));
    evaluations(golden);
    let infer = |input, answer_to| {
        let engine = EnginePolicy::default();
        InferTask { model: model(), input, top: 3, engine, answer_to }
    };
    let tensors = InferInput::Tensors { tensors: vec![tensor("x")] };
    let task = infer(tensors, Some("_INBOX.abc".to_owned()));
    golden.same("offer-infer-tensors", &offer(Purpose::Infer, TaskWork::Infer(task)));
    let task = infer(InferInput::Picture, None);
    golden.same("offer-infer-picture", &offer(Purpose::Infer, TaskWork::Infer(task)));
    golden.same("offer-telemetry", &offer(Purpose::Telemetry, TaskWork::Telemetry));
    let cancel = |reason: &str, refused| Offer::Cancel {
        task: task_id(Purpose::Train),
        reason: reason.to_owned(),
        refused,
    };
    golden.same("offer-cancel", &cancel("no longer needed", false));
    golden.same("offer-cancel-refused", &cancel("invalid_update: \"w\" is not finite", true));
}

fn evaluations(golden: &mut Golden) {
    let evaluate = EvaluateTask {
        graph: BlobRef::by_digest(digest(1), Bytes(1000)),
        parameters: blob(),
        dataset: parse("digits"),
        batch_size: 32,
        normalization: Normalization::Format,
        loss: Loss::CrossEntropy,
        kept_local: Vec::new(),
        encoded: None,
    };
    golden.same("offer-evaluate", &offer(Purpose::Evaluate, TaskWork::Evaluate(evaluate.clone())));
    let download = EvaluateTask { encoded: Some(blob()), ..evaluate.clone() };
    let download = TaskWork::Evaluate(download);
    golden.same("offer-evaluate-download", &offer(Purpose::Evaluate, download));
    let fixed = EvaluateTask {
        normalization: Normalization::Fixed { mean: vec![0.5], std: vec![0.25] },
        ..evaluate.clone()
    };
    golden.same("offer-evaluate-fixed", &offer(Purpose::Evaluate, TaskWork::Evaluate(fixed)));
    let mse = EvaluateTask { loss: Loss::Mse, ..evaluate.clone() };
    golden.same("offer-evaluate-mse", &offer(Purpose::Evaluate, TaskWork::Evaluate(mse)));
    let own = EvaluateTask { kept_local: vec!["*norm*".to_owned()], ..evaluate };
    golden.same("offer-evaluate-kept-local", &offer(Purpose::Evaluate, TaskWork::Evaluate(own)));
}

fn reports(golden: &mut Golden) {
    let report = |purpose, body| TaskReport { task: task_id(purpose), device: parse("pi-3"), body };
    golden.same("report-accepted", &report(Purpose::Train, ReportBody::Accepted));
    let old = Progress {
        step: 3,
        steps: 15,
        loss: 0.5,
        examples_per_second: 812.5,
        ..Progress::default()
    };
    golden.old("report-progress", &report(Purpose::Train, ReportBody::Progress(old)));
    let progress =
        Progress { accuracy: Some(0.75), epoch: Some(1), remaining_ms: Some(Millis(480)), ..old };
    golden.same("report-progress", &report(Purpose::Train, ReportBody::Progress(progress)));
    let trained = UpdateReport {
        parameters: blob(),
        examples: 479,
        loss: 0.125,
        accuracy: 0.975,
        steps: 15,
        duration_ms: Millis(23),
        engine: "native".to_owned(),
        initial_loss: None,
        control_change: None,
        held: false,
        crc32: None,
        control_anew: false,
    };
    golden.same("report-trained", &report(Purpose::Train, ReportBody::Trained(trained.clone())));
    let anew = UpdateReport { control_anew: true, ..trained.clone() };
    golden.same("report-trained-anew", &report(Purpose::Train, ReportBody::Trained(anew)));
    let held = UpdateReport { held: true, ..trained };
    let known = UpdateReport { crc32: Some(0xcbf4_3926), ..held.clone() };
    golden.old("report-trained-held", &report(Purpose::Train, ReportBody::Trained(held)));
    golden.same("report-trained-held", &report(Purpose::Train, ReportBody::Trained(known)));
    golden.same("forget", &Forget { job: parse("01job") });
    let evaluated =
        EvaluationReport { examples: 21, loss: 0.25, accuracy: 0.9375, duration_ms: Millis(4) };
    golden.same("report-evaluated", &report(Purpose::Evaluate, ReportBody::Evaluated(evaluated)));
    let inferred = InferReport {
        model: model(),
        engine: "tract".to_owned(),
        engine_us: 861,
        refused_engines: vec![RefusedEngine {
            engine: "cuda".to_owned(),
            reason: "signal 11".to_owned(),
        }],
        outputs: vec![tensor("y")],
        classes: vec![vec![
            Class { index: 7, label: Some("7".to_owned()), probability: 0.75 },
            Class { index: 1, label: None, probability: 0.25 },
        ]],
    };
    golden.same("report-inferred", &report(Purpose::Infer, ReportBody::Inferred(inferred.clone())));
    let old = InferReport { classes: Vec::new(), refused_engines: Vec::new(), ..inferred };
    golden.old("report-inferred", &report(Purpose::Infer, ReportBody::Inferred(old)));
    let measured = ReportBody::Measured(Box::new(telemetry()));
    golden.same("report-measured", &report(Purpose::Telemetry, measured));
    let busy = Failure::new(FailureCode::Busy, "2 of 2 slots are taken");
    golden.same("report-declined", &report(Purpose::Infer, ReportBody::Declined(busy)));
    golden.same("report-cancelled", &report(Purpose::Train, ReportBody::Cancelled));
    // Every code: brokers decide by it whether to try again.
    for code in FailureCode::ALL {
        let failed = ReportBody::Failed(Failure::new(*code, "why"));
        golden.same(&format!("report-failed-{}", code.as_str()), &report(Purpose::Train, failed));
    }
}

/// A training that uses what older agents do not know.
fn refined(train: &TrainSpec) -> TrainSpec {
    TrainSpec {
        begin_from: Some(parse("01job:7")),
        local: LocalTraining {
            optimizer: Optimizer::Adamw,
            loss: Loss::CrossEntropy,
            schedule: Schedule::Step { every: 500, factor: 0.5 },
            warm_up: 20,
            proximal: 0.5,
            gradient_norm_max: Some(2.0),
            label_smoothing: 0.125,
            frozen: vec!["stem.*".to_owned()],
            kept_local: vec!["*norm*".to_owned()],
            augment: vec![Augment::Flip, Augment::PadCrop, Augment::Cutout],
            normalization: Normalization::Dataset,
            ..LocalTraining::default()
        },
        strategy: "fedadam:learning_rate=0.25,tau=0.5".parse().unwrap(),
        rule: Some("fedtrimmedavg:fraction=0.25".parse().unwrap()),
        evaluate: Evaluate::Both,
        participation: Participation {
            selection: Selection::ByLoss { candidates: Some(9) },
            ..train.participation.clone()
        },
        early_stopping: Some("3:0.25:accuracy".parse().unwrap()),
        keep: Keep::Best,
        ..train.clone()
    }
}

/// What a secure aggregation adds.
fn masked(golden: &mut Golden) {
    let offer = |purpose, work| {
        let task = Task { id: task_id(purpose), timeout_ms: Millis(60_000), work };
        Offer::Task(Box::new(task))
    };
    let train = TrainTask {
        graph: BlobRef::by_digest(digest(1), Bytes(1000)),
        parameters: blob(),
        dataset: parse("digits"),
        local: LocalTraining::default(),
        seed: 7,
        rounds_done: 0,
        rounds: 0,
        initial_loss: false,
        control: None,
        update: UpdateEncoding::default(),
        encoded: None,
        hold: false,
        next: None,
        counted: None,
        accept_at_once: false,
    };
    let shortened = LocalTraining { update_norm_max: Some(0.5), ..LocalTraining::default() };
    let shortened = TrainTask { local: shortened, ..train.clone() };
    let levels = Levels {
        clip: 0.5,
        weight_max: 100,
        rounding: Rounding::Stochastic,
        devices: 12,
        within: false,
    };
    let (counted, within) = (shortened.clone(), Levels { within: true, ..levels });
    let task = TaskWork::TrainMasked(Box::new(MaskedTrainTask { train, levels }));
    golden.same("offer-train-masked", &offer(Purpose::Train, task));
    let task = TaskWork::TrainMasked(Box::new(MaskedTrainTask { train: shortened, levels }));
    golden.same("offer-train-masked-shortened", &offer(Purpose::Train, task));
    let task = TaskWork::TrainMasked(Box::new(MaskedTrainTask { train: counted, levels: within }));
    golden.same("offer-train-masked-within", &offer(Purpose::Train, task));
    for purpose in [Purpose::Share, Purpose::Mask, Purpose::Unmask] {
        golden.same(&format!("offer-{}", purpose.as_str()), &offer(purpose, TaskWork::Exchange));
    }
    let body = ReportBody::Exchanged(ExchangeReport { message: blob() });
    let report = TaskReport { task: task_id(Purpose::Mask), device: parse("pi-3"), body };
    golden.same("report-exchanged", &report);
    let secure = "clip=0.5,weight_max=100,rounding=stochastic,drop_out=0.25,colluding=0.125";
    let secure: SecureAggregation = parse(secure);
    golden.same("secure-aggregation", &secure);
    golden.old("secure-aggregation", &SecureAggregation::default());
}

fn jobs(golden: &mut Golden) {
    let train = TrainSpec {
        model: parse("mlp"),
        begin_from: None,
        dataset: parse("digits"),
        rounds: 15,
        local: LocalTraining {
            epochs: 2,
            batch_size: 16,
            steps_max: None,
            learning_rate: 0.125,
            momentum: 0.5,
            weight_decay: 0.25,
            ..LocalTraining::default()
        },
        participation: Participation {
            devices: Some(3),
            over_selection: 0.5,
            quorum: 2,
            deadline_ms: Millis(60_000),
            failed_rounds_max: 3,
            selection: Selection::Random,
            quarantine: None,
            late_updates: LateUpdates::Refuse,
        },
        strategy: Strategy::default(),
        rule: None,
        privacy: None,
        update: UpdateEncoding::default(),
        download: Download::default(),
        transfer: Transfer::default(),
        secure_aggregation: None,
        evaluate: Evaluate::Devices,
        target_accuracy: Some(0.95),
        early_stopping: None,
        keep: Keep::Last,
        keep_rounds: None,
        register_as: Some(parse("digits-mlp")),
        seed: 7,
    };
    let job = |selector: &str, work| JobSpec {
        selector: Selector::parse(selector).unwrap(),
        deadline_ms: Millis(30_000),
        work,
    };
    golden.same("job-train", &job("group=lab", WorkSpec::Train(Box::new(train.clone()))));
    golden.same("job-train-refined", &job("group=lab", WorkSpec::Train(Box::new(refined(&train)))));
    golden.same("job-train-private", &job("", WorkSpec::Train(Box::new(private(&train)))));
    golden.same("job-train-quarantine", &job("", WorkSpec::Train(Box::new(quarantined(&train)))));
    job_encoded(golden, train.clone());
    let old = TrainSpec {
        local: LocalTraining::default(),
        participation: Participation::default(),
        target_accuracy: None,
        keep_rounds: None,
        register_as: None,
        seed: 0,
        ..train
    };
    golden.old("job-train", &job("", WorkSpec::Train(Box::new(old))));
    let input = InferInput::Tensors { tensors: vec![tensor("x")] };
    let engine: EnginePolicy = "!webgpu".parse().unwrap();
    let infer = InferSpec { model: parse("digits-mlp:3"), input, top: 3, engine };
    golden.same("job-infer", &job("device=pi-3", WorkSpec::Infer(infer)));
    let engine = EnginePolicy::default();
    let old = InferSpec { model: parse("digits-mlp"), input: InferInput::Picture, top: 5, engine };
    golden.old("job-infer", &job("", WorkSpec::Infer(old)));
    golden.same("job-telemetry", &job("", WorkSpec::Telemetry));
}

fn private(train: &TrainSpec) -> TrainSpec {
    let privacy =
        "central:initial=0.5,noise_multiplier=1.25,delta=0.0001,epsilon_budget=8,sampling_rate=0.5";
    TrainSpec {
        privacy: Some(parse(privacy)),
        participation: Participation { devices: Some(30), ..Participation::default() },
        target_accuracy: None,
        ..train.clone()
    }
}

fn quarantined(train: &TrainSpec) -> TrainSpec {
    let quarantine = Some(parse("refused=2,within=5,rounds=9,left_out=true"));
    let participation = Participation { quarantine, ..train.participation.clone() };
    TrainSpec { participation, ..train.clone() }
}

fn job_encoded(golden: &mut Golden, train: TrainSpec) {
    let train = TrainSpec { update: "int8:block=512".parse().unwrap(), ..train };
    let (selector, deadline_ms) = (Selector::default(), Millis(30_000));
    let job = JobSpec { selector, deadline_ms, work: WorkSpec::Train(Box::new(train)) };
    golden.same("job-train-encoded", &job);
}

fn task_id(purpose: Purpose) -> TaskId {
    TaskId { job: parse("01job"), round: RoundNumber(3), purpose, attempt: Attempt(1) }
}

fn digest(byte: u8) -> Digest {
    parse(&format!("sha256:{}", format!("{byte:02x}").repeat(32)))
}

fn blob() -> BlobRef {
    let name = Some("update/01job/3/pi-3/1".to_owned());
    BlobRef { name, ..BlobRef::by_digest(digest(2), Bytes(24_000)) }
}

fn model() -> ModelRef {
    ModelRef { name: parse("digits-mlp"), version: parse("3"), digest: digest(3) }
}

fn tensor(name: &str) -> TensorHeader {
    let shape = vec![1, 1, 8, 8];
    TensorHeader { name: name.to_owned(), datatype: "FP32".to_owned(), shape, size: Bytes(256) }
}
