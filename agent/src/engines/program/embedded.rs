//! The helper inside of this program, compressed.

use std::fs::Permissions;
use std::io::{Result, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use flate2::read::GzDecoder;
use models::digest;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use super::Started;

/// The program, compressed by gzip; the build names the file.
static COMPRESSED: &[u8] = include_bytes!(env!("DUNLIN_ACCEL_PROGRAM"));

/// Names the folder in which the helper looks for libraries first.
const LIBRARIES: &str = "DUNLIN_LIBRARIES";

/// `MFD_EXEC` of Linux 6.3 and newer: runs also where that is not the default.
const EXECUTABLE: MemfdFlags = MemfdFlags::from_bits_retain(0x10);

/// Changes when the program does.
pub(super) fn stamp() -> String {
    static STAMP: OnceLock<String> = OnceLock::new();
    STAMP.get_or_init(|| digest::of(COMPRESSED)).clone()
}

/// Its first bytes.
pub(super) fn start() -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    GzDecoder::new(COMPRESSED).take(4096).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Starts it from memory; from a file in `scratch`, a folder of this agent alone, where the system
/// forbids that. It looks for libraries beside this program, for it lies in no folder itself.
pub(super) fn command(scratch: Option<&Path>) -> Result<Started> {
    let mut started = match (from_memory(), scratch) {
        (Err(_), Some(scratch)) => from_file(scratch)?,
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

fn from_file(scratch: &Path) -> Result<Started> {
    let path = scratch.join("dunlin-accel");
    let beside = scratch.join("dunlin-accel.new");
    let mut file = std::fs::File::create(&beside)?;
    std::io::copy(&mut GzDecoder::new(COMPRESSED), &mut file)?;
    file.flush()?;
    drop(file);
    std::fs::set_permissions(&beside, Permissions::from_mode(0o700))?;
    std::fs::rename(&beside, &path)?;
    Ok(Started { command: Command::new(path), _held: None })
}

fn from_memory() -> Result<Started> {
    // With vm.memfd_noexec=2 such files cannot be run at all.
    let forbidden = std::fs::read_to_string("/proc/sys/vm/memfd_noexec");
    if forbidden.is_ok_and(|value| value.trim() == "2") {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let memory = memfd_create("dunlin-accel", flags | EXECUTABLE)
        .or_else(|_| memfd_create("dunlin-accel", flags))?;
    let mut file = std::fs::File::from(memory);
    std::io::copy(&mut GzDecoder::new(COMPRESSED), &mut file)?;
    // Nobody changes it between here and its start.
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(Started { command: Command::new(path), _held: Some(file.into()) })
}
