//! `tract`: the general CPU engine, any ONNX model that tract supports.
//!
//! A session keeps the graph as it was read and one prepared plan per set of input shapes, a few
//! at most. Plans are shared; what changes in a run is taken from a pool, so runs of several
//! threads go side by side. Foreign graphs can make tract panic: every call of it is guarded and
//! a panic becomes an error. What no guard can hold is an allocation larger than the machine.

use crate::artifact::TensorInfo;
use crate::engine::declared::Declared;
use crate::engine::{Engine, EngineError, Session, describe};
use crate::graph::GraphError;
use crate::tensor::Tensor;

mod convert;
mod plan;
mod prepare;

use plan::Plans;

/// The name in reports.
const NAME: &str = "tract";

/// Examples of one run, at most; a larger batch is run in pieces of this size. Bounds the memory
/// of activations, and a larger batch is no faster on a CPU.
pub const BATCH_MAX: usize = 32;

/// The engine; it holds nothing, sessions do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tract;

impl Engine for Tract {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(TractSession::load(onnx)?))
    }
}

/// A model in tract.
#[derive(Debug)]
struct TractSession {
    declared: Declared,
    plans: Plans,
}

impl TractSession {
    fn load(onnx: &[u8]) -> Result<Self, EngineError> {
        let mut model = describe::parse(onnx)?;
        let description = describe::of(describe::graph(&model)?)?;
        for info in description.inputs.iter().chain(&description.outputs) {
            convert::check_datatype(info)?;
        }
        prepare::check(&mut model)?;
        let template = plan::guard(|| prepare::template(&model)).map_err(graph_error)?;
        let plans = Plans::new(template);
        if let Some(shapes) = single(&description.inputs) {
            // The first plan now, so that a graph that tract cannot run is refused when loaded.
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            plans.get(&shapes).map_err(graph_error)?;
        }
        let declared = Declared::new(description.inputs, description.outputs);
        Ok(Self { declared, plans })
    }

    fn run_whole(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        let run = || -> Result<Vec<Tensor>, String> {
            let shapes: Vec<&[usize]> = inputs.iter().map(Tensor::shape).collect();
            let plan = self.plans.get(&shapes)?;
            let values = inputs.iter().map(convert::to_tract).collect::<Result<_, _>>()?;
            plan.run(values)?.iter().map(|value| convert::from_tract(value)).collect()
        };
        run().map_err(|message| EngineError::Run { engine: NAME, message })
    }
}

impl Session for TractSession {
    fn inputs(&self) -> &[TensorInfo] {
        &self.declared.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.declared.outputs
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        self.declared.run(NAME, BATCH_MAX, inputs, |inputs| self.run_whole(inputs))
    }
}

/// Shapes of a run of one example, if the declared shapes leave nothing else open.
fn single(inputs: &[TensorInfo]) -> Option<Vec<Vec<usize>>> {
    let extent = |(axis, extent): (usize, &i64)| match usize::try_from(*extent) {
        Ok(extent) => Some(extent),
        Err(_) if axis == 0 => Some(1),
        Err(_) => None,
    };
    inputs.iter().map(|info| info.shape.iter().enumerate().map(extent).collect()).collect()
}

fn graph_error(message: String) -> EngineError {
    EngineError::Graph(GraphError::Graph(message))
}

#[cfg(test)]
mod tests;
