//! The agent: time from its start until it has joined, and its memory when idle.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use tests::process::{program, static_agent, static_agent_with_malloc};
use tests::world::World;

use crate::figures::{Times, against_bar, against_limit, heading, mb, ms};

const STARTS: usize = 30;
const JOINED_BAR: Duration = Duration::from_millis(50);
const MEMORY_BAR: u64 = 8_000_000;
/// An idle agent is looked at after so long.
const IDLE: Duration = Duration::from_secs(5);

pub(crate) async fn measure() {
    measure_build("release build with glibc", &program("dunlin-agent")).await;
    match static_agent() {
        Some(path) => measure_build("static build that is copied to devices", &path).await,
        None => println!("\nthe static build is not there: scripts/dist.sh"),
    }
    if let Some(path) = static_agent_with_malloc() {
        measure_build("the same with the C library's allocator", &path).await;
    }
}

async fn measure_build(build: &str, program: &Path) {
    let size = std::fs::metadata(program).unwrap().len();
    heading(&format!("the agent starts, joins, and waits: {build}, {}", mb(size)));
    let world = World::start().await;
    let client = world.client().await;
    let (mut joined, mut process) = (Times::default(), Times::default());
    for number in 0..STARTS {
        let name = format!("agent-{number}");
        let mut hellos = client.subscribe(format!("fleet.{name}.hello")).await.unwrap();
        client.flush().await.unwrap();
        let began = Instant::now();
        let mut agent = world.run_agent(&name, world.agent_command_of(program, &name));
        let hello = tokio::time::timeout(Duration::from_secs(10), hellos.next()).await;
        joined.push(began.elapsed());
        assert!(hello.unwrap().is_some());
        agent.kill();
        let began = Instant::now();
        Command::new("true").stdin(Stdio::null()).status().unwrap();
        process.push(began.elapsed());
    }
    let median = joined.median();
    against_bar("from start to joined, median of 30", &ms(median), "50 ms", median <= JOINED_BAR);
    against_limit("", median, "starting /bin/true", process.median());

    let agent = world.run_agent("idle", world.agent_command_of(program, "idle"));
    world.online("idle", false).await;
    tokio::time::sleep(IDLE).await;
    let memory = agent.memory("VmRSS");
    let own = agent.memory("RssAnon");
    against_bar("resident memory, idle, no model", &mb(memory), "8 MB", memory <= MEMORY_BAR);
    println!("  {:<44} {:>12}   the rest is the program's file", "of it the agent's own", mb(own));
    println!("  {:<44} {:>12}", "Flower 1.41, idle device (measured earlier)", "220-260 MB");
}
