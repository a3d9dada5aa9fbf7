//! What a device asks of itself before it takes part in a training, and while it trains.
//!
//! [`Guards`] judges what was measured and is pure; what the device cannot measure it does not
//! judge.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jobs::device::{DiskUse, Telemetry};
use jobs::hours::Hours;
use jobs::id::Millis;
use jobs::report::{Failure, FailureCode};

use crate::device::Device;

/// Time between two looks at the temperature while a training runs, at least.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// When a device takes no part in trainings.
#[derive(Debug, Clone, PartialEq)]
pub struct Guards {
    /// Celsius; when a sensor shows more.
    pub temperature_max: Option<f32>,
    /// Bytes; when less memory is available.
    pub memory_min: Option<u64>,
    /// Bytes; when less is free where the agent keeps its state.
    pub disk_min: Option<u64>,
    /// Percent; when a battery has less charge.
    pub battery_min: Option<u8>,
    /// Outside of these hours.
    pub hours: Option<Hours>,
    /// Where the kernel shows sensors and batteries.
    pub sysfs: PathBuf,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            temperature_max: None,
            memory_min: None,
            disk_min: None,
            battery_min: None,
            hours: None,
            sysfs: PathBuf::from("/sys/class"),
        }
    }
}

/// What guards judge.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Condition {
    /// Since the Unix epoch.
    now: Millis,
    /// Celsius by sensor.
    temperatures: BTreeMap<String, f32>,
    /// Bytes available; 0 when it is not known.
    memory: u64,
    /// Bytes free where state is kept.
    disk: Option<u64>,
    /// Percent of the emptiest battery.
    battery: Option<u8>,
}

impl Condition {
    pub(crate) fn of(measured: &Telemetry, state_dir: &Path, battery: Option<u8>) -> Self {
        Self {
            now: measured.at,
            temperatures: measured.temperatures.clone(),
            memory: measured.memory_available.0,
            disk: disk_of(&measured.disks, state_dir),
            battery,
        }
    }
}

/// Free bytes of the file system that holds a folder: the one with the longest mount point.
fn disk_of(disks: &[DiskUse], folder: &Path) -> Option<u64> {
    let holding = disks.iter().filter(|disk| folder.starts_with(&disk.mount));
    holding.max_by_key(|disk| disk.mount.len()).map(|disk| disk.available.0)
}

impl Guards {
    /// Whether nothing is asked.
    pub(crate) fn are_open(&self) -> bool {
        *self == Self { sysfs: self.sysfs.clone(), ..Self::default() }
    }

    /// Why the device takes no part now: all reasons, with what to change.
    pub(crate) fn refusal(&self, is: &Condition) -> Option<Failure> {
        let mut reasons: Vec<String> = self.heat(&is.temperatures).into_iter().collect();
        let mut less =
            |found: Option<u64>, least: Option<u64>, what: &str, unit: &str, flag: &str| {
                if let (Some(found), Some(least)) = (found, least)
                    && found < least
                {
                    reasons.push(format!("{what} is {found}{unit}, {flag} is {least}{unit}"));
                }
            };
        let memory = Some(is.memory).filter(|bytes| *bytes > 0);
        less(memory, self.memory_min, "memory available", " bytes", "--guard-memory-min");
        less(is.disk, self.disk_min, "disk space free", " bytes", "--guard-disk-min");
        let (charge, least) = (is.battery.map(u64::from), self.battery_min.map(u64::from));
        less(charge, least, "the battery's charge", " %", "--guard-battery-min");
        if let Some(hours) = self.hours.filter(|hours| !hours.contain(is.now)) {
            reasons.push(format!("it is outside of --guard-hours {hours} (UTC)"));
        }
        (!reasons.is_empty()).then(|| refused(&reasons.join("; ")))
    }

    /// Options that keep the device out of nothing, since what they judge is not measured here.
    pub(crate) fn blind(&self, is: &Condition) -> Vec<String> {
        let all = [
            (
                self.temperature_max.is_some() && is.temperatures.is_empty(),
                "--guard-temperature-max",
                "no temperature sensor was found",
            ),
            (
                self.memory_min.is_some() && is.memory == 0,
                "--guard-memory-min",
                "the memory available is not known",
            ),
            (
                self.disk_min.is_some() && is.disk.is_none(),
                "--guard-disk-min",
                "the free space under the state directory is not known",
            ),
            (
                self.battery_min.is_some() && is.battery.is_none(),
                "--guard-battery-min",
                "no battery was found",
            ),
        ];
        let blind = all.into_iter().filter(|(is_blind, ..)| *is_blind);
        blind.map(|(_, option, missing)| format!("{option} guards nothing: {missing}")).collect()
    }

    /// Why it is too hot.
    fn heat(&self, temperatures: &BTreeMap<String, f32>) -> Option<String> {
        let max = self.temperature_max?;
        let (sensor, celsius) = temperatures.iter().max_by(|a, b| a.1.total_cmp(b.1))?;
        let text = || format!("{sensor} is at {celsius:.1} C, --guard-temperature-max is {max}");
        (*celsius > max).then(text)
    }
}

