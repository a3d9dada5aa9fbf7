//! Dropout.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Backward, Forward, Kernel, Reads};

/// In training sets elements to 0 with probability `ratio` and divides the others by `1 - ratio`.
/// Source: ONNX operator `Dropout`, opset 13.
#[derive(Debug)]
pub(super) struct Dropout {
    ratio: f32,
    seed: u64,
    /// Factor of each element in the last training step.
    factors: Vec<f32>,
}

impl Dropout {
    pub(super) fn new(ratio: f32, seed: u64) -> Self {
        Self { ratio, seed, factors: Vec::new() }
    }
}

impl Kernel for Dropout {
    fn kept_bytes(&self, output_len: usize) -> usize {
        output_len * size_of::<f32>()
    }

    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        if !call.training {
            call.output.copy_from_slice(x);
            return;
        }
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(call.step);
        self.factors.resize(x.len().max(self.factors.len()), 0.0);
        let keep = (1.0 - self.ratio).recip();
        // An element is dropped when a uniform 32-bit number lies below this.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "ratio < 1")]
        let bound = (f64::from(self.ratio) * 4_294_967_296.0) as u32;
        for (factor, (y, x)) in self.factors.iter_mut().zip(call.output.iter_mut().zip(*x)) {
            *factor = if random.next_u32() < bound { 0.0 } else { keep };
            *y = x * *factor;
        }
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        let pairs = call.output_gradient.iter().zip(&self.factors);
        gradient.put(pairs.map(|(dy, factor)| dy * factor));
    }
}
