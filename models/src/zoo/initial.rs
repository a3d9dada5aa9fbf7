//! Distributions of initial weights.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What initial values are drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Draw {
    /// Always this.
    Constant(f32),
    /// A normal distribution around 0.
    Normal {
        /// Standard deviation.
        deviation: f64,
    },
    /// A uniform distribution around 0.
    Uniform {
        /// The largest value.
        bound: f64,
    },
}

/// Which pass keeps its variance through a layer with a rectifier (He et al. 2015).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fan {
    /// The forward pass: variance `2 / inputs of an output`, equation 10.
    In,
    /// The backward pass: variance `2 / outputs of an input`, equation 14.
    Out,
}

impl Draw {
    /// Normal, of variance `2 / fan`.
    pub(super) fn he(fan: usize) -> Self {
        Self::Normal { deviation: (2.0 / float(fan)).sqrt() }
    }

    /// Uniform up to `1 / sqrt(fan)`.
    pub(super) fn uniform(fan: usize) -> Self {
        Self::Uniform { bound: 1.0 / float(fan).sqrt() }
    }

    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    pub(super) fn value(self, random: &mut ChaCha8Rng) -> f32 {
        match self {
            Self::Constant(value) => value,
            Self::Normal { deviation } => (normal(random) * deviation) as f32,
            Self::Uniform { bound } => ((2.0 * unit(random) - 1.0) * bound) as f32,
        }
    }
}

/// A standard normal number (Box & Muller 1958).
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let (radius, angle) = (unit(random), unit(random));
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// A uniform number above 0 and below 1.
fn unit(random: &mut ChaCha8Rng) -> f64 {
    (f64::from(random.next_u32()) + 0.5) / 4_294_967_296.0
}

#[expect(clippy::cast_precision_loss, reason = "layers have far less than 2^53 inputs")]
fn float(count: usize) -> f64 {
    count as f64
}
