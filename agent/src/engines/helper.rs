//! The helper process of one engine: started when it is needed, ended when no model is in it,
//! asked one thing at a time, each with a deadline, and left alone for a while when it keeps
//! failing.
//!
//! It may crash, hang, or answer nonsense: whatever it does, a call returns by its deadline with
//! what happened, and the process is gone then.

use std::io::{Error, ErrorKind};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use models::artifact::TensorInfo;
use models::engine::frames::{self, Cause, Reply, Request};
use models::engine::{Engine, EngineError, Session};
use models::graph::GraphError;
use models::tensor::Tensor;

use super::polling::Usual;
use super::process::Process;
use super::program::Program;
use super::session::Ran;

/// Starts in a row without one good answer, at most; then the helper is left alone for a while.
const STARTS_MAX: u32 = 3;
/// How long.
const REST: Duration = Duration::from_mins(1);
/// How long the helper may take until it says hello, which it does once its engine has started:
/// the first use of a GPU can take half a minute.
const HELLO_LIMIT: Duration = Duration::from_secs(90);
/// How long it may take to load a model: the first use of a GPU can take a minute.
const LOAD_LIMIT: Duration = Duration::from_mins(3);
/// How long a run may take where nobody says less.
const RUN_LIMIT: Duration = Duration::from_mins(1);

/// One engine that lives in a helper process; cheap to clone.
#[derive(Debug, Clone)]
pub struct Helper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    engine: &'static str,
    program: Program,
    threads: usize,
    /// `None` while somebody has it and asks.
    state: Mutex<Option<State>>,
    /// Told when it is back.
    back: Condvar,
    /// Sessions that nobody uses any more, with their processes' numbers. Apart from the state,
    /// which is locked as long as a call takes.
    unused: Mutex<Vec<(u64, u64)>>,
    /// The number of a process that is not to be asked again, with the reason.
    retired: Mutex<Option<(u64, String)>>,
    /// Sessions that somebody has.
    used: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    process: Option<Process>,
    /// Counts processes: sessions of an earlier one are gone.
    generation: u64,
    /// Processes started since the last good answer.
    starts: u32,
    sessions: u64,
    /// What happened last to a process.
    failure: String,
    /// No process is started before.
    rest_until: Option<Instant>,
}

impl State {
    fn answered(&mut self) {
        self.starts = 0;
        self.rest_until = None;
    }
}

/// Why a helper did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    /// It said no, and goes on.
    #[error("{reason}")]
    Refused {
        /// Why, for people.
        reason: String,
        /// Why, for programs.
        cause: Cause,
    },
    /// It crashed, hung or answered nonsense; this process of it is gone.
    #[error("{0}")]
    Failed(String),
    /// The process that had the model is gone.
    #[error("{0}")]
    Gone(String),
    /// Others were asking it for so long; it was not asked.
    #[error("the helper was at work for others for {0:?}")]
    Busy(Duration),
}

impl Helper {
    /// A helper for an engine; nothing is started before the first use. `threads` 0 leaves their
    /// number to the engine.
    pub fn new(engine: &'static str, program: Program, threads: usize) -> Self {
        Self(Arc::new(Inner {
            engine,
            program,
            threads,
            state: Mutex::new(Some(State::default())),
            back: Condvar::new(),
            unused: Mutex::default(),
            retired: Mutex::default(),
            used: AtomicUsize::new(0),
        }))
    }

    /// Loads an ONNX file.
    ///
    /// # Errors
    /// [`HelperError`].
    pub fn session(&self, onnx: &[u8]) -> Result<HelperSession, HelperError> {
        let mut state = self.0.lock();
        state.sessions += 1;
        let session = state.sessions;
        let load = Request::Load { session };
        let loaded = self.0.call(&mut state, None, (&load, &[onnx]), None, LOAD_LIMIT);
        let reply = loaded.inspect_err(|_| self.0.end_if_unused(&mut state))?;
        let (Reply::Loaded { inputs, outputs }, _) = reply else {
            return Err(self.0.nonsense(&mut state, &reply.0));
        };
        let (helper, generation) = (self.clone(), state.generation);
        self.0.used.fetch_add(1, Ordering::Relaxed);
        let usual = Mutex::default();
        Ok(HelperSession { helper, generation, session, inputs, outputs, usual })
    }
}

