//! The helper process of one engine: started when it is needed, asked one thing at a time, each
//! with a deadline, and given up when it keeps failing.
//!
//! It may crash, hang, or answer nonsense: whatever it does, a call returns by its deadline with
//! what happened, and the process is gone then.

use std::io::{Error, ErrorKind, Result};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use models::artifact::TensorInfo;
use models::engine::frames::{self, Reply, Request};
use models::engine::{Engine, EngineError, Session};
use models::graph::GraphError;
use models::tensor::Tensor;

use super::child::Running;
use super::pipe;
use super::program::Program;

/// Starts in a row without one good answer, at most; then the helper is given up.
const STARTS_MAX: u32 = 3;
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
    state: Mutex<State>,
    /// Sessions that nobody uses any more, with their processes' numbers. Apart from the state,
    /// which is locked as long as a call takes.
    unused: Mutex<Vec<(u64, u64)>>,
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
}

#[derive(Debug)]
struct Process {
    child: Running,
}

/// Why a helper did not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelperError {
    /// It said no, and goes on.
    #[error("{0}")]
    Refused(String),
    /// It crashed, hung or answered nonsense; this process of it is gone.
    #[error("{0}")]
    Failed(String),
    /// The process that had the model is gone.
    #[error("{0}")]
    Gone(String),
}

impl Helper {
    /// A helper for an engine; nothing is started before the first use. `threads` 0 leaves their
    /// number to the engine.
    pub fn new(engine: &'static str, program: Program, threads: usize) -> Self {
        let (state, unused) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { engine, program, threads, state, unused }))
    }

    /// Loads an ONNX file.
    ///
    /// # Errors
    /// [`HelperError`].
    pub fn session(&self, onnx: &[u8]) -> std::result::Result<HelperSession, HelperError> {
        let mut state = self.0.lock();
        state.sessions += 1;
        let session = state.sessions;
        let reply = self.0.call(&mut state, None, &Request::Load { session }, onnx, LOAD_LIMIT)?;
        let (Reply::Loaded { inputs, outputs }, _) = reply else {
            return Err(self.0.nonsense(&mut state, &reply.0));
        };
        let (helper, generation) = (self.clone(), state.generation);
        Ok(HelperSession { helper, generation, session, inputs, outputs })
    }
}

impl Engine for Helper {
    fn name(&self) -> &'static str {
        self.0.engine
    }

    fn load(&self, onnx: &[u8]) -> std::result::Result<Box<dyn Session>, EngineError> {
        match self.session(onnx) {
            Ok(session) => Ok(Box::new(session)),
            Err(error) => Err(GraphError::Graph(error.to_string()).into()),
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request and its reply; `generation` is that of the process which has to answer, any
    /// if `None`.
    fn call(
        &self,
        state: &mut State,
        generation: Option<u64>,
        request: &Request,
        body: &[u8],
        limit: Duration,
    ) -> std::result::Result<(Reply, Vec<u8>), HelperError> {
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
        let answered = asked.and_then(|()| process.ask(request, body, deadline));
        match answered {
            Ok((Reply::Refused { reason }, _)) => {
                state.starts = 0;
                Err(HelperError::Refused(reason))
            }
            Ok(answer) => {
                state.starts = 0;
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

    fn start(&self, state: &mut State) -> std::result::Result<(), HelperError> {
        if state.starts >= STARTS_MAX {
            let reason = format!("given up after {STARTS_MAX} starts: {}", state.failure);
            return Err(HelperError::Failed(reason));
        }
        state.starts += 1;
        state.generation += 1;
        let started = self.program.command().and_then(|mut started| {
            started.command.args(["serve", self.engine]).stdin(Stdio::piped());
            if self.threads > 0 {
                started.command.env("DUNLIN_THREADS", self.threads.to_string());
            }
            Running::start(&mut started.command)
        });
        let mut process = match started {
            Ok(child) => Process { child },
            Err(error) => {
                state.failure = format!("it cannot be started: {error}");
                return Err(HelperError::Failed(state.failure.clone()));
            }
        };
        let hello = process.answer(Instant::now() + HELLO_LIMIT);
        state.process = Some(process);
        match hello {
            Ok((Reply::Hello { protocol: frames::PROTOCOL, engine }, _))
                if engine == self.engine =>
            {
                Ok(())
            }
            Ok((reply, _)) => Err(self.nonsense(state, &reply)),
            Err(error) => Err(self.failed(state, &what(&error, HELLO_LIMIT))),
        }
    }

    /// Ends the process; what happened to it, as it said itself.
    fn failed(&self, state: &mut State, what: &str) -> HelperError {
        let end = state.process.take().map(|process| process.child.end());
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

impl Process {
    fn forget(&mut self, sessions: Vec<u64>, deadline: Instant) -> Result<()> {
        for session in sessions {
            self.ask(&Request::Unload { session }, &[], deadline)?;
        }
        Ok(())
    }

    fn ask(
        &mut self,
        request: &Request,
        body: &[u8],
        deadline: Instant,
    ) -> Result<(Reply, Vec<u8>)> {
        let head = frames::encode(request, body.len()).map_err(Error::other)?;
        pipe::write_all(self.child.stdin()?, &head, deadline)?;
        pipe::write_all(self.child.stdin()?, body, deadline)?;
        self.answer(deadline)
    }

    fn answer(&mut self, deadline: Instant) -> Result<(Reply, Vec<u8>)> {
        let foreign = |error| Error::new(ErrorKind::InvalidData, error);
        let prefix = pipe::read_exact(self.child.stdout(), frames::PREFIX, deadline)?;
        let prefix = *prefix.first_chunk().ok_or(ErrorKind::UnexpectedEof)?;
        let lengths = frames::lengths(prefix).map_err(foreign)?;
        let header = pipe::read_exact(self.child.stdout(), lengths.header, deadline)?;
        let body = pipe::read_exact(self.child.stdout(), lengths.body, deadline)?;
        Ok((frames::decode(&header).map_err(foreign)?, body))
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
}

impl HelperSession {
    /// Runs the model; the outputs with the engine's own time.
    ///
    /// # Errors
    /// [`HelperError`], by `limit` at the latest once other calls are through.
    pub fn run_within(
        &self,
        inputs: &[Tensor],
        limit: Duration,
    ) -> std::result::Result<(Vec<Tensor>, Duration), HelperError> {
        let (headers, body) = frames::pack(inputs);
        let request = Request::Run { session: self.session, inputs: headers };
        let helper = &self.helper.0;
        let mut state = helper.lock();
        let generation = Some(self.generation);
        let (reply, body) = helper.call(&mut state, generation, &request, &body, limit)?;
        let Reply::Answered { engine_us, outputs } = reply else {
            return Err(helper.nonsense(&mut state, &reply));
        };
        match frames::unpack(&outputs, &body) {
            Ok(outputs) => Ok((outputs, Duration::from_micros(engine_us))),
            Err(error) => Err(helper.failed(&mut state, &error.to_string())),
        }
    }
}

impl Session for HelperSession {
    fn inputs(&self) -> &[TensorInfo] {
        &self.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.outputs
    }

    fn run(&self, inputs: &[Tensor]) -> std::result::Result<Vec<Tensor>, EngineError> {
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
        let unused = self.helper.0.unused.lock();
        unused.unwrap_or_else(PoisonError::into_inner).push((self.generation, self.session));
    }
}
