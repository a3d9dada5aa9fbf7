//! A graph with its kernels and buffers: forward and backward passes over a batch.

use std::ops::Range;

use super::buffers::{Buffers, split};
use super::profile::Profile;
use crate::graph::{Graph, Origin, ValueId};
use crate::kernels::{self, Backward, Forward, Gradient, Kernel, Reads};

/// A graph at work. Buffers grow to the largest batch seen and are used again after that.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) graph: Graph,
    pub(super) kernels: Vec<Box<dyn Kernel>>,
    /// By value: a parameter's values, and the gradient by a weight.
    pub(super) parameters: Vec<Vec<f32>>,
    pub(super) gradients: Vec<Vec<f32>>,
    pub(super) buffers: Buffers,
    /// Activations and their gradients, as the buffers' plan says.
    pub(super) memory: Vec<f32>,
    pub(super) scratch: Vec<f32>,
    /// For gradients of inputs that a node takes more than once.
    pub(super) spares: Vec<Vec<f32>>,
    /// Times of nodes, where they are asked for.
    pub(super) profile: Option<Profile>,
}

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// The step is counted from 1.
    Training {
        step: u64,
    },
    /// The last training step once more, moving no statistics.
    Again {
        step: u64,
    },
    Evaluation,
}

impl Network {
    pub(super) fn new(mut graph: Graph) -> Self {
        let parameters = graph.values.iter_mut().map(|value| std::mem::take(&mut value.initial));
        let parameters = parameters.collect();
        let build = |(index, node)| kernels::build(&graph, node, index as u64);
        let kernels: Vec<_> = graph.nodes.iter().enumerate().map(build).collect();
        let reads: Vec<Reads> = kernels.iter().map(|kernel| kernel.reads()).collect();
        let buffers = Buffers::new(&graph, &reads);
        Self {
            kernels,
            parameters,
            gradients: vec![Vec::new(); graph.values.len()],
            memory: Vec::new(),
            buffers,
            graph,
            scratch: Vec::new(),
            spares: Vec::new(),
            profile: None,
        }
    }

    /// A parameter's or state's values.
    pub(super) fn values(&self, id: ValueId) -> &[f32] {
        &self.parameters[id.0]
    }

    pub(super) fn values_mut(&mut self, id: ValueId) -> &mut [f32] {
        &mut self.parameters[id.0]
    }

    /// A weight with its gradient.
    pub(super) fn weight(&mut self, id: ValueId) -> Option<(&mut [f32], &mut [f32])> {
        let gradient = &mut self.gradients[id.0];
        let trained = self.graph.value(id).origin == Origin::Weight;
        trained.then_some((&mut self.parameters[id.0], gradient))
    }

    /// Where the examples go: `[elements][n]`.
    pub(super) fn input(&mut self, batch: usize) -> &mut [f32] {
        grow(&mut self.memory, self.buffers.len * batch);
        let place = self.place(self.graph.input, false, batch);
        &mut self.memory[place]
    }

    /// Where an activation lies, in the backward pass if so; nothing for parameters.
    fn place(&self, id: ValueId, backward: bool, batch: usize) -> Range<usize> {
        self.part(self.buffers.activation(id, backward), id, batch)
    }

    fn gradient_place(&self, id: ValueId, batch: usize) -> Range<usize> {
        self.part(self.buffers.gradient[id.0], id, batch)
    }

    fn part(&self, start: Option<usize>, id: ValueId, batch: usize) -> Range<usize> {
        let len = self.graph.value(id).shape.len(batch);
        start.map_or(0..0, |start| start * batch..start * batch + len)
    }

    /// The logits `[classes][n]`, and where their gradient goes.
    pub(super) fn logits(&mut self, batch: usize) -> (&[f32], &mut [f32]) {
        let id = self.graph.output;
        let parts = [self.place(id, false, batch), self.gradient_place(id, batch)];
        let mut parts = split(&mut self.memory, &parts).into_iter();
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    }

