//! `native`: the engine for networks of the trainable operators, above all convolutional ones.
//!
//! A model is read by [`crate::graph`], as for training; what that would not compute exactly as
//! the file says is refused, and another engine has to answer. When a model is loaded, nodes are
//! joined, weights are packed and memory is planned; a run computes one example after the other.
//! What a run changes is taken from a pool, so runs of several threads go side by side. A run
//! inside of a pool of several threads uses them all.

use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use crate::artifact::TensorInfo;
use crate::engine::declared::{self, Declared};
use crate::engine::{Engine, EngineError, Session};
use crate::graph::{Graph, GraphError};
use crate::onnx::{self, ValueInfoProto};
use crate::tensor::Tensor;

pub(super) mod exact;
mod fuse;
mod general;
mod lower;
mod plan;
mod program;

use program::{Program, State};

/// The name in reports.
const NAME: &str = "native";

/// Values of an answer, at most: 256 MiB, far more than a message takes. A short input may stand
/// for a long output.
const OUTPUT_MAX: usize = 1 << 26;

/// Idle states kept per session: as many runs side by side as a device has cores.
const STATES_MAX: usize = 16;

/// The engine; it holds nothing, sessions do.
#[derive(Debug, Clone, Copy, Default)]
pub struct Native;

impl Engine for Native {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(NativeSession::load(onnx)?))
    }
}

/// A model in the native engine.
#[derive(Debug)]
struct NativeSession {
    declared: Declared,
    program: Program,
    /// Extents of the output of one example.
    output: Vec<usize>,
    idle: Mutex<Vec<State>>,
}

impl NativeSession {
    fn load(onnx: &[u8]) -> Result<Self, EngineError> {
        let model = onnx::parse(onnx)?;
        let mut graph = Graph::read(&model).map_err(exact::for_inference)?;
        exact::check(&model, &graph)?;
        graph.with_last();
        let proto = model.graph.as_ref();
        let named = |infos: &[ValueInfoProto], name: &str| {
            infos.iter().filter(|info| info.name == name).map(info).collect::<Result<_, _>>()
        };
        let input = &graph.value(graph.input).name;
        let inputs = named(proto.map_or(&[], |proto| &proto.input), input)?;
        let outputs = proto.map_or(&[][..], |proto| &proto.output);
        let outputs = outputs.iter().map(info).collect::<Result<_, _>>()?;
        let output = graph.value(graph.output).shape.dims.clone();
        let declared = Declared::new(inputs, outputs);
        drop(model);
        let program = lower::lower(&mut graph);
        Ok(Self { declared, program, output, idle: Mutex::default() })
    }

    /// Computes something with a state of its own.
    fn with_state<T>(&self, compute: impl FnOnce(&mut State) -> T) -> T {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let state = idle().pop();
        let mut state = state.unwrap_or_else(|| self.program.state());
        let result = compute(&mut state);
        let mut idle = idle();
        if idle.len() < STATES_MAX {
            idle.push(state);
        }
        result
    }

    fn run_all(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        let run = |message: String| EngineError::Run { engine: NAME, message };
        let input = inputs.first().ok_or_else(|| run("there is no input".to_owned()))?;
        let values = input.as_f32().ok_or_else(|| run("the input is not FP32".to_owned()))?;
        let examples = input.shape()[0];
        let mut shape = self.output.clone();
        shape.insert(0, examples);
        let (input_len, output_len) = (self.program.input_len, self.program.output_len);
        let most = OUTPUT_MAX / output_len.max(1);
        if examples > most {
            return Err(EngineError::Input {
                name: self.declared.inputs.first().map_or_else(String::new, |it| it.name.clone()),
                expected: format!("{most} examples at most, whose outputs are {OUTPUT_MAX} values"),
                found: examples.to_string(),
            });
        }
        let mut made = vec![0.0; examples * output_len];
        let one = |state: &mut State, input: &[f32], output: &mut [f32]| {
            self.program.run(state, input, output);
        };
        let side_by_side =
            rayon::current_thread_index().is_some() && rayon::current_num_threads() > 1;
        if side_by_side && examples > 1 {
            let outputs = made.par_chunks_exact_mut(output_len);
            outputs.zip(values.par_chunks_exact(input_len)).for_each(|(output, input)| {
                self.with_state(|state| one(state, input, output));
            });
        } else {
            self.with_state(|state| {
                let outputs = made.chunks_exact_mut(output_len);
                outputs.zip(values.chunks_exact(input_len)).for_each(|(output, input)| {
                    one(state, input, output);
                });
            });
        }
        Ok(vec![Tensor::f32(&shape, made).map_err(|error| run(error.to_string()))?])
    }
}

impl Session for NativeSession {
    fn inputs(&self) -> &[TensorInfo] {
        &self.declared.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.declared.outputs
    }

    /// Examples are computed one by one, so that a fixed batch is as good as an open one.
    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        self.declared.check(inputs)?;
        self.run_all(inputs)
    }
}

/// A declared input or output.
fn info(value: &ValueInfoProto) -> Result<TensorInfo, GraphError> {
    let tensor = value.tensor();
    let extent = |extent: Option<usize>| extent.and_then(|extent| i64::try_from(extent).ok());
    declared::info(&declared::Value {
        name: &value.name,
        element: tensor.as_ref().map(|(element, _)| *element),
        shape: tensor.map(|(_, shape)| shape.into_iter().map(extent).collect()),
    })
}

/// What one example is computed to, in a graph that no file holds.
#[cfg(test)]
pub(crate) fn answer(graph: &Graph, input: &[f32]) -> Vec<f32> {
    let program = lower::lower(&mut graph.clone());
    let mut output = vec![f32::NAN; program.output_len];
    let mut state = program.state();
    // Whatever memory holds before a run, no run sees it.
    state.spoil();
    program.run(&mut state, input, &mut output);
    output
}

#[cfg(test)]
mod tests;
