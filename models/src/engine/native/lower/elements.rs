//! Operators on one element at a time.

use super::{Lowering, picture};
use crate::engine::native::fuse::{self, Chain};
use crate::engine::native::program::BufferId;
use crate::graph::{Activation, Arithmetic, Node, ValueId};
use crate::kernels::blocked::elements::{Elements, Map};
use crate::kernels::blocked::{Function, Layout};

/// How an operand of a picture is read.
#[derive(Debug, Clone, PartialEq)]
enum Operand {
    Picture,
    /// A picture of one pixel.
    Pixel,
    Constants(Vec<f32>),
}

impl Lowering<'_> {
    fn operand(&self, id: ValueId, dims: &[usize]) -> Option<Operand> {
        if let Some(values) = fuse::by_channel(self.graph, id, dims) {
            return Some(Operand::Constants(values));
        }
        let shape = &self.graph.value(id).shape;
        if !shape.batched {
            return None;
        }
        let ones = shape.dims.iter().skip(1).all(|extent| *extent == 1);
        match dims.first() {
            _ if shape.dims == dims => Some(Operand::Picture),
            channels if shape.dims.first() == channels && ones => Some(Operand::Pixel),
            _ => None,
        }
    }

    /// Whether operands are pictures, or have one number for each channel.
    pub(super) fn fits_elements(&self, node: &Node) -> bool {
        let shape = &self.graph.value(node.output).shape;
        picture(shape).is_some()
            && node.inputs.iter().all(|id| self.operand(*id, &shape.dims).is_some())
    }

    pub(super) fn arithmetic(&mut self, node: &Node, chain: &Chain, operator: Arithmetic) {
        let dims = self.graph.value(node.output).shape.dims.clone();
        let mut sources = Vec::with_capacity(2);
        for id in &node.inputs {
            match self.operand(*id, &dims) {
                Some(Operand::Constants(values)) => sources.push(self.channels_constant(&values)),
                _ => sources.push(self.blocked(*id)),
            }
        }
        let target = self.make_blocked(chain.output);
        self.elements(operator, [sources[0], sources[1]], target, chain.function);
    }

    fn channels_constant(&mut self, values: &[f32]) -> BufferId {
        self.plan.constant(values, Layout::new(values.len(), [1; 2], self.lanes))
    }

    fn elements(
        &mut self,
        operator: Arithmetic,
        sources: [BufferId; 2],
        target: BufferId,
        function: Function,
    ) {
        self.step(sources.to_vec(), target, move |sources, target| {
            let sources = [sources[0], sources[1]];
            Box::new(Elements::new(operator, sources, *target, function))
        });
    }

    pub(super) fn activation(&mut self, node: &Node, activation: Activation) {
        let source = self.blocked(node.inputs[0]);
        let target = self.make_blocked(node.output);
        let function = Function::of(activation);
        self.step(vec![source], target, move |sources, target| {
            Box::new(Map::new(sources[0], *target, function))
        });
    }

    /// Factors and additions, one after the other.
    pub(super) fn normalization(&mut self, node: &Node, epsilon: f32) {
        let [scale, bias] = fuse::normalization(self.graph, node, epsilon);
        let source = self.blocked(node.inputs[0]);
        let (scale, bias) = (self.channels_constant(&scale), self.channels_constant(&bias));
        let (channels, size) = self.plan.extents(source);
        let between = self.plan.buffer(Layout::new(channels, size, self.lanes));
        self.elements(Arithmetic::Mul, [source, scale], between, Function::NONE);
        let target = self.make_blocked(node.output);
        self.elements(Arithmetic::Add, [between, bias], target, Function::NONE);
    }
}
