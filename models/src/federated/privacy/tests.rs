//! What is promised of noise, and of means with it.

#![expect(clippy::cast_precision_loss, reason = "numbers of samples")]

use proptest::prelude::*;

use super::*;
use crate::federated::distances::UpdateNorms;
use crate::federated::tests::{on_threads, slices, updates};

fn noise(seed: u8, deviation: f64, length: usize) -> Vec<f64> {
    let mut values = vec![0.0; length];
    GaussianNoise::new([seed; 32], deviation).unwrap().add(0, &mut values);
    values
}

fn norms(centre: &[f32], rows: &[Vec<f32>]) -> Vec<f64> {
    let mut norms = UpdateNorms::new(rows.len());
    norms.add(0, Some(centre), &slices(rows)).unwrap();
    norms.norms()
}

fn protection(bound: f64, planned: u32, noise_multiplier: f64) -> Protection {
    Protection { bound: NormBound::new(bound).unwrap(), planned, noise_multiplier }
}

fn whole(mean: &PrivateMean, centre: &[f32], rows: &[Vec<f32>]) -> Vec<f32> {
    let mut combined = vec![0.0; centre.len()];
    mean.tile(0, centre, &slices(rows), &mut combined).unwrap();
    combined
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Kolmogorov and Smirnov's distance from a normal distribution, and the first four moments.
#[test]
fn noise_is_normal() {
    let mut values = noise(1, 3.0, 200_000);
    let count = values.len() as f64;
    for value in &mut values {
        *value /= 3.0;
    }
    let moment = |power| values.iter().map(|value| value.powi(power)).sum::<f64>() / count;
    for (power, expected, slack) in [(1, 0.0, 0.01), (2, 1.0, 0.015), (3, 0.0, 0.04), (4, 3.0, 0.1)]
    {
        assert!((moment(power) - expected).abs() < slack, "{power}: {}", moment(power));
    }
    let neighbours = values.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / count;
    assert!(neighbours.abs() < 0.01, "{neighbours}");
    values.sort_by(f64::total_cmp);
    let below = |value: f64| 0.5 * libm::erfc(-value / std::f64::consts::SQRT_2);
    let distances = values.iter().enumerate().map(|(at, value)| {
        let (low, high) = (at as f64 / count, (at + 1) as f64 / count);
        (below(*value) - low).abs().max((high - below(*value)).abs())
    });
    let distance = distances.fold(0.0, f64::max);
    // The quantile of 0.9999.
    assert!(distance < 2.23 / count.sqrt(), "{distance}");
}

/// The first numbers, by another implementation of `ChaCha20`, `log`, `sqrt`, `cos` and `sin`.
#[test]
fn a_seed_says_what_the_noise_is() {
    let values = noise(0, 1.0, 4);
    for (found, expected) in values.iter().zip(FIRST) {
        assert!((found - expected).abs() <= 1e-6, "{values:?}");
    }
    assert_ne!(noise(1, 1.0, 4), values);
}

const FIRST: [f64; 4] = [0.578_820_627, 0.901_297_466, 0.365_526_606, -2.090_554_041];

/// `(1 / 2)^20` of the deviation at most, and everything lies on it.
#[test]
fn results_lie_on_a_grid() {
    for deviation in [1e-9, 0.3, 1.0, 7e5] {
        let noise = GaussianNoise::new([3; 32], deviation).unwrap();
        let step = noise.grid() / deviation;
        assert!((2_f64.powi(-21)..=2_f64.powi(-20) * 1.001).contains(&step), "{step}");
        let mut values: Vec<f64> = (0..1000).map(|at| deviation * f64::from(at).sin()).collect();
        noise.add(0, &mut values);
        assert!(values.iter().all(|value| (value / noise.grid()).fract().abs() <= 0.0));
        assert!(values.iter().any(|value| *value != 0.0));
    }
}

#[test]
fn bad_settings_are_refused() {
    for deviation in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-101] {
        assert!(GaussianNoise::new([0; 32], deviation).is_err(), "{deviation}");
    }
    assert!(PrivateMean::new(protection(1.0, 0, 1.0), &[], [0; 32]).is_err());
    assert!(PrivateMean::new(protection(1.0, 1, 0.0), &[], [0; 32]).is_err());
    let refused = PrivateMean::new(protection(1.0, 1, 1.0), &[0.0, f64::NAN], [0; 32]);
    assert!(matches!(refused, Err(PrivacyError::Norm { device: 1, .. })));
    let mean = PrivateMean::new(protection(1.0, 1, 1.0), &[1.0], [0; 32]).unwrap();
    let refused = mean.tile(0, &[0.0], &[], &mut [0.0]).unwrap_err();
    assert_eq!(refused, TileError::Rows { expected: 1, found: 0 });
    let refused = mean.tile(0, &[0.0], &[&[f32::NAN]], &mut [0.0]).unwrap_err();
    assert!(matches!(refused, TileError::NotFinite { row: 0, .. }));
    assert!(mean.within().noised(0.0, [0; 32]).is_err());
}

