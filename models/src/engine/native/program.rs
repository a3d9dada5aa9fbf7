//! What a run does: steps over buffers in one stretch of memory.

use std::ops::Range;

use crate::kernels::blocked::{Call, Kernel, Layout, memory::Memory};

/// Sources of a step that need no memory of their own to be listed.
const FEW: usize = 8;

/// A buffer by its index in the program's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BufferId(pub(super) usize);

/// Where numbers lie.
#[derive(Debug)]
pub(super) enum Place {
    /// The run's input.
    Input,
    /// They are always the same.
    Constant(Memory),
    /// This part of a run's memory.
    Memory(Range<usize>),
}

#[derive(Debug)]
pub(super) struct Step {
    pub(super) kernel: Box<dyn Kernel>,
    pub(super) sources: Vec<BufferId>,
    pub(super) target: BufferId,
    /// The target's layout, where it has a border to be cleared.
    pub(super) border: Option<Layout>,
}

/// Steps in their order.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) steps: Vec<Step>,
    pub(super) places: Vec<Place>,
    pub(super) output: BufferId,
    /// `f32`s of input and output.
    pub(super) input_len: usize,
    pub(super) output_len: usize,
    pub(super) memory: usize,
    pub(super) scratch: usize,
}

/// What a run changes.
#[derive(Debug)]
pub(super) struct State {
    memory: Memory,
    scratch: Memory,
}

#[cfg(test)]
impl State {
    /// Fills all memory with NaN.
    pub(super) fn spoil(&mut self) {
        self.memory.as_mut_slice().fill(f32::NAN);
        self.scratch.as_mut_slice().fill(f32::NAN);
    }
}

impl Program {
    pub(super) fn state(&self) -> State {
        State { memory: Memory::zeros(self.memory), scratch: Memory::zeros(self.scratch) }
    }

    /// Computes the output of one example.
    pub(super) fn run(&self, state: &mut State, input: &[f32], output: &mut [f32]) {
        for step in &self.steps {
            self.step(step, state, input);
        }
        match &self.places[self.output.0] {
            Place::Input => output.copy_from_slice(&input[..self.output_len]),
            Place::Constant(values) => {
                output.copy_from_slice(&values.as_slice()[..self.output_len]);
            }
            Place::Memory(range) => {
                let made = &state.memory.as_slice()[range.clone()];
                output.copy_from_slice(&made[..self.output_len]);
            }
        }
    }

    pub(super) fn step(&self, step: &Step, state: &mut State, input: &[f32]) {
        let Place::Memory(range) = &self.places[step.target.0] else { return };
        let (before, rest) = state.memory.as_mut_slice().split_at_mut(range.start);
        let (target, after) = rest.split_at_mut(range.len());
        let source = |id: &BufferId| match &self.places[id.0] {
            Place::Input => input,
            Place::Constant(values) => values.as_slice(),
            Place::Memory(source) if source.end <= range.start => &before[source.clone()],
            Place::Memory(source) => {
                let start = source.start - range.end;
                &after[start..start + source.len()]
            }
        };
        if let Some(layout) = &step.border {
            layout.clear_border(&mut target[..layout.len()]);
        }
        let mut few: [&[f32]; FEW] = [&[]; FEW];
        let many: Vec<&[f32]>;
        let sources = if step.sources.len() <= FEW {
            for (place, id) in few.iter_mut().zip(&step.sources) {
                *place = source(id);
            }
            &few[..step.sources.len()]
        } else {
            many = step.sources.iter().map(source).collect();
            &many
        };
        step.kernel.run(Call { sources, target, scratch: state.scratch.as_mut_slice() });
    }
}
