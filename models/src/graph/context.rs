//! One node while it is read.

use super::constants::{Extent, NUMBERS_MAX, Numbers};
use super::reader::{Item, Reader, Tensor, describe};
use super::{GraphError, Node, Op, Origin, Shape, ValueId};
use crate::onnx::{AttributeProto, INT32, INT64, NodeProto};

/// The node's inputs, attributes, and errors that name it.
pub(super) struct Context<'r, 'm> {
    pub(super) reader: &'r mut Reader<'m>,
    pub(super) node: &'m NodeProto,
    pub(super) label: String,
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
            Item::Squashed(index) => self.reader.squash(index),
            Item::Numbers => {
                Err(self.problem(format!("input {name:?}: expected floats, found integers")))
            }
            Item::Mask(_) => Err(self.problem(format!(
                "input {name:?}: numbers that are random or as many as examples can only be part \
                 of a dropout"
            ))),
            Item::Tail(_) => {
                Err(self.problem(format!("input {name:?} is made of the model's labels")))
            }
        }
    }

    /// What input `index` names, if that is no tensor.
    pub(super) fn named(&self, index: usize) -> Result<Item, GraphError> {
        Ok(self.item(index)?.1)
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
            Item::Value(_) | Item::Squashed(_) | Item::Numbers | Item::Mask(_) | Item::Tail(_) => {
                return Err(self.problem(format!("input {name:?}: expected an initializer")));
            }
        };
        let shape = self.shape(id);
        if shape.dims == [length] {
            return Ok(id);
        }
        Err(self.misfit(format!("input {name:?} of shape [{length}]"), shape))
    }

    /// Input `index` as integers that are known beforehand, the batch size as a symbol; `None`
    /// when it is something else.
    pub(super) fn numbers(&self, index: usize) -> Result<Option<Numbers>, GraphError> {
        let (name, item) = self.item(index)?;
        match item {
            Item::Numbers => Ok(self.reader.numbers.get(name).cloned()),
            Item::Tensor if matches!(self.reader.tensors[name].proto.data_type, INT64 | INT32) => {
                let (dims, values) = self.reader.tensors[name]
                    .proto
                    .to_i64()
                    .map_err(|text| self.problem(format!("input {name:?}: {text}")))?;
                if values.len() > NUMBERS_MAX {
                    let text = format!("input {name:?} has more than {NUMBERS_MAX} integers");
                    return Err(self.problem(text));
                }
                let values = values.into_iter().map(Extent::Number).collect();
                Ok(Some(Numbers { dims, values }))
            }
            Item::Tensor | Item::Value(_) | Item::Squashed(_) | Item::Mask(_) | Item::Tail(_) => {
                Ok(None)
            }
        }
    }

    /// Input `index` as integers of at most one axis that are known beforehand, the batch size as
    /// a symbol.
    pub(super) fn extents(&self, index: usize) -> Result<Vec<Extent>, GraphError> {
        let problem =
            |text: String| self.problem(format!("input {:?}: {text}", self.node.input[index]));
        let numbers = self.numbers(index)?;
        let numbers = numbers.ok_or_else(|| problem("expected constant integers".to_owned()))?;
        if numbers.dims.len() > 1 {
            let dims = numbers.dims;
            return Err(problem(format!("expected at most one axis, found {dims:?}")));
        }
        Ok(numbers.values)
    }

    /// Input `index` as integers that are known beforehand.
    pub(super) fn integers(&self, index: usize) -> Result<Vec<i64>, GraphError> {
        let number = |extent: Extent| match extent {
            Extent::Number(number) => Ok(number),
            Extent::Batch => {
                let name = &self.node.input[index];
                Err(self.problem(format!("input {name:?} depends on the batch size")))
            }
        };
        self.extents(index)?.into_iter().map(number).collect()
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
            Item::Squashed(_) | Item::Numbers | Item::Mask(_) | Item::Tail(_) => Vec::new(),
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

    /// Axes counted from the front, of a value with `rank` of them.
    pub(super) fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>, GraphError> {
        let all = i64::try_from(rank).unwrap_or(i64::MAX);
        let count = |axis: &i64| {
            let from_front = if *axis < 0 { axis.saturating_add(all) } else { *axis };
            usize::try_from(from_front).ok().filter(|axis| *axis < rank)
        };
        let counted: Option<Vec<usize>> = axes.iter().map(count).collect();
        counted.ok_or_else(|| self.problem(format!("axes {axes:?}: there are {rank}")))
    }

    /// Adds a node of which the file knows nothing, before this one.
    pub(super) fn push(
        &mut self,
        op: Op,
        inputs: Vec<ValueId>,
        dims: &[usize],
    ) -> Result<ValueId, GraphError> {
        let name = self.label.clone();
        let shape = Shape::batched(dims);
        let output = self.reader.add_value(&name, "", shape, Origin::Node)?;
        self.reader.nodes.push(Node { name, op, inputs, states: Vec::new(), output });
        Ok(output)
    }

    /// Adds numbers of which the file knows nothing.
    pub(super) fn push_constant(
        &mut self,
        dims: Vec<usize>,
        values: Vec<f32>,
    ) -> Result<ValueId, GraphError> {
        let label = self.label.clone();
        let shape = Shape { batched: false, dims };
        let id = self.reader.add_value(&label, "", shape, Origin::Constant)?;
        self.reader.values[id.0].initial = values;
        Ok(id)
    }

    /// Number of inputs, those left out at the end not counted.
    pub(super) fn inputs(&self) -> usize {
        self.node.input.len()
    }

    /// Lets this node's output stand for integers that are known beforehand.
    pub(super) fn define_numbers(&mut self, numbers: Numbers) {
        let name = self.node.output[0].as_str();
        self.reader.names.insert(name, Item::Numbers);
        self.reader.numbers.insert(name, numbers);
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

    /// Integers that older operator sets give as an attribute and newer ones as input `index`;
    /// `None` when they are left out.
    pub(super) fn ints_or_input(
        &self,
        name: &str,
        index: usize,
    ) -> Result<Option<Vec<i64>>, GraphError> {
        if self.has(index) {
            return self.integers(index).map(Some);
        }
        Ok(self.attribute(name).map(|attribute| attribute.ints.clone()))
    }
}
