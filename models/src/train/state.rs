//! A trainer's state as bytes, to go on later as if nothing had happened.
//!
//! ```text
//! "DUNLIN1\n"  steps u64  optimizer_steps u64  length u64
//! parameters and running statistics: safetensors of `length` bytes
//! what the optimizer keeps, by weight, as far as it keeps something: safetensors
//! ```
//! Numbers are little-endian.

use super::{TrainError, Trainer};
use crate::params::{Layout, ParametersError, append_le_bytes, from_le_bytes};

const MAGIC: [u8; 8] = *b"DUNLIN1\n";
const PREFIX: usize = 32;

impl Trainer {
    /// Everything that steps change: parameters, running statistics, the optimizer's state and
    /// the number of steps, which decides what is random.
    pub fn state(&self) -> Vec<u8> {
        let parameters = self.layout();
        let kept = self.state_layout(self.weights.iter().map(|(_, state)| state.len()));
        let mut bytes = Vec::new();
        bytes.reserve_exact(PREFIX + parameters.byte_len() + kept.byte_len());
        bytes.extend(MAGIC);
        for number in [self.steps, self.optimizer_steps, parameters.byte_len() as u64] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(parameters.header());
        for id in self.definition.kept() {
            append_le_bytes(self.network.values(*id), &mut bytes);
        }
        bytes.extend(kept.header());
        for (_, state) in &self.weights {
            append_le_bytes(state, &mut bytes);
        }
        bytes
    }

    /// Goes on from a state of a trainer of the same graph, optimizer and settings: with the same
    /// batches the same bits as if it had gone on itself. What the proximal term pulls to and
    /// control variates are not part of it: set them before.
    ///
    /// # Errors
    /// [`TrainError::State`], and nothing is changed.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), TrainError> {
        let format = |problem: &str| TrainError::State(ParametersError::Format(problem.to_owned()));
        let [magic, steps, optimizer_steps, length] = state
            .split_first_chunk::<PREFIX>()
            .and_then(|(prefix, _)| prefix.as_chunks::<8>().0.try_into().ok())
            .ok_or_else(|| format("fewer bytes than a state begins with"))?;
        if magic != MAGIC {
            return Err(format("no state of a training"));
        }
        let length = usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX);
        let (parameters, kept) = state[PREFIX..]
            .split_at_checked(length)
            .ok_or_else(|| format("the parameters are cut off"))?;
        let values = tensors(parameters, self.layout()).map_err(TrainError::State)?;
        let optimizer_steps = u64::from_le_bytes(optimizer_steps);
        let lengths = self.weights.iter().map(|(id, _)| match optimizer_steps {
            0 => 0,
            _ => self.optimizer.state_len(self.network.values(*id).len()),
        });
        let expected = self.state_layout(lengths);
        let mut kept = tensors(kept, &expected).map_err(TrainError::State)?.into_iter();
        for (id, values) in self.definition.kept().iter().zip(values) {
            self.network.values_mut(*id).copy_from_slice(&values);
        }
        // An optimizer keeps something of each weight or of none.
        for (_, state) in &mut self.weights {
            *state = kept.next().unwrap_or_default();
        }
        self.steps = u64::from_le_bytes(steps);
        self.optimizer_steps = optimizer_steps;
        Ok(())
    }

    /// The optimizer's state of each weight, of such lengths.
    fn state_layout(&self, lengths: impl Iterator<Item = usize>) -> Layout {
        let shapes: Vec<[usize; 1]> = lengths.map(|length| [length]).collect();
        let weights = self.weights.iter().zip(&shapes).filter(|(_, shape)| shape[0] > 0);
        let graph = &self.network.graph;
        Layout::new(weights.map(|((id, _), shape)| (graph.value(*id).name.as_str(), &shape[..])))
    }

    /// Steps taken, those before [`Trainer::restore`] too.
    pub fn steps(&self) -> u64 {
        self.steps
    }
}