impl Engine for Helper {
    fn name(&self) -> &'static str {
        self.0.engine
    }

    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Session>, EngineError> {
        match self.session(onnx) {
            Ok(session) => Ok(Box::new(session)),
            Err(error) => Err(GraphError::Graph(error.to_string()).into()),
        }
    }
}

impl Inner {
    /// Waits until nobody else is asking.
    fn lock(&self) -> Turn<'_> {
        let state = self.back.wait_while(self.state(), |state| state.is_none());
        let mut state = state.unwrap_or_else(PoisonError::into_inner);
        Turn { inner: self, state: state.take().unwrap_or_default() }
    }

    /// The same; `None` when others are asking for so long.
    fn lock_within(&self, limit: Duration) -> Option<Turn<'_>> {
        let waited = self.back.wait_timeout_while(self.state(), limit, |state| state.is_none());
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.take().map(|state| Turn { inner: self, state })
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request with its body and the reply; `generation` is that of the process which has to
    /// answer, any if `None`; `usual` is how long such a request takes.
    fn call(
        &self,
        state: &mut State,
        generation: Option<u64>,
        (request, body): (&Request, &[&[u8]]),
        usual: Option<Duration>,
        limit: Duration,
    ) -> Result<(Reply, Vec<u8>), HelperError> {
        self.end_if_retired(state);
        if generation.is_some_and(|wanted| wanted != state.generation || state.process.is_none()) {
            return Err(HelperError::Gone(format!("the helper had ended: {}", state.failure)));
        }
        if state.process.is_none() {
            self.start(state)?;
        }
        let deadline = Instant::now() + limit;
        let unused = self.unused(state.generation);
        let Some(process) = &mut state.process else {
            return Err(HelperError::Failed("the helper is gone".to_owned()));
        };
        let asked = process.forget(unused, deadline);
        let answered = asked.and_then(|()| process.ask(request, body, usual, deadline));
        match answered {
            Ok((Reply::Refused { reason, cause }, _)) => {
                state.answered();
                Err(HelperError::Refused { reason, cause })
            }
            Ok(answer) => {
                state.answered();
                Ok(answer)
            }
            Err(error) => Err(self.failed(state, &what(&error, limit))),
        }
    }

    /// Takes the sessions of a process that nobody uses any more.
    fn unused(&self, generation: u64) -> Vec<u64> {
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this = unused.drain(..).filter(|(process, _)| *process == generation);
        of_this.map(|(_, session)| session).collect()
    }

    fn start(&self, state: &mut State) -> Result<(), HelperError> {
        if state.rest_until.is_some_and(|until| Instant::now() < until) {
            let failure = &state.failure;
            let reason = format!("left alone for {REST:?} after {STARTS_MAX} starts: {failure}");
            return Err(HelperError::Failed(reason));
        }
        state.starts += 1;
        // Once they have all failed each further one is followed by a rest as well.
        let rests = state.starts >= STARTS_MAX;
        state.rest_until = rests.then(|| Instant::now() + REST);
        state.generation += 1;
        let started = self.program.start(|command| {
            command.args(["serve", self.engine]);
            if self.threads > 0 {
                command.env("DUNLIN_THREADS", self.threads.to_string());
            }
            Process::start(command)
        });
        let mut process = match started {
            Ok(process) => process,
            Err(error) => {
                state.failure = format!("it cannot be started: {error}");
                return Err(HelperError::Failed(state.failure.clone()));
            }
        };
        let hello = process.hello(Instant::now() + HELLO_LIMIT);
        state.process = Some(process);
        match hello {
            Ok(Reply::Hello { protocol: frames::PROTOCOL, engine, .. })
                if engine == self.engine =>
            {
                Ok(())
            }
            Ok(reply) => Err(self.nonsense(state, &reply)),
            Err(error) => Err(self.failed(state, &what(&error, HELLO_LIMIT))),
        }
    }

    /// Ends the process if no model is in it: it may hold as much memory as the whole agent.
    fn end_if_unused(&self, state: &mut State) {
        if self.used.load(Ordering::Relaxed) == 0 {
            state.process = None;
        }
    }

    /// Ends the process if somebody found that it is of no use any more.
    fn end_if_retired(&self, state: &mut State) {
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((generation, reason)) = retired
            && generation == state.generation
            && state.process.take().is_some()
        {
            tracing::warn!(engine = self.engine, "helper: it is started anew: {reason}");
            state.failure = reason;
        }
    }

    /// Ends the process; what happened to it, as it said itself.
    fn failed(&self, state: &mut State, what: &str) -> HelperError {
        let end = state.process.take().map(Process::end);
        state.failure = match end {
            Some(end) if !end.is_empty() => format!("{what}: {end}"),
            _ => what.to_owned(),
        };
        tracing::warn!(engine = self.engine, "helper: {}", state.failure);
        HelperError::Failed(state.failure.clone())
    }

    fn nonsense(&self, state: &mut State, reply: &Reply) -> HelperError {
        let reply: String = format!("{reply:?}").chars().take(200).collect();
        self.failed(state, &format!("it answered {reply}"))
    }
}

