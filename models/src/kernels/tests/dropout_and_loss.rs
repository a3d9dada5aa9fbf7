use super::*;

#[test]
fn dropout_drops_in_training_only_and_the_same_both_ways() {
    let case = Case {
        op: Op::Dropout { ratio: 0.25 },
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

#[test]
fn loss_and_its_gradient() {
    let mut draw = Draw::new(9);
    let (n, classes) = (5, 4);
    let logits = draw.numbers(n * classes);
    let labels: Vec<u32> = (0..n).map(|_| draw.below(classes) as u32).collect();
    let naive = |logits: &[f64]| -> f64 {
        let one = |(row, label): (&[f64], &u32)| {
            row.iter().map(|z| z.exp()).sum::<f64>().ln() - row[*label as usize]
        };
        logits.chunks(classes).zip(&labels).map(one).sum::<f64>() / n as f64
    };
    let shape = Shape::batched(&[classes]);
    let mut gradient = vec![f32::NAN; n * classes];
    let laid = lay(&logits, n, &shape);
    let judged = loss::softmax_cross_entropy(&laid, &labels, Some(&mut gradient));
    assert!((judged.loss - naive(&logits)).abs() < 1e-6);
    for (at, found) in unlay(&gradient, n, &shape).into_iter().enumerate() {
        let moved = |step: f64| {
            let mut logits = logits.clone();
            logits[at] += step;
            naive(&logits)
        };
        let expected = (moved(1e-6) - moved(-1e-6)) / 2e-6;
        assert!((found - expected).abs() < 1e-6, "[{at}]: {found}, expected {expected}");
    }
    let large = loss::softmax_cross_entropy(&[1e4, -1e4], &[1], None);
    assert!((large.loss - 2e4).abs() < 1e-6 && large.correct == 0);
}
