//! The engines of the helper process, through the agent's own client.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use agent::engines::{Helper, HelperError, HelperSession, Program};
use models::artifact::TensorInfo;
use models::engine::{Engine, EngineError, Session};
use models::graph::GraphError;
use models::tensor::Tensor;
use tests::process;

/// An engine whose helper has to live; a helper that ends, hangs or answers nonsense is a panic.
#[derive(Debug)]
pub(crate) struct Helped {
    name: &'static str,
    helper: Helper,
    /// Holds the program that sets the variables.
    _folder: tempfile::TempDir,
}

/// ONNX Runtime on the processor, with the library that `scripts/setup.sh tests` gets.
pub(crate) fn onnx_runtime() -> Helped {
    let lib = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/onnx/lib");
    let below = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let library = below(lib)
        .flat_map(|python| below(python.path().join("site-packages/onnxruntime/capi")))
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().contains("libonnxruntime.so."))
        .expect("ONNX Runtime is missing: run scripts/setup.sh tests");
    let engine = Helped::new("ort-cpu", &format!("ORT_DYLIB_PATH='{}'", library.display()));
    engine.answers().unwrap();
    engine
}

/// ONNX Runtime on an NVIDIA GPU; nothing, said so, where there is none.
pub(crate) fn cuda() -> Option<Helped> {
    Helped::new("cuda", "").if_it_answers("scripts/gpu-check.sh on a machine with a GPU")
}

/// WebGPU on an adapter that is a program; nothing, said so, where there is no Vulkan.
pub(crate) fn webgpu() -> Option<Helped> {
    let engine = Helped::new("webgpu", "DUNLIN_WEBGPU_SOFTWARE=1");
    engine.if_it_answers("apt-get install mesa-vulkan-drivers")
}

impl Helped {
    /// A helper that is started with a variable of its own.
    fn new(name: &'static str, variable: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("dunlin-accel");
        let helper = process::program("dunlin-accel");
        let script = format!("#!/bin/sh\n{variable} exec '{}' \"$@\"\n", helper.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        Self { name, helper: Helper::new(name, Program::File(program), 1), _folder: folder }
    }

    /// Itself if it answers; else what to do is said.
    fn if_it_answers(self, advice: &str) -> Option<Self> {
        match self.answers() {
            Ok(()) => Some(self),
            Err(reason) => {
                println!("NOT TESTED: {}: {reason}: {advice}", self.name);
                None
            }
        }
    }

    /// Whether the helper starts: it refuses what is no model.
    fn answers(&self) -> Result<(), String> {
        match self.helper.session(b"no model") {
            Ok(_) => Err("it loads what is no model".to_owned()),
            Err(HelperError::Refused { .. }) => Ok(()),
            Err(HelperError::Failed(reason) | HelperError::Gone(reason)) => Err(reason),
        }
    }
}

impl Engine for Helped {
    fn name(&self) -> &'static str {
        self.name
    }

    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Session>, EngineError> {
        match self.helper.session(onnx) {
            Ok(session) => Ok(Box::new(Loaded { name: self.name, session })),
            Err(error) => Err(GraphError::Graph(refusal(error)).into()),
        }
    }
}

/// A model in a helper that has to live.
#[derive(Debug)]
struct Loaded {
    name: &'static str,
    session: HelperSession,
}

impl Session for Loaded {
    fn inputs(&self) -> &[TensorInfo] {
        self.session.inputs()
    }

    fn outputs(&self) -> &[TensorInfo] {
        self.session.outputs()
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        let answered = self.session.run_within(inputs, process::PATIENCE);
        answered
            .map(|(outputs, _)| outputs)
            .map_err(|error| EngineError::Run { engine: self.name, message: refusal(error) })
    }
}

fn refusal(error: HelperError) -> String {
    match error {
        HelperError::Refused { reason, .. } => reason,
        HelperError::Failed(reason) | HelperError::Gone(reason) => panic!("{reason}"),
    }
}
