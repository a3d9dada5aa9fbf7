//! Server optimizers: how a round's aggregate moves the global parameters.
//!
//! Sources: McMahan et al. 2017 (`FedAvg`), Hsu et al. 2019 (`FedAvgM`), Reddi et al. 2021
//! (`FedAdagrad`, `FedAdam`, `FedYogi`). With `x` the global parameters and `D` the
//! pseudo-gradient, the aggregate less `x`:
//!
//! | | first moment | second moment | step |
//! |---|---|---|---|
//! | `FedAvg` | | | `x + eta D` |
//! | `FedAvgM` | `m = b m + D` | | `x + eta m` |
//! | `FedAdagrad` | `m = b1 m + (1 - b1) D` | `v = v + D^2` | `x + eta m / (sqrt v + tau)` |
//! | `FedAdam` | the same | `v = b2 v + (1 - b2) D^2` | the same |
//! | `FedYogi` | the same | `v = v - (1 - b2) D^2 sign(v - D^2)` | the same |
//!
//! Every value goes its own way: pieces may be moved in any order and on any number of threads.

use rayon::prelude::*;

use super::tile::CHUNK;
use crate::kernels::simd::vectorised;

/// An optimizer with its settings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ServerOptimizer {
    /// Goes to the aggregate, or beyond or not as far.
    FedAvg {
        /// Step size; 1 is `FedAvg` proper.
        learning_rate: f64,
    },
    /// With momentum.
    FedAvgM {
        /// Step size.
        learning_rate: f64,
        /// Share of the old moment in the new one, 0 to below 1.
        momentum: f64,
    },
    /// Steps shrink with the sum of squares; `beta2` has no meaning.
    FedAdagrad(Adaptive),
    /// Steps shrink with a decaying mean of squares; neither moment is freed of its bias towards
    /// its initial value.
    FedAdam(Adaptive),
    /// As `FedAdam`, the mean of squares moves additively.
    FedYogi(Adaptive),
}

/// What the adaptive optimizers are set by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adaptive {
    /// Step size `eta`.
    pub learning_rate: f64,
    /// Share of the old first moment in the new one, 0 to below 1.
    pub beta1: f64,
    /// Share of the old second moment in the new one, 0 to below 1.
    pub beta2: f64,
    /// Added to the root, above 0: the smaller, the more adaptive.
    pub tau: f64,
    /// Every value of the second moment before the first round, at least 0.
    pub initial: f32,
}

impl ServerOptimizer {
    /// `FedAvg` with a step of 1: the aggregate itself.
    pub const FED_AVG: Self = Self::FedAvg { learning_rate: 1.0 };
    /// `FedAvgM` with a step of 1 and the paper's momentum.
    pub const FED_AVG_M: Self = Self::FedAvgM { learning_rate: 1.0, momentum: 0.9 };
    /// `FedAdagrad` with the usual settings; the paper proves for `initial >= tau^2`.
    pub const FED_ADAGRAD: Self = Self::FedAdagrad(Adaptive { beta1: 0.0, ..ADAM });
    /// `FedAdam` with the usual settings.
    pub const FED_ADAM: Self = Self::FedAdam(ADAM);
    /// `FedYogi` with the usual settings.
    pub const FED_YOGI: Self = Self::FedYogi(Adaptive { learning_rate: 0.01, ..ADAM });
}

const ADAM: Adaptive =
    Adaptive { learning_rate: 0.1, beta1: 0.9, beta2: 0.99, tau: 1e-3, initial: 0.0 };

/// Why a step cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum ServerError {
    /// A setting out of range.
    #[error("{name} is {value}, expected {expected}")]
    Setting {
        /// Which one.
        name: &'static str,
        /// What was given.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// The aggregate or a moment is not as long as the parameters.
    #[error("{what}: expected {expected} values, found {found}")]
    Length {
        /// Which one.
        what: &'static str,
        /// Values wanted.
        expected: usize,
        /// Values given.
        found: usize,
    },
    /// A value would be NaN or infinite.
    #[error("value {index} of the piece: expected a finite result, of a finite aggregate")]
    NotFinite {
        /// Counted from the start of the piece.
        index: usize,
    },
}

