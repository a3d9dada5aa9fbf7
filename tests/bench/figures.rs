//! Figures, how they are shown, and which bars they missed.

use std::sync::Mutex;
use std::time::Duration;

/// What is known until now.
static REPORT: Mutex<Report> = Mutex::new(Report { part: String::new(), missed: Vec::new() });

struct Report {
    /// The heading of the part at hand.
    part: String,
    missed: Vec<Missed>,
}

/// A bar that did not hold, in words.
struct Missed {
    part: String,
    what: String,
    found: String,
    bar: String,
}

/// Measured times.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
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
    text.clone_into(&mut REPORT.lock().unwrap().part);
}

/// One figure with its bar: what, ours, the bar, and whether it holds.
pub(crate) fn against_bar(what: &str, ours: &str, bar: &str, holds: bool) {
    println!("  {what:<44} {ours:>12}   bar {bar:<22} {}", verdict(what, ours, bar, holds));
}

/// Whether a bar holds, in a word; one that does not is told again at the end.
pub(crate) fn verdict(what: &str, found: &str, bar: &str, holds: bool) -> &'static str {
    if holds {
        return "held";
    }
    let mut report = REPORT.lock().unwrap();
    let [part, what, found, bar] = [&report.part, what, found, bar].map(str::to_owned);
    report.missed.push(Missed { part, what, found, bar });
    "MISSED"
}

/// The same of a figure that is known but for a standard error, and is `over` the bar, or below it if
/// that is negative: beyond two of them it is missed, and within them not told.
pub(crate) fn verdict_within(
    what: &str,
    found: &str,
    bar: &str,
    over: f64,
    error: f64,
) -> &'static str {
    if over > 0.0 && over <= 2.0 * error {
        "not told"
    } else {
        verdict(what, found, bar, over <= 0.0)
    }
}

/// Tells which bars were missed; whether none was.
pub(crate) fn conclude() -> bool {
    let report = REPORT.lock().unwrap();
    println!("\nbars that were missed: {}", report.missed.len());
    let mut part = "";
    for missed in &report.missed {
        if missed.part != part {
            part = &missed.part;
            println!("  {part}");
        }
        println!("    {}: {}, bar {}", missed.what.trim(), missed.found.trim(), missed.bar);
    }
    report.missed.is_empty()
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
