//! The helper as a child process.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use models::engine::frames::{self, PREFIX, Probed, Reply, Request};
use models::tensor::Tensor;
use models::zoo;

/// Where ONNX Runtime is that `scripts/setup.sh tests` installs.
pub(crate) fn onnx_runtime() -> Option<PathBuf> {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.tools/onnx/lib");
    let below = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let found = below(lib)
        .flat_map(|python| below(python.path().join("site-packages/onnxruntime/capi")))
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("libonnxruntime.so."));
    if found.is_none() {
        println!("NOT TESTED: ONNX Runtime is absent: run scripts/setup.sh tests");
    }
    found
}

/// The engines to test: the variable's, or those that need no GPU.
pub(crate) fn engines() -> Vec<String> {
    let chosen = std::env::var("DUNLIN_TEST_ENGINES");
    let chosen = chosen.unwrap_or_else(|_| "ort-cpu webgpu".to_owned());
    chosen.split_whitespace().map(str::to_owned).collect()
}

/// Settings with which an engine works here; `None`, said so, where it cannot. An adapter that is a
/// program will do for `webgpu`, unless `DUNLIN_TEST_HARDWARE=1` asks for the hardware.
pub(crate) fn settings(engine: &str) -> Option<Vec<(&'static str, String)>> {
    if engine == "ort-cpu" {
        return Some(vec![("ORT_DYLIB_PATH", onnx_runtime()?.display().to_string())]);
    }
    if engine == "cuda" {
        let library = std::env::var("ORT_DYLIB_PATH").ok();
        return Some(library.map(|path| ("ORT_DYLIB_PATH", path)).into_iter().collect());
    }
    if !engines().iter().any(|tested| tested == engine) {
        println!("NOT TESTED: DUNLIN_TEST_ENGINES has no {engine}");
        return None;
    }
    if std::env::var_os("DUNLIN_TEST_HARDWARE").is_some_and(|value| value == "1") {
        return Some(Vec::new());
    }
    let software = vec![("DUNLIN_WEBGPU_SOFTWARE", "1".to_owned())];
    let loaded = Helper::start(engine, &software).load(1, &small());
    if matches!(&loaded, Reply::Refused { reason, .. } if reason.contains("no GPU is reached")) {
        println!("NOT TESTED: Vulkan is absent: apt-get install mesa-vulkan-drivers");
        return None;
    }
    Some(software)
}

/// A model that every engine answers.
pub(crate) fn small() -> Vec<u8> {
    zoo::build("lenet", [3, 8, 8], 4, 9).unwrap()
}

pub(crate) fn command(arguments: &[&str], settings: &[(&str, String)]) -> Command {
    const CHANGING: [&str; 5] = [
        "ORT_DYLIB_PATH",
        "DUNLIN_WEBGPU_SOFTWARE",
        "DUNLIN_THREADS",
        // Without a word of this program ONNX Runtime keeps silent in these.
        "CI",
        "ORT_DISABLE_TELEMETRY",
    ];
    let mut command = Command::new(env!("CARGO_BIN_EXE_dunlin-accel"));
    command.args(arguments);
    for variable in CHANGING {
        command.env_remove(variable);
    }
    for (variable, value) in settings {
        command.env(variable, value);
    }
    command
}

pub(crate) fn probe(engine: &str, settings: &[(&str, String)]) -> Probed {
    let Output { status, stdout, stderr } = command(&["probe", engine], settings).output().unwrap();
    assert!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr));
    let text = String::from_utf8(stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

/// A helper that serves.
pub(crate) struct Helper {
    child: Child,
    requests: Option<ChildStdin>,
    replies: ChildStdout,
}

impl Helper {
    pub(crate) fn start(engine: &str, settings: &[(&str, String)]) -> Self {
        let mut child = command(&["serve", engine], settings)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (requests, replies) = (child.stdin.take(), child.stdout.take().unwrap());
        let mut helper = Self { child, requests, replies };
        let (protocol, engine) = (frames::PROTOCOL, engine.to_owned());
        let hello = Reply::Hello { protocol, engine, memory: false };
        assert_eq!(helper.reply().0, hello);
        helper
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.requests.as_mut().unwrap().write_all(bytes).unwrap();
    }

    fn reply(&mut self) -> (Reply, Vec<u8>) {
        let mut prefix = [0; PREFIX];
        self.replies.read_exact(&mut prefix).unwrap();
        let lengths = frames::lengths(prefix).unwrap();
        let (mut header, mut body) = (vec![0; lengths.header], vec![0; lengths.body]);
        self.replies.read_exact(&mut header).unwrap();
        self.replies.read_exact(&mut body).unwrap();
        (frames::decode(&header).unwrap(), body)
    }

    pub(crate) fn ask(&mut self, request: &Request, body: &[u8]) -> (Reply, Vec<u8>) {
        self.write(&frames::encode(request, body.len()).unwrap());
        self.write(body);
        self.reply()
    }

    pub(crate) fn load(&mut self, session: u64, onnx: &[u8]) -> Reply {
        self.ask(&Request::Load { session }, onnx).0
    }

    /// The outputs and the engine's own microseconds, or why not.
    pub(crate) fn run(
        &mut self,
        session: u64,
        inputs: &[Tensor],
    ) -> Result<(Vec<Tensor>, u64), String> {
        let (headers, body) = frames::pack(inputs);
        match self.ask(&Request::Run { session, inputs: headers }, &body.concat()) {
            (Reply::Answered { engine_us, outputs }, body) => {
                Ok((frames::unpack(&outputs, &body).unwrap(), engine_us))
            }
            (Reply::Refused { reason, .. }, body) if body.is_empty() => Err(reason),
            other => panic!("{other:?}"),
        }
    }

    /// Closes the pipe; the exit code, if there is one, and what was said on standard error.
    pub(crate) fn end(mut self) -> (Option<i32>, String) {
        drop(self.requests.take());
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}
