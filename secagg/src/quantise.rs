//! Floats as `u32` and back, so that a sum of all devices' values has its meaning modulo 2^32.
//!
//! A value `v` of a device of weight `w` becomes `w * round((v + clip) / (2 clip) * levels)`,
//! with as many levels as the sum of all devices leaves room for. Behind the last value stands the
//! weight itself, so that the sum of weights comes with the sum of values. A further value may be a
//! device's yes or no, 1 or 0: the sum is their [`count`].

use crate::key::Secret;
use crate::mask;

/// How values become levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantisation {
    clip: f32,
    weight_max: u32,
    levels: u32,
}

/// Which of the two nearest levels a value takes.
#[derive(Debug, Clone)]
pub enum Rounding {
    /// The nearest: the same input gives the same levels.
    Nearest,
    /// Either, so that the mean over all draws is the value itself; drawn by a secret.
    Stochastic(Secret),
}

/// Why values cannot become levels, or levels values.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum QuantisationError {
    /// A clip that is no bound.
    #[error("clip is {0}: expected a finite number above 0")]
    Clip(f32),
    /// No room for levels.
    #[error(
        "{devices} devices of weights up to {weight_max}: their sum leaves fewer than {LEVELS_MIN} \
         levels in 32 bits; expect fewer devices or smaller weights"
    )]
    Coarse {
        /// How many devices.
        devices: u32,
        /// The largest weight.
        weight_max: u32,
    },
    /// A weight out of range.
    #[error("weight {found}: expected 1 to {max}")]
    Weight {
        /// The weight.
        found: u64,
        /// The largest one.
        max: u64,
    },
    /// NaN or infinite.
    #[error("value {index} is {value}: expected a finite number")]
    NotFinite {
        /// Its place in the vector.
        index: usize,
        /// The value.
        value: f32,
    },
}

/// Levels below which values would be too coarse to learn from.
const LEVELS_MIN: u32 = 256;

impl Quantisation {
    /// For sums of at most so many devices with weights from 1 to `weight_max`. Values beyond
    /// `clip` count as `clip`.
    ///
    /// # Errors
    /// [`QuantisationError::Clip`], [`QuantisationError::Coarse`].
    pub fn new(clip: f32, devices_max: u32, weight_max: u32) -> Result<Self, QuantisationError> {
        if !(clip > 0.0 && clip.is_finite()) {
            return Err(QuantisationError::Clip(clip));
        }
        let coarse = QuantisationError::Coarse { devices: devices_max, weight_max };
        let weights = u64::from(devices_max) * u64::from(weight_max);
        let levels = u64::from(u32::MAX).checked_div(weights).ok_or(coarse)?;
        // An even number, so that 0 is a level.
        let levels = u32::try_from(levels - levels % 2).unwrap_or_default();
        if levels < LEVELS_MIN {
            return Err(coarse);
        }
        Ok(Self { clip, weight_max, levels })
    }

    /// The largest weight.
    pub fn weight_max(&self) -> u32 {
        self.weight_max
    }

    /// The distance of two levels.
    pub fn step(&self) -> f64 {
        2.0 * f64::from(self.clip) / f64::from(self.levels)
    }

