//! The streams and buckets in JetStream: their names, bounds, and how they come to be.
//!
//! Brokers call [`ensure`] when they start; agents only use what is there.

use std::time::Duration;

use async_nats::jetstream::context::{
    AccountErrorKind, CreateStreamError, CreateStreamErrorKind, GetStreamErrorKind,
};
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy};
use async_nats::jetstream::{Context, ErrorCode};
use jobs::subject;

mod made;

pub use made::Made;

/// Object store of blobs, named by the hexadecimal part of their digests.
pub const BUCKET_BLOBS: &str = "blobs";
/// Key-value bucket: device id -> [`jobs::device::Hello`].
pub const BUCKET_DEVICES: &str = "devices";
/// Key-value bucket: job id -> job record.
pub const BUCKET_JOBS: &str = "jobs";
/// Key-value bucket: job id -> state of a training job, with its owner's lease.
pub const BUCKET_TRAININGS: &str = "trainings";
/// Key-value bucket: idempotency key -> job id.
pub const BUCKET_IDEMPOTENCY: &str = "idempotency";
/// Key-value bucket: encoded model name and version -> model record.
pub const BUCKET_MODELS: &str = "models";

/// All key-value buckets with their bounds.
const BUCKETS: [(&str, i64, Option<Duration>); 5] = [
    (BUCKET_DEVICES, 64 * MIB, None),
    (BUCKET_JOBS, 512 * MIB, None),
    (BUCKET_TRAININGS, 256 * MIB, None),
    (BUCKET_IDEMPOTENCY, 64 * MIB, Some(DAY)),
    (BUCKET_MODELS, 64 * MIB, None),
];

const MIB: i64 = 1024 * 1024;
const DAY: Duration = Duration::from_hours(24);
/// How long the streams recognise a repeated `Nats-Msg-Id`: longer than any retry in flight.
const DUPLICATE_WINDOW: Duration = Duration::from_mins(10);
/// How often streams are asked for when no answer comes.
const ATTEMPTS: u32 = 20;
/// How long to wait before they are asked for again.
const REST: Duration = Duration::from_millis(200);
/// How long an answer about a stream may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How often all bounds are halved for a server with little disk: down to a 1024th.
const HALVINGS_MAX: u32 = 10;

/// The choices an operator has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Servers that hold each stream; 3 in a cluster.
    pub replicas: usize,
    /// Bytes of all blobs, at most.
    pub blob_bytes: i64,
}

impl Default for Layout {
    fn default() -> Self {
        Self { replicas: 1, blob_bytes: 16 * 1024 * MIB }
    }
}

/// Why the streams and buckets could not be made.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// The server has no JetStream.
    #[error("NATS has no JetStream: start nats-server with -js")]
    NoJetStream,
    /// The server does not answer.
    #[error("JetStream does not answer: {reason}")]
    Unavailable {
        /// What happened.
        reason: String,
    },
    /// The server said nothing of a stream.
    #[error("JetStream gives no answer about stream {name:?}: has its cluster a majority?")]
    NoAnswer {
        /// Which; buckets are streams too.
        name: String,
    },
    /// The server refused.
    #[error("JetStream refuses stream {name:?}: {reason}")]
    Refused {
        /// Which; buckets are streams too.
        name: String,
        /// What it said.
        reason: String,
    },
}

/// Makes the streams and buckets that are missing; those that exist stay as they are, but for
/// servers that are to hold them as well, and messages that they are to forget by themselves.
///
/// A server with too little disk for the bounds gets half of each, and half again, so that a
/// small machine can serve too.
///
/// # Errors
/// [`LayoutError`].
pub async fn ensure(context: &Context, layout: Layout) -> Result<(), LayoutError> {
    let mut context = context.clone();
    context.set_timeout(ANSWER_WITHIN);
    patiently(|| ensure_once(&context, layout)).await
}

/// Asks again where no answer comes: of two brokers that ask a cluster for the same stream at the same
/// time, one gets none, nor does who asks while a cluster elects; the stream may be there.
async fn patiently<T, F>(ask: impl Fn() -> F) -> Result<T, LayoutError>
where
    F: Future<Output = Result<T, LayoutError>>,
{
    for _ in 1..ATTEMPTS {
        match ask().await {
            Err(LayoutError::NoAnswer { .. } | LayoutError::Unavailable { .. }) => {
                tokio::time::sleep(REST).await;
            }
            done => return done,
        }
    }
    ask().await
}

