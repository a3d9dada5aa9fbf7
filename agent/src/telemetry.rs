//! Measures the device, by `sysinfo` and the kernel's thermal zones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use jobs::device::{DiskUse, NetworkUse, Telemetry};
use jobs::id::{Bytes, Millis};
use sysinfo::{
    Components, DiskRefreshKind, Disks, Networks, Pid, ProcessRefreshKind, ProcessesToUpdate,
    System,
};

pub(crate) mod buffer;

/// Mount points reported, at most.
const DISKS_MAX: usize = 64;
/// Interfaces reported, at most.
const NETWORKS_MAX: usize = 64;
/// Sensors reported, at most.
const SENSORS_MAX: usize = 128;

/// Measures; keeps what the next measurement is compared with.
#[derive(Debug)]
pub(crate) struct Probe {
    system: Option<System>,
    disks: Option<Disks>,
    networks: Option<Networks>,
    components: Option<Components>,
    /// Where the kernel shows its sensors.
    thermal: PathBuf,
    this_process: Option<Pid>,
}

impl Probe {
    /// A probe that has measured nothing; what the system does not offer stays absent. The kernel
    /// shows its sensors in `thermal` below `sysfs`.
    pub(crate) fn new(sysfs: &Path) -> Self {
        Self {
            system: System::new().ok(),
            disks: Disks::new().ok(),
            networks: Networks::new().ok(),
            components: Components::new().ok(),
            thermal: sysfs.join("thermal"),
            this_process: sysinfo::get_current_pid().ok(),
        }
    }

    /// Measures now. The processors' load is the mean since the measurement before; it is 0 in
    /// the first one.
    pub(crate) fn measure(&mut self, at: Millis) -> Telemetry {
        let mut telemetry = Telemetry { at, ..Telemetry::default() };
        telemetry.uptime_s = System::uptime().unwrap_or(0);
        if let Ok(load) = System::load_average() {
            telemetry.load = [load.one, load.five, load.fifteen];
        }
        if let Some(system) = &mut self.system {
            system.refresh_cpu_usage();
            system.refresh_memory();
            if let Some(pid) = self.this_process {
                let wanted = ProcessRefreshKind::nothing().with_memory().without_tasks();
                system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, wanted);
                let memory = system.process(pid).map_or(0, sysinfo::Process::memory);
                telemetry.agent_memory = Bytes(memory);
            }
            let busy = system.global_cpu_usage();
            telemetry.cpu_percent = if busy.is_finite() { busy.clamp(0.0, 100.0) } else { 0.0 };
            telemetry.memory_total = Bytes(system.total_memory());
            telemetry.memory_used = Bytes(system.used_memory());
            telemetry.memory_available = Bytes(system.available_memory());
            telemetry.swap_total = Bytes(system.total_swap());
            telemetry.swap_used = Bytes(system.used_swap());
        }
        telemetry.disks = self.disks();
        telemetry.networks = self.networks();
        telemetry.temperatures = self.temperatures();
        telemetry
    }

    fn disks(&mut self) -> Vec<DiskUse> {
        let Some(disks) = &mut self.disks else { return Vec::new() };
        disks.refresh_specifics(true, DiskRefreshKind::nothing().with_storage());
        let mut found: Vec<DiskUse> = disks
            .iter()
            .filter(|disk| disk.total_space() > 0)
            .map(|disk| DiskUse {
                mount: disk.mount_point().display().to_string(),
                total: Bytes(disk.total_space()),
                available: Bytes(disk.available_space()),
            })
            .collect();
        found.sort_by(|a, b| a.mount.cmp(&b.mount));
        found.dedup_by(|a, b| a.mount == b.mount);
        found.truncate(DISKS_MAX);
        found
    }

    fn networks(&mut self) -> Vec<NetworkUse> {
        let Some(networks) = &mut self.networks else { return Vec::new() };
        networks.refresh(true);
        let mut found: Vec<NetworkUse> = networks
            .iter()
            .map(|(interface, data)| NetworkUse {
                interface: interface.to_string_lossy().into_owned(),
                received: Bytes(data.total_received()),
                sent: Bytes(data.total_transmitted()),
            })
            .collect();
        found.sort_by(|a, b| a.interface.cmp(&b.interface));
        found.truncate(NETWORKS_MAX);
        found
    }

    /// Celsius by sensor.
    pub(crate) fn temperatures(&mut self) -> BTreeMap<String, f32> {
        let mut readings = thermal_zones(&self.thermal);
        if let Some(components) = &mut self.components {
            components.refresh(true);
            for component in components.iter() {
                if let Some(celsius) = component.temperature().filter(|t| t.is_finite()) {
                    readings.push((component.label().to_owned(), celsius));
                }
            }
        }
        by_sensor(readings)
    }
}

