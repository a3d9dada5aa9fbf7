//! Batch normalisation.

use super::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn batch_normalization(dims in extents(1..=3, 5), n in 2..6_usize, seed: u64) {
        let mut draw = Draw::new(seed);
        let c = dims[0];
        let inputs = vec![Shape::batched(&dims), plain(&[c]), plain(&[c])];
        let op = Op::BatchNormalization { epsilon: 1e-3, momentum: 0.9 };
        let states = vec![vec![0.5; c], vec![2.0; c]];
        let case = Case { op, n, inputs, states, output: dims };
        case.check(&mut draw);
        case.check_in(false, &mut draw);
        let inputs = case.draw_inputs(&mut draw);
        check_running_statistics(&case, &inputs);
    }
}

/// A mean that is large beside the variance: with one pass, or a mean that is off by its rounding,
/// nothing would be left of the variance.
#[test]
fn large_means_leave_the_variance_right() {
    let (n, pixels) = (64, 400);
    for (mean, deviation) in [(1e4, 1.0), (-3e3, 0.05), (1e6, 16.0), (0.0, 1e-3)] {
        let case = Case {
            op: Op::BatchNormalization { epsilon: 1e-12, momentum: 0.0 },
            n,
            inputs: vec![Shape::batched(&[1, pixels]), plain(&[1]), plain(&[1])],
            states: vec![vec![0.0], vec![1.0]],
            output: vec![1, pixels],
        };
        let mut draw = Draw::new(17);
        // What f32 holds of it counts.
        let x = draw.numbers(n * pixels).into_iter().map(|x| x * deviation + mean);
        let x: Vec<f64> = x.map(|x| f64::from(x as f32)).collect();
        let inputs = vec![x, vec![1.0], vec![0.0]];
        let expected = case.reference(true).compute(&inputs);
        let zeros = vec![0.0; n * pixels];
        let (found, _) = case.run(&inputs, &zeros, false, 1);
        for (found, expected) in found.iter().zip(&expected) {
            let differs = (found - expected).abs();
            assert!(differs < 1e-3, "{mean} {deviation}: {found}, expected {expected}");
        }
    }
}

/// Running statistics after a training step, and their use without training.
fn check_running_statistics(case: &Case, inputs: &[Vec<f64>]) {
    let (graph, node) = case.graph();
    let mut kernel = build(&graph, &node, 1);
    let n = case.n;
    let laid: Vec<Vec<f32>> =
        inputs.iter().zip(&case.inputs).map(|(x, shape)| lay(x, n, shape)).collect();
    let slices: Vec<&[f32]> = laid.iter().map(Vec::as_slice).collect();
    let mut states = case.states.clone();
    let mut output = vec![f32::NAN; laid[0].len()];
    for training in [true, false] {
        kernel.forward(Forward {
            batch: n,
            training,
            again: false,
            step: 1,
            inputs: &slices,
            states: &mut states,
            output: &mut output,
            scratch: &mut [],
        });
    }
    let row_len = laid[0].len() / case.output[0];
    for (channel, x) in laid[0].chunks(row_len).enumerate() {
        let count = row_len as f64;
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let squares: f64 = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
        close(&case.op, "mean", &[f64::from(states[0][channel])], &[0.45 + 0.1 * mean]);
        let unbiased = 1.8 + 0.1 * squares / (count - 1.0);
        close(&case.op, "variance", &[f64::from(states[1][channel])], &[unbiased]);
    }
    let moved = Case {
        states,
        op: case.op.clone(),
        inputs: case.inputs.clone(),
        output: case.output.clone(),
        ..*case
    };
    let expected = moved.reference(false).compute(inputs);
    close(&case.op, "inference", &unlay(&output, n, &case.inputs[0]), &expected);
}