async fn ensure_once(context: &Context, layout: Layout) -> Result<(), LayoutError> {
    context.query_account().await.map_err(|error| without_account(&error.kind()))?;
    let mut missing = Vec::new();
    for config in configs(layout) {
        match existing(context, &config.name).await? {
            None => missing.push(config),
            Some(found) => {
                let fitted = fitted(&found.config, &config);
                if fitted == found.config {
                    continue;
                }
                let (name, updating) = (config.name, context.update_stream(fitted));
                let updated = Box::pin(updating).await;
                updated
                    .map_err(|error| LayoutError::Refused { name, reason: error.to_string() })?;
            }
        }
    }
    let mut halvings = 0;
    loop {
        match create(context, &missing, halvings).await {
            Err((_, error)) if no_space(&error) && halvings < HALVINGS_MAX => halvings += 1,
            Err((name, error))
                if error.kind() == CreateStreamErrorKind::TimedOut
                    || server_code(&error).is_some_and(is_electing) =>
            {
                return Err(LayoutError::NoAnswer { name });
            }
            Err((name, error)) => {
                return Err(LayoutError::Refused { name, reason: error.to_string() });
            }
            Ok(()) => return Ok(()),
        }
    }
}

/// A stream that exists, with what it may not lack.
fn fitted(found: &Config, wanted: &Config) -> Config {
    Config {
        num_replicas: found.num_replicas.max(wanted.num_replicas),
        allow_message_ttl: found.allow_message_ttl || wanted.allow_message_ttl,
        ..found.clone()
    }
}

/// Makes streams, or fits those that an attempt with larger bounds made.
async fn create(
    context: &Context,
    missing: &[Config],
    halvings: u32,
) -> Result<(), (String, CreateStreamError)> {
    for config in missing {
        let config = Config { max_bytes: config.max_bytes >> halvings, ..config.clone() };
        match context.create_or_update_stream(config.clone()).await {
            Ok(_) => {}
            // Another broker made it in this moment.
            Err(error) if server_code(&error) == Some(ErrorCode::STREAM_NAME_EXIST) => {}
            Err(error) => return Err((config.name, error)),
        }
    }
    Ok(())
}

async fn existing(context: &Context, name: &str) -> Result<Option<Info>, LayoutError> {
    let error = match context.get_stream(name).await {
        Ok(stream) => return Ok(Some(stream.cached_info().clone())),
        Err(error) => error,
    };
    match error.kind() {
        GetStreamErrorKind::Request => Err(LayoutError::NoAnswer { name: name.to_owned() }),
        GetStreamErrorKind::JetStream(said) if is_electing(said.error_code()) => {
            Err(LayoutError::NoAnswer { name: name.to_owned() })
        }
        GetStreamErrorKind::JetStream(said) if said.error_code() == ErrorCode::STREAM_NOT_FOUND => {
            Ok(None)
        }
        GetStreamErrorKind::EmptyName
        | GetStreamErrorKind::InvalidStreamName
        | GetStreamErrorKind::JetStream(_) => {
            Err(LayoutError::Refused { name: name.to_owned(), reason: error.to_string() })
        }
    }
}

/// Why nothing is known of the account.
fn without_account(error: &AccountErrorKind) -> LayoutError {
    match error {
        AccountErrorKind::JetStream(said) if is_electing(said.error_code()) => {
            LayoutError::Unavailable { reason: said.to_string() }
        }
        AccountErrorKind::JetStream(_) | AccountErrorKind::JetStreamUnavailable => {
            LayoutError::NoJetStream
        }
        AccountErrorKind::TimedOut | AccountErrorKind::Other => {
            LayoutError::Unavailable { reason: error.to_string() }
        }
    }
}

/// Whether a cluster has nobody now who could answer.
fn is_electing(code: ErrorCode) -> bool {
    code == ErrorCode::CLUSTER_NOT_AVAILABLE
}

fn configs(layout: Layout) -> Vec<Config> {
    let stream = |name: &str, subjects: &str, max_bytes: i64| Config {
        name: name.to_owned(),
        subjects: vec![subjects.to_owned()],
        max_bytes,
        max_age: 7 * DAY,
        discard: DiscardPolicy::Old,
        duplicate_window: DUPLICATE_WINDOW,
        num_replicas: layout.replicas,
        allow_direct: true,
        ..Config::default()
    };
    let work = Config {
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::New,
        ..stream(subject::STREAM_WORK, subject::WORK_ALL, 1024 * MIB)
    };
    let mut configs = vec![
        stream(subject::STREAM_FLEET, subject::FLEET_ALL, 256 * MIB),
        stream(subject::STREAM_REPORTS, subject::REPORTS_ALL, 512 * MIB),
        work,
        stream(subject::STREAM_EVENTS, subject::EVENTS_ALL, 512 * MIB),
    ];
    configs.extend(BUCKETS.map(|(name, max_bytes, max_age)| Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        max_bytes,
        max_age: max_age.unwrap_or_default(),
        max_messages_per_subject: 1,
        deny_delete: true,
        allow_message_ttl: true,
        ..bucket(layout)
    }));
    configs.push(Config {
        name: format!("OBJ_{BUCKET_BLOBS}"),
        subjects: vec![format!("$O.{BUCKET_BLOBS}.C.>"), format!("$O.{BUCKET_BLOBS}.M.>")],
        max_bytes: layout.blob_bytes,
        ..bucket(layout)
    });
    configs
}

