//! When streams were made: one that was removed and made again is another one, and has nothing of
//! what was stored before.

use std::collections::BTreeMap;

use async_nats::jetstream::Context;

use super::{ANSWER_WITHIN, Layout, LayoutError, configs, existing, patiently};

/// The streams that are there, and when each was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Made(BTreeMap<String, i128>);

impl Made {
    /// Looks at all streams and buckets.
    ///
    /// # Errors
    /// [`LayoutError`]: then it is not known whether one that does not answer is there.
    pub async fn look(context: &Context) -> Result<Self, LayoutError> {
        let mut context = context.clone();
        context.set_timeout(ANSWER_WITHIN);
        patiently(|| Self::look_once(&context)).await
    }

    async fn look_once(context: &Context) -> Result<Self, LayoutError> {
        let mut made = BTreeMap::new();
        for config in configs(Layout::default()) {
            if let Some(found) = existing(context, &config.name).await? {
                made.insert(config.name, found.created.unix_timestamp_nanos());
            }
        }
        Ok(Self(made))
    }

    /// Nanoseconds since the Unix epoch on the server's clock at which a stream was made, if it is there.
    pub fn at(&self, stream: &str) -> Option<i128> {
        self.0.get(stream).copied()
    }

    /// Streams of these that are gone now, or others.
    pub fn lost(&self, now: &Self) -> Vec<String> {
        let lost = self.0.iter().filter(|(stream, at)| now.at(stream) != Some(**at));
        lost.map(|(stream, _)| stream.clone()).collect()
    }

    /// Whether a stream or bucket is missing.
    pub fn lacks_any(&self) -> bool {
        configs(Layout::default()).iter().any(|config| self.at(&config.name).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ensure;
    use crate::server::Server;

    #[tokio::test]
    async fn what_was_removed_and_made_again_is_known() {
        let mut server = Server::start();
        let context = async_nats::jetstream::new(server.client().await);
        assert!(Made::look(&context).await.unwrap().lacks_any());
        ensure(&context, Layout::default()).await.unwrap();
        let first = Made::look(&context).await.unwrap();
        assert!(!first.lacks_any());
        server.kill();
        server.restart();
        let context = async_nats::jetstream::new(server.client().await);
        let again = Made::look(&context).await.unwrap();
        assert_eq!(again, first, "a server that was restarted has the same");
        context.delete_stream("KV_jobs").await.unwrap();
        let without = Made::look(&context).await.unwrap();
        assert!(without.lacks_any());
        assert_eq!(first.lost(&without), ["KV_jobs"]);
        ensure(&context, Layout::default()).await.unwrap();
        let anew = Made::look(&context).await.unwrap();
        assert_eq!(first.lost(&anew), ["KV_jobs"]);
        assert_eq!(without.lost(&anew), Vec::<String>::new());
    }
}
