//! Kernels of the native engine: forward beside backward.
//!
//! A value with a batch axis lies in memory as `[c][n][rest]`: all of a batch's first channel,
//! then all of its second. One example's `[d]` features are `[d][n]`. So a convolution is one
//! product of weights and unrolled pixels, a channel is one stretch of memory for batch
//! normalisation, and a bias belongs to a row.

pub(crate) use matrix::multiply_squares;

use crate::graph::{Graph, Node, Op};

mod activation;
mod arithmetic;
mod broadcast;
mod concat;
mod conv;
mod depthwise;
mod dropout;
mod layout;
mod linear;
pub(crate) mod loss;
mod matrix;
mod norm;
mod pad;
mod pool;
mod reduce;
pub(crate) mod reshape;
mod softmax;
mod sums;
mod transpose;
mod unroll;

/// What a forward pass gives a kernel.
pub(crate) struct Forward<'a> {
    /// Examples.
    pub(crate) batch: usize,
    /// Whether this is a training step: batch statistics, dropout.
    pub(crate) training: bool,
    /// Counted from 1; with the node it determines what is random.
    pub(crate) step: u64,
    pub(crate) inputs: &'a [&'a [f32]],
    pub(crate) states: &'a mut [Vec<f32>],
    pub(crate) output: &'a mut [f32],
    /// At least [`Kernel::scratch`] floats of any content.
    pub(crate) scratch: &'a mut [f32],
}

/// What a backward pass gives a kernel; inputs and output are those of the last forward pass.
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

    /// Computes the output.
    fn forward(&mut self, call: Forward<'_>);

    /// Computes the gradients by the inputs from the gradient by the output.
    fn backward(&mut self, call: Backward<'_>);
}

/// The kernel of a node.
pub(crate) fn build(graph: &Graph, node: &Node, seed: u64) -> Box<dyn Kernel> {
    let shape = |index: usize| &graph.value(node.inputs[index]).shape;
    let output = &graph.value(node.output).shape;
    match &node.op {
        Op::Conv { window, group } => {
            let (input, output) = (&shape(0).dims, &output.dims);
            // Channels that meet no other are worked on one by one.
            if input[0] == *group && depthwise::Depthwise::suits(*window, input, output) {
                Box::new(depthwise::Depthwise::new(*window, input, output))
            } else {
                Box::new(conv::Conv::new(*window, *group, input, output))
            }
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
        Op::Reshape => Box::new(reshape::Reshape::new(&shape(0).dims, &output.dims)),
        Op::Transpose { axes } => Box::new(transpose::Transpose::new(axes, &shape(0).dims)),
        Op::Concat { axis } => {
            let inputs: Vec<&[usize]> =
                (0..node.inputs.len()).map(|index| shape(index).dims.as_slice()).collect();
            Box::new(concat::Concat::new(*axis, &inputs))
        }
        Op::Dropout { ratio, share } => {
            Box::new(dropout::Dropout::new(*ratio, seed, *share, &output.dims))
        }
        Op::Reduce { axes, mean } => {
            Box::new(reduce::Reduce::new(axes, *mean, &shape(0).dims, &output.dims))
        }
        Op::Softmax { axis, log } => Box::new(softmax::Softmax::new(*axis, *log, &output.dims)),
        Op::Pad { begin, value, .. } => {
            Box::new(pad::Pad::new(begin, *value, &shape(0).dims, &output.dims))
        }
        Op::Crop { begin } => Box::new(pad::Crop::new(begin, &shape(0).dims, &output.dims)),
    }
}

#[cfg(test)]
mod tests;
