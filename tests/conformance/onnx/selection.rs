//! Which of the ONNX project's tests an engine for inference is asked.

use models::onnx::{GraphProto, NodeProto, TensorProto, TypeValue, ValueInfoProto, data_type_name};

use super::tensors;

/// Operators of convolutional networks: what the built-in families and the models of
/// `../shared/data/models` are made of, and what stands in their place in others.
const VISION: [&str; 66] = [
    "Add",
    "ArgMax",
    "AveragePool",
    "BatchNormalization",
    "Celu",
    "Clip",
    "Concat",
    "Constant",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "DepthToSpace",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Elu",
    "Exp",
    "Flatten",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LRN",
    "LeakyRelu",
    "LogSoftmax",
    "MatMul",
    "MatMulInteger",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mish",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Resize",
    "Selu",
    "Sigmoid",
    "Slice",
    "Softmax",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Transpose",
    "Unsqueeze",
    "Upsample",
];

/// Operators whose answers are drawn at random.
const RANDOM: [&str; 6] = [
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
];

/// Operators that train.
const TRAINING: &str = "ai.onnx.preview.training";

/// Tests whose expected outputs the ONNX project corrected in later versions.
///
/// Zeros divided by a norm of 0 are 0, as the operator's definition says; quantised products are
/// saturated instead of wrapped around; attention takes the soft cap before it adds the mask.
const CORRECTED: [&str; 7] = [
    "test_attention_3d_with_past_and_present_qk_matmul_softcap",
    "test_attention_4d_with_qk_matmul_softcap",
    "test_l2normalization_axis_0",
    "test_qlinearmatmul_2D_int8_float16",
    "test_qlinearmatmul_2D_int8_float32",
    "test_qlinearmatmul_3D_int8_float16",
    "test_qlinearmatmul_3D_int8_float32",
];

/// Only tensors of numbers that are host tensors, or [become such](super::boundary), are fed.
pub(crate) fn check_type(value: &ValueInfoProto) -> Result<(), String> {
    match value.r#type.as_ref().and_then(|r#type| r#type.value.as_ref()) {
        Some(TypeValue::Tensor(tensor)) => match tensor.elem_type {
            17..=20 | 24 => Err("8-bit floats".to_owned()),
            21..=23 => Err("4-bit numbers".to_owned()),
            number if tensors::host(number).is_some() => Ok(()),
            number => Err(format!("elements of {}", data_type_name(number))),
        },
        Some(
            TypeValue::Sequence(_)
            | TypeValue::Map(_)
            | TypeValue::SparseTensor(_)
            | TypeValue::Optional(_),
        )
        | None => Err("sequences and optionals".to_owned()),
    }
}

/// Leaves out what has no answer of its own or is no inference.
pub(crate) fn check(name: &str, graph: &GraphProto, inputs: &[TensorProto]) -> Result<(), String> {
    let any = |what: &dyn Fn(&NodeProto) -> bool| graph.node.iter().any(what);
    if any(&|node| RANDOM.contains(&node.op_type.as_str())) {
        return Err("random answers".to_owned());
    }
    if any(&|node| node.domain == TRAINING || drops(node, inputs)) {
        return Err("training".to_owned());
    }
    if CORRECTED.contains(&name) {
        return Err("corrected later".to_owned());
    }
    Ok(())
}

/// Whether a node is a dropout that drops.
fn drops(node: &NodeProto, inputs: &[TensorProto]) -> bool {
    let input = |at: usize| {
        let name = node.input.get(at)?;
        inputs.iter().find(|input| input.name == *name).map(tensors::tensor)
    };
    let trains = input(2).is_some_and(|value| value.le_bytes() != [0]);
    let ratio = input(1).is_none_or(|value| value.as_f32() != Some(&[0.0]));
    node.op_type == "Dropout" && trains && ratio
}

/// Whether a graph is one of convolutional networks' operators alone.
pub(crate) fn vision(graph: &GraphProto) -> bool {
    graph.node.iter().all(|node| VISION.contains(&node.op_type.as_str()))
}
