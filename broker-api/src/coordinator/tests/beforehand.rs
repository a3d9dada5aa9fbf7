//! Plans that cannot be carried out are refused when they are asked for, with all that is wrong.

use jobs::device::Presence;
use serde_json::{Value, json};

use super::*;
use crate::error::ApiCode;

fn training(change: impl FnOnce(&mut jobs::spec::TrainSpec)) -> JobSpec {
    let mut spec = train_spec(1, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    change(train);
    spec
}

fn patterns(patterns: &[&str]) -> Vec<String> {
    patterns.iter().map(|pattern| (*pattern).to_owned()).collect()
}

/// A device that was there, and is not any more.
async fn was_there(world: &World, broker: &Broker, name: &str, shape: &[u32]) {
    let mut hello = hello(name);
    hello.datasets[0].shape = shape.to_vec();
    let device = Device::start_with(world, hello, |_| Action::Work).await;
    until("it is known", async || broker.core.fleet.presence(&id(name)) == Presence::Online).await;
    drop(device);
    until("it is away", async || broker.core.fleet.presence(&id(name)) == Presence::Offline).await;
}

/// Where a broker takes jobs over HTTP.
async fn jobs_of(broker: &Broker) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let jobs = format!("http://{}/v1/jobs", listener.local_addr().unwrap());
    tokio::spawn(crate::http::serve(listener, broker.clone(), std::future::pending()));
    jobs
}

/// Over HTTP, with nobody online: what the plan says itself, the round to begin from, patterns, and
/// noise on running statistics, in one answer; the same for a question without a job.
#[tokio::test]
async fn everything_that_is_known_is_refused_at_once() {
    let world = World::new().await;
    let broker = world.broker().await;
    was_there(&world, &broker, "d1", &[1, 8, 8]).await;
    let jobs = jobs_of(&broker).await;
    let plan = json!({"kind": "train", "deadline_ms": 0, "spec": {"model": "resnet8",
        "dataset": "tiny", "rounds": 0, "begin_from": {"job": "nothing"},
        "local": {"frozen": ["stem*", "typo*", "wrong"], "kept_local": ["nrom"],
            "normalization": {"fixed": {"mean": [0, 0], "std": [1, 1]}}},
        "privacy": {"mode": "central", "clip": {"norm": 1}, "noise_multiplier": 1, "delta": 1e-5,
            "epsilon_budget": 8}}});
    let client = reqwest::Client::new();
    for path in [jobs.clone(), format!("{jobs}?dry_run=true")] {
        let answer = client.post(path).json(&plan).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], "invalid_spec", "{problem:#}");
        let errors = problem["errors"].as_array().unwrap();
        let errors: Vec<&str> = errors.iter().map(|error| error.as_str().unwrap()).collect();
        for (words, count) in [
            ("deadline_ms is 0", 1),
            ("spec.rounds is 0", 1),
            ("there is no job nothing", 1),
            ("spec.local.normalization has 2 values of mean", 1),
            ("spec.local.frozen: no parameter has a name like \"typo*\"", 1),
            ("spec.local.frozen: no parameter has a name like", 2),
            ("spec.local.kept_local: no parameter has a name like \"nrom\"", 1),
            ("spec.privacy: noise would spoil", 1),
        ] {
            let found = errors.iter().filter(|error| error.contains(words)).count();
            assert_eq!(found, count, "{words}: {errors:#?}");
            assert!(problem["detail"].as_str().unwrap().contains(words), "{problem:#}");
        }
        assert!(!problem.to_string().contains("work."), "{problem:#}");
    }
    assert_eq!(broker.jobs(10, None).await.unwrap().jobs, []);
}

