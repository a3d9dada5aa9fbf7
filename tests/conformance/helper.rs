//! The engines of the helper process, through the agent's own client.

use agent::engines::{HelperError, HelperSession};
use models::artifact::TensorInfo;
use models::engine::{Engine, EngineError, Session};
use models::graph::GraphError;
use models::tensor::Tensor;
use tests::helper::Started;
use tests::process;
use tests::untested::not_tested;

/// An engine whose helper has to live; a helper that ends, hangs or answers nonsense is a panic.
#[derive(Debug)]
pub(crate) struct Helped {
    name: &'static str,
    started: Started,
}

/// ONNX Runtime on the processor.
pub(crate) fn onnx_runtime() -> Helped {
    let started = Started::onnx_runtime(1);
    let started = started.expect("ONNX Runtime is missing: run scripts/setup.sh tests");
    let engine = Helped { name: "ort-cpu", started };
    engine.answers().unwrap();
    engine
}

/// ONNX Runtime on an NVIDIA GPU; nothing, said so, where there is none.
pub(crate) fn cuda() -> Option<Helped> {
    Helped::new("cuda", "").if_it_answers("scripts/gpu-check.sh on a machine with a GPU")
}

/// WebGPU, also on an adapter that is a program unless the hardware is what is tested; nothing, said
/// so, where there is no Vulkan.
pub(crate) fn webgpu() -> Option<Helped> {
    let software = if on_hardware() { "0" } else { "1" };
    let engine = Helped::new("webgpu", &format!("DUNLIN_WEBGPU_SOFTWARE={software}"));
    engine.if_it_answers("apt-get install mesa-vulkan-drivers")
}

/// Whether `cuda` and `webgpu` have to answer, on hardware: `scripts/gpu-check.sh` says so.
pub(crate) fn on_hardware() -> bool {
    std::env::var_os("DUNLIN_TEST_HARDWARE").is_some_and(|value| value == "1")
}

impl Helped {
    fn new(name: &'static str, variable: &str) -> Self {
        Self { name, started: Started::new("dunlin-accel", name, variable, 1) }
    }

    /// Itself if it answers; else what to do is said, or the test fails where it has to.
    fn if_it_answers(self, advice: &str) -> Option<Self> {
        match self.answers() {
            Ok(()) => Some(self),
            Err(reason) => {
                assert!(!on_hardware(), "{}: {reason}", self.name);
                not_tested(&format!("{}: {reason}: {advice}", self.name));
                None
            }
        }
    }

    /// Whether the helper has what it needs: it refuses what is no model, and loads one that every
    /// engine does.
    fn answers(&self) -> Result<(), String> {
        match self.started.helper.session(b"no model") {
            Ok(_) => return Err("it loads what is no model".to_owned()),
            Err(HelperError::Refused { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
        let loaded = self.started.helper.session(include_bytes!("tiny_cnn.onnx"));
        loaded.map(|_| ()).map_err(|error| error.to_string())
    }
}

impl Engine for Helped {
    fn name(&self) -> &'static str {
        self.name
    }

    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Session>, EngineError> {
        match self.started.helper.session(onnx) {
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
        HelperError::Failed(_) | HelperError::Gone(_) | HelperError::Busy(_) => panic!("{error}"),
    }
}
