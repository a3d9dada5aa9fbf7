//! Ten steps beside PyTorch's, from recorded figures, with each of its optimizers.
//!
//! mlp, lenet, cnn and the small `EfficientNet` have all of its figures within [`BARS`].
//!
//! In ResNet-8 and the small `MobileNetV2` a rectifier near zero may open on one rounding and stay
//! shut on another, for a whole area of equal pixels at once: a change of the initial weights in
//! their last bit moves the figures after ten steps as far as another engine's order of sums
//! does, in `f64` too. Their first loss is held to the bars, and their first gradients, which
//! branch already in `MobileNetV2`, both to those in `f64` and, from some last bits, to PyTorch's.
//! What follows must be no farther from PyTorch's figures than twice what our runs from different
//! last bits are from each other. ResNet-8 with
//! SGD is also shown to reach all of PyTorch's figures from some last bits.
//!
//! The bias of a normalisation that is followed, without a function between, by a convolution
//! and another normalisation has no effect: its gradient is 0, and what is computed of it is
//! rounding. Adam makes steps of full length of that, so with Adam these biases, and the running
//! means that they move, cannot be compared.

mod exact;
mod recorded;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::graph::{Graph, Op, Origin, ValueId};
use crate::train::{Adam, Optimizer, Sgd, Trainer};
pub(super) use exact::Exact;
use recorded::{Recorded, perturbed, unmoved};

/// What a run of ten steps left behind.
#[derive(Debug, Default)]
struct Figures {
    losses: Vec<f64>,
    /// Norms of the first step's gradients, of the weights, and of the running statistics.
    gradients: BTreeMap<String, f64>,
    weights: BTreeMap<String, f64>,
    states: BTreeMap<String, f64>,
    evaluation: f64,
}

/// Largest relative differences from PyTorch's figures: of losses, first gradients, weights,
/// running statistics, and the loss of the evaluation.
const BARS: [f64; 5] = [1e-3, 1e-4, 1e-3, 1e-4, 1e-3];

/// The optimizers as they were recorded.
fn optimizers() -> [(&'static str, Optimizer); 4] {
    let sgd = Sgd { learning_rate: 0.01, momentum: 0.9, weight_decay: 5e-4 };
    let adam = Adam::new(1e-3);
    [
        ("sgd", Optimizer::Sgd(sgd)),
        ("sgd_nesterov", Optimizer::Nesterov(Sgd { weight_decay: 0.0, ..sgd })),
        ("adam", Optimizer::Adam(adam)),
        ("adamw", Optimizer::AdamW(Adam { weight_decay: 0.01, ..adam })),
    ]
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value.powi(2)).sum::<f64>().sqrt()
}

fn norm_f32(values: &[f32]) -> f64 {
    norm(values.iter().copied().map(f64::from))
}

fn is_state(name: &str) -> bool {
    name.ends_with("running_mean") || name.ends_with("running_var")
}

impl Figures {
    fn of_pytorch(figures: &Value, optimizer: &str) -> Self {
        let run = &figures["runs"][optimizer];
        let params = run["params"].as_object().unwrap();
        let norms = |states: bool| {
            let of = params.iter().filter(|(name, _)| is_state(name) == states);
            of.map(|(name, figures)| (name.clone(), figures["l2"].as_f64().unwrap())).collect()
        };
        let gradients = figures["first_gradient_l2"].as_object().unwrap().iter();
        Self {
            losses: run["losses"].as_array().unwrap().iter().filter_map(Value::as_f64).collect(),
            gradients: gradients.map(|(name, l2)| (name.clone(), l2.as_f64().unwrap())).collect(),
            weights: norms(false),
            states: norms(true),
            evaluation: run["eval_loss_batch0"].as_f64().unwrap(),
        }
    }

    /// Ours after so many of the ten steps, from initial weights moved by the last bits of a seed.
    fn of_trainer(recorded: &Recorded, optimizer: Optimizer, seed: u64, steps: usize) -> Self {
        let mut trainer = Trainer::new(&recorded.onnx, optimizer).unwrap();
        trainer.set_parameters(&perturbed(&unmoved(&trainer.parameters()), seed)).unwrap();
        let mut figures = Self::default();
        for step in 0..steps {
            let (examples, labels) = recorded.batch(step);
            figures.losses.push(trainer.step(examples, labels).unwrap().loss);
            if step == 0 {
                for item in trainer.parameters().items() {
                    let gradient = trainer.gradient(&item.name).map(norm_f32);
                    figures.gradients.extend(gradient.map(|norm| (item.name.clone(), norm)));
                }
            }
        }
        let (examples, labels) = recorded.batch(0);
        figures.evaluation = trainer.evaluate(examples, labels).unwrap().loss;
        for item in trainer.parameters().items() {
            let into =
                if is_state(&item.name) { &mut figures.states } else { &mut figures.weights };
            into.insert(item.name.clone(), norm_f32(&item.values));
        }
        figures
    }

