//! On devices whose optima differ, beside what the algorithm promises.

use super::*;
use crate::federated::mean::WeightedMean;
use crate::federated::server::{Aggregate, ServerOptimizer};

fn mean(rows: &[Vec<f32>]) -> Vec<f32> {
    let mut mean = WeightedMean::new(rows[0].len());
    for row in rows {
        mean.add_piece(0, row, 1.0);
        mean.add_weight(1.0);
    }
    mean.piece(0, rows[0].len()).unwrap()
}

/// Losses `h_k / 2 (w - t_k)^2` of different curvature: many local steps drift to a mean that is
/// not the optimum `sum h_k t_k / sum h_k`, here 4.
#[test]
fn devices_do_not_drift() {
    let devices = [(1.0_f32, 0.0_f32), (4.0, 5.0)];
    let (steps, rate) = (10_u32, 0.05_f32);
    let optimizer = ServerOptimizer::FED_AVG;
    let run = |controlled: bool| {
        let (mut global, mut server) = (vec![0.0], vec![0.0]);
        let mut controls = vec![vec![0.0]; 2];
        for _ in 0..200 {
            let (mut trained, mut changes) = (Vec::new(), Vec::new());
            for (control, (curvature, target)) in controls.iter_mut().zip(devices) {
                let added = correction(&server, control).unwrap();
                let mut w = global.clone();
                for _ in 0..steps {
                    let gradient = curvature * (w[0] - target);
                    w[0] -= rate * (gradient + if controlled { added[0] } else { 0.0 });
                }
                let way = (steps, f64::from(rate));
                let next = device_control(&server, control, &global, &w, way).unwrap();
                changes.push(vec![next[0] - control[0]]);
                *control = next;
                trained.push(w);
            }
            let mut state = optimizer.state(1);
            let mean_trained = mean(&trained);
            let aggregate = Aggregate::Parameters(&mean_trained);
            optimizer.step(state.piece(0, 1), &mut global, aggregate).unwrap();
            move_server_control(&mut server, &mean(&changes), 2, 2).unwrap();
            // Where all take part it is the mean of theirs.
            assert!((server[0] - mean(&controls)[0]).abs() < 1e-4);
        }
        global[0]
    };
    assert!((run(true) - 4.0).abs() < 1e-3, "{}", run(true));
    assert!((run(false) - 4.0).abs() > 0.1, "{}", run(false));
}

/// After one step `(x - y) / lr` is the gradient with its correction: `c_k'` is the gradient.
#[test]
fn one_step_leaves_the_gradient() {
    let (server, device, global) = ([0.5, -1.0], [0.25, 2.0], [1.0, 1.0]);
    let gradient = [3.0, -4.0];
    let added = correction(&server, &device).unwrap();
    assert_eq!(added, [0.25, -3.0]);
    let trained = [0, 1].map(|at| global[at] - 0.5 * (gradient[at] + added[at]));
    assert_eq!(device_control(&server, &device, &global, &trained, (1, 0.5)).unwrap(), gradient);
}

#[test]
fn the_server_moves_by_the_part_that_took_part() {
    let mut server = vec![1.0, 2.0];
    move_server_control(&mut server, &[4.0, -8.0], 1, 4).unwrap();
    assert_eq!(server, [2.0, 0.0]);
}

#[test]
fn bad_input_is_refused() {
    let length = |what| ScaffoldError::Length { what, expected: 1, found: 2 };
    let (one, two) = ([1.0_f32], [1.0_f32, 2.0]);
    assert_eq!(correction(&one, &two), Err(length("device control")));
    let control =
        |global: &[f32], trained: &[f32], way| device_control(&one, &one, global, trained, way);
    assert_eq!(control(&two, &one, (1, 0.1)), Err(length("global parameters")));
    assert_eq!(control(&one, &two, (1, 0.1)), Err(length("trained parameters")));
    for way in [(0, 0.1), (1, 0.0), (1, f64::NAN)] {
        assert!(matches!(control(&one, &one, way), Err(ScaffoldError::Steps { .. })));
    }
    let spoiled = control(&one, &[f32::NAN], (1, 0.1));
    assert_eq!(spoiled, Err(ScaffoldError::NotFinite { index: 0 }));
    let mut server = vec![f32::MAX];
    assert_eq!(move_server_control(&mut server, &two, 1, 1), Err(length("mean change")));
    for (participants, devices) in [(0, 1), (2, 1)] {
        let refused = ScaffoldError::Participants { participants, devices };
        assert_eq!(move_server_control(&mut server, &one, participants, devices), Err(refused));
    }
    let spoiled = move_server_control(&mut server, &[f32::MAX], 1, 1);
    assert_eq!(spoiled, Err(ScaffoldError::NotFinite { index: 0 }));
    assert_eq!(server, [f32::MAX]);
}
