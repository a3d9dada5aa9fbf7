//! Devices of other architectures, in an emulator: 64-bit and 32-bit ARM learn and answer beside
//! this machine.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};
use tests::data::Digits;
use tests::process::Process;
use tests::world::{World, answer};

use crate::story::train;

/// How far answers of two architectures may differ, of the largest output. Float32 has 6e-8; the
/// order of sums and fused products, which are not the same everywhere, multiply that by the terms
/// of a sum and the layers, some hundred times here.
const TOLERANCE: f64 = 1e-4;

/// Devices and the architecture that each tells of itself.
const DEVICES: [(&str, &str); 3] =
    [("armv7", "arm"), ("aarch64", "aarch64"), ("native", std::env::consts::ARCH)];

/// The folder with the programs that `scripts/emulated.sh` builds, if it could.
fn programs() -> Option<PathBuf> {
    std::env::var_os("DUNLIN_EMULATED").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_architectures_learn_together_and_answer_alike() {
    let Some(programs) = programs() else {
        eprintln!("agents of other architectures are built and run by make test-emulated");
        return;
    };
    let began = Instant::now();
    let world = World::start().await;
    let digits = Digits::write(world.folder(), DEVICES.len());
    let mut agents = Vec::new();
    for (index, (name, _)) in DEVICES.iter().enumerate() {
        agents.push(start(&world, &programs, name, &digits.share(index + 1)));
    }
    for (name, arch) in DEVICES {
        world.online(name, true).await;
        let device = world.get(&format!("/v1/devices/{name}")).await.body;
        assert_eq!(device["hello"]["facts"]["arch"], arch, "{device:#}");
    }
    eprintln!("joined after {:.1?}", began.elapsed());
    all_of_them_train_one_model(&world).await;
    eprintln!("trained after {:.1?}", began.elapsed());
    for (engine, pictures) in [("native", 20), ("tract", 3)] {
        let furthest = answers_agree(&world, engine, &digits.held_out()[..pictures]).await;
        eprintln!("{engine} answers within {furthest:.1e} of the largest, {:.1?}", began.elapsed());
    }
    for agent in &mut agents {
        assert_eq!(agent.terminate(), Some(0));
    }
}

fn start(world: &World, programs: &Path, name: &str, share: &Path) -> Process {
    let mut command = if name == "native" {
        world.agent_command(name)
    } else {
        let mut command = world.agent_command_of(&programs.join(name), name);
        command.arg("--tract").arg(programs.join(format!("tract-{name}")));
        command
    };
    command.arg("--data").arg(format!("digits={}", share.display()));
    world.run_agent(name, command)
}

/// Two rounds, each with an update of every device, end in one registered model.
async fn all_of_them_train_one_model(world: &World) {
    let job = train(world, "lenet", 2).await;
    let mut names: Vec<&str> = DEVICES.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    let rounds = job["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 2, "{job:#}");
    for round in rounds {
        let updates = round["updates"].as_array().unwrap();
        let devices: Vec<&str> = updates.iter().map(|update| update[0].as_str().unwrap()).collect();
        assert_eq!(devices, names, "{round:#}");
        assert!(updates.iter().all(|update| update[1]["examples"].as_u64() > Some(0)), "{round:#}");
        assert_eq!(round["missing"], json!([]), "{round:#}");
    }
    let models = world.get("/v1/models").await.body;
    let models = models["models"].as_array().unwrap();
    assert_eq!(models.len(), 1, "{models:#?}");
    let model = world.get("/v1/models/lenet/versions/1").await.body;
    assert_eq!(model["config"]["lineage"]["devices"], json!(names), "{model:#}");
    assert_eq!(world.get("/v1/models/lenet/versions/2").await.status, 404);
}

/// Asks an engine of every device about the same pictures; how far the answers are from each other,
/// of the largest output.
async fn answers_agree(world: &World, engine: &str, pictures: &[(PathBuf, u32)]) -> f64 {
    let mut furthest: f64 = 0.0;
    for (picture, _) in pictures {
        let mut answers = Vec::new();
        for (name, _) in DEVICES {
            answers.push(outputs(&ask(world, name, engine, picture).await));
        }
        let native = &answers[DEVICES.len() - 1];
        assert_eq!(native.len(), 10, "{native:?}");
        let largest = native.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
        for (answer, (name, _)) in answers.iter().zip(DEVICES) {
            assert_eq!(answer.len(), native.len(), "{name}");
            for (value, expected) in answer.iter().zip(native) {
                let apart = (value - expected).abs() / largest;
                assert!(apart <= TOLERANCE, "{engine}, {name}: {answer:?}, native: {native:?}");
                furthest = furthest.max(apart);
            }
        }
    }
    furthest
}

/// Asks an engine of one device about a picture.
async fn ask(world: &World, device: &str, engine: &str, picture: &Path) -> Value {
    let path = format!("/v2/models/lenet/infer?selector=device%3D{device}&engine={engine}");
    let request = world.request("POST", &path).header("content-type", "image/png");
    let answer = answer(request.body(std::fs::read(picture).unwrap())).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["device"], device, "{:#}", answer.body);
    assert_eq!(answer.body["engine"], engine, "{:#}", answer.body);
    answer.body
}

fn outputs(answer: &Value) -> Vec<f64> {
    let data = answer["outputs"][0]["data"].to_string();
    let numbers = data.split(['[', ']', ',']).filter(|text| !text.is_empty());
    numbers.map(|text| text.parse().unwrap()).collect()
}
