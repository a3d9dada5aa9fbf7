//! `dunlin serve` and `dunlin up`: the broker itself.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use datasets::DataError;
use jobs::id::DatasetName;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::failure::CliError;
use super::output::Output;
use crate::broker::{Broker, BrokerConfig};
use crate::http::{self, HttpLimits};
use crate::nats_server::{NatsServer, NatsServerConfig};

/// Starts of an embedded nats-server that keeps ending, before giving up.
const STARTS_MAX: u32 = 5;
/// A nats-server that lived so long was sound.
const SOUND_AFTER: Duration = Duration::from_mins(1);

/// `dunlin serve`
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// A running NATS: nats://host:port, several separated by commas.
    #[arg(long, env = "DUNLIN_NATS", value_name = "URL")]
    nats: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// `dunlin up`
#[derive(Debug, Args)]
pub(super) struct UpArgs {
    /// The port on which devices reach NATS; 0 takes a free one.
    #[arg(long, default_value_t = 4222, value_name = "PORT")]
    nats_port: u16,
    /// The address on which devices reach NATS; 127.0.0.1 keeps it on this machine.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED), value_name = "ADDRESS")]
    nats_host: IpAddr,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
struct Common {
    /// Where to listen for HTTP.
    #[arg(long, env = "DUNLIN_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Where the embedded nats-server keeps everything [default: ~/.local/state/dunlin].
    #[arg(long, env = "DUNLIN_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The nats-server program, if not on PATH.
    #[arg(long, env = "DUNLIN_NATS_SERVER", value_name = "FILE")]
    nats_server: Option<PathBuf>,
    /// Bytes of a request body or a model, at most; a picture may have what one NATS message
    /// takes, JSON 8 times that.
    #[arg(long, default_value_t = HttpLimits::default().body_bytes, value_name = "BYTES")]
    body_bytes_max: usize,
    /// NATS servers that hold everything: 3 in a cluster of three, so that one may be lost.
    #[arg(
        long,
        env = "DUNLIN_REPLICAS",
        default_value_t = 1,
        value_parser = clap::value_parser!(u8).range(1..=5),
        value_name = "N"
    )]
    replicas: u8,
    /// A data set on which this broker judges models (dunlin train --evaluate broker), in the
    /// formats that devices read; named as its folder unless NAME= says otherwise. May be repeated.
    #[arg(
        long,
        env = "DUNLIN_DATA",
        value_delimiter = ',',
        value_parser = named_folder,
        value_name = "[NAME=]FOLDER"
    )]
    data: Vec<(DatasetName, PathBuf)>,
}

/// A data set of `--data`: `NAME=FOLDER`, or a folder that has the data set's name.
fn named_folder(text: &str) -> Result<(DatasetName, PathBuf), String> {
    let (name, folder) = match text.split_once('=') {
        Some((name, folder)) => (Some(name), Path::new(folder)),
        None => (Path::new(text).file_name().and_then(|name| name.to_str()), Path::new(text)),
    };
    let name = name.ok_or("a folder with a name is expected, or NAME=FOLDER")?;
    let name = DatasetName::parse(name).map_err(|error| {
        format!("{error}: give the data set a name with --data NAME={}", folder.display())
    })?;
    datasets::check(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok((name, folder.to_owned()))
}

/// Runs a broker until SIGINT or SIGTERM.
pub(super) async fn serve(args: ServeArgs, output: &mut Output) -> Result<(), CliError> {
    match args.nats {
        Some(url) => broker(&args.common, url, None, None, output).await,
        None => embedded(args.common, None, output).await,
    }
}

/// Runs a broker with a NATS that devices can reach.
pub(super) async fn up(args: UpArgs, output: &mut Output) -> Result<(), CliError> {
    embedded(args.common, Some((args.nats_host, args.nats_port)), output).await
}

async fn embedded(
    common: Common,
    reachable: Option<(IpAddr, u16)>,
    output: &mut Output,
) -> Result<(), CliError> {
    let dir = common.state_dir.clone().unwrap_or_else(default_state_dir);
    let lock = lock(&dir)?;
    let mut config = NatsServerConfig {
        program: common.nats_server.clone(),
        store_dir: dir.join("nats"),
        host: reachable.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |(host, _)| host),
        port: reachable.map(|(_, port)| port).filter(|port| *port != 0),
    };
    let server = start(&config).await?;
    config.port = Some(server.port());
    let reachable = reachable.map(|(host, _)| (host, server.port()));
    let url = server.url();
    let done = broker(&common, url, Some((server, config)), reachable, output).await;
    drop(lock);
    done
}

async fn start(config: &NatsServerConfig) -> Result<NatsServer, CliError> {
    NatsServer::start(config)
        .await
        .map_err(|error| CliError::usage(error.to_string(), error.hint()))
}

