//! Differential privacy of a mean (`McMahan` et al. 2018, arXiv 1710.06963): updates that are
//! shortened to a norm, a divisor that does not depend on who answered, and Gaussian noise.
//!
//! With the bound `C` and `m` planned devices one device changes the mean by `C / m` at most,
//! whatever it sends. Noise of deviation `z C / m` in each value then gives what the Gaussian
//! mechanism gives with noise multiplier `z`.
//!
//! Where the mean of updates is known alone, because each is hidden, devices shorten them and
//! [`PrivateSum`] does the rest.
//!
//! A device that trusts nobody makes such a mean of its own update alone, `m = 1`, before it sends
//! it: any two updates of a device lie `2 C` apart at most, so `z` is half as large there.

use std::f64::consts::TAU;

use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng as _};

use super::distances::UpdateNorms;
use super::robust::norm_bound::{NormBound, NormBoundError};
use super::tile::{TileError, check_centre, check_finite, check_rows, fill};
use crate::params::{Layout, Parameters, ParametersError, is_named};

/// Bits of the noise's deviation that a result keeps behind the point.
const GRID_BITS: i32 = 20;
/// By how much noise is larger than asked for: covers what norms, sums and the normal numbers
/// themselves lose to rounding.
const SLACK: f64 = 1e-9;
/// 32-bit words of the generator for one pair of normal numbers.
const PAIR_WORDS: u128 = 4;

/// Normal numbers with mean 0 that a seed decides: each value of a vector has its own, however
/// the vector is cut, on every machine.
///
/// The seed keys `ChaCha20`. Two of its 64-bit numbers make a pair of normal ones (Box and Muller
/// 1958) in `f64`, which reach to 9.4 deviations; the rest of a normal distribution weighs 1e-20.
///
/// What floating-point numbers are near a noised value tells of the value before (Mironov 2012,
/// doi 10.1145/2382196.2382264). Hence sums are rounded to a grid after the noise was added: its
/// step is a millionth of the deviation, and millions of `f64` numbers lie between two points of
/// it, so that the chance of each point is that of real numbers.
#[derive(Debug, Clone)]
pub struct GaussianNoise {
    seed: [u8; 32],
    deviation: f64,
    grid: f64,
}

/// Why there is no such noise.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum PrivacyError {
    /// A number out of range.
    #[error("{name} is {value}, expected {expected}")]
    Setting {
        /// Which one.
        name: &'static str,
        /// What was given.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// A norm that is none.
    #[error("device {device}: norm {norm}, expected a finite one of at least 0")]
    Norm {
        /// Counted from 0.
        device: usize,
        /// What was given.
        norm: f64,
    },
}

impl GaussianNoise {
    /// Noise of this deviation; a seed serves one vector.
    ///
    /// # Errors
    /// [`PrivacyError::Setting`] for a deviation that is not above 0 and below 1e100.
    pub fn new(seed: [u8; 32], deviation: f64) -> Result<Self, PrivacyError> {
        if !(1e-100..1e100).contains(&deviation) {
            let (name, expected) = ("deviation", "1e-100 to 1e100");
            return Err(PrivacyError::Setting { name, value: deviation, expected });
        }
        let deviation = deviation * (1.0 + SLACK);
        let grid = libm::exp2(libm::floor(libm::log2(deviation)) - f64::from(GRID_BITS));
        Ok(Self { seed, deviation, grid })
    }

    /// The step of the grid that results lie on, a power of 2.
    pub fn grid(&self) -> f64 {
        self.grid
    }

    /// Adds noise to the values from `offset` of the vector on, and rounds them to the grid.
    pub fn add(&self, offset: usize, values: &mut [f64]) {
        let mut random = ChaCha20Rng::from_seed(self.seed);
        random.set_word_pos(PAIR_WORDS * (offset as u128 / 2));
        let (head, pairs) = values.split_at_mut((offset % 2).min(values.len()));
        if let [second] = head {
            *second = self.noised(*second, normal_pair(&mut random).1);
        }
        for pair in pairs.chunks_mut(2) {
            let (first, second) = normal_pair(&mut random);
            for (value, normal) in pair.iter_mut().zip([first, second]) {
                *value = self.noised(*value, normal);
            }
        }
    }

