//! Writes the nodes, constants and shapes of a plain graph.

use crate::graph::{Graph, GraphError, Node, Origin, ValueId};
use crate::onnx::{
    AttributeProto, Dimension, DimensionValue, FLOAT, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue,
    ValueInfoProto,
};

/// The operator set of plain graphs.
const OPSET: i64 = 13;
/// The version of the file format that came with it.
const IR_VERSION: i64 = 7;

/// A value that is there: its name and extents, the batch first.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) name: String,
    pub(super) dims: Vec<usize>,
}

/// A plain graph under construction.
pub(super) struct Writer<'g> {
    graph: &'g Graph,
    batch: usize,
    proto: GraphProto,
    output: String,
    /// Where the graph's values are, by index.
    places: Vec<Option<Place>>,
    made: usize,
    /// The node of the original that is written, and how many nodes it has become.
    node: String,
    parts: usize,
}

impl<'g> Writer<'g> {
    pub(super) fn new(graph: &'g Graph, batch: usize, input: &str, output: &str) -> Self {
        let mut writer = Self {
            graph,
            batch,
            proto: GraphProto { name: "plain".to_owned(), ..GraphProto::default() },
            output: output.to_owned(),
            places: vec![None; graph.values.len()],
            made: 0,
            node: String::new(),
            parts: 0,
        };
        let place = Place { name: input.to_owned(), dims: writer.dims(graph.input) };
        writer.proto.input.push(info(&place));
        writer.places[graph.input.0] = Some(place);
        writer
    }

    pub(super) fn finish(mut self) -> ModelProto {
        if let Some(place) = &self.places[self.graph.output.0] {
            self.proto.output.push(info(place));
        }
        let version = Some(OPSET);
        ModelProto {
            ir_version: Some(IR_VERSION),
            opset_import: vec![OperatorSetIdProto { version, ..OperatorSetIdProto::default() }],
            graph: Some(self.proto),
            ..ModelProto::default()
        }
    }

    pub(super) fn begin(&mut self, node: &Node) {
        self.node.clone_from(&node.name);
        self.parts = 0;
    }

    /// Extents of one of the graph's values, the batch first where it has one.
    pub(super) fn dims(&self, id: ValueId) -> Vec<usize> {
        let shape = &self.graph.value(id).shape;
        let batch = shape.batched.then_some(self.batch);
        batch.into_iter().chain(shape.dims.iter().copied()).collect()
    }

    /// A value that depends on the input.
    pub(super) fn place(&self, id: ValueId) -> Result<Place, GraphError> {
        let place = self.places[id.0].clone();
        place.ok_or_else(|| self.problem("it takes a constant in the place of a value"))
    }

    /// Extents and numbers of a constant; `None` for a value that depends on the input.
    pub(super) fn constant(&self, id: ValueId) -> Option<(&'g [usize], &'g [f32])> {
        let value = self.graph.value(id);
        match value.origin {
            Origin::Input | Origin::Node => None,
            Origin::Weight | Origin::State | Origin::Frozen | Origin::Constant => {
                Some((&value.shape.dims, &value.initial))
            }
        }
    }

    /// A weight, which is always known.
    pub(super) fn weight(&self, id: ValueId) -> Result<(&'g [usize], &'g [f32]), GraphError> {
        self.constant(id).ok_or_else(|| self.problem("its weights depend on the input"))
    }

    pub(super) fn problem(&self, problem: &str) -> GraphError {
        GraphError::Node { node: self.node.clone(), problem: problem.to_owned() }
    }

    /// A constant of the file; its name.
    pub(super) fn tensor(&mut self, dims: &[usize], values: &[f32]) -> String {
        let name = self.fresh();
        self.proto.initializer.push(TensorProto::from_f32(&name, dims, values));
        name
    }

    /// Integers of the file; their name.
    pub(super) fn integers(&mut self, values: &[i64]) -> String {
        let name = self.fresh();
        self.proto.initializer.push(TensorProto::from_i64(&name, values));
        name
    }

    /// A node and the value that it gives.
    pub(super) fn push(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
        dims: Vec<usize>,
    ) -> Place {
        let place = Place { name: self.fresh(), dims };
        self.proto.value_info.push(info(&place));
        self.parts += 1;
        let name = match self.parts {
            1 => self.node.clone(),
            part => format!("{}/{part}", self.node),
        };
        let node = NodeProto::new(&name, operator, inputs, &[&place.name]).with(attributes);
        self.proto.node.push(node);
        place
    }

    /// The same elements under other extents.
    pub(super) fn reshape(&mut self, place: Place, dims: &[usize]) -> Place {
        if place.dims == dims { place } else { self.push_reshape(&place, dims) }
    }

    fn push_reshape(&mut self, place: &Place, dims: &[usize]) -> Place {
        let target: Vec<i64> = dims.iter().copied().map(wide).collect();
        let target = self.integers(&target);
        self.push("Reshape", &[&place.name, &target], Vec::new(), dims.to_vec())
    }

    /// What a node of the original gives.
    pub(super) fn define(&mut self, output: ValueId, place: Place) {
        let dims = self.dims(output);
        let mut place = self.reshape(place, &dims);
        if output == self.graph.output {
            if self.places.iter().flatten().any(|other| other.name == place.name) {
                place = self.push_reshape(&place, &dims);
            }
            self.rename(&mut place);
        }
        self.places[output.0] = Some(place);
    }

    /// Gives a value that no node has taken so far the name that the model declares.
    fn rename(&mut self, place: &mut Place) {
        let names = self.proto.node.iter_mut().flat_map(|node| &mut node.output);
        for name in names.filter(|name| **name == place.name) {
            name.clone_from(&self.output);
        }
        self.proto.value_info.retain(|info| info.name != place.name);
        place.name.clone_from(&self.output);
    }

    fn fresh(&mut self) -> String {
        self.made += 1;
        format!("plain/{}", self.made)
    }
}

/// A declared value of fixed extents.
fn info(place: &Place) -> ValueInfoProto {
    let extent = |extent: &usize| Dimension {
        value: Some(DimensionValue::Value(wide(*extent))),
        ..Dimension::default()
    };
    let shape = TensorShapeProto { dim: place.dims.iter().map(extent).collect() };
    let tensor = TensorTypeProto { elem_type: FLOAT, shape: Some(shape) };
    let value = Some(TypeValue::Tensor(tensor));
    ValueInfoProto {
        name: place.name.clone(),
        r#type: Some(TypeProto { value, ..TypeProto::default() }),
        ..ValueInfoProto::default()
    }
}

pub(super) fn wide(extent: usize) -> i64 {
    i64::try_from(extent).unwrap_or(i64::MAX)
}
