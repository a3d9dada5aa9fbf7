//! Engines of the helper processes, through the agent's own client.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use agent::engines::{Helper, Program};

use crate::process;

/// An engine in a helper that is started with a variable of its own.
#[derive(Debug)]
pub struct Started {
    /// The client.
    pub helper: Helper,
    /// Holds the program that sets the variable.
    _folder: tempfile::TempDir,
}

impl Started {
    /// `variable` is `NAME=VALUE` in a shell's words, or nothing; the engine has `threads`.
    pub fn new(program: &str, engine: &'static str, variable: &str, threads: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), program, variable);
        let helper = Helper::new(engine, Program::File(path), threads);
        Self { helper, _folder: folder }
    }

    /// `ort-cpu`, with the library that `scripts/setup.sh tests` gets; `None` where that did not
    /// run.
    pub fn onnx_runtime(threads: usize) -> Option<Self> {
        let library = onnx_runtime_library()?;
        let variable = format!("ORT_DYLIB_PATH='{}'", library.display());
        Some(Self::new("dunlin-accel", "ort-cpu", &variable, threads))
    }
}

/// Writes a program into a folder that starts a helper with a variable: `NAME=VALUE` in a shell's
/// words, or nothing.
pub fn write(folder: &Path, program: &str, variable: &str) -> PathBuf {
    let path = folder.join(program);
    let program = process::program(program);
    let script = format!("#!/bin/sh\n{variable} exec '{}' \"$@\"\n", program.display());
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

/// The library that `scripts/setup.sh tests` gets; `None` where that did not run.
pub fn onnx_runtime_library() -> Option<PathBuf> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/onnx/lib");
    let below = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    below(lib)
        .flat_map(|python| below(python.path().join("site-packages/onnxruntime/capi")))
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("libonnxruntime.so."))
}
