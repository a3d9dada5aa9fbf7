//! Tries a model in further engines: loads it, holds the outputs for a golden input to the CPU's,
//! and measures a run. What comes of it decides who answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use models::artifact::TensorInfo;
use models::engine::choice::{State, compare};
use models::tensor::{Data, Tensor};

use super::super::compute::apart;
use super::loaded::{BATCH, Batches, Loaded, Reference, Trial};
use super::room;
use crate::device::EnginesHere;
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
/// Elements of a golden input of many examples: 16 MiB of floats, as 21 pictures of 224 x 224 need;
/// in tests of whole agents the slow model has more.
const BATCH_ELEMENTS_MAX: usize = if cfg!(test) { 1 << 18 } else { 1 << 22 };
/// How long the reference may take for it, one example after the other.
const BATCH_TIME_MAX: Duration = Duration::from_secs(20);
/// A pause of the reference after each: whoever waits for it is not overtaken by the next one.
const BATCH_PAUSE: Duration = Duration::from_millis(5);
/// How long the trial of an engine has the device for itself: loading a model takes a second or two
/// where nothing hangs.
pub(super) const ALONE: Duration = Duration::from_secs(10);

/// Tries every engine, and keeps of the CPU's the fastest one.
pub(super) async fn all(model: Arc<Loaded>, onnx: Bytes, here: EnginesHere) {
    let mut engines = vec![REFERENCE];
    engines.extend(CPU.into_iter().chain(HELPED).filter(|engine| *engine != REFERENCE));
    some(model.clone(), engines, onnx, here).await;
    model.keep_fastest_cpu();
}

/// Tries some engines, one after the other; one that takes long goes on beside those after it.
/// Ends when all have ended.
pub(super) async fn some(
    model: Arc<Loaded>,
    engines: Vec<&'static str>,
    onnx: Bytes,
    here: EnginesHere,
) {
    let mut long = Vec::new();
    for engine in engines {
        let (model, onnx, here) = (model.clone(), onnx.clone(), here.clone());
        let mut trial = tokio::spawn(async move {
            one(model.clone(), engine, onnx, here, ALONE).await;
            many(model.clone(), engine).await;
            again(model, engine).await;
        });
        if tokio::time::timeout(ALONE, &mut trial).await.is_err() {
            long.push(trial);
        }
    }
    futures::future::join_all(long).await;
}

/// Tries an engine, if that has a sense still when it is its turn: alone, but it waits for no longer
/// than `patience` for others. A trial that has begun goes on when nobody waits for it any more.
pub(super) async fn one(
    model: Arc<Loaded>,
    engine: &'static str,
    onnx: Bytes,
    here: EnginesHere,
    patience: Duration,
) {
    // What is known of the helper's engines comes late after a start.
    let known = if CPU.contains(&engine) { None } else { Some(here.helped().await) };
    let turn = model.turns.of(engine).await;
    // Of requests that wait for the same engine the first one has tried it.
    let measured = model.session(engine).is_some_and(|(_, time)| time.is_some());
    if measured || !(model.is_open(engine) || model.session(engine).is_some()) {
        return;
    }
    let alone = model.turns.alone(patience).await;
    let trying = async move {
        let _turns = (turn, alone);
        model.begin(engine);
        let shared = model.clone();
        let trial = apart(format!("try-{engine}"), move || {
            attempt(&shared, engine, &onnx, &here, known.as_deref())
        });
        let trial = trial.await.unwrap_or_else(|reason| {
            tracing::error!(engine, "its trial: {reason}");
            Trial::Failed(format!("its trial: {reason}"))
        });
        tracing::debug!(engine, "tried: {trial}");
        model.put(engine, trial);
    };
    // It ends in any case.
    let _ = tokio::spawn(trying).await;
}

/// Holds an engine that may answer to the CPU's with many examples at once too, for which it may
/// have other code than for one. Nobody waits for it: until then the engine gets one after the
/// other, and other engines answer before it while it is at work here.
async fn many(model: Arc<Loaded>, engine: &'static str) {
    let _turn = model.turns.of(engine).await;
    let Some(session) = model.uncompared(engine) else { return };
    let _alone = model.turns.alone(ALONE).await;
    model.begin(engine);
    let (shared, tried) = (model.clone(), session.clone());
    let outcome = apart(format!("try-{engine}"), move || batches(&shared, &tried)).await;
    let outcome = outcome.unwrap_or_else(|reason| {
        tracing::error!(engine, "its trial: {reason}");
        Err(Trial::Failed(format!("its trial: {reason}")))
    });
    match &outcome {
        Ok(batches) => tracing::debug!(engine, "tried: {batches:?}"),
        Err(trial) => tracing::warn!(engine, "tried: {trial}"),
    }
    model.put_batches(engine, &session, outcome);
}

