//! Builds the ONNX graph of a family, layer after layer.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    ValueInfoProto,
};

/// The operator set that the graphs use.
const OPSET: i64 = 17;

/// The version of the file format that came with it.
const IR_VERSION: i64 = 8;

/// A place in the graph: a value's name and shape without the batch axis.
#[derive(Debug, Clone)]
pub(super) struct Place {
    name: String,
    dims: Vec<usize>,
}

/// A graph under construction; layers are added behind the current place.
pub(super) struct Builder {
    graph: GraphProto,
    place: Place,
    random: ChaCha8Rng,
}

impl Builder {
    /// A graph with one input `[n, c, h, w]`.
    pub(super) fn new(shape: [usize; 3], seed: u64) -> Self {
        let graph = GraphProto {
            input: vec![ValueInfoProto::batched("input", "n", &shape)],
            ..GraphProto::default()
        };
        let place = Place { name: "input".to_owned(), dims: shape.to_vec() };
        Self { graph, place, random: ChaCha8Rng::seed_from_u64(seed) }
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

    pub(super) fn conv(
        &mut self,
        name: &str,
        maps: usize,
        kernel: usize,
        stride: usize,
        pad: usize,
        bias: bool,
    ) {
        let [c, h, w] = self.picture();
        let inputs = kernel * kernel * c;
        let weight = self.he(&format!("{name}.weight"), &[maps, c, kernel, kernel], inputs);
        let mut tensors = vec![weight];
        if bias {
            tensors.push(self.filled(&format!("{name}.bias"), maps, 0.0));
        }
        let attributes = vec![
            AttributeProto::ints("kernel_shape", &[int(kernel); 2]),
            AttributeProto::ints("pads", &[int(pad); 4]),
            AttributeProto::ints("strides", &[int(stride); 2]),
        ];
        let out = |extent: usize| (extent + 2 * pad - kernel) / stride + 1;
        self.node("Conv", name, &tensors, attributes, vec![maps, out(h), out(w)]);
    }

    pub(super) fn batch_norm(&mut self, name: &str) {
        let channels = self.place.dims[0];
        let tensors: Vec<String> =
            [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)]
                .map(|(part, value)| self.filled(&format!("{name}.{part}"), channels, value))
                .to_vec();
        let attributes = vec![
            AttributeProto::float("epsilon", 1e-5),
            AttributeProto::float("momentum", 0.9),
            AttributeProto::int("training_mode", 1),
        ];
        let dims = self.place.dims.clone();
        self.node("BatchNormalization", name, &tensors, attributes, dims);
        if let Some(node) = self.graph.node.last_mut() {
            node.output.push(format!("{name}/mean"));
            node.output.push(format!("{name}/var"));
        }
    }

    pub(super) fn relu(&mut self) {
        let dims = self.place.dims.clone();
        self.node("Relu", "", &[], Vec::new(), dims);
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

    pub(super) fn global_average_pool(&mut self) {
        let channels = self.place.dims[0];
        self.node("GlobalAveragePool", "", &[], Vec::new(), vec![channels, 1, 1]);
    }

    pub(super) fn flatten(&mut self) {
        let features = self.place.dims.iter().product();
        self.node("Flatten", "", &[], vec![AttributeProto::int("axis", 1)], vec![features]);
    }

    pub(super) fn dense(&mut self, name: &str, features: usize) {
        let inputs = self.place.dims[0];
        let weight = self.he(&format!("{name}.weight"), &[features, inputs], inputs);
        let bias = self.filled(&format!("{name}.bias"), features, 0.0);
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

    /// Weights from a normal distribution of variance `2 / inputs`.
    fn he(&mut self, name: &str, shape: &[usize], inputs: usize) -> String {
        #[expect(clippy::cast_precision_loss, reason = "layers have far less than 2^53 inputs")]
        let deviation = (2.0 / inputs as f64).sqrt();
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| {
                #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
                let value = (self.normal() * deviation) as f32;
                value
            })
            .collect();
        self.tensor(name, shape, &values)
    }

    fn filled(&mut self, name: &str, length: usize, value: f32) -> String {
        self.tensor(name, &[length], &vec![value; length])
    }

    fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> String {
        self.graph.initializer.push(TensorProto::from_f32(name, shape, values));
        name.to_owned()
    }

    /// A standard normal number (Box & Muller 1958).
    fn normal(&mut self) -> f64 {
        let mut uniform = || (f64::from(self.random.next_u32()) + 0.5) / 4_294_967_296.0;
        let (radius, angle) = (uniform(), uniform());
        (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
    }
}

fn int(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
