//! Tries a model in further engines: loads it, holds the outputs for a golden input to the CPU's,
//! and measures a run. What comes of it decides who answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use models::artifact::TensorInfo;
use models::engine::choice::{State, compare};
use models::tensor::{Data, Tensor};

use super::loaded::Loaded;
use crate::device::Device;
use crate::engines::{AnySession, CPU, Cpu, Engines, HELPED, HelperError, SessionError, TOLERANCE};

/// The engine of the CPU whose outputs count, if it takes the model: it takes the most.
const REFERENCE: &str = "tract";
/// Runs that are measured, at most, the shortest counts.
const RUNS: usize = 5;
/// No further run after this time.
const RUNS_TIME: Duration = Duration::from_millis(400);
/// How long one run of a helper may take here: the first one compiles.
const RUN_LIMIT: Duration = Duration::from_mins(1);
/// Elements of a golden input, at most.
const ELEMENTS_MAX: usize = 1 << 26;

/// Tries every engine, and keeps of the CPU's the fastest one.
pub(super) async fn all(model: Arc<Loaded>, onnx: Bytes, device: Arc<Device>) {
    let mut engines = vec![REFERENCE];
    engines.extend(CPU.into_iter().chain(HELPED).filter(|engine| *engine != REFERENCE));
    some(model.clone(), engines, onnx, device).await;
    model.keep_fastest_cpu();
}

/// Tries some engines, one after the other.
pub(super) async fn some(
    model: Arc<Loaded>,
    engines: Vec<&'static str>,
    onnx: Bytes,
    device: Arc<Device>,
) {
    let _one_at_a_time = model.calibrating.lock().await;
    for engine in engines {
        // Of requests that wait for the same engine the first one has tried it.
        if model.session(engine).is_some_and(|(_, time)| time.is_some()) {
            continue;
        }
        // What is known of the helper's engines comes late after a start.
        let known = if CPU.contains(&engine) { None } else { Some(device.engines().await) };
        let (model, onnx, device) = (model.clone(), onnx.clone(), device.clone());
        let trial = tokio::task::spawn_blocking(move || {
            let known = known.as_deref();
            let (state, session) = attempt(&model, engine, &onnx, &device.cpu, known);
            tracing::debug!(engine, ?state, "calibrated");
            model.put(engine, state, session);
        });
        if trial.await.is_err() {
            tracing::error!(engine, "it panicked while it was tried");
        }
    }
}

/// What is known of an engine after it was tried.
fn attempt(
    model: &Loaded,
    engine: &'static str,
    onnx: &[u8],
    cpu: &Cpu,
    known: Option<&Engines>,
) -> (State, Option<AnySession>) {
    let session = match model.session(engine) {
        Some((session, _)) => session,
        None => match load(engine, onnx, cpu, known) {
            Ok(session) => session,
            Err(state) => return (state, None),
        },
    };
    let trusted = CPU.contains(&engine);
    let golden = golden(model.inputs()).and_then(|inputs| {
        let reference = match engine {
            REFERENCE => Some(session.clone()),
            _ => model.reference(REFERENCE),
        };
        let outputs = reference?.run(&inputs, RUN_LIMIT).ok()?.0;
        Some((inputs, outputs))
    });
    let Some((inputs, expected)) = golden else {
        return if trusted {
            (State::Ready, Some(session))
        } else {
            (State::Refused("there is nothing to compare it with".to_owned()), None)
        };
    };
    let outputs = match session.run(&inputs, RUN_LIMIT) {
        Ok((outputs, _)) => outputs,
        // It was not even asked.
        Err(SessionError::Helped(HelperError::Busy(_))) if trusted => {
            return (State::Ready, Some(session));
        }
        Err(SessionError::Helped(HelperError::Busy(_))) => return (State::Untried, None),
        Err(error) => return (State::Failed(error.to_string()), None),
    };
    if let Err(reason) = compare(&expected, &outputs, TOLERANCE) {
        tracing::warn!(engine, "not trusted with a model: {reason}");
        return (State::Failed(reason), None);
    }
    match measure(&session, &inputs) {
        Ok(time) => (State::Measured(time), Some(session)),
        Err(error) => (State::Failed(error.to_string()), None),
    }
}