    fn noised(&self, value: f64, normal: f64) -> f64 {
        libm::rint((value + self.deviation * normal) / self.grid) * self.grid
    }
}

/// Two independent standard normal numbers. The functions of `libm` give the same bits
/// everywhere.
fn normal_pair(random: &mut ChaCha20Rng) -> (f64, f64) {
    const UNIT: f64 = 1.0 / 18_446_744_073_709_551_616.0;
    #[expect(clippy::cast_precision_loss, reason = "what is lost is far below the grid")]
    let mut uniform = || (random.next_u64() as f64 + 0.5) * UNIT;
    let radius = libm::sqrt(-2.0 * libm::log(uniform()));
    let (sin, cos) = libm::sincos(TAU * uniform());
    (radius * cos, radius * sin)
}

/// New parameters by the mean of updates' differences from the round's, shortened and noised.
#[derive(Debug, Clone)]
pub struct PrivateMean {
    noise: GaussianNoise,
    /// By device.
    coefficients: Vec<f64>,
    count: Within,
}

/// How many updates of a round are not longer than the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Within {
    /// Those.
    pub within: u32,
    /// All of them.
    pub devices: u32,
    /// See [`Protection::planned`], above 0.
    pub planned: u32,
}

/// What a private mean is made with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Protection {
    /// The longest update that counts, the norm of all its values together.
    pub bound: NormBound,
    /// Devices that the sum is divided by, however many there are.
    pub planned: u32,
    /// Deviation of the noise by what one device changes at most.
    pub noise_multiplier: f64,
}

impl PrivateMean {
    /// Of updates whose differences have these norms, `[n]`; there may be none.
    ///
    /// # Errors
    /// [`PrivacyError`].
    pub fn new(
        protection: Protection,
        norms: &[f64],
        seed: [u8; 32],
    ) -> Result<Self, PrivacyError> {
        let PrivateSum { noise, planned } = PrivateSum::new(protection, seed)?;
        let bound = protection.bound;
        if let Some(device) = norms.iter().position(|norm| !(norm.is_finite() && *norm >= 0.0)) {
            return Err(PrivacyError::Norm { device, norm: norms[device] });
        }
        let coefficients = norms.iter().map(|norm| bound.factor(*norm) / planned).collect();
        let within = norms.iter().filter(|norm| **norm <= bound.bound()).count();
        let number = |count| u32::try_from(count).unwrap_or(u32::MAX);
        let (within, devices) = (number(within), number(norms.len()));
        let count = Within { within, devices, planned: protection.planned };
        Ok(Self { noise, coefficients, count })
    }

    /// A tile of new parameters, which lies at `offset` of the vector.
    ///
    /// Shapes: `centre [length]`, `rows [n][length]` -> `combined [length]`.
    ///
    /// # Errors
    /// [`TileError`]; `combined` is then without meaning.
    pub fn tile(
        &self,
        offset: usize,
        centre: &[f32],
        rows: &[&[f32]],
        combined: &mut [f32],
    ) -> Result<(), TileError> {
        check_rows(rows, self.coefficients.len(), combined.len())?;
        check_centre(Some(centre), rows.len(), combined.len())?;
        fill(combined, |columns, combined| {
            check_finite(rows.len(), centre, columns.clone())?;
            let centre = &centre[columns.clone()];
            let mut sums = vec![0.0; columns.len()];
            for (index, (row, coefficient)) in rows.iter().zip(&self.coefficients).enumerate() {
                check_finite(index, row, columns.clone())?;
                for ((sum, value), centre) in sums.iter_mut().zip(&row[columns.clone()]).zip(centre)
                {
                    *sum += coefficient * (f64::from(*value) - f64::from(*centre));
                }
            }
            self.noise.add(offset + columns.start, &mut sums);
            for ((value, sum), centre) in combined.iter_mut().zip(&sums).zip(centre) {
                #[expect(clippy::cast_possible_truncation, reason = "parameters are f32")]
                let narrow = (f64::from(*centre) + sum) as f32;
                *value = narrow;
            }
            Ok(())
        })
    }

