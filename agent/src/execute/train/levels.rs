//! How far an update moved, in levels: what a device gives to a secure aggregation. Made in pieces,
//! so that beside what was received and trained only the levels are in memory.

use std::ops::Range;

use jobs::report::{Failure, FailureCode};
use jobs::spec::{Levels, LocalTraining, Rounding as Wanted};
use models::federated::distances::UpdateNorms;
use models::federated::robust::norm_bound::NormBound;
use models::federated::tile::TileError;
use models::params::{ParametersBlob, is_named};
use secagg::{Quantisation, QuantisationError, Rounding, Secret};

use crate::execute::failures;

/// What becomes of an update in a secure aggregation.
pub(super) struct Masking<'a> {
    pub(super) local: &'a LocalTraining,
    pub(super) levels: Levels,
    pub(super) examples: u64,
    pub(super) seed: [u8; 32],
}

/// An update as its difference from what was received.
struct Moved<'a> {
    received: ParametersBlob<'a>,
    trained: ParametersBlob<'a>,
    /// Elements that count as they were received.
    fixed: Vec<Range<usize>>,
}

impl<'a> Moved<'a> {
    fn of(received: &'a [u8], trained: &'a [u8], local: &LocalTraining) -> Result<Self, Failure> {
        let parse = |bytes: &'a [u8]| {
            ParametersBlob::parse(bytes).map_err(|error| failures::of_parameters(&error))
        };
        let (received, trained) = (parse(received)?, parse(trained)?);
        let fits = trained.layout().check_like(received.layout());
        fits.map_err(|error| failures::of_parameters(&error))?;
        let patterns = [&local.frozen[..], &local.kept_local].concat();
        let stays = local.update_norm_max.is_some();
        let spans = received.layout().spans().iter();
        let fixed = spans.filter(|span| stays && is_named(&patterns, &span.name));
        let fixed = fixed.map(|span| span.elements.clone()).collect();
        Ok(Self { received, trained, fixed })
    }

    /// All of it in order, some values at a time, each with the place of the first.
    fn pieces(&self) -> impl Iterator<Item = (usize, Vec<f32>)> {
        self.received.pieces().map(|(start, before)| {
            let end = start + before.len();
            let mut moved = self.trained.values(start..end);
            moved.iter_mut().zip(before).for_each(|(value, before)| *value -= before);
            for fixed in &self.fixed {
                let (from, to) = (fixed.start.max(start), fixed.end.min(end));
                if from < to {
                    moved[from - start..to - start].fill(0.0);
                }
            }
            (start, moved)
        })
    }

    fn norm(&self) -> Result<f64, TileError> {
        let mut norms = UpdateNorms::new(1);
        self.pieces().try_for_each(|(start, moved)| norms.add(start, None, &[&moved]))?;
        Ok(norms.norms()[0])
    }
}

impl Masking<'_> {
    /// The levels as little-endian bytes; behind them the weight, and whether the update is as long
    /// as it was, if that is to be said.
    pub(super) fn levels(&self, received: &[u8], trained: &[u8]) -> Result<Vec<u8>, Failure> {
        let Self { levels, examples, seed, .. } = *self;
        let moved = Moved::of(received, trained, self.local)?;
        let bound = self.bound(&moved)?;
        let quantisation = Quantisation::new(levels.clip, levels.devices, levels.weight_max);
        let quantisation = quantisation.map_err(|error: QuantisationError| {
            Failure::new(FailureCode::InvalidSpec, error.to_string())
        })?;
        let rounding = match levels.rounding {
            Wanted::Nearest => Rounding::Nearest,
            Wanted::Stochastic => Rounding::Stochastic(Secret::new(seed).derived("rounding")),
        };
        let weight = u32::try_from(examples).unwrap_or(u32::MAX).min(levels.weight_max);
        let all = received.len() / 4 + 2;
        let (mut bytes, mut piece, mut clipped) = (Vec::with_capacity(4 * all), Vec::new(), 0);
        let mut push = |levels: &[u32]| {
            bytes.extend(levels.iter().flat_map(|level| level.to_le_bytes()));
        };
        for (start, mut values) in moved.pieces() {
            if let Some((bound, norm)) = bound {
                bound.shorten(norm, &mut values);
            }
            piece.clear();
            let beyond = quantisation.encode(start, &values, weight, &rounding, &mut piece);
            clipped += beyond.map_err(|error| diverged(&error))?;
            push(&piece);
        }
        push(&[weight]);
        if levels.within {
            push(&[u32::from(bound.is_none_or(|(bound, norm)| norm <= bound.bound()))]);
        }
        if clipped > 0 {
            let clip = levels.clip;
            tracing::warn!("{clipped} parameters moved by more than {clip}, and were clipped");
        }
        Ok(bytes)
    }

    /// How long the update may be, if the task says so, and how long it is.
    fn bound(&self, moved: &Moved<'_>) -> Result<Option<(NormBound, f64)>, Failure> {
        let Some(norm) = self.local.update_norm_max else { return Ok(None) };
        let bound = NormBound::new(norm).map_err(|error| {
            Failure::new(FailureCode::InvalidSpec, format!("update_norm_max: {error}"))
        })?;
        Ok(Some((bound, moved.norm().map_err(|error| diverged(&error))?)))
    }
}

