//! Where numbers stopped being finite; looked for only once it is known that they did.

use std::fmt;

use super::network::{Network, Pass};
use crate::graph::{Graph, Origin, ValueId};

/// What stopped being finite first.
#[derive(Debug, Clone, PartialEq)]
pub enum Divergence {
    /// The output of a node; its inputs are finite.
    Output {
        /// The node.
        node: String,
        /// Its operator, convolutions with their extents.
        operator: String,
        /// NaN or an infinity.
        value: f32,
    },
    /// A parameter.
    Parameter {
        /// Which.
        name: String,
        /// NaN or an infinity.
        value: f32,
    },
    /// The gradient of the loss by a parameter: the one nearest to the loss.
    Gradient {
        /// Which parameter.
        name: String,
        /// NaN or an infinity.
        value: f32,
    },
    /// The batch.
    Examples {
        /// NaN or an infinity.
        value: f32,
    },
    /// The loss of finite outputs.
    Loss {
        /// NaN or an infinity.
        value: f64,
    },
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Output { node, operator, value } => {
                write!(f, "the output of layer {node:?} ({operator}) became {value}")
            }
            Self::Parameter { name, value } => write!(f, "parameter {name:?} became {value}"),
            Self::Gradient { name, value } => {
                write!(f, "the gradient of parameter {name:?} became {value}")
            }
            Self::Examples { value } => write!(f, "the examples hold {value}"),
            Self::Loss { value } => write!(f, "the loss became {value}"),
        }
    }
}

impl Divergence {
    /// What to do about it.
    pub(super) fn advice(&self) -> &'static str {
        match self {
            Self::Examples { .. } => "look into the data set",
            Self::Output { .. }
            | Self::Parameter { .. }
            | Self::Gradient { .. }
            | Self::Loss { .. } => "lower the learning rate",
        }
    }
}

impl Network {
    /// What of the last forward pass of `batch` examples is not finite, in the order of
    /// computation; computes it once more, as what was used up is no longer there.
    pub(super) fn not_finite(&mut self, batch: usize, pass: Pass) -> Option<Divergence> {
        if let Some(value) = not_finite(self.activation(self.graph.input, batch)) {
            return Some(Divergence::Examples { value });
        }
        (0..self.graph.nodes.len()).find_map(|index| {
            let node = &self.graph.nodes[index];
            let taken = node.inputs.iter().chain(&node.states);
            // What other nodes gave was looked at before.
            let mut parameters = taken.filter(|id| self.graph.value(**id).origin != Origin::Node);
            if let Some(found) = parameters.find_map(|id| self.parameter_not_finite(*id)) {
                return Some(found);
            }
            self.node_forward(index, batch, pass, false);
            let node = &self.graph.nodes[index];
            let value = not_finite(self.activation(node.output, batch))?;
            let operator = node.op.label();
            Some(Divergence::Output { node: node.name.clone(), operator, value })
        })
    }

    /// The first parameter, in the order of computation, that is not finite.
    pub(super) fn spoiled_parameter(&self) -> Option<Divergence> {
        let mut taken =
            self.graph.nodes.iter().flat_map(|node| node.inputs.iter().chain(&node.states));
        taken.find_map(|id| self.parameter_not_finite(*id))
    }

    /// The weight nearest to the loss whose gradient is not finite.
    pub(super) fn spoiled_gradient(&mut self) -> Option<Divergence> {
        weights_from_the_loss(&self.graph).into_iter().find_map(|id| {
            let (_, gradient) = self.weight(id)?;
            let value = not_finite(gradient)?;
            Some(Divergence::Gradient { name: self.graph.value(id).name.clone(), value })
        })
    }

    fn parameter_not_finite(&self, id: ValueId) -> Option<Divergence> {
        let value = self.graph.value(id);
        if !value.origin.is_parameter() {
            return None;
        }
        let found = not_finite(self.values(id))?;
        Some(Divergence::Parameter { name: value.name.clone(), value: found })
    }
}

fn weights_from_the_loss(graph: &Graph) -> Vec<ValueId> {
    let taken = graph.nodes.iter().rev().flat_map(|node| &node.inputs);
    taken.copied().filter(|id| graph.value(*id).origin == Origin::Weight).collect()
}

