//! What NVIDIA's driver says about the first GPU. The only unsafe code for CUDA: the driver's C
//! functions have no safe face.

#![expect(unsafe_code, reason = "the driver is reached through C functions of a loaded library")]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::PathBuf;

use libloading::{Library, Symbol};

use helper::engine::Refusal;

/// A GPU that the driver can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) name: String,
    /// The highest version of CUDA that the driver knows.
    pub(super) driver: String,
    /// Bytes.
    pub(super) memory: u64,
}

/// The driver's library, as the kernel driver's package installs it.
const LIBRARY: &str = "libcuda.so.1";
/// Bytes of a device's name, with the final 0.
const NAME_LEN: usize = 256;

/// Folders that its packages, those of Jetsons, WSL and container runtimes put it into.
const FOLDERS: [&str; 8] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu/tegra",
    "/usr/lib/aarch64-linux-gnu/nvidia",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib/wsl/lib",
    "/usr/local/nvidia/lib64",
];

/// Where the driver's library is, for whoever wants to know whether it is another one.
pub(super) fn files() -> Vec<PathBuf> {
    let named = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = std::env::split_paths(&named).chain(FOLDERS.map(PathBuf::from));
    folders.map(|folder| folder.join(LIBRARY)).filter(|path| path.is_file()).collect()
}

/// C signatures of the driver's functions.
type Init = unsafe extern "C" fn(c_uint) -> c_int;
type GetInt = unsafe extern "C" fn(*mut c_int) -> c_int;
type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
type Total = unsafe extern "C" fn(*mut usize, c_int) -> c_int;

/// The first GPU.
///
/// # Errors
/// [`Refusal`] when there is no driver, or none that works, or no GPU.
pub(super) fn first_device() -> Result<Device, Refusal> {
    // SAFETY: loading runs the driver's initialisers; this process exists to take that risk.
    let library = unsafe { Library::new(LIBRARY) }.map_err(|error| {
        let cause =
            std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string);
        Refusal::of(format!("no NVIDIA GPU: the driver's library cannot be loaded ({cause})"))
    })?;
    let calls = Calls { library: &library };
    // SAFETY: each call has the C signature of the CUDA driver API (cuda.h) of the same name, and
    // pointers to values of this frame that live through the call.
    unsafe {
        calls.check("cuInit", calls.get::<Init>("cuInit")?(0))?;
        let (mut count, mut version, mut device): (c_int, c_int, c_int) = (0, 0, 0);
        let found = calls.get::<GetInt>("cuDeviceGetCount")?(&raw mut count);
        calls.check("cuDeviceGetCount", found)?;
        if count < 1 {
            return Err(Refusal::of("no NVIDIA GPU: the driver counts none".to_owned()));
        }
        calls.check(
            "cuDriverGetVersion",
            calls.get::<GetInt>("cuDriverGetVersion")?(&raw mut version),
        )?;
        calls.check("cuDeviceGet", calls.get::<Get>("cuDeviceGet")?(&raw mut device, 0))?;
        let mut name: [c_char; NAME_LEN] = [0; NAME_LEN];
        let len = c_int::try_from(NAME_LEN - 1).unwrap_or(0);
        let named = calls.get::<Name>("cuDeviceGetName")?(name.as_mut_ptr(), len, device);
        calls.check("cuDeviceGetName", named)?;
        let mut memory = 0_usize;
        let total = calls.get::<Total>("cuDeviceTotalMem_v2")?(&raw mut memory, device);
        calls.check("cuDeviceTotalMem", total)?;
        Ok(Device {
            name: CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned(),
            driver: format!("CUDA {}.{}", version / 1000, version % 1000 / 10),
            memory: memory as u64,
        })
    }
}

struct Calls<'l> {
    library: &'l Library,
}

impl<'l> Calls<'l> {
    /// A function of the driver.
    ///
    /// SAFETY: `F` is the type of the C function with this name.
    unsafe fn get<F>(&self, name: &str) -> Result<Symbol<'l, F>, Refusal> {
        // SAFETY: the caller's.
        unsafe { self.library.get(name.as_bytes()) }
            .map_err(|error| Refusal::of(format!("{LIBRARY} has no {name}: {error}")))
    }

    #[expect(clippy::unused_self, reason = "reads as a call of the driver")]
    fn check(&self, name: &str, result: c_int) -> Result<(), Refusal> {
        match result {
            0 => Ok(()),
            100 => Err(Refusal::of("no NVIDIA GPU: the driver finds none".to_owned())),
            code => Err(Refusal::of(format!(
                "NVIDIA's driver does not work: {name} gives error {code}"
            ))),
        }
    }
}
