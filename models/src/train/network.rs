//! A graph with its kernels and buffers: forward and backward passes over a batch.

use super::profile::Profile;
use crate::graph::{Graph, Node, Origin, ValueId};
use crate::kernels::{self, Backward, Forward, Gradient, Kernel};

/// A graph at work. Buffers grow to the largest batch seen and are used again after that.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) graph: Graph,
    pub(super) kernels: Vec<Box<dyn Kernel>>,
    /// By value: the batch's activations, or a parameter's values.
    pub(super) values: Vec<Vec<f32>>,
    /// By value: the gradient's place in `slots`; `None` where no gradient is needed.
    slot_of: Vec<Option<usize>>,
    /// Gradients. Those of activations share slots once they are used up.
    pub(super) slots: Vec<Vec<f32>>,
    /// By slot: elements per example, and elements whatever the batch.
    pub(super) slot_len: Vec<(usize, usize)>,
    pub(super) scratch: Vec<f32>,
    /// For gradients of inputs that a node takes more than once.
    pub(super) spares: Vec<Vec<f32>>,
    /// Times of nodes, where they are asked for.
    pub(super) profile: Option<Profile>,
}

impl Network {
    pub(super) fn new(mut graph: Graph) -> Self {
        let values = graph.values.iter_mut().map(|value| std::mem::take(&mut value.initial));
        let values = values.collect();
        let build = |(index, node)| kernels::build(&graph, node, index as u64);
        let kernels = graph.nodes.iter().enumerate().map(build).collect();
        let (slot_of, slot_len) = assign_slots(&graph);
        let slots = vec![Vec::new(); slot_len.len()];
        let (scratch, spares) = (Vec::new(), Vec::new());
        Self { graph, kernels, values, slot_of, slots, slot_len, scratch, spares, profile: None }
    }

    /// A parameter's or state's values, or the activations of the last forward pass.
    pub(super) fn values(&self, id: ValueId) -> &[f32] {
        &self.values[id.0]
    }

    pub(super) fn values_mut(&mut self, id: ValueId) -> &mut [f32] {
        &mut self.values[id.0]
    }

    /// A weight with its gradient.
    pub(super) fn weight(&mut self, id: ValueId) -> Option<(&mut [f32], &mut [f32])> {
        let slot = self.slot_of[id.0]?;
        Some((&mut self.values[id.0], &mut self.slots[slot]))
    }

    /// Where the examples go: `[elements][n]`.
    pub(super) fn input(&mut self, batch: usize) -> &mut [f32] {
        let id = self.graph.input;
        let len = self.graph.value(id).shape.len(batch);
        grow(&mut self.values[id.0], len);
        &mut self.values[id.0][..len]
    }

    /// The logits `[classes][n]`, and where their gradient goes.
    pub(super) fn logits(&mut self, batch: usize) -> (&[f32], &mut [f32]) {
        let id = self.graph.output;
        let len = self.graph.value(id).shape.len(batch);
        let gradient = match self.slot_of[id.0] {
            Some(slot) => {
                grow(&mut self.slots[slot], len);
                &mut self.slots[slot][..len]
            }
            None => &mut [],
        };
        (&self.values[id.0][..len], gradient)
    }

    /// Computes everything from the input; `step` matters in training only.
    pub(super) fn forward(&mut self, batch: usize, training: bool, step: u64) {
        let threads = rayon::current_num_threads();
        for (index, (node, kernel)) in self.graph.nodes.iter().zip(&mut self.kernels).enumerate() {
            let began = self.profile.as_ref().map(Profile::now);
            let len = self.graph.value(node.output).shape.len(batch);
            let mut output = std::mem::take(&mut self.values[node.output.0]);
            grow(&mut output, len);
            let mut states: Vec<_> =
                node.states.iter().map(|id| std::mem::take(&mut self.values[id.0])).collect();
            let inputs = inputs(&self.graph, node, &self.values, batch);
            let scratch = kernel.scratch(batch, threads);
            grow(&mut self.scratch, scratch);
            // Statistics that are frozen are used as they are.
            let moving = |id: &ValueId| self.graph.value(*id).origin == Origin::State;
            let training = training && node.states.iter().all(moving);
            kernel.forward(Forward {
                batch,
                training,
                step,
                inputs: &inputs,
                states: &mut states,
                output: &mut output[..len],
                scratch: &mut self.scratch[..scratch],
            });
            self.values[node.output.0] = output;
            for (id, state) in node.states.iter().zip(states) {
                self.values[id.0] = state;
            }
            if let (Some(profile), Some(began)) = (&mut self.profile, began) {
                profile.forward(index, began);
            }
        }
    }