    /// Levels of `values`, a piece that begins at `offset` of the vector, for a device of this
    /// weight, appended to `levels`; how many values were beyond `clip`.
    ///
    /// # Errors
    /// [`QuantisationError::Weight`], [`QuantisationError::NotFinite`].
    pub fn encode(
        &self,
        offset: usize,
        values: &[f32],
        weight: u32,
        rounding: &Rounding,
        levels: &mut Vec<u32>,
    ) -> Result<usize, QuantisationError> {
        if weight == 0 || weight > self.weight_max {
            let (found, max) = (u64::from(weight), u64::from(self.weight_max));
            return Err(QuantisationError::Weight { found, max });
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            let value = values[index];
            return Err(QuantisationError::NotFinite { index: offset + index, value });
        }
        let mut draws = Draws::new(rounding, offset);
        let factor = f64::from(self.levels) / (2.0 * f64::from(self.clip));
        levels.extend(values.iter().map(|value| {
            let clipped = f64::from(value.clamp(-self.clip, self.clip));
            let place = (clipped + f64::from(self.clip)) * factor;
            let level = (place + draws.next()).floor().min(f64::from(self.levels));
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it lies between 0 and the number of levels"
            )]
            let level = level as u32;
            weight * level
        }));
        Ok(values.iter().filter(|value| value.abs() > self.clip).count())
    }

    /// The weighted mean of values whose levels have this sum.
    pub fn mean(&self, sum: u32, weight: u32) -> f64 {
        self.total(sum, weight) / f64::from(weight)
    }

    /// The weighted sum of values whose levels have this sum.
    pub fn total(&self, sum: u32, weight: u32) -> f64 {
        let middle = i64::from(self.levels / 2) * i64::from(weight);
        #[expect(clippy::cast_precision_loss, reason = "below 2^33")]
        let above = (i64::from(sum) - middle) as f64;
        above * self.step()
    }

    /// By how much a value's level may lie beside it: half a step where it is the nearest one, a
    /// step where either may be drawn. Values beyond `clip` are not meant.
    pub fn error(&self, stochastic: bool) -> f64 {
        if stochastic { self.step() } else { self.step() / 2.0 }
    }

    /// Whether this is a sum of weights of so many devices; another one means that the sums are
    /// not what they seem.
    ///
    /// # Errors
    /// [`QuantisationError::Weight`].
    pub fn check_weights(&self, sum: u32, devices: u32) -> Result<(), QuantisationError> {
        let max = u64::from(devices) * u64::from(self.weight_max);
        let is_right = sum >= devices && u64::from(sum) <= max && sum > 0;
        let found = u64::from(sum);
        is_right.then_some(()).ok_or(QuantisationError::Weight { found, max })
    }
}

/// How many of so many devices said yes, by the sum of what they said.
///
/// A sum that is none, because a device said something else, counts as the nearest that there
/// may be, as a signed number: it is nothing that is looked at without noise, so it cannot be
/// refused.
pub fn count(sum: u32, devices: u32) -> u32 {
    let signed = sum.cast_signed();
    u32::try_from(signed.max(0)).unwrap_or_default().min(devices)
}

/// What is added before a place is rounded down.
struct Draws<'a> {
    secret: Option<&'a Secret>,
    index: usize,
    block: [u32; 16],
}

impl<'a> Draws<'a> {
    fn new(rounding: &'a Rounding, offset: usize) -> Self {
        let secret = match rounding {
            Rounding::Nearest => None,
            Rounding::Stochastic(secret) => Some(secret),
        };
        let block = secret.map_or([0; 16], |secret| mask::stream(secret, offset / 16));
        Self { secret, index: offset, block }
    }

    fn next(&mut self) -> f64 {
        let Some(secret) = self.secret else { return 0.5 };
        let place = self.index % 16;
        if place == 0 {
            self.block = mask::stream(secret, self.index / 16);
        }
        self.index += 1;
        f64::from(self.block[place]) / 4_294_967_296.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(quantisation: &Quantisation, values: &[f32], weight: u32) -> Vec<u32> {
        let mut levels = Vec::new();
        quantisation.encode(0, values, weight, &Rounding::Nearest, &mut levels).unwrap();
        levels
    }

    #[test]
    fn the_largest_sum_fits() {
        for (devices, weight) in [(1, 1), (3, 1), (1000, 1000), (255, 65_535), (7, 1)] {
            let quantisation = Quantisation::new(0.5, devices, weight).unwrap();
            let top = u64::from(encode(&quantisation, &[9.0], weight)[0]);
            let sum = u32::try_from(top * u64::from(devices)).unwrap();
            let mean = quantisation.mean(sum, devices * weight);
            assert!((mean - 0.5).abs() < 1e-12, "{mean}");
            assert_eq!(encode(&quantisation, &[-9.0], weight), [0]);
        }
    }

    #[test]
    fn nothing_stays_nothing_exactly() {
        let quantisation = Quantisation::new(0.3, 7, 3).unwrap();
        let level = encode(&quantisation, &[0.0, -0.0], 3);
        assert_eq!(quantisation.mean(level[0] * 2, 6).to_bits(), 0);
        assert_eq!(level[0], level[1]);
    }

    #[test]
    fn what_has_no_meaning_is_refused() {
        for clip in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let error = Quantisation::new(clip, 3, 1).unwrap_err();
            assert!(matches!(error, QuantisationError::Clip(_)));
        }
        for (devices, weight_max) in [(0, 1), (1, 0), (1 << 24, 2), (u32::MAX, u32::MAX)] {
            let error = QuantisationError::Coarse { devices, weight_max };
            assert_eq!(Quantisation::new(1.0, devices, weight_max), Err(error));
        }
        let quantisation = Quantisation::new(1.0, 10, 5).unwrap();
        let refused = |values: &[f32], weight| {
            quantisation.encode(0, values, weight, &Rounding::Nearest, &mut Vec::new())
        };
        for weight in [0, 6] {
            let error = refused(&[0.0], weight).unwrap_err();
            assert_eq!(error, QuantisationError::Weight { found: weight.into(), max: 5 });
        }
        for value in [f32::NAN, f32::INFINITY] {
            let error = refused(&[0.0, value], 1).unwrap_err();
            assert!(matches!(error, QuantisationError::NotFinite { index: 1, .. }));
        }
        assert_eq!(quantisation.check_weights(50, 10), Ok(()));
        for sum in [0, 9, 51] {
            assert!(quantisation.check_weights(sum, 10).is_err());
        }
    }

