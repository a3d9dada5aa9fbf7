//! The operators that can be trained: how each ONNX node is read.

use super::context::Context;
use super::reader::Made;
use super::{Activation, Arithmetic, GraphError, Op, ValueId, random};

mod elements;
mod folding;
mod numbers;
mod parts;
mod products;
mod reductions;
mod shapes;
mod windows;

type Reader = fn(&mut Context<'_, '_>) -> Result<Made, GraphError>;

/// The operators of ONNX's own domain.
const OWN: [(&str, Reader); 44] = [
    ("Add", |context| elements::arithmetic(context, Arithmetic::Add)),
    ("AveragePool", windows::average_pool),
    ("BatchNormalization", elements::batch_normalization),
    ("Cast", folding::cast),
    ("CastLike", folding::cast_like),
    ("Clip", elements::clip),
    ("Concat", shapes::concat),
    ("Constant", folding::constant),
    ("ConstantOfShape", folding::constant_of_shape),
    ("Conv", windows::conv),
    ("Div", |context| elements::arithmetic(context, Arithmetic::Div)),
    ("Dropout", elements::dropout),
    ("Expand", folding::expand),
    ("Flatten", shapes::flatten),
    ("Gather", numbers::gather),
    ("Gemm", products::gemm),
    ("GlobalAveragePool", windows::global_average_pool),
    ("GlobalMaxPool", windows::global_max_pool),
    ("HardSigmoid", elements::hard_sigmoid),
    ("HardSwish", |context| elements::activation(context, Activation::HardSwish)),
    ("Identity", folding::identity),
    ("LeakyRelu", elements::leaky_relu),
    ("Less", random::less),
    ("LogSoftmax", |context| elements::softmax(context, true)),
    ("MatMul", products::matmul),
    ("MaxPool", windows::max_pool),
    ("Mul", |context| elements::arithmetic(context, Arithmetic::Mul)),
    ("Neg", |context| elements::activation(context, Activation::Neg)),
    ("Pad", shapes::pad),
    ("RandomUniformLike", random::uniform_like),
    ("ReduceMean", |context| reductions::reduce(context, true)),
    ("ReduceSum", |context| reductions::reduce(context, false)),
    ("Relu", |context| elements::activation(context, Activation::Relu)),
    ("Reshape", shapes::reshape),
    ("Shape", numbers::shape),
    ("Sigmoid", elements::sigmoid),
    ("Slice", parts::slice),
    ("Softmax", |context| elements::softmax(context, false)),
    ("Split", parts::split),
    ("Squeeze", shapes::squeeze),
    ("Sub", |context| elements::arithmetic(context, Arithmetic::Sub)),
    ("Tanh", |context| elements::activation(context, Activation::Tanh)),
    ("Transpose", shapes::transpose),
    ("Unsqueeze", shapes::unsqueeze),
];

/// The reader of an operator, if it can be trained.
pub(super) fn reader(domain: &str, operator: &str) -> Option<Reader> {
    match domain {
        "" | "ai.onnx" => OWN.iter().find(|(name, _)| *name == operator).map(|(_, reader)| *reader),
        "ai.onnx.ml" if operator == "Scaler" => Some(elements::scaler),
        _ => None,
    }
}

/// What can be trained, in words.
pub(super) fn names() -> String {
    OWN.map(|(name, _)| name).join(", ")
}

fn node(op: Op, inputs: Vec<ValueId>, dims: Vec<usize>) -> Made {
    Made::Node { op, inputs, states: Vec::new(), dims }
}
