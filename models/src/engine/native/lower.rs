//! From a graph to a program: which kernel does which nodes, and how values lie in memory.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "operators that are not named are left to kernels of training"
)]

use std::sync::Arc;

use super::fuse::{Chain, Follows, Uses};
use super::plan::{Draft, Plan};
use super::program::{BufferId, Program};
use crate::graph::{Graph, Node, Op, Shape, ValueId, Window};
use crate::kernels::blocked::{self, Kernel, Layout, convert::Convert};

mod convolutions;
mod elements;
mod others;

/// Most `f32`s of a picture with its border; larger ones are left to kernels that need none.
const BORDERED_MAX: usize = 1 << 28;

/// A graph on its way.
pub(super) struct Lowering<'g> {
    graph: &'g Graph,
    /// Without the values of parameters, for kernels of training.
    bare: Arc<Graph>,
    lanes: usize,
    plan: Plan,
    /// By value where it lies.
    forms: Vec<Forms>,
    /// Weights that one node takes, by value: they are moved, not copied.
    weights: Vec<Vec<f32>>,
}

/// The buffers of a value.
#[derive(Debug, Clone, Copy, Default)]
struct Forms {
    /// As a host tensor has it.
    flat: Option<BufferId>,
    /// With channels in lanes.
    blocked: Option<BufferId>,
    /// As a host tensor has it, with a border.
    bordered: Option<BufferId>,
}

/// The graph's weights are taken out of it.
pub(super) fn lower(graph: &mut Graph) -> Program {
    let weights = weights(graph);
    let graph = &*graph;
    let input_len = graph.value(graph.input).shape.elements();
    let mut plan = Plan::default();
    let input = plan.input(Layout::flat(input_len));
    let mut lowering = Lowering {
        graph,
        bare: Arc::new(graph.without_values()),
        lanes: blocked::lanes(),
        plan,
        forms: vec![Forms::default(); graph.values.len()],
        weights,
    };
    lowering.forms[graph.input.0].flat = Some(input);
    let chains = lowering.chains();
    for chain in chains.into_iter().flatten() {
        lowering.chain(&chain);
    }
    let output = lowering.flat(graph.output);
    let output_len = graph.value(graph.output).shape.elements();
    lowering.plan.finish(output, input_len, output_len)
}

/// Takes out the weights of convolutions and products that nothing else needs.
fn weights(graph: &mut Graph) -> Vec<Vec<f32>> {
    let mut takers = vec![0; graph.values.len()];
    let inputs = graph.nodes.iter().flat_map(|node| &node.inputs);
    inputs.for_each(|input| takers[input.0] += 1);
    let mut weights = vec![Vec::new(); graph.values.len()];
    for node in &graph.nodes {
        let id = match node.op {
            Op::Conv { .. } | Op::Gemm { .. } => node.inputs[1],
            _ => continue,
        };
        if takers[id.0] == 1 {
            weights[id.0] = std::mem::take(&mut graph.values[id.0].initial);
        }
    }
    weights
}

/// A value as a picture: channels and `[h, w]`.
fn picture(shape: &Shape) -> Option<(usize, [usize; 2])> {
    match *shape.dims.as_slice() {
        [c] => Some((c, [1, 1])),
        [c, w] => Some((c, [1, w])),
        [c, h, w] => Some((c, [h, w])),
        _ => None,
    }
}

