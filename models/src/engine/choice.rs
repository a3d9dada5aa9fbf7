//! Which engine answers for a model: pure, by what was measured, with a reason for each that
//! does not.
//!
//! Engines of the CPU are part of this program and trusted. Any other one may answer once its
//! outputs for a golden input were compared with the CPU's ([`compare`]), and as long as it is
//! faster. The list of those that may answer ends with the CPU.

use std::time::Duration;

use crate::tensor::{Data, Tensor};

/// An engine and how it stands towards one model on one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Standing {
    /// Which engine.
    pub engine: &'static str,
    /// Whether it is one of the CPU's that are part of this program.
    pub cpu: bool,
    /// What is known.
    pub state: State,
}

/// What is known of an engine for a model.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Not tried so far.
    Untried,
    /// It is not to be had on this device, or does not take the model.
    Refused(String),
    /// It gave other outputs than the CPU, or failed while it answered or was tried.
    Failed(String),
    /// It has the model; no time was taken so far.
    Ready,
    /// It has the model, gave the CPU's outputs, and took so long for one run.
    Measured(Duration),
}

/// Why an engine does not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Which engine.
    pub engine: &'static str,
    /// Why.
    pub reason: String,
    /// Whether it is one that failed.
    pub failed: bool,
}

/// Engines that may answer, in the order to try them, and the others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The best first; ends with the CPU's unless these are not allowed or take the model not.
    pub ranked: Vec<&'static str>,
    /// Every other engine, with the reason.
    pub refused: Vec<Refusal>,
}

/// Ranks engines; `allowed` says which the request lets answer.
///
/// Measured ones come first, by their times. An engine that is none of the CPU's is left out when
/// it is not measured, or slower than one of the CPU's that is allowed.
pub fn choose(standings: &[Standing], allowed: impl Fn(&str) -> bool) -> Choice {
    let time = |standing: &Standing| match standing.state {
        State::Measured(time) => Some(time),
        State::Untried | State::Refused(_) | State::Failed(_) | State::Ready => None,
    };
    let best_cpu = standings
        .iter()
        .filter(|standing| standing.cpu && allowed(standing.engine))
        .filter_map(|standing| Some((time(standing)?, standing.engine)))
        .min();
    let mut ranked: Vec<((bool, bool, Duration), &'static str)> = Vec::new();
    let mut refused = Vec::new();
    for standing in standings {
        let Standing { engine, cpu, state } = standing;
        let reason = match (state, best_cpu) {
            _ if !allowed(engine) => "the request does not allow it".to_owned(),
            (State::Refused(reason) | State::Failed(reason), _) => reason.clone(),
            (State::Untried, _) => "it was not tried so far".to_owned(),
            (State::Ready, _) if !cpu => "it was not compared with the CPU so far".to_owned(),
            (State::Measured(time), Some((best, name))) if !cpu && *time >= best => {
                let (ours, best) = (milliseconds(*time), milliseconds(best));
                format!("slower: {ours} ms, {name} takes {best} ms")
            }
            (State::Ready | State::Measured(_), _) => {
                let time = time(standing);
                ranked.push(((*cpu, time.is_none(), time.unwrap_or_default()), engine));
                continue;
            }
        };
        let failed = matches!(state, State::Failed(_));
        refused.push(Refusal { engine, reason, failed });
    }
    // Stable: engines that were not measured stay in the caller's order.
    ranked.sort_by_key(|(rank, _)| *rank);
    Choice { ranked: ranked.into_iter().map(|(_, engine)| engine).collect(), refused }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1e3)
}

/// The least that differences are a part of: where numbers of about 1 cancel out, a thousandth of
/// this (1e-7) is what their rounding leaves, and tells nothing of an engine.
const SCALE_MIN: f64 = 1e-4;

/// Holds an engine's outputs to the CPU's: the same shapes and types; floating-point numbers
/// within `tolerance` times the largest of the output ([`SCALE_MIN`] at least), 8-bit integers
/// within 1, and all else equal.
///
/// # Errors
/// Which output differs, and by how much.
pub fn compare(expected: &[Tensor], found: &[Tensor], tolerance: f32) -> Result<(), String> {
    if expected.len() != found.len() {
        return Err(format!("{} outputs, the CPU has {}", found.len(), expected.len()));
    }
    for (index, (expected, found)) in expected.iter().zip(found).enumerate() {
        let what = |tensor: &Tensor| format!("{}{:?}", tensor.data().datatype(), tensor.shape());
        if what(expected) != what(found) {
            let (expected, found) = (what(expected), what(found));
            return Err(format!("output {index} is {found}, the CPU's is {expected}"));
        }
        let difference = difference(expected.data(), found.data());
        let most = match expected.data() {
            Data::F32(_) | Data::F64(_) => f64::from(tolerance),
            Data::I8(_) | Data::U8(_) => 1.0,
            Data::I64(_) | Data::I32(_) | Data::Bool(_) => 0.0,
        };
        // A difference that is no number is too large as well.
        if difference.is_nan() || difference > most {
            return Err(format!(
                "output {index} differs from the CPU's by {difference:.1e}, expected at most \
                 {most:.0e}"
            ));
        }
    }
    Ok(())
}

/// The largest difference of two elements; of floating-point numbers as a part of the largest
/// expected one.
fn difference(expected: &Data, found: &Data) -> f64 {
    fn largest<T: Copy>(a: &[T], b: &[T], number: impl Fn(T) -> f64) -> f64 {
        let each = a.iter().zip(b).map(|(a, b)| match (number(*a), number(*b)) {
            (a, b) if a.is_nan() && b.is_nan() => 0.0,
            #[expect(clippy::float_cmp, reason = "the same infinity, or the same bits")]
            (a, b) if a == b => 0.0,
            (a, b) => (a - b).abs(),
        });
        // Not a number stays: `max` alone would drop it.
        each.fold(
            0.0,
            |most: f64, each| {
                if most.is_nan() || each.is_nan() { f64::NAN } else { most.max(each) }
            },
        )
    }
    fn scale(values: impl Iterator<Item = f64>) -> f64 {
        let finite = values.filter(|value| value.is_finite());
        finite.fold(SCALE_MIN, |most, value| most.max(value.abs()))
    }
    match (expected, found) {
        (Data::F32(a), Data::F32(b)) => {
            largest(a, b, f64::from) / scale(a.iter().map(|value| f64::from(*value)))
        }
        (Data::F64(a), Data::F64(b)) => largest(a, b, |value| value) / scale(a.iter().copied()),
        (Data::I64(a), Data::I64(b)) => f64::from(u8::from(a != b)),
        (Data::I32(a), Data::I32(b)) => largest(a, b, f64::from),
        (Data::I8(a), Data::I8(b)) => largest(a, b, f64::from),
        (Data::U8(a), Data::U8(b)) => largest(a, b, f64::from),
        (Data::Bool(a), Data::Bool(b)) => f64::from(u8::from(a != b)),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests;
