//! Builds the ONNX graph of a family, layer after layer.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::Cost;
use super::initial::{Draw, Fan};
use crate::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto,
};

/// The operator set that the graphs use.
const OPSET: i64 = 17;

/// The version of the file format that came with it.
const IR_VERSION: i64 = 8;

/// Smallest side of a picture that a first layer may halve twice.
const SIDE_MIN: usize = 64;

/// A place in the graph: a value's name and shape without the batch axis.
#[derive(Debug, Clone)]
pub(super) struct Place {
    name: String,
    dims: Vec<usize>,
}

/// A convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conv {
    maps: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
    group: usize,
    bias: bool,
}

impl Conv {
    /// So many maps, and a square kernel that keeps the picture's size.
    pub(super) fn of(maps: usize, kernel: usize) -> Self {
        Self { maps, kernel, stride: 1, pad: kernel / 2, group: 1, bias: false }
    }

    pub(super) fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    pub(super) fn pad(self, pad: usize) -> Self {
        Self { pad, ..self }
    }

    pub(super) fn group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    pub(super) fn biased(self) -> Self {
        Self { bias: true, ..self }
    }
}

/// A graph under construction; layers are added behind the current place.
pub(super) struct Builder {
    graph: GraphProto,
    place: Place,
    random: ChaCha8Rng,
    /// Whether tensors are made, or only counted.
    values: bool,
    small: bool,
    /// Of the weights of convolutions.
    fan: Fan,
    cost: Cost,
}

impl Builder {
    /// A graph with one input `[n, c, h, w]`.
    pub(super) fn new(shape: [usize; 3], seed: u64) -> Self {
        let graph = GraphProto {
            input: vec![ValueInfoProto::batched("input", "n", &shape)],
            ..GraphProto::default()
        };
        let place = Place { name: "input".to_owned(), dims: shape.to_vec() };
        let random = ChaCha8Rng::seed_from_u64(seed);
        let small = shape[1].min(shape[2]) < SIDE_MIN;
        let (values, fan, cost) = (true, Fan::In, Cost::default());
        Self { graph, place, random, values, small, fan, cost }
    }

    /// A graph that only counts what it costs.
    pub(super) fn without_values(shape: [usize; 3]) -> Self {
        Self { values: false, ..Self::new(shape, 0) }
    }

    /// The cost of all layers so far.
    pub(super) fn cost(&self) -> Cost {
        self.cost
    }

    /// Whether the examples are too small for layers that halve a picture at once.
    pub(super) fn is_small(&self) -> bool {
        self.small
    }

    /// Convolutions that follow draw their weights so that this pass keeps its variance.
    pub(super) fn keep_variance(&mut self, fan: Fan) {
        self.fan = fan;
    }

    pub(super) fn channels(&self) -> usize {
        self.place.dims[0]
    }

    pub(super) fn here(&self) -> Place {
        self.place.clone()
    }

    pub(super) fn go_to(&mut self, place: Place) {
        self.place = place;
    }

    /// The smaller of height and width.
    pub(super) fn smallest_side(&self) -> usize {
        self.place.dims[1..].iter().copied().min().unwrap_or(1)
    }

    pub(super) fn conv(&mut self, name: &str, conv: Conv) {
        let [c, h, w] = self.picture();
        let Conv { maps, kernel, stride, pad, group, bias } = conv;
        let inputs = kernel * kernel * (c / group);
        let shape = [maps, c / group, kernel, kernel];
        let fan = match self.fan {
            Fan::In => inputs,
            // Groups are not counted, as PyTorch has it.
            Fan::Out => kernel * kernel * maps,
        };
        let mut tensors = vec![self.tensor(&format!("{name}.weight"), &shape, Draw::he(fan))];
        if bias {
            tensors.push(self.tensor(&format!("{name}.bias"), &[maps], Draw::Constant(0.0)));
        }
        let attributes = vec![
            AttributeProto::int("group", int(group)),
            AttributeProto::ints("kernel_shape", &[int(kernel); 2]),
            AttributeProto::ints("pads", &[int(pad); 4]),
            AttributeProto::ints("strides", &[int(stride); 2]),
        ];
        let out = |extent: usize| (extent + 2 * pad - kernel) / stride + 1;
        self.cost.multiply_adds += (maps * inputs * out(h) * out(w)) as u64;
        self.node("Conv", name, &tensors, attributes, vec![maps, out(h), out(w)]);
    }

