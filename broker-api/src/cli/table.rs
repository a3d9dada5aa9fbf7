//! Tables and quantities for people.

use std::fmt::Write as _;

use jobs::id::Millis;

/// Rows under headings; columns as wide as they must be, numbers to the right.
#[derive(Debug)]
pub(super) struct Table {
    right: Vec<bool>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these headings; those that begin with `>` stand to the right.
    pub(super) fn new(headings: &[&str]) -> Self {
        let right = headings.iter().map(|heading| heading.starts_with('>')).collect();
        let names = headings.iter().map(|heading| heading.trim_start_matches('>').to_owned());
        Self { right, rows: vec![names.collect()] }
    }

    /// Adds a row; missing cells are empty.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.right.len()).map(width).collect();
        for (index, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                let pad = width - cell.chars().count();
                let (before, after) = if *right { (pad, 0) } else { (0, pad) };
                let _ = write!(line, "{:before$}{cell}{:after$}  ", "", "");
            }
            let end = if index + 1 == self.rows.len() { "" } else { "\n" };
            write!(f, "{}{end}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Bytes with three digits: `12.3 MB`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let places = usize::from(unit != 0 && value < 99.95);
    format!("{value:.places$} {}", UNITS[unit])
}

/// A duration: `0.3 ms`, `41 ms`, `2.5 s`, `3 min`, `5 h`, `2 d`.
#[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
pub(super) fn duration(us: u64) -> String {
    let s = us as f64 / 1e6;
    match s {
        s if s < 0.01 => format!("{:.1} ms", s * 1e3),
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 99.95 => format!("{s:.1} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s if s < 129_600.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// As [`duration`], of seconds.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before")]
pub(super) fn seconds(seconds: f64) -> String {
    duration((seconds * 1e6).round().clamp(0.0, 1e18) as u64)
}

/// How long ago something was: `now`, `12 s ago`.
pub(super) fn ago(now: Millis, then: Millis) -> String {
    let past = now.since(then).0;
    if past < 1000 {
        return "now".to_owned();
    }
    format!("{} ago", duration(past.saturating_mul(1000)))
}

/// A loss, in eight characters: `0.2500`, `1234.57`, `3.40e38`.
pub(super) fn loss(value: f64) -> String {
    match value.abs() {
        size if size < 999.999_95 => format!("{value:.4}"),
        size if size < 99_999.5 => format!("{value:.2}"),
        _ => format!("{value:.2e}"),
    }
}

/// A share as percent: `98.2 %`.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// The time, since the Unix epoch.
pub(super) fn now() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Millis(since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["device", ">cpus", "data"]);
        table.row(vec!["pi-1".into(), "4".into(), "digits".into()]);
        table.row(vec!["größer-2".into(), "16".into(), String::new()]);
        let text = "device    cpus  data\npi-1         4  digits\ngrößer-2    16";
        assert_eq!(table.to_string(), text);
    }

    #[test]
    fn a_loss_has_eight_characters() {
        for (value, text) in [
            (0.25, "0.2500"),
            (-0.5, "-0.5000"),
            (999.999_9, "999.9999"),
            (999.999_99, "1000.00"),
            (99_999.4, "99999.40"),
            (99_999.9, "1.00e5"),
            (3.402_823_5e38, "3.40e38"),
            (1.5e300, "1.50e300"),
        ] {
            assert_eq!(loss(value), text);
            assert!(text.len() <= 8, "{text}");
        }
    }

    #[test]
    fn quantities_have_three_digits() {
        let cases = [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (12_345, "12.3 KB")];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(999_600), "1.0 MB");
        assert_eq!(bytes(4_294_967_296), "4.3 GB");
        let cases =
            [(300, "0.3 ms"), (41_000, "41 ms"), (2_500_000, "2.5 s"), (180_000_000, "3 min")];
        for (us, text) in cases {
            assert_eq!(duration(us), text);
        }
        assert_eq!((seconds(1.5), seconds(-1.0)), ("1.5 s".to_owned(), "0.0 ms".to_owned()));
        assert_eq!(ago(Millis(13_000), Millis(1000)), "12.0 s ago");
        assert_eq!(percent(0.9817), "98.2 %");
    }
}