async fn broker(
    common: &Common,
    nats: String,
    server: Option<(NatsServer, NatsServerConfig)>,
    reachable: Option<(IpAddr, u16)>,
    output: &mut Output,
) -> Result<(), CliError> {
    let listener = TcpListener::bind(common.listen).await.map_err(|error| {
        CliError::usage(
            format!("cannot listen on {}: {error}", common.listen),
            "choose another address with --listen, port 0 for a free one",
        )
    })?;
    let address = listener.local_addr()?;
    let mut signals = Signals::new()?;
    let config = BrokerConfig {
        nats: nats.clone(),
        body_bytes_max: common.body_bytes_max,
        replicas: common.replicas.into(),
        data: common.data.iter().cloned().collect(),
        tried_by: own_program(),
    };
    let broker = tokio::select! {
        started = Broker::start(config) => started.map_err(|error| {
            let hint = match error.downcast_ref::<DataError>() {
                Some(_) => "--data takes the folders that agents take, see the README",
                None => "is NATS there, 2.11 or newer, with JetStream?",
            };
            CliError::usage(format!("{error:#}"), hint)
        })?,
        () = signals.next() => return Ok(()),
    };
    announce(output, address, &nats, reachable)?;
    let limits = HttpLimits { body_bytes: common.body_bytes_max, ..HttpLimits::default() };
    let mut fault = None;
    let mut server = server;
    let until = async {
        tokio::select! {
            () = signals.next() => tracing::info!("asked to end"),
            ended = keep(&mut server) => fault = Some(ended),
        }
    };
    let done = http::serve_within(listener, broker.clone(), limits, until).await;
    broker.stop().await;
    if let Some((server, _)) = server {
        server.stop().await;
    }
    done?;
    fault.map_or(Ok(()), Err)
}

/// This program, also when its file was replaced or removed since it was started.
fn own_program() -> Option<PathBuf> {
    let running = Path::new("/proc/self/exe");
    if running.exists() { Some(running.to_owned()) } else { std::env::current_exe().ok() }
}

/// Starts an embedded nats-server that ended again; returns when that is of no use.
async fn keep(server: &mut Option<(NatsServer, NatsServerConfig)>) -> CliError {
    let mut starts = 0;
    loop {
        let Some((running, config)) = server.as_mut() else {
            return std::future::pending().await;
        };
        let since = tokio::time::Instant::now();
        let said = running.ended().await;
        starts = if since.elapsed() > SOUND_AFTER { 1 } else { starts + 1 };
        tracing::error!(said, starts, "the embedded nats-server ended; starting it again");
        if starts > STARTS_MAX {
            return CliError::usage(format!("nats-server keeps ending: {said}"), "see the log");
        }
        tokio::time::sleep(Duration::from_millis(200) * (starts - 1)).await;
        match start(config).await {
            Ok(started) => *running = started,
            Err(error) => return error,
        }
    }
}

fn announce(
    output: &mut Output,
    address: SocketAddr,
    nats: &str,
    reachable: Option<(IpAddr, u16)>,
) -> std::io::Result<()> {
    if output.json {
        return output.document(&serde_json::json!({
            "event": "listening",
            "http": format!("http://{address}"),
            "nats": nats,
        }));
    }
    output
        .line(format_args!("dunlin {} listens on http://{address}", env!("CARGO_PKG_VERSION")))?;
    output.line(format_args!("NATS is {nats}"))?;
    let Some((host, port)) = reachable else { return Ok(()) };
    let host = if host.is_unspecified() { own_address() } else { host };
    let server =
        if address.port() == 8080 { String::new() } else { format!(" --server http://{address}") };
    output.line(format_args!(
        "
Join a device (copy dunlin-agent to it first):
  dunlin-agent --nats nats://{host}:{port}
See them, train, ask:
  dunlin devices{server}
  dunlin train{server} --dataset digits --model mlp --rounds 5
  dunlin infer{server} --model mlp picture.png

NATS has no password yet: whoever reaches port {port} can join. Ctrl-C ends both."
    ))
}

/// The address that other machines see, as far as this one knows.
fn own_address() -> IpAddr {
    // Connecting a datagram socket sends nothing; it only asks for the route.
    let route = || {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
        socket.connect("192.0.2.1:9").ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    route().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

fn default_state_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(dir) = set("XDG_STATE_HOME") {
        return PathBuf::from(dir).join("dunlin");
    }
    match set("HOME") {
        Some(home) => PathBuf::from(home).join(".local/state/dunlin"),
        None => PathBuf::from("dunlin-state"),
    }
}

/// Makes the folder and holds it: two nats-servers in one folder would destroy it.
fn lock(dir: &Path) -> Result<File, CliError> {
    std::fs::create_dir_all(dir).map_err(|error| CliError::file(dir, &error))?;
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| CliError::file(&path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(CliError::usage(
            format!("another dunlin works in {}", dir.display()),
            "end it, or choose another folder with --state-dir",
        )),
        Err(std::fs::TryLockError::Error(error)) => Err(CliError::file(&path, &error)),
    }
}

/// SIGINT and SIGTERM.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_are_named_as_their_folders_or_as_one_says() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| {
            let folder = dir.path().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("train.csv"), "1,0\n").unwrap();
            folder.to_str().unwrap().to_owned()
        };
        let digits = folder("digits");
        let named = |text: &str| named_folder(text).map(|(name, path)| (name.to_string(), path));
        let expected = |name: &str| Ok((name.to_owned(), PathBuf::from(&digits)));
        assert_eq!(named(&digits), expected("digits"));
        assert_eq!(
            named(&format!("{digits}/")),
            expected("digits").map(|(name, _)| { (name, PathBuf::from(format!("{digits}/"))) })
        );
        assert_eq!(named(&format!("other={digits}")), expected("other"));
        let odd = named(&folder("No Name")).unwrap_err();
        assert!(odd.contains("give the data set a name with --data NAME="), "{odd}");
        let absent = named(&format!("{digits}/absent")).unwrap_err();
        assert!(absent.contains("absent: "), "{absent}");
    }
}
