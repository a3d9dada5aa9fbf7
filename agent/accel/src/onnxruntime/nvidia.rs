//! NVIDIA's libraries as pip installs them: `nvidia-*` packages beside ONNX Runtime's.

use std::path::{Path, PathBuf};

/// Loads them, so that ONNX Runtime finds them by their names; without them those of the system
/// are taken. What cannot be loaded is left to ONNX Runtime, which says what it misses.
pub(super) fn preload(onnxruntime: &Path) {
    let mut waiting = libraries(onnxruntime);
    // One needs another: as long as any can be loaded, the others are tried again.
    loop {
        let before = waiting.len();
        waiting.retain(|path| ort::util::preload_dylib(path).is_err());
        if waiting.is_empty() || waiting.len() == before {
            return;
        }
    }
}

/// `site-packages/nvidia/*/lib/*.so*` for `site-packages/onnxruntime/capi/libonnxruntime.so.*`.
pub(super) fn libraries(onnxruntime: &Path) -> Vec<PathBuf> {
    let Some(packages) = onnxruntime.ancestors().nth(3) else { return Vec::new() };
    let below = |folder: PathBuf| {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        entries.filter_map(Result::ok).map(|entry| entry.path())
    };
    let mut found: Vec<PathBuf> = below(packages.join("nvidia"))
        .flat_map(|package| below(package.join("lib")))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so")))
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_pip_are_beside_onnx_runtime() {
        let folder = tempfile::tempdir().unwrap();
        let capi = folder.path().join("onnxruntime/capi");
        let lib = folder.path().join("nvidia/cudnn/lib");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::write(lib.join("libcudnn.so.9"), "no library").unwrap();
        std::fs::write(lib.join("notes.txt"), "").unwrap();
        let library = capi.join("libonnxruntime.so.1.32.0");
        assert_eq!(libraries(&library), [lib.join("libcudnn.so.9")]);
        preload(&library);
        assert!(libraries(Path::new("libonnxruntime.so")).is_empty());
    }
}
