//! What this device is: hardware and system, read once when the agent starts.

use std::path::Path;

use jobs::device::Facts;
use jobs::id::Bytes;
use sysinfo::{
    CGroupLimits, CpuRefreshKind, MemoryRefreshKind, ProcessRefreshKind, ProcessesToUpdate,
    RefreshKind, System,
};

/// Reads all facts; what cannot be known stays empty.
pub(crate) fn read(state_dir: &Path) -> Facts {
    let wanted = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let mut system = System::new_with_specifics(wanted).ok();
    let memory = system.as_mut().map_or(0, memory);
    let cpu = system.as_ref().and_then(|system| system.cpus().first()).map(sysinfo::Cpu::brand);
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Facts {
        arch: std::env::consts::ARCH.to_owned(),
        os: std::env::consts::OS.to_owned(),
        os_version: System::long_os_version().unwrap_or_default(),
        kernel: System::kernel_version().unwrap_or_default(),
        host_name: System::host_name().unwrap_or_default(),
        model: model(Path::new("/")),
        cpu: cpu.unwrap_or_default().trim().to_owned(),
        cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
        memory: Bytes(memory),
        disk: Bytes(file_system_size(state_dir)),
    }
}

/// What processes of this device, or of this container, may take.
fn memory(system: &mut System) -> u64 {
    let groups = control_groups(system);
    let allowed = groups.iter().map(|limits| limits.total_memory).filter(|bytes| *bytes > 0);
    allowed.chain([system.total_memory()]).min().unwrap_or(0)
}

/// Limits of the control groups that this process is in: its own, and that of a container.
pub(crate) fn control_groups(system: &mut System) -> Vec<CGroupLimits> {
    let own = sysinfo::get_current_pid().ok().and_then(|pid| {
        let wanted = ProcessRefreshKind::nothing().without_tasks();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, wanted);
        system.process(pid)?.cgroup_limits()
    });
    own.into_iter().chain(system.cgroup_limits()).collect()
}

/// The board or product, below a root directory: `/proc/device-tree/model` on boards, the DMI
/// vendor and product elsewhere.
fn model(root: &Path) -> String {
    let read = |path: &str| {
        let text = std::fs::read(root.join(path)).unwrap_or_default();
        String::from_utf8_lossy(&text).trim_matches(['\0', '\n', ' ']).to_owned()
    };
    let board = read("proc/device-tree/model");
    if !board.is_empty() {
        return board;
    }
    let vendor = read("sys/class/dmi/id/sys_vendor");
    let product = read("sys/class/dmi/id/product_name");
    format!("{vendor} {product}").trim().to_owned()
}

/// Size of the file system that holds a directory.
fn file_system_size(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_facts() {
        let facts = read(Path::new("/tmp"));
        assert_eq!(facts.os, std::env::consts::OS);
        assert!(facts.cpus >= 1);
        assert!(facts.memory.0 > 64 * 1024 * 1024, "{facts:?}");
        assert!(facts.disk.0 > 0 && !facts.kernel.is_empty(), "{facts:?}");
    }

    #[test]
    fn boards_and_products_are_named() {
        let root = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert_eq!(model(root.path()), "");
        put("sys/class/dmi/id/sys_vendor", "Apple Inc.\n");
        put("sys/class/dmi/id/product_name", "Macmini8,1\n");
        assert_eq!(model(root.path()), "Apple Inc. Macmini8,1");
        put("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0");
        assert_eq!(model(root.path()), "Raspberry Pi 4 Model B Rev 1.4");
    }
}