/// Measures an engine again that has the model and is not the one that answers: what was measured
/// in a bad moment would decide for good otherwise. Of the CPU's the fastest one is kept then.
async fn again(model: Arc<Loaded>, engine: &'static str) {
    let _turn = model.turns.of(engine).await;
    if !model.is_review_due(engine) {
        return;
    }
    let _alone = model.turns.alone(ALONE).await;
    model.begin(engine);
    let (shared, began) = (model.clone(), Instant::now());
    let run = apart(format!("try-{engine}"), move || measure_again(&shared, engine)).await;
    tracing::debug!(engine, "measured again: {run:?}");
    model.put_review(engine, run.unwrap_or_default(), began.elapsed());
    if CPU.contains(&engine) {
        model.keep_fastest_cpu();
    }
}

fn measure_again(model: &Loaded, engine: &'static str) -> Option<Duration> {
    let (session, _) = model.session(engine)?;
    let inputs = golden(model.inputs(), 1, ELEMENTS_MAX)?;
    match measure(&session, &inputs) {
        Ok(time) => Some(time),
        Err(SessionError::Helped(HelperError::Failed(reason))) => {
            model.failed(engine, &session, reason);
            None
        }
        Err(_) => None,
    }
}

/// Tries an engine: with the session that it has, and anew where that is none of the CPU's and
/// failed.
fn attempt(
    model: &Loaded,
    engine: &'static str,
    onnx: &[u8],
    here: &EnginesHere,
    known: Option<&Engines>,
) -> Trial {
    if let Some((session, _)) = model.session(engine) {
        let trial = judge(model, engine, session.clone());
        let (Trial::Failed(reason) | Trial::Wrong(reason)) = &trial else { return trial };
        if model.trusts(engine) {
            return trial;
        }
        session.retire(reason);
        model.failed(engine, &session, reason.clone());
    }
    // A helper that takes what there is not may take the agent along.
    let _room = match room::at_once(&here.promises, onnx.len() as u64) {
        Ok(room) => room,
        Err(failure) => return Trial::Failed(failure.message),
    };
    match (load(engine, onnx, &here.cpu, known), model.time_of_cpu(engine)) {
        // It had let go of the model; to whom it was held then may hang now.
        (Ok(session), Some(time)) => Trial::Well(State::Measured(time), session),
        (Ok(session), None) => judge(model, engine, session),
        (Err(trial), _) => trial,
    }
}

/// Holds an engine to the CPU's, and measures it.
fn judge(model: &Loaded, engine: &'static str, session: AnySession) -> Trial {
    let trusted = model.trusts(engine);
    let Some(inputs) = golden(model.inputs(), 1, ELEMENTS_MAX) else {
        return if trusted {
            Trial::Well(State::Ready, session)
        } else {
            Trial::Refused("there is nothing to compare it with".to_owned())
        };
    };
    let Some(expected) = expected(model, engine, &session, &inputs) else {
        return if trusted {
            Trial::Well(State::Ready, session)
        } else {
            Trial::Failed("the CPU gave nothing to compare it with".to_owned())
        };
    };
    let outputs = match session.run(&inputs, RUN_LIMIT) {
        Ok(ran) => ran.outputs,
        // It was not even asked.
        Err(SessionError::Helped(HelperError::Busy(_))) if trusted => {
            return Trial::Well(State::Ready, session);
        }
        Err(SessionError::Helped(HelperError::Busy(_))) => return Trial::Busy,
        Err(error) => return Trial::Failed(error.to_string()),
    };
    if let Err(reason) = compare(&expected, &outputs, TOLERANCE) {
        tracing::warn!(engine, "not trusted with a model: {reason}");
        return Trial::Wrong(reason);
    }
    match measure(&session, &inputs) {
        Ok(time) => Trial::Well(State::Measured(time), session),
        Err(error) => Trial::Failed(error.to_string()),
    }
}

/// What the CPU's engine gives for the golden input: remembered, for it may hang when another one is
/// tried anew.
fn expected(
    model: &Loaded,
    engine: &'static str,
    session: &AnySession,
    inputs: &[Tensor],
) -> Option<Vec<Tensor>> {
    let (name, reference) = match engine {
        REFERENCE => (engine, session.clone()),
        _ => match (model.golden(), model.reference(REFERENCE)) {
            (Some(outputs), _) => return Some(outputs),
            (None, reference) => reference.map(|it| (it.engine, it.session))?,
        },
    };
    let outputs = reference.run(inputs, RUN_LIMIT).ok()?.outputs;
    if CPU.contains(&name) {
        model.put_golden(&outputs);
    }
    Some(outputs)
}