/// What a round came to.
#[derive(Debug, Clone, Copy)]
pub enum Aggregate<'a> {
    /// Parameters: a mean of what devices trained. The pseudo-gradient is what they differ by from
    /// the global ones.
    Parameters(&'a [f32]),
    /// The pseudo-gradient itself: a mean of differences.
    Difference(&'a [f32]),
}

impl<'a> Aggregate<'a> {
    fn values(self) -> &'a [f32] {
        match self {
            Self::Parameters(values) | Self::Difference(values) => values,
        }
    }
}

/// What an optimizer remembers between rounds: moments as long as the parameters, or empty where
/// it needs none.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerState {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// A piece of a [`ServerState`], wherever it is kept.
#[derive(Debug)]
pub struct Moments<'a> {
    /// As long as the piece; empty where the optimizer has no first moment.
    pub first: &'a mut [f32],
    /// The same of the second.
    pub second: &'a mut [f32],
}

impl ServerState {
    /// The first moment; empty where the optimizer has none.
    pub fn first(&self) -> &[f32] {
        &self.first
    }

    /// The second moment; empty where the optimizer has none.
    pub fn second(&self) -> &[f32] {
        &self.second
    }

    /// The moments of `length` values from `offset` on.
    ///
    /// # Panics
    /// When the piece lies outside of the vector.
    pub fn piece(&mut self, offset: usize, length: usize) -> Moments<'_> {
        let piece = |moment| of_piece(moment, offset, length);
        Moments {
            first: piece(&mut self.first),
            second: of_piece(&mut self.second, offset, length),
        }
    }
}

fn of_piece(moment: &mut [f32], offset: usize, length: usize) -> &mut [f32] {
    if moment.is_empty() { moment } else { &mut moment[offset..offset + length] }
}

