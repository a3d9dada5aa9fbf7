//! Whoever follows a bucket is told of everything in it; a watch mends itself.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::{DeliverPolicy, push};
use futures::StreamExt as _;
use jobs::id::Digest;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Bucket, Versioned, is_gone};
use crate::store::{Progress, StoreError};

/// How long to wait before a broken watch is begun again.
const MEND_AFTER: Duration = Duration::from_millis(500);
/// How long a watch takes to tell a change, with a good connection.
const TOLD_SOON: Duration = Duration::from_secs(1);
/// How often it is looked whether a watch has told what is in the bucket.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Changes that may wait for their reader.
const CHANGES_WAITING: usize = 256;

/// Something new in a bucket.
#[derive(Debug)]
pub enum Change<T> {
    /// A key has a value, a new one or the one it had when the watch began. The value refers to
    /// these digests, also in places that are not known here.
    Put(String, Versioned<T>, Vec<Digest>),
    /// A key has a value of this revision that cannot be read.
    Unreadable(String, u64),
    /// A key is no more since this revision.
    Gone(String, u64),
    /// Everything that was there when the watch began has been told.
    Current,
    /// The bucket is another one, which is told from its beginning: nothing that was told before is
    /// in it.
    Anew,
}

impl<T: Serialize + DeserializeOwned + Send + 'static> Bucket<T> {
    /// Waits until whoever follows the bucket knows everything that can be read of what is in it
    /// now.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], also when it takes longer.
    pub async fn told(&self, progress: &Progress, within: Duration) -> Result<(), StoreError> {
        self.confirm(">").await?;
        let newest = self.last_at_leader(">").await?.map_or(0, |message| message.sequence);
        self.told_to(newest, progress, within).await
    }

    /// Waits until whoever follows the bucket knows it up to a revision. A watch that does not tell
    /// it soon may be broken without knowing it yet, and is begun again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when it takes longer.
    pub async fn told_to(
        &self,
        revision: u64,
        progress: &Progress,
        within: Duration,
    ) -> Result<(), StoreError> {
        let known = |known| known >= revision;
        if progress.until(within.min(TOLD_SOON), known).await {
            return Ok(());
        }
        self.behind.notify_waiters();
        if progress.until(within.saturating_sub(TOLD_SOON), known).await {
            return Ok(());
        }
        let reason = format!("revision {revision} was not told within {within:?}");
        Err(StoreError::Unavailable { doing: format!("watching {}", self.name), reason })
    }

    /// [`Bucket::told`], for who has to know every value.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]; [`StoreError::Damaged`] when there is a value that cannot be
    /// read.
    pub async fn told_all(&self, progress: &Progress, within: Duration) -> Result<(), StoreError> {
        self.told(progress, within).await?;
        match progress.unreadable() {
            None => Ok(()),
            Some(key) => Err(StoreError::Damaged {
                bucket: self.name,
                key,
                reason: "see what was logged when it was told".to_owned(),
            }),
        }
    }

    /// Tells every value and then every change, in order, until the token is cancelled or the
    /// receiver dropped. After a fault everything is told again.
    pub fn follow(&self, token: CancellationToken) -> mpsc::Receiver<Change<T>> {
        let (sender, receiver) = mpsc::channel(CHANGES_WAITING);
        let bucket = self.clone();
        let mut at = self.made_at();
        tokio::spawn(token.run_until_cancelled_owned(async move {
            loop {
                let last = AtomicU64::new(0);
                tokio::select! {
                    now = bucket.made_other_than(at) => {
                        at = now;
                        if sender.send(Change::Anew).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    told = bucket.tell(&sender, &last) => match told {
                        Ok(()) => return,
                        Err(error) => tracing::warn!(%error, "a watch broke and is begun again"),
                    },
                    () = bucket.is_behind(&last) => {
                        tracing::warn!(bucket = bucket.name, "a watch is behind and is begun again");
                        continue;
                    }
                }
                tokio::time::sleep(MEND_AFTER).await;
            }
        }));
        receiver
    }

    /// When the bucket was made, as far as that is known.
    fn made_at(&self) -> Option<i128> {
        self.made.borrow().at(&self.store.stream_name)
    }

    /// Waits until the bucket is another one than that which was made then.
    async fn made_other_than(&self, at: Option<i128>) -> Option<i128> {
        let mut made = self.made.clone();
        if made.wait_for(|made| made.at(&self.store.stream_name) != at).await.is_err() {
            // Nobody looks any more.
            std::future::pending::<()>().await;
        }
        self.made_at()
    }

    /// When someone finds that a watch is behind that is not young any more, or it has not told what
    /// its stream has: it may be broken without a word.
    async fn is_behind(&self, last: &AtomicU64) {
        tokio::time::sleep(TOLD_SOON).await;
        loop {
            if tokio::time::timeout(LOOK_EVERY, self.behind.notified()).await.is_ok() {
                return;
            }
            let told = last.load(Ordering::Relaxed);
            let Ok(Some(newest)) = self.last_at_leader(self.pattern).await else { continue };
            tokio::time::sleep(TOLD_SOON).await;
            // One that has much to tell comes nearer.
            if told < newest.sequence && last.load(Ordering::Relaxed) == told {
                return;
            }
        }
    }

    /// Ends well only when nobody listens any more.
    async fn tell(
        &self,
        sender: &mpsc::Sender<Change<T>>,
        last: &AtomicU64,
    ) -> Result<(), StoreError> {
        let fail =
            |error: &dyn std::error::Error| self.unavailable("watching", self.pattern, error);
        let prefix = format!("$KV.{}.", self.name);
        let config = push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            filter_subject: format!("{prefix}{}", self.pattern),
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..push::OrderedConfig::default()
        };
        let consumer = self.store.stream.create_consumer(config).await.map_err(|e| fail(&e))?;
        let mut told_current = false;
        let mut old = consumer.cached_info().num_pending;
        let mut messages = consumer.messages().await.map_err(|e| fail(&e))?;
        if old == 0 {
            told_current = true;
            if sender.send(Change::Current).await.is_err() {
                return Ok(());
            }
        }
        while let Some(message) = messages.next().await {
            let message = message.map_err(|e| fail(&e))?;
            let key = message.subject.strip_prefix(&prefix).unwrap_or_default().to_owned();
            let revision = message.info().map_or(0, |info| info.stream_sequence);
            let change = if message.headers.as_ref().is_some_and(is_gone) {
                Change::Gone(key, revision)
            } else {
                match self.read(&key, &message.payload) {
                    Ok((value, digests)) => {
                        Change::Put(key, Versioned { value, revision }, digests)
                    }
                    Err(error) => {
                        tracing::error!(%error, "skipped");
                        Change::Unreadable(key, revision)
                    }
                }
            };
            last.store(revision, Ordering::Relaxed);
            if sender.send(change).await.is_err() {
                return Ok(());
            }
            old = old.saturating_sub(1);
            if old == 0 && !told_current {
                told_current = true;
                if sender.send(Change::Current).await.is_err() {
                    return Ok(());
                }
            }
        }
        let reason = "the watch ended".to_owned();
        Err(StoreError::Unavailable { doing: format!("watching {}", self.name), reason })
    }
}
