//! How much memory training takes, before it begins.

use super::network::Network;
use super::{Definition, Optimizer, Settings, Trainer};
use crate::graph::{Graph, Origin, ValueId};

/// Bytes per value.
const F32: u64 = 4;

/// Bytes of a trainer's buffers at work. Threads of the pool take a few hundred kilobytes each
/// besides, to pack matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// Weights, running statistics and constants.
    pub parameters: u64,
    /// Of the weights.
    pub gradients: u64,
    /// What the optimizer keeps of each weight, and the weights that a proximal term pulls to.
    pub optimizer_state: u64,
    /// The examples of a batch, what each node gives for them, and the gradients of that.
    pub activations: u64,
    /// Working memory of the node that needs most.
    pub scratch: u64,
}

impl Memory {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { parameters, gradients, optimizer_state, activations, scratch } = self;
        [gradients, optimizer_state, activations, scratch]
            .into_iter()
            .fold(*parameters, |sum, part| sum.saturating_add(*part))
    }
}

impl Definition {
    /// What training this graph takes with batches of `batch` examples on `threads` threads.
    pub fn memory(
        &self,
        batch: usize,
        optimizer: &Optimizer,
        settings: &Settings,
        threads: usize,
    ) -> Memory {
        let mut graph = self.graph().without_values();
        graph.freeze(|name| settings.freezes(name));
        Network::new(graph).memory(batch, optimizer, settings, threads)
    }
}

impl Trainer {
    /// What this trainer takes with batches of `batch` examples on `threads` threads. Before its
    /// first step it has the parameters only.
    pub fn memory(&self, batch: usize, threads: usize) -> Memory {
        self.network.memory(batch, &self.optimizer, &self.settings, threads)
    }
}

impl Network {
    fn memory(
        &self,
        batch: usize,
        optimizer: &Optimizer,
        settings: &Settings,
        threads: usize,
    ) -> Memory {
        let graph = &self.graph;
        let mut memory = Memory::default();
        for value in &graph.values {
            let examples = if value.shape.batched { batch as u64 } else { 1 };
            let bytes = F32 * value.shape.elements() as u64 * examples;
            if !matches!(value.origin, Origin::Input | Origin::Node) {
                memory.parameters += bytes;
            }
            if value.origin == Origin::Weight {
                memory.gradients += bytes;
                let len = value.shape.elements();
                let anchor = if settings.proximal > 0.0 { len } else { 0 };
                memory.optimizer_state += F32 * (optimizer.state_len(len) + anchor) as u64;
            }
        }
        memory.activations = F32 * (self.buffers.len as u64).saturating_mul(batch as u64);
        // What no machine of this word size can hold needs no further look.
        if usize::try_from(memory.activations).is_err() {
            return memory;
        }
        for (node, kernel) in graph.nodes.iter().zip(&self.kernels) {
            let output = graph.value(node.output).shape.len(batch);
            memory.activations += kernel.kept_bytes(output) as u64;
            memory.scratch = memory.scratch.max(F32 * kernel.scratch(batch, threads) as u64);
        }
        let spares = graph.nodes.iter().map(|node| spare_len(graph, &node.inputs, batch));
        memory.activations += F32 * spares.max().unwrap_or(0) as u64;
        memory
    }
}

