//! Operators that move elements, sums and softmax.

use super::*;

/// Axes of so many, at least one, in ascending order.
fn some_axes(rank: usize) -> impl Strategy<Value = Vec<usize>> {
    proptest::sample::subsequence((0..rank).collect::<Vec<_>>(), 1..=rank)
}

fn with_axis() -> impl Strategy<Value = (Vec<usize>, usize)> {
    extents(1..=4, 4).prop_flat_map(|dims| {
        let rank = dims.len();
        (Just(dims), 0..rank)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn sums_and_means(
        (dims, axes) in extents(1..=4, 4).prop_flat_map(|dims| {
            let rank = dims.len();
            (Just(dims), some_axes(rank))
        }),
        keep: bool,
        mean: bool,
        n in 1..4_usize,
        seed: u64,
    ) {
        let all = 0..dims.len();
        let kept = all.filter(|axis| keep || !axes.contains(axis));
        let output: Vec<usize> =
            kept.map(|axis| if axes.contains(&axis) { 1 } else { dims[axis] }).collect();
        prop_assume!(!output.is_empty());
        Case::of(Op::Reduce { axes, mean }, n, &dims, &output).check_seed(seed);
    }

    #[test]
    fn global_mean(dims in extents(1..=4, 5), n in 1..4_usize, seed: u64) {
        let mut output = vec![1; dims.len()];
        output[0] = dims[0];
        Case::of(Op::GlobalAveragePool, n, &dims, &output).check_seed(seed);
    }

    #[test]
    fn softmax((dims, axis) in with_axis(), log: bool, n in 1..4_usize, seed: u64) {
        Case::of(Op::Softmax { axis, log }, n, &dims, &dims).check_seed(seed);
    }

    #[test]
    fn pad_and_crop(
        sides in proptest::collection::vec((1..4_usize, 0..3_usize, 0..3_usize), 1..4),
        value in -2.0..2.0_f32,
        n in 1..4_usize,
        seed: u64,
    ) {
        let of = |part: fn(&(usize, usize, usize)) -> usize| sides.iter().map(part).collect();
        let (dims, begin, end): (Vec<usize>, _, _) = (of(|s| s.0), of(|s| s.1), of(|s| s.2));
        let output: Vec<usize> = of(|s| s.0 + s.1 + s.2);
        let crop = Op::Crop { begin: begin.clone() };
        Case::of(crop, n, &output, &dims).check_seed(seed);
        Case::of(Op::Pad { begin, end, value }, n, &dims, &output).check_seed(seed);
    }

    #[test]
    fn transpose(
        (dims, axes) in extents(1..=4, 4).prop_flat_map(|dims| {
            let axes: Vec<usize> = (0..dims.len()).collect();
            (Just(dims), Just(axes).prop_shuffle())
        }),
        n in 1..4_usize,
        seed: u64,
    ) {
        let output: Vec<usize> = axes.iter().map(|axis| dims[*axis]).collect();
        Case::of(Op::Transpose { axes }, n, &dims, &output).check_seed(seed);
    }

    #[test]
    fn concat(
        (dims, axis) in with_axis(),
        lengths in proptest::collection::vec(1..4_usize, 1..4),
        n in 1..4_usize,
        seed: u64,
    ) {
        let with = |length: usize| {
            let mut dims = dims.clone();
            dims[axis] = length;
            dims
        };
        let inputs = lengths.iter().map(|length| Shape::batched(&with(*length))).collect();
        let output = with(lengths.iter().sum());
        let op = Op::Concat { axis };
        Case { op, n, inputs, states: Vec::new(), output }.check_seed(seed);
    }

    /// The same factors under another shape: joined, split and in another order.
    #[test]
    fn reshape(
        (from, to) in extents(1..=4, 4).prop_flat_map(|dims| {
            (Just(dims.clone()), Just(dims).prop_shuffle())
        }),
        joined in 1..4_usize,
        n in 1..4_usize,
        seed: u64,
    ) {
        let (first, rest) = to.split_at(joined.min(to.len()));
        let mut output = vec![first.iter().product()];
        output.extend(rest);
        Case::of(Op::Reshape, n, &from, &output).check_seed(seed);
        Case::of(Op::Reshape, n, &output, &from).check_seed(seed);
    }
}
