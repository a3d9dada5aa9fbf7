//! Connections to NATS: options, errors that say what to do, and the state of the link.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::rustls;
use async_nats::rustls::pki_types::CertificateDer;
use async_nats::rustls::pki_types::pem::PemObject as _;
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use tokio::sync::watch;

/// The longest wait between two attempts to connect.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// Where NATS is and who asks.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `nats://host:4222`, several separated by commas; `tls://` asks for TLS, and
    /// `nats://user:password@host` carries credentials.
    pub servers: String,
    /// The name of this connection in the server's lists.
    pub name: String,
    /// A `.creds` file.
    pub credentials: Option<PathBuf>,
    /// An authentication token.
    pub token: Option<String>,
    /// A PEM file with the authority that signed the server's certificate; there is no connection
    /// without TLS then.
    pub tls_ca: Option<PathBuf>,
    /// Messages of one subscription that may wait, at most; 0 takes 1024.
    pub subscription_capacity: usize,
}

/// The state of the link, as [`watch`] shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Whether messages flow now.
    pub connected: bool,
    /// How often the connection was made, 1 for the first time.
    pub connections: u64,
    /// What the server said last against this client.
    pub complaint: Option<String>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The address cannot be used.
    #[error("NATS address {address:?} is not valid: expected nats://host:4222 ({reason})")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of credentials or certificates cannot be used.
    #[error("{path}: expected {expected}: {source}")]
    File {
        /// Which file.
        path: String,
        /// What it should hold.
        expected: &'static str,
        /// What happened.
        source: std::io::Error,
    },
    /// The server does not know this client.
    #[error("NATS at {servers} refuses the credentials: check --creds, --token or user:password")]
    Refused {
        /// Where.
        servers: String,
    },
    /// There is no TLS with it.
    #[error("NATS at {servers}: {reason}: {advice}")]
    Tls {
        /// Where.
        servers: String,
        /// What happened.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// Nobody answers.
    #[error("NATS at {servers} cannot be reached ({reason}): is nats-server running there?")]
    Unreachable {
        /// Where.
        servers: String,
        /// What happened.
        reason: String,
    },
}

impl LinkError {
    /// Whether the same options may succeed later.
    pub fn is_transient(&self) -> bool {
        match self {
            LinkError::Refused { .. } | LinkError::Tls { .. } | LinkError::Unreachable { .. } => {
                true
            }
            LinkError::Address { .. } | LinkError::File { .. } => false,
        }
    }
}

/// Parses the addresses.
///
/// # Errors
/// [`LinkError::Address`] for the first that is not one.
pub fn parse_servers(servers: &str) -> Result<Vec<ServerAddr>, LinkError> {
    let parse = |address: &str| {
        let refuse =
            |reason: String| LinkError::Address { address: without_password(address), reason };
        if address.is_empty() {
            return Err(refuse("it is empty".to_owned()));
        }
        let parsed: ServerAddr =
            address.parse().map_err(|error: std::io::Error| refuse(error.to_string()))?;
        if parsed.host().is_empty() {
            return Err(refuse("it names no host".to_owned()));
        }
        Ok(parsed)
    };
    servers.split(',').map(|address| parse(address.trim())).collect()
}

/// The addresses as they may be shown: without user and password.
pub fn without_password(servers: &str) -> String {
    let shown: Vec<String> = servers
        .split(',')
        .map(|server| match (server.find("://"), server.rfind('@')) {
            (Some(scheme), Some(at)) if scheme + 3 <= at => {
                format!("{}{}", &server[..scheme + 3], &server[at + 1..])
            }
            (None, Some(at)) => server[at + 1..].to_owned(),
            (Some(_) | None, None | Some(_)) => server.to_owned(),
        })
        .collect();
    shown.join(",")
}

