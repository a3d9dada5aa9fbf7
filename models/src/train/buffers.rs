//! Which memory each activation and each gradient lies in, and for how long.
//!
//! Time is counted in steps: of `N` nodes, node `i` goes forward at step `i`, the loss is taken at
//! step `N`, and node `i` goes backward at step `2 N - i`. What is needed at different times
//! shares memory, laid out as in Pisarchyk & Lee 2020, "Efficient memory management for deep
//! neural net inference": the largest first, each at the lowest place that is free all its time.
//! What costs little, batch normalisation and a function of its outputs, is not kept for the
//! backward pass but computed again (Chen et al. 2016, "Training deep nets with sublinear memory
//! cost").

use std::ops::{Range, RangeInclusive};

use crate::graph::{Graph, Node, Op, Origin, ValueId};
use crate::kernels::Reads;

/// The plan of a graph's memory: one stretch, in which places and lengths count elements per
/// example.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// By value: where it lies from its computation on; `None` for parameters.
    activation: Vec<Option<usize>>,
    /// By value: where it lies when it was computed again.
    again: Vec<Option<usize>>,
    /// By value: where its gradient lies; `None` where none is needed, and for weights.
    pub(super) gradient: Vec<Option<usize>>,
    /// By node: nodes that are computed again before it goes backward, in their order.
    pub(super) repeated: Vec<Vec<usize>>,
    /// By value: steps at which what it holds is its own.
    live: Vec<Vec<RangeInclusive<usize>>>,
    /// Elements of the whole.
    pub(super) len: usize,
}

/// What lies in a place for some time.
struct Tenant {
    value: ValueId,
    what: What,
    live: RangeInclusive<usize>,
}

#[derive(Clone, Copy)]
enum What {
    Activation,
    Again,
    Gradient,
}

impl Buffers {
    /// `reads` says for each node what its backward pass reads.
    pub(super) fn new(graph: &Graph, reads: &[Reads]) -> Self {
        let uses = Uses::new(graph, reads);
        let mut repeated = vec![Vec::new(); graph.nodes.len()];
        let mut tenants = Vec::new();
        uses.activations(graph, &mut tenants, &mut repeated);
        for id in uses.values(graph) {
            if let Some(live) = uses.gradient(graph, id) {
                tenants.push(Tenant { value: id, what: What::Gradient, live });
            }
        }
        for nodes in &mut repeated {
            nodes.sort_unstable();
        }
        let mut buffers = Self {
            activation: vec![None; graph.values.len()],
            again: vec![None; graph.values.len()],
            gradient: vec![None; graph.values.len()],
            live: vec![Vec::new(); graph.values.len()],
            repeated,
            len: 0,
        };
        buffers.settle(graph, tenants);
        buffers
    }

    /// Gives every tenant its place.
    fn settle(&mut self, graph: &Graph, mut tenants: Vec<Tenant>) {
        let elements = |tenant: &Tenant| graph.value(tenant.value).shape.elements();
        tenants.sort_by_key(|tenant| (std::cmp::Reverse(elements(tenant)), *tenant.live.start()));
        // Places that are taken, by rising start.
        let mut taken: Vec<(Range<usize>, RangeInclusive<usize>)> = Vec::new();
        for tenant in &tenants {
            let len = elements(tenant);
            let mut start = 0;
            for (place, _) in taken.iter().filter(|(_, live)| meet(live, &tenant.live)) {
                if start + len <= place.start {
                    break;
                }
                start = start.max(place.end);
            }
            let at = taken.partition_point(|(place, _)| place.start <= start);
            taken.insert(at, (start..start + len, tenant.live.clone()));
            self.len = self.len.max(start + len);
            let id = tenant.value.0;
            match tenant.what {
                What::Activation => self.activation[id] = Some(start),
                What::Again => self.again[id] = Some(start),
                What::Gradient => self.gradient[id] = Some(start),
            }
            if !matches!(tenant.what, What::Gradient) {
                self.live[id].push(tenant.live.clone());
            }
        }
    }

    /// Where an activation lies in the forward pass, and `again` in the backward pass.
    pub(super) fn activation(&self, id: ValueId, backward: bool) -> Option<usize> {
        self.again[id.0].filter(|_| backward).or(self.activation[id.0])
    }

    /// Whether an activation is there at a step.
    pub(super) fn is_live(&self, id: ValueId, step: usize) -> bool {
        self.live[id.0].iter().any(|live| live.contains(&step))
    }
}

fn meet(a: &RangeInclusive<usize>, b: &RangeInclusive<usize>) -> bool {
    a.start() <= b.end() && b.start() <= a.end()
}

