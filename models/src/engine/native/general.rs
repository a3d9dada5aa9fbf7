//! Kernels of training on one example: right for every operator, and not made for speed.

use std::sync::{Arc, Mutex, PoisonError};

use crate::graph::{Graph, Node};
use crate::kernels;
use crate::kernels::blocked::{Call, Kernel};

/// A node of the graph; sources and target lie as in a host tensor.
pub(super) struct General {
    graph: Arc<Graph>,
    node: Node,
    output_len: usize,
    /// By input how many numbers it has.
    lengths: Vec<usize>,
    scratch: usize,
    /// Kernels that no run has at the moment: they keep what is for one run.
    idle: Mutex<Vec<Box<dyn kernels::Kernel>>>,
}

impl std::fmt::Debug for General {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("General").field("node", &self.node).finish_non_exhaustive()
    }
}

impl General {
    pub(super) fn new(graph: Arc<Graph>, node: Node) -> Self {
        let kernel = kernels::build(&graph, &node, 0);
        let scratch = kernel.scratch(1, 1);
        let output_len = graph.value(node.output).shape.elements();
        let lengths = node.inputs.iter().map(|id| graph.value(*id).shape.elements()).collect();
        Self { graph, node, output_len, lengths, scratch, idle: Mutex::new(vec![kernel]) }
    }
}

impl Kernel for General {
    fn scratch(&self) -> usize {
        self.scratch
    }

    fn run(&self, call: Call<'_, '_>) {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let kernel = idle().pop();
        let mut kernel = kernel.unwrap_or_else(|| kernels::build(&self.graph, &self.node, 0));
        let inputs: Vec<&[f32]> =
            call.sources.iter().zip(&self.lengths).map(|(source, len)| &source[..*len]).collect();
        kernel.forward(kernels::Forward {
            batch: 1,
            training: false,
            again: false,
            step: 1,
            inputs: &inputs,
            states: &mut [],
            output: &mut call.target[..self.output_len],
            scratch: &mut call.scratch[..self.scratch],
        });
        idle().push(kernel);
    }
}
