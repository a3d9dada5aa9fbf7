//! Hours of the day, such as `22-06`: when a device may be given work.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::Millis;

const MINUTE_MS: u64 = 60_000;
const DAY_MINUTES: u64 = 24 * 60;

/// A stretch of each day in UTC, from its beginning to before its end; `22-06` goes over midnight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Hours {
    /// Minutes since midnight, below those of a day.
    from: u16,
    /// Minutes since midnight, those of a day at most; never `from`.
    to: u16,
}

/// Text that is no hours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no stretch of the day: expected FROM-TO in UTC such as 22-06, or 22:30-06:15")]
pub struct HoursError(String);

impl Hours {
    /// Whether a time since the Unix epoch is within.
    pub fn contain(self, at: Millis) -> bool {
        let minute = at.0 / MINUTE_MS % DAY_MINUTES;
        let (from, to) = (u64::from(self.from), u64::from(self.to));
        if from < to { (from..to).contains(&minute) } else { minute >= from || minute < to }
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |f: &mut fmt::Formatter<'_>, minutes: u16| match (minutes / 60, minutes % 60) {
            (hour, 0) => write!(f, "{hour:02}"),
            (hour, minute) => write!(f, "{hour:02}:{minute:02}"),
        };
        time(f, self.from)?;
        f.write_str("-")?;
        time(f, self.to)
    }
}

impl FromStr for Hours {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let parts = text.split_once('-').and_then(|(from, to)| minutes(from).zip(minutes(to)));
        let hours = parts.filter(|(from, to)| from != to && u64::from(*from) < DAY_MINUTES);
        let (from, to) = hours.ok_or_else(|| HoursError(text.chars().take(80).collect()))?;
        Ok(Self { from, to })
    }
}

/// `22`, `6` or `22:30` as minutes since midnight; `24` is the end of a day.
fn minutes(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':').unwrap_or((text, "00"));
    let number = |text: &str, digits: std::ops::RangeInclusive<usize>| {
        let valid = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        valid.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (hour, minute) = (number(hour, 1..=2)?, number(minute, 2..=2)?);
    let minutes = (minute < 60).then_some(hour * 60 + minute)?;
    (u64::from(minutes) <= DAY_MINUTES).then_some(minutes)
}

impl From<Hours> for String {
    fn from(hours: Hours) -> Self {
        hours.to_string()
    }
}

impl TryFrom<String> for Hours {
    type Error = HoursError;

    fn try_from(text: String) -> Result<Self, HoursError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The slow way: minute after minute from the beginning to the end.
        #[test]
        fn the_time_is_within_if_walking_there_passes_no_end(
            from in 0_u16..1440,
            length in 1_u16..1440,
            at in 0_u64..100 * 24 * 3_600_000,
        ) {
            let to = (from + length) % 1440;
            let text = format!("{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60);
            let hours: Hours = text.parse().unwrap();
            let mut within = false;
            let mut minute = from;
            while minute != to {
                within |= u64::from(minute) == at / 60_000 % 1440;
                minute = (minute + 1) % 1440;
            }
            prop_assert_eq!(hours.contain(Millis(at)), within);
            prop_assert_eq!(hours.to_string().parse::<Hours>().unwrap(), hours);
        }
    }

    #[test]
    fn the_end_of_a_day_is_24_and_nothing_else_is_read() {
        let day: Hours = "0-24".parse().unwrap();
        assert!(day.contain(Millis(0)) && day.contain(Millis(24 * 3_600_000 - 1)));
        assert_eq!(serde_json::to_string(&day).unwrap(), r#""00-24""#);
        for text in
            ["", "22", "22-22", "24-06", "22-25", "22:60-6", "-1-6", "22-06-07", "a-b", "1 -2"]
        {
            let error = text.parse::<Hours>().unwrap_err().to_string();
            assert!(error.contains("22-06"), "{error}");
        }
        assert!(serde_json::from_str::<Hours>(r#""6""#).is_err());
    }
}