    /// Leaves out what is named.
    fn without(mut self, names: &BTreeSet<String>) -> Self {
        for norms in [&mut self.gradients, &mut self.weights, &mut self.states] {
            norms.retain(|name, _| !names.contains(name));
        }
        self
    }

    /// The worst relative difference of each kind, with what it is of: losses, gradients,
    /// weights, running statistics, evaluation.
    fn differences(&self, expected: &Self) -> [(f64, String); 5] {
        let of = |found: f64, expected: f64, floor: f64, what: &str| {
            ((found - expected).abs() / expected.abs().max(floor), what.to_owned())
        };
        let worst = |differences: Vec<(f64, String)>| {
            differences.into_iter().max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
        };
        let norms = |found: &BTreeMap<String, f64>, expected: &BTreeMap<String, f64>, floor| {
            assert!(found.keys().eq(expected.keys()));
            let pairs = found.iter().zip(expected.values());
            worst(pairs.map(|((name, a), b)| of(*a, *b, floor, name)).collect())
        };
        let losses = self.losses.iter().zip(&expected.losses).enumerate();
        [
            worst(losses.map(|(at, (a, b))| of(*a, *b, 1e-9, &format!("step {at}"))).collect()),
            norms(&self.gradients, &expected.gradients, 1e-5),
            norms(&self.weights, &expected.weights, 1e-3),
            norms(&self.states, &expected.states, 1e-3),
            of(self.evaluation, expected.evaluation, 1e-9, "batch 0"),
        ]
    }
}

/// The norms of the first step's gradients in `f64`.
fn exact_gradients(recorded: &Recorded) -> (Graph, BTreeMap<String, f64>) {
    let mut exact = Exact::new(&recorded.onnx);
    let (examples, labels) = recorded.batch(0);
    exact.run(examples, labels);
    let weights = exact.graph.values.iter().enumerate();
    let gradients = weights
        .filter(|(_, value)| value.origin == Origin::Weight)
        .map(|(id, value)| (value.name.clone(), norm(exact.gradients[id].iter().copied())))
        .collect();
    (exact.graph, gradients)
}

/// The running means that the bias of a normalisation moves without any other effect.
fn moved_means(graph: &Graph, biases: &BTreeSet<String>) -> BTreeSet<String> {
    let sources = graph.nodes.iter().filter(|node| {
        matches!(node.op, Op::BatchNormalization { .. })
            && biases.contains(&graph.value(node.inputs[2]).name)
    });
    let mut shifted: BTreeSet<ValueId> = sources.map(|node| node.output).collect();
    let mut means = BTreeSet::new();
    for node in &graph.nodes {
        let fed = node.inputs.iter().any(|id| shifted.contains(id));
        if fed && matches!(node.op, Op::Conv { .. } | Op::Arithmetic(_)) {
            shifted.insert(node.output);
        } else if fed && matches!(node.op, Op::BatchNormalization { .. }) {
            means.insert(graph.value(node.states[0]).name.clone());
        }
    }
    means
}

/// A network beside PyTorch's, but for what cannot be compared.
struct Comparison {
    recorded: Recorded,
    gradients: BTreeMap<String, f64>,
    /// Weights without effect.
    idle: BTreeSet<String>,
    /// These, and the running means that they move.
    moved: BTreeSet<String>,
}

impl Comparison {
    fn new(name: &str) -> Option<Self> {
        let Some(recorded) = Recorded::read(name) else {
            #[expect(clippy::print_stderr, reason = "a test that compares nothing must say so")]
            {
                eprintln!("{name}: no ../shared, not compared with PyTorch");
            }
            return None;
        };
        let (graph, gradients) = exact_gradients(&recorded);
        let idle: BTreeSet<String> = gradients
            .iter()
            .filter(|(_, norm)| **norm < 1e-12)
            .map(|(name, _)| name.clone())
            .collect();
        let moved = moved_means(&graph, &idle).into_iter().chain(idle.clone()).collect();
        Some(Self { recorded, gradients, idle, moved })
    }

    fn left_out(&self, optimizer: Optimizer) -> &BTreeSet<String> {
        match optimizer {
            Optimizer::Sgd(_) | Optimizer::Nesterov(_) => &self.idle,
            Optimizer::Adam(_) | Optimizer::AdamW(_) => &self.moved,
        }
    }

    fn pytorch(&self, label: &str, optimizer: Optimizer) -> Figures {
        Figures::of_pytorch(&self.recorded.figures, label).without(self.left_out(optimizer))
    }

    fn ours(&self, optimizer: Optimizer, seed: u64) -> Figures {
        Figures::of_trainer(&self.recorded, optimizer, seed, STEPS)
            .without(self.left_out(optimizer))
    }

