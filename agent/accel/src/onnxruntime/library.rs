//! Where ONNX Runtime's library may be.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use helper::engine::Refusal;

use super::{driver, nvidia};

/// Names the library itself; nothing else is looked for then.
const PATH: &str = "ORT_DYLIB_PATH";
/// Names a folder that is looked into first, where the program itself lies in no folder.
const FOLDER: &str = "DUNLIN_LIBRARIES";
/// Longest that Python may take to say where its packages are.
const PYTHON_WAIT: Duration = Duration::from_secs(5);
/// What lies beside a library that was built for CUDA.
const CUDA_PROVIDER: &str = "libonnxruntime_providers_cuda.so";

/// What the library is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Cpu,
    Cuda,
}

/// How to get the library.
pub(super) fn advice(wanted: Wanted) -> String {
    let package = match wanted {
        Wanted::Cpu => "onnxruntime",
        Wanted::Cuda => "onnxruntime-gpu[cuda,cudnn]",
    };
    format!("install ONNX Runtime 1.24 or newer: `pip install '{package}'`, or set {PATH}")
}

/// Every library that may be loaded, with those that CUDA needs besides.
pub(super) fn likely(wanted: Wanted) -> Vec<PathBuf> {
    let mut found = find(wanted).unwrap_or_default();
    if wanted == Wanted::Cuda {
        let needed = |path: &PathBuf| {
            let provider = path.with_file_name(CUDA_PROVIDER);
            nvidia::libraries(path).into_iter().chain(provider.is_file().then_some(provider))
        };
        let needed: Vec<PathBuf> = found.iter().flat_map(needed).collect();
        found.extend(needed.into_iter().chain(driver::files()));
    }
    found
}

/// Libraries, the most likely first; never empty.
///
/// # Errors
/// [`Refusal`] with the places that were looked at.
pub(super) fn find(wanted: Wanted) -> Result<Vec<PathBuf>, Refusal> {
    if let Some(path) = std::env::var_os(PATH).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(vec![path])
        } else {
            Err(Refusal::of(format!("{PATH} names {}, which is no file", path.display())))
        };
    }
    let mut folders = folders();
    let mut found = libraries(&folders, wanted);
    if found.is_empty() {
        let packages = python_packages();
        found = libraries(&packages, wanted);
        folders.extend(packages);
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let folders: Vec<String> = folders.iter().map(|path| path.display().to_string()).collect();
    let without_cuda =
        libraries(&folders.iter().map(PathBuf::from).collect::<Vec<_>>(), Wanted::Cpu);
    let missing = match without_cuda.first() {
        Some(path) => format!("{} has no {CUDA_PROVIDER} beside it", path.display()),
        None => format!("no libonnxruntime.so in {}", folders.join(", ")),
    };
    Err(Refusal::of(format!("{missing}: {}", advice(wanted))))
}

/// The libraries of these folders, the newest of each first.
fn libraries(folders: &[PathBuf], wanted: Wanted) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in folders {
        if wanted == Wanted::Cuda && !folder.join(CUDA_PROVIDER).is_file() {
            continue;
        }
        let mut here: Vec<(Vec<u32>, PathBuf)> = entries(folder)
            .filter_map(|path| Some((version(path.file_name()?)?, path)))
            .filter(|(_, path)| path.is_file())
            .collect();
        here.sort();
        found.extend(here.pop().map(|(_, path)| path));
    }
    found
}

/// The version in a library's name, empty where it has none; `None` for other files.
fn version(name: &OsStr) -> Option<Vec<u32>> {
    let rest = name.to_str()?.strip_prefix("libonnxruntime.so")?;
    if rest.is_empty() {
        return Some(Vec::new());
    }
    rest.strip_prefix('.')?.split('.').map(|part| part.parse().ok()).collect()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    entries.filter_map(Result::ok).map(|entry| entry.path())
}

/// Folders where libraries are put, without those that only Python knows.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    folders.extend(std::env::var_os(FOLDER).map(PathBuf::from));
    let program = std::env::current_exe().ok();
    if let Some(folder) = program.as_deref().and_then(Path::parent) {
        folders.extend([folder.to_owned(), folder.join("lib")]);
    }
    if let Some(environment) = std::env::var_os("VIRTUAL_ENV") {
        folders.extend(packages_below(&PathBuf::from(environment).join("lib")));
    }
    if let Some(home) = std::env::var_os("HOME") {
        folders.extend(packages_below(&PathBuf::from(home).join(".local/lib")));
    }
    let architecture = std::env::consts::ARCH;
    folders.extend(
        ["/usr/local/lib", "/usr/local/lib64", "/usr/lib", "/usr/lib64"].map(PathBuf::from),
    );
    folders.push(format!("/usr/lib/{architecture}-linux-gnu").into());
    let mut optional: Vec<PathBuf> = entries(Path::new("/opt"))
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("onnxruntime"))
        })
        .map(|path| path.join("lib"))
        .collect();
    optional.sort();
    folders.extend(optional);
    for lib in ["/usr/local/lib", "/usr/lib"] {
        folders.extend(packages_below(Path::new(lib)));
    }
    let mut seen = BTreeSet::new();
    folders.retain(|folder| seen.insert(folder.clone()));
    folders
}

/// `python3*/site-packages/onnxruntime/capi` below a folder of libraries, where it is.
fn packages_below(lib: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = entries(lib)
        .filter(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
        })
        .flat_map(|path| ["site-packages", "dist-packages"].map(|name| path.join(name)))
        .map(|packages| packages.join("onnxruntime/capi"))
        .filter(|folder| folder.is_dir())
        .collect();
    found.sort();
    found.reverse();
    found
}

/// Where the packages of `python3` are, by its own word.
fn python_packages() -> Vec<PathBuf> {
    let child = Command::new("python3")
        .args(["-c", "import sys; print(*sys.path, sep='\\n')"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return Vec::new() };
    let begin = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if begin.elapsed() > PYTHON_WAIT {
            let _ = child.kill();
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let Ok(output) = child.wait_with_output() else { return Vec::new() };
    let text = String::from_utf8_lossy(&output.stdout);
    let packages = text.lines().map(|line| Path::new(line).join("onnxruntime/capi"));
    packages.filter(|folder| folder.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libonnxruntime.so", "libonnxruntime.so.1.9.0", "libonnxruntime.so.1.32.0"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        for name in ["libonnxruntime_providers_shared.so", "libonnxruntime.so.txt"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let folders = [PathBuf::from("/absent"), folder.path().to_owned()];
        let newest = folder.path().join("libonnxruntime.so.1.32.0");
        assert_eq!(libraries(&folders, Wanted::Cpu), std::slice::from_ref(&newest));
        assert!(libraries(&folders, Wanted::Cuda).is_empty());
        std::fs::write(folder.path().join(CUDA_PROVIDER), "").unwrap();
        assert_eq!(libraries(&folders, Wanted::Cuda), [newest]);
    }

    #[test]
    fn packages_of_any_python_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let capi = folder.path().join("python3.9/dist-packages/onnxruntime/capi");
        std::fs::create_dir_all(&capi).unwrap();
        std::fs::create_dir_all(folder.path().join("python3.11/site-packages/numpy")).unwrap();
        assert_eq!(packages_below(folder.path()), [capi]);
    }
}
