//! A helper inside of this program, compressed.

use std::fs::Permissions;
use std::io::{Read as _, Result, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use lzma_rust2::XzReader;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::{LIBRARIES, Started};

/// `MFD_EXEC` of Linux 6.3 and newer: runs also where that is not the default.
const EXECUTABLE: MemfdFlags = MemfdFlags::from_bits_retain(0x10);

/// The most that unpacking may take, in KiB: the build's dictionary of 16 MiB, and tables.
const MEMORY_KIB: u32 = 17 * 1024;

fn unpacked(compressed: &[u8]) -> XzReader<&[u8]> {
    XzReader::new_mem_limit(compressed, false, MEMORY_KIB)
}

/// The first bytes of a program that xz compressed.
pub(super) fn start(compressed: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    unpacked(compressed).take(4096).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Starts a program from memory; from a file in `scratch`, a folder of this agent alone, where the
/// system forbids that. It looks for libraries beside this program, for it lies in no folder
/// itself.
pub(super) fn command(name: &str, compressed: &[u8], scratch: Option<&Path>) -> Result<Started> {
    let mut started = match (from_memory(name, compressed), scratch) {
        (Err(_), Some(scratch)) => from_file(name, compressed, scratch)?,
        (started, _) => started?,
    };
    let own = std::env::current_exe().ok();
    if let (None, Some(folder)) =
        (std::env::var_os(LIBRARIES), own.as_deref().and_then(Path::parent))
    {
        started.command.env(LIBRARIES, folder);
    }
    Ok(started)
}

fn from_file(name: &str, compressed: &[u8], scratch: &Path) -> Result<Started> {
    let path = scratch.join(name);
    let beside = path.with_extension("new");
    let mut file = std::fs::File::create(&beside)?;
    std::io::copy(&mut unpacked(compressed), &mut file)?;
    file.flush()?;
    drop(file);
    std::fs::set_permissions(&beside, Permissions::from_mode(0o700))?;
    std::fs::rename(&beside, &path)?;
    Ok(Started { command: Command::new(path), _held: None })
}

fn from_memory(name: &str, compressed: &[u8]) -> Result<Started> {
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
    Ok(Started { command: Command::new(path), _held: Some(file.into()) })
}

#[cfg(test)]
mod tests {
    use lzma_rust2::{XzOptions, XzWriter};

    use super::*;

    fn packed(program: &[u8], dictionary: u32) -> Vec<u8> {
        let mut options = XzOptions::with_preset(0);
        options.lzma_options.dict_size = dictionary;
        let mut writer = XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(program).unwrap();
        writer.finish().unwrap()
    }

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
        assert_eq!(start(&compressed).unwrap(), program[..4096]);
        let folder = tempfile::tempdir().unwrap();
        let mut from_file = from_file("it", &compressed, folder.path()).unwrap();
        assert!(from_file.command.status().unwrap().success());
        assert!(folder.path().join("it").is_file());
        let mut from_memory = command("it", &compressed, Some(folder.path())).unwrap();
        assert!(from_memory.command.status().unwrap().success());
        let folder = from_memory.command.get_envs().find(|(name, _)| *name == LIBRARIES);
        assert!(folder.is_some() || std::env::var_os(LIBRARIES).is_some());
    }
}
