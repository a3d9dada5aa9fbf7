use super::*;
use crate::train::{Loss, Targets};

#[test]
fn dropout_drops_in_training_only_and_the_same_both_ways() {
    let case = Case {
        op: Op::Dropout { ratio: 0.25, share: Share::Element },
        n: 4,
        inputs: vec![Shape::batched(&[1000])],
        states: Vec::new(),
        output: vec![1000],
    };
    let ones = vec![vec![1.0; 4000]];
    let (output, gradients) = case.run(&ones, &ones[0], false, 1);
    assert_eq!(output, gradients[0]);
    let dropped = output.iter().filter(|value| **value == 0.0).count();
    assert!((900..1100).contains(&dropped), "{dropped} of 4000");
    assert!(output.iter().all(|value| *value == 0.0 || (value - 4.0 / 3.0).abs() < 1e-6));
    let (graph, node) = case.graph();
    let mut kernel = build(&graph, &node, 1);
    let input = vec![1.0; 4000];
    let mut forward = |training: bool, step: u64| {
        let mut output = vec![f32::NAN; 4000];
        kernel.forward(Forward {
            batch: 4,
            training,
            again: false,
            step,
            inputs: &[&input],
            states: &mut [],
            output: &mut output,
            scratch: &mut [],
        });
        output
    };
    assert_eq!(forward(false, 1), input);
    assert_ne!(forward(true, 1), forward(true, 2));
    assert_eq!(forward(true, 2), forward(true, 2));
}

/// What is dropped together has one factor: examples for stochastic depth, channels.
#[test]
fn channels_and_examples_are_dropped_as_a_whole() {
    let (n, c, pixels) = (200, 6, 5);
    for share in [Share::Channel, Share::Example] {
        let op = Op::Dropout { ratio: 0.4, share };
        let case = Case::of(op, n, &[c, pixels], &[c, pixels]);
        let ones = vec![vec![1.0; n * c * pixels]];
        let (output, gradients) = case.run(&ones, &ones[0], true, 1);
        for (output, gradient) in output.iter().zip(&gradients[0]) {
            assert!((output - gradient).abs() < 1e-6);
        }
        let together = if share == Share::Channel { pixels } else { c * pixels };
        let mut dropped = 0;
        for part in output.chunks(together) {
            let keep = 1.0 / 0.6;
            let zero = part.iter().all(|value| *value == 0.0);
            assert!(zero || part.iter().all(|value| (value - keep).abs() < 1e-6), "{part:?}");
            dropped += usize::from(zero);
        }
        let share_of = dropped as f64 / (output.len() / together) as f64;
        assert!((share_of - 0.4).abs() < 0.1, "{share:?}: {share_of}");
    }
}

/// Each loss of an example as its definition reads.
fn naive(loss: Loss, z: &[f64], t: &[f64]) -> f64 {
    let width = z.len() as f64;
    let pairs = z.iter().zip(t);
    match loss {
        Loss::SoftmaxCrossEntropy { label_smoothing } => {
            let sum = z.iter().map(|z| z.exp()).sum::<f64>();
            let smoothing = f64::from(label_smoothing);
            pairs
                .map(|(z, t)| -(t * (1.0 - smoothing) + smoothing / width) * (z.exp() / sum).ln())
                .sum()
        }
        Loss::MeanSquaredError => pairs.map(|(z, t)| (z - t).powi(2)).sum::<f64>() / width,
        Loss::BinaryCrossEntropy => {
            let one = |(z, t): (&f64, &f64)| {
                let s = 1.0 / (1.0 + (-z).exp());
                -t * s.ln() - (1.0 - t) * (1.0 - s).ln()
            };
            pairs.map(one).sum::<f64>() / width
        }
    }
}

const LOSSES: [Loss; 4] = [
    Loss::SoftmaxCrossEntropy { label_smoothing: 0.0 },
    Loss::SoftmaxCrossEntropy { label_smoothing: 0.1 },
    Loss::MeanSquaredError,
    Loss::BinaryCrossEntropy,
];

#[test]
fn losses_and_their_gradients() {
    let mut draw = Draw::new(9);
    let (n, classes) = (5, 4);
    let shape = Shape::batched(&[classes]);
    for loss in LOSSES {
        let outputs = draw.numbers(n * classes);
        let labels: Vec<u32> = (0..n).map(|_| draw.0.next_u32() % classes as u32).collect();
        let onehot: Vec<f32> = labels
            .iter()
            .flat_map(|label| {
                (0..classes).map(move |class| f32::from(u8::from(class == *label as usize)))
            })
            .collect();
        let wide: Vec<f64> = onehot.iter().copied().map(f64::from).collect();
        let total = |outputs: &[f64]| -> f64 {
            let rows = outputs.chunks(classes).zip(wide.chunks(classes));
            rows.map(|(z, t)| naive(loss, z, t)).sum::<f64>() / n as f64
        };
        let laid = lay(&outputs, n, &shape);
        let mut gradient = vec![f32::NAN; n * classes];
        let targets = Targets::Labels(&labels);
        let judged = loss::judge(loss, &laid, n, targets, Some(&mut gradient));
        assert!((judged.loss - total(&outputs)).abs() < 1e-6, "{loss:?}");
        assert_eq!(judged, loss::judge(loss, &laid, n, Targets::Values(&onehot), None));
        for (at, found) in unlay(&gradient, n, &shape).into_iter().enumerate() {
            let moved = |step: f64| {
                let mut outputs = outputs.clone();
                outputs[at] += step;
                total(&outputs)
            };
            let expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
            assert!((found - expected).abs() < 1e-6, "{loss:?} [{at}]: {found}, {expected}");
        }
    }
}

#[test]
fn losses_of_large_outputs_are_finite_and_of_no_numbers_are_none() {
    let labels = Targets::Labels(&[1]);
    let large = loss::judge(LOSSES[0], &[1e4, -1e4], 1, labels, None);
    assert!((large.loss - 2e4).abs() < 1e-6 && large.correct == 0);
    let binary = loss::judge(LOSSES[3], &[1e4, -1e4], 1, labels, None);
    assert!((binary.loss - 1e4).abs() < 1e-6);
    for loss in LOSSES {
        let judged = loss::judge(loss, &[f32::NAN, 0.0], 1, labels, None);
        assert!(judged.loss.is_nan(), "{loss:?}");
    }
}

#[test]
fn one_output_is_right_on_the_right_side() {
    let judged = loss::judge(LOSSES[3], &[2.0, -1.0, 3.0], 3, Targets::Labels(&[1, 0, 0]), None);
    assert_eq!(judged.correct, 2);
    let expected =
        ((-2.0_f64).exp().ln_1p() + (-1.0_f64).exp().ln_1p() + 3.0_f64.exp().ln_1p()) / 3.0;
    assert!((judged.loss - expected).abs() < 1e-9);
}