fn load(
    engine: &'static str,
    onnx: &[u8],
    cpu: &Cpu,
    known: Option<&Engines>,
) -> Result<AnySession, State> {
    let state = |error: &SessionError| match error {
        SessionError::Helped(HelperError::Busy(_)) => State::Untried,
        SessionError::Helped(HelperError::Failed(_) | HelperError::Gone(_)) => {
            State::Failed(error.to_string())
        }
        SessionError::Own(_)
        | SessionError::Absent(_)
        | SessionError::Helped(HelperError::Refused { .. }) => State::Refused(error.to_string()),
    };
    if CPU.contains(&engine) {
        return cpu.load(engine, onnx).map_err(|error| state(&error));
    }
    let Some(helper) = known.and_then(|known| known.helper(engine)) else {
        let reason = known.and_then(|known| known.unusable(engine));
        return Err(State::Refused(reason.unwrap_or("it is not known here").to_owned()));
    };
    match helper.session(onnx) {
        Ok(session) => Ok(AnySession::Helped(Arc::new(session))),
        Err(error) => Err(state(&error.into())),
    }
}

/// The shortest of some runs, transfers to a helper included.
fn measure(session: &AnySession, inputs: &[Tensor]) -> Result<Duration, SessionError> {
    let until = Instant::now() + RUNS_TIME;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let began = Instant::now();
        session.run(inputs, RUN_LIMIT)?;
        best = best.min(began.elapsed());
        if Instant::now() > until {
            break;
        }
    }
    Ok(best)
}

/// Inputs of one example, the same each time: numbers from 0 to 1, pixels, small indices.
/// `None` where extents beside the batch are open, or there would be too many elements.
fn golden(inputs: &[TensorInfo]) -> Option<Vec<Tensor>> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    inputs.iter().map(|info| example(info, &mut next)).collect()
}

fn example(info: &TensorInfo, next: &mut impl FnMut() -> u32) -> Option<Tensor> {
    let extent = |(axis, extent): (usize, &i64)| match usize::try_from(*extent) {
        Ok(extent) => Some(extent),
        Err(_) if axis == 0 => Some(1),
        Err(_) => None,
    };
    let shape: Vec<usize> = info.shape.iter().enumerate().map(extent).collect::<Option<_>>()?;
    let count = shape.iter().try_fold(1_usize, |count, extent| count.checked_mul(*extent))?;
    if count > ELEMENTS_MAX {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, reason = "16 bits, a low byte of them")]
    let mut byte = || next() as u8;
    let data = match info.datatype.as_str() {
        "FP32" => Data::F32((0..count).map(|_| f32::from(byte()) / 255.0).collect()),
        "FP64" => Data::F64((0..count).map(|_| f64::from(byte()) / 255.0).collect()),
        "INT64" => Data::I64((0..count).map(|_| i64::from(byte() & 1)).collect()),
        "INT32" => Data::I32((0..count).map(|_| i32::from(byte() & 1)).collect()),
        "INT8" => Data::I8((0..count).map(|_| i8::from_le_bytes([byte()])).collect()),
        "UINT8" => Data::U8((0..count).map(|_| byte()).collect()),
        "BOOL" => Data::Bool((0..count).map(|_| byte() & 1 == 1).collect()),
        _ => return None,
    };
    Tensor::new(&shape, data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_inputs_fit_and_repeat() {
        let info = |datatype: &str, shape: &[i64]| TensorInfo {
            name: String::new(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
        };
        let inputs = [info("FP32", &[-1, 3, 4]), info("INT64", &[2, 2]), info("UINT8", &[1, 8])];
        let made = golden(&inputs).unwrap();
        assert_eq!(made[0].shape(), [1, 3, 4]);
        let values = made[0].as_f32().unwrap();
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
        assert!(values.iter().any(|value| *value > 0.6) && values.iter().any(|value| *value < 0.4));
        assert_eq!(golden(&inputs), Some(made));
        for odd in [info("FP32", &[1, -1]), info("FP16", &[1]), info("FP32", &[1 << 40, 2])] {
            assert_eq!(golden(&[odd]), None);
        }
    }
}
