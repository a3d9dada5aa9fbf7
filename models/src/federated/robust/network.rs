//! Sorting networks: the same comparisons whatever the values, so that many columns are sorted at
//! once, one per lane of a vector.

use std::ops::Range;

/// Columns sorted at once: a cache line's worth of vectors per wire.
pub(super) const WIDTH: usize = 64;

/// One key of each column.
pub(super) type Wire = [i32; WIDTH];

/// A number that is ordered as the value is, -0 before 0. Processors have the smaller of two whole
/// numbers in one instruction, and no compiler fails to find it.
#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
pub(super) fn key(value: f32) -> i32 {
    let bits = value.to_bits().cast_signed();
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

/// The value of a key.
#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
pub(super) fn value(key: i32) -> f32 {
    let bits = key ^ ((key >> 31).cast_unsigned() >> 1).cast_signed();
    f32::from_bits(bits.cast_unsigned())
}

/// Batcher's merge exchange (Knuth, The Art of Computer Programming 3, 5.2.2, algorithm M) without
/// the comparators that only order values nobody asks for.
#[derive(Debug, Clone)]
pub(super) struct SortingNetwork {
    wires: usize,
    /// Pairs of wires, the lower one gets the smaller value.
    comparators: Vec<(usize, usize)>,
}

impl SortingNetwork {
    /// A network after which the `wanted` wires hold what they would in full order.
    pub(super) fn new(wires: usize, wanted: Range<usize>) -> Self {
        let mut comparators = merge_exchange(wires);
        let mut counts: Vec<bool> = (0..wires).map(|wire| wanted.contains(&wire)).collect();
        let mut needed = Vec::with_capacity(comparators.len());
        while let Some((low, high)) = comparators.pop() {
            if counts[low] || counts[high] {
                (counts[low], counts[high]) = (true, true);
                needed.push((low, high));
            }
        }
        needed.reverse();
        Self { wires, comparators: needed }
    }

    /// Sorts every column.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
    pub(super) fn sort(&self, keys: &mut [Wire]) {
        assert_eq!(keys.len(), self.wires, "a key for each wire");
        for (low, high) in &self.comparators {
            let (front, back) = keys.split_at_mut(*high);
            let (low, high) = (&mut front[*low], &mut back[0]);
            for (low, high) in low.iter_mut().zip(high) {
                let (a, b) = (*low, *high);
                (*low, *high) = (a.min(b), a.max(b));
            }
        }
    }
}

fn merge_exchange(wires: usize) -> Vec<(usize, usize)> {
    let mut comparators = Vec::new();
    let top = wires.next_power_of_two() / 2;
    let mut p = top;
    while p > 0 {
        let (mut q, mut r, mut distance) = (top, 0, p);
        loop {
            let lows = (0..wires.saturating_sub(distance)).filter(|low| low & p == r);
            comparators.extend(lows.map(|low| (low, low + distance)));
            if q == p {
                break;
            }
            (distance, q, r) = (q - p, q / 2, p);
        }
        p /= 2;
    }
    comparators
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(network: &SortingNetwork, values: &[f32]) -> Vec<f32> {
        let mut wires: Vec<Wire> = values.iter().map(|value| [key(*value); WIDTH]).collect();
        network.sort(&mut wires);
        assert!(wires.iter().all(|wire| *wire == [wire[0]; WIDTH]));
        wires.iter().map(|wire| value(wire[0])).collect()
    }

    #[test]
    fn keys_are_ordered_as_values_are() {
        let values = [f32::MIN, -1.5, -1e-40, -0.0, 0.0, 1e-40, 1.0, 1.5, f32::MAX];
        assert!(values.is_sorted_by_key(|value| key(*value)));
        for of in values {
            assert_eq!(value(key(of)).to_bits(), of.to_bits());
        }
    }

    /// What sorts all zeros and ones sorts everything (Knuth 5.3.4, theorem Z).
    #[test]
    fn sorts_zeros_and_ones() {
        for wires in 1..=12_usize {
            let network = SortingNetwork::new(wires, 0..wires);
            for bits in 0..1_u32 << wires {
                let values = (0..wires).map(|wire| if bits >> wire & 1 == 1 { 1.0 } else { 0.0 });
                let values: Vec<f32> = values.collect();
                let found = sorted(&network, &values);
                assert!(found.is_sorted(), "{wires} wires, {values:?} became {found:?}");
            }
        }
    }

    #[test]
    fn wanted_wires_are_in_order() {
        for wires in 1..=70_usize {
            let value = |at| (f32::from(u8::try_from(at).unwrap()) * 7.7).sin();
            let values: Vec<f32> = (0..wires).map(value).collect();
            let mut expected = values.clone();
            expected.sort_by(f32::total_cmp);
            for wanted in [0..wires, 0..1, wires / 2..wires / 2 + 1, wires / 4..wires - wires / 4] {
                let found = sorted(&SortingNetwork::new(wires, wanted.clone()), &values);
                assert_eq!(found[wanted.clone()], expected[wanted], "{wires} wires");
            }
        }
    }

    #[test]
    fn the_middle_costs_less_than_all() {
        let comparators = |wanted| SortingNetwork::new(10, wanted).comparators.len();
        assert_eq!(comparators(0..10), 31);
        assert!(comparators(4..6) < 31);
    }
}
