//! Walks a model's nodes in order and builds the graph.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::constants::Numbers;
use super::context::Context;
use super::{ELEMENTS_MAX, Graph, GraphError, Node, Op, Origin, Shape, Value, ValueId, operators};
use crate::onnx::{FLOAT, ModelProto, NodeProto, TensorProto, data_type_name};

/// Operator sets whose meaning is known.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=24;

/// A tensor of the file or of a `Constant` node.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'m> {
    pub(super) proto: Cow<'m, TensorProto>,
    pub(super) constant: bool,
}

impl<'m> Tensor<'m> {
    /// One that no training changes.
    pub(super) fn constant(proto: Cow<'m, TensorProto>) -> Self {
        Self { proto, constant: true }
    }
}

/// What a name in the model stands for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Item {
    /// A tensor that no node has used as a value so far.
    Tensor,
    /// A value of the graph.
    Value(ValueId),
    /// The output of a softmax over these logits, which only the model's output may be.
    Probabilities(ValueId),
    /// Integers that are known beforehand.
    Numbers,
}

/// What a node turns into.
pub(super) enum Made {
    /// A node of the graph.
    Node { op: Op, inputs: Vec<ValueId>, states: Vec<ValueId>, dims: Vec<usize> },
    /// Another name for a value.
    Same(ValueId),
    /// A softmax over these logits.
    Probabilities(ValueId),
    /// The names were taken care of.
    Nothing,
}

/// The graph as far as it is read.
pub(super) struct Reader<'m> {
    pub(super) opset: i64,
    pub(super) names: BTreeMap<&'m str, Item>,
    pub(super) tensors: BTreeMap<&'m str, Tensor<'m>>,
    pub(super) numbers: BTreeMap<&'m str, Numbers>,
    pub(super) values: Vec<Value>,
    nodes: Vec<Node>,
    /// The first axis that the model declares, if it is a number.
    pub(super) fixed_batch: Option<usize>,
}

pub(super) fn read(model: &ModelProto) -> Result<Graph, GraphError> {
    let problem = |text: String| Err(GraphError::Graph(text));
    let Some(proto) = &model.graph else { return problem("there is none".to_owned()) };
    let opset = model.opset().unwrap_or(0);
    if !OPSETS.contains(&opset) {
        return problem(format!(
            "operator set {opset} is not supported: export with one from {} to {}",
            OPSETS.start(),
            OPSETS.end()
        ));
    }
    let mut names = BTreeMap::new();
    let mut tensors = BTreeMap::new();
    for tensor in &proto.initializer {
        if names.insert(tensor.name.as_str(), Item::Tensor).is_some() {
            return problem(format!("initializer {:?} is there twice", tensor.name));
        }
        let proto = Cow::Borrowed(tensor);
        tensors.insert(tensor.name.as_str(), Tensor { proto, constant: false });
    }
    let inputs: Vec<_> =
        proto.input.iter().filter(|info| !names.contains_key(info.name.as_str())).collect();
    let [input] = inputs.as_slice() else {
        let found: Vec<_> = inputs.iter().map(|info| info.name.as_str()).collect();
        return problem(format!("expected one input, found {found:?}"));
    };
    let [output] = proto.output.as_slice() else {
        let found: Vec<_> = proto.output.iter().map(|info| info.name.as_str()).collect();
        return problem(format!("expected one output (the logits), found {found:?}"));
    };
    let mut reader = Reader {
        opset,
        names,
        tensors,
        numbers: BTreeMap::new(),
        values: Vec::new(),
        nodes: Vec::new(),
        fixed_batch: None,
    };
    let input_id = reader.add_input(input)?;
    for node in &proto.node {
        reader.add_node(node)?;
    }
    let output_id = match reader.names.get(output.name.as_str()) {
        Some(Item::Value(id) | Item::Probabilities(id)) => *id,
        Some(Item::Tensor | Item::Numbers) | None => {
            return problem(format!("output {:?} is not computed by any node", output.name));
        }
    };
    let graph = Graph {
        values: reader.values,
        nodes: reader.nodes,
        input: input_id,
        output: output_id,
        fixed_batch: reader.fixed_batch,
    };
    check_logits(&graph, &output.name)?;
    Ok(graph)
}

