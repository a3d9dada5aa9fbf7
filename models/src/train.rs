//! The `native` engine: trains and evaluates an ONNX graph on the CPU.

use crate::federated::statistics::Statistics;
use crate::graph::{GraphError, Origin, ValueId};
use crate::kernels::loss::{Judged, judge};
use crate::kernels::reshape::from_examples;
use crate::kernels::sums::sum_of_squares;
use crate::onnx::TensorProto;
use crate::params::{Layout, Parameter, Parameters, ParametersError};

mod buffers;
mod correction;
mod definition;
mod divergence;
mod memory;
mod network;
mod optimizer;
mod profile;
mod schedule;
mod settings;
mod state;

use correction::{Corrections, clip_factor};
pub use definition::Definition;
pub use divergence::Divergence;
pub use memory::Memory;
use network::{Network, Pass};
pub use optimizer::{Adam, Optimizer, Sgd};
use profile::Profile;
pub use profile::{OperatorTime, SquareProduct};
pub use schedule::{Decay, Schedule};
pub use settings::{Loss, Settings, Targets};

/// What a step or an evaluation of one batch gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchResult {
    /// Mean loss of the batch.
    pub loss: f64,
    /// Examples classified rightly.
    pub correct: usize,
    /// Examples of the batch.
    pub examples: usize,
}

/// Why training cannot begin or go on.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrainError {
    /// The graph cannot be trained.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The parameters are not this graph's.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// A label outside of the model's classes.
    #[error("label {label} is out of range: the model has {classes} classes")]
    Label {
        /// The label.
        label: u32,
        /// The model's classes.
        classes: usize,
    },
    /// The batch's shape is not the model's.
    #[error("batch: expected examples of shape {expected:?}, found {found}")]
    Batch {
        /// Shape of one example.
        expected: Vec<usize>,
        /// What was given.
        found: String,
    },
    /// Bytes that are no state of such a training.
    #[error("a training cannot go on from this state: {0}")]
    State(#[source] ParametersError),
    /// Numbers became NaN or infinite.
    #[error("step {step}: {what}: {}", what.advice())]
    Diverged {
        /// Counted from 1.
        step: u64,
        /// What was the first to do so.
        what: Divergence,
    },
}

/// A graph in training, with its parameters, gradients, optimizer state and buffers.
///
/// Training means what PyTorch's `model.train()` means, whatever mode the file was exported in:
/// batch normalisation uses the batch's statistics and dropout drops. Work is spread over the
/// rayon pool that the calls are made in; results depend neither on its number of threads nor on
/// timing, only on the processor's instructions.
#[derive(Debug)]
pub struct Trainer {
    definition: Definition,
    network: Network,
    optimizer: Optimizer,
    settings: Settings,
    corrections: Corrections,
    /// Weights with the optimizer's state, empty before the first step; by name.
    weights: Vec<(ValueId, Vec<f32>)>,
    steps: u64,
    /// Steps since the optimizer's state was empty.
    optimizer_steps: u64,
}

impl Trainer {
    /// Checks the graph and allocates what training needs.
    ///
    /// # Errors
    /// [`TrainError::Graph`] names the node that cannot be trained.
    pub fn new(onnx: &[u8], optimizer: impl Into<Optimizer>) -> Result<Self, TrainError> {
        Self::with_settings(onnx, optimizer, Settings::default())
    }

    /// The same with settings of its own.
    ///
    /// # Errors
    /// As [`Trainer::new`], also when every weight that the outputs depend on is frozen.
    pub fn with_settings(
        onnx: &[u8],
        optimizer: impl Into<Optimizer>,
        settings: Settings,
    ) -> Result<Self, TrainError> {
        let mut trainer = Self::of(onnx, optimizer.into(), settings)?;
        if !trainer.trains() {
            return Err(nothing_to_train());
        }
        trainer.anchor();
        Ok(trainer)
    }

