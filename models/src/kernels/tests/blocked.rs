//! Operators as the native engine runs them, alone and with what follows them in one step.

use super::*;
use crate::engine::native;
use crate::graph::Value;

/// What comes before and behind the operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Around {
    Nothing,
    /// Its inputs have been through a kernel with channels in lanes.
    Lanes,
    /// Then it is scaled and moved by channel, added to a value, and bounded or gated.
    Followed,
}

/// A graph under construction; its only input holds all values that the operator takes.
struct Sketch {
    graph: Graph,
    /// Elements of the input that are in use.
    used: usize,
}

impl Sketch {
    fn new(elements: usize) -> Self {
        let mut sketch = Self {
            graph: Graph {
                values: Vec::new(),
                nodes: Vec::new(),
                input: ValueId(0),
                output: ValueId(0),
                last: None,
                fixed_batch: None,
                exact: true,
            },
            used: 0,
        };
        sketch.value(Shape::batched(&[elements]), Origin::Input, &[]);
        sketch
    }

    fn value(&mut self, shape: Shape, origin: Origin, initial: &[f32]) -> ValueId {
        let (name, initial) = (String::new(), initial.to_vec());
        self.graph.values.push(Value { name, shape, origin, initial });
        ValueId(self.graph.values.len() - 1)
    }

    fn node(&mut self, op: Op, inputs: Vec<ValueId>, states: Vec<ValueId>, dims: &[usize]) {
        let output = self.value(Shape::batched(dims), Origin::Node, &[]);
        self.graph.nodes.push(Node { name: "node".to_owned(), op, inputs, states, output });
        self.graph.output = output;
    }

    /// The next part of the input.
    fn part(&mut self, dims: &[usize], lanes: bool) -> ValueId {
        let len = dims.iter().product();
        self.node(Op::Crop { begin: vec![self.used] }, vec![ValueId(0)], Vec::new(), &[len]);
        self.used += len;
        let part = self.graph.output;
        self.node(Op::Reshape, vec![part], Vec::new(), dims);
        if lanes {
            let unbounded = Activation::Clip { least: f32::NEG_INFINITY, most: f32::INFINITY };
            let part = self.graph.output;
            self.node(Op::Activation(unbounded), vec![part], Vec::new(), dims);
        }
        self.graph.output
    }

    fn follow(&mut self, op: Op, other: Option<ValueId>) {
        let output = self.graph.output;
        let dims = self.graph.value(output).shape.dims.clone();
        let inputs = std::iter::once(output).chain(other).collect();
        self.node(op, inputs, Vec::new(), &dims);
    }

    /// One number for each channel.
    fn by_channel(&mut self, rank: usize, values: &[f32]) -> ValueId {
        let mut dims = vec![1; rank];
        dims[0] = values.len();
        self.value(Shape { batched: false, dims }, Origin::Weight, values)
    }
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|value| *value as f32).collect()
}

impl Case {
    /// Holds what the native engine computes against the reference, with the instructions that
    /// are chosen on this thread.
    pub(super) fn check_native(&self, inputs: &[Vec<f64>], expected: &[f64]) {
        for around in [Around::Nothing, Around::Lanes, Around::Followed] {
            self.check_around(around, inputs, expected);
        }
    }

