//! One model in the engines that have it, and how it answers: by the best of them, and by the
//! next one when that fails.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jobs::report::{Failure, FailureCode, RefusedEngine};
use models::artifact::TensorInfo;
use models::engine::choice::{Choice, Refusal, Standing, State, choose};
use models::engine::declared::Declared;
use models::tensor::Tensor;

use crate::engines::{AnySession, CPU, Cpu, HELPED, HelperError, SessionError};
use crate::execute::failures;

/// How many times its measured time an engine that is not the CPU's may take before it counts as
/// hung.
const SLOWER_MAX: u32 = 50;
/// The shortest time after which it does.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same of an engine of the CPU, at least: that a client is in a hurry tells nothing of it.
const PATIENCE_CPU: Duration = Duration::from_mins(1);
/// Failures with one model after which an engine that is not the CPU's is left alone.
const FAILURES_MAX: u32 = 3;

/// A model with its engines.
#[derive(Debug)]
pub(in crate::execute) struct Loaded {
    declared: Declared,
    places: Mutex<Vec<Place>>,
    /// One calibration at a time.
    pub(super) calibrating: tokio::sync::Mutex<()>,
}

/// An engine, and the model in it if it is there.
#[derive(Debug)]
struct Place {
    standing: Standing,
    session: Option<AnySession>,
    /// How often it failed with this model.
    failures: u32,
    /// Whether a request is to be answered by it, so that it keeps the model.
    wanted: bool,
}

/// What an engine gave.
#[derive(Debug)]
pub(in crate::execute) struct Answered {
    pub(in crate::execute) outputs: Vec<Tensor>,
    pub(in crate::execute) engine: &'static str,
    /// Its own time.
    pub(in crate::execute) took: Duration,
    /// Engines that were tried, or could have been better, with the reasons.
    pub(in crate::execute) refused: Vec<RefusedEngine>,
    /// Engines that failed and are worth another trial.
    pub(in crate::execute) again: Vec<&'static str>,
}

impl Loaded {
    /// Loads an ONNX file into the first engine of the CPU that takes it.
    pub(super) fn load(cpu: &Cpu, onnx: &[u8]) -> Result<Self, Failure> {
        let mut places: Vec<Place> = Vec::new();
        let mut last = None;
        let mut ready: Option<AnySession> = None;
        for engine in CPU {
            let (state, session) = match &ready {
                Some(_) => (State::Untried, None),
                None => match cpu.load(engine, onnx) {
                    Ok(session) => {
                        ready = Some(session.clone());
                        (State::Ready, Some(session))
                    }
                    Err(error) => {
                        let reason = error.to_string();
                        last = Some(error);
                        (State::Refused(reason), None)
                    }
                },
            };
            let standing = Standing { engine, cpu: true, state };
            places.push(Place { standing, session, failures: 0, wanted: false });
        }
        let Some(ready) = ready else {
            // The last one takes the most models, so its reason is the one that counts.
            let none = || Failure::new(FailureCode::Internal, "no engine of the CPU".to_owned());
            return Err(last.as_ref().map_or_else(none, failures::of_session));
        };
        let untried = |engine| Standing { engine, cpu: false, state: State::Untried };
        let helped = HELPED.map(|engine| Place {
            standing: untried(engine),
            session: None,
            failures: 0,
            wanted: false,
        });
        places.extend(helped);
        let declared = Declared::new(ready.inputs().to_vec(), ready.outputs().to_vec());
        let (places, calibrating) = (Mutex::new(places), tokio::sync::Mutex::default());
        Ok(Self { declared, places, calibrating })
    }

    /// Declared inputs, in order.
    pub(in crate::execute) fn inputs(&self) -> &[TensorInfo] {
        &self.declared.inputs
    }

    /// Declared outputs, in order.
    pub(in crate::execute) fn outputs(&self) -> &[TensorInfo] {
        &self.declared.outputs
    }

    /// Answers with the best engine that is allowed, within `limit`; by the next one where one
    /// fails.
    pub(in crate::execute) fn answer(
        &self,
        inputs: &[Tensor],
        allowed: impl Fn(&str) -> bool,
        limit: Duration,
    ) -> Result<Answered, Failure> {
        let examples = self.declared.check(inputs).map_err(|error| failures::of_engine(&error))?;
        let deadline = Instant::now() + limit;
        let Choice { ranked, refused } = self.choice(allowed);
        let mut refused = telling(&ranked, refused);
        let (mut again, mut last) = (Vec::new(), None);
        for engine in ranked {
            let Some((session, time)) = self.session(engine) else { continue };
            let left = deadline.saturating_duration_since(Instant::now());
            let limit = if CPU.contains(&engine) {
                left.max(PATIENCE_CPU)
            } else {
                hung_after(time, examples.unwrap_or(1)).min(left / 2)
            };
            let error = match session.run(inputs, limit) {
                Ok((outputs, took)) => {
                    return Ok(Answered { outputs, engine, took, refused, again });
                }
                Err(error) => error,
            };
            refused.push(refusal(engine, &error));
            match error {
                SessionError::Helped(HelperError::Failed(_)) => {
                    self.note(engine, &session, &error, 1, &mut again);
                }
                SessionError::Helped(HelperError::Gone(_)) => {
                    self.note(engine, &session, &error, 0, &mut again);
                }
                SessionError::Helped(HelperError::Refused { reason, .. }) => {
                    if CPU.contains(&engine) {
                        last = Some(Failure::new(FailureCode::Internal, reason));
                    }
                }
                SessionError::Helped(HelperError::Busy(_))
                | SessionError::Own(_)
                | SessionError::Absent(_) => {
                    last = Some(failures::of_session(&error));
                }
            }
        }
        Err(last.unwrap_or_else(|| unavailable(&refused)))
    }

