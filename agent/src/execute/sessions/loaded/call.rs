//! A request to an engine, which may go on after whoever asked has turned to the next engine.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use models::tensor::Tensor;

use super::Loaded;
use crate::engines::{AnySession, Ran, SessionError};
use crate::execute::compute::Seat;

/// How many times its measured time an engine may take before it counts as slow, and one that is
/// not the CPU's as hung.
const SLOWER_MAX: u32 = 50;
/// The shortest time after which it does.
const PATIENCE: Duration = Duration::from_secs(2);
/// The same after which a helper is not taken to be computing any more.
const COMPUTES_MAX: u32 = 8;
/// The shortest time after which it is not.
const COMPUTES: Duration = Duration::from_millis(500);
/// After how long it counts as hung at the earliest where it may have to compile: the number of
/// examples is new to it.
const PATIENCE_NEW: Duration = Duration::from_mins(1);
/// The same of an engine of the CPU: that a client is in a hurry tells nothing of it.
const PATIENCE_CPU: Duration = Duration::from_mins(1);

/// Engines that do not compute on the processor.
const GPU: [&str; 2] = ["cuda", "webgpu"];

pub(super) type Outcome = Result<Ran, SessionError>;

/// Why a call has no outcome, which tells nothing of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unanswered {
    /// The request's time was over before it was asked.
    #[error("no time was left for it")]
    NoTime,
    /// The processor's places were taken for so long.
    #[error("others were at work on the processor for {0:.1?}")]
    NoSeat(Duration),
    /// It goes on, and nobody waits any more.
    #[error("no answer within {0:.1?}")]
    Late(Duration),
}

/// What is asked, and for how long.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) engine: &'static str,
    /// Whether it is one that others are held to.
    pub(super) trusted: bool,
    pub(super) session: AnySession,
    pub(super) inputs: Arc<[Tensor]>,
    pub(super) examples: usize,
    /// Examples that it is given at once, at most.
    pub(super) most: usize,
    /// The time that one example was measured to take.
    pub(super) time: Option<Duration>,
    /// Whether it has answered for so many examples.
    pub(super) usual: bool,
}

impl Call {
    /// Runs the model. Who is not the `last` engine leaves half of the time that is `left` to those
    /// after it; a helper that then goes on is not ended before it counts as hung. The processor's
    /// place is for those who compute on it: not for GPUs, nor for a helper that is much slower than
    /// it was, which rather waits for something.
    ///
    /// # Errors
    /// Why there is no outcome so far.
    pub(super) fn make(
        &self,
        model: &Arc<Loaded>,
        left: Duration,
        last: bool,
        seat: &mut Seat,
    ) -> Result<Outcome, Unanswered> {
        let patience = self.patience();
        let share = if last { left } else { left / 2 };
        if left.is_zero() {
            return Err(Unanswered::NoTime);
        }
        if GPU.contains(&self.engine) {
            seat.leave();
        } else if !seat.take(left) {
            return Err(Unanswered::NoSeat(left));
        }
        // A helper that is at work for others is waited for as long again.
        if matches!(self.session, AnySession::Own(_)) || patience.saturating_mul(2) <= share {
            return Ok(self.run(model, patience));
        }
        let wait = if last { share } else { self.slow().min(share) };
        let computes = self.at_most(COMPUTES_MAX, COMPUTES).min(wait);
        let aside = self.aside(model);
        if let Some(outcome) = aside.wait(computes) {
            return Ok(outcome);
        }
        seat.leave();
        let outcome = aside.wait(wait.saturating_sub(computes));
        outcome.or_else(|| aside.leave(model, self.engine)).ok_or(Unanswered::Late(wait))
    }

    /// All examples within `limit`, as many at once as it may be given; the time is the engine's
    /// own.
    fn run(&self, model: &Loaded, limit: Duration) -> Outcome {
        if self.at_once() == self.examples {
            return self.session.run(&self.inputs, limit);
        }
        let (began, mut took, mut whole) = (Instant::now(), Duration::ZERO, Duration::ZERO);
        let piece = |piece: &[Tensor]| -> Result<Vec<Tensor>, SessionError> {
            let left = limit.saturating_sub(began.elapsed());
            let ran = self.session.run(piece, left)?;
            took += ran.took;
            whole += ran.whole;
            Ok(ran.outputs)
        };
        let outputs = model.declared.run(self.engine, self.most, &self.inputs, piece)?;
        Ok(Ran { outputs, took, whole })
    }

    /// The number of examples that it is given at once.
    pub(super) fn at_once(&self) -> usize {
        self.examples.min(self.most)
    }

    /// Why it took too long, if it did.
    pub(super) fn too_long(&self, took: Duration) -> Option<String> {
        let most = self.slow();
        let late = self.usual && took > most;
        late.then(|| format!("it took {took:?}, {most:?} at most was expected"))
    }

    /// After how long it is slower than it should be.
    fn slow(&self) -> Duration {
        self.at_most(SLOWER_MAX, PATIENCE)
    }

    /// So many times its measured time, and at least so long.
    fn at_most(&self, times: u32, least: Duration) -> Duration {
        let examples = u32::try_from(self.examples).unwrap_or(u32::MAX);
        let most = |time: Duration| time.saturating_mul(times).saturating_mul(examples);
        self.time.map_or(least, most).max(least)
    }