/// What key-value buckets (ADR-8) and object stores (ADR-20) have in common.
fn bucket(layout: Layout) -> Config {
    Config {
        discard: DiscardPolicy::New,
        allow_rollup: true,
        allow_direct: true,
        num_replicas: layout.replicas,
        ..Config::default()
    }
}

fn server_code(error: &CreateStreamError) -> Option<ErrorCode> {
    match error.kind() {
        CreateStreamErrorKind::JetStream(error) => Some(error.error_code()),
        CreateStreamErrorKind::EmptyStreamName
        | CreateStreamErrorKind::InvalidStreamName
        | CreateStreamErrorKind::DomainAndExternalSet
        | CreateStreamErrorKind::JetStreamUnavailable
        | CreateStreamErrorKind::TimedOut
        | CreateStreamErrorKind::Response
        | CreateStreamErrorKind::NotFound
        | CreateStreamErrorKind::ResponseParse => None,
    }
}

fn no_space(error: &CreateStreamError) -> bool {
    // A cluster says so where none of its servers has the room.
    let nowhere = server_code(error) == Some(ErrorCode::CLUSTER_NO_PEERS)
        && error.to_string().contains("storage");
    let codes = [
        ErrorCode::STORAGE_RESOURCES_EXCEEDED,
        ErrorCode::INSUFFICIENT_RESOURCES,
        ErrorCode::ACCOUNT_RESOURCES_EXCEEDED,
    ];
    nowhere || codes.into_iter().any(|code| server_code(error) == Some(code))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Server;

    #[tokio::test]
    async fn everything_is_made_once_and_only_once() {
        let server = Server::start();
        let context = async_nats::jetstream::new(server.client().await);
        ensure(&context, Layout::default()).await.unwrap();
        ensure(&context, Layout { blob_bytes: 1, ..Layout::default() }).await.unwrap();
        let blobs = context.get_stream("OBJ_blobs").await.unwrap();
        assert!(blobs.cached_info().config.max_bytes > MIB);
        let work = context.get_stream("WORK").await.unwrap();
        assert_eq!(work.cached_info().config.retention, RetentionPolicy::WorkQueue);
        assert_eq!(work.cached_info().config.duplicate_window, DUPLICATE_WINDOW);
        for (name, _, _) in BUCKETS {
            context.get_key_value(name).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_bucket_of_before_learns_to_forget_by_itself() {
        let server = Server::start();
        let context = async_nats::jetstream::new(server.client().await);
        let mut before = configs(Layout::default());
        before.retain(|config| config.name == "KV_jobs");
        let before = Config { allow_message_ttl: false, max_bytes: MIB, ..before.remove(0) };
        context.create_stream(before.clone()).await.unwrap();
        for _ in 0..2 {
            ensure(&context, Layout::default()).await.unwrap();
            let jobs = context.get_stream("KV_jobs").await.unwrap();
            let Config { allow_message_ttl, max_bytes, .. } = jobs.cached_info().config;
            assert_eq!((allow_message_ttl, max_bytes), (true, MIB));
        }
    }

    #[tokio::test]
    async fn a_small_server_gets_smaller_bounds() {
        let server = Server::start_with("jetstream { max_file_store: 100MB }");
        let context = async_nats::jetstream::new(server.client().await);
        ensure(&context, Layout::default()).await.unwrap();
        let blobs = context.get_stream("OBJ_blobs").await.unwrap();
        assert!((10 * MIB..100 * MIB).contains(&blobs.cached_info().config.max_bytes));
    }

    #[test]
    fn a_cluster_that_elects_is_not_without_jetstream() {
        let said = |err_code: u16| {
            let said = serde_json::json!({"code": 503, "err_code": err_code});
            without_account(&AccountErrorKind::JetStream(serde_json::from_value(said).unwrap()))
        };
        assert!(matches!(said(10008), LayoutError::Unavailable { .. }), "{:?}", said(10008));
        assert!(matches!(said(10076), LayoutError::NoJetStream), "{:?}", said(10076));
        assert!(matches!(said(10039), LayoutError::NoJetStream), "{:?}", said(10039));
    }

    #[tokio::test]
    async fn a_server_without_jetstream_is_told_apart() {
        let server = Server::start_with("");
        let context = async_nats::jetstream::new(server.client().await);
        let error = ensure(&context, Layout::default()).await.unwrap_err();
        assert!(error.to_string().contains("-js"), "{error}");
    }
}
