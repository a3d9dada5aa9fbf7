//! Nodes that need not be computed: padding before a convolution, axes moved back and forth, and
//! what no output takes. The file keeps them.

use super::{Graph, Node, Op, ValueId};

/// Takes padding into convolutions and joins moves of axes; leaves out what is not needed then.
pub(super) fn simplify(graph: &mut Graph) {
    let mut maker: Vec<Option<usize>> = vec![None; graph.values.len()];
    for at in 0..graph.nodes.len() {
        let (done, rest) = graph.nodes.split_at_mut(at);
        let Some(node) = rest.first_mut() else { break };
        let before = maker[node.inputs[0].0].map(|maker| &done[maker]);
        if let Some(before) = before {
            join(before, node);
        }
        maker[node.output.0] = Some(at);
    }
    skip_unmoved(graph);
    drop_unused(graph);
}

/// Lets a node take what the node before it takes, where it can do the work of both.
fn join(before: &Node, node: &mut Node) {
    match (&before.op, &mut node.op) {
        (Op::Pad { begin, end, value }, Op::Conv { window, .. }) if *value == 0.0 => {
            let ([0, top, left], [0, bottom, right]) = (begin.as_slice(), end.as_slice()) else {
                return;
            };
            window.begin = [window.begin[0] + top, window.begin[1] + left];
            window.end = [window.end[0] + bottom, window.end[1] + right];
        }
        (Op::Transpose { axes: first }, Op::Transpose { axes }) => {
            *axes = axes.iter().map(|axis| first[*axis]).collect();
        }
        _ => return,
    }
    node.inputs[0] = before.inputs[0];
}

/// Takes the input in the place of what a move of no axis gives.
fn skip_unmoved(graph: &mut Graph) {
    let mut same: Vec<ValueId> = (0..graph.values.len()).map(ValueId).collect();
    for node in graph.nodes.iter_mut().chain(&mut graph.last) {
        for input in &mut node.inputs {
            *input = same[input.0];
        }
        if let Op::Transpose { axes } = &node.op
            && axes.iter().copied().eq(0..axes.len())
        {
            same[node.output.0] = node.inputs[0];
        }
    }
    graph.output = same[graph.output.0];
}

fn drop_unused(graph: &mut Graph) {
    let mut used = vec![false; graph.values.len()];
    used[graph.output.0] = true;
    let mut kept: Vec<Node> = Vec::with_capacity(graph.nodes.len());
    for node in std::mem::take(&mut graph.nodes).into_iter().rev() {
        if used[node.output.0] {
            node.inputs.iter().for_each(|input| used[input.0] = true);
            kept.push(node);
        }
    }
    kept.reverse();
    graph.nodes = kept;
}
