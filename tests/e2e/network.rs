//! Networks that repeat, delay and reorder what is said.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use serde_json::{Value, json};
use tests::data::write_blank;
use tests::proxy::Proxy;
use tests::world::World;
use tokio::task::JoinHandle;

use crate::story::{fleet, training};
use crate::sums::assert_each_counts_once;

/// Says everything again that is said on these subjects, twice: later, and in another order.
struct Echo {
    heard: Arc<AtomicU64>,
    said: Arc<AtomicU64>,
    saying: JoinHandle<()>,
}

impl Echo {
    async fn of(world: &World, subjects: &[&str]) -> Self {
        let options = async_nats::ConnectOptions::new().no_echo();
        let client = options.connect(world.nats_url()).await.unwrap();
        let mut messages = futures::stream::SelectAll::new();
        for subject in subjects {
            messages.push(client.subscribe((*subject).to_owned()).await.unwrap());
        }
        client.flush().await.unwrap();
        let [heard, said] = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let (hearing, counted) = (heard.clone(), said.clone());
        let saying = tokio::spawn(async move {
            for number in 0.. {
                let Some(message) = messages.next().await else { return };
                hearing.fetch_add(1, Ordering::SeqCst);
                for delay in [number * 37 % 100, 100 + number * 83 % 400] {
                    let (client, message) = (client.clone(), message.clone());
                    let count = counted.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_millis(delay)).await;
                        client.publish(message.subject, message.payload).await.unwrap();
                        count.fetch_add(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Self { heard, said, saying }
    }

    /// Hears no more, and waits until all that was heard was said again. Returns how many messages
    /// that were.
    async fn end(self, world: &World) -> u64 {
        self.saying.abort();
        let [heard, said] = [&self.heard, &self.said];
        let all = async || said.load(Ordering::SeqCst) >= 2 * heard.load(Ordering::SeqCst);
        world.until("everything was said again", all).await;
        heard.load(Ordering::SeqCst)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.saying.abort();
    }
}

const ALL: [&str; 3] = ["offer.*", jobs::subject::REPORTS_ALL, jobs::subject::FLEET_ALL];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_three_times_and_out_of_order_counts_once() {
    let world = World::start().await;
    let folder = world.folder().join("rounds");
    std::fs::create_dir(&folder).unwrap();
    let echo = Echo::of(&world, &ALL).await;
    let options = ["--first", "1", "--count", "4", "--adds", "--delay-ms", "100", "--record"];
    let _devices = world.devices("devices", &[&options[..], &[folder.to_str().unwrap()]].concat());
    for number in 1..=4 {
        world.online(&format!("device-{number:05}"), true).await;
    }
    let job = json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": 20, "local": {"epochs": 0},
        "participation": {"quorum": 4},
    }});
    let id = world.submit(&job).await;
    world.ended(&id).await;
    // Of each device and round an offer, and its end, for training and for evaluation.
    let said = echo.end(&world).await;
    assert!(said >= 20 * 4 * 4, "{said} messages were said again");
    let job = world.job(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let rounds = job["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 20, "none failed");
    assert_each_counts_once(rounds, &folder);
    for round in rounds {
        assert_eq!(round["updates"].as_array().unwrap().len(), 4, "{round:#}");
        assert_eq!(round["evaluations"].as_array().unwrap().len(), 4, "{round:#}");
    }
}

/// The agents' own part: what is offered again is not done again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_do_what_is_offered_three_times_once() {
    let alone = fleet(2).await;
    let quiet = trained(&alone.world).await;
    drop(alone);
    let loud = fleet(2).await;
    let echo = Echo::of(&loud.world, &ALL).await;
    let echoed = trained(&loud.world).await;
    let said = echo.end(&loud.world).await;
    assert!(said >= 12 * 2 * 4, "{said} messages were said again");
    for (quiet, echoed) in quiet.iter().zip(&echoed) {
        assert_eq!(echoed["parameters"]["digest"], quiet["parameters"]["digest"], "{echoed:#}");
        assert_eq!(echoed["moved"], quiet["moved"], "{echoed:#}");
    }
}

/// The rounds of a training of digits.
async fn trained(world: &World) -> Vec<Value> {
    let id = world.submit(&training("lenet", 12)).await;
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let rounds = job["rounds"].as_array().unwrap().clone();
    assert_eq!(rounds.len(), 12);
    rounds
}

/// Bytes a second of each device.
const SLOW: u32 = 1_000_000;
/// Three of them are longer than a busy machine lets a process wait, and shorter than what a model
/// takes on its way.
const HEARTBEAT_MS: u32 = 1000;
/// Bytes of all that is said beside models and updates, at most.
const MESSAGES: u64 = 300_000;

/// A model of 5 MB over 1 MB a second: nobody is taken for lost while its bytes travel, and
/// nothing travels twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_way_takes_its_time_and_nothing_twice() {
    let world = World::start().await;
    let pictures = world.folder().join("blank");
    write_blank(&pictures, 140);
    let client = world.client().await;
    let mut offers = client.subscribe("offer.*").await.unwrap();
    client.flush().await.unwrap();
    let proxies = [(); 2].map(|()| Proxy::slow(world.nats_port(), SLOW));
    let mut agents = Vec::new();
    for (number, proxy) in proxies.iter().enumerate() {
        let name = format!("device-{}", number + 1);
        let mut command = world.agent_command_via((&proxy.url(), HEARTBEAT_MS), &name);
        command.arg("--data").arg(format!("blank={}", pictures.display()));
        agents.push(world.run_agent(&name, command));
        world.online(&name, true).await;
    }
    let job = json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "blank", "rounds": 2, "evaluate": false,
        "participation": {"quorum": 2},
    }});
    let id = world.submit(&job).await;
    let job = world.ended(&id).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let rounds = job["rounds"].as_array().unwrap();
    let model = rounds[0]["parameters"]["size"].as_u64().unwrap();
    assert_eq!(rounds.len(), 2);
    for round in rounds {
        assert_eq!(round["updates"].as_array().unwrap().len(), 2, "{round:#}");
    }
    let mut trainings = 0;
    while let Some(offer) = offers.next().now_or_never().flatten() {
        let offer: Value = serde_json::from_slice(&offer.payload).unwrap();
        trainings += usize::from(offer["type"] == "task");
    }
    assert_eq!(trainings, 4, "each is offered once");
    for proxy in &proxies {
        let (up, down) = proxy.passed();
        assert!(up < 2 * model + MESSAGES, "{up} bytes went up, two updates have {}", 2 * model);
        assert!(down < 2 * model + MESSAGES, "{down} bytes came down, two models");
    }
}
