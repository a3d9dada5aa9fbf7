//! Convolutions and pools.

use super::*;

/// A window, and the extents of a picture that it fits in.
fn window(
    kernel: usize,
    dilation: usize,
    pad: usize,
) -> impl Strategy<Value = (Window, [usize; 2])> {
    let axis = move || {
        (1..=kernel, 1..=3_usize, 1..=dilation, 0..=pad, 0..=pad).prop_flat_map(
            |(kernel, stride, dilation, begin, end)| {
                let span = (kernel - 1) * dilation + 1;
                let least = span.saturating_sub(begin + end).max(1);
                (Just((kernel, stride, dilation, begin, end)), least..least + 6)
            },
        )
    };
    (axis(), axis()).prop_map(|((y, h), (x, w))| {
        let window = Window {
            kernel: [y.0, x.0],
            stride: [y.1, x.1],
            dilation: [y.2, x.2],
            begin: [y.3, x.3],
            end: [y.4, x.4],
            ceil: false,
        };
        (window, [h, w])
    })
}

/// A convolution of `group` times so many channels and maps.
pub(super) fn conv_case(
    (group, channels, maps): (usize, usize, usize),
    (window, [h, w]): (Window, [usize; 2]),
    n: usize,
    bias: bool,
) -> Case {
    let [oh, ow] = window.output([h, w]).unwrap();
    let [kh, kw] = window.kernel;
    let m = maps * group;
    let mut inputs = vec![Shape::batched(&[channels * group, h, w]), plain(&[m, channels, kh, kw])];
    inputs.extend(bias.then(|| plain(&[m])));
    let op = Op::Conv { window, group };
    Case { op, n, inputs, states: Vec::new(), output: vec![m, oh, ow] }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn conv(
        sizes in (1..4_usize, 1..4_usize, 1..4_usize),
        window in window(3, 2, 3),
        n in 1..4_usize,
        bias: bool,
        seed: u64,
    ) {
        conv_case(sizes, window, n, bias).check_seed(seed);
    }

    /// Kernels of one pixel, and of 3 x 3 without stride, have ways of their own.
    #[test]
    fn plain_conv(
        sizes in (1..3_usize, 1..10_usize, 1..10_usize),
        side in prop_oneof![Just(1_usize), Just(3)],
        stride in prop_oneof![4 => Just(1_usize), 1 => Just(2)],
        picture in (1..13_usize, 1..13_usize),
        n in 1..6_usize,
        bias: bool,
        seed: u64,
    ) {
        let pad = [side / 2; 2];
        let window = Window {
            kernel: [side; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            begin: pad,
            end: pad,
            ceil: false,
        };
        conv_case(sizes, (window, [picture.0, picture.1]), n, bias).check_seed(seed);
    }

    #[test]
    fn depthwise_conv(
        sizes in (1..6_usize, Just(1_usize), 1..4_usize),
        window in window(5, 2, 3),
        n in 1..4_usize,
        bias: bool,
        seed: u64,
    ) {
        conv_case(sizes, window, n, bias).check_seed(seed);
    }

    #[test]
    fn pools(
        kind in 0..3_u8,
        (window, [h, w]) in window(4, 2, 2),
        ceil: bool,
        n in 1..4_usize,
        c in 1..4_usize,
        seed: u64,
    ) {
        // ONNX wants paddings smaller than the kernel.
        prop_assume!((0..2).all(|axis| {
            window.begin[axis].max(window.end[axis]) < window.kernel[axis]
        }));
        let window = Window { ceil, ..window };
        let Some([oh, ow]) = window.output([h, w]) else { return Ok(()) };
        let op = match kind {
            0 => Op::MaxPool(window),
            1 => Op::AveragePool { window, include_pad: true },
            _ => Op::AveragePool { window, include_pad: false },
        };
        let case = Case::of(op, n, &[c, h, w], &[c, oh, ow]);
        prop_assume!(case.reference(true).sees_everywhere());
        case.check_seed(seed);
    }
}

#[test]
fn conv_over_several_blocks() {
    let mut draw = Draw::new(3);
    for (kernel, channels) in [(3, 64), (1, 520)] {
        let pad = kernel / 2;
        let window = Window {
            kernel: [kernel; 2],
            stride: [1; 2],
            dilation: [1; 2],
            begin: [pad; 2],
            end: [pad; 2],
            ceil: false,
        };
        let inputs = vec![
            Shape::batched(&[channels, 9, 8]),
            plain(&[2, channels, kernel, kernel]),
            plain(&[2]),
        ];
        let op = Op::Conv { window, group: 1 };
        Case { op, n: 5, inputs, states: Vec::new(), output: vec![2, 9, 8] }.check(&mut draw);
    }
}

#[test]
fn depthwise_conv_over_several_blocks() {
    let mut draw = Draw::new(11);
    for (kernel, stride, side) in [(3, 1, 20), (5, 2, 33), (3, 2, 9)] {
        let window = Window {
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            begin: [kernel / 2; 2],
            end: [kernel / 2; 2],
            ceil: false,
        };
        let [h, w] = window.output([side, side + 1]).unwrap();
        let inputs = vec![Shape::batched(&[4, side, side + 1]), plain(&[4, 1, kernel, kernel])];
        let op = Op::Conv { window, group: 4 };
        Case { op, n: 13, inputs, states: Vec::new(), output: vec![4, h, w] }.check(&mut draw);
    }
}

#[test]
fn depthwise_conv_with_far_steps_takes_little_memory() {
    let far = |stride: usize, dilation: usize, pad: usize| Window {
        kernel: [3; 2],
        stride: [stride; 2],
        dilation: [dilation; 2],
        begin: [pad; 2],
        end: [pad; 2],
        ceil: false,
    };
    for window in [far(1 << 16, 1, 1), far(1, 1 << 16, 1 << 16), far(500, 100, 200)] {
        let [h, w] = window.output([5, 6]).unwrap();
        let inputs = vec![Shape::batched(&[2, 5, 6]), plain(&[2, 1, 3, 3])];
        let op = Op::Conv { window, group: 2 };
        let case = Case { op, n: 2, inputs, states: Vec::new(), output: vec![2, h, w] };
        let (graph, node) = case.graph();
        assert!(build(&graph, &node, 1).scratch(2, 1) < 1 << 20);
        case.check(&mut Draw::new(16));
    }
}
