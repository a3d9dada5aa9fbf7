use super::*;

fn config(dir: &Path, port: Option<u16>) -> NatsServerConfig {
    NatsServerConfig {
        program: None,
        store_dir: dir.to_owned(),
        host: std::net::Ipv4Addr::LOCALHOST.into(),
        port,
    }
}

#[tokio::test]
async fn starts_on_a_free_port_and_serves_jetstream() {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(&config(dir.path(), None)).await.unwrap();
    assert_ne!((server.port(), server.pid()), (0, 0));
    let client = async_nats::connect(server.url()).await.unwrap();
    assert_eq!(client.server_info().max_payload, MAX_PAYLOAD);
    let jetstream = async_nats::jetstream::new(client);
    assert!(jetstream.query_account().await.is_ok());
    let environment = std::fs::read(format!("/proc/{}/environ", server.pid())).unwrap();
    let mut variables = environment.split(|byte| *byte == 0);
    assert!(variables.any(|variable| variable.starts_with(b"GOMEMLIMIT=")));
    server.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let error = NatsServer::start(&config(dir.path(), Some(port))).await.unwrap_err();
    assert!(
        matches!(error, NatsServerError::PortInUse { port: found } if found == port),
        "{error}"
    );
}

#[tokio::test]
async fn ends_when_its_owner_ends() {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(&config(dir.path(), None)).await.unwrap();
    let mut state = server.state.clone();
    drop(server);
    let ended = state.wait_for(|state| state.ended);
    assert!(tokio::time::timeout(Duration::from_secs(10), ended).await.is_ok());
}

#[tokio::test]
async fn a_killed_server_starts_again_on_its_port() {
    let dir = tempfile::tempdir().unwrap();
    let server = NatsServer::start(&config(dir.path(), None)).await.unwrap();
    let port = server.port();
    server.kill().await;
    let server = NatsServer::start(&config(dir.path(), Some(port))).await.unwrap();
    assert_eq!(server.port(), port);
    server.stop().await;
}

#[test]
fn an_absent_program_says_how_to_get_it() {
    let error = find(Some(Path::new("/nowhere/nats-server"))).unwrap_err();
    assert!(error.to_string().contains("at /nowhere/nats-server"), "{error}");
    assert!(error.hint().contains("releases") && error.hint().contains("--nats"));
    let error = find(Some(Path::new("no-such-nats-server"))).unwrap_err().to_string();
    assert!(error.contains("PATH") && error.contains("no-such-nats-server"), "{error}");
    assert!(find(Some(Path::new("sh"))).unwrap().ends_with("bin/sh"));
}

#[test]
fn versions_are_compared_as_numbers() {
    assert_eq!(parse_version("nats-server: v2.15.1"), Some((2, 15)));
    assert_eq!(parse_version("2.9.0-beta.1"), Some((2, 9)));
    assert!(parse_version("2.9.0") < Some(VERSION_MIN));
    assert_eq!(parse_version("bash: no"), None);
}
