//! The broker that owns a training is killed, and the other one takes its place.

use super::{Scene, TRIES, adding};
use crate::sums::Sums;

/// Every phase but those that are over in no time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_broker_goes_on_in_every_phase() {
    let mut scene = Scene::start_with_nobody().await;
    let (id, mut writes) = scene.submit(&adding("blank", 5, 4)).await;
    assert!(scene.kill_owner(&mut writes, "preparing").await);
    let _steady = scene.devices(1..=3, &["--adds", "--delay-ms", "50"]).await;
    assert!(scene.kill_owner(&mut writes, "selecting").await);
    let failing = scene.devices(4..=4, &["--fails"]).await;
    assert!(scene.kill_owner(&mut writes, "resting").await);
    drop(failing);
    let _slow = scene.devices(4..=4, &["--adds", "--delay-ms", "250"]).await;
    for phase in ["collecting", "evaluating"] {
        scene.kill_owner_partway(&mut writes, phase).await;
    }
    let rounds = scene.succeeded(&id, "blank", Sums::Plain).await;
    let made = rounds.iter().filter(|round| round["failure"].is_null());
    assert!(made.clone().all(|round| round["updates"].as_array().unwrap().len() == 4));
    assert_eq!(made.count(), 5);
}

/// The phases in which only the broker works, which is longer with more parameters: aggregating,
/// registering, and telling that the job is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_broker_finishes_what_was_begun() {
    let mut scene = Scene::start().await;
    let _devices = scene.devices(1..=3, &["--adds", "--side", "256"]).await;
    let mut jobs = 0;
    for phase in ["aggregating", "registering", "ended"] {
        let mut hit = false;
        while !hit {
            assert!(jobs < 4 * TRIES, "no owner was killed {phase}");
            jobs += 1;
            let name = format!("job-{jobs}");
            let mut job = adding("blank", 2, 3);
            job["spec"]["register_as"] = name.clone().into();
            let (id, mut writes) = scene.submit(&job).await;
            hit = scene.kill_owner(&mut writes, phase).await;
            scene.succeeded(&id, &name, Sums::Plain).await;
            scene.seen.clear();
        }
    }
}

/// The stages of a secure aggregation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_broker_goes_on_in_every_stage() {
    let mut scene = Scene::start().await;
    let masks = ["--masks", "--side", "128", "--delay-ms"];
    let _steady = scene.devices(1..=4, &[&masks[..], &["50"]].concat()).await;
    let _slow = scene.devices(5..=5, &[&masks[..], &["250"]].concat()).await;
    let mut job = adding("blank", 12, 4);
    let clip = 8.0;
    job["spec"]["secure_aggregation"] = serde_json::json!({"clip": clip, "weight_max": 8});
    let (id, mut writes) = scene.submit(&job).await;
    for stage in ["collecting", "share", "mask", "unmask"] {
        scene.kill_owner_partway(&mut writes, stage).await;
    }
    assert!(scene.kill_owner(&mut writes, "aggregating").await);
    scene.succeeded(&id, "blank", Sums::Masked { clip }).await;
}
