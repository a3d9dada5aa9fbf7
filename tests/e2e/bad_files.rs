//! Files that are not what they should be: models, data sets, a full disk.

use std::process::Command;

use models::onnx::{
    self, AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto,
};
use serde_json::json;
use tests::data::shared;
use tests::untested::not_tested;
use tests::world::World;

use crate::story::{assert_problem, fleet, training};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_files_that_are_none_are_refused() {
    let world = World::start().await;
    let good = models::zoo::build("mlp", [1, 8, 8], 10, 7).unwrap();
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 26454\n";
    for (file, word) in [
        (pointer.to_vec(), "Git-LFS"),
        (good[..good.len() / 2].to_vec(), "end early"),
        (b"\x89PNG\r\n\x1a\n".to_vec(), "PNG"),
        (b"no model at all".to_vec(), "ONNX"),
    ] {
        let answer = world.register("m", file).await;
        assert_problem(&answer, 422, "invalid_model");
        let text = answer.body.to_string();
        assert!(text.contains(word), "{text} lacks {word}");
    }
    if let Some(path) = shared("data/negative/mnist-8.lfs-pointer.onnx") {
        let answer = world.register("m", std::fs::read(path).unwrap()).await;
        assert_problem(&answer, 422, "invalid_model");
        assert!(answer.body["detail"].as_str().unwrap().contains("Git-LFS"));
    }
    assert_problem(&world.get("/v1/models/m").await, 404, "unknown_model");
}

/// A model of these nodes and constants for examples of `[1, 8, 8]`.
fn model_of(node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> Vec<u8> {
    let graph = GraphProto {
        name: "g".to_owned(),
        node,
        initializer,
        input: vec![ValueInfoProto::batched("x", "n", &[1, 8, 8])],
        output: vec![ValueInfoProto::batched("y", "n", &[1, 8, 8])],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { version: Some(13), ..Default::default() }];
    ModelProto { ir_version: Some(8), opset_import, graph: Some(graph), ..Default::default() }
        .to_bytes()
}

/// A model that adds the sum of a constant with these extents.
fn with_a_constant(extents: &[i64]) -> Vec<u8> {
    let sum = NodeProto::new("sum", "ReduceSum", &["filled"], &["all"]);
    let nodes = vec![
        NodeProto::new("fill", "ConstantOfShape", &["extents"], &["filled"]),
        sum.with(vec![AttributeProto::int("keepdims", 0)]),
        NodeProto::new("add", "Add", &["x", "all"], &["y"]),
    ];
    model_of(nodes, vec![TensorProto::from_i64("extents", extents)])
}

/// A convolution with so wide a border.
fn with_a_border(pads: i64) -> Vec<u8> {
    let conv = NodeProto::new("conv", "Conv", &["x", "w"], &["y"]);
    let conv = conv.with(vec![AttributeProto::ints("pads", &[pads; 4])]);
    model_of(vec![conv], vec![TensorProto::from_f32("w", &[1, 1, 3, 3], &[1.0; 9])])
}

/// Graphs of a few bytes that ask for more memory than a process can have, or than it should.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_bounds_ends_no_broker() {
    let mut world = World::start().await;
    for (model, word) in [
        (with_a_border(1 << 22), "MiB of memory"),
        (with_a_constant(&[1 << 15, 1 << 15]), "failed to allocate"),
    ] {
        let answer = world.register("m", model).await;
        assert_problem(&answer, 422, "invalid_model");
        let text = answer.body["detail"].as_str().unwrap();
        assert!(text.contains(word), "{text}");
    }
    for model in [with_a_border(1), with_a_constant(&[2, 3])] {
        assert_eq!(world.register("m", model).await.status, 201);
    }
    assert!(!world.broker.has_ended(), "{}", world.broker.log());
}

