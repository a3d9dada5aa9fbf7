//! Which nodes are done in one step.

#![expect(clippy::wildcard_enum_match_arm, reason = "nodes that are not named follow nothing")]

use crate::graph::{Activation, Arithmetic, Graph, Node, Op, Origin, ValueId};
use crate::kernels::blocked::Function;

/// Nodes that follow a convolution, a product or an operator on elements, and are done with it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chain {
    /// All of its nodes, the first one included.
    pub(super) nodes: Vec<usize>,
    /// By channel, factors of what the first node computes, and what is added; empty where there
    /// is nothing.
    pub(super) scale: Vec<f32>,
    pub(super) bias: Vec<f32>,
    /// A value of the same shape that is added last.
    pub(super) residual: Option<ValueId>,
    pub(super) function: Function,
    pub(super) output: ValueId,
}

/// What a first node lets follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Follows {
    /// Factors and additions by channel.
    pub(super) scale: bool,
    pub(super) residual: bool,
}

/// Who takes which value.
#[derive(Debug)]
pub(super) struct Uses {
    /// By value the nodes that take it, as often as they do.
    takers: Vec<Vec<usize>>,
}

impl Uses {
    pub(super) fn new(graph: &Graph) -> Self {
        let mut takers = vec![Vec::new(); graph.values.len()];
        for (at, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|input| takers[input.0].push(at));
        }
        Self { takers }
    }

    /// A node that nothing follows.
    pub(super) fn alone(graph: &Graph, node: usize) -> Chain {
        Chain {
            nodes: vec![node],
            scale: Vec::new(),
            bias: Vec::new(),
            residual: None,
            function: Function::NONE,
            output: graph.nodes[node].output,
        }
    }

    /// The nodes that may follow `first`, none of which is `taken`.
    pub(super) fn chain(
        &self,
        graph: &Graph,
        first: usize,
        follows: Follows,
        taken: &[bool],
    ) -> Chain {
        let mut chain = Self::alone(graph, first);
        while chain.output != graph.output {
            let takers = &self.takers[chain.output.0];
            if takers.iter().any(|taker| taken[*taker]) {
                break;
            }
            let more = match *takers.as_slice() {
                [next] => chain.follow(graph, next, follows),
                [a, b] => self.gate(graph, &mut chain, [a, b]),
                _ => false,
            };
            if !more {
                break;
            }
        }
        chain
    }

    /// `x f(x)`: the function by one taker, the product by the other.
    fn gate(&self, graph: &Graph, chain: &mut Chain, takers: [usize; 2]) -> bool {
        let [a, b] = takers.map(|taker| &graph.nodes[taker]);
        let gated = |function: &Node, product: &Node| match function.op {
            Op::Activation(activation @ (Activation::Sigmoid | Activation::HardSigmoid { .. })) => {
                let other = function.output;
                let fits = product.op == Op::Arithmetic(Arithmetic::Mul)
                    && product.inputs.contains(&other)
                    && self.takers[other.0].len() == 1
                    && other != graph.output;
                fits.then_some(activation)
            }
            _ => None,
        };
        let Some((activation, output)) = gated(a, b)
            .map(|activation| (activation, b.output))
            .or_else(|| gated(b, a).map(|activation| (activation, a.output)))
        else {
            return false;
        };
        chain.function = Function::Gated(activation);
        chain.nodes.extend(takers);
        chain.output = output;
        // Nothing follows a function.
        false
    }
}