    /// Computes everything from the input.
    pub(super) fn forward(&mut self, batch: usize, pass: Pass) {
        for index in 0..self.graph.nodes.len() {
            self.node_forward(index, batch, pass, false);
        }
    }

    /// Computes one node, and `again` for the backward pass.
    pub(super) fn node_forward(&mut self, index: usize, batch: usize, pass: Pass, again: bool) {
        let began = self.profile.as_ref().map(Profile::now);
        let threads = rayon::current_num_threads();
        let node = &self.graph.nodes[index];
        let mut ids: Vec<ValueId> = node.inputs.clone();
        ids.sort_unstable();
        ids.dedup();
        let mut parts = vec![self.place(node.output, again, batch)];
        parts.extend(ids.iter().map(|id| self.place(*id, again, batch)));
        let mut parts = split(&mut self.memory, &parts).into_iter();
        let output = parts.next().unwrap_or_default();
        let activations: Vec<&[f32]> = parts.map(|part| &*part).collect();
        let mut states: Vec<_> =
            node.states.iter().map(|id| std::mem::take(&mut self.parameters[id.0])).collect();
        let kernel = &mut self.kernels[index];
        let scratch = kernel.scratch(batch, threads);
        grow(&mut self.scratch, scratch);
        // Statistics that are frozen are used as they are.
        let moving = |id: &ValueId| self.graph.value(*id).origin == Origin::State;
        let (training, step) = match pass {
            Pass::Training { step } | Pass::Again { step } => {
                (node.states.iter().all(moving), step)
            }
            Pass::Evaluation => (false, 0),
        };
        let input = |id: &ValueId| match ids.binary_search(id) {
            Ok(at) if !activations[at].is_empty() => activations[at],
            _ => &self.parameters[id.0],
        };
        let inputs: Vec<&[f32]> = node.inputs.iter().map(input).collect();
        kernel.forward(Forward {
            batch,
            training,
            again: matches!(pass, Pass::Again { .. }),
            step,
            inputs: &inputs,
            states: &mut states,
            output,
            scratch: &mut self.scratch[..scratch],
        });
        for (id, state) in node.states.iter().zip(states) {
            self.parameters[id.0] = state;
        }
        if let (Some(profile), Some(began)) = (&mut self.profile, began) {
            profile.forward(index, began);
        }
    }

    /// Computes the weights' gradients from that of the logits, after a forward pass in training.
    pub(super) fn backward(&mut self, batch: usize, step: u64) {
        for (value, gradient) in self.graph.values.iter().zip(&mut self.gradients) {
            if value.origin == Origin::Weight {
                grow(gradient, value.shape.elements());
            }
        }
        let mut written = vec![false; self.graph.values.len()];
        written[self.graph.output.0] = true;
        for index in (0..self.graph.nodes.len()).rev() {
            for repeated in self.buffers.repeated[index].clone() {
                self.node_forward(repeated, batch, Pass::Again { step }, true);
            }
            let output = self.graph.nodes[index].output;
            if self.buffers.gradient[output.0].is_none() || !written[output.0] {
                continue;
            }
            let began = self.profile.as_ref().map(Profile::now);
            self.node_backward(index, batch, &mut written);
            if let (Some(profile), Some(began)) = (&mut self.profile, began) {
                profile.backward(index, began);
            }
        }
        // A weight that no path leads to from the logits has no part in the loss.
        for (index, gradient) in self.gradients.iter_mut().enumerate() {
            if !written[index] {
                gradient.fill(0.0);
            }
        }
    }