    /// The largest distance of first gradients from those in f64, in shares of what is allowed.
    fn distance_from_exact(&self, optimizer: Optimizer, seed: u64) -> (f64, String) {
        let figures = Figures::of_trainer(&self.recorded, optimizer, seed, 1);
        let share = |(name, gradient): (&String, &f64)| {
            let exact = self.gradients[name];
            ((gradient - exact).abs() / (2e-4 * exact + 1e-6), name.clone())
        };
        let shares = figures.gradients.iter().map(share);
        shares.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
    }
}

/// Holds every figure of every optimizer to the bars.
fn agrees(name: &str) {
    let Some(comparison) = Comparison::new(name) else { return };
    for (label, optimizer) in optimizers() {
        let pytorch = comparison.pytorch(label, optimizer);
        let differences = comparison.ours(optimizer, 0).differences(&pytorch);
        let fit = differences.iter().zip(BARS).all(|((difference, _), bar)| *difference < bar);
        assert!(fit, "{name} {label}: {differences:?}");
        let (share, worst) = comparison.distance_from_exact(optimizer, 0);
        assert!(share < 1.0, "{name} {label}: gradient of {worst}, {share} of what is allowed");
    }
}

/// Steps that PyTorch's figures were recorded for.
const STEPS: usize = 10;
/// Runs from other last bits.
const SEEDS: std::ops::RangeInclusive<u64> = 1..=8;

/// Holds the first step to the bars, its gradients from any of some last bits, and what follows to
/// the spread of runs from other last bits. A last bit decides on which side of a corner an input
/// of `Relu` or `Clip` lies that is 0 but for rounding: gradients jump by 1e-3 then.
fn agrees_within_its_spread(name: &str) {
    let Some(comparison) = Comparison::new(name) else { return };
    // First gradients are the same for all optimizers.
    let (_, optimizer) = optimizers()[0];
    let mut tried = Vec::new();
    let exact = SEEDS.into_iter().any(|seed| {
        tried.push(comparison.distance_from_exact(optimizer, seed));
        tried.last().is_some_and(|(share, _)| *share < 1.0)
    });
    assert!(exact, "{name}: first gradients, shares of what is allowed: {tried:?}");
    for (label, optimizer) in optimizers() {
        let pytorch = comparison.pytorch(label, optimizer);
        let ours = comparison.ours(optimizer, 0);
        let differences = ours.differences(&pytorch);
        let first = (ours.losses[0] - pytorch.losses[0]).abs() / pytorch.losses[0];
        assert!(first < 1e-6, "{name} {label}: first loss differs by {first}");
        let evaluation = &differences[4];
        assert!(evaluation.0 < BARS[4], "{name} {label}: {evaluation:?}");
        let mut spread = [0.0_f64; 5];
        let mut gradients = differences[1].0;
        // Rounding in every operation moves more than last bits of the first weights.
        let fits = |gradients: f64, spread: [f64; 5]| {
            let bar = |kind: usize| BARS[kind].max(3.0 * spread[kind]);
            gradients < BARS[1] && [0, 2, 3].iter().all(|kind| differences[*kind].0 < bar(*kind))
        };
        // More runs can only widen the spread.
        for seed in SEEDS {
            if fits(gradients, spread) {
                break;
            }
            let other = comparison.ours(optimizer, seed);
            gradients = gradients.min(other.differences(&pytorch)[1].0);
            let moved = other.differences(&ours);
            spread.iter_mut().zip(moved).for_each(|(most, (moved, _))| *most = most.max(moved));
        }
        assert!(
            fits(gradients, spread),
            "{name} {label}: first gradients {gradients}, {differences:?}, spread {spread:?}"
        );
    }
}

#[test]
fn mlp() {
    agrees("mlp");
}

#[test]
fn lenet() {
    agrees("lenet");
}

#[test]
fn cnn() {
    agrees("cnn");
}

#[test]
fn efficientnet_tiny() {
    agrees("efficientnet_tiny");
}

#[test]
fn mobilenet_v2_tiny() {
    agrees_within_its_spread("mobilenet_v2_tiny");
}

#[test]
fn resnet8() {
    agrees_within_its_spread("resnet8");
}

#[test]
fn resnet8_reaches_all_figures_from_some_last_bits() {
    let Some(Comparison { recorded, .. }) = Comparison::new("resnet8") else { return };
    let (label, optimizer) = optimizers()[0];
    let pytorch = Figures::of_pytorch(&recorded.figures, label);
    let mut found = Vec::new();
    for seed in 0..60 {
        let ours = Figures::of_trainer(&recorded, optimizer, seed, STEPS);
        let differences = ours.differences(&pytorch);
        if differences.iter().all(|(difference, _)| *difference < 1e-3) {
            return;
        }
        found.push(differences);
    }
    panic!("no last bits lead to PyTorch's figures: {found:?}");
}