    pub(super) fn batch_norm(&mut self, name: &str) {
        let channels = self.place.dims[0];
        let tensors: Vec<String> =
            [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)]
                .map(|(part, value)| {
                    self.tensor(&format!("{name}.{part}"), &[channels], Draw::Constant(value))
                })
                .to_vec();
        let attributes = vec![
            AttributeProto::float("epsilon", 1e-5),
            AttributeProto::float("momentum", 0.9),
            AttributeProto::int("training_mode", 1),
        ];
        // Running statistics are kept, but not trained.
        self.cost.parameters -= 2 * channels as u64;
        let dims = self.place.dims.clone();
        self.node("BatchNormalization", name, &tensors, attributes, dims);
        if let Some(node) = self.graph.node.last_mut() {
            node.output.push(format!("{name}/mean"));
            node.output.push(format!("{name}/var"));
        }
    }

    pub(super) fn relu(&mut self) {
        self.function("Relu", &[], Vec::new());
    }

    pub(super) fn hard_swish(&mut self) {
        self.function("HardSwish", &[], Vec::new());
    }

    pub(super) fn sigmoid(&mut self) {
        self.function("Sigmoid", &[], Vec::new());
    }

    pub(super) fn hard_sigmoid(&mut self, slope: f32, level: f32) {
        let attributes =
            vec![AttributeProto::float("alpha", slope), AttributeProto::float("beta", level)];
        self.function("HardSigmoid", &[], attributes);
    }

    pub(super) fn clip(&mut self, least: f32, most: f32) {
        let names = [self.constant(least), self.constant(most)];
        self.function("Clip", &names, Vec::new());
    }

    pub(super) fn dropout(&mut self, ratio: f32) {
        let names = [self.constant(ratio)];
        self.function("Dropout", &names, Vec::new());
    }

    /// Multiplies with what is at another place, broadcast.
    pub(super) fn multiply(&mut self, other: Place) {
        let dims = other.dims.iter().zip(&self.place.dims).map(|(a, b)| *a.max(b)).collect();
        self.node("Mul", "", &[other.name], Vec::new(), dims);
    }

    /// Puts the channels of another place behind those of this one.
    pub(super) fn concat(&mut self, other: Place) {
        let mut dims = self.place.dims.clone();
        dims[0] += other.dims[0];
        self.node("Concat", "", &[other.name], vec![AttributeProto::int("axis", 1)], dims);
    }

    fn function(&mut self, operator: &str, tensors: &[String], attributes: Vec<AttributeProto>) {
        let dims = self.place.dims.clone();
        self.node(operator, "", tensors, attributes, dims);
    }

    /// A number that is not trained.
    fn constant(&mut self, value: f32) -> String {
        let name = format!("constant/{value}");
        if self.graph.initializer.iter().all(|tensor| tensor.name != name) {
            self.graph.initializer.push(TensorProto::from_f32(&name, &[], &[value]));
        }
        name
    }

    /// 2x2 with stride 2; a side of 1 stays.
    pub(super) fn max_pool(&mut self) {
        let [c, h, w] = self.picture();
        let kernel = [h.min(2), w.min(2)];
        let extents = kernel.map(int);
        let attributes = vec![
            AttributeProto::ints("kernel_shape", &extents),
            AttributeProto::ints("strides", &extents),
        ];
        self.node("MaxPool", "", &[], attributes, vec![c, h / kernel[0], w / kernel[1]]);
    }

    /// 3x3 with stride 2; with `ceil` a last window that is only partly filled counts. A side that
    /// is too short stays.
    pub(super) fn max_pool_3x3(&mut self, pad: usize, ceil: bool) {
        let [c, h, w] = self.picture();
        let kernel = [h, w].map(|side| if side + 2 * pad < 3 { 1 } else { 3 });
        let stride = kernel.map(|kernel| if kernel == 1 { 1 } else { 2 });
        let pads = kernel.map(|kernel| if kernel == 1 { 0 } else { pad });
        let out = |axis: usize, side: usize| {
            let room = side + 2 * pads[axis] - kernel[axis];
            if ceil { room.div_ceil(stride[axis]) + 1 } else { room / stride[axis] + 1 }
        };
        let attributes = vec![
            AttributeProto::int("ceil_mode", i64::from(ceil)),
            AttributeProto::ints("kernel_shape", &kernel.map(int)),
            AttributeProto::ints("pads", &[pads[0], pads[1], pads[0], pads[1]].map(int)),
            AttributeProto::ints("strides", &stride.map(int)),
        ];
        self.node("MaxPool", "", &[], attributes, vec![c, out(0, h), out(1, w)]);
    }

    pub(super) fn global_average_pool(&mut self) {
        let channels = self.place.dims[0];
        self.node("GlobalAveragePool", "", &[], Vec::new(), vec![channels, 1, 1]);
    }

    pub(super) fn flatten(&mut self) {
        let features = self.place.dims.iter().product();
        self.node("Flatten", "", &[], vec![AttributeProto::int("axis", 1)], vec![features]);
    }

    /// Weights from He's distribution, biases 0.
    pub(super) fn dense(&mut self, name: &str, features: usize) {
        let weights = Draw::he(self.place.dims[0]);
        self.dense_from(name, features, weights, Draw::Constant(0.0));
    }

    pub(super) fn dense_from(&mut self, name: &str, features: usize, weights: Draw, biases: Draw) {
        let inputs = self.place.dims[0];
        let weight = self.tensor(&format!("{name}.weight"), &[features, inputs], weights);
        let bias = self.tensor(&format!("{name}.bias"), &[features], biases);
        self.cost.multiply_adds += (features * inputs) as u64;
        let attributes = vec![AttributeProto::int("transB", 1)];
        self.node("Gemm", name, &[weight, bias], attributes, vec![features]);
    }

    /// Adds what is at another place of the same shape.
    pub(super) fn add(&mut self, other: Place) {
        self.node("Add", "", &[other.name], Vec::new(), other.dims);
    }

    /// The file, with the current place as the output `logits`.
    pub(super) fn finish(mut self, name: &str, classes: usize) -> Vec<u8> {
        if let Some(output) = self.graph.node.last_mut().and_then(|node| node.output.first_mut()) {
            "logits".clone_into(output);
        }
        self.graph.output = vec![ValueInfoProto::batched("logits", "n", &[classes])];
        name.clone_into(&mut self.graph.name);
        let opset = OperatorSetIdProto { domain: String::new(), version: Some(OPSET) };
        let model = ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: "dunlin".to_owned(),
            graph: Some(self.graph),
            opset_import: vec![opset],
            ..ModelProto::default()
        };
        model.to_bytes()
    }

    fn picture(&self) -> [usize; 3] {
        [self.place.dims[0], self.place.dims[1], self.place.dims[2]]
    }

    fn node(
        &mut self,
        operator: &str,
        name: &str,
        tensors: &[String],
        attribute: Vec<AttributeProto>,
        dims: Vec<usize>,
    ) {
        let number = self.graph.node.len();
        let name = if name.is_empty() {
            format!("{}{number}", operator.to_ascii_lowercase())
        } else {
            name.to_owned()
        };
        let output = format!("{name}/out");
        let input = std::mem::replace(&mut self.place, Place { name: output.clone(), dims }).name;
        self.graph.node.push(NodeProto {
            input: std::iter::once(input).chain(tensors.iter().cloned()).collect(),
            output: vec![output],
            name,
            op_type: operator.to_owned(),
            attribute,
            ..NodeProto::default()
        });
    }

    fn tensor(&mut self, name: &str, shape: &[usize], draw: Draw) -> String {
        let elements: usize = shape.iter().product();
        self.cost.parameters += elements as u64;
        self.cost.bytes += 4 * elements as u64;
        if self.values {
            let values = (0..elements).map(|_| draw.value(&mut self.random)).collect();
            self.graph.initializer.push(TensorProto::of_f32(name, shape, values));
        }
        name.to_owned()
    }
}

fn int(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
