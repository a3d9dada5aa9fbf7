//! Where updates are until the broker has read them.

use crate::story::{fleet, training};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use futures::{FutureExt as _, StreamExt as _};
use tests::world::World;

const ROUNDS: usize = 3;
const DESCRIPTIONS: &str = "$O.blobs.M.";

/// Updates that lie on both devices.
fn held_by(world: &World) -> usize {
    let folder = |number| world.folder().join(format!("state-device-{number}/held"));
    let files = |number| std::fs::read_dir(folder(number)).unwrap().count();
    files(1) + files(2)
}

/// Real agents keep their updates until the broker asks for them, or store them, as the job says; what
/// is learnt is the same to the last bit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_stay_on_their_devices_or_are_stored() {
    let fleet = fleet(2).await;
    let world = &fleet.world;
    let client = world.client().await;
    let mut described = client.subscribe(format!("{DESCRIPTIONS}>")).await.unwrap();
    client.flush().await.unwrap();
    let mut learnt = Vec::new();
    for transfer in ["direct", "stored"] {
        let mut job = training("lenet", u32::try_from(ROUNDS).unwrap());
        job["spec"]["transfer"] = transfer.into();
        job["spec"]["register_as"] = transfer.into();
        let job = world.ended(&world.submit(&job).await).await;
        assert_eq!(job["state"], "succeeded", "{job:#}");
        let rounds = job["rounds"].as_array().unwrap();
        let counted = rounds.iter().flat_map(|round| round["updates"].as_array().unwrap());
        let held = counted.clone().filter(|update| update[1]["held"] == true).count();
        assert_eq!(counted.count(), 2 * ROUNDS);
        // On a busy machine a device may find its way too slow, and store.
        assert_eq!(held > 0, transfer == "direct", "{held} are held");
        client.flush().await.unwrap();
        let mut stored = 0;
        while let Some(Some(message)) = described.next().now_or_never() {
            let name = URL_SAFE.decode(message.subject[DESCRIPTIONS.len()..].as_bytes()).unwrap();
            stored += usize::from(name.starts_with(b"update/"));
        }
        assert_eq!(stored, 2 * ROUNDS - held, "{transfer}");
        world.until("devices hold nothing of it any more", async || held_by(world) == 0).await;
        learnt.push(rounds.last().unwrap()["parameters"]["digest"].clone());
    }
    assert!(learnt[0].is_string() && learnt[0] == learnt[1], "{learnt:?}");
}
