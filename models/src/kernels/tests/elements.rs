//! Arithmetic, functions of one element, and products with weights.

use super::*;

#[test]
fn arithmetic_broadcast() {
    let mut draw = Draw::new(6);
    let whole = Shape::batched(&[3, 2, 4]);
    let others = [
        whole.clone(),
        plain(&[]),
        plain(&[4]),
        plain(&[2, 1]),
        plain(&[3, 1, 1]),
        plain(&[1, 3, 2, 4]),
        plain(&[1, 3, 1, 4]),
        Shape::batched(&[3, 1, 1]),
        Shape::batched(&[1, 2, 4]),
        Shape::batched(&[1, 2, 1]),
    ];
    let operators = [Arithmetic::Add, Arithmetic::Sub, Arithmetic::Mul, Arithmetic::Div];
    for operator in operators {
        let op = || Op::Arithmetic(operator);
        for other in &others {
            for inputs in [vec![whole.clone(), other.clone()], vec![other.clone(), whole.clone()]] {
                let output = whole.dims.clone();
                Case { op: op(), n: 2, inputs, states: Vec::new(), output }.check(&mut draw);
            }
        }
        let inputs = vec![Shape::batched(&[3, 1]), Shape::batched(&[1, 4])];
        Case { op: op(), n: 3, inputs, states: Vec::new(), output: vec![3, 4] }.check(&mut draw);
        let inputs = vec![Shape::batched(&[3, 70, 90]), Shape::batched(&[3, 1, 1])];
        let output = vec![3, 70, 90];
        Case { op: op(), n: 3, inputs, states: Vec::new(), output }.check(&mut draw);
    }
}

#[test]
fn activations() {
    let mut draw = Draw::new(12);
    for function in [
        Activation::Relu,
        Activation::LeakyRelu { slope: 0.2 },
        Activation::Clip { least: 0.0, most: 3.3 },
        Activation::Clip { least: -0.7, most: f32::INFINITY },
        Activation::Sigmoid,
        Activation::Tanh,
        Activation::HardSigmoid { slope: 0.2, level: 0.45 },
        Activation::HardSwish,
        Activation::Neg,
    ] {
        for dims in [vec![2, 3, 3], vec![7], vec![3, 50, 60]] {
            let inputs = vec![Shape::batched(&dims)];
            let op = Op::Activation(function);
            Case { op, n: 3, inputs, states: Vec::new(), output: dims }.check(&mut draw);
        }
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
fn products_with_weights() {
    let mut draw = Draw::new(5);
    for round in 0..24 {
        let (n, d, m) = (draw.from(1, 4), draw.from(1, 5), draw.from(1, 5));
        let transposed = round % 2 == 0;
        let weight = if transposed { [m, d] } else { [d, m] };
        let mut inputs = vec![Shape::batched(&[d]), plain(&weight)];
        match round % 4 {
            0 => {}
            1 => inputs.push(plain(&[m])),
            2 => inputs.push(plain(&[1, m])),
            _ => inputs.push(plain(&[])),
        }
        let (alpha, beta) = if round < 12 { (1.0, 1.0) } else { (0.5, -1.5) };
        let op = Op::Gemm { alpha, beta, transposed };
        Case { op, n, inputs, states: Vec::new(), output: vec![m] }.check(&mut draw);
    }
}

#[test]
fn products_of_rows_with_weights() {
    let mut draw = Draw::new(13);
    for (dims, m) in [(vec![2, 3], 4), (vec![3, 2, 5], 1), (vec![1, 1, 1], 3)] {
        let d = dims[dims.len() - 1];
        let mut output = dims.clone();
        output[dims.len() - 1] = m;
        let inputs = vec![Shape::batched(&dims), plain(&[d, m])];
        Case { op: Op::MatMul, n: 3, inputs, states: Vec::new(), output }.check(&mut draw);
    }
}
