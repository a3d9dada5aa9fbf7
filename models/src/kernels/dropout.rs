//! Dropout.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Backward, Forward, Kernel, Reads};
use crate::graph::Share;

/// In training sets elements, channels or whole examples to 0 with probability `ratio` and divides
/// the others by `1 - ratio`.
/// Source: ONNX operator `Dropout`, opset 13; stochastic depth: Huang et al. 2016, scaled in
/// training as `PyTorch`'s `stochastic_depth` is.
#[derive(Debug)]
pub(super) struct Dropout {
    ratio: f32,
    seed: u64,
    share: Share,
    /// Channels and elements of an example.
    channels: usize,
    elements: usize,
    /// Factor of each element in the last training step.
    factors: Vec<f32>,
}

impl Dropout {
    pub(super) fn new(ratio: f32, seed: u64, share: Share, dims: &[usize]) -> Self {
        let (channels, elements) = (dims[0], dims.iter().product());
        Self { ratio, seed, share, channels, elements, factors: Vec::new() }
    }

    /// Lets what is dropped together have the factor of its first element.
    fn spread(&mut self, n: usize) {
        let together = match self.share {
            Share::Element => return,
            Share::Channel => self.elements / self.channels,
            Share::Example => self.elements,
        };
        for element in 0..self.elements {
            let first = element / together * together;
            self.factors.copy_within(first * n..(first + 1) * n, element * n);
        }
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
        for factor in &mut self.factors[..x.len()] {
            *factor = if random.next_u32() < bound { 0.0 } else { keep };
        }
        self.spread(call.batch);
        let products = x.iter().zip(&self.factors).map(|(x, factor)| x * factor);
        call.output.iter_mut().zip(products).for_each(|(y, product)| *y = product);
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        let pairs = call.output_gradient.iter().zip(&self.factors);
        gradient.put(pairs.map(|(dy, factor)| dy * factor));
    }
}
