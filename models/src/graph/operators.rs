//! The operators that can be trained: how each ONNX node is read.

use super::context::Context;
use super::reader::Made;
use super::{Activation, Arithmetic, GraphError, Op, ValueId};

mod elements;
mod folding;
mod products;
mod shapes;
mod windows;

type Reader = fn(&mut Context<'_, '_>) -> Result<Made, GraphError>;

/// The reader of an operator of ONNX's own domain, if it can be trained.
pub(super) fn reader(operator: &str) -> Option<Reader> {
    Some(match operator {
        "Add" => |context| elements::arithmetic(context, Arithmetic::Add),
        "AveragePool" => windows::average_pool,
        "BatchNormalization" => elements::batch_normalization,
        "Cast" => folding::cast,
        "Clip" => elements::clip,
        "Concat" => shapes::concat,
        "Constant" => folding::constant,
        "Conv" => windows::conv,
        "Div" => |context| elements::arithmetic(context, Arithmetic::Div),
        "Dropout" => elements::dropout,
        "Flatten" => shapes::flatten,
        "Gather" => folding::gather,
        "Gemm" => products::gemm,
        "GlobalAveragePool" => windows::global_average_pool,
        "HardSigmoid" => elements::hard_sigmoid,
        "HardSwish" => |context| elements::activation(context, Activation::HardSwish),
        "Identity" => folding::identity,
        "LeakyRelu" => elements::leaky_relu,
        "MatMul" => products::matmul,
        "MaxPool" => windows::max_pool,
        "Mul" => |context| elements::arithmetic(context, Arithmetic::Mul),
        "Neg" => |context| elements::activation(context, Activation::Neg),
        "ReduceMean" => windows::reduce_mean,
        "Relu" => |context| elements::activation(context, Activation::Relu),
        "Reshape" => shapes::reshape,
        "Shape" => folding::shape,
        "Sigmoid" => |context| elements::activation(context, Activation::Sigmoid),
        "Slice" => folding::slice,
        "Softmax" | "LogSoftmax" => elements::softmax,
        "Squeeze" => shapes::squeeze,
        "Sub" => |context| elements::arithmetic(context, Arithmetic::Sub),
        "Tanh" => |context| elements::activation(context, Activation::Tanh),
        "Transpose" => shapes::transpose,
        "Unsqueeze" => shapes::unsqueeze,
        _ => return None,
    })
}

fn node(op: Op, inputs: Vec<ValueId>, dims: Vec<usize>) -> Made {
    Made::Node { op, inputs, states: Vec::new(), dims }
}
