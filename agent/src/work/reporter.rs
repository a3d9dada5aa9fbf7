//! Sends reports: to inboxes at once, into the stream until it has them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_nats::header::HeaderMap;
use bytes::Bytes;
use jobs::id::Millis;
use jobs::report::{Failure, FailureCode, ReportBody, TaskReport};
use jobs::spec::TaskId;
use jobs::{subject, wire};
use link::publish::SendError;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::clock::Clock;
use crate::device::Device;

/// Final reports that wait for the stream, at most: more than a device has slots.
const WAITING_MAX: usize = 256;
/// How long a report is offered to a stream that does not take it. A broker that misses it asks
/// again, and the machine remembers.
const ATTEMPTS_MAX: u32 = 60;
/// The longest wait between two attempts.
const DELAY_MAX: Duration = Duration::from_secs(10);
/// How long the last reports may take when the agent ends.
const FINISH_TIMEOUT: Duration = Duration::from_secs(2);

/// Sends reports in order.
#[derive(Debug)]
pub(super) struct Reporter {
    device: Arc<Device>,
    final_reports: mpsc::Sender<TaskReport>,
    sending: JoinHandle<()>,
}

impl Reporter {
    pub(super) fn start(device: Arc<Device>) -> Self {
        let (final_reports, waiting) = mpsc::channel(WAITING_MAX);
        let sending = tokio::spawn(store_all(device.clone(), waiting));
        Self { device, final_reports, sending }
    }

    /// Reports on a task of a round. What ends it is stored; the rest may be lost.
    pub(super) async fn to_stream(&self, report: TaskReport) {
        if report.body.is_final() {
            if let Err(error) = self.final_reports.try_send(report) {
                tracing::error!("too many reports wait for NATS: {error}");
            }
            return;
        }
        if !self.device.is_connected() {
            return;
        }
        let subject = subject::report(&report.task.job, &report.device);
        let payload = wire::encode(&report);
        if let Err(error) =
            link::publish::publish(&self.device.client, subject, None, payload).await
        {
            tracing::debug!("report: {error}");
        }
    }

    /// Reports to someone who waits, with the outputs behind the report.
    pub(super) async fn to_inbox(&self, mut report: TaskReport, outputs: &Bytes, inbox: String) {
        let encoded = wire::encode_with_binary(&report, outputs);
        let sent = self.publish(&inbox, encoded).await;
        if let Err(SendError::TooLarge { size, max }) = sent {
            let message = format!(
                "the answer of {size} bytes is larger than NATS takes ({max}): ask with a smaller batch"
            );
            report.body = ReportBody::Failed(Failure::new(FailureCode::TooLarge, message));
            let _ = self.publish(&inbox, wire::encode_with_binary(&report, &[])).await;
        }
    }

    async fn publish(&self, inbox: &str, encoded: wire::Encoded) -> Result<(), SendError> {
        let mut headers = HeaderMap::new();
        if let Some(length) = encoded.json_length {
            headers.insert(wire::JSON_LENGTH_HEADER, length.to_string());
        }
        let client = &self.device.client;
        let sent =
            link::publish::publish(client, inbox.to_owned(), Some(headers), encoded.payload).await;
        if let Err(error) = &sent {
            tracing::warn!("answer: {error}");
        }
        sent
    }

    /// Sends what still waits, for a short while.
    pub(super) async fn finish(self) {
        drop(self.final_reports);
        let mut sending = self.sending;
        if tokio::time::timeout(FINISH_TIMEOUT, &mut sending).await.is_err() {
            tracing::warn!("some reports could not be sent before the end");
            sending.abort();
        }
    }
}

async fn store_all(device: Arc<Device>, mut waiting: mpsc::Receiver<TaskReport>) {
    while let Some(report) = waiting.recv().await {
        store(&device, &report).await;
    }
}

/// Offers a report to the stream until it is taken.
async fn store(device: &Device, report: &TaskReport) {
    let subject = subject::report(&report.task.job, &report.device);
    let message_id = message_id(report, Clock::now());
    let payload = wire::encode(report);
    let mut delay = Duration::from_millis(200);
    for attempt in 1..=ATTEMPTS_MAX {
        let (headers, payload) = (HeaderMap::new(), payload.clone());
        let stored =
            link::publish::store(&device.context, &subject, &message_id, headers, payload).await;
        match stored {
            Ok(_) => return,
            Err(error @ SendError::TooLarge { .. }) => {
                tracing::error!("report: {error}");
                return;
            }
            Err(error) if attempt == 1 => tracing::warn!("report waits: {error}"),
            Err(error) => tracing::debug!("report waits: {error}"),
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(DELAY_MAX);
    }
    tracing::error!(job = %report.task.job, "report was not taken: giving up");
}

/// The same for the same news, so that a repetition is recognised. An update that was made again,
/// by an agent that was killed and has forgotten the first, is news if it is another one. So is each
/// refusal: whoever offers a task again that was declined wants to know whether it still is.
fn message_id(report: &TaskReport, now: Millis) -> String {
    let TaskId { job, round, purpose, attempt } = &report.task;
    let purpose = purpose.as_str();
    let news: Cow<'_, str> = match &report.body {
        ReportBody::Accepted => "accepted".into(),
        ReportBody::Progress(_) => "progress".into(),
        ReportBody::Declined(_) => format!("declined.{now}").into(),
        ReportBody::Trained(update) => format!("done.{}", update.parameters.digest.hex()).into(),
        ReportBody::Exchanged(_)
        | ReportBody::Evaluated(_)
        | ReportBody::Inferred(_)
        | ReportBody::Measured(_) => "done".into(),
        ReportBody::Failed(_) => "failed".into(),
        ReportBody::Cancelled => "cancelled".into(),
    };
    format!("{job}.{round}.{purpose}.{attempt}.{}.{news}", report.device)
}

#[cfg(test)]
mod tests {
    use jobs::id::{BlobRef, Bytes};
    use jobs::report::UpdateReport;

    use super::*;

    fn trained(bytes: &[u8], took: u64) -> TaskReport {
        let digest = link::digest::of(bytes);
        let body = ReportBody::Trained(UpdateReport {
            parameters: BlobRef::by_digest(digest, Bytes(bytes.len() as u64)),
            examples: 1,
            loss: 1.0,
            accuracy: 0.5,
            steps: 1,
            duration_ms: Millis(took),
            engine: "native".to_owned(),
            initial_loss: None,
            control_change: None,
            held: true,
            crc32: None,
            control_anew: false,
        });
        TaskReport { task: "j-1-train-1".parse().unwrap(), device: "pi".parse().unwrap(), body }
    }

    #[test]
    fn an_update_that_was_made_again_is_news_if_it_is_another_one() {
        let first = message_id(&trained(b"first", 5), Millis(1));
        assert_eq!(message_id(&trained(b"first", 7), Millis(2)), first);
        assert_ne!(message_id(&trained(b"other", 5), Millis(1)), first);
    }
}
