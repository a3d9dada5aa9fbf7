//! A nats-server of one's own: the embedded default, as a child process on loopback.
//!
//! The child lives as long as its [`NatsServer`], and ends with this process even when that is
//! killed: a shell between the two holds the other end of a pipe and stops the server when the
//! pipe closes. (A parent-death signal would end it with the thread that started it.)

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use tokio::sync::watch;

/// The largest message, headers included: room for pictures and for chunks of parameters.
pub const MAX_PAYLOAD: usize = 8 * 1024 * 1024;
/// The oldest version with all that is used here.
pub const VERSION_MIN: (u32, u32) = (2, 11);

/// Memory above which it lets go of what it caches of streams, unless
/// [the variable](MEMORY_VARIABLE) is set already. Without it updates of a large model that are stored stay in
/// memory for seconds, whether or not anybody reads them again.
pub const MEMORY: &str = "1GiB";
/// Where the Go runtime looks for it.
pub const MEMORY_VARIABLE: &str = "GOMEMLIMIT";

const READY_WITHIN: Duration = Duration::from_secs(20);

/// Starts `"$@"`, tells its process id, and stops it when standard input closes.
const KEEPER: &str = r#"
exec 3<&0
"$@" 3<&- </dev/null >&2 &
server=$!
echo $server
exec >&2
{ read -r _ <&3; kill -TERM $server; } 2>/dev/null &
watcher=$!
exec 3<&-
wait $server
code=$?
kill $watcher 2>/dev/null
exit $code
"#;

/// How a nats-server is started.
#[derive(Debug, Clone)]
pub struct NatsServerConfig {
    /// The program; looked for when absent, see [`find`].
    pub program: Option<PathBuf>,
    /// Where `JetStream` keeps everything.
    pub store_dir: PathBuf,
    /// The address to listen on: 127.0.0.1, or one that devices reach.
    pub host: IpAddr,
    /// The port; a free one when absent.
    pub port: Option<u16>,
}

/// Why there is no nats-server.
#[derive(Debug, thiserror::Error)]
pub enum NatsServerError {
    /// No such program.
    #[error("there is no nats-server {looked_in}")]
    NotFound {
        /// Where it was looked for.
        looked_in: String,
    },
    /// It cannot be run.
    #[error("{program} cannot be run: {source}")]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Too old, or something else.
    #[error(
        "{program} says {found:?}, expected nats-server {}.{} or newer",
        VERSION_MIN.0, VERSION_MIN.1
    )]
    Version {
        /// The program.
        program: PathBuf,
        /// What it answered to `--version`.
        found: String,
    },
    /// The folder for its data cannot be made.
    #[error("{path}: {source}")]
    Store {
        /// The folder or file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The port is taken.
    #[error("port {port} is in use")]
    PortInUse {
        /// The port asked for.
        port: u16,
    },
    /// It ended before it was ready.
    #[error("nats-server did not start: {said}")]
    Start {
        /// Its last words.
        said: String,
    },
}

impl NatsServerError {
    /// What to do about it; empty when its text says all.
    pub fn hint(&self) -> String {
        let (major, minor) = VERSION_MIN;
        match self {
            NatsServerError::NotFound { .. }
            | NatsServerError::Run { .. }
            | NatsServerError::Version { .. } => format!(
                "get nats-server {major}.{minor} or newer from \
                 https://github.com/nats-io/nats-server/releases and put it on PATH or in \
                 .tools/bin (scripts/setup.sh does), or use a running one with --nats"
            ),
            NatsServerError::Store { .. } => "choose another folder with --state-dir".to_owned(),
            NatsServerError::PortInUse { .. } => {
                "choose another port, or 0 for a free one".to_owned()
            }
            NatsServerError::Start { .. } => String::new(),
        }
    }
}