impl ServerOptimizer {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`ServerError::Setting`].
    pub fn check(&self) -> Result<(), ServerError> {
        let rate = |value| check_setting("learning rate", value, "above 0", value > 0.0);
        let share = |name, value: f64| {
            check_setting(name, value, "0 to below 1", (0.0..1.0).contains(&value))
        };
        match self {
            Self::FedAvg { learning_rate } => rate(*learning_rate),
            Self::FedAvgM { learning_rate, momentum } => {
                rate(*learning_rate)?;
                share("momentum", *momentum)
            }
            Self::FedAdagrad(it) | Self::FedAdam(it) | Self::FedYogi(it) => {
                rate(it.learning_rate)?;
                share("beta1", it.beta1)?;
                share("beta2", it.beta2)?;
                check_setting("tau", it.tau, "above 0", it.tau > 0.0)?;
                let initial = f64::from(it.initial);
                check_setting("initial second moment", initial, "at least 0", initial >= 0.0)
            }
        }
    }

    /// Whether there is a first and a second moment.
    pub fn has_moments(&self) -> (bool, bool) {
        match self {
            Self::FedAvg { .. } => (false, false),
            Self::FedAvgM { momentum, .. } => (*momentum > 0.0, false),
            Self::FedAdagrad(it) | Self::FedAdam(it) | Self::FedYogi(it) => (it.beta1 > 0.0, true),
        }
    }

    /// The state before the first round of so many parameters.
    pub fn state(&self, length: usize) -> ServerState {
        let (first, second) = self.has_moments();
        let initial = match self {
            Self::FedAvg { .. } | Self::FedAvgM { .. } => 0.0,
            Self::FedAdagrad(it) | Self::FedAdam(it) | Self::FedYogi(it) => it.initial,
        };
        ServerState {
            first: vec![0.0; if first { length } else { 0 }],
            second: vec![initial; if second { length } else { 0 }],
        }
    }

    /// The state that was kept of so many parameters.
    ///
    /// # Errors
    /// [`ServerError::Length`] and, of a spoiled one, [`ServerError::NotFinite`].
    pub fn state_from(
        &self,
        length: usize,
        first: Vec<f32>,
        second: Vec<f32>,
    ) -> Result<ServerState, ServerError> {
        self.check_moments(length, first.len(), second.len())?;
        for moment in [&first, &second] {
            if let Some(index) = moment.iter().position(|value| !value.is_finite()) {
                return Err(ServerError::NotFinite { index });
            }
        }
        Ok(ServerState { first, second })
    }

    fn check_moments(&self, length: usize, first: usize, second: usize) -> Result<(), ServerError> {
        let (has_first, has_second) = self.has_moments();
        check_length("first moment", if has_first { length } else { 0 }, first)?;
        check_length("second moment", if has_second { length } else { 0 }, second)
    }

    /// Moves a piece of the parameters, and its moments, by a round's aggregate. The same bits
    /// however the vector is cut.
    ///
    /// # Errors
    /// [`ServerError`]; nothing was moved.
    pub fn step(
        &self,
        moments: Moments<'_>,
        parameters: &mut [f32],
        aggregate: Aggregate<'_>,
    ) -> Result<(), ServerError> {
        self.check()?;
        check_length("aggregate", parameters.len(), aggregate.values().len())?;
        self.check_moments(parameters.len(), moments.first.len(), moments.second.len())?;
        let piece = Piece { moments, parameters, aggregate };
        match *self {
            Self::FedAvg { learning_rate } => piece.apply(|at| match aggregate {
                // With a step of 1 it is the aggregate, to the last bit.
                Aggregate::Parameters(_) => Value {
                    parameter: (1.0 - learning_rate) * at.parameter + learning_rate * at.aggregate,
                    ..at
                },
                Aggregate::Difference(_) => at.moved(learning_rate * at.aggregate),
            }),
            Self::FedAvgM { learning_rate, momentum } => piece.apply(|at| {
                let first = momentum * at.first + at.difference(aggregate);
                Value { first, ..at }.moved(learning_rate * first)
            }),
            Self::FedAdagrad(it) => {
                piece.apply(|at| it.step(at, at.difference(aggregate), |v, square| v + square))
            }
            Self::FedAdam(it) => piece.apply(|at| {
                let decayed = |v: f64, square: f64| it.beta2 * v + (1.0 - it.beta2) * square;
                it.step(at, at.difference(aggregate), decayed)
            }),
            Self::FedYogi(it) => piece.apply(|at| {
                it.step(at, at.difference(aggregate), |v, square| {
                    v - (1.0 - it.beta2) * square * sign(v - square)
                })
            }),
        }
    }
}

/// -1, 0 or 1.
fn sign(value: f64) -> f64 {
    if value > 0.0 {
        1.0
    } else if value < 0.0 {
        -1.0
    } else {
        0.0
    }
}

fn check_setting(
    name: &'static str,
    value: f64,
    expected: &'static str,
    holds: bool,
) -> Result<(), ServerError> {
    if holds && value.is_finite() {
        Ok(())
    } else {
        Err(ServerError::Setting { name, value, expected })
    }
}

fn check_length(what: &'static str, expected: usize, found: usize) -> Result<(), ServerError> {
    if expected == found { Ok(()) } else { Err(ServerError::Length { what, expected, found }) }
}

impl Adaptive {
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "to be part of the loop")]
    fn step(&self, at: Value, difference: f64, second: impl Fn(f64, f64) -> f64) -> Value {
        let first = self.beta1 * at.first + (1.0 - self.beta1) * difference;
        let second = second(at.second, difference * difference);
        let step = self.learning_rate * first / (second.sqrt() + self.tau);
        Value { first, second, ..at }.moved(step)
    }
}