/// Holds an engine to the reference with [`BATCH`] examples at once, and measures it. The reference
/// gets one after the other, so that requests which it answers do not wait.
fn batches(model: &Loaded, session: &AnySession) -> Result<Batches, Trial> {
    if !model.declared().has_batches() {
        return Ok(Batches::Whole(None));
    }
    let Some(inputs) = golden(model.inputs(), BATCH as usize, BATCH_ELEMENTS_MAX) else {
        return Ok(Batches::Singly);
    };
    let reference = model.reference(REFERENCE).filter(|reference| !reference.late);
    let Some(Reference { session: reference, .. }) = reference else {
        return Ok(Batches::Untried);
    };
    let until = Instant::now() + BATCH_TIME_MAX;
    let one = |piece: &[Tensor]| {
        if Instant::now() > until {
            return Err(SessionError::Helped(HelperError::Busy(BATCH_TIME_MAX)));
        }
        let outputs = reference.run(piece, RUN_LIMIT)?.outputs;
        std::thread::sleep(BATCH_PAUSE);
        Ok(outputs)
    };
    let Ok(expected) = model.declared().run(REFERENCE, 1, &inputs, one) else {
        return Ok(Batches::Singly);
    };
    let failed = |error: SessionError| match error {
        SessionError::Helped(HelperError::Busy(_)) => Ok(Batches::Untried),
        // Such as memory that lacked.
        SessionError::Helped(HelperError::Refused { .. }) => Ok(Batches::Singly),
        SessionError::Own(_) | SessionError::Absent(_) | SessionError::Helped(_) => {
            Err(Trial::Failed(format!("{BATCH} examples: {error}")))
        }
    };
    let outputs = match session.run(&inputs, RUN_LIMIT) {
        Ok(ran) => ran.outputs,
        Err(error) => return failed(error),
    };
    if let Err(reason) = compare(&expected, &outputs, TOLERANCE) {
        return Err(Trial::Wrong(format!("{BATCH} examples: {reason}")));
    }
    match measure(session, &inputs) {
        Ok(time) => Ok(Batches::Whole(Some(time))),
        Err(error) => failed(error),
    }
}

fn load(
    engine: &'static str,
    onnx: &[u8],
    cpu: &Cpu,
    known: Option<&Engines>,
) -> Result<AnySession, Trial> {
    if CPU.contains(&engine) {
        return cpu.load(engine, onnx).map_err(|error| Trial::of_loading(&error, false));
    }
    let Some(helper) = known.and_then(|known| known.helper(engine)) else {
        let reason = known.and_then(|known| known.unusable(engine));
        let reason = reason.unwrap_or("it is not known here").to_owned();
        let passes = known.is_some_and(|known| known.may_pass(engine));
        return Err(if passes { Trial::Failed(reason) } else { Trial::Refused(reason) });
    };
    match helper.session(onnx) {
        Ok(session) => Ok(AnySession::Helped(Arc::new(session))),
        Err(error) => Err(Trial::of_loading(&error.into(), true)),
    }
}

/// The shortest of some runs, transfers to a helper included.
fn measure(session: &AnySession, inputs: &[Tensor]) -> Result<Duration, SessionError> {
    let until = Instant::now() + RUNS_TIME;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        best = best.min(session.run(inputs, RUN_LIMIT)?.whole);
        if Instant::now() > until {
            break;
        }
    }
    Ok(best)
}

/// Inputs of so many examples, the same each time: numbers from 0 to 1, pixels, small indices.
/// `None` where extents beside the batch are open, or one had more than `most` elements.
fn golden(inputs: &[TensorInfo], examples: usize, most: usize) -> Option<Vec<Tensor>> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    inputs.iter().map(|info| example(info, (examples, most), &mut next)).collect()
}

fn example(
    info: &TensorInfo,
    (examples, most): (usize, usize),
    next: &mut impl FnMut() -> u32,
) -> Option<Tensor> {
    let extent = |(axis, extent): (usize, &i64)| match usize::try_from(*extent) {
        Ok(extent) => Some(extent),
        Err(_) if axis == 0 => Some(examples),
        Err(_) => None,
    };
    let shape: Vec<usize> = info.shape.iter().enumerate().map(extent).collect::<Option<_>>()?;
    let count = shape.iter().try_fold(1_usize, |count, extent| count.checked_mul(*extent))?;
    if count > most {
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
        let made = golden(&inputs, 1, ELEMENTS_MAX).unwrap();
        assert_eq!(made[0].shape(), [1, 3, 4]);
        let values = made[0].as_f32().unwrap();
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)));
        assert!(values.iter().any(|value| *value > 0.6) && values.iter().any(|value| *value < 0.4));
        assert_eq!(golden(&inputs, 1, ELEMENTS_MAX), Some(made));
        assert_eq!(golden(&inputs[..1], 21, 1 << 9).unwrap()[0].shape(), [21, 3, 4]);
        assert_eq!(golden(&inputs[..1], 21, 1 << 7), None);
        for odd in [info("FP32", &[1, -1]), info("FP16", &[1]), info("FP32", &[1 << 40, 2])] {
            assert_eq!(golden(&[odd], 1, ELEMENTS_MAX), None);
        }
    }
}
