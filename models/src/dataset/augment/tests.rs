//! What augmentation does to a picture, and what it does not.

use proptest::prelude::*;

use super::*;

const SHAPE: [usize; 3] = [2, 16, 24];
const LEN: usize = 2 * 16 * 24;

/// A pixel becomes its value in the first channel, 1000 more in the second.
fn values() -> Vec<[f32; 256]> {
    [0.0, 1000.0]
        .map(|first| std::array::from_fn(|at| first + f32::from(u8::try_from(at).unwrap())))
        .to_vec()
}

/// No pixel is black, each differs from its neighbours.
fn picture() -> Vec<u8> {
    (0..LEN).map(|at| u8::try_from(1 + at * 7 % 251).unwrap()).collect()
}

fn changed(change: Change, picture: &[u8]) -> Vec<f32> {
    let mut out = Vec::new();
    change.apply(picture, SHAPE, &values(), &mut out);
    out
}

fn unchanged() -> Change {
    Change { offset: [0, 0], flip: false, hole: None }
}

fn plain() -> Vec<f32> {
    let of = |(at, pixel): (usize, &u8)| values()[at / (16 * 24)][usize::from(*pixel)];
    picture().iter().enumerate().map(of).collect()
}

#[test]
fn nothing_is_the_identity_and_flipping_twice_too() {
    assert_eq!(changed(unchanged(), &picture()), plain());
    let flip = Change { flip: true, ..unchanged() };
    let once = changed(flip, &picture());
    assert_ne!(once, plain());
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 255")]
    let bytes: Vec<u8> = once.iter().map(|value| (value % 1000.0) as u8).collect();
    assert_eq!(changed(flip, &bytes), plain());
    let row: Vec<f32> = plain()[24..48].iter().rev().copied().collect();
    assert_eq!(once[24..48], row);
}

#[test]
fn what_lies_outside_is_black() {
    let out = changed(Change { offset: [2, -3], ..unchanged() }, &picture());
    let plain = plain();
    for (channel, black) in [0.0, 1000.0].into_iter().enumerate() {
        for y in 0..16 {
            for x in 0..24 {
                let inside = y + 2 < 16 && x >= 3;
                let from = (channel * 16 + y + 2) * 24 + x;
                let expected = if inside { plain[from - 3] } else { black };
                let found = out[(channel * 16 + y) * 24 + x];
                assert!((found - expected).abs() < 1e-6, "{channel} {y} {x}");
            }
        }
    }
}

proptest! {
    #[test]
    fn draws_are_within_bounds(seed: u64, epoch in 0..1000_u64, index in 0..100_000_u64) {
        let all = Augmentation { flip: true, pad_crop: true, cutout: true };
        let change = all.draw(SHAPE, [seed, epoch, index]);
        prop_assert!(change.offset[0].abs() <= 2 && change.offset[1].abs() <= 3);
        let [rows, columns] = change.hole.unwrap();
        // A quarter of the side each way from a pixel of the picture.
        prop_assert!(rows[0] < rows[1] && rows[1] <= 16 && (4..=8).contains(&(rows[1] - rows[0])));
        prop_assert!(columns[1] <= 24 && (6..=12).contains(&(columns[1] - columns[0])));
        prop_assert_eq!(change, all.draw(SHAPE, [seed, epoch, index]));
        // One option does not change what another one does.
        let flip = Augmentation { flip: true, ..Augmentation::default() };
        prop_assert_eq!(flip.draw(SHAPE, [seed, epoch, index]).flip, change.flip);
        let cutout = Augmentation { cutout: true, ..Augmentation::default() };
        prop_assert_eq!(cutout.draw(SHAPE, [seed, epoch, index]).hole, change.hole);
        // Zeros are those of the hole, in every channel: no pixel is black here.
        let zeros = |channel: usize, out: &[f32]| {
            out[channel * 384..(channel + 1) * 384].iter().filter(|value| value.abs() < 0.5).count()
        };
        let out = changed(Change { hole: change.hole, ..unchanged() }, &picture());
        let area = (rows[1] - rows[0]) * (columns[1] - columns[0]);
        prop_assert_eq!([zeros(0, &out), zeros(1, &out)], [area, area]);
    }
}

#[test]
fn draws_are_spread_evenly() {
    let all = Augmentation { flip: true, pad_crop: true, cutout: true };
    let changes: Vec<Change> =
        (0..10_000).map(|index| all.draw([3, 32, 32], [7, index % 4, index / 4])).collect();
    let flips = changes.iter().filter(|change| change.flip).count();
    assert!((4800..5200).contains(&flips), "{flips}");
    for offset in -4..=4 {
        let count = changes.iter().filter(|change| change.offset[0] == offset).count();
        // A ninth of 10,000, six deviations either way.
        assert!((923..1300).contains(&count), "{offset}: {count}");
    }
    let whole = |change: &&Change| change.hole.is_some_and(|[rows, _]| rows[1] - rows[0] == 16);
    let share = changes.iter().filter(whole).count();
    // Middles 8 to 24 of 32 cut 16 rows: 17 of 32.
    assert!((5000..5600).contains(&share), "{share}");
}

#[test]
fn a_seed_an_epoch_and_an_index_say_what_happens() {
    let all = Augmentation { flip: true, pad_crop: true, cutout: true };
    let draw = |seed, epoch, index| all.draw([3, 32, 32], [seed, epoch, index]);
    assert_ne!(draw(1, 0, 0), draw(2, 0, 0));
    assert_ne!(draw(1, 0, 0), draw(1, 1, 0));
    assert_ne!(draw(1, 0, 0), draw(1, 0, 1));
    // A part of what makes a training repeatable: it may not change by itself.
    let known = Change { offset: [-1, -2], flip: true, hole: Some([[2, 18], [14, 30]]) };
    assert_eq!(draw(1, 2, 3), known);
}

#[test]
fn batches_do_not_change_what_happens() {
    use crate::dataset::{Batches, Examples, Normalization};
    let examples = Examples::pictures([1, 16, 24], picture(), vec![3, 4]);
    let normalization = Normalization::uniform(0.25, 0.5);
    let all = Augmentation { flip: true, pad_crop: true, cutout: true };
    let batches = || Batches::new(&examples, &normalization).augmented(all, 5);
    let both = batches().get(&[1, 0], 9).0.to_vec();
    assert_eq!(batches().get(&[0], 9).0, &both[384..]);
    assert_eq!(batches().get(&[1], 9).0, &both[..384]);
    assert_ne!(batches().get(&[1], 8).0, &both[..384]);
    let plain = Augmentation::default();
    let mut none = Batches::new(&examples, &normalization).augmented(plain, 5);
    assert_eq!(none.get(&[1], 9).0, Batches::new(&examples, &normalization).get(&[1], 0).0);
}
