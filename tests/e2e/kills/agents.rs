//! Real agents are killed at work for a round whose update they have made: what they hold, and what
//! each of them learnt, tells what the mean has to be.

use std::path::PathBuf;

use async_nats::Subscriber;
use futures::StreamExt as _;
use jobs::report::{ReportBody, TaskReport};
use jobs::spec::Purpose;
use jobs::wire;
use models::params::Parameters;
use serde_json::{Value, json};
use tests::data::write_grey;
use tests::process::{PATIENCE, Process};
use tests::world::World;

use super::{TRIES, names, registered, succeeded};
use crate::sums::{assert_model, mean};

/// The one that is killed.
pub(super) const KILLED: usize = 2;
pub(super) const AGENTS: usize = 3;

/// Agents with pictures of different shades, so that no two learn the same.
pub(super) struct Agents {
    pub(super) world: World,
    pub(super) agents: Vec<Process>,
}

impl Agents {
    pub(super) async fn start(side: u16, judged: usize) -> Self {
        let world = World::start().await;
        let mut agents = Vec::new();
        for number in 1..=AGENTS {
            let shade = u8::try_from(60 * number).unwrap();
            write_grey(&data(&world, number), side, shade, judged);
            agents.push(join(&world, number).await);
        }
        Self { world, agents }
    }

    pub(super) fn kill(&mut self) {
        self.agents[KILLED - 1].kill();
    }

    /// As a service manager does.
    pub(super) async fn start_again(&mut self) {
        self.agents[KILLED - 1] = join(&self.world, KILLED).await;
    }

    /// The first update that each agent holds of a job; none where one holds none.
    pub(super) fn held(&self, job: &str) -> Option<Vec<Parameters>> {
        let update = |number| {
            let file = format!("state-device-{number}/held/{job}.1.1.update");
            std::fs::read(self.world.folder().join(file)).ok()
        };
        let updates: Option<Vec<Vec<u8>>> = (1..=AGENTS).map(update).collect();
        Some(updates?.iter().map(|it| Parameters::from_safetensors(it).unwrap()).collect())
    }

    /// The only round of a job that has succeeded: all agents count in it, once, and what was
    /// registered is the mean of what they held.
    pub(super) async fn succeeded(
        &self,
        job: &str,
        model: &str,
        held: Option<&[Parameters]>,
    ) -> Value {
        let rounds = succeeded(&self.world, job).await;
        let [round] = &rounds[..] else { panic!("one round: {rounds:#?}") };
        let mut all: Vec<String> = (1..=AGENTS).map(|number| format!("device-{number}")).collect();
        assert_eq!(names(round, "updates"), all, "{round:#}");
        if let Some(held) = held {
            // Each says that it has eight examples.
            assert_model(&registered(&self.world, model).await, &mean(held), round);
        }
        // Who is away for long is not waited for.
        let mut judges = names(round, "evaluations");
        all.remove(KILLED - 1);
        judges.retain(|judge| all.contains(judge));
        assert_eq!(judges, all, "{round:#}");
        round.clone()
    }
}

pub(super) fn data(world: &World, number: usize) -> PathBuf {
    world.folder().join(format!("grey-{number}"))
}

async fn join(world: &World, number: usize) -> Process {
    world.join(&format!("device-{number}"), Some(("grey", &data(world, number)))).await
}

pub(super) fn job(model: &str, register_as: &str) -> Value {
    json!({"kind": "train", "spec": {
        "model": model, "dataset": "grey", "rounds": 1, "register_as": register_as,
        "local": {"epochs": 1, "batch_size": 8, "learning_rate": 0.05},
        "participation": {"quorum": AGENTS, "deadline_ms": 60_000},
    }})
}

pub(super) async fn listen(world: &World, subject: &str) -> Subscriber {
    let client = world.client().await;
    let messages = client.subscribe(subject.to_owned()).await.unwrap();
    client.flush().await.unwrap();
    messages
}

/// What comes until now: the broker has seen as much.
pub(super) fn heard(messages: &mut Subscriber) -> Vec<async_nats::Message> {
    use futures::FutureExt as _;
    std::iter::from_fn(|| messages.next().now_or_never().flatten()).collect()
}

/// The new parameters are judged by all agents, one of which is killed while it does so, and does
/// it again when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_judging_judges_again() {
    let mut fleet = Agents::start(64, 100).await;
    let reported = format!("report.*.device-{KILLED}");
    let mut reports = listen(&fleet.world, &reported).await;
    for number in 1..=TRIES {
        let name = format!("judged-{number}");
        let id = fleet.world.submit(&job("cnn", &name)).await;
        loop {
            let report = tokio::time::timeout(PATIENCE, reports.next()).await;
            let report = judging(&report.expect("it is asked to judge").unwrap());
            if report.is_some_and(|report| matches!(report.body, ReportBody::Accepted)) {
                break;
            }
        }
        fleet.kill();
        let held = fleet.held(&id);
        fleet.start_again().await;
        let round = fleet.succeeded(&id, &name, held.as_deref()).await;
        let mut judged = heard(&mut reports).into_iter().filter_map(|it| judging(&it));
        let judged = judged.find(|report| matches!(report.body, ReportBody::Evaluated(_)));
        // It had not judged before it was killed, and was back in time.
        if held.is_some() && judged.is_some_and(|report| report.task.attempt.0 == 2) {
            assert_eq!(names(&round, "evaluations").len(), AGENTS, "{round:#}");
            return;
        }
    }
    panic!("{TRIES} times the agent had judged before it was killed, or was not asked again");
}

fn judging(message: &async_nats::Message) -> Option<TaskReport> {
    let report: TaskReport = wire::decode(&message.payload).unwrap();
    (report.task.purpose == Purpose::Evaluate).then_some(report)
}

/// The broker was reading the update that an agent holds, and goes on when that is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_is_killed_giving_its_update_gives_the_rest() {
    let mut fleet = Agents::start(192, 8).await;
    let mut asked = listen(&fleet.world, &format!("held.device-{KILLED}")).await;
    for number in 1..=TRIES {
        let name = format!("given-{number}");
        let id = fleet.world.submit(&job("mlp", &name)).await;
        let request = tokio::time::timeout(PATIENCE, asked.next()).await;
        if request.is_err() {
            // On a busy machine its way is slow, and it stores its update.
            fleet.succeeded(&id, &name, None).await;
            continue;
        }
        fleet.kill();
        fleet.world.client().await.flush().await.unwrap();
        heard(&mut asked);
        fleet.start_again().await;
        let mut held = None;
        let is_there = async || {
            held = fleet.held(&id);
            held.is_some() || !fleet.world.job(&id).await["ended_at"].is_null()
        };
        fleet.world.until("all hold their updates", is_there).await;
        let round = fleet.succeeded(&id, &name, held.as_deref()).await;
        let update = &round["updates"][KILLED - 1][1]["parameters"]["name"];
        let is_first = *update == format!("update/{id}/1/device-{KILLED}/1");
        // The broker did not have all of it when the agent was killed, and got the rest.
        if held.is_some() && is_first && !heard(&mut asked).is_empty() {
            return;
        }
    }
    panic!("{TRIES} times the broker had the update before the agent was killed");
}