/// A running nats-server; dropping it stops the process.
#[derive(Debug)]
pub struct NatsServer {
    host: IpAddr,
    port: u16,
    pid: i32,
    lifeline: Option<ChildStdin>,
    state: watch::Receiver<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    port: Option<u16>,
    ready: bool,
    ended: bool,
    fault: String,
}

impl NatsServer {
    /// Starts a nats-server and waits until it takes connections.
    ///
    /// # Errors
    /// [`NatsServerError`], which says what to do.
    pub async fn start(config: &NatsServerConfig) -> Result<Self, NatsServerError> {
        let program = find(config.program.as_deref())?;
        check_version(&program)?;
        let file = write_config(config)?;
        let memory = std::env::var_os(MEMORY_VARIABLE).unwrap_or_else(|| MEMORY.into());
        let mut child = Command::new("/bin/sh")
            .env(MEMORY_VARIABLE, memory)
            .args(["-c", KEEPER, "nats-server-keeper"])
            .arg(&program)
            .arg("-c")
            .arg(&file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A key press that interrupts this program must not end the server before it.
            .process_group(0)
            .spawn()
            .map_err(|source| NatsServerError::Run { program: program.clone(), source })?;
        let lifeline = child.stdin.take();
        let pid = read_pid(&mut child);
        let (sender, state) = watch::channel(State::default());
        std::thread::Builder::new()
            .name("nats-server-log".to_owned())
            .spawn(move || follow(child, &sender))
            .map_err(|source| NatsServerError::Run { program, source })?;
        let mut server = Self { host: config.host, port: 0, pid, lifeline, state };
        server.await_ready(config.port).await?;
        Ok(server)
    }

    async fn await_ready(&mut self, asked: Option<u16>) -> Result<(), NatsServerError> {
        let done = self.state.wait_for(|state| state.ready || state.ended);
        let state = match tokio::time::timeout(READY_WITHIN, done).await {
            Ok(Ok(state)) => state.clone(),
            Ok(Err(_)) => State { fault: "its log ended".to_owned(), ..State::default() },
            Err(_) => State {
                fault: format!("it was not ready within {} s", READY_WITHIN.as_secs()),
                ..State::default()
            },
        };
        match (state.ready, state.port, asked) {
            (true, Some(port), _) => {
                self.port = port;
                Ok(())
            }
            (false, _, Some(port)) if state.fault.contains("address already in use") => {
                Err(NatsServerError::PortInUse { port })
            }
            _ => Err(NatsServerError::Start { said: state.fault }),
        }
    }

    /// `nats://<host>:<port>` as this machine reaches it.
    pub fn url(&self) -> String {
        let everywhere = self.host.is_unspecified();
        let host = if everywhere { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { self.host };
        format!("nats://{}", std::net::SocketAddr::new(host, self.port))
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits until the server ends by itself; its last error, if it said one.
    pub async fn ended(&mut self) -> String {
        match self.state.wait_for(|state| state.ended).await {
            Ok(state) => state.fault.clone(),
            Err(_) => String::new(),
        }
    }

    /// Stops the server and waits until it has ended.
    pub async fn stop(mut self) {
        drop(self.lifeline.take());
        self.ended().await;
    }

    /// Ends the server at once, as a power cut would, and waits until it is gone.
    pub async fn kill(mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.pid) {
            // An error means that it has ended already.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        self.ended().await;
    }
}

/// Finds the program: the one given, by its path or by a name on `PATH`; else
/// `.tools/bin/nats-server` in a folder above this executable or the current folder; else
/// `nats-server` on `PATH`.
///
/// # Errors
/// [`NatsServerError::NotFound`] with the places.
pub fn find(given: Option<&Path>) -> Result<PathBuf, NatsServerError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = |name: &Path| {
        let programs = std::env::split_paths(&path).map(|folder| folder.join(name));
        programs.into_iter().find(|program| program.is_file())
    };
    if let Some(program) = given {
        let is_name = program.components().count() == 1;
        let named = is_name.then(|| on_path(program)).flatten();
        let found = named.or_else(|| program.is_file().then(|| program.to_owned()));
        let place = if is_name { "on PATH by the name" } else { "at" };
        let looked_in = format!("{place} {}", program.display());
        return found.ok_or(NatsServerError::NotFound { looked_in });
    }
    let starts = [std::env::current_exe().ok(), std::env::current_dir().ok()];
    let tools = starts
        .iter()
        .flatten()
        .flat_map(|path| path.ancestors())
        .map(|folder| folder.join(".tools/bin/nats-server"));
    let found = tools.into_iter().find(|program| program.is_file());
    found.or_else(|| on_path(Path::new("nats-server"))).ok_or_else(|| NatsServerError::NotFound {
        looked_in: "on PATH, or in .tools/bin above the program and the current folder".to_owned(),
    })
}

fn check_version(program: &Path) -> Result<(), NatsServerError> {
    let output = Command::new(program)
        .arg("--version")
        .output()
        .map_err(|source| NatsServerError::Run { program: program.to_owned(), source })?;
    let found = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if parse_version(&found).is_some_and(|version| version >= VERSION_MIN) {
        return Ok(());
    }
    Err(NatsServerError::Version { program: program.to_owned(), found })
}

/// Major and minor version in `nats-server: v2.15.1`, or in `2.15.1`.
pub(crate) fn parse_version(text: &str) -> Option<(u32, u32)> {
    let text = text.rsplit(' ').next()?;
    let mut numbers = text.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn write_config(config: &NatsServerConfig) -> Result<PathBuf, NatsServerError> {
    let store = |path: &Path, source| NatsServerError::Store { path: path.to_owned(), source };
    let dir = &config.store_dir;
    std::fs::create_dir_all(dir).map_err(|source| store(dir, source))?;
    let port = config
        .port
        .filter(|port| *port != 0)
        .map_or_else(|| "-1".to_owned(), |port| port.to_string());
    let host = match config.host {
        IpAddr::V4(host) => host.to_string(),
        IpAddr::V6(host) => format!("[{host}]"),
    };
    let quoted = serde_json::to_string(&dir.to_string_lossy()).expect("text is JSON");
    let text = format!(
        "listen: \"{host}:{port}\"\nmax_payload: {MAX_PAYLOAD}\njetstream {{ store_dir: {quoted} }}\n"
    );
    let file = dir.join("nats-server.conf");
    std::fs::write(&file, text).map_err(|source| store(&file, source))?;
    Ok(file)
}

fn read_pid(child: &mut Child) -> i32 {
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        // The shell writes one short line and closes the pipe.
        let _ = BufReader::new(stdout.take(32)).read_line(&mut line);
    }
    line.trim().parse().unwrap_or(0)
}

/// Reads the server's log to its end: what it says of its port, its readiness and its faults.
fn follow(mut child: Child, sender: &watch::Sender<State>) {
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            sender.send_if_modified(|state| note(state, &line));
        }
    }
    let status = child.wait();
    sender.send_modify(|state| {
        state.ended = true;
        if state.fault.is_empty() {
            state.fault = status.map_or_else(|error| error.to_string(), |s| s.to_string());
        }
    });
}

fn note(state: &mut State, line: &str) -> bool {
    const LISTENING: &str = "Listening for client connections on ";
    if let Some((_, address)) = line.split_once(LISTENING) {
        state.port = address.rsplit(':').next().and_then(|port| port.trim().parse().ok());
    } else if line.contains("Server is ready") {
        state.ready = true;
        return true;
    } else if line.contains("[ERR]") || line.contains("[FTL]") || line.contains("nats-server:") {
        tracing::warn!(target: "nats_server", "{line}");
        line.clone_into(&mut state.fault);
    } else {
        tracing::debug!(target: "nats_server", "{line}");
    }
    false
}

#[cfg(test)]
mod tests;
