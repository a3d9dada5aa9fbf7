//! A model is loaded once before it is registered, in a process of its own: what a graph of a few bytes
//! can ask for, more memory than there is or work without end, takes no broker along.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use models::engine::tract::Tract;
use models::engine::{Engine as _, EngineError};
use models::graph::GraphError;
use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::sync::Semaphore;

/// The command of this program that tries a model, see [`serve`].
pub(crate) const COMMAND: &str = "try-model";
/// Memory for whatever a model has.
const MEMORY_MIN: u64 = 2 << 30;
/// Memory for each byte of a model: the file, its messages, its tensors, and those that are packed.
const MEMORY_PER_BYTE: u64 = 8;
/// How long a model may take to be loaded.
const WITHIN: Duration = Duration::from_mins(2);
/// Models that are tried at the same time.
const AT_ONCE: usize = 2;

/// Tries models.
#[derive(Debug)]
pub(crate) struct Trials {
    program: Option<PathBuf>,
    turns: Semaphore,
}

/// What came of a trial.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tried {
    /// It can be loaded.
    Loaded,
    /// It has an operator that is not known here, in words.
    Lacking(String),
    /// It cannot, and why.
    Refused(String),
}

impl Trials {
    /// By a program that has [`COMMAND`]; none tries models in this process.
    pub(crate) fn by(program: Option<PathBuf>) -> Self {
        Self { program, turns: Semaphore::new(AT_ONCE) }
    }

    /// Loads a model.
    ///
    /// # Errors
    /// Why it could not be tried.
    pub(crate) async fn load(&self, onnx: Bytes) -> Result<Tried, String> {
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        let Some(program) = &self.program else {
            let loaded = tokio::task::spawn_blocking(move || Tried::of(Tract.load(&onnx).err()));
            return loaded.await.map_err(|error| error.to_string());
        };
        match tokio::time::timeout(WITHIN, apart(program, &onnx)).await {
            Ok(tried) => tried.map_err(|error| format!("{}: {error}", program.display())),
            Err(_) => Ok(Tried::Refused(format!("it was not loaded within {WITHIN:?}"))),
        }
    }
}

impl Tried {
    fn of(error: Option<EngineError>) -> Self {
        match error {
            None => Self::Loaded,
            Some(error @ EngineError::Graph(GraphError::Operator { .. })) => {
                Self::Lacking(error.to_string())
            }
            Some(error) => Self::Refused(error.to_string()),
        }
    }
}

async fn apart(program: &Path, onnx: &[u8]) -> std::io::Result<Tried> {
    let memory = MEMORY_MIN.saturating_add(onnx.len() as u64 * MEMORY_PER_BYTE);
    let mut command = Command::new(program);
    command.arg(COMMAND).arg(memory.to_string());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.kill_on_drop(true).spawn()?;
    let stdin = child.stdin.take();
    let give = async {
        if let Some(mut stdin) = stdin {
            // One that ends before it has read everything has said why.
            let _ = stdin.write_all(onnx).await;
        }
    };
    let ((), output) = tokio::join!(give, child.wait_with_output());
    let output = output?;
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_else(|_| crashed(output.status, memory)))
}

fn crashed(status: ExitStatus, memory: u64) -> Tried {
    let memory = memory >> 20;
    Tried::Refused(format!(
        "loading it takes more than {memory} MiB of memory, or meets a fault of the engine ({status})"
    ))
}

/// What the child does: reads a model from standard input, loads it within so many bytes of memory, and
/// says what came of it.
///
/// # Errors
/// When the pipes break, or memory cannot be limited.
pub(crate) fn serve(memory: u64) -> std::io::Result<()> {
    let limit = Rlimit { current: Some(memory), maximum: Some(memory) };
    setrlimit(Resource::Data, limit)?;
    // When the machine has less, this process is the one that ends.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let mut onnx = Vec::new();
    std::io::stdin().lock().read_to_end(&mut onnx)?;
    let tried = Tried::of(Tract.load(&onnx).err());
    let text = serde_json::to_vec(&tried).expect("plain data is JSON");
    std::io::stdout().lock().write_all(&text)
}
