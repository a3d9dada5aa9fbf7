//! One model in the engines that have it, and how it answers: by the best of them, and by the
//! next one when that fails.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jobs::engine::EnginePolicy;
use jobs::report::{Failure, FailureCode, RefusedEngine};
use models::artifact::TensorInfo;
use models::engine::choice::{Choice, Refusal, State, choose};
use models::engine::declared::Declared;
use models::tensor::Tensor;

use self::call::{Call, Outcome};
use self::place::Place;
pub(super) use self::place::{BATCH, Batches, Trial};
use self::refusals::{refusal, telling, unavailable};
pub(super) use self::unchecked::Unloaded;
use super::turns::Turns;
use crate::engines::{AnySession, CPU, Cpu, HELPED, HelperError, Ran, SessionError};
use crate::execute::compute::Seat;
use crate::execute::failures;

mod call;
mod place;
mod refusals;
mod unchecked;

/// A trial that takes longer is news.
const LONG: Duration = Duration::from_secs(20);
/// Bytes of outputs for the golden input that are remembered.
const GOLDEN_MAX: usize = 1 << 20;

/// A model with its engines.
#[derive(Debug)]
pub(in crate::execute) struct Loaded {
    declared: Declared,
    places: Mutex<Vec<Place>>,
    /// What an engine of the CPU gave for the golden input, unless that is large.
    golden: Mutex<Option<Vec<Tensor>>>,
    /// Where no engine of the CPU took it: why nobody checks the engine in their place.
    unchecked: Option<RefusedEngine>,
    pub(super) turns: Turns,
}

/// An engine that others are held to.
#[derive(Debug)]
pub(super) struct Reference {
    pub(super) engine: &'static str,
    pub(super) session: AnySession,
    /// Whether it owes an answer to an earlier request.
    pub(super) late: bool,
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
    pub(super) fn load(cpu: &Cpu, onnx: &[u8]) -> Result<Self, Unloaded> {
        let now = Instant::now();
        let mut places: Vec<Place> = Vec::new();
        let mut ready: Option<AnySession> = None;
        let mut refused = Vec::new();
        for engine in CPU {
            let mut place = Place::new(engine, true);
            if ready.is_none() {
                match cpu.load(engine, onnx) {
                    Ok(session) => {
                        ready = Some(session.clone());
                        place.put(Trial::Well(State::Ready, session), now);
                    }
                    Err(error) => {
                        place.put(Trial::of_loading(&error, false), now);
                        refused.push((engine, error));
                    }
                }
            }
            places.push(place);
        }
        match ready {
            Some(ready) => Ok(Self::with(places, &ready, None)),
            None => Err(Unloaded::new(places, refused)),
        }
    }

    /// With these places, and those of the other engines, which are to be tried.
    fn with(mut places: Vec<Place>, ready: &AnySession, unchecked: Option<RefusedEngine>) -> Self {
        for engine in HELPED {
            if places.iter().all(|place| place.engine != engine) {
                places.push(Place::new(engine, false));
            }
        }
        for place in &mut places {
            place.trial = Some(Instant::now());
        }
        let declared = Declared::new(ready.inputs().to_vec(), ready.outputs().to_vec());
        let turns = Turns::new(places.iter().map(|place| place.engine));
        Self { declared, places: Mutex::new(places), golden: Mutex::default(), unchecked, turns }
    }

    /// Declared inputs, in order.
    pub(in crate::execute) fn inputs(&self) -> &[TensorInfo] {
        &self.declared.inputs
    }

    /// What the model declares.
    pub(super) fn declared(&self) -> &Declared {
        &self.declared
    }

    /// Declared outputs, in order.
    pub(in crate::execute) fn outputs(&self) -> &[TensorInfo] {
        &self.declared.outputs
    }

