//! What systemd says of the service.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::UNIT;
use super::places::Places;
use crate::config::{Config, ConfigError};

/// What systemd is asked; the answer is a line `Name=value` for each.
pub(super) const QUESTION: [&str; 3] = [
    "show",
    UNIT,
    "--property=LoadState,ActiveState,SubState,UnitFileState,MainPID,NRestarts,Result,\
     ActiveEnterTimestamp,MemoryCurrent,CPUUsageNSec,StatusText",
];

/// Its answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Status(BTreeMap<String, String>);

impl Status {
    /// Reads lines `Name=value`.
    pub(super) fn parse(text: &str) -> Self {
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        Self(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    /// Whether the agent runs now.
    pub(super) fn is_active(&self) -> bool {
        self.get("ActiveState") == "active"
    }

    /// Whether systemd knows the unit.
    fn is_installed(&self) -> bool {
        !matches!(self.get("LoadState"), "not-found" | "")
    }

    /// What the agent says of its connection to NATS; nothing from one that was installed without a
    /// way to say it.
    pub(super) fn link(&self) -> Option<&str> {
        Some(self.get("StatusText")).filter(|text| self.is_active() && !text.is_empty())
    }

    /// The state in systemd's words.
    pub(super) fn state(&self) -> String {
        let mut text = format!("{} ({})", self.get("ActiveState"), self.get("SubState"));
        if !matches!(self.get("Result"), "success" | "") {
            let _ = write!(text, ", {}", self.get("Result"));
        }
        text
    }

    /// As `systemctl status`: 0 running, 3 not running, 4 not installed.
    pub(super) fn exit_code(&self) -> u8 {
        match (self.is_installed(), self.is_active()) {
            (_, true) => 0,
            (true, false) => 3,
            (false, false) => 4,
        }
    }

    /// The same with what the unit runs, for people.
    pub(super) fn told(
        &self,
        places: &Places,
        version: &str,
        config: Result<&Config, &ConfigError>,
    ) -> String {
        if !self.is_installed() {
            let flag = places.scope_flag();
            return format!(
                "{UNIT} is not installed: dunlin-agent service install{flag} --nats URL\n"
            );
        }
        let mut text = format!("{UNIT} is {}", self.state());
        let mut more = |name: &str, before: &str, after: &str| {
            let value = self.get(name);
            if !matches!(value, "" | "0" | "[not set]") {
                let _ = write!(text, ", {before}{value}{after}");
            }
        };
        more("UnitFileState", "", "");
        more("ActiveEnterTimestamp", "since ", "");
        more("MainPID", "process ", "");
        more("NRestarts", "", " restarts");
        text.push('\n');
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "  {name:<9}{value}");
        };
        match config {
            Ok(config) => {
                line("device", config.device.as_str());
                line("NATS", &link::connect::without_password(&config.link.servers));
                self.link().into_iter().for_each(|link| line("link", link));
                for (name, path) in &config.data {
                    line("data", &format!("{name}={}", path.display()));
                }
                line("state", &config.state_dir.display().to_string());
            }
            Err(error) => {
                self.link().into_iter().for_each(|link| line("link", link));
                if is_for_root(error) {
                    line("more", "is told to root: sudo dunlin-agent service status");
                } else {
                    line("problem", &error.to_string());
                }
            }
        }
        line("program", &format!("{}: {version}", places.program.display()));
        line("config", &places.config.display().to_string());
        line("unit", &places.unit.display().to_string());
        if let Some(used) = self.used() {
            line("used", &used);
        }
        line("log", &places.logs());
        text
    }

    /// Memory and processor time, as far as systemd counts them here.
    fn used(&self) -> Option<String> {
        // What is not counted is no number, or the largest.
        let counted = |name: &str| {
            let count: Option<u64> = self.get(name).parse().ok();
            count.filter(|count| *count != u64::MAX)
        };
        let memory = counted("MemoryCurrent").map(|bytes| format!("{} MB", bytes / 1_000_000));
        let processor = counted("CPUUsageNSec")
            .map(|nanoseconds| format!("{} s of processor", nanoseconds / 1_000_000_000));
        let both: Vec<String> = memory.into_iter().chain(processor).collect();
        (!both.is_empty()).then(|| both.join(", "))
    }
}

/// Whether the configuration cannot be read because it is not ours.
fn is_for_root(error: &ConfigError) -> bool {
    matches!(error, ConfigError::Unreadable { source, .. }
        if source.kind() == std::io::ErrorKind::PermissionDenied)
}