/// One parameter with what belongs to it.
#[derive(Clone, Copy)]
struct Value {
    parameter: f64,
    first: f64,
    second: f64,
    aggregate: f64,
}

impl Value {
    fn difference(&self, aggregate: Aggregate<'_>) -> f64 {
        match aggregate {
            Aggregate::Parameters(_) => self.aggregate - self.parameter,
            Aggregate::Difference(_) => self.aggregate,
        }
    }

    fn moved(self, step: f64) -> Self {
        Self { parameter: self.parameter + step, ..self }
    }
}

/// What a step is about.
struct Piece<'a> {
    moments: Moments<'a>,
    parameters: &'a mut [f32],
    aggregate: Aggregate<'a>,
}

impl Piece<'_> {
    /// Moves all values by the rule, or none.
    fn apply(mut self, rule: impl Fn(Value) -> Value + Sync) -> Result<(), ServerError> {
        let spoiled = self.chunks().into_par_iter().enumerate().filter_map(|(index, chunk)| {
            let mut finite = true;
            vectorised(|| finite = chunk.is_finite_after(&rule));
            if finite { None } else { Some(index * CHUNK + chunk.first_spoiled(&rule)) }
        });
        if let Some(index) = spoiled.min() {
            return Err(ServerError::NotFinite { index });
        }
        let chunks = self.chunks().into_par_iter();
        chunks.for_each(|mut chunk| vectorised(|| chunk.apply(&rule)));
        Ok(())
    }

    fn chunks(&mut self) -> Vec<Chunk<'_>> {
        let mut first = self.moments.first.chunks_mut(CHUNK);
        let mut second = self.moments.second.chunks_mut(CHUNK);
        let pairs = self.parameters.chunks_mut(CHUNK).zip(self.aggregate.values().chunks(CHUNK));
        pairs
            .map(|(parameters, aggregate)| Chunk {
                parameters,
                aggregate,
                first: first.next().unwrap_or_default(),
                second: second.next().unwrap_or_default(),
            })
            .collect()
    }
}

/// What a thread takes at a time.
struct Chunk<'a> {
    parameters: &'a mut [f32],
    aggregate: &'a [f32],
    /// Empty where there is none.
    first: &'a mut [f32],
    second: &'a mut [f32],
}

impl Chunk<'_> {
    /// A moment that there is not counts as 0.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "to be part of the loop")]
    fn after(&self, index: usize, rule: &impl Fn(Value) -> Value) -> [f32; 3] {
        let moment = |moment: &[f32]| moment.get(index).map_or(0.0, |value| f64::from(*value));
        let value = rule(Value {
            parameter: f64::from(self.parameters[index]),
            first: moment(self.first),
            second: moment(self.second),
            aggregate: f64::from(self.aggregate[index]),
        });
        #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
        [value.parameter, value.first, value.second].map(|value| value as f32)
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
    fn is_finite_after(&self, rule: &impl Fn(Value) -> Value) -> bool {
        (0..self.parameters.len()).fold(true, |finite, index| {
            finite & self.after(index, rule).iter().all(|value| value.is_finite())
        })
    }

    fn first_spoiled(&self, rule: &impl Fn(Value) -> Value) -> usize {
        let spoiled = |index: &usize| !self.after(*index, rule).iter().all(|it| it.is_finite());
        (0..self.parameters.len()).find(spoiled).expect("one was found")
    }

    #[inline(always)]
    #[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
    fn apply(&mut self, rule: &impl Fn(Value) -> Value) {
        for index in 0..self.parameters.len() {
            let [parameter, first, second] = self.after(index, rule);
            self.parameters[index] = parameter;
            if let Some(moment) = self.first.get_mut(index) {
                *moment = first;
            }
            if let Some(moment) = self.second.get_mut(index) {
                *moment = second;
            }
        }
    }
}

#[cfg(test)]
mod tests;