    /// Whatever one device says, the count is by one another at most, near what there may be.
    #[test]
    fn a_device_that_errs_counts_as_one_at_most() {
        for honest in 0..=5 {
            assert_eq!(count(honest, 5), honest);
            assert_eq!(count(honest.wrapping_sub(1), 6), honest.saturating_sub(1));
        }
        for (sum, expected) in [(6, 5), (0x7fff_ffff, 5), (1 << 31, 0), (u32::MAX, 0)] {
            assert_eq!(count(sum, 5), expected);
        }
    }

    #[test]
    fn drawn_levels_are_right_on_average() {
        let quantisation = Quantisation::new(1.0, 1 << 23, 1).unwrap();
        let values = vec![0.3; 20_000];
        let rounding = Rounding::Stochastic(Secret::new([3; 32]));
        let mut levels = Vec::new();
        assert_eq!(quantisation.encode(0, &values, 1, &rounding, &mut levels), Ok(0));
        let mean: f64 = levels.iter().map(|level| quantisation.mean(*level, 1)).sum::<f64>();
        let error = (mean / 20_000.0 - 0.3) / quantisation.step();
        assert!(error.abs() < 0.02, "{error}");
        // In pieces as at once.
        let mut pieces = Vec::new();
        for (index, piece) in values.chunks(777).enumerate() {
            quantisation.encode(777 * index, piece, 1, &rounding, &mut pieces).unwrap();
        }
        assert_eq!(pieces, levels);
    }

    #[test]
    fn drawn_levels_lie_a_step_beside_the_value_at_most() {
        let quantisation = Quantisation::new(1.0, 1 << 23, 1).unwrap();
        let rounding = Rounding::Stochastic(Secret::new([3; 32]));
        let mut levels = Vec::new();
        quantisation.encode(0, &[0.25; 100], 1, &rounding, &mut levels).unwrap();
        let beside = levels.iter().map(|level| (quantisation.mean(*level, 1) - 0.25).abs());
        let farthest = beside.fold(0.0, f64::max);
        assert!(farthest > quantisation.error(false) && farthest <= quantisation.error(true));
    }

    proptest! {
        #[test]
        fn the_mean_is_near_the_mean_of_values(
            values in prop::collection::vec((-2.0_f32..2.0, 1..20_u32), 1..50),
        ) {
            let devices = u32::try_from(values.len()).unwrap();
            let quantisation = Quantisation::new(1.5, devices, 20).unwrap();
            let (mut sum, mut weights, mut exact) = (0_u32, 0, 0.0);
            for (value, weight) in values {
                sum = sum.checked_add(encode(&quantisation, &[value], weight)[0]).unwrap();
                weights += weight;
                exact += f64::from(value.clamp(-1.5, 1.5)) * f64::from(weight);
            }
            prop_assert_eq!(quantisation.check_weights(weights, devices), Ok(()));
            let error = quantisation.mean(sum, weights) - exact / f64::from(weights);
            prop_assert!(error.abs() <= quantisation.error(false) + 1e-12, "{}", error);
            let error = quantisation.total(sum, weights) - exact;
            prop_assert!(error.abs() <= f64::from(weights) * quantisation.error(false) + 1e-9);
        }
    }
}
