//! A round without training: four devices get the model, send it back, the broker averages.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use link::blobs::Blobs;
use models::dataset::{Examples, idx};
use serde_json::{Value, json};
use tests::process::Process;
use tests::world::World;

use crate::figures::{Times, against_bar, against_limit, heading, mb, ms};

const DEVICES: usize = 4;
const ROUNDS: usize = 20;
const WARM_UP: usize = 2;
/// Bytes beyond three times the model that the broker may take.
const ROOM: u64 = 64_000_000;

/// A size of model, and what a round of it may take.
struct Case {
    name: &'static str,
    /// Pixels across and down: the family `mlp` has 64 weights for each.
    side: u16,
    bar: Duration,
    flower: &'static str,
}

const CASES: [Case; 2] = [
    Case { name: "1 MB", side: 63, bar: Duration::from_millis(20), flower: "33-80 ms, 140 MB" },
    Case { name: "25 MB", side: 313, bar: Duration::from_millis(500), flower: "0.7-1.7 s, 1.6 GB" },
];

pub(crate) async fn measure() {
    for case in CASES {
        measure_case(&case).await;
    }
}

async fn measure_case(case: &Case) {
    heading(&format!("a round of {DEVICES} devices without training, model of {}", case.name));
    let world = World::start().await;
    let data = world.folder().join("data");
    write_data(&data, case.side);
    let mut agents = Vec::new();
    for number in 1..=DEVICES {
        agents.push(world.join(&format!("device-{number}"), Some(("blank", &data))).await);
    }
    let job = json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": WARM_UP + ROUNDS, "evaluate": false,
        "local": {"epochs": 0}, "participation": {"devices": DEVICES, "quorum": DEVICES},
    }});
    let id = world.submit(&job).await;
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let rounds = job["rounds"].as_array().unwrap();
    let mut times = Times::default();
    between_ends(&rounds[WARM_UP - 1..]).for_each(|time| times.push(time));
    let model = rounds[0]["parameters"]["size"].as_u64().unwrap();
    let limit = moving_only(&world, usize::try_from(model).unwrap()).await;
    let median = times.median();
    let bar = format!("{} (Flower {})", ms(case.bar), case.flower);
    against_bar("a round, median of 20", &ms(median), &bar, median <= case.bar);
    against_limit("", median, "the same bytes through the object store", limit);
    let (peak, most) = (world.broker.memory("VmHWM"), 3 * model + ROOM);
    against_bar("the broker's peak memory", &mb(peak), &mb(most), peak <= most);
    let agent = agents.iter().map(|agent: &Process| agent.memory("VmHWM")).max().unwrap();
    println!("  {:<44} {:>12}", "an agent's peak memory", mb(agent));
}

/// From the end of a round to the end of the next: what is between them counts too.
pub(crate) fn between_ends(rounds: &[Value]) -> impl Iterator<Item = Duration> {
    let ended = |round: &Value| round["ended_at"].as_u64().unwrap();
    rounds.windows(2).map(move |pair| Duration::from_millis(ended(&pair[1]) - ended(&pair[0])))
}

/// The same transfers without Dunlin: a model put once, got by all at the same time, put by all.
async fn moving_only(world: &World, size: usize) -> Duration {
    let bytes = Bytes::from(vec![7_u8; size]);
    let mut stores = Vec::new();
    for _ in 0..DEVICES {
        stores.push(Blobs::new(world.client().await));
    }
    let mut times = Times::default();
    for number in 0..ROUNDS {
        let began = Instant::now();
        let model = stores[0].put_named(format!("limit/{number}"), bytes.clone()).await.unwrap();
        let each = stores.iter().enumerate().map(|(device, store)| {
            let (bytes, model) = (bytes.clone(), model.clone());
            async move {
                store.get(&model).await.unwrap();
                let name = format!("limit/{number}/{device}");
                let update = store.put_named(name, bytes).await.unwrap();
                // The broker reads each update once.
                store.get(&update).await.unwrap();
            }
        });
        futures::future::join_all(each).await;
        times.push(began.elapsed());
    }
    times.median()
}

/// Eight black pictures of a size.
fn write_data(folder: &Path, side: u16) {
    std::fs::create_dir(folder).unwrap();
    let pixels = usize::from(side) * usize::from(side);
    let shape = [1, side.into(), side.into()];
    let examples = Examples::pictures(shape, vec![0; 8 * pixels], (0..8).collect());
    let (images, labels) = idx::encode(&examples).unwrap();
    for split in ["train", "t10k"] {
        std::fs::write(folder.join(format!("{split}-images-idx3-ubyte")), &images).unwrap();
        std::fs::write(folder.join(format!("{split}-labels-idx1-ubyte")), &labels).unwrap();
    }
}
