//! Figures, and how they are shown.

use std::time::Duration;

/// Measured times.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    /// The time that so many in a hundred do not exceed.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort();
        sorted[((sorted.len() - 1) * percent).div_ceil(100)]
    }

    pub(crate) fn best(&self) -> Duration {
        self.0.iter().copied().min().unwrap_or_default()
    }

    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }
}

/// `12.3 ms`
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

/// `12.3 MB`
#[expect(clippy::cast_precision_loss, reason = "megabytes are shown")]
pub(crate) fn mb(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// A part of the report.
pub(crate) fn heading(text: &str) {
    println!("\n{text}");
}

/// One figure with its bar: what, ours, the bar, and whether it holds.
pub(crate) fn against_bar(what: &str, ours: &str, bar: &str, holds: bool) {
    println!("  {what:<44} {ours:>12}   bar {bar:<22} {}", if holds { "held" } else { "MISSED" });
}

/// One figure with its limit: what, ours, the limit's name and value, the ratio.
pub(crate) fn against_limit(what: &str, ours: Duration, name: &str, limit: Duration) {
    let ratio = ours.as_secs_f64() / limit.as_secs_f64();
    println!("  {what:<44} {:>12}   {name} {}: {ratio:.2} x", ms(ours), ms(limit));
}

/// The processor, its cores, the load.
pub(crate) fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cores} cores, {}, load {load}", name.map_or("unknown", |(_, name)| name))
}