/// The values of a blob with exactly this layout, all of them finite.
fn tensors(blob: &[u8], expected: &Layout) -> Result<Vec<Vec<f32>>, ParametersError> {
    let layout = Layout::of_whole(blob)?;
    layout.check_like(expected)?;
    let data = &blob[layout.data_start()..];
    let read = layout.spans().iter().map(|span| {
        let values = from_le_bytes(&data[span.elements.start * 4..span.elements.end * 4]);
        layout.check_finite(span.elements.start, &values)?;
        Ok(values)
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::{Adam, Loss, Optimizer, Schedule, Settings, Sgd};
    use crate::zoo;

    const SGD: Sgd = Sgd { learning_rate: 0.02, momentum: 0.9, weight_decay: 5e-4 };

    fn trainer(family: &str, optimizer: Optimizer) -> Trainer {
        let onnx = zoo::build(family, [1, 8, 8], 4, 7).unwrap();
        let settings = Settings {
            loss: Loss::SoftmaxCrossEntropy { label_smoothing: 0.1 },
            schedule: Schedule { warm_up: 4, ..Schedule::default() },
            proximal: 0.01,
            gradient_norm_max: Some(1.0),
            ..Settings::default()
        };
        Trainer::with_settings(&onnx, optimizer, settings).unwrap()
    }

    /// Steps `from..to` of a training on batches that differ.
    fn steps(trainer: &mut Trainer, from: u16, to: u16) {
        for step in from..to {
            let n = if step % 3 == 2 { 3 } else { 6 };
            let pixel = |i: u16| f32::from((i * 37 + step * 11) % 255) / 127.5 - 1.0;
            let examples: Vec<f32> = (0..n * 64).map(pixel).collect();
            let labels: Vec<u32> = (0..n).map(|i| u32::from((i + step) % 4)).collect();
            trainer.step(&examples, &labels).unwrap();
        }
    }

    fn optimizers() -> [Optimizer; 4] {
        let plain = Sgd { momentum: 0.0, ..SGD };
        let adam = Adam { weight_decay: 0.01, ..Adam::new(1e-3) };
        [plain.into(), SGD.into(), Optimizer::Nesterov(SGD), Optimizer::AdamW(adam)]
    }

    #[test]
    fn training_goes_on_with_the_same_bits() {
        for family in ["resnet8", "mobilenet_v3_small"] {
            for optimizer in optimizers() {
                for threads in [1, 2] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                    pool.unwrap().install(|| {
                        let mut whole = trainer(family, optimizer);
                        let start = whole.parameters();
                        steps(&mut whole, 0, 7);
                        let state = whole.state();
                        steps(&mut whole, 7, 12);
                        let mut second = trainer(family, optimizer);
                        second.set_parameters(&start).unwrap();
                        second.restore(&state).unwrap();
                        assert_eq!((second.steps(), second.state() == state), (7, true));
                        steps(&mut second, 7, 12);
                        assert_eq!(second.state(), whole.state(), "{family} {optimizer:?}");
                        assert_eq!(second.parameters(), whole.parameters());
                    });
                }
            }
        }
    }

    #[test]
    fn a_state_from_before_the_first_step_is_one() {
        let first = trainer("mlp", SGD.into());
        let mut second = trainer("mlp", SGD.into());
        steps(&mut second, 0, 2);
        second.restore(&first.state()).unwrap();
        assert_eq!(second.state(), first.state());
    }

    #[test]
    fn other_states_are_refused_and_change_nothing() {
        let mut here = trainer("mlp", SGD.into());
        steps(&mut here, 0, 2);
        let before = here.state();
        let adam = trainer("mlp", Optimizer::Adam(Adam::new(1e-3)));
        let mut of_adam = adam;
        steps(&mut of_adam, 0, 1);
        let mut damaged = before.clone();
        let end = damaged.len();
        damaged[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        for (bad, words) in [
            (Vec::new(), "fewer bytes"),
            (vec![7; 100], "no state"),
            (before[..end / 2].to_vec(), ""),
            (before[..end - 1].to_vec(), "announces"),
            (of_adam.state(), "shape"),
            (trainer("cnn", SGD.into()).state(), "parameter"),
            (damaged, "NaN"),
        ] {
            let error = here.restore(&bad).unwrap_err();
            assert!(matches!(error, TrainError::State(_)));
            assert!(error.to_string().contains(words), "{error} lacks {words:?}");
            assert_eq!(here.state(), before);
        }
    }
}
