//! One model in the engines that have it, and how it answers: by the best of them, and by the
//! next one when that fails.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jobs::engine::EnginePolicy;
use jobs::report::{Failure, FailureCode, RefusedEngine};
use models::artifact::TensorInfo;
use models::engine::choice::{Choice, Refusal, State, choose};
use models::engine::declared::Declared;
use models::tensor::Tensor;

use self::place::Place;
pub(super) use self::place::Trial;
use crate::engines::{AnySession, CPU, Cpu, HELPED, HelperError, SessionError};
use crate::execute::failures;

mod place;

/// How many times its measured time an engine that is not the CPU's may take before it counts as
/// hung.
const SLOWER_MAX: u32 = 50;
/// The shortest time after which it does.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same of an engine of the CPU, at least: that a client is in a hurry tells nothing of it.
const PATIENCE_CPU: Duration = Duration::from_mins(1);

/// A model with its engines.
#[derive(Debug)]
pub(in crate::execute) struct Loaded {
    declared: Declared,
    places: Mutex<Vec<Place>>,
    /// One calibration at a time.
    pub(super) calibrating: tokio::sync::Mutex<()>,
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
    /// Engines to try in the background: they failed, and may do better now.
    pub(in crate::execute) again: Vec<&'static str>,
}

impl Loaded {
    /// Loads an ONNX file into the first engine of the CPU that takes it. All engines are to be
    /// tried then.
    pub(super) fn load(cpu: &Cpu, onnx: &[u8]) -> Result<Self, Failure> {
        let now = Instant::now();
        let mut places: Vec<Place> = Vec::new();
        let mut last = None;
        let mut ready: Option<AnySession> = None;
        for engine in CPU {
            let mut place = Place::new(engine, true);
            if ready.is_none() {
                match cpu.load(engine, onnx) {
                    Ok(session) => {
                        ready = Some(session.clone());
                        place.put(Trial::Well(State::Ready, session), now);
                    }
                    Err(error) => {
                        place.put(Trial::Refused(error.to_string()), now);
                        last = Some(error);
                    }
                }
            }
            places.push(place);
        }
        let Some(ready) = ready else {
            // The last one takes the most models, so its reason is the one that counts.
            let none = || Failure::new(FailureCode::Internal, "no engine of the CPU".to_owned());
            return Err(last.as_ref().map_or_else(none, failures::of_session));
        };
        places.extend(HELPED.map(|engine| Place::new(engine, false)));
        for place in &mut places {
            place.trial = Some(now);
        }
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
        policy: &EnginePolicy,
        limit: Duration,
    ) -> Result<Answered, Failure> {
        let examples = self.declared.check(inputs).map_err(|error| failures::of_engine(&error))?;
        let deadline = Instant::now() + limit;
        let Choice { ranked, refused } = self.choice(|engine| policy.allows(engine));
        let mut refused = telling(&ranked, refused);
        let mut last = None;
        let mut refusing: Vec<(&'static str, AnySession, String)> = Vec::new();
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
                    // The input was none that nobody can answer.
                    for (engine, session, reason) in refusing {
                        session.retire(&reason);
                        self.failed(engine, &session, reason);
                    }
                    let again = self.answered(engine);
                    return Ok(Answered { outputs, engine, took, refused, again });
                }
                Err(error) => error,
            };
            refused.push(refusal(engine, &error));
            match error {
                SessionError::Helped(HelperError::Failed(reason)) => {
                    self.failed(engine, &session, reason);
                }
                SessionError::Helped(HelperError::Gone(reason)) => {
                    self.change(engine, &session, |place| place.gone(reason));
                }
                SessionError::Helped(HelperError::Refused { reason, .. }) => {
                    if CPU.contains(&engine) {
                        last = Some(Failure::new(FailureCode::Internal, reason));
                    } else {
                        refusing.push((engine, session, reason));
                    }
                }
                SessionError::Helped(HelperError::Busy(_))
                | SessionError::Own(_)
                | SessionError::Absent(_) => {
                    last = Some(failures::of_session(&error));
                }
            }
        }
        if last.is_none() {
            // The input, or the engine: it is compared again before it answers the next request.
            for (engine, session, _) in &refusing {
                self.change(engine, session, |place| place.state = State::Ready);
            }
        }
        Err(last.unwrap_or_else(|| unavailable(&refused)))
    }

    /// Notes that an engine answered; what is to be tried in the background.
    fn answered(&self, engine: &str) -> Vec<&'static str> {
        let now = Instant::now();
        let mut places = self.lock();
        if let Some(place) = places.iter_mut().find(|place| place.engine == engine) {
            place.health.answered();
        }
        let due =
            places.iter_mut().filter_map(|place| place.take_trial(now).then_some(place.engine));
        due.collect()
    }

    /// Notes that an engine failed with a request, or with the golden input once it had been
    /// trusted.
    pub(super) fn failed(&self, engine: &str, session: &AnySession, reason: String) {
        self.change(engine, session, |place| place.fail(reason, Instant::now()));
    }

    /// Changes an engine's place, if it has this session still: of requests that fail side by side
    /// one tells.
    fn change(&self, engine: &str, session: &AnySession, change: impl FnOnce(&mut Place)) {
        let mut places = self.lock();
        let place = places.iter_mut().find(|place| place.engine == engine);
        let this = |place: &Place| place.session.as_ref().is_some_and(|own| own.is(session));
        if let Some(place) = place.filter(|place| this(place)) {
            change(place);
        }
    }

    /// Engines to make ready for a request, where none that it allows is. The one that is to
    /// answer keeps the model from then on.
    pub(super) fn missing(&self, allowed: impl Fn(&str) -> bool) -> Vec<&'static str> {
        let (ranked, now) = (self.choice(&allowed).ranked, Instant::now());
        let mut places = self.lock();
        let ready = ranked.iter().find_map(|engine| {
            let ready = |place: &Place| place.session.is_some() && place.engine == *engine;
            places.iter().position(ready)
        });
        if let Some(ready) = ready {
            places[ready].wanted = true;
            return Vec::new();
        }
        for place in places.iter_mut() {
            place.wanted |= allowed(place.engine);
        }
        let open = places.iter().filter(|place| place.is_open(now) && allowed(place.engine));
        open.map(|place| place.engine).collect()
    }

    /// Whether a trial of an engine has a sense now.
    pub(super) fn is_open(&self, engine: &str) -> bool {
        let now = Instant::now();
        self.lock().iter().any(|place| place.engine == engine && place.is_open(now))
    }

    pub(super) fn choice(&self, allowed: impl Fn(&str) -> bool) -> Choice {
        let now = Instant::now();
        let standings: Vec<_> = self.lock().iter().map(|place| place.standing(now)).collect();
        choose(&standings, allowed)
    }

    /// An engine's session, with the time that it was measured to take.
    pub(super) fn session(&self, engine: &str) -> Option<(AnySession, Option<Duration>)> {
        let places = self.lock();
        let place = places.iter().find(|place| place.engine == engine)?;
        let time = match place.state {
            State::Measured(time) => Some(time),
            State::Untried | State::Refused(_) | State::Failed(_) | State::Ready => None,
        };
        Some((place.session.clone()?, time))
    }

    /// The session of an engine of the CPU whose outputs count: the named one if it is there.
    pub(super) fn reference(&self, named: &str) -> Option<AnySession> {
        let places = self.lock();
        let cpu = || places.iter().filter(|place| place.cpu && place.session.is_some());
        let named = cpu().find(|place| place.engine == named);
        named.or_else(|| cpu().next())?.session.clone()
    }

    /// Notes what came of a trial.
    pub(super) fn put(&self, engine: &str, trial: Trial) {
        let mut places = self.lock();
        if let Some(place) = places.iter_mut().find(|place| place.engine == engine) {
            place.put(trial, Instant::now());
        }
    }

    /// Lets go of the model in every engine of the CPU but the fastest, and those that answer.
    pub(super) fn keep_fastest_cpu(&self) {
        let fastest = self.choice(|engine| CPU.contains(&engine)).ranked.into_iter().next();
        let mut places = self.lock();
        for place in places.iter_mut().filter(|place| place.cpu) {
            if Some(place.engine) != fastest && !place.wanted {
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
