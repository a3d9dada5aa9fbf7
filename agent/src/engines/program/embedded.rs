//! A helper inside of this program, compressed.

use std::fmt::Write as _;
use std::fs::Permissions;
use std::io::{Error, ErrorKind, Read as _, Result, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lzma_rust2::XzReader;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::mm::{Advice, madvise};

use super::LIBRARIES;

/// `MFD_EXEC` of Linux 6.3 and newer: runs also where that is not the default.
const EXECUTABLE: MemfdFlags = MemfdFlags::from_bits_retain(0x10);

/// The most that unpacking may take, in KiB: the build's dictionary of 16 MiB, and tables.
const MEMORY_KIB: u32 = 17 * 1024;

/// Bytes at the end that hold the checksum of the block, the index and the footer: 8, 32 and 12 at
/// most.
const STAMPED: usize = 52;

/// A multiple of every system's page.
const PAGE: usize = 1 << 16;

/// What another thread starts meanwhile has a file open that was just written, until it runs itself:
/// so often it is tried again, and after such a pause.
const BUSY_MAX: u32 = 40;
const BUSY_PAUSE: Duration = Duration::from_millis(5);

/// Held while a program is written to a file and started from it: two writers would spoil the file, and
/// the system starts none that somebody writes.
static WRITING: Mutex<()> = Mutex::new(());

fn unpacked(compressed: &[u8]) -> XzReader<&[u8]> {
    XzReader::new_mem_limit(compressed, false, MEMORY_KIB)
}

/// The first bytes of a program that xz compressed.
pub(super) fn beginning(compressed: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    unpacked(compressed).take(4096).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Gives what was read of a part of a mapped file back to the system, for it is read again where it
/// is needed; and then `value`.
#[expect(unsafe_code, reason = "the system is told of a range of memory")]
pub(super) fn released<T>(part: &'static [u8], value: T) -> T {
    let range = part.as_ptr_range();
    let (begin, end) = (range.start.addr().next_multiple_of(PAGE), range.end.addr() & !(PAGE - 1));
    if let Some(length @ 1..) = end.checked_sub(begin) {
        let begin = range.start.with_addr(begin).cast_mut().cast();
        // SAFETY: nobody writes there, and whoever reads gets what the file has.
        let _ = unsafe { madvise(begin, length, Advice::LinuxDontNeed) };
    }
    value
}

/// Changes when a program that xz compressed does, and reads only the end of it. With the length there
/// are the checksum of the unpacked program (the last field of the only block), and both lengths with
/// their checksum (index and footer).
pub(super) fn stamp(compressed: &[u8]) -> String {
    let end = &compressed[compressed.len().saturating_sub(STAMPED)..];
    let mut stamp = format!("{} ", compressed.len());
    for byte in end {
        let _ = write!(stamp, "{byte:02x}");
    }
    stamp
}

/// Starts a program from memory; from a file in `scratch`, a folder of this agent alone, where the
/// system forbids that or has no `/proc`. It looks for libraries beside this program, for it lies
/// in no folder itself.
pub(super) fn start<T>(
    (name, compressed): (&str, &[u8]),
    scratch: Option<&Path>,
    start: &mut dyn FnMut(&mut Command) -> Result<T>,
) -> Result<T> {
    let mut begin = |found: &mut Found| {
        let own = std::env::current_exe().ok();
        if let (None, Some(folder)) =
            (std::env::var_os(LIBRARIES), own.as_deref().and_then(Path::parent))
        {
            found.command.env(LIBRARIES, folder);
        }
        start(&mut found.command)
    };
    let from_memory = from_memory(name, compressed).and_then(|mut found| begin(&mut found));
    match (from_memory, scratch) {
        (Err(_), Some(scratch)) => {
            let _alone = WRITING.lock().unwrap_or_else(PoisonError::into_inner);
            let mut found = from_file(name, compressed, scratch)?;
            let mut started = begin(&mut found);
            for _ in 0..BUSY_MAX {
                if !started.as_ref().is_err_and(is_busy) {
                    break;
                }
                std::thread::sleep(BUSY_PAUSE);
                started = begin(&mut found);
            }
            started
        }
        (started, _) => started,
    }
}

fn is_busy(error: &Error) -> bool {
    error.kind() == ErrorKind::ExecutableFileBusy
}

/// The command that starts a program, and what must live until then.
#[derive(Debug)]
struct Found {
    command: Command,
    _held: Option<OwnedFd>,
}

fn from_file(name: &str, compressed: &[u8], scratch: &Path) -> Result<Found> {
    let path = scratch.join(name);
    let beside = path.with_extension("new");
    let mut file = std::fs::File::create(&beside)?;
    std::io::copy(&mut unpacked(compressed), &mut file)?;
    file.flush()?;
    drop(file);
    std::fs::set_permissions(&beside, Permissions::from_mode(0o700))?;
    std::fs::rename(&beside, &path)?;
    Ok(Found { command: Command::new(path), _held: None })
}

fn from_memory(name: &str, compressed: &[u8]) -> Result<Found> {
    // With vm.memfd_noexec=2 such files cannot be run at all.
    let forbidden = std::fs::read_to_string("/proc/sys/vm/memfd_noexec");
    if forbidden.is_ok_and(|value| value.trim() == "2") {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create(name, flags | EXECUTABLE).or_else(|_| memfd_create(name, flags))?;
    let mut file = std::fs::File::from(memory);
    std::io::copy(&mut unpacked(compressed), &mut file)?;
    // Nobody changes it between here and its start.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(Found { command: Command::new(path), _held: Some(file.into()) })
}

#[cfg(test)]
pub(super) mod testing {
    use std::io::Write as _;

    use lzma_rust2::{XzOptions, XzWriter};

    /// A program compressed by xz, with a dictionary of so many bytes.
    pub(in super::super) fn packed(program: &[u8], dictionary: u32) -> Vec<u8> {
        let mut options = XzOptions::with_preset(0);
        options.lzma_options.dict_size = dictionary;
        let mut writer = XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(program).unwrap();
        writer.finish().unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::packed;
    use super::*;

    #[test]
    fn what_is_damaged_or_takes_too_much_memory_does_not_start() {
        let mut compressed = packed(&[7; 10_000], 1 << 16);
        assert!(from_memory("it", &compressed[..compressed.len() / 2]).is_err());
        let middle = compressed.len() / 2;
        compressed[middle] ^= 1;
        assert!(from_memory("it", &compressed).is_err());
        let error = from_memory("it", &packed(&[7; 10_000], 1 << 26)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::OutOfMemory, "{error}");
    }

    /// Both ways a program is started, with what a system has for that.
    #[test]
    fn a_program_runs_from_memory_and_from_a_file() {
        let program = std::fs::read("/bin/true").unwrap();
        let compressed = packed(&program, 1 << 24);
        assert_eq!(beginning(&compressed).unwrap(), program[..4096]);
        let folder = tempfile::tempdir().unwrap();
        let mut from_file = from_file("it", &compressed, folder.path()).unwrap();
        assert!(from_file.command.status().unwrap().success());
        assert!(folder.path().join("it").is_file());
        let mut told = false;
        let status = start(("it", &compressed), Some(folder.path()), &mut |command| {
            told = command.get_envs().any(|(name, _)| name == LIBRARIES);
            command.status()
        });
        assert!(status.unwrap().success());
        assert!(told || std::env::var_os(LIBRARIES).is_some());
    }

    /// As in a chroot without `/proc`.
    #[test]
    fn a_program_that_does_not_start_from_memory_starts_from_a_file() {
        let compressed = packed(&std::fs::read("/bin/true").unwrap(), 1 << 24);
        let folder = tempfile::tempdir().unwrap();
        let mut tried = Vec::new();
        let mut start = |scratch| {
            tried.clear();
            let status = start(("it", &compressed), scratch, &mut |command| {
                tried.push(command.get_program().to_owned());
                if command.get_program().as_encoded_bytes().starts_with(b"/proc/") {
                    return Err(std::io::ErrorKind::NotFound.into());
                }
                command.status()
            });
            (status, tried.len())
        };
        let (status, tried) = start(Some(folder.path()));
        assert!(status.unwrap().success());
        assert!(tried <= 2);
        let (status, _) = start(None);
        assert!(status.is_err());
    }

    #[test]
    fn programs_that_start_at_the_same_time_do_not_write_over_each_other() {
        let compressed = packed(&std::fs::read("/bin/true").unwrap(), 1 << 24);
        let folder = tempfile::tempdir().unwrap();
        let both = std::sync::Barrier::new(2);
        let run = || {
            both.wait();
            start(("it", &compressed), Some(folder.path()), &mut |command| {
                if command.get_program().as_encoded_bytes().starts_with(b"/proc/") {
                    return Err(std::io::ErrorKind::NotFound.into());
                }
                command.status()
            })
        };
        for _ in 0..20 {
            let (one, other) = std::thread::scope(|scope| {
                let (one, other) = (scope.spawn(run), scope.spawn(run));
                (one.join().unwrap(), other.join().unwrap())
            });
            assert!(one.unwrap().success() && other.unwrap().success());
        }
    }

    #[test]
    fn a_file_that_another_start_has_open_is_started_a_little_later() {
        let compressed = packed(&std::fs::read("/bin/true").unwrap(), 1 << 24);
        let folder = tempfile::tempdir().unwrap();
        let mut tries = 0;
        let status = start(("it", &compressed), Some(folder.path()), &mut |command| {
            if command.get_program().as_encoded_bytes().starts_with(b"/proc/") {
                return Err(ErrorKind::NotFound.into());
            }
            tries += 1;
            if tries < 3 { Err(ErrorKind::ExecutableFileBusy.into()) } else { command.status() }
        });
        assert!(status.unwrap().success() && tries >= 3);
    }
}