/// A round without updates gives noise, of the deviation that one with updates has.
#[test]
fn nobody_is_told_by_silence() {
    let centre = vec![1.0; 50_000];
    let mean = PrivateMean::new(protection(2.0, 10, 1.5), &[], [5; 32]).unwrap();
    let found = whole(&mean, &centre, &[]);
    let squares = found.iter().map(|value| f64::from(value - 1.0).powi(2)).sum::<f64>();
    let deviation = (squares / 50_000.0).sqrt();
    assert!((deviation - 0.3).abs() < 0.003, "{deviation}");
}

/// Andrew et al. 2021: with nobody's figures but 0 and 1, and little noise, the share itself.
#[test]
fn the_share_within_the_bound_is_of_the_planned() {
    let share = |norms: &[f64], planned| {
        let mean = PrivateMean::new(protection(1.0, planned, 1.0), norms, [0; 32]).unwrap();
        let within = norms.iter().filter(|norm| **norm <= 1.0).count();
        assert_eq!(mean.within().within as usize, within);
        mean.within().noised(1e-9, [1; 32]).unwrap()
    };
    for (norms, planned, expected) in [
        (&[0.5, 1.0, 2.0, 3.0][..], 4, 0.5),
        (&[0.5, 1.0, 2.0], 3, 2.0 / 3.0),
        (&[0.5], 2, 0.75),
        (&[2.0], 2, 0.25),
        (&[], 8, 0.5),
    ] {
        assert!((share(norms, planned) - expected).abs() < 1e-6, "{norms:?}");
    }
}

fn parameters(seed: f32) -> Parameters {
    let item = |name: &str, length: usize| {
        let values = (0..length).map(|at| (seed + at as f32).sin()).collect();
        crate::params::Parameter { name: name.to_owned(), shape: vec![length], values }
    };
    let single = crate::params::Parameter {
        name: "scale".to_owned(),
        shape: Vec::new(),
        values: vec![seed],
    };
    let items = vec![item("a.weight", 30_000), item("b.norm", 9), item("c.weight", 20_000), single];
    Parameters::new(items).unwrap()
}

/// A device's own noise: of the right size, none on what is fixed, and the norm is of the rest.
#[test]
fn an_update_is_protected_before_it_is_given_away() {
    let (received, update) = (parameters(0.0), parameters(1.0));
    let fixed = ["*norm".to_owned()];
    let given = protect(&received, &update, &fixed, (3.0, 0.25), [4; 32]).unwrap();
    assert_eq!(given, protect(&received, &update, &fixed, (3.0, 0.25), [4; 32]).unwrap());
    assert_eq!(given.find("b.norm"), received.find("b.norm"));
    let moving = |parameters: &Parameters| -> Vec<f64> {
        let items = parameters.items().iter().filter(|item| item.name != "b.norm");
        items.flat_map(|item| item.values.iter().map(|value| f64::from(*value))).collect()
    };
    let (from, to, found) = (moving(&received), moving(&update), moving(&given));
    let norm = from.iter().zip(&to).map(|(x, y)| (y - x).powi(2)).sum::<f64>().sqrt();
    assert!(norm > 3.0);
    let noise = from.iter().zip(&to).zip(&found).map(|((x, y), z)| z - x - (y - x) * 3.0 / norm);
    let deviation = (noise.map(|it| it * it).sum::<f64>() / from.len() as f64).sqrt();
    assert!((deviation - 1.5).abs() < 0.03, "{deviation}");
    let quiet = protect(&received, &update, &[], (1e6, 1e-12), [4; 32]).unwrap();
    for (found, to) in moving(&quiet).iter().zip(&to) {
        assert!((found - to).abs() < 1e-5);
    }
}

#[test]
fn what_is_no_update_is_not_protected() {
    let received = parameters(0.0);
    let other = Parameters::new(received.items()[1..].to_vec()).unwrap();
    let refused = protect(&received, &other, &[], (1.0, 1.0), [0; 32]).unwrap_err();
    assert!(matches!(refused, ProtectError::Parameters(_)), "{refused}");
    for (norm, noise) in [(0.0, 1.0), (f64::NAN, 1.0), (1.0, 0.0), (1.0, f64::INFINITY)] {
        assert!(protect(&received, &received, &[], (norm, noise), [0; 32]).is_err());
    }
}

