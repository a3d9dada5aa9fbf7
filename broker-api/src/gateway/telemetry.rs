//! Measures every device that matches, at the same time.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream;
use jobs::device::{Hello, Telemetry};
use jobs::id::{Attempt, DeviceId, JobId, Millis};
use jobs::report::ReportBody;
use jobs::selector::Selector;
use jobs::spec::{Offer, Purpose, Task, TaskWork};

use super::inbox::Reply;
use super::{Gateway, nobody, send_offer, task_id};
use crate::error::{ApiCode, ApiError};

/// Times that the fleet is measured at once.
pub(super) const MEASURED_AT_ONCE: usize = 16;
/// Devices that are asked at the same time.
const ASKED_AT_ONCE: usize = 1024;
/// How long a device may take to be measured; who is slower is left out.
const MEASURE_WITHIN: Duration = Duration::from_secs(3);

impl Gateway {
    /// Measurements of the devices that match and are online, ordered by device; those that do
    /// not answer in time are left out.
    ///
    /// # Errors
    /// No device when none matches; [`ApiCode::Overloaded`].
    pub async fn measure(
        &self,
        job: &JobId,
        selector: &Selector,
        deadline: Millis,
    ) -> Result<Vec<(DeviceId, Telemetry)>, ApiError> {
        let turn = self.measuring.acquire();
        let turn = tokio::time::timeout(Duration::from_millis(deadline.0), turn).await;
        let _turn = turn.map_err(|_| overloaded())?;
        let devices = self.fleet.matching(selector, None);
        if devices.is_empty() {
            return Err(nobody(selector));
        }
        let within = MEASURE_WITHIN.min(Duration::from_millis(deadline.0));
        let asked = stream::iter(devices).map(|hello| self.measure_one(job, hello, within));
        let answers = asked.buffer_unordered(ASKED_AT_ONCE);
        let mut measured: Vec<_> = answers.filter_map(std::future::ready).collect().await;
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

fn overloaded() -> ApiError {
    ApiError::new(
        ApiCode::Overloaded,
        format!("the fleet is being measured {MEASURED_AT_ONCE} times already"),
        "try again in a moment",
    )
}
