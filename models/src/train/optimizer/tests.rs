use super::*;

/// `w^2 / 2` has its minimum at 0, and the gradient `w`.
fn descend(optimizer: Optimizer, steps: u64) -> Vec<f32> {
    let mut weights = vec![1.0, -2.0];
    let mut state = Vec::new();
    for step in 1..=steps {
        let gradient = weights.clone();
        optimizer.update(step, optimizer.learning_rate(), &mut weights, &gradient, &mut state);
    }
    weights
}

fn close(found: &[f32], expected: [f64; 2]) {
    for (found, expected) in found.iter().zip(expected) {
        assert!((f64::from(*found) - expected).abs() < 1e-6, "{found}, expected {expected}");
    }
}

#[test]
fn two_steps_are_those_of_the_definitions() {
    let sgd = Sgd { learning_rate: 0.1, momentum: 0.5, weight_decay: 0.2 };
    // g = 1.2 w: v1 = 1.2, w1 = 0.88; v2 = 0.6 + 1.056, w2 = 0.88 - 0.1656.
    close(&descend(sgd.into(), 2), [0.7144, -1.4288]);
    // w1 = 1 - 0.1 (1.2 + 0.6) = 0.82; g2 = 0.984, v2 = 0.6 + 0.984, w2 = 0.82 - 0.1 (g2 + v2/2).
    close(&descend(Optimizer::Nesterov(sgd), 2), [0.6424, -1.2848]);
    let plain = Sgd { momentum: 0.0, ..sgd };
    close(&descend(plain.into(), 2), [0.7744, -1.5488]);
    assert_eq!(descend(plain.into(), 2), descend(Optimizer::Nesterov(plain), 2));
}

#[test]
fn adam_is_that_of_the_paper() {
    let adam = Adam { weight_decay: 0.1, ..Adam::new(0.01) };
    for (optimizer, coupled) in [(Optimizer::Adam(adam), true), (Optimizer::AdamW(adam), false)] {
        let expected = [1.0, -2.0].map(|start: f64| {
            let (mut w, mut m, mut v) = (start, 0.0, 0.0);
            for t in 1..=5 {
                let g = if coupled { w + 0.1 * w } else { w };
                if !coupled {
                    w *= 1.0 - 0.01 * 0.1;
                }
                m = 0.9 * m + 0.1 * g;
                v = 0.999 * v + 0.001 * g * g;
                let (m_hat, v_hat) = (m / (1.0 - 0.9_f64.powi(t)), v / (1.0 - 0.999_f64.powi(t)));
                w -= 0.01 * m_hat / (v_hat.sqrt() + 1e-8);
            }
            w
        });
        close(&descend(optimizer, 5), expected);
    }
}

#[test]
fn every_optimizer_finds_the_minimum() {
    let sgd = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0 };
    let adam = Adam::new(0.1);
    for optimizer in [
        Optimizer::Sgd(sgd),
        Optimizer::Nesterov(sgd),
        Optimizer::Adam(adam),
        Optimizer::AdamW(adam),
    ] {
        let end = descend(optimizer, 300);
        assert!(end.iter().all(|weight| weight.abs() < 1e-2), "{optimizer:?}: {end:?}");
    }
}
