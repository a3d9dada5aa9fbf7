//! Devices are killed in the stages of a secure aggregation, and come back without a memory of it.

use serde_json::json;
use tests::world::World;
use tests::writes::Stored;

use super::{TRIES, adding, device, names, registered, submit, succeeded};
use crate::sums::{Sums, assert_result};

const KILLED: &str = "device-00006";

/// Who drops out before its masked update was there does not count, who does later does; the sum is
/// that of those who count. A kill counts where the stage ends without the device's word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_killed_at_a_stage_drops_out() {
    let world = World::start().await;
    let folder = world.folder().join("rounds");
    std::fs::create_dir(&folder).unwrap();
    let record = folder.to_str().unwrap();
    let steady = ["--first", "1", "--count", "5", "--masks", "--record", record];
    let _steady = world.devices("steady", &steady);
    let killed = ["--first", "6", "--masks", "--delay-ms", "400"];
    let mut process = world.devices("killed", &killed);
    for number in 1..=6 {
        world.online(&device(number), true).await;
    }
    let mut job = adding("blank", 8, 5);
    // A round begins when it is there again.
    job["spec"]["participation"]["devices"] = json!(6);
    let clip = 8.0;
    job["spec"]["secure_aggregation"] = json!({"clip": clip, "weight_max": 8});
    let (id, mut writes) = submit(&world, &job).await;
    let mut hits = Vec::new();
    for (stage, said) in
        [("collecting", "keys"), ("share", "shares"), ("mask", "masked"), ("unmask", "unmaskings")]
    {
        let mut tries = 0;
        loop {
            assert!(tries < TRIES, "it was not killed in stage {stage}");
            tries += 1;
            let is_asked = |stored: &Stored| {
                let open = stored.devices().1.iter().any(|it| it == KILLED);
                stored.phase() == stage && stored.is_partway() && open
            };
            let before = writes.find(is_asked).await.expect("the job goes on");
            process.kill();
            process = world.devices("killed", &killed);
            let at = (before.round(), stage);
            let is_over = |stored: &Stored| (stored.round(), stored.phase()) != at;
            let after = writes.find(is_over).await.expect("the job goes on");
            let names = names(&after.0["machine"]["round"]["exchange"], said);
            if stage == "collecting" || !names.iter().any(|it| it == KILLED) {
                hits.push(at);
                break;
            }
        }
    }
    let rounds = succeeded(&world, &id).await;
    assert_result(&rounds, &folder, Sums::Masked { clip }, &registered(&world, "blank").await);
    for (number, stage) in hits {
        let round = rounds.iter().find(|round| round["round"] == number).unwrap();
        assert!(round["failure"].is_null(), "{round:#}");
        let counts = names(round, "updates").iter().any(|it| it == KILLED);
        match stage {
            "share" | "mask" => assert!(!counts, "{stage}: {round:#}"),
            "unmask" => assert!(counts, "{stage}: {round:#}"),
            // It comes back with other keys, in time or not.
            _ => {}
        }
    }
    drop(process);
}