    /// Answers with the best engine that is allowed, before the `deadline`; by the next one where
    /// one fails, or takes too long.
    pub(in crate::execute) fn answer(
        self: &Arc<Self>,
        inputs: &Arc<[Tensor]>,
        policy: &EnginePolicy,
        deadline: Instant,
        seat: &mut Seat,
    ) -> Result<Answered, Failure> {
        let examples = self.declared.check(inputs).map_err(|error| failures::of_engine(&error))?;
        let examples = examples.unwrap_or(1);
        let Choice { ranked, refused } = self.choice(examples, |engine| policy.allows(engine));
        let mut refused = telling(&ranked, refused, policy);
        let mut last = None;
        let mut refusing: Vec<(Call, String)> = Vec::new();
        for (index, engine) in ranked.iter().enumerate() {
            let Some(call) = self.call(engine, inputs, examples) else {
                if policy.names(engine) {
                    refused.push(refusal(engine, &"it does not have the model so far"));
                }
                continue;
            };
            // What is known so far is not news any more.
            refused.retain(|refused| refused.engine != *engine);
            let left = deadline.saturating_duration_since(Instant::now());
            let alone = index + 1 == ranked.len() && !self.may_come_back(&call, policy);
            let error = match call.make(self, left, alone, seat) {
                Ok(Ok(Ran { outputs, took, whole })) => {
                    // The input was none that nobody can answer.
                    for (call, reason) in refusing {
                        call.session.retire(&reason);
                        self.failed(call.engine, &call.session, reason);
                    }
                    let again = self.answered(&call, whole);
                    let unchecked = call.trusted && !CPU.contains(engine);
                    refused.extend(self.unchecked.iter().filter(|_| unchecked).cloned());
                    return Ok(Answered { outputs, engine, took, refused, again });
                }
                Ok(Err(error)) => error,
                Err(unanswered) => {
                    refused.push(refusal(engine, &unanswered));
                    continue;
                }
            };
            refused.push(refusal(engine, &error));
            match error {
                SessionError::Helped(HelperError::Failed(reason)) => {
                    self.failed(engine, &call.session, reason);
                }
                SessionError::Helped(HelperError::Gone(reason)) => {
                    self.change(engine, &call.session, |place| place.gone(reason));
                }
                SessionError::Helped(HelperError::Refused { reason, .. }) => {
                    if call.trusted {
                        last = Some(Failure::new(FailureCode::Internal, reason));
                    } else {
                        refusing.push((call, reason));
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
            for (call, _) in &refusing {
                self.change(call.engine, &call.session, |place| place.state = State::Ready);
            }
        }
        Err(last.unwrap_or_else(|| unavailable(&refused)))
    }

    /// What an engine is to be asked, if it has the model.
    fn call(&self, engine: &'static str, inputs: &Arc<[Tensor]>, examples: usize) -> Option<Call> {
        let (session, time) = self.session(engine)?;
        let places = self.lock();
        let place = places.iter().find(|place| place.engine == engine)?;
        let (trusted, most) = (place.cpu, place.most());
        let inputs = inputs.clone();
        let mut call =
            Call { engine, trusted, session, inputs, examples, most, time, usual: false };
        call.usual = place.has_seen(call.at_once());
        Some(call)
    }

    /// Whether another engine failed and may be started anew for the same request, so that it need
    /// not be spent on waiting for this one, whose time is known.
    fn may_come_back(&self, call: &Call, policy: &EnginePolicy) -> bool {
        let now = Instant::now();
        let comes = |place: &Place| {
            let failed = matches!(place.state, State::Failed(_)) && place.health.is_due(now);
            failed && place.engine != call.engine && policy.allows(place.engine)
        };
        call.time.is_some() && self.lock().iter().any(comes)
    }

    /// Notes that an engine answered; what is to be tried in the background.
    fn answered(&self, call: &Call, whole: Duration) -> Vec<&'static str> {
        let (now, examples) = (Instant::now(), call.examples);
        self.change(call.engine, &call.session, |place| place.answered(examples, whole, now));
        let mut places = self.lock();
        let due =
            places.iter_mut().filter_map(|place| place.take_trial(now).then_some(place.engine));
        due.collect()
    }

    /// Notes that a call goes on though nobody waits for its outcome any more.
    fn goes_on(&self, engine: &str) {
        if let Some(place) = self.lock().iter_mut().find(|place| place.engine == engine) {
            place.late += 1;
        }
    }

    /// Notes what came of such a call.
    fn late(&self, call: &Call, outcome: Outcome) {
        if let Some(place) = self.lock().iter_mut().find(|place| place.engine == call.engine) {
            place.late = place.late.saturating_sub(1);
        }
        self.change(call.engine, &call.session, |place| match outcome {
            Ok(ran) => match call.too_long(ran.took) {
                // Measured anew it may not be the best one any more.
                Some(reason) => place.fail(reason, Instant::now()),
                None => place.answered(call.examples, ran.whole, Instant::now()),
            },
            Err(SessionError::Helped(HelperError::Failed(reason))) => {
                place.fail(reason, Instant::now());
            }
            Err(SessionError::Helped(HelperError::Gone(reason))) => place.gone(reason),
            Err(SessionError::Helped(HelperError::Refused { .. })) if !place.cpu => {
                place.state = State::Ready;
            }
            Err(_) => {}
        });
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
        let (ranked, now) = (self.choice(1, &allowed).ranked, Instant::now());
        let open = |place: &Place| place.is_open(now) && allowed(place.engine);
        let mut places = self.lock();
        let ready = ranked.iter().find_map(|engine| {
            let ready = |place: &Place| place.session.is_some() && place.engine == *engine;
            places.iter().position(ready)
        });
        // Who is late answers only where there is no other.
        if let Some(ready) = ready
            && (places[ready].late == 0 || !places.iter().any(&open))
        {
            places[ready].wanted = true;
            return Vec::new();
        }
        for place in places.iter_mut() {
            place.wanted |= allowed(place.engine);
        }
        places.iter().filter(|place| open(place)).map(|place| place.engine).collect()
    }

    /// Who of those that are allowed answers the next request, unless it owes an earlier answer.
    pub(super) fn ready(&self, allowed: impl Fn(&str) -> bool) -> Option<&'static str> {
        let ranked = self.choice(1, allowed).ranked;
        let places = self.lock();
        let ready = |place: &Place| place.session.is_some() && place.late == 0;
        ranked
            .into_iter()
            .find(|engine| places.iter().any(|place| place.engine == *engine && ready(place)))
    }

    /// Notes that an engine is being tried.
    pub(super) fn begin(&self, engine: &str) {
        if let Some(place) = self.lock().iter_mut().find(|place| place.engine == engine) {
            place.tried_since = Some(Instant::now());
        }
    }

    /// Whether an engine is one that others are held to.
    pub(super) fn trusts(&self, engine: &str) -> bool {
        self.lock().iter().any(|place| place.engine == engine && place.cpu)
    }

    /// Whether a trial of an engine has a sense now.
    pub(super) fn is_open(&self, engine: &str) -> bool {
        let now = Instant::now();
        self.lock().iter().any(|place| place.engine == engine && place.is_open(now))
    }

    /// Who answers so many examples, in order; who owes an answer to an earlier request, or is at
    /// work for a trial, comes last.
    pub(super) fn choice(&self, examples: usize, allowed: impl Fn(&str) -> bool) -> Choice {
        let now = Instant::now();
        let places = self.lock();
        let standings: Vec<_> = places.iter().map(|place| place.standing(examples, now)).collect();
        let late = places.iter().filter(|place| place.late > 0 || place.is_tried());
        let late: Vec<(&'static str, bool)> =
            late.map(|place| (place.engine, place.late > 0)).collect();
        let tried = |place: &Place| Some((place.engine, now.duration_since(place.tried_since?)));
        let tried: Vec<_> = places.iter().filter_map(tried).collect();
        drop(places);
        let Choice { mut ranked, mut refused } = choose(&standings, &allowed);
        // Stable: both parts stay in order.
        ranked.sort_by_key(|engine| late.iter().any(|(late, _)| late == engine));
        refused.extend(late.into_iter().filter(|(engine, _)| ranked.contains(engine)).map(
            |(engine, failed)| {
                let reason = "it has not answered an earlier request so far".to_owned();
                Refusal { engine, reason, failed }
            },
        ));
        for refusal in refused.iter_mut().filter(|refusal| allowed(refusal.engine)) {
            let tried = tried.iter().find(|(engine, _)| *engine == refusal.engine);
            if let Some((_, time)) = tried {
                refusal.reason =
                    format!("it is being tried, for {:.1} s so far", time.as_secs_f64());
                refusal.failed |= *time > LONG;
            }
        }
        Choice { ranked, refused }
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

    /// Whether an engine is to be measured again, and has the model.
    pub(super) fn is_review_due(&self, engine: &str) -> bool {
        let now = Instant::now();
        let due = |place: &Place| place.session.is_some() && place.is_review_due(now);
        self.lock().iter().any(|place| place.engine == engine && due(place))
    }

    /// Notes what came of measuring an engine again.
    pub(super) fn put_review(&self, engine: &str, run: Option<Duration>, took: Duration) {
        if let Some(place) = self.lock().iter_mut().find(|place| place.engine == engine) {
            place.put_review(run, took, Instant::now());
        }
    }

    /// The time that an engine of the CPU was measured to take, with the model in it or without.
    pub(super) fn time_of_cpu(&self, engine: &str) -> Option<Duration> {
        let places = self.lock();
        match places.iter().find(|place| place.engine == engine && place.cpu)?.state {
            State::Measured(time) => Some(time),
            State::Untried | State::Refused(_) | State::Failed(_) | State::Ready => None,
        }
    }

    /// An engine of the CPU whose outputs count: the named one if it has the model, and owes no
    /// answer.
    pub(super) fn reference(&self, named: &str) -> Option<Reference> {
        let places = self.lock();
        let cpu = || places.iter().filter(|place| place.cpu && place.session.is_some());
        let place = cpu().min_by_key(|place| (place.late > 0, place.engine != named))?;
        let (engine, session, late) = (place.engine, place.session.clone()?, place.late > 0);
        Some(Reference { engine, session, late })
    }

    /// What an engine of the CPU gave for the golden input.
    pub(super) fn golden(&self) -> Option<Vec<Tensor>> {
        self.golden.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers it.
    pub(super) fn put_golden(&self, outputs: &[Tensor]) {
        let bytes: usize = outputs.iter().map(Tensor::size).sum();
        let golden = (bytes <= GOLDEN_MAX).then(|| outputs.to_vec());
        *self.golden.lock().unwrap_or_else(PoisonError::into_inner) = golden;
    }

    /// Notes what came of a trial. Where an engine of the CPU has the model at last, those that were
    /// not held to one are.
    pub(super) fn put(&self, engine: &str, trial: Trial) {
        let mut places = self.lock();
        let checks = CPU.contains(&engine) && matches!(trial, Trial::Well(..));
        let in_its_place = |place: &Place| place.cpu && !CPU.contains(&place.engine);
        if checks && places.iter().any(in_its_place) {
            places.iter_mut().filter(|place| !CPU.contains(&place.engine)).for_each(Place::compare);
        }
        if let Some(place) = places.iter_mut().find(|place| place.engine == engine) {
            place.put(trial, Instant::now());
        }
    }

    /// The session of an engine that is to be held to the CPU's with many examples too.
    pub(super) fn uncompared(&self, engine: &str) -> Option<AnySession> {
        let places = self.lock();
        places.iter().find(|place| place.engine == engine)?.uncompared().cloned()
    }

    /// Notes what came of a trial with many examples.
    pub(super) fn put_batches(
        &self,
        engine: &str,
        session: &AnySession,
        outcome: Result<Batches, Trial>,
    ) {
        if let Some(place) = self.lock().iter_mut().find(|place| place.engine == engine) {
            place.put_batches(outcome, session, Instant::now());
        }
    }

    /// Lets go of the model in every engine of the CPU but the fastest, and those that answer.
    pub(super) fn keep_fastest_cpu(&self) {
        let ranked = self.choice(1, |engine| self.trusts(engine)).ranked;
        let mut places = self.lock();
        let has = |engine: &&str| {
            places.iter().any(|place| place.engine == *engine && place.session.is_some())
        };
        let fastest = ranked.into_iter().find(has);
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