/// Parts of some memory, in the order asked for.
///
/// # Panics
/// When two parts overlap, or one lies outside.
pub(super) fn split<'a>(memory: &'a mut [f32], parts: &[Range<usize>]) -> Vec<&'a mut [f32]> {
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|at| (parts[*at].start, parts[*at].end));
    let mut slices: Vec<&mut [f32]> = parts.iter().map(|_| Default::default()).collect();
    let (mut rest, mut cut) = (memory, 0);
    for at in order {
        let part = &parts[at];
        if part.is_empty() {
            continue;
        }
        let (_, behind) = rest.split_at_mut(part.start - cut);
        let (slice, behind) = behind.split_at_mut(part.len());
        slices[at] = slice;
        (rest, cut) = (behind, part.end);
    }
    slices
}

/// Who uses values when.
struct Uses<'a> {
    reads: &'a [Reads],
    needed: Vec<bool>,
    /// By value: the node that computes it, and those that take it.
    producer: Vec<Option<usize>>,
    consumers: Vec<Vec<usize>>,
    nodes: usize,
}

impl<'a> Uses<'a> {
    fn new(graph: &Graph, reads: &'a [Reads]) -> Self {
        let mut producer = vec![None; graph.values.len()];
        let mut consumers = vec![Vec::new(); graph.values.len()];
        let mut needed: Vec<bool> =
            graph.values.iter().map(|value| value.origin == Origin::Weight).collect();
        for (index, node) in graph.nodes.iter().enumerate() {
            producer[node.output.0] = Some(index);
            node.inputs.iter().for_each(|id| consumers[id.0].push(index));
            needed[node.output.0] |= node.inputs.iter().any(|id| needed[id.0]);
        }
        Self { reads, needed, producer, consumers, nodes: graph.nodes.len() }
    }

    fn goes_back(&self, graph: &Graph, node: usize) -> bool {
        self.needed[graph.nodes[node].output.0]
    }

    fn backward_step(&self, node: usize) -> usize {
        2 * self.nodes - node
    }

    /// First and last step of the backward pass at which a value is read.
    fn read_back(&self, graph: &Graph, id: ValueId) -> Option<RangeInclusive<usize>> {
        let as_input = self.consumers[id.0].iter().filter(|node| self.reads[**node].inputs);
        let as_output = self.producer[id.0].iter().filter(|node| self.reads[**node].output);
        let readers = as_input.chain(as_output).filter(|node| self.goes_back(graph, **node));
        let steps = readers.map(|node| self.backward_step(*node));
        steps.fold(None, |range, step| match range {
            None => Some(step..=step),
            Some(range) => Some(*range.start().min(&step)..=*range.end().max(&step)),
        })
    }

    /// The time of a value's gradient.
    fn gradient(&self, graph: &Graph, id: ValueId) -> Option<RangeInclusive<usize>> {
        let producer = self.producer[id.0].filter(|_| self.needed[id.0])?;
        let last = self.consumers[id.0].iter().max().map(|node| self.backward_step(*node));
        let first = if id == graph.output { Some(self.nodes) } else { last };
        Some(first?..=self.backward_step(producer))
    }

    /// Whether a value costs little to compute again from what is kept anyway.
    fn is_cheap(&self, graph: &Graph, id: ValueId) -> bool {
        let node = |id: ValueId| self.producer[id.0].map(|index| &graph.nodes[index]);
        let is_norm = |node: &Node| matches!(node.op, Op::BatchNormalization { .. });
        let Some(producer) = node(id) else { return false };
        let of_norm = || node(producer.inputs[0]).is_some_and(is_norm);
        id != graph.output
            && self.needed[id.0]
            && (is_norm(producer) || (matches!(producer.op, Op::Activation(_)) && of_norm()))
    }

    /// The input and what nodes compute, the last first.
    fn values(&self, graph: &Graph) -> Vec<ValueId> {
        let ids = (0..graph.values.len()).map(ValueId);
        let mut ids: Vec<ValueId> = ids
            .filter(|id| matches!(graph.value(*id).origin, Origin::Input | Origin::Node))
            .collect();
        ids.sort_by_key(|id| std::cmp::Reverse(self.producer[id.0]));
        ids
    }

