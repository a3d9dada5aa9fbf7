//! A request to an engine, which may go on after whoever asked has turned to the next engine.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use models::tensor::Tensor;

use super::Loaded;
use crate::engines::{AnySession, SessionError};

/// How many times its measured time an engine may take before it counts as slow, and one that is
/// not the CPU's as hung.
const SLOWER_MAX: u32 = 50;
/// The shortest time after which it does.
const PATIENCE: Duration = Duration::from_secs(2);
/// After how long it counts as hung at the earliest where it may have to compile: the number of
/// examples is new to it.
const PATIENCE_NEW: Duration = Duration::from_mins(1);
/// The same of an engine of the CPU: that a client is in a hurry tells nothing of it.
const PATIENCE_CPU: Duration = Duration::from_mins(1);

pub(super) type Outcome = Result<(Vec<Tensor>, Duration), SessionError>;

/// What is asked, and for how long.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) engine: &'static str,
    /// Whether it is one that others are held to.
    pub(super) trusted: bool,
    pub(super) session: AnySession,
    pub(super) inputs: Arc<[Tensor]>,
    pub(super) examples: usize,
    /// The time that one example was measured to take.
    pub(super) time: Option<Duration>,
    /// Whether it has answered for so many examples.
    pub(super) usual: bool,
}

impl Call {
    /// Runs the model. Who is not the `last` engine leaves half of the time that is `left` to those
    /// after it; a helper that then goes on is not ended before it counts as hung.
    ///
    /// # Errors
    /// How long it was waited for, where it goes on.
    pub(super) fn make(
        &self,
        model: &Arc<Loaded>,
        left: Duration,
        last: bool,
    ) -> Result<Outcome, Duration> {
        let (share, patience) = (left / 2, self.patience());
        // A helper that is at work for others is waited for as long again.
        if last || matches!(self.session, AnySession::Own(_)) || patience.saturating_mul(2) <= share
        {
            return Ok(self.session.run(&self.inputs, patience));
        }
        let wait = self.slow().min(share);
        self.aside(model, wait).ok_or(wait)
    }

    /// Why it took too long, if it did.
    pub(super) fn too_long(&self, took: Duration) -> Option<String> {
        let most = self.slow();
        let late = self.usual && took > most;
        late.then(|| format!("it took {took:?}, {most:?} at most was expected"))
    }

    /// After how long it is slower than it should be.
    fn slow(&self) -> Duration {
        let examples = u32::try_from(self.examples).unwrap_or(u32::MAX);
        let most = |time: Duration| time.saturating_mul(SLOWER_MAX).saturating_mul(examples);
        self.time.map_or(PATIENCE, most).max(PATIENCE)
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

    /// Runs it on a thread of its own; `None` when it has not ended in time.
    fn aside(&self, model: &Arc<Loaded>, wait: Duration) -> Option<Outcome> {
        let place = Arc::new((Mutex::new(Slot::Waiting), Condvar::new()));
        let run = {
            let (place, call, model) = (place.clone(), self.clone(), model.clone());
            move || {
                let outcome = call.session.run(&call.inputs, call.patience());
                let mut slot = place.0.lock().unwrap_or_else(PoisonError::into_inner);
                if matches!(*slot, Slot::Left) {
                    drop(slot);
                    model.late(&call, outcome);
                } else {
                    *slot = Slot::Done(outcome);
                    place.1.notify_one();
                }
            }
        };
        let thread = std::thread::Builder::new().name(format!("call-{}", self.engine));
        if let Err(error) = thread.spawn(run) {
            let reason = format!("no thread for it: {error}");
            return Some(Err(SessionError::Absent(reason)));
        }
        let slot = place.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waiting = |slot: &mut Slot| matches!(slot, Slot::Waiting);
        let waited = place.1.wait_timeout_while(slot, wait, waiting);
        let (mut slot, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *slot, Slot::Left);
        if let Slot::Done(outcome) = before {
            return Some(outcome);
        }
        // Before the thread can see that nobody waits.
        model.goes_on(self.engine);
        None
    }
}

/// Where a thread puts what came of a call.
#[derive(Debug)]
enum Slot {
    Waiting,
    Done(Outcome),
    /// Nobody waits any more.
    Left,
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

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
        Call { engine, trusted, session, inputs: Arc::default(), examples: 4, time, usual }
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
    fn who_is_late_comes_last_until_it_has_answered() {
        let onnx = models::zoo::build("lenet", [1, 8, 8], 4, 1).unwrap();
        let model = Arc::new(Loaded::load(&Cpu::find(&Options::default()), &onnx).unwrap());
        let late = || model.choice(|_| true).refused.iter().any(|it| it.engine == "native");
        assert!(!late());
        let call = call("native", true);
        assert!(call.aside(&model, Duration::from_secs(20)).unwrap().is_ok());
        assert!(!late());
        assert!(call.aside(&model, Duration::from_millis(10)).is_none());
        assert!(late());
        assert_eq!(model.choice(|_| true).ranked, ["native"], "there is no other");
        let begun = Instant::now();
        while late() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