    /// Computes the weights' gradients from that of the logits, after a forward pass in training.
    pub(super) fn backward(&mut self, batch: usize) {
        for (slot, (per_example, fixed)) in self.slots.iter_mut().zip(&self.slot_len) {
            grow(slot, (per_example * batch).max(*fixed));
        }
        let mut written = vec![false; self.values.len()];
        written[self.graph.output.0] = true;
        for index in (0..self.graph.nodes.len()).rev() {
            let node = &self.graph.nodes[index];
            let Some(slot) = self.slot_of[node.output.0].filter(|_| written[node.output.0]) else {
                continue;
            };
            let output_gradient = std::mem::take(&mut self.slots[slot]);
            let began = self.profile.as_ref().map(Profile::now);
            self.node_backward(index, batch, &output_gradient, &mut written);
            if let (Some(profile), Some(began)) = (&mut self.profile, began) {
                profile.backward(index, began);
            }
            self.slots[slot] = output_gradient;
        }
        // A weight that no path leads to from the logits has no part in the loss.
        for (value, written) in self.graph.values.iter().zip(&written).enumerate().filter_map(
            |(id, (value, written))| (value.origin == Origin::Weight).then_some((id, written)),
        ) {
            if let Some(slot) = self.slot_of[value].filter(|_| !written) {
                self.slots[slot].fill(0.0);
            }
        }
    }

    fn node_backward(
        &mut self,
        index: usize,
        batch: usize,
        output_gradient: &[f32],
        written: &mut [bool],
    ) {
        let graph = &self.graph;
        let node = &graph.nodes[index];
        let mut taken: Vec<(ValueId, Option<Vec<f32>>)> = Vec::with_capacity(node.inputs.len());
        for (at, id) in node.inputs.iter().enumerate() {
            let buffer = self.slot_of[id.0].map(|slot| {
                if node.inputs[..at].contains(id) {
                    let mut spare = self.spares.pop().unwrap_or_default();
                    grow(&mut spare, graph.value(*id).shape.len(batch));
                    spare
                } else {
                    std::mem::take(&mut self.slots[slot])
                }
            });
            taken.push((*id, buffer));
        }
        let mut gradients: Vec<_> = taken
            .iter_mut()
            .enumerate()
            .map(|(at, (id, buffer))| {
                let first = !node.inputs[..at].contains(id);
                let len = graph.value(*id).shape.len(batch);
                let add = first && written[id.0];
                buffer.as_mut().map(|buffer| Gradient { values: &mut buffer[..len], add })
            })
            .collect();
        let scratch = self.kernels[index].scratch(batch, rayon::current_num_threads());
        grow(&mut self.scratch, scratch);
        let output_len = graph.value(node.output).shape.len(batch);
        self.kernels[index].backward(Backward {
            batch,
            inputs: &inputs(graph, node, &self.values, batch),
            output: &self.values[node.output.0][..output_len],
            output_gradient: &output_gradient[..output_len],
            input_gradients: &mut gradients,
            scratch: &mut self.scratch[..scratch],
        });
        for (at, (id, buffer)) in taken.into_iter().enumerate() {
            let (Some(slot), Some(buffer)) = (self.slot_of[id.0], buffer) else { continue };
            if node.inputs[..at].contains(&id) {
                let pairs = self.slots[slot].iter_mut().zip(&buffer);
                let len = graph.value(id).shape.len(batch);
                pairs.take(len).for_each(|(into, value)| *into += value);
                self.spares.push(buffer);
            } else {
                self.slots[slot] = buffer;
            }
            written[id.0] = true;
        }
    }
}

fn grow(buffer: &mut Vec<f32>, len: usize) {
    if buffer.len() < len {
        // No more than is needed: there is an estimate of the memory to keep to.
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, 0.0);
    }
}

fn inputs<'a>(graph: &Graph, node: &Node, values: &'a [Vec<f32>], batch: usize) -> Vec<&'a [f32]> {
    let input = |id: &ValueId| &values[id.0][..graph.value(*id).shape.len(batch)];
    node.inputs.iter().map(input).collect()
}

/// Gives each gradient a slot: a weight's its own; an activation's is free again once the node
/// that computed the activation has gone backward.
fn assign_slots(graph: &Graph) -> (Vec<Option<usize>>, Vec<(usize, usize)>) {
    let mut slot_of = vec![None; graph.values.len()];
    let mut slot_len: Vec<(usize, usize)> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let needed = needs_gradient(graph);
    let mut assign = |id: ValueId, free: &mut Vec<usize>| {
        if slot_of[id.0].is_none() && needed[id.0] {
            let value = graph.value(id);
            let elements = value.shape.elements();
            let slot = if value.origin == Origin::Weight {
                slot_len.push((0, elements));
                slot_len.len() - 1
            } else {
                let slot = free.pop().unwrap_or_else(|| {
                    slot_len.push((0, 0));
                    slot_len.len() - 1
                });
                slot_len[slot].0 = slot_len[slot].0.max(elements);
                slot
            };
            slot_of[id.0] = Some(slot);
        }
        slot_of[id.0]
    };
    assign(graph.output, &mut free);
    for node in graph.nodes.iter().rev() {
        let output = assign(node.output, &mut Vec::new());
        for id in &node.inputs {
            assign(*id, &mut free);
        }
        free.extend(output);
    }
    (slot_of, slot_len)
}

/// By value: whether its gradient leads to a weight's.
fn needs_gradient(graph: &Graph) -> Vec<bool> {
    let mut needed: Vec<bool> =
        graph.values.iter().map(|value| value.origin == Origin::Weight).collect();
    for node in &graph.nodes {
        needed[node.output.0] |= node.inputs.iter().any(|id| needed[id.0]);
    }
    needed
}
