//! A real agent is killed on the way: while it downloads what a round begins with, while it stores
//! its update, and between that and its report. Its way is slow, so each of these lasts, and the
//! bytes that have passed tell that it was hit. A job of which nobody is killed tells to the last bit
//! what each round has to come to.

use std::collections::BTreeSet;

use async_nats::Subscriber;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use futures::StreamExt as _;
use jobs::report::{ReportBody, TaskReport};
use jobs::spec::{Offer, Purpose, TaskId};
use jobs::wire;
use serde_json::{Value, json};
use tests::process::{PATIENCE, Process};
use tests::proxy::Proxy;
use tests::world::World;

use super::agents::{AGENTS, Agents, KILLED, data, heard, listen};
use super::{TRIES, names, succeeded};

/// Bytes a second of the one that is killed.
const RATE: u32 = 2_000_000;
/// Its heartbeats wait behind an update's chunk.
const HEARTBEAT_MS: u32 = 1000;

/// When an agent is killed; in the round of the same place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moment {
    Downloading,
    Storing,
    /// Its update is stored, and what `scaffold` wants beside it is not.
    Stored,
}

const MOMENTS: [Moment; 3] = [Moment::Downloading, Moment::Storing, Moment::Stored];

/// The one that is killed, at the end of its way.
pub(super) struct Far {
    way: Proxy,
    offers: Subscriber,
    stored: Subscriber,
    reports: Subscriber,
}

impl Far {
    /// From now on the agent's way is a slow one.
    pub(super) async fn of(fleet: &mut Agents) -> Self {
        let name = format!("device-{KILLED}");
        let world = &fleet.world;
        let far = Self {
            way: Proxy::slow(world.nats_port(), RATE),
            offers: listen(world, &format!("offer.{name}")).await,
            stored: listen(world, "$O.blobs.M.*").await,
            reports: listen(world, &format!("report.*.{name}")).await,
        };
        fleet.kill();
        far.start_again(fleet).await;
        far
    }

    pub(super) async fn start_again(&self, fleet: &mut Agents) {
        fleet.agents[KILLED - 1] = join(&fleet.world, &self.way).await;
    }

    /// The task of a round as it is offered.
    pub(super) async fn offered(&mut self, round: u32) -> TaskId {
        loop {
            let offer = tokio::time::timeout(PATIENCE, self.offers.next()).await;
            let offer = offer.expect("the round's task is offered").unwrap();
            if let Ok((Offer::Task(task), _)) = wire::decode_with_binary(&offer.payload, None)
                && (task.id.purpose, task.id.round.0) == (Purpose::Train, round)
            {
                return task.id;
            }
        }
    }

    /// Kills the agent at a moment of its work for this task; whether it was hit.
    pub(super) async fn kill_at(
        &mut self,
        moment: Moment,
        fleet: &mut Agents,
        (task, size): (&TaskId, u64),
    ) -> bool {
        let before = self.way.passed();
        let passed = |way: &Proxy| (way.passed().0 - before.0, way.passed().1 - before.1);
        match moment {
            Moment::Downloading => {
                let is_partway = async || passed(&self.way).1 > size / 3;
                fleet.world.until("parameters are on their way", is_partway).await;
            }
            Moment::Storing => {
                let is_partway = async || passed(&self.way).0 > size / 3;
                fleet.world.until("the update is on its way", is_partway).await;
            }
            Moment::Stored => self.is_stored(task).await,
        }
        fleet.kill();
        let (up, down) = passed(&self.way);
        fleet.world.client().await.flush().await.unwrap();
        let reported = heard(&mut self.reports).into_iter().any(|message| {
            let report: TaskReport = wire::decode(&message.payload).unwrap();
            report.task == *task && matches!(report.body, ReportBody::Trained(_))
        });
        assert!(!reported, "it had more to store");
        match moment {
            Moment::Downloading => down < size,
            Moment::Storing => up < size,
            Moment::Stored => up < 2 * size,
        }
    }

    /// Waits until the update of a task is described, which is the last of storing it.
    async fn is_stored(&mut self, task: &TaskId) {
        let TaskId { job, round, attempt, .. } = task;
        let update = format!("update/{job}/{round}/device-{KILLED}/{attempt}");
        let subject = format!("$O.blobs.M.{}", URL_SAFE.encode(update));
        loop {
            let message = tokio::time::timeout(PATIENCE, self.stored.next()).await;
            if message.expect("the update is stored").unwrap().subject.as_str() == subject {
                return;
            }
        }
    }
}

async fn join(world: &World, way: &Proxy) -> Process {
    let name = format!("device-{KILLED}");
    let mut command = world.agent_command_via((&way.url(), HEARTBEAT_MS), &name);
    command.arg("--data").arg(format!("grey={}", data(world, KILLED).display()));
    let agent = world.run_agent(&name, command);
    world.online(&name, true).await;
    agent
}

/// Rounds that all agents are waited for in; what an agent learns depends on what it learnt before.
fn job(register_as: &str) -> Value {
    json!({"kind": "train", "spec": {
        "model": "mlp", "dataset": "grey", "rounds": MOMENTS.len(), "register_as": register_as,
        "local": {"epochs": 1, "batch_size": 4, "learning_rate": 0.05, "momentum": 0},
        "strategy": {"name": "scaffold"}, "transfer": "stored", "evaluate": false,
        "participation": {"quorum": AGENTS, "deadline_ms": 60_000},
    }})
}

/// What a round's updates are, and what it came to.
fn learnt(rounds: &[Value]) -> Vec<Value> {
    let digest = |blob: &Value| blob["digest"].clone();
    let blobs = |round: &Value| {
        let updates = round["updates"].as_array().unwrap().iter().map(|update| {
            let (device, report) = (&update[0], &update[1]);
            json!([device, digest(&report["parameters"]), digest(&report["control_change"])])
        });
        json!([updates.collect::<Vec<_>>(), digest(&round["parameters"])])
    };
    rounds.iter().map(blobs).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_on_the_way_counts_once() {
    let mut fleet = Agents::start(48, 8).await;
    let id = fleet.world.submit(&job("whole")).await;
    let whole = succeeded(&fleet.world, &id).await;
    let size = whole[0]["parameters"]["size"].as_u64().unwrap();
    let mut far = Far::of(&mut fleet).await;
    let mut missing = BTreeSet::from(MOMENTS);
    for number in 1..=TRIES {
        let id = fleet.world.submit(&job(&format!("job-{number}"))).await;
        let mut hits = Vec::new();
        for (round, moment) in (1..).zip(MOMENTS) {
            let task = far.offered(round).await;
            if far.kill_at(moment, &mut fleet, (&task, size)).await {
                hits.push((task, moment));
            }
            far.start_again(&mut fleet).await;
        }
        let rounds = succeeded(&fleet.world, &id).await;
        assert_eq!(learnt(&rounds), learnt(&whole), "{hits:?} {rounds:#?}");
        for (task, moment) in hits {
            let round = &rounds[task.round.0 as usize - 1];
            let all: Vec<String> = (1..=AGENTS).map(|number| format!("device-{number}")).collect();
            assert_eq!(names(round, "updates"), all, "{round:#}");
            let counted = &round["updates"][KILLED - 1][1]["parameters"]["name"];
            let first = format!("update/{id}/{}/device-{KILLED}/{}", task.round, task.attempt);
            assert_ne!(*counted, first, "{moment:?}: {round:#}");
            missing.remove(&moment);
        }
        if missing.is_empty() {
            return;
        }
    }
    panic!("{TRIES} times it was too late for {missing:?}");
}
