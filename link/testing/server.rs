//! A nats-server of its own for a test: loopback, port chosen by the system, gone with the value.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A running nats-server; killed and removed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    port: u16,
    dir: tempfile::TempDir,
}

#[allow(dead_code, reason = "each test program uses some of these")]
impl Server {
    /// With JetStream in a temporary directory.
    pub(crate) fn start() -> Self {
        Self::start_with("jetstream {}")
    }

    /// With more lines of configuration; `jetstream` gets its directory from the command line.
    pub(crate) fn start_with(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("server.conf"), config).unwrap();
        let (child, port) = spawn(dir.path(), "-1");
        Self { child, port, dir }
    }

    /// Three that are one cluster, with JetStream; it takes a while until they have elected.
    pub(crate) fn cluster() -> [Self; 3] {
        let ports = [(); 3].map(|()| {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap().port()
        });
        let routes = ports.map(|port| format!("\"nats://127.0.0.1:{port}\"")).join(", ");
        [0, 1, 2].map(|at| {
            let listen = format!("name: fleet, listen: \"127.0.0.1:{}\"", ports[at]);
            Self::start_with(&format!(
                "server_name: s{at}\njetstream {{}}\ncluster {{ {listen}, routes: [{routes}] }}"
            ))
        })
    }

    /// Kills the process; [`Server::restart`] brings it back with its data.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts again on the same port and directory.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.dir.path(), &self.port.to_string()).0;
    }

    /// `nats://127.0.0.1:<port>`
    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// A connection.
    pub(crate) async fn client(&self) -> async_nats::Client {
        async_nats::connect(self.url()).await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the program and waits until it says that it is ready.
fn spawn(dir: &Path, port: &str) -> (Child, u16) {
    let mut child = Command::new(program())
        .args(["-a", "127.0.0.1", "-p", port, "-c", "server.conf", "-sd", "store"])
        .current_dir(dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nats-server starts");
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let (ready, wait) = mpsc::channel();
    std::thread::spawn(move || {
        let mut port = None;
        for line in lines.map_while(Result::ok) {
            if let Some((_, address)) = line.split_once("Listening for client connections on ") {
                port = address.rsplit(':').next().and_then(|port| port.trim().parse().ok());
            }
            if line.contains("Server is ready") {
                let _ = ready.send(port);
            }
        }
    });
    let port =
        wait.recv_timeout(Duration::from_secs(20)).expect("nats-server is ready within 20 s");
    (child, port.expect("nats-server says where it listens"))
}

/// `.tools/bin/nats-server` of the workspace, or the one in `PATH`.
fn program() -> PathBuf {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    if tool.exists() { tool } else { "nats-server".into() }
}