    /// After how long it counts as hung.
    fn patience(&self) -> Duration {
        let least = match (self.trusted, self.usual) {
            (true, _) => PATIENCE_CPU,
            (false, true) => Duration::ZERO,
            (false, false) => PATIENCE_NEW,
        };
        self.slow().max(least)
    }

    /// Runs it on a thread of its own.
    fn aside(&self, model: &Arc<Loaded>) -> Aside {
        let aside = Aside(Arc::new((Mutex::new(Slot::Waiting), Condvar::new())));
        let (own, call, model) = (Aside(aside.0.clone()), self.clone(), model.clone());
        let run = move || {
            let outcome = call.run(&model, call.patience());
            if let Some(outcome) = own.done(outcome) {
                model.late(&call, outcome);
            }
        };
        let thread = std::thread::Builder::new().name(format!("call-{}", self.engine));
        if let Err(error) = thread.spawn(run) {
            let reason = format!("no thread for it: {error}");
            aside.done(Err(SessionError::Absent(reason)));
        }
        aside
    }
}

/// Where a thread puts what came of a call.
#[derive(Debug)]
struct Aside(Arc<(Mutex<Slot>, Condvar)>);

#[derive(Debug)]
enum Slot {
    Waiting,
    Done(Outcome),
    /// Nobody waits any more.
    Left,
}

impl Aside {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an outcome there; gives it back when nobody waits any more.
    fn done(&self, outcome: Outcome) -> Option<Outcome> {
        let mut slot = self.slot();
        if matches!(*slot, Slot::Left) {
            return Some(outcome);
        }
        *slot = Slot::Done(outcome);
        self.0.1.notify_one();
        None
    }

    /// The outcome, if it is there in time.
    fn wait(&self, time: Duration) -> Option<Outcome> {
        let waiting = |slot: &mut Slot| matches!(slot, Slot::Waiting);
        let waited = self.0.1.wait_timeout_while(self.slot(), time, waiting);
        let (mut slot, _) = waited.unwrap_or_else(PoisonError::into_inner);
        take(&mut slot)
    }

    /// Waits no more: the outcome if it came just now, otherwise the call is noted to go on.
    fn leave(&self, model: &Loaded, engine: &str) -> Option<Outcome> {
        let mut slot = self.slot();
        let done = take(&mut slot);
        if done.is_none() {
            *slot = Slot::Left;
            // Before the thread can see that nobody waits.
            model.goes_on(engine);
        }
        done
    }
}

fn take(slot: &mut Slot) -> Option<Outcome> {
    match std::mem::replace(slot, Slot::Waiting) {
        Slot::Done(outcome) => Some(outcome),
        Slot::Waiting => None,
        Slot::Left => {
            *slot = Slot::Left;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use models::artifact::TensorInfo;
    use models::engine::{EngineError, Session};

    use super::*;
    use crate::engines::{Cpu, Options};

    /// Takes so long, and answers nothing.
    #[derive(Debug)]
    struct Slow(Duration);

    impl Session for Slow {
        fn inputs(&self) -> &[TensorInfo] {
            &[]
        }

        fn outputs(&self) -> &[TensorInfo] {
            &[]
        }

        fn run(&self, _inputs: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
            std::thread::sleep(self.0);
            Ok(Vec::new())
        }
    }

    fn call(engine: &'static str, usual: bool) -> Call {
        let session = AnySession::Own(Arc::new(Slow(Duration::from_millis(300))));
        let (time, trusted) = (Some(Duration::from_millis(1)), engine != "webgpu");
        let most = usize::MAX;
        Call { engine, trusted, session, inputs: Arc::default(), examples: 4, most, time, usual }
    }

    #[test]
    fn who_may_have_to_compile_does_not_count_as_hung() {
        assert_eq!(call("webgpu", true).patience(), PATIENCE);
        assert_eq!(call("webgpu", false).patience(), PATIENCE_NEW);
        assert_eq!(call("tract", true).patience(), PATIENCE_CPU);
        let large = Call { time: Some(Duration::from_secs(1)), ..call("webgpu", false) };
        assert_eq!(large.patience(), Duration::from_secs(200));
        assert!(call("webgpu", true).too_long(Duration::from_secs(3)).is_some());
        assert_eq!(call("webgpu", false).too_long(Duration::from_secs(3)), None, "it compiled");
    }

    #[test]
    fn who_was_not_asked_is_not_said_to_be_late() {
        assert_eq!(Unanswered::NoTime.to_string(), "no time was left for it");
        let late = Unanswered::Late(Duration::from_micros(7_999_870));
        assert_eq!(late.to_string(), "no answer within 8.0s");
    }

    #[test]
    fn who_is_late_comes_last_until_it_has_answered() {
        let onnx = models::zoo::build("lenet", [1, 8, 8], 4, 1).unwrap();
        let model = Arc::new(Loaded::load(&Cpu::find(&Options::default()), &onnx).unwrap());
        let late = || model.choice(1, |_| true).refused.iter().any(|it| it.engine == "native");
        assert!(!late());
        let call = call("native", true);
        assert!(call.aside(&model).wait(Duration::from_secs(20)).unwrap().is_ok());
        assert!(!late());
        let aside = call.aside(&model);
        assert!(aside.wait(Duration::from_millis(10)).is_none());
        assert!(aside.leave(&model, "native").is_none());
        assert!(late());
        assert_eq!(model.choice(1, |_| true).ranked, ["native"], "there is no other");
        let begun = Instant::now();
        while late() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
