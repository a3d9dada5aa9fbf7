//! The broker that does not own a training is killed while the other one finishes it: that one goes
//! on alone, and the one that was killed finds the job over when it is back.

use tests::writes::Writes;

use super::{ON_ITS_WAY, Scene, TRIES, adding};
use crate::sums::Sums;

/// In the other phases the server that leads the store is killed with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_owner_finishes_without_the_other_broker() {
    let mut scene = Scene::start().await;
    let _devices = scene.devices(1..=3, &["--adds", "--side", "128"]).await;
    let mut jobs = 0;
    for phase in ["registering", "ended"] {
        let mut hit = false;
        while !hit {
            assert!(jobs < 2 * TRIES, "the other broker was not killed {phase}");
            jobs += 1;
            let name = format!("job-{jobs}");
            let mut job = adding("blank", 2, 3);
            job["spec"]["register_as"] = name.clone().into();
            let (id, mut writes) = scene.submit(&job).await;
            hit = kill_bystander(&mut scene, &mut writes, phase).await;
            scene.succeeded(&id, &name, Sums::Plain).await;
            scene.seen.clear();
        }
    }
}

/// Kills it as soon as this phase is stored, and starts it again when the owner, which stays the same,
/// has finished. It counts where nothing was written until then but this phase.
async fn kill_bystander(scene: &mut Scene, writes: &mut Writes, phase: &str) -> bool {
    let begun = writes.find(|stored| !stored.owner().0.is_empty()).await;
    let begun = begun.expect("it has an owner");
    let (name, term) = begun.owner();
    let Some(owner) = scene.broker(name).await else { return false };
    let bystander = owner.other();
    let Some(before) = writes.find(|stored| stored.phase() == phase).await else { return false };
    scene.cluster.kill_broker(bystander);
    let next = tokio::time::timeout(ON_ITS_WAY, writes.next()).await;
    scene.names[bystander as usize] = None;
    scene.seen.push(before);
    let hit = match &next {
        Err(_) => true,
        Ok(next) => next.as_ref().is_some_and(|next| next.phase() == phase),
    };
    if !matches!(next, Ok(None)) {
        let other = writes.find(|stored| stored.owner().1 != term).await;
        assert!(other.is_none(), "another broker has taken over: {other:?}");
    }
    scene.cluster.start_broker(bystander);
    scene.cluster.ready(bystander).await;
    scene.cluster.speak_to(bystander);
    hit
}
