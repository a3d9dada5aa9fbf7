//! Pools, other shapes, and what kernels of training do.

use std::sync::Arc;

use super::{Forms, Lowering, picture};
use crate::engine::native::general::General;
use crate::graph::{Node, Op};
use crate::kernels::blocked::Layout;
use crate::kernels::blocked::channels::Concat;
use crate::kernels::blocked::pool::Pool;

impl Lowering<'_> {
    pub(super) fn pool(&mut self, node: &Node) {
        let source = self.blocked(node.inputs[0]);
        let target = self.make_blocked(node.output);
        let op = node.op.clone();
        self.step(vec![source], target, move |sources, target| {
            let (source, target) = (sources[0], *target);
            Box::new(match op {
                Op::MaxPool(window) => Pool::max(window, source, target),
                Op::AveragePool { window, include_pad } => {
                    Pool::average(window, include_pad, source, target)
                }
                _ => Pool::global(source, target),
            })
        });
    }

    /// The same numbers; a pixel stays one.
    pub(super) fn reshape(&mut self, node: &Node) {
        let (from, to) = (node.inputs[0], node.output);
        let pixel = |id| match picture(&self.graph.value(id).shape) {
            Some((channels, [1, 1])) => Some(channels),
            _ => None,
        };
        if pixel(from).is_some() && pixel(from) == pixel(to) {
            self.forms[to.0] = self.forms[from.0];
            return;
        }
        let flat = Some(self.flat(from));
        self.forms[to.0] = Forms { flat, ..Forms::default() };
    }

    pub(super) fn concat(&mut self, node: &Node) {
        let sources = node.inputs.iter().map(|id| self.blocked(*id)).collect();
        let target = self.make_blocked(node.output);
        self.step(sources, target, |sources, target| {
            Box::new(Concat { sources: sources.to_vec(), target: *target })
        });
    }

    /// By the kernel of training.
    pub(super) fn general(&mut self, node: &Node) {
        let sources = node.inputs.iter().map(|id| self.flat(*id)).collect();
        let len = self.graph.value(node.output).shape.elements();
        let target = self.plan.buffer(Layout::flat(len));
        self.forms[node.output.0].flat = Some(target);
        let (graph, owned) = (Arc::clone(&self.bare), node.clone());
        self.step(sources, target, move |_, _| Box::new(General::new(graph, owned)));
    }
}