/// Connects once; the connection then mends itself for ever.
///
/// # Errors
/// [`LinkError`]; see [`LinkError::is_transient`].
pub async fn connect(options: &Options) -> Result<(Client, watch::Receiver<LinkState>), LinkError> {
    let servers = parse_servers(&options.servers)?;
    let (state, watched) = watch::channel(LinkState::default());
    let capacity = match options.subscription_capacity {
        0 => 1024,
        capacity => capacity,
    };
    let mut nats = ConnectOptions::new()
        .name(&options.name)
        .subscription_capacity(capacity)
        .client_capacity(256)
        .ping_interval(Duration::from_secs(20))
        .max_reconnects(None)
        .reconnect_delay_callback(delay)
        .event_callback(move |event| {
            note(&state, &event);
            std::future::ready(())
        });
    if let Some(path) = &options.credentials {
        nats = nats.credentials_file(path).await.map_err(|source| LinkError::File {
            path: path.display().to_string(),
            expected: "a NATS credentials file",
            source,
        })?;
    }
    if let Some(token) = &options.token {
        nats = nats.token(token.clone());
    }
    if let Some(path) = &options.tls_ca {
        check_authority(path)?;
        // Whoever names an authority wants to know with whom they speak.
        nats = nats.add_root_certificates(path.clone()).require_tls(true);
    }
    let shown = without_password(&options.servers);
    let client = nats.connect(servers).await.map_err(|error| match error.kind() {
        _ if let Some(advice) = advice_on_tls(&error) => {
            LinkError::Tls { servers: shown, reason: error.to_string(), advice }
        }
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            LinkError::Refused { servers: shown }
        }
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Tls
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => {
            LinkError::Unreachable { servers: shown, reason: error.to_string() }
        }
    })?;
    Ok((client, watched))
}

/// Whether a file has certificates.
fn check_authority(path: &Path) -> Result<(), LinkError> {
    let read = std::fs::read(path).and_then(|text| {
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
        match certificates {
            Ok(some) if !some.is_empty() => Ok(()),
            Ok(_) => Err(Error::new(ErrorKind::InvalidData, "there is none")),
            Err(error) => Err(Error::new(ErrorKind::InvalidData, error.to_string())),
        }
    });
    read.map_err(|source| LinkError::File {
        path: path.display().to_string(),
        expected: "a PEM file with certificates",
        source,
    })
}

/// What to do where TLS failed.
fn advice_on_tls(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    let mut sources = std::iter::successors(Some(error), |error| error.source());
    let of = |error: &(dyn std::error::Error + 'static)| {
        // What an error of input or output holds is not its source.
        let held = error.downcast_ref::<Error>().and_then(Error::get_ref);
        let error = held?.downcast_ref::<rustls::Error>()?;
        Some(if matches!(error, rustls::Error::InvalidCertificate(_)) {
            "name the authority that signed its certificate with --tls-ca"
        } else {
            "does it speak TLS, which --tls-ca and tls:// ask for?"
        })
    };
    sources.find_map(of)
}

/// Connects, however long it takes; tells `changed` each time the reason for waiting changes.
///
/// # Errors
/// [`LinkError`] that waiting cannot cure.
pub async fn connect_patiently(
    options: &Options,
    mut changed: impl FnMut(&LinkError),
) -> Result<(Client, watch::Receiver<LinkState>), LinkError> {
    let mut told = String::new();
    for attempt in 2.. {
        match connect(options).await {
            Err(error) if error.is_transient() => {
                let text = error.to_string();
                if text != told {
                    changed(&error);
                    told = text;
                }
            }
            outcome => return outcome,
        }
        tokio::time::sleep(delay(attempt)).await;
    }
    unreachable!("the attempts never end")
}

fn note(state: &watch::Sender<LinkState>, event: &Event) {
    state.send_modify(|state| match event {
        Event::Connected => {
            state.connected = true;
            state.connections += 1;
            state.complaint = None;
        }
        Event::Disconnected | Event::Closed => state.connected = false,
        Event::ServerError(error) => state.complaint = Some(error.to_string()),
        Event::ClientError(error) => state.complaint = Some(error.to_string()),
        Event::SlowConsumer(_) => {
            state.complaint = Some("messages arrive faster than they are taken".to_owned());
        }
        Event::LameDuckMode | Event::Draining => {}
    });
}