/// Beside what cannot be read, over HTTP and over NATS: what is known of the rest, each once, and
/// nothing of what is missing or stands for it.
#[tokio::test]
async fn what_can_be_read_is_judged_beside_what_cannot() {
    let world = World::new().await;
    let broker = world.broker().await;
    was_there(&world, &broker, "d1", &[1, 8, 8]).await;
    register(&broker, "mine").await;
    let (jobs, client, nats) =
        (jobs_of(&broker).await, reqwest::Client::new(), world.client().await);
    let no_name = "spec.local.frozen: no parameter has a name like \"typo\"";
    let other_shape = "the model takes examples of shape [1, 2, 2], data set tiny has [1, 8, 8]";
    let noise = json!({"mode": "central", "clip": {"norm": 1}, "noise_multiplier": 1,
        "delta": 1e-5, "epsilon_budget": 8});
    for (selector, spec, expected) in [
        (
            json!(""),
            json!({"model": "mine", "dataset": "tiny", "rounds": "many", "keep_rounds": 0,
                "begin_from": {"job": "nothing"}, "local": {"frozen": ["typo"], "epohcs": 3}}),
            &[
                "spec.rounds: ",
                "spec.local.epohcs: unknown",
                "spec.keep_rounds is 0",
                "there is no job nothing",
                no_name,
                other_shape,
            ][..],
        ),
        (
            json!(3),
            json!({"model": "mine", "dataset": "tiny", "rounds": 1, "evaluate": "broker"}),
            &["selector: 3", "this broker has no data set tiny", other_shape],
        ),
        (
            json!(""),
            json!({"dataset": "none", "rounds": 1, "begin_from": {"job": "nothing"},
                "local": {"frozen": ["typo"]}}),
            &["spec.model: missing", "no device has a data set none", "there is no job nothing"],
        ),
        (
            json!(""),
            json!({"model": "mine", "dataset": "NONE", "rounds": 1, "evaluate": "broker",
                "local": {"frozen": ["typo"]}}),
            &["spec.dataset: ", no_name],
        ),
        (
            json!(""),
            json!({"model": "yours", "rounds": 1}),
            &["spec.dataset: missing", "no model yours is registered"],
        ),
        // The statistics may be what a name that is not known keeps.
        (
            json!(""),
            json!({"model": "resnet8", "dataset": "tiny", "rounds": 1, "privacy": noise,
                "participation": {"devices": 1}, "local": {"kept_locl": ["*norm*"]}}),
            &["spec.local.kept_locl: unknown"],
        ),
    ] {
        let body = json!({"kind": "train", "selector": selector, "spec": spec});
        let answer = client.post(&jobs).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        let problem: Value = answer.json().await.unwrap();
        assert_tells(&problem, expected);
        let mut members = spec;
        members["selector"] = selector;
        let answer = nats.request("jobs.train", members.to_string().into()).await.unwrap();
        let problem: Value = serde_json::from_slice(&answer.payload).unwrap();
        let own = expected.iter().map(|words| words.trim_start_matches("spec."));
        assert_tells(&problem, &own.collect::<Vec<_>>());
    }
    assert_eq!(broker.jobs(10, None).await.unwrap().jobs, []);
}

/// The errors are these, in any order, and no others.
fn assert_tells(problem: &Value, expected: &[&str]) {
    assert_eq!(problem["status"], 400, "{problem:#}");
    let errors = problem["errors"].as_array().unwrap();
    assert_eq!(errors.len(), expected.len(), "{expected:?}: {problem:#}");
    for words in expected {
        let is_it = |error: &&Value| error.as_str().unwrap().starts_with(words);
        assert_eq!(errors.iter().filter(is_it).count(), 1, "{words}: {problem:#}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{words}: {problem:#}");
    }
    assert!(!problem.to_string().contains("placeholder"), "{problem:#}");
}

/// What is said of a registered model does not depend on devices.
#[tokio::test]
async fn a_registered_model_is_looked_into_without_a_device() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "mine").await;
    let spec = training(|train| {
        train.model.name = id("mine");
        train.local.kept_local = patterns(&["*"]);
    });
    let error = broker.check(&spec).await.unwrap_err();
    assert_eq!(error.code, ApiCode::UnknownDataset, "{error}");
    assert!(error.errors[0].contains("no device has a data set tiny"), "{error:?}");
    assert!(error.errors[1].contains("none would be learnt together"), "{error:?}");
    let spec = training(|train| {
        train.model.name = id("yours");
        train.local.frozen = patterns(&["typo"]);
    });
    let error = broker.check(&spec).await.unwrap_err();
    assert_eq!((error.code, error.errors.len()), (ApiCode::UnknownModel, 2), "{error:?}");
}

#[tokio::test]
async fn what_no_device_that_is_known_can_do_is_refused() {
    let world = World::new().await;
    let broker = world.broker().await;
    was_there(&world, &broker, "d1", &[4]).await;
    let flips = training(|train| train.local.augment = vec![jobs::spec::Augment::Flip]);
    let error = broker.check(&flips).await.unwrap_err();
    assert_eq!(error.code, ApiCode::InvalidSpec, "{error}");
    assert!(error.detail.contains("augment is flip: pictures can be changed so"), "{error}");
    // Values of devices that are away may be those of others when the job begins.
    let pooled = training(|train| train.local.normalization = "dataset".parse().unwrap());
    broker.check(&pooled).await.unwrap();
    let _device = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    broker.check(&flips).await.unwrap();
    let error = broker.check(&pooled).await.unwrap_err();
    assert!(error.detail.contains("device d1 declares no mean"), "{error}");
    let selector = "label.site=lab".parse().unwrap();
    broker.check(&JobSpec { selector, ..pooled }).await.unwrap();
}

/// Of two devices that are away nobody knows which comes back: the job is accepted, and looked at
/// again when one of them is there.
#[tokio::test]
async fn what_is_not_known_before_is_found_when_it_begins() {
    let world = World::new().await;
    let broker = world.broker().await;
    was_there(&world, &broker, "d1", &[1, 2, 2]).await;
    was_there(&world, &broker, "d2", &[1, 4, 4]).await;
    let typos = training(|train| train.local.frozen = patterns(&["typo", "*bias", "other"]));
    let job = submit(&broker, typos).await;
    let _device = Device::start(&world, "d1").await;
    let failure = ended(&broker, &job).await.failure.unwrap();
    assert_eq!(failure.code, FailureCode::InvalidSpec, "{failure:?}");
    for words in
        ["a name like \"typo\"", "; spec.local.frozen: no parameter has a name like \"other\""]
    {
        assert!(failure.message.contains(words), "{failure:?}");
    }
}
