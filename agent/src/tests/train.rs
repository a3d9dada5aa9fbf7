use jobs::device::Heartbeat;
use jobs::id::Digest;
use jobs::report::{FailureCode, UpdateReport};
use jobs::spec::{
    Augment, EvaluateTask, LocalTraining, Loss, Normalization, TrainTask, UpdateEncoding,
};
use models::params::Parameters;
use models::train::{Sgd, Trainer};

use super::*;

/// A graph and its parameters in the object store.
pub(super) struct Model {
    pub(super) graph: BlobRef,
    pub(super) parameters: BlobRef,
    pub(super) values: Vec<u8>,
}

impl World {
    pub(super) async fn model(&self, family: &str, shape: [usize; 3], classes: usize) -> Model {
        let graph = models::zoo::build(family, shape, classes, 1).unwrap();
        let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
        let values = Trainer::new(&graph, sgd).unwrap().parameters().to_safetensors();
        let (graph, parameters) = (self.put(graph).await, self.put(values.clone()).await);
        Model { graph, parameters, values }
    }
}

pub(super) fn training(model: &Model, job: &str, attempt: u32, local: LocalTraining) -> Task {
    let work = TaskWork::Train(TrainTask {
        graph: model.graph.clone(),
        parameters: model.parameters.clone(),
        dataset: "digits".parse().unwrap(),
        local,
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
    });
    // Training steps back behind whatever else a machine does.
    Task { timeout_ms: Millis(120_000), ..task(job, Purpose::Train, attempt, work) }
}

pub(super) fn update_of(report: TaskReport) -> UpdateReport {
    let ReportBody::Trained(update) = report.body else { panic!("no update: {report:?}") };
    update
}