    /// How many updates are not longer than the bound.
    pub fn within(&self) -> Within {
        self.count
    }
}

impl Within {
    /// The share of the planned devices whose update is not longer than the bound, with noise of
    /// this deviation on their number, by which an adaptive bound moves.
    ///
    /// A device counts as one half more or less than the half that one which is not there counts
    /// as: by this the number changes by one half at most (Andrew et al. 2021, arXiv 1905.03871,
    /// section 2.1).
    ///
    /// # Errors
    /// [`PrivacyError::Setting`] for a deviation that is not above 0.
    pub fn noised(self, deviation: f64, seed: [u8; 32]) -> Result<f64, PrivacyError> {
        let mut count = [f64::from(self.within) - f64::from(self.devices) / 2.0];
        GaussianNoise::new(seed, deviation)?.add(0, &mut count);
        Ok(0.5 + count[0] / f64::from(self.planned))
    }
}

/// A private mean of updates that their devices have shortened, made of nothing but their sum.
#[derive(Debug, Clone)]
pub struct PrivateSum {
    noise: GaussianNoise,
    planned: f64,
}

impl PrivateSum {
    /// Of updates that are no longer than the bound.
    ///
    /// # Errors
    /// [`PrivacyError`].
    pub fn new(protection: Protection, seed: [u8; 32]) -> Result<Self, PrivacyError> {
        let Protection { bound, planned, noise_multiplier } = protection;
        if planned == 0 {
            let (name, expected) = ("planned devices", "1 or more");
            return Err(PrivacyError::Setting { name, value: 0.0, expected });
        }
        let planned = f64::from(planned);
        let noise = GaussianNoise::new(seed, noise_multiplier * bound.bound() / planned)?;
        Ok(Self { noise, planned })
    }

    /// Makes values of the mean of sums of differences, those from `offset` of the vector on.
    pub fn mean(&self, offset: usize, sums: &mut [f64]) {
        for sum in sums.iter_mut() {
            *sum /= self.planned;
        }
        self.noise.add(offset, sums);
    }
}

/// Why an update cannot be protected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ProtectError {
    /// The norm, the noise, or how they go together.
    #[error(transparent)]
    Privacy(#[from] PrivacyError),
    /// The norm is none.
    #[error(transparent)]
    Bound(#[from] NormBoundError),
    /// A value that is not finite, or does not stay so.
    #[error(transparent)]
    Tile(#[from] TileError),
    /// The update is not one of the parameters that were received.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
}

/// An update as its device gives it away: its difference from what was received is no longer than
/// the norm `C`, and has noise of deviation `z 2 C`, but for parameters that a pattern in `fixed`
/// names. `(norm, noise_multiplier)` are `C` and `z`.
///
/// # Errors
/// [`ProtectError`].
pub fn protect(
    received: &Parameters,
    update: &Parameters,
    fixed: &[String],
    (norm, noise_multiplier): (f64, f64),
    seed: [u8; 32],
) -> Result<Parameters, ProtectError> {
    let layout = Layout::of(received);
    update.check_like(&layout)?;
    let moving = || {
        let pairs = received.items().iter().zip(update.items()).zip(layout.spans());
        pairs.map(|((from, to), span)| (from, to, span, is_named(fixed, &span.name)))
    };
    let mut norms = UpdateNorms::new(1);
    for (from, to, span, is_fixed) in moving() {
        let to = if is_fixed { from } else { to };
        norms.add(span.elements.start, Some(&from.values), &[&to.values])?;
    }
    let protection = Protection {
        bound: NormBound::new(norm)?,
        planned: 1,
        noise_multiplier: 2.0 * noise_multiplier,
    };
    let mean = PrivateMean::new(protection, &norms.norms(), seed)?;
    let mut items = Vec::with_capacity(layout.spans().len());
    for (from, to, span, is_fixed) in moving() {
        let mut item = from.clone();
        if !is_fixed {
            let (start, centre) = (span.elements.start, &from.values);
            mean.tile(start, centre, &[&to.values], &mut item.values)?;
        }
        items.push(item);
    }
    Ok(Parameters::new(items)?)
}

#[cfg(test)]
mod tests;
