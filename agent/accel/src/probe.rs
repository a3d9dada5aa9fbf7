//! Finds out whether an engine can be used: its library and device are there, and a known model
//! gives the processor's answer.

use std::time::{Duration, Instant};

use models::engine::frames::Probed;
use models::train::{Loss, Trainer};
use models::zoo;

use helper::engine::{Engine, Refusal, View};
use helper::serve::guard;

/// Largest difference of an output, relative to the largest, that the processor's engine in the
/// same precision may show: sums in another order.
pub const TOLERANCE_CPU: f32 = 1e-4;
/// The same for engines on accelerators, which approximate divisions and exponentials too; far
/// below what half precision or TF32 would give.
pub const TOLERANCE_ACCELERATOR: f32 = 1e-3;

/// The model whose answer is compared, and its batch.
const SMALL: &str = "resnet8";
const BATCH_SMALL: usize = 3;
/// The model whose rate is measured, and its batch.
const LARGE: &str = "resnet18";
const BATCH_LARGE: usize = 8;
/// A run of the small model that takes longer tells the rate: the large one would take a program
/// in the place of a GPU too long. A rate of 1.5 GFLOP/s.
const SLOW: Duration = Duration::from_millis(50);
/// Longest that the rate is measured, after one run.
const MEASURED: Duration = Duration::from_millis(500);
/// Runs that are measured, at most.
const RUNS_MAX: usize = 50;
/// Seed of the known models.
const SEED: u64 = 23;
const SHAPE: [usize; 3] = [3, 32, 32];
const CLASSES: usize = 10;

/// Tries an engine. A crash of a driver is this process's; whoever started it sees it.
pub fn probe(name: &str) -> Probed {
    let mut probed = Probed { engine: name.to_owned(), ..Probed::default() };
    let outcome = guard(|| {
        let engine = crate::start(name)?;
        let about = engine.about();
        probed.device = about.device;
        probed.driver = about.driver;
        probed.library = about.library;
        probed.memory = about.memory;
        let small = check(engine.as_ref(), tolerance(name))?;
        probed.gflops = Some(rate(engine.as_ref(), small)?);
        Ok(())
    });
    probed.unusable = outcome.err().map(|refusal| refusal.reason);
    probed
}

/// What an engine's answers may differ by.
pub fn tolerance(engine: &str) -> f32 {
    if engine == "ort-cpu" { TOLERANCE_CPU } else { TOLERANCE_ACCELERATOR }
}

/// Largest difference between answers, relative to the largest expected one; infinite where there
/// is a NaN or another number of values.
pub fn difference(answered: &[f32], expected: &[f32]) -> f32 {
    if answered.len() != expected.len() || answered.iter().any(|value| !value.is_finite()) {
        return f32::INFINITY;
    }
    let scale = expected.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    let pairs = answered.iter().zip(expected);
    let most = pairs.fold(0.0_f32, |most, (a, b)| most.max((a - b).abs()));
    if most > 0.0 { most / scale } else { 0.0 }
}

/// A known model answers as the processor does; how long a later run took.
fn check(engine: &dyn Engine, tolerance: f32) -> Result<Duration, Refusal> {
    let mut reference = known(SMALL)?;
    let examples = examples(BATCH_SMALL);
    let expected = reference.logits(&examples).map_err(Refusal::of)?;
    let (answered, time) = run(engine, &reference.to_folded_onnx(), &examples, 1)?;
    let found = difference(&answered, &expected);
    if found <= tolerance {
        Ok(time)
    } else {
        Err(Refusal::of(format!(
            "a known model's answer differs from the processor's by {found:.1e} of the largest \
             output, {tolerance:.0e} at most is accepted"
        )))
    }
}

/// Operations per second, in 10^9: of the small model where that takes long already.
fn rate(engine: &dyn Engine, small: Duration) -> Result<f64, Refusal> {
    if small > SLOW {
        return per_second(SMALL, BATCH_SMALL, small);
    }
    let onnx = known(LARGE)?.to_folded_onnx();
    let (_, time) = run(engine, &onnx, &examples(BATCH_LARGE), RUNS_MAX)?;
    per_second(LARGE, BATCH_LARGE, time)
}

fn per_second(family: &str, batch: usize, time: Duration) -> Result<f64, Refusal> {
    let cost = zoo::cost(family, SHAPE, CLASSES)
        .ok_or_else(|| Refusal::of(format!("there is no family {family}")))?;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let operations = (2 * cost.multiply_adds * batch as u64) as f64;
    Ok(operations / time.as_secs_f64() / 1e9)
}

fn known(family: &str) -> Result<Trainer, Refusal> {
    let onnx = zoo::build(family, SHAPE, CLASSES, SEED)
        .ok_or_else(|| Refusal::of(format!("there is no family {family}")))?;
    Trainer::for_evaluation(&onnx, Loss::default()).map_err(Refusal::of)
}

fn examples(count: usize) -> Vec<f32> {
    values(count * SHAPE.iter().product::<usize>())
}

/// Values between -1 and 1 without a pattern that repeats.
pub(crate) fn values(len: usize) -> Vec<f32> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap_or(0)) / 32768.0 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

/// Runs a model once, then `runs` times or as long as is measured; its last answer and the median
/// time of the later runs.
fn run(
    engine: &dyn Engine,
    onnx: &[u8],
    examples: &[f32],
    runs: usize,
) -> Result<(Vec<f32>, Duration), Refusal> {
    let mut model = engine.load(onnx)?;
    let count = examples.len() / SHAPE.iter().product::<usize>();
    let [c, h, w] = SHAPE;
    let shape = [count, c, h, w];
    let view = View { datatype: "FP32", shape: &shape, bytes: bytemuck::cast_slice(examples) };
    let mut body = Vec::new();
    helper::batch::run(model.as_mut(), &[view], &mut body)?;
    let mut times = Vec::new();
    let begin = Instant::now();
    while times.len() < runs && (times.is_empty() || begin.elapsed() < MEASURED) {
        body.clear();
        let start = Instant::now();
        helper::batch::run(model.as_mut(), &[view], &mut body)?;
        times.push(start.elapsed());
    }
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let value = |bytes: &[u8]| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes);
    Ok((body.chunks_exact(4).map(value).collect(), median))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_relative_to_the_largest_output() {
        assert!((difference(&[1.0, -4.0], &[1.4, -4.0]) - 0.1).abs() < 1e-6);
        assert_eq!(difference(&[0.0, 0.0], &[0.0, 0.0]).to_bits(), 0);
        for wrong in [&[f32::NAN, 0.0][..], &[1.0], &[f32::INFINITY, 0.0]] {
            assert!(difference(wrong, &[1.0, 0.0]).is_infinite());
        }
        assert!(difference(&[1.0], &[0.0]).is_infinite());
    }
}
