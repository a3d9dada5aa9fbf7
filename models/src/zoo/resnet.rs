//! Residual networks (He et al. 2016), with torchvision's initial weights.

use super::builder::{Builder, Conv};
use super::initial::{Draw, Fan};

/// The networks for small pictures: three stages of 16, 32 and 64 channels with so many blocks
/// each, projections where the shape changes.
pub(super) fn small(graph: &mut Builder, classes: usize, blocks: usize) {
    graph.keep_variance(Fan::Out);
    graph.conv("stem.conv", Conv::of(16, 3));
    graph.batch_norm("stem.norm");
    graph.relu();
    for (stage, maps, stride) in [("stage1", 16, 1), ("stage2", 32, 2), ("stage3", 64, 2)] {
        for at in 0..blocks {
            let name =
                if blocks == 1 { stage.to_owned() } else { format!("{stage}.block{}", at + 1) };
            basic_block(graph, &name, maps, if at == 0 { stride } else { 1 });
        }
    }
    head(graph, classes);
}

/// Four stages of 64 to 512 channels with blocks of two 3x3 convolutions.
pub(super) fn basic(graph: &mut Builder, classes: usize, blocks: [usize; 4]) {
    stages(graph, classes, blocks, basic_block);
}

/// Four stages of 256 to 2048 channels with blocks of three convolutions, narrow in the middle;
/// the middle one has the stride.
pub(super) fn bottleneck(graph: &mut Builder, classes: usize, blocks: [usize; 4]) {
    stages(graph, classes, blocks, bottleneck_block);
}

fn stages(
    graph: &mut Builder,
    classes: usize,
    blocks: [usize; 4],
    block: fn(&mut Builder, &str, usize, usize),
) {
    graph.keep_variance(Fan::Out);
    if graph.is_small() {
        graph.conv("stem.conv", Conv::of(64, 3));
        graph.batch_norm("stem.norm");
        graph.relu();
    } else {
        graph.conv("stem.conv", Conv::of(64, 7).stride(2));
        graph.batch_norm("stem.norm");
        graph.relu();
        graph.max_pool_3x3(1, false);
    }
    for (stage, (blocks, maps)) in blocks.into_iter().zip([64, 128, 256, 512]).enumerate() {
        for at in 0..blocks {
            let stride = if stage > 0 && at == 0 { 2 } else { 1 };
            block(graph, &format!("stage{}.block{}", stage + 1, at + 1), maps, stride);
        }
    }
    head(graph, classes);
}

fn head(graph: &mut Builder, classes: usize) {
    graph.global_average_pool();
    graph.flatten();
    let uniform = Draw::uniform(graph.channels());
    graph.dense_from("classes", classes, uniform, uniform);
}

fn basic_block(graph: &mut Builder, name: &str, maps: usize, stride: usize) {
    let convs = [Conv::of(maps, 3).stride(stride), Conv::of(maps, 3)];
    block(graph, name, &convs, maps, stride);
}

fn bottleneck_block(graph: &mut Builder, name: &str, maps: usize, stride: usize) {
    let convs = [Conv::of(maps, 1), Conv::of(maps, 3).stride(stride), Conv::of(4 * maps, 1)];
    block(graph, name, &convs, 4 * maps, stride);
}

fn block(graph: &mut Builder, name: &str, convs: &[Conv], maps: usize, stride: usize) {
    let entry = graph.here();
    let changes = stride != 1 || graph.channels() != maps;
    for (at, conv) in convs.iter().enumerate() {
        graph.conv(&format!("{name}.conv{}", at + 1), *conv);
        graph.batch_norm(&format!("{name}.norm{}", at + 1));
        if at + 1 < convs.len() {
            graph.relu();
        }
    }
    let long = graph.here();
    graph.go_to(entry);
    if changes {
        graph.conv(&format!("{name}.shortcut.conv"), Conv::of(maps, 1).stride(stride));
        graph.batch_norm(&format!("{name}.shortcut.norm"));
    }
    graph.add(long);
    graph.relu();
}
