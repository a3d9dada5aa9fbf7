//! Networks of inverted residual blocks with depthwise convolutions, with torchvision's initial
//! weights.

use super::builder::{Builder, Conv, Place};
use super::initial::{Draw, Fan};

/// Of the dense layers of `MobileNet`.
const NARROW: Draw = Draw::Normal { deviation: 0.01 };
const ZERO: Draw = Draw::Constant(0.0);

/// A function between layers.
#[derive(Debug, Clone, Copy)]
enum Function {
    Relu,
    Relu6,
    HardSwish,
    /// `x sigmoid(x)`
    Swish,
}

/// Squeeze and excitation (Hu et al. 2018): each channel is weighed by what all of them say.
#[derive(Debug, Clone, Copy)]
enum Excitation {
    None,
    /// With so many channels in the middle, a rectifier, and a hard sigmoid.
    Hard(usize),
    /// The same with swish and a sigmoid.
    Smooth(usize),
}

/// An inverted residual block: wider by a 1x1 convolution, depthwise, and narrow again.
#[derive(Debug, Clone, Copy)]
struct Block {
    wide: usize,
    maps: usize,
    kernel: usize,
    stride: usize,
    function: Function,
    excitation: Excitation,
}

/// Sandler et al. 2018.
pub(super) fn mobilenet_v2(graph: &mut Builder, classes: usize) {
    stem(graph, 32, Function::Relu6);
    let stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    let mut number = 1;
    for (factor, maps, blocks, stride) in stages {
        for at in 0..blocks {
            let block = Block {
                wide: factor * graph.channels(),
                maps,
                kernel: 3,
                stride: if at == 0 { stride } else { 1 },
                function: Function::Relu6,
                excitation: Excitation::None,
            };
            add_block(graph, &format!("block{number}"), block);
            number += 1;
        }
    }
    conv_norm(graph, "last", Conv::of(1280, 1), Some(Function::Relu6));
    graph.global_average_pool();
    graph.flatten();
    graph.dropout(0.2);
    graph.dense_from("classes", classes, NARROW, ZERO);
}

/// Howard et al. 2019, the small one.
pub(super) fn mobilenet_v3_small(graph: &mut Builder, classes: usize) {
    use Function::{HardSwish, Relu};
    stem(graph, 16, HardSwish);
    let blocks = [
        (3, 16, 16, true, Relu, 2),
        (3, 72, 24, false, Relu, 2),
        (3, 88, 24, false, Relu, 1),
        (5, 96, 40, true, HardSwish, 2),
        (5, 240, 40, true, HardSwish, 1),
        (5, 240, 40, true, HardSwish, 1),
        (5, 120, 48, true, HardSwish, 1),
        (5, 144, 48, true, HardSwish, 1),
        (5, 288, 96, true, HardSwish, 2),
        (5, 576, 96, true, HardSwish, 1),
        (5, 576, 96, true, HardSwish, 1),
    ];
    for (at, (kernel, wide, maps, excited, function, stride)) in blocks.into_iter().enumerate() {
        let excitation =
            if excited { Excitation::Hard(eights(wide / 4)) } else { Excitation::None };
        let block = Block { wide, maps, kernel, stride, function, excitation };
        add_block(graph, &format!("block{}", at + 1), block);
    }
    conv_norm(graph, "last", Conv::of(576, 1), Some(HardSwish));
    graph.global_average_pool();
    graph.flatten();
    graph.dense_from("hidden", 1024, NARROW, ZERO);
    apply(graph, HardSwish);
    graph.dropout(0.2);
    graph.dense_from("classes", classes, NARROW, ZERO);
}

/// Tan & Le 2019, the smallest one, without stochastic depth.
pub(super) fn efficientnet_b0(graph: &mut Builder, classes: usize) {
    stem(graph, 32, Function::Swish);
    let stages = [
        (1, 3, 16, 1, 1),
        (6, 3, 24, 2, 2),
        (6, 5, 40, 2, 2),
        (6, 3, 80, 3, 2),
        (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2),
        (6, 3, 320, 1, 1),
    ];
    let mut number = 1;
    for (factor, kernel, maps, blocks, stride) in stages {
        for at in 0..blocks {
            let entry = graph.channels();
            let block = Block {
                wide: factor * entry,
                maps,
                kernel,
                stride: if at == 0 { stride } else { 1 },
                function: Function::Swish,
                excitation: Excitation::Smooth(entry / 4),
            };
            add_block(graph, &format!("block{number}"), block);
            number += 1;
        }
    }
    conv_norm(graph, "last", Conv::of(1280, 1), Some(Function::Swish));
    graph.global_average_pool();
    graph.flatten();
    graph.dropout(0.2);
    graph.dense_from("classes", classes, Draw::uniform(classes), ZERO);
}

/// The nearest multiple of 8 that is at most a tenth smaller, as these papers count channels.
fn eights(channels: usize) -> usize {
    let rounded = ((channels + 4) / 8 * 8).max(8);
    if 10 * rounded < 9 * channels { rounded + 8 } else { rounded }
}

fn stem(graph: &mut Builder, maps: usize, function: Function) {
    graph.keep_variance(Fan::Out);
    let stride = if graph.is_small() { 1 } else { 2 };
    conv_norm(graph, "stem", Conv::of(maps, 3).stride(stride), Some(function));
}

fn conv_norm(graph: &mut Builder, name: &str, conv: Conv, function: Option<Function>) {
    graph.conv(&format!("{name}.conv"), conv);
    graph.batch_norm(&format!("{name}.norm"));
    if let Some(function) = function {
        apply(graph, function);
    }
}

fn apply(graph: &mut Builder, function: Function) {
    match function {
        Function::Relu => graph.relu(),
        Function::Relu6 => graph.clip(0.0, 6.0),
        Function::HardSwish => graph.hard_swish(),
        Function::Swish => {
            let x = graph.here();
            graph.sigmoid();
            graph.multiply(x);
        }
    }
}

fn add_block(graph: &mut Builder, name: &str, block: Block) {
    let Block { wide, maps, kernel, stride, function, excitation } = block;
    let entry = graph.here();
    let residual = stride == 1 && graph.channels() == maps;
    if wide != graph.channels() {
        conv_norm(graph, &format!("{name}.expand"), Conv::of(wide, 1), Some(function));
    }
    let depthwise = Conv::of(wide, kernel).stride(stride).group(wide);
    conv_norm(graph, &format!("{name}.depthwise"), depthwise, Some(function));
    excite(graph, name, excitation);
    conv_norm(graph, &format!("{name}.project"), Conv::of(maps, 1), None);
    if residual {
        graph.add(entry);
    }
}

fn excite(graph: &mut Builder, name: &str, excitation: Excitation) {
    let x: Place = graph.here();
    let wide = graph.channels();
    let (Excitation::Hard(narrow) | Excitation::Smooth(narrow)) = excitation else { return };
    graph.global_average_pool();
    graph.conv(&format!("{name}.squeeze"), Conv::of(narrow, 1).biased());
    match excitation {
        Excitation::Smooth(_) => apply(graph, Function::Swish),
        Excitation::Hard(_) | Excitation::None => graph.relu(),
    }
    graph.conv(&format!("{name}.excite"), Conv::of(wide, 1).biased());
    match excitation {
        Excitation::Smooth(_) => graph.sigmoid(),
        Excitation::Hard(_) | Excitation::None => graph.hard_sigmoid(1.0 / 6.0, 0.5),
    }
    graph.multiply(x);
}
