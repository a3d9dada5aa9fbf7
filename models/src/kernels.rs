//! Kernels of the native engine: forward beside backward.
//!
//! A value with a batch axis lies in memory as `[c][..][n]`, its examples innermost: the same
//! element of all examples side by side. So vectors hold examples: windows of any stride and
//! padding read whole vectors, another shape of an example is the same memory, a channel is one
//! stretch for batch normalisation, and a bias belongs to a row.

#![expect(
    clippy::inline_always,
    reason = "only what is inlined is compiled for the instructions of its caller"
)]

use crate::graph::{Graph, Node, Op, Window};

mod activation;
mod arithmetic;
pub(crate) mod blocked;
mod broadcast;
mod concat;
mod conv;
mod dropout;
mod linear;
pub(crate) mod loss;
mod norm;
mod pad;
mod pool;
mod product;
mod reduce;
pub(crate) mod reshape;
pub(crate) mod simd;
mod softmax;
pub(crate) mod sums;
mod tile;
mod transpose;

/// What a forward pass gives a kernel.
pub(crate) struct Forward<'a> {
    /// Examples.
    pub(crate) batch: usize,
    /// Whether this is a training step: batch statistics, dropout.
    pub(crate) training: bool,
    /// Whether the last training step is computed once more: statistics stay as they are.
    pub(crate) again: bool,
    /// Counted from 1; with the node it determines what is random.
    pub(crate) step: u64,
    pub(crate) inputs: &'a [&'a [f32]],
    pub(crate) states: &'a mut [Vec<f32>],
    pub(crate) output: &'a mut [f32],
    /// At least [`Kernel::scratch`] floats of any content.
    pub(crate) scratch: &'a mut [f32],
}

/// What a kernel's backward pass reads of the forward pass; the rest may be gone by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reads {
    /// Inputs that are activations; parameters are always there.
    pub(crate) inputs: bool,
    pub(crate) output: bool,
}

impl Reads {
    pub(crate) const NOTHING: Self = Self { inputs: false, output: false };
    pub(crate) const INPUTS: Self = Self { inputs: true, output: false };
    pub(crate) const OUTPUT: Self = Self { inputs: false, output: true };
    pub(crate) const ALL: Self = Self { inputs: true, output: true };
}

/// What a backward pass gives a kernel; inputs and output are those of the last forward pass,
/// empty where [`Kernel::reads`] does not ask for them.
pub(crate) struct Backward<'a> {
    pub(crate) batch: usize,
    pub(crate) inputs: &'a [&'a [f32]],
    pub(crate) output: &'a [f32],
    /// Of the loss by the output.
    pub(crate) output_gradient: &'a [f32],
    /// Where to put the gradients by the inputs; `None` where none is wanted.
    pub(crate) input_gradients: &'a mut [Option<Gradient<'a>>],
    pub(crate) scratch: &'a mut [f32],
}

/// Where a gradient goes.
pub(crate) struct Gradient<'a> {
    pub(crate) values: &'a mut [f32],
    /// Whether it is added to what is there, because the input feeds several nodes.
    pub(crate) add: bool,
}

impl Gradient<'_> {
    /// Puts or adds one value after the other.
    pub(crate) fn put(&mut self, values: impl Iterator<Item = f32>) {
        if self.add {
            self.values.iter_mut().zip(values).for_each(|(into, value)| *into += value);
        } else {
            self.values.iter_mut().zip(values).for_each(|(into, value)| *into = value);
        }
    }

    /// Makes sure that everything can be added.
    pub(crate) fn clear_unless_adding(&mut self) {
        if !self.add {
            self.values.fill(0.0);
        }
    }
}

/// One node at work; what the backward pass needs beyond inputs and output, it keeps.
pub(crate) trait Kernel: std::fmt::Debug + Send {
    /// Floats of working memory for a batch on so many threads.
    fn scratch(&self, _batch: usize, _threads: usize) -> usize {
        0
    }

    /// Bytes that the kernel keeps for the backward pass when its output has so many values.
    fn kept_bytes(&self, _output_len: usize) -> usize {
        0
    }

    /// What the backward pass reads.
    fn reads(&self) -> Reads {
        Reads::ALL
    }

    /// Computes the output.
    fn forward(&mut self, call: Forward<'_>);

    /// Computes the gradients by the inputs from the gradient by the output.
    fn backward(&mut self, call: Backward<'_>);
}

/// The kernel of a product of two square matrices: a convolution of one pixel, whose weights are
/// one and whose examples are the columns of the other.
pub(crate) fn square_product(size: usize) -> Box<dyn Kernel> {
    let window = Window::POINT;
    let extents = [size, 1, 1];
    Box::new(conv::Conv::new(window, 1, &extents, &extents))
}

/// The kernel of a node.
pub(crate) fn build(graph: &Graph, node: &Node, seed: u64) -> Box<dyn Kernel> {
    let shape = |index: usize| &graph.value(node.inputs[index]).shape;
    let output = &graph.value(node.output).shape;
    match &node.op {
        Op::Conv { window, group } => {
            Box::new(conv::Conv::new(*window, *group, &shape(0).dims, &output.dims))
        }
        Op::Gemm { alpha, beta, transposed } => {
            let bias = (node.inputs.len() > 2).then(|| shape(2).elements());
            let (d, m) = (shape(0).elements(), output.elements());
            let (alpha, beta, transposed) = (*alpha, *beta, *transposed);
            Box::new(linear::Linear { d, m, alpha, beta, transposed, bias })
        }
        Op::MatMul => {
            let [d, m] = [shape(1).dims[0], shape(1).dims[1]];
            Box::new(linear::Rows { d, m })
        }
        Op::Arithmetic(operator) => {
            Box::new(arithmetic::Arithmetic::new(*operator, shape(0), shape(1), &output.dims))
        }
        Op::Activation(function) => Box::new(activation::Activation(*function)),
        Op::MaxPool(window) => Box::new(pool::MaxPool::new(*window, &shape(0).dims, &output.dims)),
        Op::AveragePool { window, include_pad } => {
            Box::new(pool::AveragePool::new(*window, *include_pad, &shape(0).dims, &output.dims))
        }
        Op::GlobalAveragePool => Box::new(pool::GlobalAveragePool),
        Op::BatchNormalization { epsilon, momentum } => {
            Box::new(norm::BatchNormalization::new(output.dims[0], *epsilon, *momentum))
        }
        Op::Reshape => Box::new(reshape::Reshape),
        Op::Transpose { axes } => Box::new(transpose::Transpose::new(axes, &shape(0).dims)),
        Op::Concat { axis } => {
            let inputs: Vec<&[usize]> =
                (0..node.inputs.len()).map(|index| shape(index).dims.as_slice()).collect();
            Box::new(concat::Concat::new(*axis, &inputs))
        }
        Op::Dropout { ratio, share } => {
            Box::new(dropout::Dropout::new(*ratio, seed, *share, &output.dims))
        }
        Op::Reduce { axes, mean } => Box::new(reduce::Reduce::new(axes, *mean, &shape(0).dims)),
        Op::Softmax { axis, log } => Box::new(softmax::Softmax::new(*axis, *log, &output.dims)),
        Op::Pad { begin, value, .. } => {
            Box::new(pad::Pad::new(begin, *value, &shape(0).dims, &output.dims))
        }
        Op::Crop { begin } => Box::new(pad::Crop::new(begin, &shape(0).dims, &output.dims)),
    }
}

#[cfg(test)]
mod tests;