impl Lowering<'_> {
    /// Chains by their last node, where all that they take has been computed.
    fn chains(&self) -> Vec<Option<Chain>> {
        let uses = Uses::new(self.graph);
        let count = self.graph.nodes.len();
        let mut taken = vec![false; count];
        let mut chains: Vec<Option<Chain>> = vec![None; count];
        for at in 0..count {
            if taken[at] {
                continue;
            }
            let chain = match self.follows(&self.graph.nodes[at]) {
                Some(follows) => uses.chain(self.graph, at, follows, &taken),
                None => Uses::alone(self.graph, at),
            };
            chain.nodes.iter().for_each(|node| taken[*node] = true);
            let last = chain.nodes.iter().max().copied().unwrap_or(at);
            chains[last] = Some(chain);
        }
        chains
    }

    /// What may follow a node in one step; `None` where nothing may.
    fn follows(&self, node: &Node) -> Option<Follows> {
        match &node.op {
            Op::Conv { window, group } => {
                let depthwise = self.is_depthwise(node, *group);
                self.fits(node, window, *group)
                    .then_some(Follows { scale: true, residual: !depthwise })
            }
            Op::Gemm { .. } => Some(Follows { scale: true, residual: true }),
            Op::Arithmetic(_) => {
                self.fits_elements(node).then_some(Follows { scale: false, residual: false })
            }
            _ => None,
        }
    }

    fn chain(&mut self, chain: &Chain) {
        let node = &self.graph.nodes[chain.nodes[0]];
        let shape = &self.graph.value(node.inputs[0]).shape;
        match &node.op {
            Op::Conv { window, group } if self.fits(node, window, *group) => {
                self.conv(node, chain, window, *group);
            }
            Op::Gemm { alpha, beta, transposed } => {
                self.gemm(node, chain, [*alpha, *beta], *transposed);
            }
            Op::Arithmetic(operator) if self.fits_elements(node) => {
                self.arithmetic(node, chain, *operator);
            }
            Op::Activation(activation) if picture(shape).is_some() => {
                self.activation(node, *activation);
            }
            Op::BatchNormalization { epsilon, .. } if picture(shape).is_some() => {
                self.normalization(node, *epsilon);
            }
            Op::MaxPool(_) | Op::AveragePool { .. } => self.pool(node),
            Op::GlobalAveragePool if picture(shape).is_some() => self.pool(node),
            Op::Reshape => self.reshape(node),
            Op::Dropout { .. } => self.forms[node.output.0] = self.forms[node.inputs[0].0],
            Op::Concat { axis: 0 } if shape.dims.len() == 3 => self.concat(node),
            _ => self.general(node),
        }
    }

    /// The numbers of a weight or constant, for the node that takes them.
    fn numbers(&mut self, id: ValueId) -> Vec<f32> {
        match std::mem::take(&mut self.weights[id.0]) {
            none if none.is_empty() => self.graph.value(id).initial.clone(),
            weights => weights,
        }
    }

    /// The value with channels in lanes.
    ///
    /// # Panics
    /// When it is no picture.
    fn blocked(&mut self, id: ValueId) -> BufferId {
        if let Some(buffer) = self.forms[id.0].blocked {
            return buffer;
        }
        let source = self.flat(id);
        let (channels, size) =
            picture(&self.graph.value(id).shape).expect("only pictures are asked for so");
        let target = self.plan.buffer(Layout::new(channels, size, self.lanes));
        self.convert(source, Layout::new(channels, size, 1), target);
        self.forms[id.0].blocked = Some(target);
        target
    }

    /// The value as a host tensor has it.
    fn flat(&mut self, id: ValueId) -> BufferId {
        if let Some(buffer) = self.forms[id.0].flat {
            return buffer;
        }
        let len = self.graph.value(id).shape.elements();
        let buffer = match self.forms[id.0].blocked {
            None => {
                let numbers = self.numbers(id);
                self.plan.constant(&numbers, Layout::flat(len))
            }
            Some(source) => {
                let target = self.plan.buffer(Layout::flat(len));
                let (channels, size) = self.plan.extents(source);
                let make = move |sources: &[Layout], _: &Layout| {
                    let target = Layout::new(channels, size, 1);
                    Box::new(Convert { source: sources[0], target }) as Box<dyn Kernel>
                };
                self.plan.step(vec![source], target, Box::new(make));
                target
            }
        };
        self.forms[id.0].flat = Some(buffer);
        buffer
    }

    /// The value as a host tensor has it, with a border that grows.
    fn bordered(&mut self, id: ValueId) -> BufferId {
        if let Some(buffer) = self.forms[id.0].bordered {
            return buffer;
        }
        let source = self.flat(id);
        let (channels, size) =
            picture(&self.graph.value(id).shape).expect("only pictures are asked for so");
        let layout = Layout::new(channels, size, 1);
        let target = self.plan.buffer(layout);
        self.convert(source, layout, target);
        self.forms[id.0].bordered = Some(target);
        target
    }

    fn convert(&mut self, source: BufferId, layout: Layout, target: BufferId) {
        let make = move |_: &[Layout], target: &Layout| {
            Box::new(Convert { source: layout, target: *target }) as Box<dyn Kernel>
        };
        self.plan.step(vec![source], target, Box::new(make));
    }

    /// A new buffer for a value with channels in lanes.
    fn make_blocked(&mut self, id: ValueId) -> BufferId {
        let (channels, size) =
            picture(&self.graph.value(id).shape).expect("only pictures are made so");
        let buffer = self.plan.buffer(Layout::new(channels, size, self.lanes));
        self.forms[id.0].blocked = Some(buffer);
        buffer
    }

    fn step(
        &mut self,
        sources: Vec<BufferId>,
        target: BufferId,
        make: impl FnOnce(&[Layout], &Layout) -> Box<dyn Kernel> + 'static,
    ) {
        let make: Draft = Box::new(make);
        self.plan.step(sources, target, make);
    }

    /// Lets a source have the border that a window needs.
    fn need_border(&mut self, source: BufferId, window: &Window, output: [usize; 2]) {
        let (_, size) = self.plan.extents(source);
        self.plan.grow(source, window.begin, behind(window, size, output));
    }
}

/// Rows and columns behind a picture that windows reach into.
fn behind(window: &Window, size: [usize; 2], output: [usize; 2]) -> [usize; 2] {
    [0, 1].map(|axis| {
        let last = (output[axis] - 1) * window.stride[axis];
        let reach = last + (window.kernel[axis] - 1) * window.dilation[axis] + 1;
        reach.saturating_sub(size[axis] + window.begin[axis])
    })
}