fn diverged(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureCode::Diverged, format!("the update: {error}"))
}

#[cfg(test)]
mod tests {
    use models::params::{Layout, Parameter, Parameters};

    use super::*;

    fn parameters(seed: u16) -> Parameters {
        let tensor = |(name, length): (&str, usize)| Parameter {
            name: name.to_owned(),
            shape: vec![length],
            values: (0..length)
                .map(|i| f32::from(u16::try_from((i * 7919) % 65_521).unwrap() ^ seed).sin())
                .collect(),
        };
        // More than a piece, and one that ends within the next.
        Parameters::new([("a", 70_001), ("b", 33), ("c", 131_072)].map(tensor).to_vec()).unwrap()
    }

    /// The same all at once.
    fn expected(masking: &Masking<'_>, fixed: &str) -> Vec<u32> {
        let (before, after) = (parameters(0), parameters(257));
        let pairs = before.items().iter().zip(after.items());
        let moved = pairs.flat_map(|(before, after)| {
            let factor = if before.name == fixed { 0.0 } else { 1.0 };
            before.values.iter().zip(&after.values).map(move |(b, a)| (a - b) * factor)
        });
        let mut moved: Vec<f32> = moved.collect();
        let mut within = true;
        if let Some(norm) = masking.local.update_norm_max {
            let mut norms = UpdateNorms::new(1);
            norms.add(0, None, &[&moved]).unwrap();
            let bound = NormBound::new(norm).unwrap();
            bound.shorten(norms.norms()[0], &mut moved);
            within = norms.norms()[0] <= norm;
        }
        let Levels { clip, devices, weight_max, .. } = masking.levels;
        let quantisation = Quantisation::new(clip, devices, weight_max).unwrap();
        let rounding = match masking.levels.rounding {
            Wanted::Nearest => Rounding::Nearest,
            Wanted::Stochastic => {
                Rounding::Stochastic(Secret::new(masking.seed).derived("rounding"))
            }
        };
        let (mut levels, weight) = (Vec::new(), 5);
        quantisation.encode(0, &moved, weight, &rounding, &mut levels).unwrap();
        levels.push(weight);
        levels.extend(masking.levels.within.then_some(u32::from(within)));
        levels
    }

    #[test]
    fn levels_made_in_pieces_are_those_made_at_once() {
        let (received, trained) =
            (parameters(0).to_safetensors(), parameters(257).to_safetensors());
        for (norm, rounding, fixed) in [
            (None, Wanted::Nearest, ""),
            (Some(3.0), Wanted::Stochastic, "b"),
            (Some(1e6), Wanted::Nearest, "a"),
        ] {
            let frozen = vec![fixed.to_owned()];
            let local = LocalTraining { update_norm_max: norm, frozen, ..LocalTraining::default() };
            let within = norm.is_some();
            let levels = Levels { clip: 0.5, devices: 9, weight_max: 5, rounding, within };
            let masking = Masking { local: &local, levels, examples: 77, seed: [3; 32] };
            let found = masking.levels(&received, &trained).unwrap();
            let found: Vec<u32> =
                found.as_chunks().0.iter().map(|level| u32::from_le_bytes(*level)).collect();
            assert_eq!(found, expected(&masking, fixed), "{norm:?}");
        }
    }

    #[test]
    fn what_cannot_be_said_in_levels_is_named() {
        let local = LocalTraining::default();
        let levels = Levels {
            clip: 0.5,
            devices: 9,
            weight_max: 5,
            rounding: Wanted::Nearest,
            within: false,
        };
        let masking = Masking { local: &local, levels, examples: 1, seed: [0; 32] };
        let received = parameters(0).to_safetensors();
        let mut spoiled = received.clone();
        let at = spoiled.len() - 4;
        spoiled[at..].copy_from_slice(&f32::INFINITY.to_le_bytes());
        let failure = masking.levels(&received, &spoiled).unwrap_err();
        assert_eq!(failure.code, FailureCode::Diverged);
        let last = Layout::of(&parameters(0)).total_len() - 1;
        assert!(failure.message.contains(&format!("value {last} is inf")), "{failure:?}");
        let other = Parameters::new(parameters(0).items()[..2].to_vec()).unwrap();
        assert!(masking.levels(&received, &other.to_safetensors()).is_err());
    }
}