/// 0 for the first attempt, then doubling from 50 ms to [`DELAY_MAX`], each up to a quarter
/// shorter or longer, so that a fleet does not come back in one instant.
fn delay(attempt: usize) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempt - 2).unwrap_or(u32::MAX).min(10);
    let base = Duration::from_millis(50 << doublings).min(DELAY_MAX);
    let random = RandomState::new().build_hasher().finish() % 512;
    base * u32::try_from(768 + random).unwrap_or(1024) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Server;

    #[test]
    fn addresses_are_checked_and_shown_without_password() {
        assert_eq!(parse_servers("nats://a:4222, b").unwrap().len(), 2);
        for bad in ["", "nats://a:4222,", "http://a", "nats://", "nats://a:port"] {
            let error = parse_servers(bad).unwrap_err();
            assert!(error.to_string().contains("expected nats://host:4222"), "{error}");
        }
        assert_eq!(without_password("nats://u:p@a:1,b:2,u:p@c"), "nats://a:1,b:2,c");
    }

    #[test]
    fn waits_grow_to_a_bound() {
        assert_eq!(delay(1), Duration::ZERO);
        for attempt in 2..100 {
            assert!(delay(attempt) <= DELAY_MAX * 5 / 4);
            assert!(delay(attempt) >= Duration::from_millis(37));
        }
        assert!(delay(50) >= DELAY_MAX * 3 / 4);
    }

    #[tokio::test]
    async fn nobody_there_is_transient_and_says_what_to_do() {
        let options = Options { servers: "nats://127.0.0.1:1".to_owned(), ..Options::default() };
        let error = connect(&options).await.unwrap_err();
        assert!(error.is_transient());
        assert!(error.to_string().contains("is nats-server running there?"), "{error}");
    }

    #[tokio::test]
    async fn a_missing_credentials_file_is_named() {
        let options = Options {
            servers: "nats://127.0.0.1:1".to_owned(),
            credentials: Some("/does/not/exist.creds".into()),
            ..Options::default()
        };
        let error = connect(&options).await.unwrap_err();
        assert!(!error.is_transient());
        assert!(error.to_string().contains("/does/not/exist.creds"), "{error}");
    }

    /// As `nsc generate creds` writes it, with a key of the documentation of NATS.
    #[tokio::test]
    async fn a_credentials_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device.creds");
        let parts = [
            "-----BEGIN NATS USER JWT-----\neyJ0eXAiOiJqd3QifQ.e30.c2ln-bmF0_dXJl",
            "------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----",
            "SUAIO3FHUX5PNV2LQIIP7TZ3N4L7TX3W53MQGEIVYFIGA635OZCKEYHFLM",
            "------END USER NKEY SEED------\n",
        ];
        let options = Options {
            servers: "nats://127.0.0.1:1".to_owned(),
            credentials: Some(path.clone()),
            ..Options::default()
        };
        std::fs::write(&path, parts.join("\n")).unwrap();
        let error = connect(&options).await.unwrap_err();
        assert!(error.is_transient(), "it gets as far as the connection: {error}");
        std::fs::write(&path, parts[..2].join("\n")).unwrap();
        let error = connect(&options).await.unwrap_err();
        assert!(matches!(error, LinkError::File { .. }), "{error}");
    }

    /// A server with a certificate that nobody but itself has signed, and the files that hold it.
    fn with_tls() -> (tempfile::TempDir, Server) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.pem");
        std::fs::write(&path, include_str!("../testing/server.pem")).unwrap();
        let path = path.to_str().unwrap();
        let config = format!("tls {{ cert_file: {path:?}, key_file: {path:?} }}");
        (folder, Server::start_with(&config))
    }

    #[tokio::test]
    async fn a_server_is_trusted_by_its_authority_and_the_reason_says_so() {
        let (folder, server) = with_tls();
        let mut options = Options { servers: server.url(), ..Options::default() };
        let error = connect(&options).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("--tls-ca"), "{error}");
        options.tls_ca = Some(folder.path().join("server.pem"));
        connect(&options).await.unwrap();
    }

    #[tokio::test]
    async fn who_names_an_authority_does_not_speak_in_the_clear() {
        let (folder, _) = with_tls();
        let server = Server::start();
        let (tls_ca, token) = (Some(folder.path().join("server.pem")), Some("secret".to_owned()));
        let options = Options { servers: server.url(), tls_ca, token, ..Options::default() };
        let error = connect(&options).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("TLS"), "{error}");
    }

    #[tokio::test]
    async fn a_file_without_a_certificate_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let key = include_str!("../testing/server.pem").split("-----BEGIN CERT").next().unwrap();
        for (name, text) in [("empty", ""), ("text", "nats = 'a'"), ("key", key)] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let servers = "nats://127.0.0.1:1".to_owned();
            let options = Options { servers, tls_ca: Some(path), ..Options::default() };
            let error = connect(&options).await.unwrap_err();
            assert!(matches!(error, LinkError::File { .. }), "{name}: {error}");
        }
    }
}