fn not_finite(values: &[f32]) -> Option<f32> {
    values.iter().copied().find(|value| !value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::Parameters;
    use crate::train::{Loss, Settings, Sgd, TrainError, Trainer};
    use crate::zoo;

    const SGD: Sgd = Sgd { learning_rate: 0.01, momentum: 0.0, weight_decay: 0.0 };

    fn trainer(sgd: Sgd, settings: Settings) -> Trainer {
        let onnx = zoo::build("cnn", [1, 8, 8], 4, 7).unwrap();
        Trainer::with_settings(&onnx, sgd, settings).unwrap()
    }

    fn step(trainer: &mut Trainer, pixel: f32) -> Result<(), TrainError> {
        trainer.step(&[pixel; 128], &[0, 3]).map(drop)
    }

    fn diverged(error: &TrainError) -> (u64, Divergence) {
        let TrainError::Diverged { step, what } = error else { panic!("{error}") };
        (*step, what.clone())
    }

    /// Puts a value into a parameter past all checks.
    fn spoil(trainer: &mut Trainer, name: &str, value: f32) {
        let graph = &trainer.network.graph;
        let id = graph.values.iter().position(|found| found.name == name).unwrap();
        trainer.network.values_mut(ValueId(id))[0] = value;
    }

    #[test]
    fn a_spoiled_parameter_is_named() {
        let names: Vec<String> = {
            let parameters = trainer(SGD, Settings::default()).parameters();
            parameters.items().iter().map(|item| item.name.clone()).collect()
        };
        assert!(names.len() > 4, "{names:?}");
        for name in names {
            let mut trainer = trainer(SGD, Settings::default());
            step(&mut trainer, 0.5).unwrap();
            trainer.check_finite().unwrap();
            spoil(&mut trainer, &name, f32::INFINITY);
            let (at, what) = diverged(&trainer.check_finite().unwrap_err());
            let expected = Divergence::Parameter { name: name.clone(), value: f32::INFINITY };
            assert_eq!((at, &what), (1, &expected));
            // Running statistics do not take part in training.
            if let Err(error) = step(&mut trainer, 0.5) {
                assert_eq!(diverged(&error), (2, expected));
            }
        }
    }

    #[test]
    fn the_first_layer_that_overflows_is_named() {
        let graph = trainer(SGD, Settings::default()).network.graph;
        let layers = graph.nodes.iter().filter_map(|node| {
            let weight = graph.value(*node.inputs.get(1)?);
            (weight.shape.dims.len() > 1).then_some((node, weight))
        });
        let layers: Vec<_> = layers.collect();
        assert!(layers.len() >= 3);
        for (layer, weight) in layers {
            let mut trainer = trainer(SGD, Settings::default());
            let id = layer.inputs[1];
            // Finite weights whose sums are not.
            trainer.network.values_mut(id).fill(f32::MAX);
            let error = step(&mut trainer, 2.0).unwrap_err();
            let (at, what) = diverged(&error);
            let Divergence::Output { node, operator, value } = what else { panic!("{error}") };
            assert_eq!(
                (at, &node, operator),
                (1, &layer.name, layer.op.label()),
                "{}",
                weight.name
            );
            assert!(!value.is_finite() && error.to_string().contains(&node), "{error}");
        }
    }

    #[test]
    fn a_huge_step_is_noticed_at_the_step_that_made_it() {
        for loss in [Loss::default(), Loss::MeanSquaredError] {
            let settings = Settings { loss, ..Settings::default() };
            let mut trainer = trainer(Sgd { learning_rate: f32::MAX, ..SGD }, settings);
            step(&mut trainer, 0.5).unwrap();
            // The step itself was taken: what it made is found at once, or by the next one.
            let found = trainer.check_finite();
            let error = found.and_then(|()| step(&mut trainer, 0.5)).unwrap_err();
            let (at, what) = diverged(&error);
            assert!((1..=2).contains(&at));
            assert!(!matches!(what, Divergence::Examples { .. }), "{what}");
            assert!(error.to_string().contains("lower the learning rate"), "{error}");
        }
    }

    #[test]
    fn a_gradient_that_overflows_leaves_the_weights() {
        let settings = Settings { loss: Loss::MeanSquaredError, ..Settings::default() };
        let mut trainer = trainer(SGD, settings);
        let before = trainer.parameters();
        let targets = [f32::MAX; 8];
        let targets = crate::train::Targets::Values(&targets);
        let error = trainer.step_towards(&[1e4; 128], targets).unwrap_err();
        let (at, what) = diverged(&error);
        assert!(matches!(what, Divergence::Gradient { .. }), "{error}");
        assert_eq!(at, 1);
        let weights = |parameters: &Parameters| {
            let items = parameters.items().iter();
            let items = items.filter(|item| !item.name.contains("running"));
            items.cloned().collect::<Vec<_>>()
        };
        assert_eq!(weights(&trainer.parameters()), weights(&before));
    }

    #[test]
    fn examples_that_are_no_numbers_are_told_apart() {
        let mut trainer = trainer(SGD, Settings::default());
        let error = step(&mut trainer, f32::NAN).unwrap_err();
        assert_eq!(error.to_string(), "step 1: the examples hold NaN: look into the data set");
    }
}