    /// The times of all values, each once or twice, and which nodes are computed again when.
    fn activations(&self, graph: &Graph, tenants: &mut Vec<Tenant>, repeated: &mut [Vec<usize>]) {
        // By value: the step at which it is computed again. Those that are made of a value come
        // before it, and need it then.
        let mut again: Vec<Option<usize>> = vec![None; graph.values.len()];
        for id in self.values(graph) {
            let first = self.producer[id.0].unwrap_or(0);
            let last_taken = self.consumers[id.0].iter().copied().max().unwrap_or(first);
            let is_end = id == graph.output || id == graph.input;
            let forward_end = if is_end { self.nodes } else { last_taken };
            let outputs = self.consumers[id.0].iter().map(|node| graph.nodes[*node].output);
            let for_others: Vec<usize> = outputs.filter_map(|output| again[output.0]).collect();
            let back = self.read_back(graph, id);
            let starts = for_others.iter().copied().chain(back.iter().map(|back| *back.start()));
            let ends = for_others.iter().copied().chain(back.iter().map(|back| *back.end()));
            let back = starts.min().zip(ends.max());
            let mut push = |what, live| tenants.push(Tenant { value: id, what, live });
            if !self.is_cheap(graph, id) {
                push(What::Activation, first..=back.map_or(forward_end, |(_, end)| end));
                continue;
            }
            push(What::Activation, first..=forward_end);
            if let (Some((start, end)), Some(producer)) = (back, self.producer[id.0]) {
                push(What::Again, start..=end);
                repeated[2 * self.nodes - start].push(producer);
                again[id.0] = Some(start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels;
    use crate::train::Definition;
    use crate::zoo;

    fn plan(graph: &Graph) -> (Buffers, Vec<Tenant>) {
        let build = |(index, node)| kernels::build(graph, node, index as u64).reads();
        let reads: Vec<Reads> = graph.nodes.iter().enumerate().map(build).collect();
        let uses = Uses::new(graph, &reads);
        let mut tenants = Vec::new();
        let mut repeated = vec![Vec::new(); graph.nodes.len()];
        uses.activations(graph, &mut tenants, &mut repeated);
        for id in uses.values(graph) {
            let gradient = uses.gradient(graph, id);
            tenants.extend(gradient.map(|live| Tenant { value: id, what: What::Gradient, live }));
        }
        (Buffers::new(graph, &reads), tenants)
    }

    #[test]
    fn values_that_live_together_lie_apart_in_little_more_than_they_need() {
        for family in zoo::FAMILIES {
            let onnx = bytes::Bytes::from(zoo::build(family, [3, 32, 32], 10, 1).unwrap());
            let definition = Definition::read(&onnx).unwrap();
            let graph = definition.graph();
            let (buffers, tenants) = plan(graph);
            let place = |tenant: &Tenant| {
                let start = match tenant.what {
                    What::Activation => buffers.activation[tenant.value.0],
                    What::Again => buffers.again[tenant.value.0],
                    What::Gradient => buffers.gradient[tenant.value.0],
                };
                start.unwrap()..start.unwrap() + graph.value(tenant.value).shape.elements()
            };
            for (at, tenant) in tenants.iter().enumerate() {
                for other in &tenants[..at] {
                    let (one, two) = (place(tenant), place(other));
                    let apart = one.end <= two.start || two.end <= one.start;
                    assert!(apart || !meet(&tenant.live, &other.live), "{family}");
                }
            }
            let at = |step: usize| -> usize {
                let live = tenants.iter().filter(|tenant| tenant.live.contains(&step));
                live.map(|tenant| place(tenant).len()).sum()
            };
            let least = (0..=2 * graph.nodes.len()).map(at).max().unwrap();
            assert!(buffers.len <= least * 9 / 8, "{family}: {}, at least {least}", buffers.len);
        }
    }

    #[test]
    fn what_is_computed_again_is_made_of_what_is_there() {
        let of_zoo = zoo::FAMILIES.map(|family| zoo::build(family, [3, 32, 32], 10, 1).unwrap());
        for onnx in of_zoo.into_iter().chain(crate::train::tests::computed_again()) {
            let definition = Definition::read(&bytes::Bytes::from(onnx)).unwrap();
            let graph = definition.graph();
            let (buffers, _) = plan(graph);
            for (index, nodes) in buffers.repeated.iter().enumerate() {
                let step = 2 * graph.nodes.len() - index;
                for node in nodes {
                    let node = &graph.nodes[*node];
                    let inputs = node.inputs.iter().chain([&node.output]);
                    for id in inputs.filter(|id| buffers.activation[id.0].is_some()) {
                        assert!(buffers.is_live(*id, step), "{} at {step}", graph.value(*id).name);
                    }
                }
            }
        }
    }

    #[test]
    fn parts_come_in_the_order_asked_for() {
        let mut memory = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        let parts = split(&mut memory, &[4..6, 0..0, 0..1, 2..4]);
        assert_eq!(parts, [&mut [4.0, 5.0][..], &mut [], &mut [0.0], &mut [2.0, 3.0]]);
    }
}
