//! Means and deviations.

use super::*;

#[test]
fn statistics_are_those_of_each_channel() {
    // Red: 0 and 255, green: 51 throughout, blue: 0, 0, 0, 255.
    let pixels = vec![0, 255, 51, 51, 0, 0, 255, 0, 51, 51, 0, 255];
    let set = Examples::pictures([3, 1, 2], pixels, vec![0, 1]);
    let found = set.statistics().unwrap();
    let near = |a: &[f32], b: [f32; 3]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(near(&found.mean, [0.5, 0.2, 0.25]), "{found:?}");
    // A constant channel is divided by 1; blue has the deviation of 1/4 and 3/4.
    assert!(near(&found.std, [0.5, 1.0, 0.75_f32.sqrt() / 2.0]), "{found:?}");
    let (_, deviations) = set.moments().unwrap();
    assert!(near(&deviations, [0.5, 0.0, found.std[2]]), "{deviations:?}");
    found.check(3).unwrap();
    let mut batches = Batches::new(&set, &found);
    let (x, _) = batches.get(&[0], 0);
    assert!(x.iter().zip([-1.0, 1.0, 0.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-5), "{x:?}");
    assert_eq!(Examples::default().statistics(), None);
}

#[test]
fn columns_keep_their_digits() {
    let numbers = vec![1e6, 0.0, 1e6 + 1.0, 0.0, 1e6 + 2.0, 0.0];
    let set =
        Examples { shape: [1, 1, 2], values: Values::Numbers(numbers), labels: vec![0, 0, 0] };
    let found = set.statistics().unwrap();
    assert_eq!(found.mean, [1e6 + 1.0, 0.0]);
    assert!((found.std[0] - (2.0_f32 / 3.0).sqrt()).abs() < 1e-6, "{found:?}");
    assert!((found.std[1] - 1.0).abs() < 1e-6);
    let mut batches = Batches::new(&set, &found);
    let (x, _) = batches.get(&[2, 1], 0);
    assert!(x.iter().zip([1.224_744_9, 0.0, 0.0, 0.0]).all(|(a, b)| (a - b).abs() < 1e-5), "{x:?}");
}

#[test]
fn each_channel_has_its_own() {
    let set = Examples::pictures([2, 1, 1], vec![255, 255], vec![0]);
    let normalization = Normalization { mean: vec![0.0, 0.5], std: vec![0.5] };
    let mut batches = Batches::new(&set, &normalization);
    assert_eq!(batches.get(&[0], 0).0, [2.0, 1.0]);
    let refused = |mean: &[f32], std: &[f32]| {
        Normalization { mean: mean.to_vec(), std: std.to_vec() }.check(3).unwrap_err().to_string()
    };
    assert_eq!(
        refused(&[0.0; 2], &[1.0]),
        "mean has 2 values, expected 1 or 3, one for each channel"
    );
    assert!(refused(&[f32::NAN], &[1.0]).contains("mean holds NaN"));
    assert!(refused(&[0.0], &[-1.0]).contains("std holds -1"));
}
