//! A key-value bucket of one type, with compare-and-set and a watch that mends itself.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::connection::State;
use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, CreateError, CreateErrorKind, Operation};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use async_nats::{Client, HeaderMap};
use jobs::id::Digest;
use jobs::wire;
use link::layout::Made;
use link::publish::{Conflict, conflict, rest_after};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch as latest};

use super::{StoreError, packed, unavailable};

mod watch;

pub use watch::Change;

/// How long it counts that a value was not stored.
const REFUSAL_COUNTS: Duration = Duration::from_secs(15);
/// Times that a value is changed anew because others changed it in between.
const CHANGES_TRIED: u32 = 20;
/// The pause before a change is tried anew, times the number of tries.
const CHANGE_PAUSE: Duration = Duration::from_millis(5);
/// Times that a value is written while another write is under way: for a fifth of a second.
const WRITES_TRIED: u32 = 8;
/// How long a bucket says of a key that it is no more; later nothing is left of it. Whoever follows the
/// bucket, and is cut off from it for longer, does not learn of it.
const TOLD_FOR: Duration = Duration::from_hours(24);
/// A key that never has a value, and that no pattern of a bucket matches.
const NEVER_STORED: &str = "never.a.value";

/// A bucket whose values are all of one type.
#[derive(Debug)]
pub struct Bucket<T> {
    name: &'static str,
    /// The keys that hold values of this type.
    pattern: &'static str,
    store: kv::Store,
    client: Client,
    /// When and why a value was not stored though the connection stood, if none was since.
    refusal: Arc<Mutex<Option<(Instant, String)>>>,
    /// Told when whoever follows the bucket is behind.
    behind: Arc<Notify>,
    /// When all streams were made.
    made: latest::Receiver<Made>,
    values: PhantomData<fn() -> T>,
}

/// A value and the revision that compare-and-set asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Versioned<T> {
    /// What is stored.
    pub value: T,
    /// Its place in the bucket's history.
    pub revision: u64,
}

impl<T> Clone for Bucket<T> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            pattern: self.pattern,
            store: self.store.clone(),
            client: self.client.clone(),
            refusal: self.refusal.clone(),
            behind: self.behind.clone(),
            made: self.made.clone(),
            values: PhantomData,
        }
    }
}