    /// Notes that an engine of a helper crashed so many times; puts it into `again` if it is to be
    /// tried anew.
    fn note(
        &self,
        engine: &'static str,
        failed: &AnySession,
        error: &SessionError,
        crashes: u32,
        again: &mut Vec<&'static str>,
    ) {
        let mut places = self.lock();
        let Some(place) = places.iter_mut().find(|place| place.standing.engine == engine) else {
            return;
        };
        // Of requests that fail side by side one tells.
        if !place.session.as_ref().is_some_and(|session| session.is(failed)) {
            return;
        }
        place.session = None;
        place.failures += crashes;
        place.standing.state = State::Failed(error.to_string());
        if place.failures < FAILURES_MAX {
            again.push(engine);
        }
    }

    /// Engines to make ready for a request, where none that it allows is. The one that is to
    /// answer keeps the model from then on.
    pub(super) fn missing(&self, allowed: impl Fn(&str) -> bool) -> Vec<&'static str> {
        let ranked = self.choice(&allowed).ranked;
        let mut places = self.lock();
        let ready = ranked.iter().find_map(|engine| {
            let ready = |place: &Place| place.session.is_some() && place.standing.engine == *engine;
            places.iter().position(ready)
        });
        if let Some(ready) = ready {
            places[ready].wanted = true;
            return Vec::new();
        }
        for place in places.iter_mut() {
            place.wanted |= allowed(place.standing.engine);
        }
        let open = |place: &&Place| match place.standing.state {
            State::Untried | State::Ready | State::Measured(_) => true,
            // Behind the CPU's there is no other.
            State::Failed(_) => place.standing.cpu,
            State::Refused(_) => false,
        };
        let names = places.iter().filter(open).map(|place| place.standing.engine);
        names.filter(|engine| allowed(engine)).collect()
    }

    pub(super) fn choice(&self, allowed: impl Fn(&str) -> bool) -> Choice {
        let places = self.lock();
        let standings: Vec<Standing> = places.iter().map(|place| place.standing.clone()).collect();
        drop(places);
        choose(&standings, allowed)
    }

    /// An engine's session, with the time that it was measured to take.
    pub(super) fn session(&self, engine: &str) -> Option<(AnySession, Option<Duration>)> {
        let places = self.lock();
        let place = places.iter().find(|place| place.standing.engine == engine)?;
        let time = match place.standing.state {
            State::Measured(time) => Some(time),
            State::Untried | State::Refused(_) | State::Failed(_) | State::Ready => None,
        };
        Some((place.session.clone()?, time))
    }

    /// The session of an engine of the CPU whose outputs count: the named one if it is there.
    pub(super) fn reference(&self, named: &str) -> Option<AnySession> {
        let places = self.lock();
        let cpu = || places.iter().filter(|place| place.standing.cpu && place.session.is_some());
        let named = cpu().find(|place| place.standing.engine == named);
        named.or_else(|| cpu().next())?.session.clone()
    }

    /// Notes what is known of an engine.
    pub(super) fn put(&self, engine: &str, state: State, session: Option<AnySession>) {
        let mut places = self.lock();
        if let Some(place) = places.iter_mut().find(|place| place.standing.engine == engine) {
            place.standing.state = state;
            place.session = session;
        }
    }

    /// Lets go of the model in every engine of the CPU but the fastest, and those that answer.
    pub(super) fn keep_fastest_cpu(&self) {
        let fastest = self.choice(|engine| CPU.contains(&engine)).ranked.into_iter().next();
        let mut places = self.lock();
        for place in places.iter_mut().filter(|place| place.standing.cpu) {
            if Some(place.standing.engine) != fastest && !place.wanted {
                place.session = None;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `time` is that of one example.
fn hung_after(time: Option<Duration>, examples: usize) -> Duration {
    let examples = u32::try_from(examples).unwrap_or(u32::MAX);
    let most = |time: Duration| time.saturating_mul(SLOWER_MAX).saturating_mul(examples);
    time.map_or(PATIENCE, most).max(PATIENCE)
}

/// The refusals that a reader of the answer wants to know: of engines that failed, not of those
/// that this device never had.
fn telling(ranked: &[&'static str], refused: Vec<Refusal>) -> Vec<RefusedEngine> {
    // With nothing ranked every reason counts.
    let worth = |refusal: &Refusal| ranked.is_empty() || refusal.failed;
    let named = |refusal: Refusal| RefusedEngine {
        engine: refusal.engine.to_owned(),
        reason: refusal.reason,
    };
    refused.into_iter().filter(worth).map(named).collect()
}

fn refusal(engine: &str, error: &dyn std::fmt::Display) -> RefusedEngine {
    RefusedEngine { engine: engine.to_owned(), reason: error.to_string() }
}

fn unavailable(refused: &[RefusedEngine]) -> Failure {
    let reasons: Vec<String> =
        refused.iter().map(|refused| format!("{}: {}", refused.engine, refused.reason)).collect();
    let message = format!("no engine that the request allows can answer: {}", reasons.join("; "));
    Failure::new(FailureCode::EngineUnavailable, message)
}
