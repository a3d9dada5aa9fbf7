//! A real agent is killed while it stores its update for a private mean: what a round comes to is that
//! mean and noise, in which nobody is twice or not at all, and each round is paid for once.

use async_nats::jetstream::object_store::ObjectStore;
use models::params::Parameters;
use models::train::{Sgd, Trainer};
use serde_json::{Value, json};
use tests::world::World;
use tokio::io::AsyncReadExt as _;

use super::agents::{AGENTS, Agents, KILLED, job};
use super::transfers::{Far, Moment};
use super::{TRIES, succeeded};

/// Pixels across and down.
const SIDE: u16 = 48;
/// No update is longer, and none so short that it hides in the noise.
const NORM: f64 = 1.0;
/// So little that the mean can be told from one with an update more or less.
const NOISE_MULTIPLIER: f64 = 0.0015;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_in_a_private_round_counts_once() {
    let mut fleet = Agents::start(SIDE, 8).await;
    let onnx = models::zoo::build("mlp", [1, SIDE.into(), SIDE.into()], 10, 7).unwrap();
    let answer = fleet.world.register("start", onnx.clone()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let mut far = Far::of(&mut fleet).await;
    for number in 1..=TRIES {
        let mut job = job("start", &format!("private-{number}"));
        let spec = &mut job["spec"];
        (spec["rounds"], spec["evaluate"]) = (json!(2), json!(false));
        spec["participation"]["devices"] = json!(AGENTS);
        spec["privacy"] = json!({"mode": "central", "clip": {"norm": NORM},
            "noise_multiplier": NOISE_MULTIPLIER, "delta": 1e-5, "epsilon_budget": 1e6});
        let id = fleet.world.submit(&job).await;
        let task = far.offered(1).await;
        let size = of_model(&onnx).to_safetensors().len() as u64;
        let is_hit = far.kill_at(Moment::Storing, &mut fleet, (&task, size)).await;
        far.start_again(&mut fleet).await;
        let round = first_round(&fleet.world, &id).await;
        // What it was made of is there until the next one is over, which waits for the slow agent.
        let blobs = Stored::of(&fleet.world).await;
        let result = blobs.parameters(&round["parameters"]).await;
        let mut updates = Vec::new();
        for update in round["updates"].as_array().unwrap() {
            updates.push(blobs.parameters(&update[1]["parameters"]).await);
        }
        assert_eq!(updates.len(), AGENTS, "{round:#}");
        assert_mean_with_noise(&of_model(&onnx), &updates, &result);
        let rounds = succeeded(&fleet.world, &id).await;
        for (paid, round) in (1..).zip(&rounds) {
            assert_eq!(round["privacy"]["rounds"], paid, "{round:#}");
        }
        if is_hit {
            let counted = &round["updates"][KILLED - 1][1]["parameters"]["name"];
            assert_ne!(*counted, format!("update/{id}/1/device-{KILLED}/{}", task.attempt));
            return;
        }
    }
    panic!("{TRIES} times the update was stored before the agent was killed");
}

/// A job's first round, as soon as it has ended.
async fn first_round(world: &World, id: &str) -> Value {
    let mut round = Value::Null;
    let has_ended = async || {
        round = world.job(id).await["rounds"][0].clone();
        !round.is_null()
    };
    world.until("the first round has ended", has_ended).await;
    round
}

/// What is in the object store.
struct Stored(ObjectStore);

impl Stored {
    async fn of(world: &World) -> Self {
        let context = async_nats::jetstream::new(world.client().await);
        Self(context.get_object_store("blobs").await.unwrap())
    }

    async fn parameters(&self, blob: &Value) -> Parameters {
        let mut bytes = Vec::new();
        let mut object = self.0.get(blob["name"].as_str().unwrap()).await.unwrap();
        object.read_to_end(&mut bytes).await.unwrap();
        Parameters::from_safetensors(&bytes).unwrap()
    }
}

fn of_model(onnx: &[u8]) -> Parameters {
    let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    Trainer::new(onnx, sgd).unwrap().parameters()
}

/// By what parameters differ.
fn moved(from: &Parameters, to: &Parameters) -> Vec<f64> {
    let values = |of: &Parameters| of.items().iter().flat_map(|it| it.values.clone()).collect();
    let (from, to): (Vec<f32>, Vec<f32>) = (values(from), values(to));
    to.iter().zip(&from).map(|(to, from)| f64::from(*to) - f64::from(*from)).collect()
}

/// What is left of the result when each update was taken off once is noise, and lies along none of
/// them.
#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn assert_mean_with_noise(base: &Parameters, updates: &[Parameters], result: &Parameters) {
    let count = updates.len() as f64;
    let deviation = NOISE_MULTIPLIER * NORM / count;
    let moves: Vec<Vec<f64>> = updates.iter().map(|update| moved(base, update)).collect();
    let mut noise = moved(base, result);
    for (at, value) in noise.iter_mut().enumerate() {
        *value -= moves.iter().map(|moved| moved[at]).sum::<f64>() / count;
    }
    for moved in &moves {
        let length = product(moved, moved).sqrt();
        assert!(length < NORM && length / count > 12.0 * deviation, "an update is {length} long");
        let along = product(&noise, moved) / length;
        assert!(along.abs() < 6.0 * deviation, "{along} of {length} is too much or too little");
    }
    let found = (product(&noise, &noise) / noise.len() as f64).sqrt();
    assert!((0.9..1.1).contains(&(found / deviation)), "noise of deviation {found}");
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
