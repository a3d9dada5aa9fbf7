//! Measures every device that matches, at the same time.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use jobs::device::{Hello, Telemetry};
use jobs::id::{Attempt, DeviceId, JobId, Millis};
use jobs::report::ReportBody;
use jobs::selector::Selector;
use jobs::spec::{Offer, Purpose, Task, TaskWork};

use super::inbox::Reply;
use super::{Gateway, nobody, send_offer, task_id};
use crate::error::ApiError;

/// How long a device may take to be measured; who is slower is left out.
const MEASURE_WITHIN: Duration = Duration::from_secs(3);

impl Gateway {
    /// Measurements of the devices that match and are online, ordered by device; those that do
    /// not answer in time are left out.
    ///
    /// # Errors
    /// No device when none matches.
    pub async fn measure(
        &self,
        job: &JobId,
        selector: &Selector,
        deadline: Millis,
    ) -> Result<Vec<(DeviceId, Telemetry)>, ApiError> {
        let devices = self.fleet.matching(selector, None);
        if devices.is_empty() {
            return Err(nobody(selector));
        }
        let within = MEASURE_WITHIN.min(Duration::from_millis(deadline.0));
        let mut asked: FuturesUnordered<_> =
            devices.into_iter().map(|hello| self.measure_one(job, hello, within)).collect();
        let mut measured = Vec::new();
        while let Some(answer) = asked.next().await {
            measured.extend(answer);
        }
        measured.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(measured)
    }

    async fn measure_one(
        &self,
        job: &JobId,
        hello: Hello,
        within: Duration,
    ) -> Option<(DeviceId, Telemetry)> {
        let device = hello.device;
        let mut mailbox = self.inbox.open(device.clone());
        let task = Task {
            id: task_id(job, Purpose::Telemetry, Attempt(1)),
            timeout_ms: Millis(u64::try_from(within.as_millis()).unwrap_or(u64::MAX)),
            work: TaskWork::Telemetry,
        };
        let offer = Offer::Task(Box::new(task));
        let client = self.store.client();
        send_offer(client, &device, &offer, &Bytes::new(), mailbox.subject()).await.ok()?;
        let answer = async {
            loop {
                match mailbox.next().await {
                    Reply::Report(report, _) => {
                        let is_final = report.body.is_final();
                        if let ReportBody::Measured(telemetry) = report.body {
                            return Some(*telemetry);
                        }
                        if is_final {
                            return None;
                        }
                    }
                    Reply::NobodyListens => {
                        self.fleet.unreachable(&device);
                        return None;
                    }
                    Reply::DeviceLost => return None,
                }
            }
        };
        let telemetry = tokio::time::timeout(within, answer).await.ok().flatten()?;
        Some((device, telemetry))
    }
}
