//! The helper of an agent for models that no engine of the agent itself takes: `tract`, on the
//! processor, for any ONNX file that it supports.
//!
//! It is a program of its own because it is as large as the whole agent, which starts it only for
//! such models; and because no guard holds an allocation larger than the machine.

use helper::engine::{About, Engine, Model, Refusal, View};
use models::artifact::TensorInfo;
use models::engine::frames::Header;
use models::engine::tract::Tract;
use models::engine::{Engine as _, EngineError, Session};
use models::tensor::Tensor;
use tract_linalg::multithread::{Executor, set_default_executor};

/// The engine's name.
pub const ENGINE: &str = "tract";

/// The engine, with the threads that it uses.
#[derive(Debug)]
pub struct OnProcessor(());

impl OnProcessor {
    /// With so many threads for the products of one run.
    pub fn start(threads: usize) -> Self {
        if threads > 1 {
            set_default_executor(Executor::multithread(threads));
        }
        Self(())
    }
}

impl Engine for OnProcessor {
    fn about(&self) -> About {
        About::default()
    }

    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Model>, Refusal> {
        match Tract.load(onnx) {
            Ok(session) => Ok(Box::new(Loaded(session))),
            Err(EngineError::Graph(error)) => Err(error.into()),
            Err(error) => Err(Refusal::of(error)),
        }
    }
}

/// A model in tract.
#[derive(Debug)]
struct Loaded(Box<dyn Session>);

impl Model for Loaded {
    fn inputs(&self) -> &[TensorInfo] {
        self.0.inputs()
    }

    fn outputs(&self) -> &[TensorInfo] {
        self.0.outputs()
    }

    fn run(&mut self, inputs: &[View<'_>], body: &mut Vec<u8>) -> Result<Vec<Header>, Refusal> {
        let tensor = |view: &View<'_>| {
            Tensor::from_le_bytes(view.datatype, view.shape, view.bytes).map_err(Refusal::of)
        };
        let inputs: Vec<Tensor> = inputs.iter().map(tensor).collect::<Result<_, _>>()?;
        let outputs = self.0.run(&inputs).map_err(Refusal::of)?;
        for output in &outputs {
            body.extend_from_slice(output.le_bytes());
        }
        Ok(outputs.iter().map(Header::of).collect())
    }
}
