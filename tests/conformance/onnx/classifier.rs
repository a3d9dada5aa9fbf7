//! Tests in the form of classifiers, for engines that take nothing else.

use models::onnx::{
    AttributeProto, Dimension, DimensionValue, ModelProto, NodeProto, TensorProto,
    TensorShapeProto, TypeValue, ValueInfoProto,
};
use models::tensor::{Data, Tensor};

use super::boundary::SUFFIX;
use super::constants;

/// `TensorProto.DataType.FLOAT`
const FLOAT: i32 = 1;

/// Values of one example of the output, at most.
const WIDTH_MAX: usize = 1 << 14;

/// The model with one input, the others being constants, and with one output of two axes, to
/// which zeros are added, so that there is something that could be trained.
///
/// Nothing for models whose first input and output are no floats with the same first extent.
pub(crate) fn of(
    model: &ModelProto,
    inputs: &[TensorProto],
    outputs: &[TensorProto],
) -> Option<ModelProto> {
    let (input, output) = (inputs.first()?, outputs.first()?);
    let batched = |tensor: &TensorProto| tensor.data_type == FLOAT && tensor.dims.len() > 1;
    let width: i64 = output.dims.iter().skip(1).product();
    let width = usize::try_from(width).ok()?;
    let fits = batched(input) && batched(output) && input.dims[0] == output.dims[0];
    if !fits || !(1..=WIDTH_MAX).contains(&width) || input.dims.contains(&0) {
        return None;
    }
    let mut model = model.clone();
    let graph = model.graph.as_mut()?;
    if constants::constant(graph, &input.name) {
        return None;
    }
    constants::fold(graph, &inputs[1..]);
    let flat = format!("{}.flat", output.name);
    let (name, zeros) = (format!("{}{SUFFIX}", output.name), "zeros for each output");
    graph.node.push(node("Flatten", &[&output.name], &flat));
    graph.node.push(node("Add", &[&flat, zeros], &name));
    graph.initializer.push(TensorProto::from_f32(zeros, &[width], &vec![0.0; width]));
    graph.output.truncate(1);
    graph.output[0].name = name;
    declare(&mut graph.output[0], &[output.dims[0], i64::try_from(width).ok()?])?;
    Some(model)
}

/// The expected output of that model.
pub(crate) fn flat(output: &Tensor) -> Tensor {
    let examples = output.shape()[0];
    let width = output.data().len().checked_div(examples).unwrap_or_default();
    let Data::F32(values) = output.data() else { return output.clone() };
    Tensor::f32(&[examples, width], values.clone()).unwrap()
}

fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    let axis = (operator == "Flatten").then(|| AttributeProto::int("axis", 1));
    NodeProto {
        name: format!("{operator} to {output}"),
        op_type: operator.to_owned(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![output.to_owned()],
        attribute: axis.into_iter().collect(),
        ..NodeProto::default()
    }
}

fn declare(value: &mut ValueInfoProto, shape: &[i64]) -> Option<()> {
    let Some(TypeValue::Tensor(tensor)) = value.r#type.as_mut()?.value.as_mut() else {
        return None;
    };
    let extent = |extent: &i64| Dimension {
        value: Some(DimensionValue::Value(*extent)),
        ..Dimension::default()
    };
    tensor.shape = Some(TensorShapeProto { dim: shape.iter().map(extent).collect() });
    Some(())
}
