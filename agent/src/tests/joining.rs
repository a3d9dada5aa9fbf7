use jobs::device::{Goodbye, Heartbeat, Hello, Telemetry};

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_joins_beats_measures_and_says_goodbye() {
    let world = World::new().await;
    let mut fleet = world.listen("fleet.pi.*").await;
    let config = Config {
        labels: [("site".to_owned(), "lab".to_owned())].into(),
        groups: vec!["arm".parse().unwrap()],
        ..world.config()
    };
    let agent = start(config);
    let first = next(&mut fleet).await;
    let hello: Hello = wire::decode(&first.payload).unwrap();
    assert_eq!((first.subject.as_str(), &hello.device), ("fleet.pi.hello", &device()));
    assert_eq!((hello.heartbeat_ms, hello.slots), (Millis(100), 1));
    assert_eq!(hello.labels["site"], "lab");
    assert_eq!(hello.facts.arch, std::env::consts::ARCH);
    assert!(hello.facts.memory.0 > 0 && hello.facts.disk.0 > 0 && !hello.engines.is_empty());

    let mut beats = world.listen("fleet.pi.heartbeat").await;
    let one: Heartbeat = next_as(&mut beats).await;
    let two: Heartbeat = next_as(&mut beats).await;
    assert_eq!((one.instance, two.sequence), (hello.instance.clone(), one.sequence + 1));

    let mut measured = world.listen("fleet.pi.telemetry").await;
    let telemetry: Telemetry = next_as(&mut measured).await;
    assert!(telemetry.memory_total.0 > 0 && telemetry.at >= hello.started_at);

    let mut goodbyes = world.listen("fleet.pi.goodbye").await;
    agent.stop().await;
    let goodbye: Goodbye = next_as(&mut goodbyes).await;
    assert_eq!(goodbye.instance, hello.instance);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_sets_follow_in_another_hello() {
    let world = World::new().await;
    let mut hellos = world.listen("fleet.pi.hello").await;
    let agent = start(world.config_with_data());
    let first: Hello = next_as(&mut hellos).await;
    let second = loop {
        // One tells of the engines, one of the data.
        let hello: Hello = next_as(&mut hellos).await;
        if !hello.datasets.is_empty() {
            break hello;
        }
    };
    assert_eq!(first.instance, second.instance);
    let digits = &second.datasets[0];
    assert_eq!((digits.format.as_str(), digits.shape.as_slice()), ("idx", &[1, 4, 4][..]));
    assert_eq!((digits.train_examples, digits.test_examples), (64, 32));
    assert_eq!(digits.train_class_counts[..2], [32, 32]);
    agent.stop().await;
}

#[tokio::test]
async fn a_data_set_that_cannot_be_read_ends_the_agent() {
    let world = World::new().await;
    let config = world.config_with_data();
    let path = world.dir.path().join("digits/train-labels-idx1-ubyte");
    std::fs::write(path, b"not labels").unwrap();
    let running = tokio::time::timeout(PATIENCE, start(config).running).await;
    let error = running.unwrap().unwrap().unwrap_err();
    assert!(error.to_string().contains("train-labels-idx1-ubyte"), "{error}");
}

#[tokio::test]
async fn two_agents_of_one_name_do_not_run_on_one_state() {
    let world = World::new().await;
    let agent = world.join(world.config()).await;
    let error = run(world.config(), std::future::pending()).await.unwrap_err();
    assert!(matches!(error, AgentError::State(_)), "{error}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_answered_by_device_group_and_all() {
    let world = World::new().await;
    let config = Config { groups: vec!["arm".parse().unwrap()], ..world.config() };
    let agent = world.join(config).await;
    for subject in ["cmd.pi.ping", "cmd.all.ping", "cmd.group.arm.ping"] {
        let answer = world.ask(subject).await;
        assert_eq!(answer["device"], "pi", "{subject}: {answer}");
        assert!(answer["instance"].is_string() && answer["at"].is_u64());
    }
    assert_eq!(world.ask("cmd.pi.facts").await["arch"], std::env::consts::ARCH);
    assert!(world.ask("cmd.pi.telemetry").await["memory_total"].as_u64() > Some(0));
    assert!(world.ask("cmd.pi.temperature").await["temperatures"].is_object());
    assert!(world.ask("cmd.pi.memfree").await["memory_available"].as_u64() > Some(0));
    assert!(world.ask("cmd.pi.cpuinfo").await["cpus"].as_u64() > Some(0));
    assert!(world.ask("cmd.pi.uname").await["kernel"].is_string());
    let mut hellos = world.listen("fleet.pi.hello").await;
    assert!(world.ask("cmd.all.hello").await["facts"].is_object());
    next(&mut hellos).await;
    let unknown = world.ask("cmd.pi.reboot").await;
    assert_eq!(unknown["error"], "unknown_command");
    assert!(unknown["commands"].as_array().unwrap().iter().any(|verb| verb == "ping"));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telemetry_of_a_time_without_connection_comes_later_and_once() {
    let mut world = World::new().await;
    let agent = world.join(world.config()).await;
    world.server.kill();
    let buffer = world.dir.path().join("state/telemetry.jsonl");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut poll = tokio::time::interval(Duration::from_millis(20));
    while std::fs::read_to_string(&buffer).map_or(0, |text| text.lines().count()) < 2 {
        assert!(tokio::time::Instant::now() < deadline, "telemetry is buffered");
        poll.tick().await;
    }
    let line = std::fs::read_to_string(&buffer).unwrap().lines().next().unwrap().to_owned();
    let kept: Telemetry = serde_json::from_str(&line).unwrap();
    world.server.restart();
    // The same again, as after a crash between sending and forgetting.
    let context = async_nats::jetstream::new(world.server.client().await);
    let mut found = Vec::new();
    while !found.contains(&kept.at) {
        assert!(tokio::time::Instant::now() < deadline, "telemetry is replayed");
        poll.tick().await;
        found = stored_telemetry(&context).await;
    }
    let id = format!("telemetry.pi.{}", kept.at);
    let payload = wire::encode(&kept);
    let headers = async_nats::HeaderMap::new();
    link::publish::store(&context, "fleet.pi.telemetry", &id, headers, payload).await.unwrap();
    let found = stored_telemetry(&context).await;
    assert_eq!(found.iter().filter(|at| **at == kept.at).count(), 1);
    agent.stop().await;
}

/// What waits may be a megabyte, and the disk a card that wears out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn telemetry_that_nobody_takes_is_not_written_again_and_again() {
    // Without streams.
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        telemetry: Duration::from_millis(100),
        ..Config::new(&server.url(), device(), dir.path().join("state"))
    };
    let agent = start(config);
    let buffer = dir.path().join("state/telemetry.jsonl");
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut poll = tokio::time::interval(Duration::from_millis(20));
    let mut files = std::collections::BTreeSet::new();
    while std::fs::read_to_string(&buffer).map_or(0, |text| text.lines().count()) < 5 {
        assert!(tokio::time::Instant::now() < deadline, "telemetry is buffered");
        poll.tick().await;
        if let Ok(file) = std::fs::metadata(&buffer) {
            files.insert(std::os::unix::fs::MetadataExt::ino(&file));
        }
    }
    assert_eq!(files.len(), 1, "lines are added to one file");
    agent.stop().await;
}

/// The times of all measurements in the stream.
async fn stored_telemetry(context: &async_nats::jetstream::Context) -> Vec<Millis> {
    let stored: Vec<Telemetry> = stored(context, "fleet.pi.telemetry").await;
    stored.into_iter().map(|telemetry| telemetry.at).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_waits_for_nats_and_greets_again_after_a_break() {
    let mut world = World::new().await;
    // The agent may be back before a subscriber is: the stream misses nothing.
    let config = world.config();
    world.server.kill();
    let agent = start(config);
    world.server.restart();
    let first = stored_hello(&world, 1).await;
    world.server.kill();
    world.server.restart();
    let second = stored_hello(&world, 2).await;
    assert_eq!(first.instance, second.instance);
    agent.stop().await;
}

/// This hello of the stream `FLEET`, counted from 1, once it is there.
async fn stored_hello(world: &World, number: usize) -> Hello {
    let context = async_nats::jetstream::new(world.server.client().await);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut poll = tokio::time::interval(Duration::from_millis(20));
    loop {
        assert!(tokio::time::Instant::now() < deadline, "hello {number} comes");
        poll.tick().await;
        let hellos: Vec<Hello> = stored(&context, "fleet.pi.hello").await;
        if let Some(hello) = hellos.into_iter().nth(number - 1) {
            return hello;
        }
    }
}

/// All messages of a subject in the stream `FLEET`.
async fn stored<T: DeserializeOwned>(
    context: &async_nats::jetstream::Context,
    subject: &str,
) -> Vec<T> {
    let Ok(stream) = context.get_stream("FLEET").await else { return Vec::new() };
    let state = &stream.cached_info().state;
    let mut found = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        let Ok(message) = stream.direct_get(sequence).await else { continue };
        if message.subject.as_str() == subject {
            found.push(wire::decode(&message.payload).unwrap());
        }
    }
    found
}