/// The state, while it is one's turn to ask.
struct Turn<'a> {
    inner: &'a Inner,
    state: State,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.inner.state() = Some(std::mem::take(&mut self.state));
        self.inner.back.notify_one();
    }
}

impl Deref for Turn<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

/// What an error of the pipes says about the helper.
fn what(error: &Error, limit: Duration) -> String {
    let kind = error.kind();
    if kind == ErrorKind::TimedOut {
        format!("no answer within {limit:?}")
    } else if [ErrorKind::BrokenPipe, ErrorKind::UnexpectedEof].contains(&kind) {
        "it ended".to_owned()
    } else {
        error.to_string()
    }
}

/// A model in a helper.
#[derive(Debug)]
pub struct HelperSession {
    helper: Helper,
    generation: u64,
    session: u64,
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    usual: Mutex<Usual>,
}

impl HelperSession {
    /// Lets nobody ask the process that has it any more: a new one is started with the next model.
    /// Does not wait.
    pub(super) fn retire(&self, reason: &str) {
        let mut retired = self.helper.0.retired.lock().unwrap_or_else(PoisonError::into_inner);
        *retired = Some((self.generation, reason.to_owned()));
    }

    /// Runs the model; the outputs with the engine's own time. It waits for other calls to be
    /// through, and then for the outputs, each for `limit` at most.
    ///
    /// # Errors
    /// [`HelperError`].
    pub fn run_within(
        &self,
        inputs: &[Tensor],
        limit: Duration,
    ) -> Result<(Vec<Tensor>, Duration), HelperError> {
        let Ran { outputs, took, .. } = self.run_timed(inputs, limit)?;
        Ok((outputs, took))
    }

    /// The same with the time of the whole call.
    pub(super) fn run_timed(&self, inputs: &[Tensor], limit: Duration) -> Result<Ran, HelperError> {
        let (headers, body) = frames::pack(inputs);
        let request = Request::Run { session: self.session, inputs: headers };
        let helper = &self.helper.0;
        let mut state = helper.lock_within(limit).ok_or(HelperError::Busy(limit))?;
        let generation = Some(self.generation);
        let (usual, began) = (self.usual().median(), Instant::now());
        let (reply, body) = helper.call(&mut state, generation, (&request, &body), usual, limit)?;
        let whole = began.elapsed();
        self.usual().note(whole);
        let Reply::Answered { engine_us, outputs } = reply else {
            return Err(helper.nonsense(&mut state, &reply));
        };
        match frames::unpack(&outputs, &body) {
            Ok(outputs) => Ok(Ran { outputs, took: Duration::from_micros(engine_us), whole }),
            Err(error) => Err(helper.failed(&mut state, &error.to_string())),
        }
    }

