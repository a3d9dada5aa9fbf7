//! The text of the unit.

use std::fmt::Write as _;
use std::path::Path;

use super::places::Places;
use crate::config::Config;

/// NVIDIA's program that loads its driver and makes its devices.
pub(super) const MODPROBE: &str = "/usr/bin/nvidia-modprobe";

/// What the system's service may not do. It runs as root without root's powers but one: to read
/// data sets of whichever owner. Directives that would hide GPUs are left out: `PrivateDevices`,
/// `DevicePolicy`, `ProtectClock` (it sets the latter), and `MemoryDenyWriteExecute`, since
/// drivers compile for their GPU.
const HARDENING: &str = "\
CapabilityBoundingSet=CAP_DAC_READ_SEARCH
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
UMask=0077
";

/// The unit that runs the agent with its configuration.
///
/// `modprobe` says whether [`MODPROBE`] is on the device.
pub(super) fn text(places: &Places, config: &Config, modprobe: bool) -> String {
    let mut text = String::from(
        "# Written by 'dunlin-agent service install', which replaces it; changes belong into\n\
         # 'systemctl edit dunlin-agent'.\n\
         [Unit]\n\
         Description=Dunlin agent: trains and answers for a fleet\n",
    );
    if !places.user {
        text.push_str("Wants=network-online.target\nAfter=network-online.target\n");
    }
    // However often it ends, it is started again: a device has nobody beside it.
    text.push_str("StartLimitIntervalSec=0\n\n[Service]\n");
    if modprobe && !places.user {
        let _ = writeln!(text, "ExecStartPre=-+{MODPROBE} -u -c 0");
    }
    let (program, file) = (quoted(&places.program), quoted(&places.config));
    let _ = writeln!(text, "ExecStart={program} --config {file}");
    // The agent says itself whether it is connected, and ends its helpers when they have answered.
    // A child that ran out of memory ends alone; the agent goes on without it.
    text.push_str(
        "NotifyAccess=main\nRestart=always\nRestartSec=5\nKillMode=mixed\nTimeoutStopSec=15\n\
         OOMPolicy=continue\nMemoryAccounting=yes\nCPUAccounting=yes\n",
    );
    if places.user {
        text.push_str("NoNewPrivileges=yes\n\n[Install]\nWantedBy=default.target\n");
        return text;
    }
    if config.state_dir == places.state {
        text.push_str("StateDirectory=dunlin-agent\nStateDirectoryMode=0700\n");
    } else {
        let _ = writeln!(text, "ReadWritePaths={}", quoted(&config.state_dir));
    }
    text.push_str(HARDENING);
    // A private /tmp would hide what was put there.
    if !named(config).any(|path| path.starts_with("/tmp") || path.starts_with("/var/tmp")) {
        text.push_str("PrivateTmp=yes\n");
    }
    text.push_str("\n[Install]\nWantedBy=multi-user.target\n");
    text
}

/// Everything that a configuration names.
fn named(config: &Config) -> impl Iterator<Item = &Path> {
    let link = [&config.link.credentials, &config.link.tls_ca];
    let engines = [&config.accel, &config.tract, &config.onnxruntime];
    let files = link.into_iter().chain(engines).flatten().chain([&config.state_dir]);
    files.chain(config.data.values()).map(std::path::PathBuf::as_path)
}

/// A path as a word of a directive: `%` begins a specifier there, and `$` a variable.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let text = text.replace('%', "%%").replace('$', "$$");
    if !text.contains([' ', '\t', '"', '\'', '\\', ';']) {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
