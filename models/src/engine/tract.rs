//! `tract`: the general CPU engine, any ONNX model that tract supports.
//!
//! A session keeps the graph as it was read and one prepared plan per set of input shapes, a few
//! at most. Plans are shared; what changes in a run is taken from a pool, so runs of several
//! threads go side by side. Foreign graphs can make tract panic: every call of it is guarded and
//! a panic becomes an error. What no guard can hold is an allocation larger than the machine.

use crate::artifact::TensorInfo;
use crate::engine::{Engine, EngineError, Session, describe, pieces};
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
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    batch: Batch,
    plans: Plans,
}

/// What the first axis of the inputs means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Batch {
    /// Any number of examples.
    Open,
    /// This number of examples in every run.
    Fixed(usize),
    /// No batch: inputs have the shapes that are declared.
    None,
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
        let batch = batch(&description.inputs, &description.outputs);
        if let Some(shapes) = single(&description.inputs) {
            // The first plan now, so that a graph that tract cannot run is refused when loaded.
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            plans.get(&shapes).map_err(graph_error)?;
        }
        let (inputs, outputs) = (description.inputs, description.outputs);
        Ok(Self { inputs, outputs, batch, plans })
    }

    /// Checks everything but the batch; the number of examples, if there is a batch.
    fn check(&self, inputs: &[Tensor]) -> Result<Option<usize>, EngineError> {
        if inputs.len() != self.inputs.len() {
            let names: Vec<&str> = self.inputs.iter().map(|info| info.name.as_str()).collect();
            let name = self.inputs.get(inputs.len()).map_or("", |info| &info.name);
            return Err(EngineError::Input {
                name: name.to_owned(),
                expected: format!("{} inputs ({})", names.len(), names.join(", ")),
                found: inputs.len().to_string(),
            });
        }
        let mut batch = None;
        for (info, tensor) in self.inputs.iter().zip(inputs) {
            self.check_input(info, tensor, &mut batch)?;
        }
        Ok(batch)
    }

    fn check_input(
        &self,
        info: &TensorInfo,
        tensor: &Tensor,
        batch: &mut Option<usize>,
    ) -> Result<(), EngineError> {
        let shape = tensor.shape();
        let refuse = |expected: String| {
            let found = format!("{} of shape {shape:?}", tensor.data().datatype());
            Err(EngineError::Input { name: info.name.clone(), expected, found })
        };
        let free = usize::from(self.batch != Batch::None);
        let fits = |(axis, (declared, found)): (usize, (&i64, &usize))| {
            *found > 0 && (axis < free || *declared < 0 || i64::try_from(*found) == Ok(*declared))
        };
        let right = tensor.data().datatype() == info.datatype
            && shape.len() == info.shape.len()
            && info.shape.iter().zip(shape).enumerate().all(fits);
        if !right {
            return refuse(format!("{} of shape {:?} (-1: any)", info.datatype, info.shape));
        }
        if self.batch == Batch::None {
            return Ok(());
        }
        match *batch {
            Some(examples) if examples != shape[0] => {
                refuse(format!("{examples} examples, as in the input before it"))
            }
            _ => {
                *batch = Some(shape[0]);
                Ok(())
            }
        }
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

    fn run_pieces(
        &self,
        inputs: &[Tensor],
        examples: usize,
        size: usize,
    ) -> Result<Vec<Tensor>, EngineError> {
        let mut parts = Vec::with_capacity(examples.div_ceil(size));
        for start in (0..examples).step_by(size) {
            let taken = size.min(examples - start);
            let filled = if self.batch == Batch::Open { taken } else { size };
            let piece: Vec<Tensor> =
                inputs.iter().map(|input| pieces::take(input, start, taken, filled)).collect();
            parts.push((taken, filled, self.run_whole(&piece)?));
        }
        let names: Vec<&str> = self.outputs.iter().map(|info| info.name.as_str()).collect();
        pieces::join(&names, parts).map_err(|message| EngineError::Run { engine: NAME, message })
    }
}

impl Session for TractSession {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        match (self.check(inputs)?, self.batch) {
            (Some(examples), Batch::Fixed(size)) if examples != size => {
                self.run_pieces(inputs, examples, size)
            }
            (Some(examples), Batch::Open) if examples > BATCH_MAX => {
                self.run_pieces(inputs, examples, BATCH_MAX)
            }
            _ => self.run_whole(inputs),
        }
    }
}

/// What the first axis means, by the declared shapes.
fn batch(inputs: &[TensorInfo], outputs: &[TensorInfo]) -> Batch {
    let first = |info: &TensorInfo| info.shape.first().copied();
    let Some(extent) = inputs.first().and_then(first) else { return Batch::None };
    let shared = inputs.iter().all(|info| first(info) == Some(extent) && info.shape.len() > 1);
    let answered = outputs.iter().all(|info| first(info) == Some(-1));
    match usize::try_from(extent) {
        Ok(extent) if shared => Batch::Fixed(extent),
        Err(_) if shared && answered => Batch::Open,
        Ok(_) | Err(_) => Batch::None,
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