impl Chain {
    /// Takes the node in, if it can; whether more may follow.
    fn follow(&mut self, graph: &Graph, next: usize, follows: Follows) -> bool {
        let node = &graph.nodes[next];
        let dims = &graph.value(self.output).shape.dims;
        if graph.value(node.output).shape.dims != *dims {
            return false;
        }
        let open = self.residual.is_none() && self.function == Function::NONE;
        let more = match &node.op {
            Op::Dropout { .. } => true,
            Op::BatchNormalization { epsilon, .. } if follows.scale && open => {
                let [scale, bias] = normalization(graph, node, *epsilon);
                self.times(&scale);
                self.plus(&bias);
                true
            }
            Op::Arithmetic(operator) if open => {
                let other = match node.inputs.as_slice() {
                    [a, b] if *a == self.output => (*b, false),
                    [a, _] => (*a, true),
                    _ => return false,
                };
                if !self.combine(graph, *operator, other, follows) {
                    return false;
                }
                true
            }
            Op::Activation(activation) if self.function == Function::NONE => {
                self.function = Function::of(*activation);
                false
            }
            _ => return false,
        };
        self.nodes.push(next);
        self.output = node.output;
        more
    }

    /// Takes an operator with another operand, which comes first if `reversed`.
    fn combine(
        &mut self,
        graph: &Graph,
        operator: Arithmetic,
        (other, reversed): (ValueId, bool),
        follows: Follows,
    ) -> bool {
        let dims = &graph.value(self.output).shape.dims;
        if let Some(values) = by_channel(graph, other, dims) {
            let each = |f: fn(f32) -> f32| values.iter().map(|value| f(*value)).collect::<Vec<_>>();
            if !follows.scale {
                return false;
            }
            match (operator, reversed) {
                (Arithmetic::Add, _) => self.plus(&values),
                (Arithmetic::Mul, _) => self.times(&values),
                (Arithmetic::Sub, false) => self.plus(&each(|value| -value)),
                (Arithmetic::Sub, true) => {
                    self.times(&vec![-1.0; values.len()]);
                    self.plus(&values);
                }
                (Arithmetic::Div, false) => self.times(&each(f32::recip)),
                (Arithmetic::Div, true) => return false,
            }
            return true;
        }
        let value = graph.value(other);
        let fits = follows.residual
            && operator == Arithmetic::Add
            && value.shape.batched
            && value.shape.dims == *dims;
        if fits {
            self.residual = Some(other);
        }
        fits
    }

    fn times(&mut self, values: &[f32]) {
        for numbers in [&mut self.scale, &mut self.bias] {
            numbers.iter_mut().zip(values).for_each(|(number, value)| *number *= value);
        }
        if self.scale.is_empty() {
            self.scale = values.to_vec();
        }
    }

    fn plus(&mut self, values: &[f32]) {
        if self.bias.is_empty() {
            self.bias = vec![0.0; values.len()];
        }
        self.bias.iter_mut().zip(values).for_each(|(number, value)| *number += value);
    }
}

/// A constant or weight as one number for each channel of a value with these extents.
pub(super) fn by_channel(graph: &Graph, id: ValueId, dims: &[usize]) -> Option<Vec<f32>> {
    let value = graph.value(id);
    if matches!(value.origin, Origin::Input | Origin::Node) {
        return None;
    }
    let aligned = value.shape.aligned(dims.len())?;
    let channels = *dims.first()?;
    match (value.initial.as_slice(), aligned.first()) {
        ([one], _) => Some(vec![*one; channels]),
        (values, Some(first)) if values.len() == channels && *first == channels => {
            Some(values.to_vec())
        }
        _ => None,
    }
}

/// Factor and addition of each channel of a normalisation with its running statistics.
pub(super) fn normalization(graph: &Graph, node: &Node, epsilon: f32) -> [Vec<f32>; 2] {
    let parameter = |id: &ValueId| graph.value(*id).initial.iter().map(|x| f64::from(*x));
    let (scale, bias) = (parameter(&node.inputs[1]), parameter(&node.inputs[2]));
    let (mean, variance) = (parameter(&node.states[0]), parameter(&node.states[1]));
    let factors: Vec<f64> = scale
        .zip(variance)
        .map(|(scale, variance)| scale / (variance + f64::from(epsilon)).sqrt())
        .collect();
    let biases = bias.zip(mean).zip(&factors).map(|((bias, mean), factor)| bias - mean * factor);
    [factors.iter().map(|factor| narrow(*factor)).collect(), biases.map(narrow).collect()]
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn narrow(value: f64) -> f32 {
    value as f32
}
