//! Arithmetic, functions of one element, and products with weights.

use super::*;

/// An operand of a result with such extents: which axes it has in full, whether it has a batch
/// axis, and how many leading axes it leaves out if not.
fn operand(dims: &[usize], full: &[bool], batched: bool, left_out: usize) -> Shape {
    let own = dims.iter().zip(full).map(|(dim, full)| if *full { *dim } else { 1 });
    let mut own: Vec<usize> = own.collect();
    if batched {
        return Shape::batched(&own);
    }
    match left_out.checked_sub(1) {
        // With a batch axis of 1 of its own.
        None => own.insert(0, 1),
        Some(left_out) => drop(own.drain(..left_out.min(own.len()))),
    }
    plain(&own)
}

const FUNCTIONS: [Activation; 9] = [
    Activation::Relu,
    Activation::LeakyRelu { slope: 0.2 },
    Activation::Clip { least: 0.0, most: 3.25 },
    Activation::Clip { least: -0.75, most: f32::INFINITY },
    Activation::Sigmoid,
    Activation::Tanh,
    Activation::HardSigmoid { slope: 0.25, level: 0.5 },
    Activation::HardSwish,
    Activation::Neg,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn arithmetic_broadcast(
        operator in prop_oneof![
            Just(Arithmetic::Add),
            Just(Arithmetic::Sub),
            Just(Arithmetic::Mul),
            Just(Arithmetic::Div),
        ],
        axes in proptest::collection::vec((1..5_usize, any::<bool>(), any::<bool>()), 1..4),
        kinds in prop_oneof![Just((true, true)), Just((true, false)), Just((false, true))],
        left_out in 0..4_usize,
        n in 1..4_usize,
        seed: u64,
    ) {
        let of = |part: fn(&(usize, bool, bool)) -> bool| axes.iter().map(part).collect();
        let dims: Vec<usize> = axes.iter().map(|axis| axis.0).collect();
        let (a, b): (Vec<bool>, Vec<bool>) = (of(|axis| axis.1), of(|axis| axis.2));
        let a = operand(&dims, &a, kinds.0, left_out);
        let b = operand(&dims, &b, kinds.1, left_out);
        let rank = dims.len();
        let (left, right) = (a.aligned(rank).unwrap(), b.aligned(rank).unwrap());
        let output = left.iter().zip(&right).map(|(l, r)| *l.max(r)).collect();
        let op = Op::Arithmetic(operator);
        Case { op, n, inputs: vec![a, b], states: Vec::new(), output }.check_seed(seed);
    }

    #[test]
    fn activations(
        function in proptest::sample::select(FUNCTIONS.as_slice()),
        dims in prop_oneof![8 => extents(1..=3, 5), 1 => Just(vec![3, 50, 60])],
        n in 1..4_usize,
        seed: u64,
    ) {
        Case::of(Op::Activation(function), n, &dims, &dims).check_seed(seed);
    }

    #[test]
    fn products_with_weights(
        (n, d, m) in (1..20_usize, 1..40_usize, 1..40_usize),
        transposed: bool,
        bias in 0..5_u8,
        scaled: bool,
        seed: u64,
    ) {
        let weight = if transposed { [m, d] } else { [d, m] };
        let mut inputs = vec![Shape::batched(&[d]), plain(&weight)];
        inputs.extend(match bias {
            0 => None,
            1 => Some(plain(&[m])),
            2 => Some(plain(&[1, m])),
            3 => Some(plain(&[1])),
            _ => Some(plain(&[])),
        });
        let (alpha, beta) = if scaled { (0.5, -1.5) } else { (1.0, 1.0) };
        let op = Op::Gemm { alpha, beta, transposed };
        Case { op, n, inputs, states: Vec::new(), output: vec![m] }.check_seed(seed);
    }

    #[test]
    fn products_of_rows_with_weights(
        dims in extents(2..=4, 6),
        m in 1..8_usize,
        n in 1..5_usize,
        seed: u64,
    ) {
        let d = dims[dims.len() - 1];
        let mut output = dims.clone();
        output[dims.len() - 1] = m;
        let inputs = vec![Shape::batched(&dims), plain(&[d, m])];
        Case { op: Op::MatMul, n, inputs, states: Vec::new(), output }.check_seed(seed);
    }
}

#[test]
fn not_a_number_stays_one() {
    let functions = [Activation::Relu, Activation::HardSwish, Activation::Sigmoid];
    for function in functions.into_iter().chain([Activation::Clip { least: 0.0, most: 6.0 }]) {
        let case = Case {
            op: Op::Activation(function),
            n: 1,
            inputs: vec![Shape::batched(&[1])],
            states: Vec::new(),
            output: vec![1],
        };
        let (output, _) = case.run(&[vec![f64::NAN]], &[1.0], false, 1);
        assert!(output[0].is_nan(), "{function:?}");
    }
}

#[test]
fn channels_of_large_pictures_are_broadcast() {
    for operator in [Arithmetic::Add, Arithmetic::Sub, Arithmetic::Mul, Arithmetic::Div] {
        let inputs = vec![Shape::batched(&[2, 60, 80]), Shape::batched(&[2, 1, 1])];
        let op = Op::Arithmetic(operator);
        let output = vec![2, 60, 80];
        Case { op, n: 2, inputs, states: Vec::new(), output }.check_seed(6);
    }
}
