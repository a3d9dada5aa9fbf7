//! Convolutions and products with weights.

use super::{BORDERED_MAX, Lowering, behind, picture};
use crate::engine::native::fuse::Chain;
use crate::engine::native::program::BufferId;
use crate::graph::{Node, Window};
use crate::kernels::blocked::Layout;
use crate::kernels::blocked::conv::{Conv, Definition, Weights};
use crate::kernels::blocked::depthwise::Depthwise;

impl Lowering<'_> {
    /// Whether each channel is convolved alone, to one map.
    pub(super) fn is_depthwise(&self, node: &Node, group: usize) -> bool {
        let [channels, maps] = self.channels(node);
        group > 1 && channels == group && maps == group
    }

    /// Channels of input and output.
    fn channels(&self, node: &Node) -> [usize; 2] {
        [node.inputs[0], node.output].map(|id| self.graph.value(id).shape.dims[0])
    }

    /// Whether there is a kernel with channels in lanes for it.
    pub(super) fn fits(&self, node: &Node, window: &Window, group: usize) -> bool {
        let [channels, maps] = self.channels(node);
        let size = |id| picture(&self.graph.value(id).shape).map(|(_, size)| size);
        let (Some(size), Some(output)) = (size(node.inputs[0]), size(node.output)) else {
            return false;
        };
        let end = behind(window, size, output);
        let extent = |axis: usize| window.begin[axis] + size[axis] + end[axis];
        let bordered = extent(0)
            .checked_mul(extent(1))
            .and_then(|pixels| pixels.checked_mul(channels.next_multiple_of(self.lanes)));
        bordered.is_some_and(|len| len <= BORDERED_MAX)
            && (self.is_depthwise(node, group)
                || Definition::fits(group, channels, maps, [self.lanes, self.lanes]))
    }

    pub(super) fn conv(&mut self, node: &Node, chain: &Chain, window: &Window, group: usize) {
        let [channels, maps] = self.channels(node);
        let depthwise = self.is_depthwise(node, group);
        let few = channels < self.lanes && self.forms[node.inputs[0].0].blocked.is_none();
        let source = if few && !depthwise {
            self.bordered(node.inputs[0])
        } else {
            self.blocked(node.inputs[0])
        };
        let graph = self.graph;
        let output = picture(&graph.value(node.output).shape).map_or([1; 2], |(_, size)| size);
        self.need_border(source, window, output);
        let elements = window.kernel[0] * window.kernel[1];
        let values = self.numbers(node.inputs[1]);
        let of_map = (values.len() / maps).max(1);
        let values = scaled(values, &chain.scale, |at| at / of_map);
        let own = node.inputs.get(2).map_or(&[][..], |id| &graph.value(*id).initial);
        let bias = bias(own, 1.0, chain, maps);
        let (window, function) = (*window, chain.function);
        if depthwise {
            let target = self.make_blocked(chain.output);
            self.step(vec![source], target, move |sources, target| {
                let source = &sources[0];
                Box::new(Depthwise::new(&window, source, target, &values, &bias, function))
            });
            return;
        }
        let extents = [maps, channels / group, elements];
        self.product(chain, source, move |source, target| {
            let weights = Weights::new(&values, extents, &bias);
            let (source, target) = (*source, *target);
            let groups = group;
            Conv::new(&Definition { window, groups, source, target, weights, function })
        });
    }

    /// A product is a convolution of one pixel.
    pub(super) fn gemm(
        &mut self,
        node: &Node,
        chain: &Chain,
        [alpha, beta]: [f32; 2],
        transposed: bool,
    ) {
        let graph = self.graph;
        let [d, m] = self.channels(node);
        let source = match self.forms[node.inputs[0].0].blocked {
            Some(source) => source,
            None => self.flat(node.inputs[0]),
        };
        let map = move |at: usize| if transposed { at / d } else { at % m };
        let scale: Vec<f32> = match chain.scale.as_slice() {
            [] => vec![alpha; m],
            scale => scale.iter().map(|scale| scale * alpha).collect(),
        };
        let values = scaled(self.numbers(node.inputs[1]), &scale, map);
        let own = node.inputs.get(2).map_or(&[][..], |id| &graph.value(*id).initial);
        let bias = bias(own, beta, chain, m);
        let function = chain.function;
        self.product(chain, source, move |source, target| {
            let weights = Weights {
                values: &values,
                steps: if transposed { [d, 1] } else { [1, m] },
                extents: [m, d, 1],
                bias: &bias,
            };
            let window = Window::POINT;
            let (source, target) = (*source, *target);
            Conv::new(&Definition { window, groups: 1, source, target, weights, function })
        });
    }

    /// A step with its residual, whose border is the target's.
    fn product(
        &mut self,
        chain: &Chain,
        source: BufferId,
        make: impl FnOnce(&Layout, &Layout) -> Conv + 'static,
    ) {
        let mut sources = vec![source];
        if let Some(residual) = chain.residual {
            sources.push(self.blocked(residual));
        }
        let target = self.make_blocked(chain.output);
        if let Some(residual) = sources.get(1) {
            self.plan.be_alike(*residual, target);
        }
        let make = move |sources: &[Layout], target: &Layout| {
            Box::new(make(&sources[0], target)) as Box<dyn crate::kernels::blocked::Kernel>
        };
        self.step(sources, target, make);
    }
}

/// Values times the factor of the map that each belongs to.
fn scaled(mut values: Vec<f32>, scale: &[f32], map: impl Fn(usize) -> usize) -> Vec<f32> {
    if !scale.is_empty() {
        values.iter_mut().enumerate().for_each(|(at, value)| *value *= scale[map(at)]);
    }
    values
}

/// The bias of all maps: their own, times a factor, moved and scaled by what follows.
fn bias(own: &[f32], factor: f32, chain: &Chain, maps: usize) -> Vec<f32> {
    let one = |map: usize| {
        let own = match own {
            [] => 0.0,
            [one] => factor * one,
            own => factor * own[map],
        };
        let scaled = chain.scale.get(map).map_or(own, |scale| own * scale);
        chain.bias.get(map).map_or(scaled, |bias| scaled + bias)
    };
    (0..maps).map(one).collect()
}
