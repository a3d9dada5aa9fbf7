//! Built-in families as functions that make an ONNX graph in training form.
//!
//! Families with a paper have its layers as torchvision has them, and so its number of trained
//! parameters. Pictures whose smaller side is below 64 keep their size in the first layer.
//! `EfficientNet` is built without stochastic depth; exports that have it are trained with it.

mod builder;
mod classic;
mod mobile;
mod resnet;

use builder::Builder;

/// The families, by the name that jobs use.
pub const FAMILIES: [&str; 14] = [
    "mlp",
    "lenet",
    "cnn",
    "vgg11",
    "resnet8",
    "resnet18",
    "resnet20",
    "resnet34",
    "resnet50",
    "resnet101",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "squeezenet",
];

/// What a family costs for examples of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cost {
    /// Trained values.
    pub parameters: u64,
    /// Multiplications with an addition in convolutions and products, forward, per example.
    pub multiply_adds: u64,
    /// Bytes of parameters and running statistics as `f32`.
    pub bytes: u64,
}

/// Builds a family for examples of `shape [c, h, w]`, initial weights drawn from `seed`
/// (He et al. 2015); `None` for an unknown family, and for extents or classes of 0.
pub fn build(family: &str, shape: [usize; 3], classes: usize, seed: u64) -> Option<Vec<u8>> {
    let graph = layers(family, shape, classes, Builder::new(shape, seed))?;
    Some(graph.finish(family, classes))
}

/// What a family costs, without building its weights; `None` as for [`build`].
pub fn cost(family: &str, shape: [usize; 3], classes: usize) -> Option<Cost> {
    layers(family, shape, classes, Builder::without_values(shape)).map(|graph| graph.cost())
}

/// Every family with its cost for examples of `shape [c, h, w]`; empty for extents or classes of
/// 0.
pub fn list(shape: [usize; 3], classes: usize) -> Vec<(&'static str, Cost)> {
    let with_cost = |family: &'static str| Some((family, cost(family, shape, classes)?));
    FAMILIES.into_iter().filter_map(with_cost).collect()
}

fn layers(
    family: &str,
    shape: [usize; 3],
    classes: usize,
    mut builder: Builder,
) -> Option<Builder> {
    if shape.contains(&0) || classes == 0 {
        return None;
    }
    let graph = &mut builder;
    match family {
        "mlp" => classic::mlp(graph, classes),
        "lenet" => classic::lenet(graph, classes),
        "cnn" => classic::cnn(graph, classes),
        "vgg11" => classic::vgg11(graph, classes),
        "squeezenet" => classic::squeezenet(graph, classes),
        "resnet8" => resnet::small(graph, classes, 1),
        "resnet20" => resnet::small(graph, classes, 3),
        "resnet18" => resnet::basic(graph, classes, [2, 2, 2, 2]),
        "resnet34" => resnet::basic(graph, classes, [3, 4, 6, 3]),
        "resnet50" => resnet::bottleneck(graph, classes, [3, 4, 6, 3]),
        "resnet101" => resnet::bottleneck(graph, classes, [3, 4, 23, 3]),
        "mobilenet_v2" => mobile::mobilenet_v2(graph, classes),
        "mobilenet_v3_small" => mobile::mobilenet_v3_small(graph, classes),
        "efficientnet_b0" => mobile::efficientnet_b0(graph, classes),
        _ => return None,
    }
    Some(builder)
}

#[cfg(test)]
mod tests;
