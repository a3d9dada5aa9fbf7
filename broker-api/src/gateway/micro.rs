//! The front door as a NATS service (ADR-32), so that `nats micro ls`, `info` and `stats` work.
//!
//! By hand, because the client library's service cannot answer an error with a body, and counts
//! only what it answered itself, while here devices answer clients directly.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::Client;
use futures::StreamExt as _;
use jobs::subject::{BROKER_QUEUE, FrontDoor};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// The service's name.
pub const SERVICE: &str = "dunlin";

/// What was asked at one endpoint.
#[derive(Debug, Clone, Default)]
struct Count {
    requests: u64,
    errors: u64,
    last_error: String,
    time: Duration,
}

/// The service's identity and figures; cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    id: String,
    started: String,
    counts: Arc<Mutex<[Count; FrontDoor::ALL.len()]>>,
}

impl Service {
    /// Answers discovery until the token is cancelled.
    ///
    /// # Errors
    /// When NATS does not take a subscription.
    pub async fn start(
        client: &Client,
        token: CancellationToken,
    ) -> Result<Self, async_nats::SubscribeError> {
        let id = crate::broker::new_job_id().to_string();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let service = Self { id, started: rfc3339(since.as_secs()), counts: Arc::default() };
        for verb in ["PING", "INFO", "STATS"] {
            let subjects = [
                format!("$SRV.{verb}"),
                format!("$SRV.{verb}.{SERVICE}"),
                format!("$SRV.{verb}.{SERVICE}.{}", service.id),
            ];
            for subject in subjects {
                let mut requests = client.subscribe(subject).await?;
                let (service, client) = (service.clone(), client.clone());
                tokio::spawn(token.clone().run_until_cancelled_owned(async move {
                    while let Some(request) = requests.next().await {
                        let Some(reply) = request.reply else { continue };
                        let answer = service.answer(verb).to_string();
                        if let Err(error) = client.publish(reply, answer.into()).await {
                            tracing::debug!(%error, "discovery was not answered");
                        }
                    }
                }));
            }
        }
        Ok(service)
    }

    /// Counts a request that was answered.
    pub fn count(&self, door: FrontDoor, took: Duration, error: Option<String>) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let at = FrontDoor::ALL.iter().position(|other| *other == door).unwrap_or_default();
        let count = &mut counts[at];
        count.requests += 1;
        count.time += took;
        if let Some(error) = error {
            count.errors += 1;
            count.last_error = error;
        }
    }

    fn answer(&self, verb: &str) -> Value {
        let mut answer = json!({
            "type": format!("io.nats.micro.v1.{}_response", verb.to_ascii_lowercase()),
            "name": SERVICE,
            "id": self.id,
            "version": env!("CARGO_PKG_VERSION"),
            "metadata": {},
        });
        let endpoints = match verb {
            "INFO" => FrontDoor::ALL.iter().map(|door| endpoint(*door)).collect(),
            "STATS" => self.stats(),
            _ => return answer,
        };
        if verb == "INFO" {
            answer["description"] = json!("asks a fleet of devices to train and to answer");
        } else {
            answer["started"] = json!(self.started);
        }
        answer["endpoints"] = Value::Array(endpoints);
        answer
    }

    fn stats(&self) -> Vec<Value> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let stats = |(door, count): (&FrontDoor, &Count)| {
            let requests = u32::try_from(count.requests).unwrap_or(u32::MAX);
            let average = count.time.checked_div(requests).unwrap_or_default();
            let mut stats = endpoint(*door);
            stats["num_requests"] = json!(count.requests);
            stats["num_errors"] = json!(count.errors);
            stats["last_error"] = json!(count.last_error);
            stats["processing_time"] = json!(nanos(count.time));
            stats["average_processing_time"] = json!(nanos(average));
            stats
        };
        FrontDoor::ALL.iter().zip(counts.iter()).map(stats).collect()
    }
}

fn endpoint(door: FrontDoor) -> Value {
    json!({
        "name": door.token(),
        "subject": door.subject(),
        "queue_group": BROKER_QUEUE,
        "metadata": {},
    })
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Seconds since the Unix epoch as RFC 3339. Source of the calendar: Hinnant,
/// `civil_from_days`.
fn rfc3339(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        // Figures from `date -u -d @<seconds>`.
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_795_478_399, "2026-11-23T23:59:59Z"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(rfc3339(seconds), expected);
        }
    }
}