    fn node_backward(&mut self, index: usize, batch: usize, written: &mut [bool]) {
        let scratch = self.kernels[index].scratch(batch, rayon::current_num_threads());
        grow(&mut self.scratch, scratch);
        let graph = &self.graph;
        let (inputs, output) = (&graph.nodes[index].inputs, graph.nodes[index].output);
        let step = 2 * graph.nodes.len() - index;
        let mut ids = inputs.clone();
        ids.push(output);
        ids.sort_unstable();
        ids.dedup();
        // First what is read, then the gradients, of a value that is taken twice once.
        let live = |id: &ValueId| {
            if self.buffers.is_live(*id, step) { self.place(*id, true, batch) } else { 0..0 }
        };
        let mut parts: Vec<Range<usize>> = ids.iter().map(live).collect();
        parts.push(self.gradient_place(output, batch));
        let first = |at: usize| !inputs[..at].contains(&inputs[at]);
        parts.extend(
            inputs
                .iter()
                .enumerate()
                .map(|(at, id)| if first(at) { self.gradient_place(*id, batch) } else { 0..0 }),
        );
        let mut parts = split(&mut self.memory, &parts).into_iter();
        let activations: Vec<&[f32]> = parts.by_ref().take(ids.len()).map(|part| &*part).collect();
        let output_gradient: &[f32] = parts.next().unwrap_or_default();
        let value = |id: &ValueId| {
            let at = ids.binary_search(id).unwrap_or_default();
            if self.parameters[id.0].is_empty() { activations[at] } else { &self.parameters[id.0] }
        };
        let mut weights: Vec<Vec<f32>> = Vec::with_capacity(inputs.len());
        for (at, id) in inputs.iter().enumerate() {
            weights.push(match (first(at), graph.value(*id).origin) {
                (true, Origin::Weight) => std::mem::take(&mut self.gradients[id.0]),
                (false, _) if needs_gradient(graph, &self.buffers, *id) => {
                    let mut spare = self.spares.pop().unwrap_or_default();
                    grow(&mut spare, graph.value(*id).shape.len(batch));
                    spare
                }
                _ => Vec::new(),
            });
        }
        let targets = inputs.iter().enumerate().zip(parts.zip(&mut weights));
        let mut gradients: Vec<_> = targets
            .map(|((at, id), (part, weight))| {
                let len = graph.value(*id).shape.len(batch);
                let values = if part.is_empty() { weight.get_mut(..len)? } else { part };
                needs_gradient(graph, &self.buffers, *id)
                    .then_some(Gradient { values, add: first(at) && written[id.0] })
            })
            .collect();
        self.kernels[index].backward(Backward {
            batch,
            inputs: &inputs.iter().map(value).collect::<Vec<_>>(),
            output: value(&output),
            output_gradient,
            input_gradients: &mut gradients,
            scratch: &mut self.scratch[..scratch],
        });
        self.collect(index, batch, weights, written);
    }

    /// Takes back the gradients of weights, and adds those of values that a node took once more.
    fn collect(
        &mut self,
        index: usize,
        batch: usize,
        weights: Vec<Vec<f32>>,
        written: &mut [bool],
    ) {
        let inputs = self.graph.nodes[index].inputs.clone();
        for (at, (id, gradient)) in inputs.iter().zip(weights).enumerate() {
            if inputs[..at].contains(id) && !gradient.is_empty() {
                let place = self.gradient_place(*id, batch);
                let into = if self.graph.value(*id).origin == Origin::Weight {
                    &mut self.gradients[id.0]
                } else {
                    &mut self.memory[place]
                };
                into.iter_mut().zip(&gradient).for_each(|(into, value)| *into += value);
                self.spares.push(gradient);
            } else if self.graph.value(*id).origin == Origin::Weight {
                self.gradients[id.0] = gradient;
            }
            written[id.0] = true;
        }
    }

    /// An activation of the forward pass, as long as it is there.
    pub(super) fn activation(&self, id: ValueId, batch: usize) -> &[f32] {
        &self.memory[self.place(id, false, batch)]
    }
}

/// Whether a value's gradient is wanted.
fn needs_gradient(graph: &Graph, buffers: &Buffers, id: ValueId) -> bool {
    graph.value(id).origin == Origin::Weight || buffers.gradient[id.0].is_some()
}

fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        // No more than is needed: there is an estimate of the memory to keep to.
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, 0.0);
    }
}
