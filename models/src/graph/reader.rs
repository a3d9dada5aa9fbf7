//! Walks a model's nodes in order and builds the graph.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::constants::Numbers;
use super::context::Context;
use super::random::Mask;
use super::{
    ELEMENTS_MAX, Graph, GraphError, Node, Op, Origin, Shape, Value, ValueId, operators, tail,
};
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
    /// A softmax or sigmoid, by its place in [`Reader::squashed`]: the last one of a model is not
    /// computed in training.
    Squashed(usize),
    /// Integers that are known beforehand.
    Numbers,
    /// Random numbers on their way to a dropout, by their place in [`Reader::masks`].
    Mask(usize),
    /// What the model's last nodes make of the logits: labels, named probabilities.
    Tail(Source),
}

/// What a tail is computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Value(ValueId),
    Squashed(usize),
}

/// A softmax or sigmoid that no node has taken so far.
#[derive(Debug)]
pub(super) struct Squashed {
    pub(super) logits: ValueId,
    op: Op,
    label: String,
    output: String,
    /// The value, once there is one.
    pub(super) made: Option<ValueId>,
}

/// What a node turns into.
pub(super) enum Made {
    /// A node of the graph.
    Node { op: Op, inputs: Vec<ValueId>, states: Vec<ValueId>, dims: Vec<usize> },
    /// Another name for something.
    Same(Item),
    /// A softmax or sigmoid of these logits.
    Squashed { logits: ValueId, op: Op },
    /// Random numbers.
    Mask(Mask),
    /// The names were taken care of.
    Nothing,
}

/// The graph as far as it is read.
pub(super) struct Reader<'m> {
    pub(super) opset: i64,
    pub(super) names: BTreeMap<&'m str, Item>,
    pub(super) tensors: BTreeMap<&'m str, Tensor<'m>>,
    pub(super) numbers: BTreeMap<&'m str, Numbers>,
    pub(super) squashed: Vec<Squashed>,
    pub(super) masks: Vec<Mask>,
    pub(super) values: Vec<Value>,
    pub(super) nodes: Vec<Node>,
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
    let mut reader = Reader {
        opset,
        names,
        tensors,
        numbers: BTreeMap::new(),
        squashed: Vec::new(),
        masks: Vec::new(),
        values: Vec::new(),
        nodes: Vec::new(),
        fixed_batch: None,
    };
    let input = reader.add_input(input)?;
    for node in &proto.node {
        reader.add_node(node)?;
    }
    let outputs: Vec<&str> = proto.output.iter().map(|info| info.name.as_str()).collect();
    let (output, last) = reader.output(&outputs)?;
    let tail = |name: &&str| matches!(reader.names.get(name), Some(Item::Tail(_)));
    let exact = outputs.len() == 1 && !outputs.iter().any(tail);
    let Reader { values, nodes, fixed_batch, .. } = reader;
    let graph = Graph { values, nodes, input, output, last, fixed_batch, exact };
    check_logits(&graph, outputs[0])?;
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
    if logits.origin != Origin::Node {
        return Err(GraphError::Graph(format!("output {name:?} is not computed by any node")));
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
        let mut context = Context { reader: self, node, label: label.clone() };
        if output.is_empty() {
            return Err(context.problem("it has no output".to_owned()));
        }
        if context.reader.names.contains_key(output) {
            return Err(context.problem(format!("output {output:?} is already there")));
        }
        if let Some(source) = tail::source(&context)? {
            for name in &node.output {
                self.names.insert(name, Item::Tail(source));
            }
            return Ok(());
        }
        let Some(read) = operators::reader(&node.domain, &node.op_type) else {
            return Err(unsupported(node, label));
        };
        let item = match read(&mut context)? {
            Made::Nothing => return Ok(()),
            Made::Same(item) => item,
            Made::Squashed { logits, op } => {
                let (output, made) = (output.to_owned(), None);
                self.squashed.push(Squashed { logits, op, label, output, made });
                Item::Squashed(self.squashed.len() - 1)
            }
            Made::Mask(mask) => {
                self.masks.push(mask);
                Item::Mask(self.masks.len() - 1)
            }
            Made::Node { op, inputs, states, dims } => {
                let id = self.add_value(&label, output, Shape::batched(&dims), Origin::Node)?;
                self.nodes.push(Node { name: label, op, inputs, states, output: id });
                Item::Value(id)
            }
        };
        self.names.insert(output, item);
        Ok(())
    }

    /// The value of a softmax or sigmoid that a node takes.
    pub(super) fn squash(&mut self, index: usize) -> Result<ValueId, GraphError> {
        if let Some(id) = self.squashed[index].made {
            return Ok(id);
        }
        let node = self.squash_node(index)?;
        let id = node.output;
        self.nodes.push(node);
        self.squashed[index].made = Some(id);
        Ok(id)
    }

    fn squash_node(&mut self, index: usize) -> Result<Node, GraphError> {
        let Squashed { logits, op, label, output, .. } = &self.squashed[index];
        let (logits, op, name, output) = (*logits, op.clone(), label.clone(), output.clone());
        let shape = self.values[logits.0].shape.clone();
        let output = self.add_value(&name, &output, shape, Origin::Node)?;
        Ok(Node { name, op, inputs: vec![logits], states: Vec::new(), output })
    }

    /// The logits behind the model's outputs, and what the model makes of them last.
    fn output(&mut self, names: &[&str]) -> Result<(ValueId, Option<Node>), GraphError> {
        let problem = |text: String| Err(GraphError::Graph(text));
        let mut sources = Vec::new();
        for name in names {
            let source = match self.names.get(name) {
                Some(Item::Value(id)) => Source::Value(*id),
                Some(Item::Squashed(index)) => Source::Squashed(*index),
                Some(Item::Tail(source)) => *source,
                Some(Item::Tensor | Item::Numbers | Item::Mask(_)) | None => {
                    return problem(format!("output {name:?} is not computed by any node"));
                }
            };
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        // Labels are often taken from the logits, beside probabilities of the same.
        if let [Source::Value(id), Source::Squashed(index)]
        | [Source::Squashed(index), Source::Value(id)] = *sources
            && self.squashed[index].logits == id
        {
            sources = vec![Source::Squashed(index)];
        }
        match sources.as_slice() {
            [Source::Value(id)] => Ok((*id, None)),
            [Source::Squashed(index)] => {
                if matches!(self.squashed[*index].op, Op::Softmax { axis: 1.., .. }) {
                    return Ok((self.squash(*index)?, None));
                }
                let node = self.squash_node(*index)?;
                Ok((self.squashed[*index].logits, Some(node)))
            }
            _ => problem(format!(
                "expected one output (the logits), or several made of the same logits, found \
                 {names:?}: export the model with one output"
            )),
        }
    }
}

fn unsupported(node: &NodeProto, label: String) -> GraphError {
    let own = matches!(node.domain.as_str(), "" | "ai.onnx");
    GraphError::Operator {
        node: label,
        operator: if own {
            node.op_type.clone()
        } else {
            format!("{}.{}", node.domain, node.op_type)
        },
        purpose: "training",
        advice: format!(
            "export the model without it, or with operators that are: {}",
            operators::names()
        ),
    }
}
