//! Walks a model's nodes in order and builds the graph.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::{ELEMENTS_MAX, Graph, GraphError, Node, Op, Origin, Shape, Value, ValueId, operators};
use crate::onnx::{AttributeProto, FLOAT, ModelProto, NodeProto, TensorProto, data_type_name};

/// Operator sets whose meaning is known.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=24;

/// A tensor of the file or of a `Constant` node.
#[derive(Debug, Clone)]
pub(super) struct Tensor<'m> {
    proto: Cow<'m, TensorProto>,
    constant: bool,
}

impl<'m> Tensor<'m> {
    /// One that no training changes.
    pub(super) fn constant(proto: Cow<'m, TensorProto>) -> Self {
        Self { proto, constant: true }
    }
}

/// What a name in the model stands for.
#[derive(Debug, Clone, Copy)]
enum Item {
    /// A tensor that no node has used as a value so far.
    Tensor,
    /// A value of the graph.
    Value(ValueId),
    /// The output of a softmax over these logits, which only the model's output may be.
    Probabilities(ValueId),
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
struct Reader<'m> {
    opset: i64,
    names: BTreeMap<&'m str, Item>,
    tensors: BTreeMap<&'m str, Tensor<'m>>,
    values: Vec<Value>,
    nodes: Vec<Node>,
    /// The first axis that the model declares, if it is a number.
    fixed_batch: Option<usize>,
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
    let mut reader =
        Reader { opset, names, tensors, values: Vec::new(), nodes: Vec::new(), fixed_batch: None };
    let input_id = reader.add_input(input)?;
    for node in &proto.node {
        reader.add_node(node)?;
    }
    let output_id = match reader.names.get(output.name.as_str()) {
        Some(Item::Value(id) | Item::Probabilities(id)) => *id,
        Some(Item::Tensor) | None => {
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

    fn add_value(
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

/// One node while it is read: its inputs, attributes, and errors that name it.
pub(super) struct Context<'r, 'm> {
    reader: &'r mut Reader<'m>,
    node: &'m NodeProto,
    label: String,
}

impl<'m> Context<'_, 'm> {
    pub(super) fn opset(&self) -> i64 {
        self.reader.opset
    }

    /// The batch size that the model was exported with, if it is fixed.
    pub(super) fn fixed_batch(&self) -> Option<usize> {
        self.reader.fixed_batch
    }

    pub(super) fn problem(&self, problem: String) -> GraphError {
        GraphError::Node { node: self.label.clone(), problem }
    }

    pub(super) fn misfit(&self, expected: impl Into<String>, found: &Shape) -> GraphError {
        GraphError::Shape {
            node: self.label.clone(),
            expected: expected.into(),
            found: describe(found),
        }
    }

    /// Whether input `index` is given.
    pub(super) fn has(&self, index: usize) -> bool {
        self.node.input.get(index).is_some_and(|name| !name.is_empty())
    }

    fn item(&self, index: usize) -> Result<(&'m str, Item), GraphError> {
        let name = self.node.input.get(index).map_or("", String::as_str);
        if name.is_empty() {
            return Err(self.problem(format!("input {index} is missing")));
        }
        match self.reader.names.get(name) {
            Some(item) => Ok((name, *item)),
            None => {
                Err(self.problem(format!("input {name:?} is not computed by a node before it")))
            }
        }
    }

    /// Input `index` as a value: computed, or a tensor that becomes a weight (a constant if it
    /// comes from a `Constant` node or has no axes).
    pub(super) fn operand(&mut self, index: usize) -> Result<ValueId, GraphError> {
        let (name, item) = self.item(index)?;
        match item {
            Item::Value(id) => Ok(id),
            Item::Tensor => {
                let tensor = &self.reader.tensors[name];
                let constant = tensor.constant || tensor.proto.dims.is_empty();
                let origin = if constant { Origin::Constant } else { Origin::Weight };
                self.tensor_value(name, origin)
            }
            Item::Probabilities(_) => Err(self.problem(format!(
                "input {name:?} is a softmax's output, which only the model's output may be"
            ))),
        }
    }

    /// Input `index` as a value with a batch axis; its extents without that axis.
    pub(super) fn activation(&mut self, index: usize) -> Result<(ValueId, Vec<usize>), GraphError> {
        let id = self.operand(index)?;
        let shape = self.shape(id);
        if shape.batched {
            Ok((id, shape.dims.clone()))
        } else {
            let problem = "is not computed from the model's input, expected so here";
            Err(self.problem(format!("input {:?} {problem}", self.node.input[index])))
        }
    }

    /// Input `index` as a weight (or constant) of `rank` axes.
    pub(super) fn weight(
        &mut self,
        index: usize,
        rank: usize,
    ) -> Result<(ValueId, Vec<usize>), GraphError> {
        let id = self.operand(index)?;
        let shape = self.shape(id);
        if shape.batched || shape.dims.len() != rank {
            let what = format!("input {:?} to be a weight of {rank} axes", self.node.input[index]);
            return Err(self.misfit(what, shape));
        }
        Ok((id, shape.dims.clone()))
    }

    /// Input `index` as a weight of this length.
    pub(super) fn vector(&mut self, index: usize, length: usize) -> Result<ValueId, GraphError> {
        let (id, dims) = self.weight(index, 1)?;
        if dims == [length] {
            return Ok(id);
        }
        let what = format!("input {:?} of shape [{length}]", self.node.input[index]);
        Err(self.misfit(what, self.shape(id)))
    }

    /// Input `index` as running statistics of this length.
    pub(super) fn state(&mut self, index: usize, length: usize) -> Result<ValueId, GraphError> {
        let (name, item) = self.item(index)?;
        let id = match item {
            Item::Tensor => self.tensor_value(name, Origin::State)?,
            Item::Value(id) if self.reader.values[id.0].origin == Origin::State => id,
            Item::Value(_) | Item::Probabilities(_) => {
                return Err(self.problem(format!("input {name:?}: expected an initializer")));
            }
        };
        let shape = self.shape(id);
        if shape.dims == [length] {
            return Ok(id);
        }
        Err(self.misfit(format!("input {name:?} of shape [{length}]"), shape))
    }

    /// Input `index` as integers that are known beforehand.
    pub(super) fn integers(&self, index: usize) -> Result<Vec<i64>, GraphError> {
        let (name, item) = self.item(index)?;
        let problem = |text: &str| self.problem(format!("input {name:?}: {text}"));
        match item {
            Item::Tensor => {
                let tensor = &self.reader.tensors[name].proto;
                tensor.to_i64().map(|(_, values)| values).map_err(|text| problem(&text))
            }
            Item::Value(_) | Item::Probabilities(_) => Err(problem("expected constant integers")),
        }
    }

    /// Input `index` as one float that is known beforehand.
    pub(super) fn scalar(&self, index: usize) -> Result<f32, GraphError> {
        let (name, item) = self.item(index)?;
        let problem = |text: &str| self.problem(format!("input {name:?}: {text}"));
        let values = match item {
            Item::Tensor => {
                let tensor = &self.reader.tensors[name].proto;
                tensor.to_f32().map_err(|text| problem(&text))?.1
            }
            Item::Value(id) => self.reader.values[id.0].initial.clone(),
            Item::Probabilities(_) => Vec::new(),
        };
        match values.as_slice() {
            [value] => Ok(*value),
            _ => Err(problem("expected one constant float")),
        }
    }

    fn tensor_value(&mut self, name: &'m str, origin: Origin) -> Result<ValueId, GraphError> {
        let tensor = &self.reader.tensors[name].proto;
        let (dims, initial) =
            tensor.to_f32().map_err(|text| self.problem(format!("input {name:?}: {text}")))?;
        let label = self.label.clone();
        let id = self.reader.add_value(&label, name, Shape { batched: false, dims }, origin)?;
        self.reader.values[id.0].initial = initial;
        self.reader.names.insert(name, Item::Value(id));
        Ok(id)
    }

    pub(super) fn shape(&self, id: ValueId) -> &Shape {
        &self.reader.values[id.0].shape
    }

    /// Lets this node's output stand for a tensor.
    pub(super) fn define(&mut self, tensor: Tensor<'m>) {
        let name = self.node.output[0].as_str();
        self.reader.names.insert(name, Item::Tensor);
        self.reader.tensors.insert(name, tensor);
    }

    /// The tensor that input `index` names, if it names one.
    pub(super) fn tensor(&self, index: usize) -> Result<Option<Tensor<'m>>, GraphError> {
        let (name, _) = self.item(index)?;
        Ok(self.reader.tensors.get(name).cloned())
    }

    pub(super) fn attribute(&self, name: &str) -> Option<&'m AttributeProto> {
        self.node.attribute.iter().find(|attribute| attribute.name == name)
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |attribute| attribute.i.unwrap_or(0))
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f32 {
        self.attribute(name).map_or(default, |attribute| attribute.f.unwrap_or(0.0))
    }

    /// An attribute of integers; empty when absent.
    pub(super) fn ints(&self, name: &str) -> &'m [i64] {
        self.attribute(name).map_or(&[], |attribute| attribute.ints.as_slice())
    }
}
