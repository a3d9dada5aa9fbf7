//! Inputs that a model would hold as constants.
//!
//! A test of one operator feeds everything from outside, weights, shapes and axes too. In the
//! graph of a model these are initializers, and most engines need them so.

use models::onnx::{GraphProto, NodeProto, TensorProto};

/// Inputs of operators that say how to compute, or that are trained, by operator: where they
/// begin among the inputs, and how many there are.
const CONSTANT: [(&str, usize, usize); 64] = [
    ("AffineGrid", 1, 1),
    ("BatchNormalization", 1, 4),
    ("BlackmanWindow", 0, 1),
    ("CenterCropPad", 1, 1),
    ("Clip", 1, 2),
    ("Col2Im", 1, 2),
    ("ConstantOfShape", 0, 1),
    ("Conv", 1, 2),
    ("ConvInteger", 1, 3),
    ("ConvTranspose", 1, 2),
    ("CumSum", 1, 1),
    ("DFT", 1, 2),
    ("DeformConv", 1, 1),
    ("DeformConv", 3, 1),
    ("DequantizeLinear", 1, 2),
    ("Dropout", 1, 2),
    ("Expand", 1, 1),
    ("GRU", 1, 4),
    ("Gemm", 1, 2),
    ("GroupNormalization", 1, 2),
    ("HammingWindow", 0, 1),
    ("HannWindow", 0, 1),
    ("InstanceNormalization", 1, 2),
    ("LSTM", 1, 4),
    ("LSTM", 7, 1),
    ("LayerNormalization", 1, 2),
    ("Loop", 0, 2),
    ("MatMulInteger", 2, 2),
    ("MaxUnpool", 2, 1),
    ("MelWeightMatrix", 0, 5),
    ("NonMaxSuppression", 2, 3),
    ("OneHot", 1, 2),
    ("PRelu", 1, 1),
    ("Pad", 1, 3),
    ("QLinearConv", 1, 8),
    ("QLinearMatMul", 1, 2),
    ("QLinearMatMul", 4, 4),
    ("QuantizeLinear", 1, 2),
    ("RMSNormalization", 1, 1),
    ("RNN", 1, 4),
    ("Range", 0, 3),
    ("ReduceL1", 1, 1),
    ("ReduceL2", 1, 1),
    ("ReduceLogSum", 1, 1),
    ("ReduceLogSumExp", 1, 1),
    ("ReduceMax", 1, 1),
    ("ReduceMean", 1, 1),
    ("ReduceMin", 1, 1),
    ("ReduceProd", 1, 1),
    ("ReduceSum", 1, 1),
    ("ReduceSumSquare", 1, 1),
    ("Reshape", 1, 1),
    ("Resize", 1, 3),
    ("RotaryEmbedding", 1, 2),
    ("STFT", 1, 3),
    ("Slice", 1, 4),
    ("Split", 1, 1),
    ("SplitToSequence", 1, 1),
    ("Squeeze", 1, 1),
    ("Tile", 1, 2),
    ("TopK", 1, 1),
    ("Trilu", 1, 1),
    ("Unsqueeze", 1, 1),
    ("Upsample", 1, 1),
];

/// Whether an input of the graph is one that a model holds as a constant.
pub(crate) fn constant(graph: &GraphProto, input: &str) -> bool {
    graph.node.iter().any(|node| used_as_constant(node, input))
}

/// Turns inputs of a graph into initializers of these values.
pub(crate) fn fold(graph: &mut GraphProto, values: &[TensorProto]) {
    graph.input.retain(|input| values.iter().all(|value| value.name != input.name));
    graph.initializer.extend_from_slice(values);
}

fn used_as_constant(node: &NodeProto, input: &str) -> bool {
    let constant = |at: usize| {
        CONSTANT.iter().any(|(operator, first, count)| {
            *operator == node.op_type && (*first..first + count).contains(&at)
        })
    };
    let inside = node.attribute.iter().flat_map(|attribute| &attribute.g);
    let inside = inside.into_iter().any(|graph| self::constant(graph, input));
    inside || node.input.iter().enumerate().any(|(at, name)| name == input && constant(at))
}
