//! Batch normalisation.

use super::*;

#[test]
fn batch_normalization() {
    let mut draw = Draw::new(8);
    for dims in [vec![3, 2, 3], vec![2], vec![1, 1, 2]] {
        let (n, c) = (4, dims[0]);
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
