//! Built-in families as functions that make an ONNX graph in training form.

mod builder;

use builder::Builder;

/// The families, by the name that jobs use.
pub const FAMILIES: [&str; 4] = ["mlp", "lenet", "cnn", "resnet8"];

/// Builds a family for examples of `shape [c, h, w]`, initial weights drawn from `seed`
/// (He et al. 2015); `None` for an unknown family, and for extents or classes of 0.
pub fn build(family: &str, shape: [usize; 3], classes: usize, seed: u64) -> Option<Vec<u8>> {
    if shape.contains(&0) || classes == 0 {
        return None;
    }
    let mut graph = Builder::new(shape, seed);
    match family {
        "mlp" => mlp(&mut graph, classes),
        "lenet" => lenet(&mut graph, classes),
        "cnn" => cnn(&mut graph, classes),
        "resnet8" => resnet8(&mut graph, classes),
        _ => return None,
    }
    Some(graph.finish(family, classes))
}

/// One hidden layer of 64.
fn mlp(graph: &mut Builder, classes: usize) {
    graph.flatten();
    graph.dense("hidden", 64);
    graph.relu();
    graph.dense("classes", classes);
}

/// Two convolutions and three dense layers (`LeCun` et al. 1998), with rectifiers.
fn lenet(graph: &mut Builder, classes: usize) {
    for (name, maps) in [("conv1", 6), ("conv2", 16)] {
        // Without padding as in the paper where the picture is large enough to stay one.
        let pad = if graph.smallest_side() >= 12 { 0 } else { 2 };
        graph.conv(name, maps, 5, 1, pad, true);
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
fn cnn(graph: &mut Builder, classes: usize) {
    for (name, maps) in [("conv1", 32), ("conv2", 64)] {
        graph.conv(name, maps, 3, 1, 1, true);
        graph.relu();
        graph.max_pool();
    }
    graph.flatten();
    graph.dense("classes", classes);
}

/// The residual network for small pictures of He et al. 2016 with one block per stage: 16, 32
/// and 64 channels, projections where the shape changes.
fn resnet8(graph: &mut Builder, classes: usize) {
    graph.conv("stem.conv", 16, 3, 1, 1, false);
    graph.batch_norm("stem.norm");
    graph.relu();
    for (stage, maps, stride) in [("stage1", 16, 1), ("stage2", 32, 2), ("stage3", 64, 2)] {
        let entry = graph.here();
        graph.conv(&format!("{stage}.conv1"), maps, 3, stride, 1, false);
        graph.batch_norm(&format!("{stage}.norm1"));
        graph.relu();
        graph.conv(&format!("{stage}.conv2"), maps, 3, 1, 1, false);
        graph.batch_norm(&format!("{stage}.norm2"));
        let long = graph.here();
        graph.go_to(entry);
        if stride != 1 {
            graph.conv(&format!("{stage}.shortcut.conv"), maps, 1, stride, 0, false);
            graph.batch_norm(&format!("{stage}.shortcut.norm"));
        }
        graph.add(long);
        graph.relu();
    }
    graph.global_average_pool();
    graph.flatten();
    graph.dense("classes", classes);
}

#[cfg(test)]
mod tests;
