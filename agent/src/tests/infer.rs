use jobs::engine::EnginePolicy;
use jobs::id::{Bytes as Size, ModelRef};
use jobs::report::{FailureCode, InferReport};
use jobs::spec::{InferInput, InferTask, TensorHeader};
use models::artifact::{Manifest, ModelConfig};
use models::picture::Preprocessing;
use models::train::{Sgd, Trainer};

use super::*;

impl World {
    /// Registers an ONNX file as a broker does.
    pub(super) async fn register(&self, onnx: Vec<u8>, config: &ModelConfig) -> ModelRef {
        let config = config.to_bytes();
        let manifest = Manifest::of(&config, &onnx).to_bytes();
        self.put(onnx).await;
        self.put(config).await;
        let manifest = self.put(manifest).await;
        ModelRef {
            name: "tiny".parse().unwrap(),
            version: "1".parse().unwrap(),
            digest: manifest.digest,
        }
    }

    async fn tiny(&self) -> ModelRef {
        let graph = models::zoo::build("mlp", [1, 4, 4], 2, 1).unwrap();
        let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
        let onnx = Trainer::new(&graph, sgd).unwrap().to_inference_onnx();
        let preprocessing: Preprocessing =
            serde_json::from_str(r#"{"width":4,"height":4,"channels":1}"#).unwrap();
        let config = ModelConfig {
            labels: vec!["left".to_owned(), "right".to_owned()],
            preprocessing: Some(preprocessing),
            ..ModelConfig::default()
        };
        self.register(onnx, &config).await
    }

    /// Offers a question and waits for the report with its outputs.
    pub(super) async fn infer(&self, task: &InferTask, input: &[u8]) -> (TaskReport, Bytes) {
        self.infer_within(PATIENCE, task, input).await
    }

    /// The same with a deadline.
    pub(super) async fn infer_within(
        &self,
        limit: Duration,
        task: &InferTask,
        input: &[u8],
    ) -> (TaskReport, Bytes) {
        self.infer_as("job1", limit, task, input).await
    }

    /// The same beside other jobs.
    pub(super) async fn infer_as(
        &self,
        job: &str,
        limit: Duration,
        task: &InferTask,
        input: &[u8],
    ) -> (TaskReport, Bytes) {
        let reply = format!("_INBOX.{job}");
        let mut inbox = self.listen(&reply).await;
        let work = TaskWork::Infer(task.clone());
        let timeout_ms = Millis(limit.as_millis().try_into().unwrap());
        let task = Task { timeout_ms, ..super::task(job, Purpose::Infer, 1, work) };
        let offer = Offer::Task(Box::new(task));
        let encoded = wire::encode_with_binary(&offer, input);
        let mut headers = async_nats::HeaderMap::new();
        let length = encoded.json_length.unwrap_or_default();
        headers.insert(wire::JSON_LENGTH_HEADER, length.to_string());
        let sent =
            self.client.publish_with_reply_and_headers("offer.pi", reply, headers, encoded.payload);
        sent.await.unwrap();
        loop {
            let message = next(&mut inbox).await;
            assert_eq!(message.status, None, "the device listens");
            let length = message.headers.as_ref().unwrap().get(wire::JSON_LENGTH_HEADER).unwrap();
            let length = length.as_str().parse().unwrap();
            let (report, outputs): (TaskReport, Bytes) =
                wire::decode_with_binary(&message.payload, Some(length)).unwrap();
            if report.body.is_final() {
                return (report, outputs);
            }
            assert!(outputs.is_empty(), "nobody asked for the input: {report:?}");
        }
    }
}

fn ask(model: &ModelRef) -> InferTask {
    let header = TensorHeader {
        name: String::new(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 1, 4, 4],
        size: Size(64),
    };
    let input = InferInput::Tensors { tensors: vec![header] };
    let engine = EnginePolicy::default();
    InferTask { model: model.clone(), input, top: 5, engine, answer_to: None }
}

pub(super) fn inferred(report: TaskReport) -> InferReport {
    let ReportBody::Inferred(report) = report.body else { panic!("no answer: {report:?}") };
    report
}

fn floats(values: [f32; 16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_is_answered_with_classes_and_outputs() {
    let world = World::new().await;
    let agent = world.join(world.config()).await;
    let model = world.tiny().await;
    let (report, outputs) = world.infer(&ask(&model), &floats([0.5; 16])).await;
    let report = inferred(report);
    assert_eq!((report.model, report.engine.as_str()), (model.clone(), "native"));
    assert_eq!(report.outputs[0].shape, [1, 2]);
    assert_eq!(outputs.len(), 8);
    let classes = &report.classes[0];
    assert!(classes[0].label.is_some() && classes[0].probability >= 0.5 && classes.len() == 2);

    let mut beats = world.listen("fleet.pi.heartbeat").await;
    let beat: jobs::device::Heartbeat = next_as(&mut beats).await;
    assert_eq!(beat.models, std::slice::from_ref(&model.digest));

    let mut answers = world.listen("_INBOX.client").await;
    let direct = InferTask { answer_to: Some("_INBOX.client".to_owned()), ..ask(&model) };
    let (report, outputs) = world.infer(&direct, &floats([0.5; 16])).await;
    assert!(outputs.is_empty() && inferred(report).outputs.is_empty());
    let answer: serde_json::Value =
        serde_json::from_slice(&next(&mut answers).await.payload).unwrap();
    assert_eq!((&answer["device"], &answer["model"]["name"]), (&"pi".into(), &"tiny".into()));
    assert_eq!(answer["outputs"][0]["shape"], serde_json::json!([1, 2]));
    assert_eq!(answer["outputs"][0]["data"].as_array().unwrap().len(), 2);
    assert!(answer["classes"][0][0]["label"].is_string());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_the_model_is_refused_with_a_reason() {
    let world = World::new().await;
    let agent = world.join(world.config()).await;
    let model = world.tiny().await;
    let header = |name: &str, shape: &[u64], size: u64| TensorHeader {
        name: name.to_owned(),
        datatype: "FP32".to_owned(),
        shape: shape.to_vec(),
        size: Size(size),
    };
    let cases = [
        (vec![header("other", &[1, 1, 4, 4], 64)], "none of"),
        (vec![header("", &[1, 1, 4, 4], 65)], "65 bytes"),
        (vec![header("", &[1, 1, 4, 5], 64)], "20 elements"),
        (vec![header("", &[1, 4, 4, 1], 64)], "expected"),
        (vec![header("", &[u64::MAX, 2], 64)], "too large"),
        (vec![], "the request has 0"),
    ];
    for (tensors, words) in cases {
        let task = InferTask { input: InferInput::Tensors { tensors }, ..ask(&model) };
        let failure = failure_of(world.infer(&task, &floats([0.5; 16])).await.0);
        assert_eq!(failure.code, FailureCode::InvalidInput, "{failure:?}");
        assert!(failure.message.contains(words), "{failure:?} lacks {words:?}");
    }
    let picture = InferTask { input: InferInput::Picture, ..ask(&model) };
    let failure = failure_of(world.infer(&picture, b"no picture").await.0);
    assert_eq!(failure.code, FailureCode::InvalidInput);

    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec();
    let pointer = world.register(pointer, &ModelConfig::default()).await;
    let failure = failure_of(world.infer(&ask(&pointer), &floats([0.5; 16])).await.0);
    assert_eq!(failure.code, FailureCode::InvalidModel);
    assert!(failure.message.contains("LFS"), "{failure:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_model_answers_many_at_once() {
    let Some(path) = shared("data/models/mlperf_tiny_resnet8_cifar10.onnx") else { return };
    let world = World::new().await;
    let agent = world.join(world.config()).await;
    let model = world.register(std::fs::read(path).unwrap(), &ModelConfig::default()).await;
    let size = 32 * 32 * 3;
    let header = TensorHeader {
        name: String::new(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 32, 32, 3],
        size: Size(4 * size as u64),
    };
    let input = InferInput::Tensors { tensors: vec![header] };
    // Another engine adds in another order.
    let engine = "tract".parse().unwrap();
    let question = InferTask { input, engine, ..ask(&model) };
    let bytes: Vec<u8> = vec![0; 4 * size];
    let answers = (0..20_u32).map(|number| {
        let offer = Offer::Task(Box::new(super::task(
            "job1",
            Purpose::Infer,
            number,
            TaskWork::Infer(question.clone()),
        )));
        let encoded = wire::encode_with_binary(&offer, &bytes);
        let mut headers = async_nats::HeaderMap::new();
        let length = encoded.json_length.unwrap_or_default();
        headers.insert(wire::JSON_LENGTH_HEADER, length.to_string());
        let inbox = format!("_INBOX.many.{number}");
        let world = &world;
        async move {
            let mut answers = world.listen(&inbox).await;
            let client = &world.client;
            let sent =
                client.publish_with_reply_and_headers("offer.pi", inbox, headers, encoded.payload);
            sent.await.unwrap();
            loop {
                let message = next(&mut answers).await;
                let length = message.headers.as_ref().unwrap().get(wire::JSON_LENGTH_HEADER);
                let length = length.unwrap().as_str().parse().unwrap();
                let (report, outputs): (TaskReport, Bytes) =
                    wire::decode_with_binary(&message.payload, Some(length)).unwrap();
                if report.body.is_final() {
                    return (inferred(report), outputs);
                }
            }
        }
    });
    let answers = futures::future::join_all(answers).await;
    assert!(answers.iter().all(|(_, outputs)| *outputs == answers[0].1 && !outputs.is_empty()));
    agent.stop().await;
}

/// The disk of a device may be full of other things for days.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_room_on_the_disk_answers_all_the_same() {
    let world = World::new().await;
    let agent = world.join(world.config()).await;
    let model = world.tiny().await;
    let blobs = world.dir.path().join("state/blobs");
    let part = blobs.join(model.digest.hex()).with_extension("part");
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let (report, outputs) = world.infer(&ask(&model), &floats([0.5; 16])).await;
    assert_eq!((inferred(report).model, outputs.len()), (model.clone(), 8));
    assert!(!blobs.join(model.digest.hex()).exists());
    agent.stop().await;
}

/// The store's description of the blob is believed before it is fetched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_memory_has_no_room_for_is_refused_before_it_is_fetched() {
    let world = World::new().await;
    let agent = world.join(world.config()).await;
    let small = world.tiny().await;
    inferred(world.infer(&ask(&small), &floats([0.5; 16])).await.0);
    let config = ModelConfig::default().to_bytes();
    let mut manifest = Manifest::of(&config, b"an ONNX file");
    manifest.layers[0].size = 1 << 50;
    world.put(config).await;
    let digest = world.put(manifest.to_bytes()).await.digest;
    let huge = ModelRef { digest, ..small.clone() };
    let failure = failure_of(world.infer(&ask(&huge), &floats([0.5; 16])).await.0);
    assert_eq!(failure.code, FailureCode::OutOfMemory, "{failure:?}");
    assert!(failure.message.contains("1125899906.8 MB"), "{failure:?}");
    inferred(world.infer(&ask(&small), &floats([0.5; 16])).await.0);
    agent.stop().await;
}