proptest! {
    #[test]
    fn cuts_and_threads_change_no_bit(
        rows in updates(0..5), cuts in prop::collection::vec(0..200_usize, 0..6),
        threads in 1..4_usize,
    ) {
        let length = rows.first().map_or(77, Vec::len);
        let centre: Vec<f32> = (0..length).map(|at| (at as f32).cos()).collect();
        let norms = if rows.is_empty() { Vec::new() } else { norms(&centre, &rows) };
        let mean = PrivateMean::new(protection(3.0, 5, 0.5), &norms, [9; 32]).unwrap();
        let expected = whole(&mean, &centre, &rows);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % length).collect();
        ends.push(length);
        ends.sort_unstable();
        let mut start = 0;
        for end in ends {
            let parts: Vec<&[f32]> = rows.iter().map(|row| &row[start..end]).collect();
            let mut found = vec![0.0; end - start];
            on_threads(threads, || mean.tile(start, &centre[start..end], &parts, &mut found))
                .unwrap();
            prop_assert_eq!(bits(&found), bits(&expected[start..end]));
            start = end;
        }
    }

    /// With next to no noise: the slow way, one update after the other.
    #[test]
    fn it_is_the_mean_of_shortened_updates(
        rows in updates(1..6), bound in 1.0..500.0_f64, planned in 1..9_u32,
    ) {
        let length = rows[0].len();
        let centre: Vec<f32> = (0..length).map(|at| (at as f32).sin()).collect();
        let norms = norms(&centre, &rows);
        let mean = PrivateMean::new(protection(bound, planned, 1e-9), &norms, [2; 32]).unwrap();
        let found = whole(&mean, &centre, &rows);
        for (at, value) in found.iter().enumerate() {
            let x = f64::from(centre[at]);
            let moved: f64 = rows.iter().map(|row| {
                let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
                let norm = row.iter().zip(&centre).map(square).sum::<f64>().sqrt();
                (f64::from(row[at]) - x) * (bound / norm).min(1.0)
            }).sum();
            let expected = x + moved / f64::from(planned);
            let error = (f64::from(*value) - expected).abs();
            prop_assert!(error <= 1e-5 * expected.abs().max(0.1), "{} {}", value, expected);
        }
    }

    /// What a device changes: of means with and without its update, under the same noise.
    #[test]
    fn a_device_changes_no_more_than_its_share(
        rows in updates(1..6), bound in 0.1..100.0_f64, noise in 0.1..3.0_f64,
    ) {
        let length = rows[0].len();
        let centre = vec![0.0; length];
        let planned = 5;
        let of = |rows: &[Vec<f32>]| {
            let norms = if rows.is_empty() { Vec::new() } else { norms(&centre, rows) };
            let mean = PrivateMean::new(protection(bound, planned, noise), &norms, [7; 32]);
            whole(&mean.unwrap(), &centre, rows)
        };
        let (with, without) = (of(&rows), of(&rows[1..]));
        let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
        let moved = with.iter().zip(&without).map(square).sum::<f64>().sqrt();
        let share = bound / f64::from(planned);
        // Rounding: to f32, and to the grid of the noise.
        let slack = 1e-5 * share * (1.0 + noise * (length as f64).sqrt()) + 1e-6 * bound;
        prop_assert!(moved <= share + slack, "{} {}", moved, share);
    }
}

proptest! {
    /// What is made of a sum of shortened updates is what is made of the updates, but for how
    /// `f32` rounds them: with the same seed the noise is the same.
    #[test]
    fn a_sum_of_shortened_updates_gives_the_same_mean(
        mut rows in updates(2..7), bound in 0.1..100.0_f64, cut in 0..200_usize,
    ) {
        let centre = rows.remove(0);
        let bound = NormBound::new(bound).unwrap();
        let mut sums = vec![0.0; centre.len()];
        for row in &rows {
            let pairs = row.iter().zip(&centre);
            let mut moved: Vec<f32> = pairs.map(|(value, centre)| value - centre).collect();
            let norm = |moved: &[f32]| {
                moved.iter().map(|it| f64::from(*it).powi(2)).sum::<f64>().sqrt()
            };
            bound.shorten(norm(&moved), &mut moved);
            prop_assert!(norm(&moved) <= bound.bound() * (1.0 + 1e-12));
            sums.iter_mut().zip(&moved).for_each(|(sum, moved)| *sum += f64::from(*moved));
        }
        let protection = Protection { bound, planned: 7, noise_multiplier: 1.5 };
        let expected = PrivateMean::new(protection, &norms(&centre, &rows), [9; 32]).unwrap();
        let expected = whole(&expected, &centre, &rows);
        let sum = PrivateSum::new(protection, [9; 32]).unwrap();
        let cut = cut.min(sums.len());
        let (head, tail) = sums.split_at_mut(cut);
        sum.mean(0, head);
        sum.mean(cut, tail);
        for ((found, centre), expected) in sums.iter().zip(&centre).zip(&expected) {
            let found = f64::from(*centre) + found;
            let near = 1e-5 * (1.0 + expected.abs().max(centre.abs()));
            prop_assert!((found - f64::from(*expected)).abs() <= f64::from(near), "{found}");
        }
    }
}