/// An operator that cannot be trained is named with its node when it is asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_trained_is_said_before_training() {
    let fleet = fleet(1).await;
    let world = &fleet.world;
    let good = models::zoo::build("mlp", [1, 8, 8], 10, 7).unwrap();
    let mut model = onnx::parse(&good).unwrap();
    let graph = model.graph.as_mut().unwrap();
    let relu = graph.node.iter_mut().find(|node| node.op_type == "Relu").unwrap();
    (relu.op_type, relu.name) = ("Softsign".to_owned(), "odd-one".to_owned());
    assert_eq!(world.register("odd", model.to_bytes()).await.status, 201);
    let other = models::zoo::build("lenet", [3, 32, 32], 10, 7).unwrap();
    assert_eq!(world.register("other", other).await.status, 201);
    for (name, code, words) in [
        ("odd", "unsupported_operator", ["Softsign", "odd-one"]),
        ("other", "shape_mismatch", ["[3, 32, 32]", "[1, 8, 8]"]),
    ] {
        let answer = world.post("/v1/jobs", &training(name, 2)).await;
        assert_problem(&answer, 422, code);
        let text = answer.body["detail"].as_str().unwrap();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    }
    for (what, patterns, words) in [
        ("frozen", json!(["classes.*", "stem*"]), "\"stem*\"; the model's are classes.bias"),
        ("kept_local", json!(["*norm*"]), "\"*norm*\"; the model's are classes.bias"),
        ("kept_local", json!(["*"]), "none would be learnt together"),
        ("frozen", json!(["*"]), "none would be learnt together"),
    ] {
        let mut job = training("mlp", 2);
        job["spec"]["local"][what] = patterns;
        let answer = world.post("/v1/jobs", &job).await;
        assert_problem(&answer, 400, "invalid_spec");
        let text = answer.body["detail"].as_str().unwrap();
        assert!(text.contains(what) && text.contains(words), "{text}");
    }
}

/// A step size that no training survives: the devices say so, the job fails, all live on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_training_that_diverges_fails_with_the_devices_named() {
    let fleet = fleet(2).await;
    let mut job = training("mlp", 3);
    job["spec"]["local"]["learning_rate"] = json!(1e30);
    let id = fleet.world.submit(&job).await;
    let job = fleet.world.ended(&id).await;
    assert_eq!(job["state"], "failed", "{job:#}");
    let missing = job["rounds"][0]["missing"].as_array().unwrap();
    assert_eq!(missing.len(), 2, "{job:#}");
    for (entry, name) in missing.iter().zip(["device-1", "device-2"]) {
        assert_eq!((&entry[0], &entry[1]["code"]), (&json!(name), &json!("diverged")), "{job:#}");
    }
    let id = fleet.world.submit(&training("mlp", 1)).await;
    assert_eq!(fleet.world.ended(&id).await["state"], "succeeded");
}

/// Data sets that cannot be used end the agent at its start, with the file named.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_data_set_ends_the_agent_with_a_reason() {
    let world = World::start().await;
    let cifar10 = |labels: &[u8]| -> Vec<u8> {
        labels.iter().flat_map(|label| [vec![*label], vec![7; 3072]].concat()).collect()
    };
    let cases: [(&str, Vec<u8>, &str); 4] = [
        ("data_batch_1.bin", cifar10(&[1, 77]), "label 77"),
        ("data_batch_1.bin", Vec::new(), "no example"),
        ("data_batch_1.bin", cifar10(&[1])[..3000].to_vec(), "3073"),
        ("notes.txt", b"nothing".to_vec(), "IDX"),
    ];
    for (number, (file, bytes, word)) in cases.into_iter().enumerate() {
        let name = format!("broken-{number}");
        let folder = world.folder().join(&name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join(file), bytes).unwrap();
        let mut command = world.agent_command(&name);
        command.arg("--data").arg(format!("pictures={}", folder.display()));
        let mut agent = world.run_agent(&name, command);
        let code = agent.ended(tests::process::PATIENCE);
        assert_ne!(code, Some(0), "{}", agent.log());
        assert!(agent.log().contains(word), "{} lacks {word}", agent.log());
    }
}

/// The disk of one device is full: it says so, the others finish the round, and it lives on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_on_a_device_is_named() {
    let fleet = fleet(1).await;
    let world = &fleet.world;
    let digits = tests::data::Digits::write(&world.folder().join("again"), 2);
    // A disk of its own, without room for a file, in a mount namespace that ends with the agent.
    let state = world.folder().join("state-device-2");
    std::fs::create_dir(&state).unwrap();
    let script = r#"mount -t tmpfs -o size=32k none "$0" || exit 1
        cat /dev/zero 2> /dev/null > "$0/ballast"
        exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(&state);
    if !command.args(["true"]).status().is_ok_and(|status| status.success()) {
        not_tested("this system does not let users mount");
        return;
    }
    let agent = world.agent_command("device-2");
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(&state);
    command.arg(agent.get_program()).args(agent.get_args());
    command.arg("--data").arg(format!("digits={}", digits.share(2).display()));
    let mut agent = world.run_agent("device-2", command);
    world.online("device-2", true).await;
    let id = world.submit(&training("lenet", 1)).await;
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let round = &job["rounds"][0];
    assert_eq!(round["missing"][0][0], "device-2", "{round:#}");
    assert_eq!(round["missing"][0][1]["code"], "disk_full", "{round:#}");
    let device = world.get("/v1/devices/device-2").await.body;
    assert_eq!(device["presence"], "online", "{}", agent.log());
    assert_eq!(agent.terminate(), Some(0));
}
