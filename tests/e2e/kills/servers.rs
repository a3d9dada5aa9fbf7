//! The NATS server that leads what is stored of trainings is killed, and with it the broker that
//! does not own the training. Both are started again when the job has gone on without them.

use std::time::{Duration, Instant};

use tests::process::{PATIENCE, Process};
use tests::writes::{Stored, Writes};

use super::{ON_ITS_WAY, Scene, TRIES, adding};
use crate::sums::Sums;

/// How long no majority of the servers is there: longer than a broker waits for one answer.
const WITHOUT_MAJORITY: Duration = Duration::from_secs(7);

/// The phases in which a training waits for devices, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_waits_on_without_the_leader_of_its_store() {
    let mut scene = Scene::start_with_nobody().await;
    let (id, mut writes) = scene.submit(&adding("blank", 3, 4)).await;
    let mut devices: Vec<Process> = Vec::new();
    kill_both(&mut scene, &mut writes, "preparing").await;
    devices.push(scene.devices(1..=3, &["--adds"]).await);
    kill_both(&mut scene, &mut writes, "selecting").await;
    devices.push(scene.devices(4..=4, &["--fails"]).await);
    kill_both(&mut scene, &mut writes, "resting").await;
    drop(devices.pop());
    devices.push(scene.devices(4..=4, &["--adds"]).await);
    scene.succeeded(&id, "blank", Sums::Plain).await;
}

/// The phases in which devices and brokers work, and registering, in which a majority of the
/// servers is killed: the result is there all the same, and once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_works_on_without_the_leader_of_its_store() {
    let mut scene = Scene::start().await;
    let _devices = scene.devices(1..=3, &["--adds", "--side", "128", "--delay-ms", "150"]).await;
    let (id, mut writes) = scene.submit(&adding("blank", 24, 3)).await;
    for phase in ["collecting", "aggregating", "evaluating"] {
        kill_both(&mut scene, &mut writes, phase).await;
    }
    let before = writes.find(|stored| stored.phase() == "registering").await;
    scene.seen.push(before.expect("it is registered"));
    for server in [0, 1] {
        scene.cluster.kill_server(server);
    }
    tokio::time::sleep(WITHOUT_MAJORITY).await;
    for server in [0, 1] {
        scene.cluster.start_server(server);
    }
    scene.succeeded(&id, "blank", Sums::Plain).await;
}

/// The stages of a secure aggregation.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_sum_is_exact_without_the_leader_of_its_store() {
    let mut scene = Scene::start().await;
    let _devices = scene.devices(1..=5, &["--masks", "--delay-ms", "250"]).await;
    let mut job = adding("blank", 12, 4);
    let clip = 8.0;
    job["spec"]["secure_aggregation"] = serde_json::json!({"clip": clip, "weight_max": 8});
    let (id, mut writes) = scene.submit(&job).await;
    for stage in ["collecting", "share", "mask", "unmask"] {
        kill_both(&mut scene, &mut writes, stage).await;
    }
    scene.succeeded(&id, "blank", Sums::Masked { clip }).await;
}

/// Kills both as soon as this phase is stored, and starts them again when the training was written
/// since by those who are left. It counts where no other phase was written until then; a phase that
/// is over too soon is tried again.
async fn kill_both(scene: &mut Scene, writes: &mut Writes, phase: &str) {
    for _ in 0..TRIES {
        let leader = leader(scene).await;
        let any = writes.next().await.expect("the job goes on");
        let bystander = scene.broker(any.owner().0).await.expect("it has an owner").other();
        writes.forget();
        let before = writes.find(|stored| stored.phase() == phase).await;
        let before = before.unwrap_or_else(|| panic!("the job ended before it was {phase}"));
        scene.cluster.kill_server(leader);
        let next = writes.within(ON_ITS_WAY).await;
        scene.cluster.kill_broker(bystander);
        scene.names[bystander as usize] = None;
        let at = |stored: &Stored| (stored.round(), stored.phase().to_owned());
        let hit = next.is_none_or(|next| at(&next) == at(&before));
        goes_on(writes, &before).await;
        scene.seen.push(before);
        scene.cluster.start_server(leader);
        scene.cluster.start_broker(bystander);
        scene.cluster.ready(bystander).await;
        if hit {
            return;
        }
    }
    panic!("{TRIES} times the phase was over before the leader was killed {phase}");
}

/// Waits until the training was written twice more: then the first of these writes was stored.
async fn goes_on(writes: &mut Writes, before: &Stored) {
    let again = writes.find(|stored| stored.write() >= before.write() + 2).await;
    assert!(again.is_some(), "the job ended {}", before.phase());
}

/// The server that leads what is stored of trainings, counted from 0.
async fn leader(scene: &Scene) -> usize {
    let begun = Instant::now();
    loop {
        if let Some(leader) = scene.cluster.leader("KV_trainings").await {
            return leader;
        }
        assert!(begun.elapsed() < PATIENCE, "nobody leads what is stored of trainings");
    }
}
