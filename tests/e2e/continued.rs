//! Trainings that go on from one another with real agents come to what one training comes to, bit by
//! bit: agents add up in one order, whatever their threads do.

use serde_json::Value;
use tests::data::Digits;
use tests::process::Process;
use tests::world::World;

use crate::plans::{counted, rounds, trained};
use crate::story::join;

const AGENTS: usize = 3;
const SCAFFOLD: &str = "--dataset digits --model mlp --strategy scaffold --momentum 0 --seed 9 \
     --devices 3 --quorum 3 --batch-size 16 --no-evaluate --keep-rounds 3 --register-as digits";

/// Digests of the parameters of each round, and of the server's control variate.
fn made(job: &Value) -> Vec<[String; 2]> {
    let digests = |round: &Value| {
        assert_eq!(counted(round).len(), AGENTS, "{round:#}");
        ["parameters", "server_state"].map(|what| {
            let digest = round[what]["digest"].as_str();
            digest.unwrap_or_else(|| panic!("no {what}: {round:#}")).to_owned()
        })
    };
    rounds(job).iter().map(digests).collect()
}

/// Two rounds from where another training was, which has nothing to note.
async fn two_more(world: &World, from: &str) -> Value {
    let (text, job) = trained(world, &format!("--continue {from} --rounds 2")).await;
    assert!(job["notes"].is_null(), "{text} {job:#}");
    job
}

/// What each agent keeps of its control variate outlives it, that of earlier rounds too where the job
/// keeps those.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scaffold_goes_on_bit_by_bit_also_after_agents_were_killed() {
    let world = World::start().await;
    let digits = Digits::write_as(world.folder(), AGENTS, "dirichlet:0.5");
    let mut agents: Vec<Process> = Vec::new();
    for number in 1..=AGENTS {
        agents.push(join(&world, &digits, number).await);
    }
    let (_, whole) = trained(&world, &format!("{SCAFFOLD} --rounds 4")).await;
    let expected = made(&whole);
    let (_, half) = trained(&world, &format!("{SCAFFOLD} --rounds 2")).await;
    assert_eq!(made(&half), expected[..2], "agents train alike");
    let more = two_more(&world, half["id"].as_str().unwrap()).await;
    assert_eq!(made(&more), expected[2..]);
    for (number, agent) in (1..=AGENTS).zip(&mut agents) {
        agent.kill();
        *agent = join(&world, &digits, number).await;
    }
    let id = whole["id"].as_str().unwrap();
    for from in [half["id"].as_str().unwrap().to_owned(), format!("{id}:2")] {
        let more = two_more(&world, &from).await;
        assert_eq!(made(&more), expected[2..], "from {from}");
    }
    // Of the rounds that were gone on with before, the last one is that of the whole job.
    let last = two_more(&world, &format!("{}:1", more["id"].as_str().unwrap())).await;
    assert_eq!(made(&last)[0], expected[3]);
}
