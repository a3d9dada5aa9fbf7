//! Where an owner reads what devices report.

use async_nats::jetstream::Message;
use async_nats::jetstream::consumer::{DeliverPolicy, push};
use futures::StreamExt as _;
use jobs::report::{ReportBody, TaskReport};
use jobs::spec::{Offer, Purpose};
use jobs::subject;

use super::owner::{Ears, Owner};
use crate::store::{StoreError, unavailable};

impl Owner {
    /// Reads on behind the last report that the machine knows; how many wait there.
    pub(super) async fn open_reports(&self) -> Result<(push::Ordered, u64), StoreError> {
        let doing = "reading reports";
        let stream = self.core.store.stream(subject::STREAM_REPORTS).await?;
        let info = stream.get_info().await.map_err(|error| unavailable(doing, &error))?;
        // One that was made again counts from its beginning.
        let known = Some(self.stored.sequence).filter(|known| *known <= info.state.last_sequence);
        let config = push::OrderedConfig {
            deliver_subject: self.core.store.client().new_inbox(),
            filter_subject: subject::reports_of(&self.job),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: known.unwrap_or_default() + 1,
            },
            ..push::OrderedConfig::default()
        };
        let consumer = stream.create_consumer(config).await;
        let consumer = consumer.map_err(|error| unavailable(doing, &error))?;
        let pending = consumer.cached_info().num_pending;
        let messages = consumer.messages().await.map_err(|error| unavailable(doing, &error))?;
        Ok((messages, pending))
    }

    /// Tells a device to stop that trains for a round that does not wait for it any more: it was
    /// away when it was told.
    pub(super) async fn stop_in_vain(&self, report: &TaskReport) {
        let TaskReport { task, device, body } = report;
        let trains = matches!(body, ReportBody::Progress(_)) && task.purpose == Purpose::Train;
        if !trains || self.machine.awaits(task.round, device) {
            return;
        }
        let reason = format!("round {} goes on without it", task.round);
        let cancel = Offer::Cancel { task: task.clone(), reason, refused: false };
        self.send(device, &cancel, None, false).await;
    }

    /// Streams were made again. What was reported since is read from the beginning: a reader that
    /// went on by itself has missed what came before it.
    pub(super) fn mended(&mut self, ears: &mut Ears) {
        let at = ears.made.borrow_and_update().at(subject::STREAM_REPORTS);
        if std::mem::replace(&mut ears.reports_at, at) != at {
            self.stored.sequence = 0;
            ears.reports = None;
        }
    }
}

pub(super) async fn next_report(reports: &mut Option<push::Ordered>) -> Option<Message> {
    match reports {
        // A fault ends the reading; it is begun again behind the last report.
        Some(reports) => reports.next().await.and_then(Result::ok),
        None => std::future::pending().await,
    }
}