impl<T: Serialize + DeserializeOwned + Send + 'static> Bucket<T> {
    pub(super) async fn open(
        context: &Context,
        made: &latest::Sender<Made>,
        name: &'static str,
        pattern: &'static str,
    ) -> Result<Self, StoreError> {
        let store = context.get_key_value(name).await;
        let store = store.map_err(|error| unavailable(format!("opening bucket {name}"), &error))?;
        let (client, refusal, behind) = (context.client(), Arc::default(), Arc::default());
        let made = made.subscribe();
        Ok(Self { name, pattern, store, client, refusal, behind, made, values: PhantomData })
    }

    /// Why values are not stored now though the server answers.
    pub(super) fn refusal(&self) -> Option<String> {
        let refusal = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        let (_, reason) = refusal.as_ref().filter(|(at, _)| at.elapsed() < REFUSAL_COUNTS)?;
        Some(reason.clone())
    }

    /// How much of the room that the bucket may take is taken, 0 to 1; buckets of the same name
    /// share theirs.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn filled(&self) -> Result<f64, StoreError> {
        let info = self.store.stream.get_info().await;
        let info =
            info.map_err(|error| self.unavailable("asking for the size of", "all", &error))?;
        #[expect(clippy::cast_precision_loss, reason = "a share need not be exact")]
        let filled = match info.config.max_bytes {
            most if most > 0 => info.state.bytes as f64 / most as f64,
            _ => 0.0,
        };
        Ok(filled)
    }

    /// Remembers whether a value was stored.
    fn noted(&self, written: Result<u64, StoreError>) -> Result<u64, StoreError> {
        let refused = match &written {
            Err(error @ StoreError::Unavailable { .. })
                if self.client.connection_state() == State::Connected =>
            {
                Some((Instant::now(), error.to_string()))
            }
            Ok(_) | Err(_) => None,
        };
        *self.refusal.lock().unwrap_or_else(PoisonError::into_inner) = refused;
        written
    }

    /// The value of a key. Of several servers any one answers, which may be behind; that there is
    /// none is what a majority says.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Damaged`].
    pub async fn get(&self, key: &str) -> Result<Option<Versioned<T>>, StoreError> {
        match self.get_near(key).await? {
            None if self.is_replicated() => {
                self.confirm(key).await?;
                self.get_at_leader(key).await
            }
            near => Ok(near),
        }
    }

    /// The value of a key. That there is none is what the leader says, which may have been cut off
    /// and not know it yet; without a leader it is what the server that answers says.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Damaged`].
    pub async fn get_unconfirmed(&self, key: &str) -> Result<Option<Versioned<T>>, StoreError> {
        match self.get_near(key).await? {
            None if self.is_replicated() => match self.get_at_leader(key).await {
                Err(StoreError::Unavailable { .. }) => Ok(None),
                found => found,
            },
            near => Ok(near),
        }
    }

    /// The value of a key as the server that answers knows it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Damaged`].
    pub async fn get_near(&self, key: &str) -> Result<Option<Versioned<T>>, StoreError> {
        let entry = self.store.entry(key).await;
        let entry = entry.map_err(|error| self.unavailable("reading", key, &error))?;
        match entry {
            Some(entry) if entry.operation == Operation::Put => Ok(Some(Versioned {
                value: self.decode(key, &entry.value)?,
                revision: entry.revision,
            })),
            Some(_) | None => Ok(None),
        }
    }

    /// The value of a key as the leader knows it; one that was cut off takes itself for the leader
    /// for up to 20 seconds more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Damaged`].
    pub async fn get_at_leader(&self, key: &str) -> Result<Option<Versioned<T>>, StoreError> {
        match self.last_at_leader(key).await? {
            Some(message) if !is_gone(&message.headers) => {
                let value = self.decode(key, &message.payload)?;
                Ok(Some(Versioned { value, revision: message.sequence }))
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Every digest that is in the text of a key's value, as a majority knows it.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Damaged`].
    pub async fn digests(&self, key: &str) -> Result<Vec<Digest>, StoreError> {
        self.confirm(key).await?;
        let Some(message) = self.last_at_leader(key).await? else { return Ok(Vec::new()) };
        let text = packed::unpack(&message.payload).map_err(|error| self.damaged(key, &error))?;
        Ok(digests_in(&text))
    }

    fn is_replicated(&self) -> bool {
        self.store.stream.cached_info().config.num_replicas > 1
    }

    /// Waits until a majority of several servers agrees to what its leader proposes, so that what
    /// this leader knows is all that was stored before. Removing what is not there is such a
    /// proposal and leaves the bucket as it is.
    async fn confirm(&self, key: &str) -> Result<(), StoreError> {
        if self.is_replicated() {
            let nothing = format!("{}{NEVER_STORED}", self.store.prefix);
            let agreed = self.store.stream.purge().filter(nothing).await;
            agreed.map_err(|error| self.unavailable("confirming", key, &error))?;
        }
        Ok(())
    }

    /// The last message under a key, or of keys that match a pattern.
    async fn last_at_leader(&self, key: &str) -> Result<Option<StreamMessage>, StoreError> {
        let subject = format!("{}{key}", self.store.prefix);
        match self.store.stream.get_last_raw_message_by_subject(&subject).await {
            Ok(message) => Ok(Some(message)),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
            Err(error) => Err(self.unavailable("reading", key, &error)),
        }
    }

    /// Stores a value under a key that has none; its revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when there is one; [`StoreError::Unavailable`], after which the
    /// value may be stored or not.
    pub async fn create(&self, key: &str, value: &T) -> Result<u64, StoreError> {
        let value = packed::encode(value);
        let met = |error: &CreateError| match error.kind() {
            CreateErrorKind::AlreadyExists => Some(Conflict::Written),
            CreateErrorKind::InvalidKey
            | CreateErrorKind::Publish
            | CreateErrorKind::Ack
            | CreateErrorKind::Other => conflict(error),
        };
        let create = || self.store.create(key, value.clone());
        self.noted(self.settled(("creating", key), met, create).await)
    }

    /// Replaces the value of this revision; the new revision.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the key has another revision by now;
    /// [`StoreError::Unavailable`], after which the value may be stored or not.
    pub async fn update(&self, key: &str, value: &T, revision: u64) -> Result<u64, StoreError> {
        let value = packed::encode(value);
        let update = || self.store.update(key, value.clone(), revision);
        self.noted(self.settled(("writing", key), |error| conflict(error), update).await)
    }

    /// Writes once it is known whether another write that is under way came before.
    async fn settled<E, F>(
        &self,
        (doing, key): (&str, &str),
        met: impl Fn(&E) -> Option<Conflict>,
        write: impl Fn() -> F,
    ) -> Result<u64, StoreError>
    where
        E: std::error::Error + 'static,
        F: Future<Output = Result<u64, E>>,
    {
        let mut attempt = 1;
        loop {
            let error = match write().await {
                Ok(revision) => return Ok(revision),
                Err(error) => error,
            };
            match met(&error) {
                Some(Conflict::Written) => {
                    return Err(StoreError::Conflict { key: key.to_owned() });
                }
                Some(Conflict::UnderWay) if attempt < WRITES_TRIED => {
                    tokio::time::sleep(rest_after(attempt)).await;
                    attempt += 1;
                }
                Some(Conflict::UnderWay) | None => return Err(self.unavailable(doing, key, &error)),
            }
        }
    }

    /// Stores a value, whatever was there.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn put(&self, key: &str, value: &T) -> Result<u64, StoreError> {
        let put = self.store.put(key, packed::encode(value)).await;
        self.noted(put.map_err(|error| self.unavailable("writing", key, &error)))
    }

    /// Removes a key and its history.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn remove(&self, key: &str) -> Result<(), StoreError> {
        self.remove_and_tell(key, TOLD_FOR).await
    }

    /// The same, told for so long.
    async fn remove_and_tell(&self, key: &str, told: Duration) -> Result<(), StoreError> {
        let purged = self.store.purge_with_ttl(key, told).await;
        purged.map_err(|error| self.unavailable("removing", key, &error))
    }

    /// Removes all keys that match a pattern, and leaves nothing of them: whoever follows the bucket is
    /// told nothing.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn remove_all(&self, pattern: &str) -> Result<(), StoreError> {
        let keys = format!("{}{pattern}", self.store.prefix);
        let purged = self.store.stream.purge().filter(keys).await;
        purged.map(drop).map_err(|error| self.unavailable("removing", pattern, &error))
    }

    /// Changes a value by compare-and-set until it holds; `change` gives false to leave it.
    /// The value afterwards, `None` when the key has none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], also when others change it all the time;
    /// [`StoreError::Damaged`].
    pub async fn modify(
        &self,
        key: &str,
        mut change: impl FnMut(&mut T) -> bool,
    ) -> Result<Option<Versioned<T>>, StoreError> {
        for tried in 1..=CHANGES_TRIED {
            let Some(mut stored) = self.get(key).await? else { return Ok(None) };
            if !change(&mut stored.value) {
                return Ok(Some(stored));
            }
            match self.update(key, &stored.value, stored.revision).await {
                Ok(revision) => return Ok(Some(Versioned { revision, ..stored })),
                Err(StoreError::Conflict { .. }) => tokio::time::sleep(CHANGE_PAUSE * tried).await,
                Err(error) => return Err(error),
            }
        }
        let reason = format!("it was changed by others {CHANGES_TRIED} times in turn");
        Err(StoreError::Unavailable { doing: format!("changing {}/{key}", self.name), reason })
    }

    fn decode(&self, key: &str, value: &[u8]) -> Result<T, StoreError> {
        packed::decode(value).map_err(|error| self.damaged(key, &error))
    }

    /// A value, and every digest that is in its text.
    fn read(&self, key: &str, value: &[u8]) -> Result<(T, Vec<Digest>), StoreError> {
        let text = packed::unpack(value).map_err(|error| self.damaged(key, &error))?;
        let value = wire::decode(&text).map_err(|error| self.damaged(key, &error))?;
        Ok((value, digests_in(&text)))
    }

    fn damaged(&self, key: &str, error: &dyn std::error::Error) -> StoreError {
        let (key, reason) = (key.to_owned(), error.to_string());
        StoreError::Damaged { bucket: self.name, key, reason }
    }

    fn unavailable(&self, doing: &str, key: &str, error: &dyn std::error::Error) -> StoreError {
        unavailable(format!("{doing} {}/{key}", self.name), error)
    }
}

fn digests_in(text: &[u8]) -> Vec<Digest> {
    std::str::from_utf8(text).map(|text| Digest::all_in(text).collect()).unwrap_or_default()
}

/// Whether a message says that a key has no value any more.
fn is_gone(headers: &HeaderMap) -> bool {
    headers.get("KV-Operation").is_some()
}

#[cfg(test)]
mod tests;
