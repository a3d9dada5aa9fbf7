//! Convolutions and pools.

use super::*;

fn conv_case(
    draw: &mut Draw,
    group: usize,
    channels: usize,
    maps: usize,
    window: Window,
) -> Option<Case> {
    let (n, input) = (draw.from(1, 3), [draw.from(1, 7), draw.from(1, 7)]);
    let output = window.output(input)?;
    let m = maps * group;
    let [kh, kw] = window.kernel;
    let mut inputs = vec![
        Shape::batched(&[channels * group, input[0], input[1]]),
        plain(&[m, channels, kh, kw]),
    ];
    if draw.below(2) == 0 {
        inputs.push(plain(&[m]));
    }
    let op = Op::Conv { window, group };
    Some(Case { op, n, inputs, states: Vec::new(), output: vec![m, output[0], output[1]] })
}

#[test]
fn conv() {
    let mut draw = Draw::new(1);
    let mut done = 0;
    while done < 60 {
        let (group, channels, maps) = (draw.from(1, 3), draw.from(1, 3), draw.from(1, 3));
        let window = draw.window(3);
        if let Some(case) = conv_case(&mut draw, group, channels, maps, window) {
            case.check(&mut draw);
            done += 1;
        }
    }
}

#[test]
fn plain_conv_of_one_pixel() {
    let mut draw = Draw::new(2);
    let window = Window {
        kernel: [1; 2],
        stride: [1; 2],
        dilation: [1; 2],
        begin: [0; 2],
        end: [0; 2],
        ceil: false,
    };
    for group in [1, 2, 3] {
        conv_case(&mut draw, group, 2, 3, window).unwrap().check(&mut draw);
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
fn depthwise_conv() {
    let mut draw = Draw::new(10);
    let mut done = 0;
    while done < 80 {
        let (group, maps) = (draw.from(1, 5), draw.from(1, 3));
        let window = draw.window(3);
        if let Some(case) = conv_case(&mut draw, group, 1, maps, window) {
            case.check(&mut draw);
            done += 1;
        }
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

#[test]
fn pools() {
    let mut draw = Draw::new(4);
    let mut done = 0;
    while done < 120 {
        let window = Window { ceil: draw.below(2) == 0, ..draw.window(2) };
        let (n, c, h, w) = (draw.from(1, 3), draw.from(1, 3), draw.from(1, 7), draw.from(1, 7));
        let Some([oh, ow]) = window.output([h, w]) else { continue };
        let op = match done % 3 {
            0 => Op::MaxPool(window),
            1 => Op::AveragePool { window, include_pad: true },
            _ => Op::AveragePool { window, include_pad: false },
        };
        let inputs = vec![Shape::batched(&[c, h, w])];
        let case = Case { op, n, inputs, states: Vec::new(), output: vec![c, oh, ow] };
        if case.reference(true).sees_everywhere() {
            case.check(&mut draw);
            done += 1;
        }
    }
}
