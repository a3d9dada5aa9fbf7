//! Makes streams and buckets again that NATS has lost, so that nobody has to start brokers and agents
//! again when a nats-server came back without its data.

use std::sync::Arc;
use std::time::Duration;

use link::layout::BUCKET_DEVICES;

use super::Core;

/// How often streams are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(3);

/// Looks for ever.
pub(super) async fn run(core: Arc<Core>) {
    let looking = async {
        let mut told = None;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            match core.store.mend().await {
                Ok(lost) => {
                    told = None;
                    if !lost.is_empty() {
                        core.mended(&lost);
                    }
                }
                Err(error) => {
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(error, "the streams of NATS cannot be looked at");
                    }
                    told = Some(error);
                }
            }
        }
    };
    core.closing.run_until_cancelled(looking).await;
}

impl Core {
    fn mended(&self, lost: &[String]) {
        tracing::error!(
            streams = lost.join(", "),
            "NATS has lost streams: they are made again, and what was stored in them is gone"
        );
        if lost.iter().any(|stream| *stream == format!("KV_{BUCKET_DEVICES}")) {
            self.fleet.store_all();
        }
    }
}
