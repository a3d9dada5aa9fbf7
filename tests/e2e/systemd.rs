//! What an agent tells a systemd that runs it, which is a socket and a file here.

use std::fs::File;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tests::process::PATIENCE;
use tests::world::World;

/// Hears states until one has these words.
fn heard(systemd: &UnixDatagram, words: &str) {
    let mut states = Vec::new();
    let mut bytes = [0; 4096];
    loop {
        let length = systemd.recv(&mut bytes).unwrap_or_else(|_| panic!("{words}: {states:?}"));
        let state = String::from_utf8(bytes[..length].to_vec()).unwrap();
        assert!(state.starts_with("STATUS=") && !state.contains('\n'), "{state}");
        if state.contains(words) {
            return;
        }
        states.push(state);
    }
}

/// Its state is told whenever the connection comes or goes, over either kind of socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_tells_whether_it_is_connected() {
    let mut world = World::start().await;
    let path = world.folder().join("notify");
    let hidden = format!("dunlin-{}", std::process::id());
    let name = SocketAddr::from_abstract_name(&hidden).unwrap();
    for (number, (socket, systemd)) in [
        (path.display().to_string(), UnixDatagram::bind(&path).unwrap()),
        (format!("@{hidden}"), UnixDatagram::bind_addr(&name).unwrap()),
    ]
    .into_iter()
    .enumerate()
    {
        systemd.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = format!("told-{number}");
        let mut command = world.agent_command(&name);
        command.env("NOTIFY_SOCKET", socket);
        world.nats.kill();
        let _agent = world.run_agent(&name, command);
        heard(&systemd, "STATUS=not connected: NATS at nats://127.0.0.1:");
        world.restart_nats();
        let connected = format!("STATUS=connected to {}", world.nats_url());
        heard(&systemd, &connected);
        world.nats.kill();
        heard(&systemd, "STATUS=not connected: connection to NATS lost");
        world.restart_nats();
        heard(&systemd, &connected);
    }
}

/// The journal has the time of each line already, and gets its level as it wants it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_gets_levels_and_no_times() {
    let world = World::start().await;
    let log = world.folder().join("pi.log");
    let file = File::create(&log).unwrap().metadata().unwrap();
    let mut command = world.agent_command("pi");
    command.env("JOURNAL_STREAM", format!("{}:{}", file.dev(), file.ino()));
    let mut agent = world.run_agent("pi", command);
    world.online("pi", false).await;
    // Its engines are told too, by another hello.
    let with_engines = async || {
        let device = world.get("/v1/devices/pi").await.body;
        let engines = device["hello"]["engines"].as_array().cloned().unwrap_or_default();
        engines.contains(&"tract".into())
    };
    world.until("its engines are known", with_engines).await;
    let mut command = world.agent_command("pi");
    command.env("JOURNAL_STREAM", format!("{}:{}", file.dev(), file.ino()));
    let mut second = world.run_agent("pi", command);
    assert_eq!(second.ended(PATIENCE), Some(2));
    agent.terminate();
    let text = agent.log();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("<6> INFO starting device=pi "), "{text}");
    assert_eq!(text.matches("joined").count(), 1, "{text}");
    let refused = lines.iter().find(|line| line.contains("in use by another agent")).unwrap();
    assert!(refused.starts_with("<3>dunlin-agent: state directory "), "{text}");

    // Another file is a log for people.
    let mut command = world.agent_command("other");
    command.env("JOURNAL_STREAM", format!("{}:{}", file.dev(), file.ino()));
    let other = world.run_agent("other", command);
    world.online("other", false).await;
    assert!(other.log().starts_with("20"), "{}", other.log());
}
