//! Counters and histograms, as Prometheus text (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jobs::device::Presence;

use crate::record::DeviceRecord;

/// Upper bounds of the histograms' buckets in microseconds: 100 us to 10 s.
const BUCKETS_US: [u64; 16] = [
    100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000,
    2_000_000, 5_000_000, 10_000_000,
];

/// What is counted by label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counter {
    /// Jobs that reached a state, by kind and state.
    Jobs,
    /// Requests that were answered with an error, by code.
    RequestErrors,
    /// Rounds that ended, by whether they have new parameters.
    Rounds,
    /// Updates that were looked into, by why they were refused, or `accepted`.
    Updates,
    /// Bytes moved for rounds, by direction.
    RoundBytes,
}

impl Counter {
    fn name_and_help(self) -> (&'static str, &'static str) {
        match self {
            Counter::Jobs => ("dunlin_jobs_total", "Jobs that reached a state."),
            Counter::RequestErrors => {
                ("dunlin_request_errors_total", "Requests answered with an error.")
            }
            Counter::Rounds => ("dunlin_rounds_total", "Federated rounds that ended."),
            Counter::Updates => ("dunlin_updates_total", "Updates that were looked into."),
            Counter::RoundBytes => ("dunlin_round_bytes_total", "Bytes moved for rounds."),
        }
    }
}

/// Times of one kind, in buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS_US.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts a time.
    pub fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(at) = BUCKETS_US.iter().position(|bound| us <= *bound) {
            self.buckets[at].fetch_add(1, Ordering::Relaxed);
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    fn write(&self, text: &mut String, name: &str, help: &str) {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut below = 0;
        for (bound, bucket) in BUCKETS_US.iter().zip(&self.buckets) {
            below += bucket.load(Ordering::Relaxed);
            let _ = writeln!(text, "{name}_bucket{{le=\"{}\"}} {below}", seconds(*bound));
        }
        let count = self.count.load(Ordering::Relaxed);
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum {}", seconds(self.sum_us.load(Ordering::Relaxed)));
        let _ = writeln!(text, "{name}_count {count}");
    }
}

#[expect(clippy::cast_precision_loss, reason = "times are shown, not counted with")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// How many there are now of something.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

/// Counts as one until it is dropped: who is counted may be let go of at any time.
#[derive(Debug)]
pub struct Counted<'a>(&'a Gauge);

impl Gauge {
    /// One more.
    pub fn count(&self) -> Counted<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Counted(self)
    }

    /// How many there are.
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Everything that is measured.
#[derive(Debug, Default)]
pub struct Metrics {
    counters: Mutex<BTreeMap<(Counter, String), u64>>,
    /// Requests being answered now.
    pub in_flight: Gauge,
    /// Trainings that this broker owns now.
    pub trainings: Gauge,
    /// The whole of a request less the engine's own time.
    pub infer_overhead: Histogram,
    /// The engine's own time.
    pub infer_engine: Histogram,
    /// A round from its offers to its end.
    pub rounds: Histogram,
}

impl Metrics {
    /// Adds to a counter; `labels` such as `code="busy"`.
    pub fn add(&self, counter: Counter, labels: String, amount: u64) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        *counters.entry((counter, labels)).or_default() += amount;
    }

    /// The text of everything; devices are counted by presence.
    pub fn text(&self, devices: &[DeviceRecord]) -> String {
        let mut text = String::with_capacity(4096);
        let mut last = None;
        for ((counter, labels), value) in
            self.counters.lock().unwrap_or_else(PoisonError::into_inner).iter()
        {
            let (name, help) = counter.name_and_help();
            if last != Some(*counter) {
                let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
                last = Some(*counter);
            }
            let _ = writeln!(text, "{name}{{{labels}}} {value}");
        }
        let name = "dunlin_devices";
        let _ = writeln!(text, "# HELP {name} Devices by presence.\n# TYPE {name} gauge");
        let presences = [
            (Presence::Online, "online"),
            (Presence::Stale, "stale"),
            (Presence::Offline, "offline"),
        ];
        for (presence, word) in presences {
            let count = devices.iter().filter(|device| device.presence == presence).count();
            let _ = writeln!(text, "{name}{{presence=\"{word}\"}} {count}");
        }
        let gauges = [
            ("dunlin_requests_in_flight", "Requests being answered now.", &self.in_flight),
            ("dunlin_trainings_owned", "Trainings that this broker owns now.", &self.trainings),
        ];
        for (name, help, gauge) in gauges {
            let value = gauge.value();
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}");
        }
        let overhead = "A request's time less the engine's own.";
        self.infer_overhead.write(&mut text, "dunlin_infer_overhead_seconds", overhead);
        let engine = "The engine's own time for a request.";
        self.infer_engine.write(&mut text, "dunlin_infer_engine_seconds", engine);
        let rounds = "A federated round from its offers to its end.";
        self.rounds.write(&mut text, "dunlin_round_seconds", rounds);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_each_name_once_and_buckets_that_grow() {
        let metrics = Metrics::default();
        metrics.add(Counter::Updates, "reason=\"accepted\"".to_owned(), 2);
        metrics.add(Counter::Updates, "reason=\"invalid_update\"".to_owned(), 1);
        metrics.infer_overhead.observe(Duration::from_micros(150));
        metrics.infer_overhead.observe(Duration::from_mins(1));
        let text = metrics.text(&[]);
        assert_eq!(text.matches("# TYPE dunlin_updates_total").count(), 1);
        assert!(text.contains("dunlin_updates_total{reason=\"accepted\"} 2"));
        assert!(text.contains("dunlin_infer_overhead_seconds_bucket{le=\"0.0002\"} 1"));
        assert!(text.contains("dunlin_infer_overhead_seconds_bucket{le=\"+Inf\"} 2"));
        assert!(text.contains("dunlin_devices{presence=\"online\"} 0"));
    }
}