/// Values of the gradients of inputs that a node takes once more.
fn spare_len(graph: &Graph, inputs: &[ValueId], batch: usize) -> usize {
    let again = inputs.iter().enumerate().filter(|(at, id)| inputs[..*at].contains(id));
    again.map(|(_, id)| graph.value(*id).shape.len(batch)).sum()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::train::{Adam, Loss, Sgd};
    use crate::zoo;

    /// Bytes that the buffers of a trainer really have; those within kernels are not seen.
    fn held(trainer: &Trainer) -> Memory {
        let mut memory = Memory::default();
        let bytes = |buffer: &Vec<f32>| F32 * buffer.capacity() as u64;
        let network = &trainer.network;
        memory.parameters = network.parameters.iter().map(bytes).sum();
        memory.gradients = network.gradients.iter().map(bytes).sum();
        memory.activations = bytes(&network.memory);
        memory.activations += network.spares.iter().map(bytes).sum::<u64>();
        memory.scratch = bytes(&network.scratch);
        memory.optimizer_state = trainer.weights.iter().map(|(_, state)| bytes(state)).sum();
        memory.optimizer_state += trainer.corrections.anchors().iter().map(bytes).sum::<u64>();
        memory
    }

    fn is_near(estimate: u64, held: u64) -> bool {
        estimate.abs_diff(held) * 20 <= held
    }

    #[test]
    fn the_estimate_is_what_is_allocated() {
        let threads = rayon::current_num_threads();
        let sgd = |momentum| Sgd { learning_rate: 1e-3, momentum, weight_decay: 0.0 };
        for family in zoo::FAMILIES {
            let Some(cost) = zoo::cost(family, [3, 24, 24], 5) else { panic!("{family}") };
            if cost.parameters > 6_000_000 {
                continue;
            }
            let onnx = Bytes::from(zoo::build(family, [3, 24, 24], 5, 1).unwrap());
            let definition = Definition::read(&onnx).unwrap();
            for (optimizer, proximal) in [
                (Optimizer::Sgd(sgd(0.0)), 0.0),
                (Optimizer::Nesterov(sgd(0.9)), 0.1),
                (Optimizer::AdamW(Adam::new(1e-3)), 0.0),
            ] {
                let settings = Settings { proximal, ..Settings::default() };
                let mut trainer =
                    Trainer::with_settings(&onnx, optimizer, settings.clone()).unwrap();
                let batch = 6;
                for n in [batch / 2, batch] {
                    trainer.step(&vec![0.25; n * 3 * 24 * 24], &vec![1; n]).unwrap();
                }
                let estimate = trainer.memory(batch, threads);
                assert_eq!(estimate, definition.memory(batch, &optimizer, &settings, threads));
                let held = held(&trainer);
                assert!(is_near(estimate.parameters, held.parameters), "{family}");
                assert!(is_near(estimate.gradients, held.gradients), "{family}");
                assert_eq!(estimate.optimizer_state, held.optimizer_state, "{family}");
                assert!(is_near(estimate.scratch, held.scratch), "{family} {estimate:?} {held:?}");
                // What kernels keep is not seen from outside.
                assert!(estimate.activations >= held.activations, "{family}");
                let kept: usize = trainer
                    .network
                    .graph
                    .nodes
                    .iter()
                    .zip(&trainer.network.kernels)
                    .map(|(node, kernel)| {
                        let output = trainer.network.graph.value(node.output).shape.len(batch);
                        kernel.kept_bytes(output)
                    })
                    .sum();
                let seen = estimate.activations - kept as u64;
                assert!(is_near(seen, held.activations), "{family} {estimate:?} {held:?}");
            }
        }
    }

    #[test]
    fn evaluation_takes_a_part_of_the_memory_and_gives_the_same_bits() {
        for family in ["resnet8", "mobilenet_v2", "efficientnet_b0"] {
            let onnx = Bytes::from(zoo::build(family, [3, 32, 32], 10, 1).unwrap());
            let sgd = Sgd { learning_rate: 0.1, momentum: 0.9, weight_decay: 0.0 };
            let mut trainer = Trainer::new(&onnx, sgd).unwrap();
            let mut evaluator = Trainer::for_evaluation(&onnx, Loss::default()).unwrap();
            let pixels = (0..=250).cycle().take(8 * 3 * 32 * 32);
            let examples: Vec<f32> = pixels.map(|pixel: u8| f32::from(pixel) / 255.0).collect();
            let labels = [0, 1, 2, 3, 4, 5, 6, 7];
            trainer.step(&examples, &labels).unwrap();
            assert!(evaluator.step(&examples, &labels).is_err());
            evaluator.set_parameters(&trainer.parameters()).unwrap();
            let expected = trainer.evaluate(&examples, &labels).unwrap();
            assert_eq!(evaluator.evaluate(&examples, &labels), Ok(expected), "{family}");
            let (all, part) = (trainer.memory(8, 1), evaluator.memory(8, 1));
            assert_eq!((part.gradients, part.optimizer_state), (0, 0), "{family}");
            assert!(part.activations * 2 < all.activations, "{family}: {part:?} {all:?}");
            assert!(is_near(part.activations, held(&evaluator).activations), "{family}");
        }
    }

    #[test]
    fn what_is_frozen_costs_no_gradient_and_no_state() {
        let onnx = Bytes::from(zoo::build("resnet8", [3, 32, 32], 10, 1).unwrap());
        let definition = Definition::read(&onnx).unwrap();
        let adam = Optimizer::Adam(Adam::new(1e-3));
        let all = definition.memory(32, &adam, &Settings::default(), 1);
        assert_eq!(all.optimizer_state, 2 * all.gradients);
        let frozen = Settings { frozen: vec!["*conv*".to_owned()], ..Settings::default() };
        let some = definition.memory(32, &adam, &frozen, 1);
        assert!(some.gradients < all.gradients / 4, "{some:?} {all:?}");
        assert_eq!(some.parameters, all.parameters);
        let twice = definition.memory(64, &adam, &Settings::default(), 1);
        assert_eq!(twice.activations, 2 * all.activations);
        assert_eq!(
            twice.total() - twice.activations - twice.scratch,
            all.gradients * 3 + all.parameters
        );
    }
}