    fn check_around(&self, around: Around, inputs: &[Vec<f64>], expected: &[f64]) {
        let batched = || self.inputs.iter().zip(inputs).filter(|(shape, _)| shape.batched);
        let out: usize = self.output.iter().product();
        let followed = around == Around::Followed;
        let elements = batched().map(|(shape, _)| shape.elements()).sum::<usize>();
        let mut sketch = Sketch::new(elements + if followed { out } else { 0 });
        let lanes = around != Around::Nothing;
        let mut taken = Vec::new();
        for (shape, values) in self.inputs.iter().zip(inputs) {
            taken.push(if shape.batched {
                sketch.part(&shape.dims, lanes)
            } else {
                sketch.value(shape.clone(), Origin::Weight, &narrow(values))
            });
        }
        let states: Vec<ValueId> = (self.states.iter())
            .map(|state| sketch.value(plain(&[state.len()]), Origin::State, state))
            .collect();
        // The residual comes before, as in a network.
        let residual = followed.then(|| sketch.part(&self.output, true));
        sketch.node(self.op.clone(), taken, states, &self.output);
        let mut expected = expected.to_vec();
        let channels = self.output[0];
        let scale: Vec<f32> = (0..channels).map(|at| 0.5 + at as f32 / channels as f32).collect();
        let added = |example: usize, at: usize| ((example * out + at) % 7) as f64 - 3.0;
        if let Some(residual) = residual {
            let of = sketch.by_channel(self.output.len(), &scale);
            sketch.follow(Op::Arithmetic(Arithmetic::Mul), Some(of));
            sketch.follow(Op::Arithmetic(Arithmetic::Sub), Some(of));
            sketch.follow(Op::Arithmetic(Arithmetic::Add), Some(residual));
            let gate = expected.len().is_multiple_of(2);
            if gate {
                let moved = sketch.graph.output;
                sketch.follow(Op::Activation(Activation::Sigmoid), None);
                sketch.follow(Op::Arithmetic(Arithmetic::Mul), Some(moved));
            } else {
                sketch.follow(Op::Activation(Activation::Relu), None);
            }
            for (at, value) in expected.iter_mut().enumerate() {
                let scale = f64::from(scale[at % out / (out / channels)]);
                let moved = *value * scale - scale + added(at / out, at % out);
                *value = if gate { moved / (1.0 + (-moved).exp()) } else { moved.max(0.0) };
            }
        }
        let found: Vec<f64> = (0..self.n)
            .flat_map(|example| {
                let mut input: Vec<f32> = Vec::new();
                for (shape, values) in batched() {
                    let len = shape.elements();
                    input.extend(narrow(&values[example * len..(example + 1) * len]));
                }
                if followed {
                    input.extend((0..out).map(|at| added(example, at) as f32));
                }
                native::answer(&sketch.graph, &input)
            })
            .map(f64::from)
            .collect();
        close(&self.op, &format!("{around:?} {:?}", Instructions::best()), &found, &expected);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// More channels than lanes, groups of whole vectors and others, maps that are smaller and
    /// larger than tiles.
    #[test]
    fn conv_with_many_channels(
        (group, channels, maps) in prop_oneof![
            3 => (Just(1_usize), 1..40_usize, 1..70_usize),
            1 => (2..4_usize, prop_oneof![Just(16_usize), 1..20_usize], prop_oneof![Just(16_usize), 1..20_usize]),
            1 => (1..40_usize, Just(1_usize), Just(1_usize)),
            1 => (1..20_usize, Just(1_usize), 1..4_usize),
        ],
        kernel in (1..4_usize, 1..4_usize),
        stride in (1..3_usize, 1..3_usize),
        dilation in (1..3_usize, 1..3_usize),
        pads in [0..3_usize, 0..3, 0..3, 0..3],
        picture in (1..18_usize, 1..34_usize),
        bias: bool,
        seed: u64,
    ) {
        let window = Window {
            kernel: [kernel.0, kernel.1],
            stride: [stride.0, stride.1],
            dilation: [dilation.0, dilation.1],
            begin: [pads[0], pads[1]],
            end: [pads[2], pads[3]],
            ceil: false,
        };
        let size = [picture.0, picture.1];
        if window.output(size).is_some() {
            let case = windows::conv_case((group, channels, maps), (window, size), 1, bias);
            case.check_answer(&mut Draw::new(seed));
        }
    }

    #[test]
    fn product_with_many_features(
        d in 1..300_usize,
        m in 1..90_usize,
        transposed: bool,
        bias in prop_oneof![Just(None), Just(Some(1_usize)), Just(Some(0))],
        seed: u64,
    ) {
        let weights = if transposed { [m, d] } else { [d, m] };
        let mut inputs = vec![Shape::batched(&[d]), plain(&weights)];
        inputs.extend(bias.map(|len| plain(&[if len == 0 { m } else { len }])));
        let op = Op::Gemm { alpha: 0.5, beta: 1.5, transposed };
        Case { op, n: 2, inputs, states: Vec::new(), output: vec![m] }
            .check_answer(&mut Draw::new(seed));
    }
}

impl Case {
    /// Holds only what the native engine answers against the reference.
    fn check_answer(&self, draw: &mut Draw) {
        let inputs = self.draw_inputs(draw);
        let expected = self.reference(false).compute(&inputs);
        for instructions in Instructions::available() {
            CHOSEN.set(Some(instructions));
            self.check_native(&inputs, &expected);
            CHOSEN.set(None);
        }
    }
}
