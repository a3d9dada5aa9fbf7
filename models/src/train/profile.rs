//! Where the time of training goes.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::graph::Graph;
use crate::kernels::{Forward, Kernel, square_product};

/// What the nodes of one kind took, all steps together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorTime {
    /// ONNX's operator, convolutions with their extents.
    pub operator: String,
    /// Number of nodes.
    pub nodes: usize,
    /// Forward passes.
    pub forward: Duration,
    /// Backward passes.
    pub backward: Duration,
}

/// A product of two square matrices as the kernels compute it, on all threads of the pool: what
/// the machine can do at most.
#[derive(Debug)]
pub struct SquareProduct {
    size: usize,
    kernel: Box<dyn Kernel>,
    a: Vec<f32>,
    b: Vec<f32>,
    out: Vec<f32>,
    scratch: Vec<f32>,
}

impl SquareProduct {
    /// Matrices of `size` rows and columns.
    pub fn new(size: usize) -> Self {
        let ones = || vec![1.0; size * size];
        let kernel = square_product(size);
        Self { size, kernel, a: ones(), b: ones(), out: ones(), scratch: Vec::new() }
    }

    /// Multiplies them; the number of floating-point operations.
    pub fn multiply(&mut self) -> f64 {
        let needed = self.kernel.scratch(self.size, rayon::current_num_threads());
        self.scratch.resize(needed, 0.0);
        self.kernel.forward(Forward {
            batch: self.size,
            training: false,
            again: false,
            step: 0,
            inputs: &[&self.b, &self.a],
            states: &mut [],
            output: &mut self.out,
            scratch: &mut self.scratch,
        });
        #[expect(clippy::cast_precision_loss, reason = "sizes are far below 2^17")]
        let operations = 2.0 * (self.size as f64).powi(3);
        operations
    }
}

/// The times of a network's nodes by a clock that is given.
#[derive(Debug)]
pub(super) struct Profile {
    clock: fn() -> Duration,
    /// By node: forward and backward.
    spent: Vec<(Duration, Duration)>,
}

impl Profile {
    pub(super) fn new(clock: fn() -> Duration, nodes: usize) -> Self {
        Self { clock, spent: vec![(Duration::ZERO, Duration::ZERO); nodes] }
    }

    pub(super) fn now(&self) -> Duration {
        (self.clock)()
    }

    pub(super) fn forward(&mut self, node: usize, began: Duration) {
        let spent = self.now().saturating_sub(began);
        self.spent[node].0 += spent;
    }

    pub(super) fn backward(&mut self, node: usize, began: Duration) {
        let spent = self.now().saturating_sub(began);
        self.spent[node].1 += spent;
    }

    /// By kind of node, the longest first.
    pub(super) fn by_operator(&self, graph: &Graph) -> Vec<OperatorTime> {
        let mut kinds: BTreeMap<String, OperatorTime> = BTreeMap::new();
        for (node, (forward, backward)) in graph.nodes.iter().zip(&self.spent) {
            let operator = node.op.label();
            let time = kinds.entry(operator.clone()).or_insert(OperatorTime {
                operator,
                nodes: 0,
                forward: Duration::ZERO,
                backward: Duration::ZERO,
            });
            time.nodes += 1;
            time.forward += *forward;
            time.backward += *backward;
        }
        let mut times: Vec<OperatorTime> = kinds.into_values().collect();
        times.sort_by_key(|time| std::cmp::Reverse(time.forward + time.backward));
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{Sgd, Trainer};
    use crate::zoo;

    /// Each look at it is a second later.
    fn clock() -> Duration {
        use std::sync::atomic::{AtomicU64, Ordering};
        static SECONDS: AtomicU64 = AtomicU64::new(0);
        Duration::from_secs(SECONDS.fetch_add(1, Ordering::Relaxed))
    }

    #[test]
    fn every_node_is_counted_in_its_kind() {
        let onnx = zoo::build("resnet8", [3, 8, 8], 4, 1).unwrap();
        let sgd = Sgd { learning_rate: 0.1, momentum: 0.0, weight_decay: 0.0 };
        let mut trainer = Trainer::new(&onnx, sgd).unwrap();
        assert_eq!(trainer.operator_times(), []);
        trainer.profile(clock);
        trainer.step(&[0.5; 2 * 192], &[0, 3]).unwrap();
        let times = trainer.operator_times();
        let of = |operator: &str| times.iter().find(|time| time.operator == operator).unwrap();
        let seconds = Duration::from_secs;
        let (conv, add) = (of("Conv 3x3"), of("Add"));
        assert_eq!((conv.nodes, conv.forward, conv.backward), (7, seconds(7), seconds(7)));
        assert_eq!((add.nodes, add.forward, add.backward), (3, seconds(3), seconds(3)));
        assert!(
            times
                .windows(2)
                .all(|t| { t[0].forward + t[0].backward >= t[1].forward + t[1].backward })
        );
    }

    #[test]
    fn a_square_product_is_one() {
        let mut product = SquareProduct::new(5);
        assert!((product.multiply() - 250.0).abs() < 1e-9);
        assert_eq!(product.out, [5.0; 25]);
    }
}
