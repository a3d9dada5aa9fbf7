//! Whether a training fits into memory, before it begins.

use jobs::report::{Failure, FailureCode};
use models::train::Memory;
use sysinfo::{MemoryRefreshKind, Pid, ProcessRefreshKind, ProcessesToUpdate, System};

/// One of so many parts is added for packed matrices and the allocator: the peak of ResNet-18,
/// VGG-11, `MobileNetV2` and `SqueezeNet` lay 30 to 60 MB above an estimate of 110 to 440 MB, 15 MB
/// of it the program.
const MARGIN: u64 = 10;

/// Memory that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Room {
    /// So many bytes are free.
    Free(u64),
    /// So many bytes are allowed by the configuration.
    Allowed(u64),
}

impl Room {
    /// What the system and the control group of this process have left, or `max` if that is
    /// less; `None` when nobody knows.
    pub(super) fn now(max: Option<u64>) -> Option<Self> {
        let (max, free) = (max.map(Self::Allowed), free().map(Self::Free));
        max.into_iter().chain(free).min_by_key(|room| room.bytes())
    }

    fn bytes(self) -> u64 {
        match self {
            Self::Free(bytes) | Self::Allowed(bytes) => bytes,
        }
    }
}

fn free() -> Option<u64> {
    let mut system = System::new().ok()?;
    system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
    let available = Some(system.available_memory()).filter(|bytes| *bytes > 0);
    let own = sysinfo::get_current_pid().ok().and_then(|pid| group(&mut system, pid));
    // A container has a limit of its own.
    let outer = system.cgroup_limits();
    let left = |limits: sysinfo::CGroupLimits| limits.total_memory.saturating_sub(limits.rss);
    available.into_iter().chain(own.map(left)).chain(outer.map(left)).min()
}

fn group(system: &mut System, pid: Pid) -> Option<sysinfo::CGroupLimits> {
    let wanted = ProcessRefreshKind::nothing().without_tasks();
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), false, wanted);
    system.process(pid)?.cgroup_limits()
}

/// Refuses a training that does not fit. `memory` is the trainer's, which has its parameters
/// already; a batch of examples and the finished update come on top.
pub(super) fn check(
    memory: &Memory,
    batch_size: usize,
    batch_bytes: u64,
    room: Option<Room>,
) -> Result<(), Failure> {
    let Some(room) = room else { return Ok(()) };
    let update = 2 * memory.parameters;
    let more = (memory.total() - memory.parameters).saturating_add(update + batch_bytes);
    let more = more.saturating_add(more / MARGIN);
    if more <= room.bytes() {
        return Ok(());
    }
    let per_batch = megabytes(memory.activations + memory.scratch + batch_bytes);
    let message = format!(
        "training needs {} more memory, {}: {per_batch} of it are for batches of {batch_size} \
         examples, the rest for the model: take a smaller batch size or model",
        megabytes(more),
        match room {
            Room::Free(bytes) => format!("the device has {} free", megabytes(bytes)),
            Room::Allowed(bytes) => format!("--training-bytes allows {}", megabytes(bytes)),
        },
    );
    Err(Failure::new(FailureCode::OutOfMemory, message))
}

#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_room_and_a_limit_makes_it_smaller() {
        let room = Room::now(None).unwrap();
        assert!(room.bytes() > 10_000_000, "{room:?}");
        assert_eq!(Room::now(Some(5)), Some(Room::Allowed(5)));
        assert!(matches!(Room::now(Some(u64::MAX)), Some(Room::Free(_))));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures() {
        let memory = Memory {
            parameters: 1_000_000,
            gradients: 1_000_000,
            optimizer_state: 2_000_000,
            activations: 30_600_000,
            scratch: 400_000,
        };
        let room = |bytes| Some(Room::Free(bytes));
        assert_eq!(check(&memory, 64, 100_000, None), Ok(()));
        assert_eq!(check(&memory, 64, 100_000, room(39_710_000)), Ok(()));
        let failure = check(&memory, 64, 100_000, room(39_709_999)).unwrap_err();
        assert_eq!(failure.code, FailureCode::OutOfMemory);
        assert_eq!(
            failure.message,
            "training needs 39.7 MB more memory, the device has 39.7 MB free: 31.1 MB of it are for \
             batches of 64 examples, the rest for the model: take a smaller batch size or model"
        );
    }
}
