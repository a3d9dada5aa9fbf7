//! A plain form of a graph, for engines that infer nothing and know few operators in few forms.
//!
//! Constants are computed, the shape of every value is written down for one batch size, batch
//! normalisation and dropout are gone, and what remains is one of [`OPERATORS`] in the form that
//! the list says. [`Plain::to_onnx`] is an ONNX file with the meaning of the original.

use super::native::exact;
use crate::artifact::TensorInfo;
use crate::graph::{Graph, GraphError, Op, folded_model};
use crate::onnx::{self, TensorProto};

mod nodes;
mod writer;

use writer::Writer;

/// The operators of a plain graph, of operator set 13, and the form that each has.
pub const OPERATORS: [(&str, &str); 17] = [
    ("Add", "two values of one rank, or a value and a constant of a lower rank; each broadcast"),
    ("AveragePool", "of [n, c, h, w] with explicit pads that count only as far as the input says"),
    ("Clip", "finite bounds with one decimal at most"),
    ("Concat", "along the first axis with an extent other than 1"),
    ("Conv", "of [n, c, h, w], with a bias; products with weights too, as kernels of 1 x 1"),
    ("Div", "as Add"),
    ("GlobalAveragePool", "of [n, c, h, w]"),
    ("MaxPool", "of [n, c, h, w] with explicit pads"),
    ("Mul", "as Add"),
    ("ReduceSum", "along axis 1 of two or three"),
    ("Relu", "of any shape"),
    ("Reshape", "to a constant shape"),
    ("Sigmoid", "of any shape"),
    ("Softmax", "along axis 1 of two or three"),
    ("Sub", "as Add"),
    ("Tanh", "of any shape"),
    ("Transpose", "in any order"),
];

/// What an operator without a plain form is not supported for.
const PURPOSE: &str = "webgpu, which runs convolutional networks";

/// A model in plain form.
#[derive(Debug)]
pub struct Plain {
    graph: Graph,
    input: TensorInfo,
    output: TensorInfo,
}

impl Plain {
    /// Reads a model and checks that it has a plain form.
    ///
    /// # Errors
    /// [`GraphError`] names the node that has none.
    pub fn read(onnx: &[u8]) -> Result<Self, GraphError> {
        let model = onnx::parse(onnx)?;
        let outputs = model.graph.iter().flat_map(|graph| &graph.output);
        let outputs: Vec<String> = outputs.map(|info| info.name.clone()).collect();
        let [output] = outputs.as_slice() else {
            return Err(GraphError::Graph(format!("expected one output, found {outputs:?}")));
        };
        let graph = Graph::read(&model).map_err(for_inference)?;
        exact::check(&model, &graph)?;
        let parameters = graph.values.iter().filter(|value| value.origin.is_parameter());
        let parameters = parameters
            .map(|value| TensorProto::from_f32(&value.name, &value.shape.dims, &value.initial));
        let folded = folded_model(&model, &graph, parameters.collect());
        let mut graph = Graph::read(&folded).map_err(for_inference)?;
        graph.with_last();
        let info = |name: &str, dims: &[usize]| TensorInfo {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: std::iter::once(-1).chain(dims.iter().copied().map(writer::wide)).collect(),
        };
        let of = graph.value(graph.input);
        let input = info(&of.name, &of.shape.dims);
        let output = info(output, &graph.value(graph.output).shape.dims);
        let plain = Self { graph, input, output };
        plain.to_onnx(1)?;
        Ok(plain)
    }

    /// The one input.
    pub fn input(&self) -> &TensorInfo {
        &self.input
    }

    /// The one output.
    pub fn output(&self) -> &TensorInfo {
        &self.output
    }

    /// Elements of the largest value that depends on the input, per example.
    pub fn widest(&self) -> usize {
        let batched = self.graph.values.iter().filter(|value| value.shape.batched);
        batched.map(|value| value.shape.elements()).max().unwrap_or(0)
    }

    /// Whether batches of more than one example have a plain form too.
    pub fn has_batches(&self) -> bool {
        !self.graph.nodes.iter().any(|node| matches!(node.op, Op::Concat { .. }))
    }

    /// The ONNX file for batches of `batch`.
    ///
    /// # Errors
    /// [`GraphError`] names the node that has no plain form.
    pub fn to_onnx(&self, batch: usize) -> Result<Vec<u8>, GraphError> {
        let mut writer = Writer::new(&self.graph, batch, &self.input.name, &self.output.name);
        for node in &self.graph.nodes {
            nodes::write(&mut writer, node)?;
        }
        Ok(writer.finish().to_bytes())
    }
}

/// The same error, for somebody who does not want to train.
fn for_inference(error: GraphError) -> GraphError {
    match error {
        GraphError::Operator { node, operator, .. } => GraphError::Operator {
            node,
            operator,
            purpose: PURPOSE,
            advice: "another engine may run it".to_owned(),
        },
        other @ (GraphError::NotOnnx(_)
        | GraphError::Shape { .. }
        | GraphError::Node { .. }
        | GraphError::Graph(_)) => other,
    }
}

#[cfg(test)]
#[cfg(feature = "tract")]
mod tests;
