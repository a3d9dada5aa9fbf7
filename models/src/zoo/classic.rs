//! Networks without normalisation.

use super::builder::{Builder, Conv};

/// One hidden layer of 64.
pub(super) fn mlp(graph: &mut Builder, classes: usize) {
    graph.flatten();
    graph.dense("hidden", 64);
    graph.relu();
    graph.dense("classes", classes);
}

/// Two convolutions and three dense layers (`LeCun` et al. 1998), with rectifiers.
pub(super) fn lenet(graph: &mut Builder, classes: usize) {
    for (name, maps) in [("conv1", 6), ("conv2", 16)] {
        // Without padding as in the paper where the picture is large enough to stay one.
        let pad = if graph.smallest_side() >= 12 { 0 } else { 2 };
        graph.conv(name, Conv::of(maps, 5).pad(pad).biased());
        graph.relu();
        graph.max_pool();
    }
    graph.flatten();
    for (name, features) in [("dense1", 120), ("dense2", 84)] {
        graph.dense(name, features);
        graph.relu();
    }
    graph.dense("classes", classes);
}

/// Two 3x3 convolutions of 32 and 64 channels, each with pooling, and one dense layer.
pub(super) fn cnn(graph: &mut Builder, classes: usize) {
    for (name, maps) in [("conv1", 32), ("conv2", 64)] {
        graph.conv(name, Conv::of(maps, 3).biased());
        graph.relu();
        graph.max_pool();
    }
    graph.flatten();
    graph.dense("classes", classes);
}

/// Configuration A of Simonyan & Zisserman 2015.
pub(super) fn vgg11(graph: &mut Builder, classes: usize) {
    let stages: [&[usize]; 5] = [&[64], &[128], &[256, 256], &[512, 512], &[512, 512]];
    for (stage, maps) in stages.iter().enumerate() {
        for (at, maps) in maps.iter().enumerate() {
            graph.conv(&format!("stage{}.conv{}", stage + 1, at + 1), Conv::of(*maps, 3).biased());
            graph.relu();
        }
        graph.max_pool();
    }
    graph.flatten();
    for name in ["dense1", "dense2"] {
        graph.dense(name, 4096);
        graph.relu();
        graph.dropout(0.5);
    }
    graph.dense("classes", classes);
}

/// Version 1.1 of Iandola et al. 2016.
pub(super) fn squeezenet(graph: &mut Builder, classes: usize) {
    let stem = if graph.is_small() { Conv::of(64, 3) } else { Conv::of(64, 3).stride(2).pad(0) };
    graph.conv("stem", stem.biased());
    graph.relu();
    let stages: [&[[usize; 2]]; 3] = [
        &[[16, 64], [16, 64]],
        &[[32, 128], [32, 128]],
        &[[48, 192], [48, 192], [64, 256], [64, 256]],
    ];
    let mut number = 1;
    for fires in stages {
        graph.max_pool_3x3(0, true);
        for [squeeze, expand] in fires {
            fire(graph, &format!("fire{number}"), *squeeze, *expand);
            number += 1;
        }
    }
    graph.dropout(0.5);
    graph.conv("classes", Conv::of(classes, 1).biased());
    graph.relu();
    graph.global_average_pool();
    graph.flatten();
}

/// A narrow layer, and two wide ones behind it side by side.
fn fire(graph: &mut Builder, name: &str, squeeze: usize, expand: usize) {
    graph.conv(&format!("{name}.squeeze"), Conv::of(squeeze, 1).biased());
    graph.relu();
    let narrow = graph.here();
    graph.conv(&format!("{name}.expand3"), Conv::of(expand, 3).biased());
    graph.relu();
    let wide = graph.here();
    graph.go_to(narrow);
    graph.conv(&format!("{name}.expand1"), Conv::of(expand, 1).biased());
    graph.relu();
    graph.concat(wide);
}