    fn usual(&self) -> MutexGuard<'_, Usual> {
        self.usual.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session for HelperSession {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        match self.run_within(inputs, RUN_LIMIT) {
            Ok((outputs, _)) => Ok(outputs),
            Err(error) => {
                Err(EngineError::Run { engine: self.helper.0.engine, message: error.to_string() })
            }
        }
    }
}

impl Drop for HelperSession {
    fn drop(&mut self) {
        let helper = &self.helper.0;
        let unused = helper.unused.lock();
        unused.unwrap_or_else(PoisonError::into_inner).push((self.generation, self.session));
        helper.used.fetch_sub(1, Ordering::Relaxed);
        // Whoever is calling it now has a session, or is about to.
        if let Some(state) = helper.state().as_mut() {
            helper.end_if_unused(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::testing::{self, Fake};

    fn helper(folder: &std::path::Path, fake: Fake) -> Helper {
        Helper::new("tract", Program::File(testing::write(folder, fake)), 1)
    }

    fn runs(helper: &Helper) -> bool {
        helper.0.lock().process.is_some()
    }

    fn onnx() -> Vec<u8> {
        models::zoo::build("lenet", [1, 8, 8], 4, 1).unwrap()
    }

    #[test]
    fn a_process_ends_with_its_last_model() {
        let folder = tempfile::tempdir().unwrap();
        let helper = helper(folder.path(), Fake::Plain);
        let (first, second) = (helper.session(&onnx()).unwrap(), helper.session(&onnx()).unwrap());
        drop(first);
        assert!(runs(&helper));
        drop(second);
        assert!(!runs(&helper));
        let refused = helper.session(b"no model").unwrap_err();
        assert!(matches!(refused, HelperError::Refused { .. }), "{refused:?}");
        assert!(!runs(&helper), "a model that is refused keeps no process");
        helper.session(&onnx()).unwrap();
    }

    #[test]
    fn who_waits_for_others_gives_up_in_time_and_nothing_is_held_against_it() {
        let folder = tempfile::tempdir().unwrap();
        let helper = helper(folder.path(), Fake::Plain);
        let session = helper.session(&onnx()).unwrap();
        let input = [Tensor::f32(&[1, 1, 8, 8], vec![0.5; 64]).unwrap()];
        let others = helper.0.lock();
        let limit = Duration::from_millis(50);
        let refused = session.run_within(&input, limit).unwrap_err();
        assert_eq!(refused, HelperError::Busy(limit));
        std::thread::scope(|threads| {
            let waiting = threads.spawn(|| session.run_within(&input, RUN_LIMIT));
            drop(others);
            waiting.join().unwrap().unwrap();
        });
        session.run_within(&input, RUN_LIMIT).unwrap();
    }

    #[test]
    fn after_some_starts_in_vain_it_rests() {
        let folder = tempfile::tempdir().unwrap();
        let helper = helper(folder.path(), Fake::EndsAtOnce);
        let reason = || helper.session(&onnx()).unwrap_err().to_string();
        for _ in 0..STARTS_MAX {
            assert!(reason().starts_with("it ended: exit code 101"), "{}", reason());
        }
        assert!(reason().contains("left alone"), "{}", reason());
        helper.0.lock().rest_until = Some(Instant::now());
        assert!(reason().starts_with("it ended"), "the rest is over");
        assert!(reason().contains("left alone"));
    }
}