fn refused(reasons: &str) -> Failure {
    Failure::new(FailureCode::Guarded, reasons)
}

/// Percent of the emptiest battery, `power_supply/*/capacity` of those whose type is `Battery`.
pub(crate) fn battery(sysfs: &Path) -> Option<u8> {
    let supplies = std::fs::read_dir(sysfs.join("power_supply")).ok()?;
    let charges = supplies.flatten().filter_map(|supply| {
        let read = |name: &str| std::fs::read_to_string(supply.path().join(name)).ok();
        let is_battery = read("type").is_some_and(|kind| kind.trim() == "Battery");
        read("capacity").filter(|_| is_battery)?.trim().parse().ok()
    });
    charges.min()
}

/// Looks at the temperature now and then while a training runs.
pub(crate) struct Heat {
    device: Arc<Device>,
    looked_at: Cell<Instant>,
}

impl Heat {
    /// It was looked at just now.
    pub(crate) fn of(device: Arc<Device>) -> Self {
        Self { device, looked_at: Cell::new(Instant::now()) }
    }

    /// Fails when the device has become too hot.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let guards = &self.device.config.guards;
        if guards.temperature_max.is_none() || self.looked_at.get().elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked_at.set(Instant::now());
        let hot = guards.heat(&self.device.temperatures());
        hot.map_or(Ok(()), |reason| Err(refused(&format!("stopped while training: {reason}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobs::id::Bytes;

    fn condition() -> Condition {
        Condition {
            now: Millis(23 * 3_600_000),
            temperatures: BTreeMap::from([("cpu".to_owned(), 60.0), ("gpu".to_owned(), 81.5)]),
            memory: 500,
            disk: Some(500),
            battery: Some(50),
        }
    }

    #[test]
    fn every_guard_refuses_by_its_flag_and_all_reasons_are_told() {
        let open = Guards::default();
        assert!(open.are_open() && open.refusal(&condition()).is_none());
        let strict = Guards {
            temperature_max: Some(80.0),
            memory_min: Some(501),
            disk_min: Some(501),
            battery_min: Some(51),
            hours: Some("22-23".parse().unwrap()),
            ..Guards::default()
        };
        assert!(!strict.are_open());
        let failure = strict.refusal(&condition()).unwrap();
        assert_eq!(failure.code, FailureCode::Guarded);
        let reasons: Vec<&str> = failure.message.split("; ").collect();
        let expected = [
            "gpu is at 81.5 C, --guard-temperature-max is 80",
            "memory available is 500 bytes, --guard-memory-min is 501 bytes",
            "disk space free is 500 bytes, --guard-disk-min is 501 bytes",
            "the battery's charge is 50 %, --guard-battery-min is 51 %",
            "it is outside of --guard-hours 22-23 (UTC)",
        ];
        assert_eq!(reasons, expected);
        let met = Guards {
            temperature_max: Some(81.5),
            memory_min: Some(500),
            disk_min: Some(500),
            battery_min: Some(50),
            hours: Some("23-22".parse().unwrap()),
            ..Guards::default()
        };
        assert_eq!(met.refusal(&condition()), None);
        assert_eq!(strict.blind(&condition()), [""; 0]);
        assert_eq!(open.blind(&Condition::default()), [""; 0]);
        let blind = [
            "--guard-temperature-max guards nothing: no temperature sensor was found",
            "--guard-memory-min guards nothing: the memory available is not known",
            "--guard-disk-min guards nothing: the free space under the state directory is not known",
            "--guard-battery-min guards nothing: no battery was found",
        ];
        assert_eq!(strict.blind(&Condition::default()), blind);
        assert_eq!(
            strict.refusal(&Condition { now: Millis(22 * 3_600_000), ..Condition::default() }),
            None
        );
    }

    #[test]
    fn the_disk_is_the_one_that_holds_the_folder() {
        let disk = |mount: &str, available| DiskUse {
            mount: mount.to_owned(),
            total: Bytes(1000),
            available: Bytes(available),
        };
        let disks = [disk("/", 1), disk("/var", 2), disk("/var/lib/dunlin", 3), disk("/va", 4)];
        assert_eq!(disk_of(&disks, Path::new("/var/lib/dunlin/pi")), Some(3));
        assert_eq!(disk_of(&disks, Path::new("/var/lib/other")), Some(2));
        assert_eq!(disk_of(&disks, Path::new("/home")), Some(1));
        assert_eq!(disk_of(&[], Path::new("/home")), None);
    }

    #[test]
    fn the_emptiest_battery_counts() {
        let dir = tempfile::tempdir().unwrap();
        for (name, kind, capacity) in
            [("AC", "Mains", "0"), ("BAT0", "Battery", "80\n"), ("BAT1", "Battery", "35")]
        {
            let supply = dir.path().join("power_supply").join(name);
            std::fs::create_dir_all(&supply).unwrap();
            std::fs::write(supply.join("type"), format!("{kind}\n")).unwrap();
            std::fs::write(supply.join("capacity"), capacity).unwrap();
        }
        assert_eq!(battery(dir.path()), Some(35));
        assert_eq!(battery(Path::new("/does/not/exist")), None);
    }
}