fn check_logits(graph: &Graph, name: &str) -> Result<(), GraphError> {
    let logits = graph.value(graph.output);
    let dims = &logits.shape.dims;
    let flat = dims.len() == 1 || dims.iter().skip(1).all(|extent| *extent == 1);
    if !logits.shape.batched || dims.first().is_none_or(|classes| *classes == 0) || !flat {
        return Err(GraphError::Graph(format!(
            "output {name:?}: expected logits of shape [n, classes], found {}",
            describe(&logits.shape)
        )));
    }
    if graph.values.iter().all(|value| value.origin != Origin::Weight) {
        return Err(GraphError::Graph("it has no weights to train".to_owned()));
    }
    Ok(())
}

/// A shape in words, such as `[n, 3, 32, 32]`.
pub(super) fn describe(shape: &Shape) -> String {
    let extents = shape.batched.then(|| "n".to_owned()).into_iter();
    let extents: Vec<String> = extents.chain(shape.dims.iter().map(usize::to_string)).collect();
    format!("[{}]", extents.join(", "))
}

impl<'m> Reader<'m> {
    fn add_input(&mut self, input: &'m crate::onnx::ValueInfoProto) -> Result<ValueId, GraphError> {
        let problem = |text: String| {
            GraphError::Graph(format!("input {:?}: expected floats [n, ...], {text}", input.name))
        };
        let (element, shape) =
            input.tensor().ok_or_else(|| problem("found no tensor shape".to_owned()))?;
        if element != FLOAT {
            return Err(problem(format!("found {}", data_type_name(element))));
        }
        let Some((batch, example)) = shape.split_first() else {
            return Err(problem("found a scalar".to_owned()));
        };
        self.fixed_batch = *batch;
        let dims = example
            .iter()
            .enumerate()
            .map(|(axis, extent)| {
                extent
                    .filter(|extent| *extent > 0)
                    .ok_or_else(|| problem(format!("axis {} is open: fix it", axis + 1)))
            })
            .collect::<Result<Vec<_>, _>>()?;
        if dims.is_empty() {
            return Err(problem("found only the batch axis".to_owned()));
        }
        let label = input.name.clone();
        let id = self.add_value(&label, &input.name, Shape::batched(&dims), Origin::Input)?;
        self.names.insert(&input.name, Item::Value(id));
        Ok(id)
    }

    pub(super) fn add_value(
        &mut self,
        node: &str,
        name: &str,
        shape: Shape,
        origin: Origin,
    ) -> Result<ValueId, GraphError> {
        let product = |a: usize, b: &usize| a.checked_mul(*b).filter(|all| *all <= ELEMENTS_MAX);
        if shape.dims.iter().try_fold(1, product).is_none_or(|elements| elements == 0) {
            return Err(GraphError::Shape {
                node: node.to_owned(),
                expected: format!("values with 1 to {ELEMENTS_MAX} elements"),
                found: describe(&shape),
            });
        }
        let id = ValueId(self.values.len());
        self.values.push(Value { name: name.to_owned(), shape, origin, initial: Vec::new() });
        Ok(id)
    }

    fn add_node(&mut self, node: &'m NodeProto) -> Result<(), GraphError> {
        let output = node.output.first().map_or("", String::as_str);
        let label = if node.name.is_empty() {
            format!("{} -> {output}", node.op_type)
        } else {
            node.name.clone()
        };
        let foreign = !matches!(node.domain.as_str(), "" | "ai.onnx");
        let unsupported = || GraphError::Operator {
            node: label.clone(),
            operator: if foreign {
                format!("{}.{}", node.domain, node.op_type)
            } else {
                node.op_type.clone()
            },
            purpose: "training",
        };
        let read = operators::reader(&node.op_type).filter(|_| !foreign).ok_or_else(unsupported)?;
        let mut context = Context { reader: self, node, label: label.clone() };
        if output.is_empty() {
            return Err(context.problem("it has no output".to_owned()));
        }
        if context.reader.names.contains_key(output) {
            return Err(context.problem(format!("output {output:?} is already there")));
        }
        let item = match read(&mut context)? {
            Made::Nothing => return Ok(()),
            Made::Same(id) => Item::Value(id),
            Made::Probabilities(id) => Item::Probabilities(id),
            Made::Node { op, inputs, states, dims } => {
                let id = self.add_value(&label, output, Shape::batched(&dims), Origin::Node)?;
                self.nodes.push(Node { name: label, op, inputs, states, output: id });
                Item::Value(id)
            }
        };
        self.names.insert(output, item);
        Ok(())
    }
}