/// Those of one name are numbered, as of two disks of one make; of too many the hottest are kept.
fn by_sensor(mut readings: Vec<(String, f32)>) -> BTreeMap<String, f32> {
    while readings.len() > SENSORS_MAX {
        let coolest = (0..readings.len()).min_by(|a, b| readings[*a].1.total_cmp(&readings[*b].1));
        readings.remove(coolest.unwrap_or_default());
    }
    let mut found = BTreeMap::new();
    for (sensor, celsius) in readings {
        let mut name = sensor.clone();
        let mut number = 2;
        while found.contains_key(&name) {
            name = format!("{sensor} {number}");
            number += 1;
        }
        found.insert(name, celsius);
    }
    found
}

/// Celsius with the zone's type; `thermal_zone*/temp` / 1000.
fn thermal_zones(dir: &Path) -> Vec<(String, f32)> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else { return found };
    let mut zones: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("thermal_zone"))
        .map(|entry| entry.path())
        .collect();
    zones.sort_by_key(|path| (path.as_os_str().len(), path.clone()));
    for zone in zones {
        let read = |name: &str| std::fs::read_to_string(zone.join(name)).ok();
        let milli = read("temp").and_then(|text| text.trim().parse::<f32>().ok());
        let Some(celsius) = milli.map(|milli| milli / 1000.0) else { continue };
        let kind = read("type").map(|text| text.trim().to_owned()).unwrap_or_default();
        let kind = if kind.is_empty() { "thermal".to_owned() } else { kind };
        found.push((kind, celsius));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_measured_sanely() {
        let mut probe = Probe::new(Path::new("/sys/class"));
        probe.measure(Millis(1));
        let found = probe.measure(Millis(2));
        assert_eq!(found.at, Millis(2));
        assert!(found.uptime_s > 0);
        assert!((0.0..=100.0).contains(&found.cpu_percent));
        assert!(found.memory_total.0 >= found.memory_available.0);
        assert!(found.memory_total.0 >= found.memory_used.0 && found.memory_used.0 > 0);
        assert!(found.agent_memory.0 > 100_000, "{found:?}");
        assert!(found.networks.iter().any(|network| network.interface == "lo"), "{found:?}");
        assert!(found.disks.iter().all(|disk| disk.total.0 >= disk.available.0));
        assert!(serde_json::to_string(&found).is_ok());
    }

    #[test]
    fn thermal_zones_are_read_in_celsius() {
        let dir = tempfile::tempdir().unwrap();
        for (zone, kind, temp) in
            [("thermal_zone0", "cpu", "48250"), ("thermal_zone1", "cpu", "-1000")]
        {
            std::fs::create_dir(dir.path().join(zone)).unwrap();
            std::fs::write(dir.path().join(zone).join("type"), format!("{kind}\n")).unwrap();
            std::fs::write(dir.path().join(zone).join("temp"), format!("{temp}\n")).unwrap();
        }
        std::fs::create_dir(dir.path().join("thermal_zone2")).unwrap();
        let found = thermal_zones(dir.path());
        assert_eq!(found, [("cpu".to_owned(), 48.25), ("cpu".to_owned(), -1.0)]);
        assert!(thermal_zones(Path::new("/does/not/exist")).is_empty());
    }

    #[test]
    fn no_sensor_hides_another_of_its_name_and_the_hottest_are_kept() {
        let disk = |celsius| ("disk".to_owned(), celsius);
        let found = by_sensor(vec![disk(70.0), ("cpu".to_owned(), 50.0), disk(40.0)]);
        let expected = [("cpu", 50.0), ("disk", 70.0), ("disk 2", 40.0)];
        assert_eq!(found, expected.map(|(name, celsius)| (name.to_owned(), celsius)).into());
        let many = (0..=SENSORS_MAX).map(|number| match number {
            0 => ("z".to_owned(), 90.0),
            1 => ("a".to_owned(), 10.0),
            number => (format!("m{number}"), 20.0),
        });
        let found = by_sensor(many.collect());
        assert_eq!((found.len(), found.get("z"), found.get("a")), (SENSORS_MAX, Some(&90.0), None));
    }
}
