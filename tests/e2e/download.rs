//! Parameters that travel to devices with fewer bits.

use serde_json::Value;

use crate::story::{assert_problem, fleet, training};

const ROUNDS: u32 = 6;

/// Real agents learn the digits from parameters of 8 bits as they do from exact ones, for a third
/// of the bytes, and nothing of it stays in the object store.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_learnt_from_rounded_parameters() {
    let fleet = fleet(2).await;
    let world = &fleet.world;
    let mut jobs = Vec::new();
    for (update, download) in [("plain", "plain"), ("float16", "int8")] {
        let mut job = training("lenet", ROUNDS);
        job["spec"]["update"]["encoding"] = update.into();
        job["spec"]["download"] = download.into();
        let id = world.submit(&job).await;
        let job = world.ended(&id).await;
        assert_eq!(job["state"], "succeeded", "{job:#}");
        jobs.push(job);
    }
    let (exact, rounded) = (&jobs[0]["rounds"], &jobs[1]["rounds"]);
    let (before, after) = (accuracy(exact), accuracy(rounded));
    assert!(before > 0.8 && after > before - 0.05, "{before} and {after}");
    let (before, after) = (bytes_down(exact), bytes_down(rounded));
    assert!(after < before / 3, "{before} and {after}");

    let kept = ["encoded/", "parameters/", "update/"];
    let needed = |name: &String| kept.iter().any(|kept| name.starts_with(kept));
    let gone = async || !world.blobs().await.iter().any(needed);
    world.until("what only the trainings needed is gone", gone).await;

    let mut job = training("lenet", ROUNDS);
    job["spec"]["download"] = "int8".into();
    let refused = world.post("/v1/jobs", &job).await;
    assert_problem(&refused, 400, "invalid_spec");
    assert!(refused.body.to_string().contains("spec.download is int8"), "{refused:?}");
}

fn accuracy(rounds: &Value) -> f64 {
    let last = rounds.as_array().unwrap().last().unwrap();
    let (mut right, mut all) = (0.0, 0.0);
    for entry in last["evaluations"].as_array().unwrap() {
        let examples = entry[1]["examples"].as_f64().unwrap();
        right += examples * entry[1]["accuracy"].as_f64().unwrap();
        all += examples;
    }
    right / all
}

fn bytes_down(rounds: &Value) -> u64 {
    rounds.as_array().unwrap().iter().map(|round| round["moved"]["down"].as_u64().unwrap()).sum()
}