/// A metered connection has to have a limit, or the device trains nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metered_device_trains_only_with_a_limit_for_its_bytes() {
    for bytes_per_second in [None, Some(50_000_000)] {
        let world = World::new().await;
        let config = Config { metered: true, bytes_per_second, ..world.config_with_data() };
        let agent = world.join(config).await;
        let model = world.model("mlp", [1, 4, 4], 10).await;
        let mut reports = world.listen("report.job1.pi").await;
        let local = LocalTraining { batch_size: 8, ..LocalTraining::default() };
        world.offer(&training(&model, "job1", 1, local)).await;
        let (report, _) = final_report(&mut reports).await;
        if bytes_per_second.is_some() {
            assert!(update_of(report).steps > 0);
        } else {
            let failure = failure_of(report);
            assert_eq!(failure.code, FailureCode::Metered);
            assert!(failure.message.contains("--bytes-per-second"), "{failure:?}");
        }
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_trains_evaluates_and_repeats_its_report() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let mut reports = world.listen("report.job1.pi").await;
    let local = LocalTraining { epochs: 8, batch_size: 8, ..LocalTraining::default() };
    let offer = training(&model, "job1", 1, local);
    world.offer(&offer).await;
    let report = final_report(&mut reports).await.0;
    let update = update_of(report.clone());
    assert_eq!((update.examples, update.steps, update.engine.as_str()), (64, 64, "native"));
    assert!(update.accuracy > 0.95 && update.loss < 0.3, "{update:?}");
    let bytes = world.blobs.get(&update.parameters).await.unwrap();
    assert_eq!(link::digest::of(&bytes), update.parameters.digest);
    assert_ne!(bytes, model.values);
    Parameters::from_safetensors(&bytes).unwrap();

    world.offer(&offer).await;
    assert_eq!(final_report(&mut reports).await.0, report, "told again without working again");

    let work = TaskWork::Evaluate(EvaluateTask {
        graph: model.graph.clone(),
        parameters: update.parameters,
        dataset: "digits".parse().unwrap(),
        batch_size: 8,
        normalization: Normalization::Format,
        loss: Loss::default(),
        kept_local: Vec::new(),
        encoded: None,
    });
    world.offer(&task("job1", Purpose::Evaluate, 1, work)).await;
    let report = final_report(&mut reports).await.0;
    let ReportBody::Evaluated(found) = report.body else { panic!("not evaluated: {report:?}") };
    assert_eq!(found.examples, 32);
    assert!(found.accuracy > 0.95, "{found:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_epochs_the_same_bytes_come_back() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let mut reports = world.listen("report.job1.pi").await;
    let local = LocalTraining { epochs: 0, ..LocalTraining::default() };
    world.offer(&training(&model, "job1", 1, local)).await;
    let update = update_of(final_report(&mut reports).await.0);
    assert_eq!((update.examples, update.steps), (64, 0));
    assert_eq!(update.parameters.digest, model.parameters.digest);
    assert_ne!(update.parameters.object_name(), model.parameters.object_name());
    assert_eq!(world.blobs.get(&update.parameters).await.unwrap(), model.values);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_trained_is_refused_with_a_reason() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let wide = world.model("mlp", [1, 5, 4], 10).await;
    let few = world.model("mlp", [1, 4, 4], 3).await;
    let wrong =
        Model { parameters: wide.parameters.clone(), ..world.model("mlp", [1, 4, 4], 10).await };
    let missing = BlobRef::by_digest(link::digest::of(b"nowhere"), jobs::id::Bytes(7));
    let lost = Model { graph: missing.clone(), ..world.model("mlp", [1, 4, 4], 10).await };
    let pointer = world.put(b"version https://git-lfs.github.com/spec/v1\n".to_vec()).await;
    let not_onnx = Model { graph: pointer, ..world.model("mlp", [1, 4, 4], 10).await };
    let local = LocalTraining { batch_size: 8, ..LocalTraining::default() };
    let hot = LocalTraining { learning_rate: 1e30, epochs: 5, ..local.clone() };
    let nothing = LocalTraining { batch_size: 0, ..local.clone() };
    let cases = [
        (&wide, local.clone(), FailureCode::ShapeMismatch, "[1, 4, 4]"),
        (&few, local.clone(), FailureCode::ShapeMismatch, "3 classes"),
        (&wrong, local.clone(), FailureCode::ShapeMismatch, "shape"),
        (&lost, local.clone(), FailureCode::BlobUnavailable, missing.digest.as_str()),
        (&not_onnx, local.clone(), FailureCode::InvalidModel, "LFS"),
        (&model, hot.clone(), FailureCode::Diverged, "lower the learning rate"),
        (&model, hot, FailureCode::Diverged, "step 2: the output of layer \"classes\" (Gemm)"),
        (&model, nothing, FailureCode::InvalidSpec, "batch_size"),
    ];
    let mut reports = world.listen("report.job1.pi").await;
    for (attempt, (model, local, code, words)) in (1..).zip(cases) {
        world.offer(&training(model, "job1", attempt, local)).await;
        let failure = failure_of(final_report(&mut reports).await.0);
        assert_eq!(failure.code, code, "{failure:?}");
        assert!(failure.message.contains(words), "{failure:?} lacks {words:?}");
    }
    let mut other = training(&model, "job1", 20, local);
    if let TaskWork::Train(work) = &mut other.work {
        work.dataset = "cats".parse().unwrap();
    }
    world.offer(&other).await;
    let failure = failure_of(final_report(&mut reports).await.0);
    assert_eq!(failure.code, FailureCode::UnknownDataset);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_is_cancelled_while_heartbeats_go_on() {
    let world = World::new().await;
    let config = Config { checkpoint: Duration::from_millis(1), ..world.config_with_data() };
    let agent = world.join(config).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let mut reports = world.listen("report.job1.pi").await;
    let endless = LocalTraining { epochs: u32::MAX, batch_size: 8, ..LocalTraining::default() };
    let offer = training(&model, "job1", 1, endless.clone());
    world.offer(&offer).await;
    let progress = loop {
        let report: TaskReport = next_as(&mut reports).await;
        if let ReportBody::Progress(progress) = report.body {
            break progress;
        }
    };
    assert!(progress.step > 0 && progress.examples_per_second > 0.0);
    assert!(progress.accuracy.is_some_and(|share| (0.0..=1.0).contains(&share)), "{progress:?}");
    assert_eq!(progress.epoch.map(u64::from), Some((progress.step - 1) / 8 + 1));
    assert!(progress.remaining_ms > Some(Millis(3_600_000)), "{progress:?}");
    let mut beats = world.listen("fleet.pi.heartbeat").await;
    let beat: Heartbeat = next_as(&mut beats).await;
    assert_eq!(beat.tasks, std::slice::from_ref(&offer.id));

    world.offer(&training(&model, "job2", 1, endless)).await;
    let mut others = world.listen("report.job2.pi").await;
    world.offer(&training(&model, "job2", 2, LocalTraining::default())).await;
    assert_eq!(failure_of(final_report(&mut others).await.0).code, FailureCode::Busy);

    let cancel = Offer::Cancel { task: offer.id, reason: "test".to_owned(), refused: false };
    world.client.publish("offer.pi", wire::encode(&cancel)).await.unwrap();
    assert_eq!(final_report(&mut reports).await.0.body, ReportBody::Cancelled);
    // The threads are free again, and nothing is kept to go on from; what has ended may keep its
    // checkpoint until its next round.
    trained(&world, &model, "job3", 1, &LocalTraining::default()).await;
    let saved = || {
        let files = std::fs::read_dir(world.dir.path().join("state/checkpoints")).unwrap();
        files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let until = tokio::time::Instant::now() + super::PATIENCE;
    // A checkpoint that was being written when the training was stopped goes after it.
    while saved().iter().any(|name| !name.contains("job3")) {
        assert!(tokio::time::Instant::now() < until, "{:?}", saved());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    agent.stop().await;
}

/// A round that cannot do without it asks for the same attempt again, and has to hear it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_busy_says_so_whenever_it_is_asked() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let endless = LocalTraining { epochs: u32::MAX, batch_size: 8, ..LocalTraining::default() };
    world.offer(&training(&model, "job1", 1, endless)).await;
    let mut reports = world.listen("report.job2.pi").await;
    for _ in 0..2 {
        world.offer(&training(&model, "job2", 1, LocalTraining::default())).await;
        assert_eq!(failure_of(final_report(&mut reports).await.0).code, FailureCode::Busy);
    }
    let context = async_nats::jetstream::new(world.client.clone());
    let stream = context.get_stream(jobs::subject::STREAM_REPORTS).await.unwrap();
    let stored = async || {
        let subjects = stream.info_with_subjects("report.job2.pi").await.unwrap();
        subjects.map(|subject| subject.unwrap().1).fold(0, async |all, it| all + it).await
    };
    let until = tokio::time::Instant::now() + super::PATIENCE;
    while stored().await < 2 {
        assert!(tokio::time::Instant::now() < until, "a broker hears one of them");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ending_reports_what_was_at_work() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let mut reports = world.listen("report.job1.pi").await;
    let endless = LocalTraining { epochs: u32::MAX, batch_size: 8, ..LocalTraining::default() };
    world.offer(&training(&model, "job1", 1, endless)).await;
    let accepted: TaskReport = next_as(&mut reports).await;
    assert_eq!(accepted.body, ReportBody::Accepted);
    agent.stop().await;
    let failure = failure_of(final_report(&mut reports).await.0);
    assert_eq!(failure.code, FailureCode::ShuttingDown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_graph_is_fetched_once_and_again_when_its_file_is_damaged() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let cached = |digest: &Digest| world.dir.path().join("state/blobs").join(digest.hex());
    let local = LocalTraining { batch_size: 8, ..LocalTraining::default() };
    let mut reports = world.listen("report.job1.pi").await;
    world.offer(&training(&model, "job1", 1, local.clone())).await;
    update_of(final_report(&mut reports).await.0);
    let file = cached(&model.graph.digest);
    let whole = std::fs::read(&file).unwrap();
    agent.stop().await;

    std::fs::write(&file, &whole[1..]).unwrap();
    let agent = world.join(world.config_with_data()).await;
    let mut reports = world.listen("report.job2.pi").await;
    world.offer(&training(&model, "job2", 1, local)).await;
    update_of(final_report(&mut reports).await.0);
    assert_eq!(std::fs::read(&file).unwrap(), whole);
    agent.stop().await;
}

/// The parameters that a training of the job gave.
async fn trained(
    world: &World,
    model: &Model,
    job: &str,
    attempt: u32,
    local: &LocalTraining,
) -> UpdateReport {
    let mut reports = world.listen(&format!("report.{job}.pi")).await;
    world.offer(&training(model, job, attempt, local.clone())).await;
    update_of(final_report(&mut reports).await.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_goes_on_after_the_agent_was_ended() {
    const STEPS: u32 = 9_999;
    let world = World::new().await;
    let model = world.model("lenet", [1, 4, 4], 10).await;
    let config = || Config { checkpoint: Duration::from_millis(1), ..world.config_with_data() };
    let saved = || std::fs::read_dir(world.dir.path().join("state/checkpoints")).unwrap().count();
    let local = LocalTraining {
        epochs: 100_000,
        batch_size: 24,
        steps_max: Some(STEPS),
        optimizer: jobs::spec::Optimizer::Adam,
        learning_rate: 1e-3,
        proximal: 0.01,
        warm_up: 500,
        augment: vec![Augment::Flip, Augment::PadCrop, Augment::Cutout],
        normalization: Normalization::Dataset,
        ..LocalTraining::default()
    };
    let agent = world.join(config()).await;
    let mut reports = world.listen("report.job1.pi").await;
    world.offer(&training(&model, "job1", 1, local.clone())).await;
    let before = loop {
        let report: TaskReport = next_as(&mut reports).await;
        if let ReportBody::Progress(progress) = report.body {
            break progress;
        }
    };
    assert!(before.step < before.steps, "{before:?}");
    agent.stop().await;
    assert_eq!(failure_of(final_report(&mut reports).await.0).code, FailureCode::ShuttingDown);
    assert_eq!(saved(), 1);

    let agent = world.join(config()).await;
    let second = trained(&world, &model, "job1", 2, &local).await;
    assert_eq!(second.steps, u64::from(STEPS));
    assert_eq!(saved(), 1, "the report may be lost: it stays until the next round");
    let third = trained(&world, &model, "job1", 3, &local).await;
    assert_eq!(third.parameters.digest, second.parameters.digest);
    let whole = trained(&world, &model, "job2", 1, &local).await;
    assert_eq!(second.parameters.digest, whole.parameters.digest);
    assert_eq!((second.loss, second.accuracy), (whole.loss, whole.accuracy));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_that_does_not_fit_into_memory_is_refused() {
    let world = World::new().await;
    let config = Config { training_bytes: Some(50_000), ..world.config_with_data() };
    let agent = world.join(config).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let mut reports = world.listen("report.job1.pi").await;
    let local = |batch_size| LocalTraining { batch_size, ..LocalTraining::default() };
    world.offer(&training(&model, "job1", 1, local(64))).await;
    let failure = failure_of(final_report(&mut reports).await.0);
    assert_eq!(failure.code, FailureCode::TooLarge);
    for words in ["--training-bytes", "0.1 MB", "64 examples", "a batch size of"] {
        assert!(failure.message.contains(words), "{failure:?} lacks {words:?}");
    }
    world.offer(&training(&model, "job1", 2, local(1))).await;
    update_of(final_report(&mut reports).await.0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_a_job_is_that_of_its_evaluation() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    for (loss, most) in [(Loss::Mse, 0.05), (Loss::Bce, 0.1)] {
        let job = format!("job-{loss}").replace('_', "-");
        let local = LocalTraining { epochs: 40, batch_size: 8, loss, ..LocalTraining::default() };
        let update = trained(&world, &model, &job, 1, &local).await;
        let work = TaskWork::Evaluate(EvaluateTask {
            graph: model.graph.clone(),
            parameters: update.parameters.clone(),
            dataset: "digits".parse().unwrap(),
            batch_size: 8,
            normalization: Normalization::Format,
            loss,
            kept_local: Vec::new(),
            encoded: None,
        });
        let mut reports = world.listen(&format!("report.{job}.pi")).await;
        world.offer(&task(&job, Purpose::Evaluate, 1, work)).await;
        let report = final_report(&mut reports).await.0;
        let ReportBody::Evaluated(found) = report.body else { panic!("not evaluated: {report:?}") };
        assert!(found.loss < most && found.accuracy > 0.95, "{loss}: {update:?} {found:?}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_output_tells_two_classes_apart() {
    let world = World::new().await;
    let config = world.config_with_data();
    std::fs::write(world.dir.path().join("digits/labels.txt"), "left\nright\n").unwrap();
    let agent = world.join(config).await;
    let model = world.model("mlp", [1, 4, 4], 1).await;
    let local = LocalTraining { epochs: 30, batch_size: 8, ..LocalTraining::default() };
    let binary = LocalTraining { loss: Loss::Bce, ..local.clone() };
    let update = trained(&world, &model, "job1", 1, &binary).await;
    assert!(update.accuracy > 0.95 && update.loss < 0.2, "{update:?}");
    let mut reports = world.listen("report.job2.pi").await;
    world.offer(&training(&model, "job2", 1, local)).await;
    let failure = failure_of(final_report(&mut reports).await.0);
    assert_eq!(failure.code, FailureCode::ShapeMismatch, "{failure:?}");
    agent.stop().await;
}