    /// A trainer that evaluates only, in the memory that the widest place of the graph takes;
    /// steps are refused.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn for_evaluation(onnx: &[u8], loss: Loss) -> Result<Self, TrainError> {
        let settings = Settings { loss, frozen: vec!["*".to_owned()], ..Settings::default() };
        let none = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
        Self::of(onnx, none.into(), settings)
    }

    fn of(onnx: &[u8], optimizer: Optimizer, settings: Settings) -> Result<Self, TrainError> {
        let (definition, mut graph) = Definition::of(crate::onnx::parse(onnx)?)?;
        graph.freeze(|name| settings.freezes(name));
        if !settings.loss.takes_logits() {
            graph.with_last();
        }
        let weights = definition.kept().iter().copied();
        let weights = weights.filter(|id| graph.value(*id).origin == Origin::Weight);
        let weights: Vec<_> = weights.map(|id| (id, Vec::new())).collect();
        Ok(Self {
            definition,
            network: Network::new(graph),
            optimizer,
            settings,
            corrections: Corrections::default(),
            weights,
            steps: 0,
            optimizer_steps: 0,
        })
    }

    /// Whether a weight that is trained has a part in the outputs.
    fn trains(&self) -> bool {
        let Network { graph, buffers, .. } = &self.network;
        buffers.gradient[graph.output.0].is_some()
    }

    /// Shape of one example, `[c, h, w]` or `[d]`.
    pub fn example_shape(&self) -> &[usize] {
        self.definition.example_shape()
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.definition.classes()
    }

    /// Number of trained values; frozen ones and running statistics are not counted.
    pub fn trained_len(&self) -> usize {
        let graph = &self.network.graph;
        self.weights.iter().map(|(id, _)| graph.value(*id).shape.elements()).sum()
    }

    /// The parameters and running statistics now.
    #[expect(clippy::missing_panics_doc, reason = "a graph's values have names of their own")]
    pub fn parameters(&self) -> Parameters {
        let parameter = |id: &ValueId| {
            let value = self.network.graph.value(*id);
            Parameter {
                name: value.name.clone(),
                shape: value.shape.dims.clone(),
                values: self.network.values(*id).to_vec(),
            }
        };
        Parameters::new(self.definition.kept().iter().map(parameter).collect())
            .expect("names in a graph are unique and values fill their shapes")
    }

    /// Which values of the parameters are running statistics.
    pub fn statistics(&self) -> Statistics {
        self.definition.statistics()
    }

    /// Replaces parameters and running statistics; the optimizer's state starts anew, and the
    /// proximal term pulls towards these.
    ///
    /// # Errors
    /// [`TrainError::Parameters`] when names or shapes differ or values are not finite.
    pub fn set_parameters(&mut self, parameters: &Parameters) -> Result<(), TrainError> {
        parameters.check_like(self.layout())?;
        for (id, item) in self.definition.kept().iter().zip(parameters.items()) {
            self.network.values_mut(*id).copy_from_slice(&item.values);
        }
        for (_, state) in &mut self.weights {
            state.clear();
        }
        self.optimizer_steps = 0;
        self.anchor();
        Ok(())
    }

    /// Sets or removes what is added to every gradient, `c - c_i` of `SCAFFOLD` (Karimireddy et
    /// al. 2020), for each weight that is trained.
    ///
    /// # Errors
    /// [`TrainError::Parameters`] when names or shapes are not those of the weights or values are
    /// not finite.
    pub fn set_control_variate(&mut self, control: Option<&Parameters>) -> Result<(), TrainError> {
        if let Some(control) = control {
            control.check_like(&self.trained_layout())?;
        }
        self.corrections.set_controls(control);
        Ok(())
    }

    /// Keeps the weights of now for the proximal term, if there is one.
    fn anchor(&mut self) {
        if self.settings.proximal > 0.0 {
            let weights = self.weights.iter().map(|(id, _)| self.network.values(*id).to_vec());
            self.corrections.set_anchors(weights.collect());
        }
    }

    /// Names and shapes of [`Trainer::parameters`].
    pub fn layout(&self) -> &Layout {
        self.definition.layout()
    }

    /// Names and shapes of the weights that are trained: no frozen ones, no running statistics.
    pub fn trained_layout(&self) -> Layout {
        self.layout_of(self.weights.iter().map(|(id, _)| id))
    }

    fn layout_of<'a>(&self, ids: impl Iterator<Item = &'a ValueId>) -> Layout {
        let graph = &self.network.graph;
        Layout::new(ids.map(|id| {
            let value = graph.value(*id);
            (value.name.as_str(), value.shape.dims.as_slice())
        }))
    }

    /// The last step's gradient of the mean loss by a weight, corrected and clipped as the
    /// settings say, without weight decay; `None` for other names and before the first step.
    pub fn gradient(&mut self, name: &str) -> Option<&[f32]> {
        let graph = &self.network.graph;
        let (id, _) = self.weights.iter().find(|(id, _)| graph.value(*id).name == name)?;
        let (_, gradient) = self.network.weight(*id)?;
        Some(&*gradient).filter(|gradient| !gradient.is_empty())
    }

    /// One optimizer step on a batch: `examples [n, ...example_shape]` row-major, `labels [n]`.
    ///
    /// # Errors
    /// [`TrainError::Label`], [`TrainError::Batch`]; [`TrainError::Diverged`] leaves the weights
    /// as they were before the step.
    pub fn step(&mut self, examples: &[f32], labels: &[u32]) -> Result<BatchResult, TrainError> {
        self.step_towards(examples, Targets::Labels(labels))
    }

    /// The same towards targets of any kind.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_towards(
        &mut self,
        examples: &[f32],
        targets: Targets<'_>,
    ) -> Result<BatchResult, TrainError> {
        if !self.trains() {
            return Err(nothing_to_train());
        }
        let batch = self.load(examples, Some(targets))?;
        self.steps += 1;
        let pass = Pass::Training { step: self.steps };
        self.network.forward(batch, pass);
        let (logits, gradient) = self.network.logits(batch);
        let judged = judge(self.settings.loss, logits, batch, targets, Some(gradient));
        let again = Pass::Again { step: self.steps };
        let result = self.result(judged, batch, again)?;
        self.network.backward(batch, self.steps);
        self.update()?;
        Ok(result)
    }

    /// Corrects and clips the gradients and moves the weights.
    fn update(&mut self) -> Result<(), TrainError> {
        let mut squares = 0.0;
        for (index, (id, _)) in self.weights.iter().enumerate() {
            if let Some((weights, gradient)) = self.network.weight(*id) {
                self.corrections.add(index, self.settings.proximal, weights, gradient);
                squares += sum_of_squares(gradient);
            }
        }
        // The squares of finite values have a finite sum in this precision.
        if !squares.is_finite() {
            let found = self.network.spoiled_gradient();
            return Err(self.diverged(found.unwrap_or(Divergence::Loss { value: squares })));
        }
        let clip = self.settings.gradient_norm_max.map_or(1.0, |max| clip_factor(squares, max));
        let step = self.settings.first_step.saturating_add(self.steps - 1);
        let factor = self.settings.schedule.factor(step);
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
        let rate = (f64::from(self.optimizer.learning_rate()) * factor) as f32;
        self.optimizer_steps += 1;
        for (id, state) in &mut self.weights {
            if let Some((weights, gradient)) = self.network.weight(*id) {
                if clip < 1.0 {
                    for gradient in gradient.iter_mut() {
                        *gradient *= clip;
                    }
                }
                self.optimizer.update(self.optimizer_steps, rate, weights, gradient, state);
            }
        }
        Ok(())
    }

    /// Whether all parameters are finite: the last step may have spoiled them after its loss was
    /// taken.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] names the first parameter, in the order of computation, that is
    /// not.
    pub fn check_finite(&self) -> Result<(), TrainError> {
        self.network.spoiled_parameter().map_or(Ok(()), |what| Err(self.diverged(what)))
    }

    fn diverged(&self, what: Divergence) -> TrainError {
        TrainError::Diverged { step: self.steps, what }
    }

    fn result(
        &mut self,
        judged: Judged,
        examples: usize,
        again: Pass,
    ) -> Result<BatchResult, TrainError> {
        if !judged.loss.is_finite() {
            let found = self.network.not_finite(examples, again);
            return Err(self.diverged(found.unwrap_or(Divergence::Loss { value: judged.loss })));
        }
        Ok(BatchResult { loss: judged.loss, correct: judged.correct, examples })
    }

    /// Loss and accuracy of a batch with running statistics, changing nothing.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn evaluate(
        &mut self,
        examples: &[f32],
        labels: &[u32],
    ) -> Result<BatchResult, TrainError> {
        self.evaluate_towards(examples, Targets::Labels(labels))
    }

    /// The same towards targets of any kind.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn evaluate_towards(
        &mut self,
        examples: &[f32],
        targets: Targets<'_>,
    ) -> Result<BatchResult, TrainError> {
        let batch = self.load(examples, Some(targets))?;
        self.network.forward(batch, Pass::Evaluation);
        let (logits, _) = self.network.logits(batch);
        let judged = judge(self.settings.loss, logits, batch, targets, None);
        self.result(judged, batch, Pass::Evaluation)
    }

    /// Logits `[n, classes]` of a batch as [`Trainer::evaluate`] computes them: before a final
    /// softmax, if the graph has one that is part of the loss.
    ///
    /// # Errors
    /// [`TrainError::Batch`].
    pub fn logits(&mut self, examples: &[f32]) -> Result<Vec<f32>, TrainError> {
        let batch = self.load(examples, None)?;
        self.network.forward(batch, Pass::Evaluation);
        let classes = self.definition.classes();
        let (logits, _) = self.network.logits(batch);
        let row = |example| (0..classes).map(move |class| logits[class * batch + example]);
        Ok((0..batch).flat_map(row).collect())
    }

    /// Measures from now on what each node takes, by this clock.
    pub fn profile(&mut self, clock: fn() -> std::time::Duration) {
        self.network.profile = Some(Profile::new(clock, self.network.graph.nodes.len()));
    }

    /// What nodes took since [`Trainer::profile`], the longest first; empty without it.
    pub fn operator_times(&self) -> Vec<OperatorTime> {
        let profile = self.network.profile.as_ref();
        profile.map_or_else(Vec::new, |profile| profile.by_operator(&self.network.graph))
    }

    /// See [`Definition::to_training_onnx`]; with the parameters of now, be they finite or not.
    pub fn to_training_onnx(&self) -> Vec<u8> {
        self.definition.training_onnx(self.tensors())
    }

    /// See [`Definition::to_inference_onnx`]; with the parameters of now, be they finite or not.
    pub fn to_inference_onnx(&self) -> Vec<u8> {
        self.definition.inference_onnx(self.tensors())
    }

    fn tensors(&self) -> Vec<TensorProto> {
        let tensor = |id: &ValueId| {
            let value = self.network.graph.value(*id);
            TensorProto::from_f32(&value.name, &value.shape.dims, self.network.values(*id))
        };
        self.definition.kept().iter().map(tensor).collect()
    }

    /// The same with each batch normalisation taken into the convolution before it, where nothing
    /// else takes what is between: fewer operations, equal up to rounding.
    pub fn to_folded_onnx(&self) -> Vec<u8> {
        self.definition.folded_onnx(self.tensors())
    }

    /// Checks a batch and puts it where the network reads it; the number of examples.
    fn load(
        &mut self,
        examples: &[f32],
        targets: Option<Targets<'_>>,
    ) -> Result<usize, TrainError> {
        let (shape, classes) = (self.definition.example_shape(), self.definition.classes());
        let len: usize = shape.iter().product();
        let misfit = |found: String| TrainError::Batch { expected: shape.to_vec(), found };
        let batch = examples.len() / len;
        if batch == 0 || batch * len != examples.len() {
            return Err(misfit(format!("{} values", examples.len())));
        }
        match targets {
            Some(Targets::Labels(labels)) => {
                if labels.len() != batch {
                    return Err(misfit(format!("{batch} examples with {} labels", labels.len())));
                }
                // One output tells two classes apart.
                let binary = classes == 1 && self.settings.loss == Loss::BinaryCrossEntropy;
                let classes = if binary { 2 } else { classes };
                let out = |label: &&u32| usize::try_from(**label).is_ok_and(|l| l >= classes);
                if let Some(label) = labels.iter().find(out) {
                    return Err(TrainError::Label { label: *label, classes });
                }
            }
            Some(Targets::Values(values)) if values.len() != batch * classes => {
                return Err(misfit(format!("{batch} examples with {} targets", values.len())));
            }
            Some(Targets::Values(_)) | None => {}
        }
        from_examples(examples, batch, self.network.input(batch));
        Ok(batch)
    }
}

fn nothing_to_train() -> TrainError {
    let problem = "the outputs depend on no weight that is trained: all of these are frozen";
    GraphError::Graph(problem.to_owned()).into()
}

#[cfg(test)]
mod tests;
