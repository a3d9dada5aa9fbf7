//! Batch normalisation taken into the convolution before it.

use std::collections::{BTreeMap, BTreeSet};

use crate::onnx::{GraphProto, NodeProto, TensorProto};

/// Names that a node or the graph takes, with how often.
type Uses = BTreeMap<String, usize>;

/// Replaces each convolution and the normalisation behind it by one convolution, where nothing
/// else takes the values between or the weights. The graph is one for inference.
///
/// With `f = scale / sqrt(variance + epsilon)` per map, weights become `f w` and the bias
/// `f (b - mean) + bias`.
pub(super) fn fold(graph: &mut GraphProto) {
    let mut uses = Uses::new();
    let inputs = graph.node.iter().flat_map(|node| &node.input);
    for name in inputs.chain(graph.output.iter().map(|info| &info.name)) {
        *uses.entry(name.clone()).or_default() += 1;
    }
    let tensors: BTreeMap<String, usize> = graph
        .initializer
        .iter()
        .enumerate()
        .map(|(at, tensor)| (tensor.name.clone(), at))
        .collect();
    let convs: BTreeMap<String, usize> = graph
        .node
        .iter()
        .enumerate()
        .filter(|(_, node)| node.op_type == "Conv")
        .filter_map(|(at, node)| Some((node.output.first()?.clone(), at)))
        .collect();
    let mut folded = BTreeSet::new();
    for at in 0..graph.node.len() {
        let node = &graph.node[at];
        let source = node.input.first().and_then(|name| convs.get(name));
        let (true, Some(conv)) = (node.op_type == "BatchNormalization", source) else { continue };
        let Some([weights, bias]) =
            Folded::read(&graph.initializer, &tensors, &uses, &graph.node[*conv], node)
                .map(Folded::tensors)
        else {
            continue;
        };
        let output = node.output.clone();
        let conv = &mut graph.node[*conv];
        conv.input = vec![conv.input[0].clone(), weights.name.clone(), bias.name.clone()];
        conv.output = output;
        for tensor in [weights, bias] {
            let place = tensors[&tensor.name];
            graph.initializer[place] = tensor;
        }
        folded.insert(at);
    }
    let mut at = 0..graph.node.len();
    graph.node.retain(|_| at.next().is_none_or(|at| !folded.contains(&at)));
}

/// A convolution with a normalisation in it.
struct Folded<'a> {
    weights: &'a str,
    shape: Vec<usize>,
    values: Vec<f32>,
    /// Where the bias is put: the convolution's own, or the normalisation's.
    bias: &'a str,
    /// By map: factor of the weights, and the bias.
    maps: Vec<(f64, f64)>,
}

impl<'a> Folded<'a> {
    /// `None` when something else needs the parts, or they are not what they should be.
    fn read(
        all: &[TensorProto],
        places: &BTreeMap<String, usize>,
        uses: &Uses,
        conv: &'a NodeProto,
        norm: &'a NodeProto,
    ) -> Option<Self> {
        let once = |name: &String| uses.get(name) == Some(&1);
        let read = |name: &str| all[*places.get(name)?].to_f32().ok();
        let [_, scale, bias, mean, variance] = norm.input.as_slice() else { return None };
        let own = conv.input.get(2).filter(|name| !name.is_empty());
        let weights = conv.input.get(1)?;
        let kept = own.unwrap_or(bias);
        if !(once(norm.input.first()?) && once(weights) && once(kept)) {
            return None;
        }
        let (shape, values) = read(weights)?;
        let maps = *shape.first()?;
        let vector = |name: &str| Some(read(name)?.1).filter(|values| values.len() == maps);
        let (scale, bias) = (vector(scale)?, vector(bias)?);
        let (mean, variance) = (vector(mean)?, vector(variance)?);
        let before = own.map_or_else(|| Some(vec![0.0; maps]), |name| vector(name))?;
        let epsilon = norm.attribute.iter().find(|attribute| attribute.name == "epsilon");
        let epsilon = f64::from(epsilon.map_or(1e-5, |attribute| attribute.f.unwrap_or(0.0)));
        let wide = f64::from;
        let map = |map: usize| {
            let factor = wide(scale[map]) / (wide(variance[map]) + epsilon).sqrt();
            (factor, factor * (wide(before[map]) - wide(mean[map])) + wide(bias[map]))
        };
        let maps = (0..maps).map(map).collect();
        Some(Self { weights, shape, values, bias: kept, maps })
    }

    fn tensors(mut self) -> [TensorProto; 2] {
        let per_map = self.values.len() / self.maps.len().max(1);
        for (weights, (factor, _)) in self.values.chunks_mut(per_map.max(1)).zip(&self.maps) {
            for weight in weights {
                *weight = narrow(f64::from(*weight) * factor);
            }
        }
        let bias: Vec<f32> = self.maps.iter().map(|(_, bias)| narrow(*bias)).collect();
        [
            TensorProto::from_f32(self.weights, &self.shape, &self.values),
            TensorProto::from_f32(self.bias, &[bias.len()], &bias),
        ]
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn narrow(value: f64) -> f32 {
    value as f32
}
