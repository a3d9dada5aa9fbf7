//! PyTorch as a peer, where it is installed.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// A Python that has PyTorch.
#[derive(Debug)]
pub(crate) struct PyTorch {
    python: PathBuf,
    /// PyTorch's.
    pub(crate) version: String,
}

impl PyTorch {
    /// The Python of `DUNLIN_PYTORCH`, or `python3`; `None`, with how to install it, where that
    /// has no PyTorch.
    pub(crate) fn find() -> Option<Self> {
        let named = std::env::var_os("DUNLIN_PYTORCH");
        let python = PathBuf::from(named.unwrap_or_else(|| "python3".into()));
        let asked = Command::new(&python)
            .args(["-c", "import numpy, torch; print(torch.__version__)"])
            .stderr(Stdio::null())
            .output();
        let version = asked.ok().filter(|output| output.status.success());
        let Some(version) = version.and_then(|output| String::from_utf8(output.stdout).ok()) else {
            println!(
                "  {} has no PyTorch: ours only. For both, in a virtual environment: pip install \
                 torch numpy --index-url https://download.pytorch.org/whl/cpu; then \
                 DUNLIN_PYTORCH=<its python>",
                python.display()
            );
            return None;
        };
        Some(Self { python, version: version.trim().to_owned() })
    }

    /// Runs a program of `tests/tools` on so many threads; the lines of JSON that it prints.
    pub(crate) fn run(&self, tool: &str, arguments: &[&str], threads: usize) -> Vec<Value> {
        let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(tool);
        let mut command = Command::new(&self.python);
        command.arg(tool).args(arguments).env("PYTHONDONTWRITEBYTECODE", "1");
        for variable in ["OMP_NUM_THREADS", "MKL_NUM_THREADS"] {
            command.env(variable, threads.to_string());
        }
        json_lines(command)
    }
}

/// Runs a program to its end; what it prints as JSON, one value or more.
pub(crate) fn json_lines(mut command: Command) -> Vec<Value> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    assert!(output.status.success(), "{command:?}: {}", output.status);
    let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
    values.map(|value| value.unwrap_or_else(|error| panic!("{command:?}: {error}"))).collect()
}
