//! An answer of an engine in a helper: the engine's own time, and what a helper adds to it. `tract`
//! is called in this process too, in turns with its helper, and what the helper takes longer is told
//! as well.
//!
//! Both wait for their turn asleep, as engines do for requests: a processor that slept computes more
//! slowly for a while than one that was kept awake. Both have their model anew in each turn: where its
//! memory happens to lie makes a session some percent quicker or slower than another in the same
//! process, for as long as it lasts.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use agent::engines::HelperSession;
use models::engine::{Engine as _, Session, tract::Tract};
use models::tensor::Tensor;
use tests::helper::Started;

use super::{TURN, answers, median};
use crate::figures::{verdict, verdict_within};

/// What a helper may add, in milliseconds.
const ADDED_BAR: f64 = 0.3;
/// What the engine may take, in shares of what ONNX Runtime takes in Python.
const ENGINE_BAR: f64 = 1.05;
/// Answers of a turn, at least.
const ANSWERS_MIN: u32 = 5;
/// Answers of a new session that do not count: until it knows how long they usually take, and when to
/// be awake.
const WARM_UP: u32 = 4;

/// An engine with a model on a thread of its own.
struct Here {
    inputs: mpsc::Sender<Tensor>,
    times: mpsc::Receiver<Duration>,
}

impl Here {
    fn start(session: Box<dyn Session>) -> Self {
        let (inputs, inbox) = mpsc::channel::<Tensor>();
        let (tell, times) = mpsc::channel();
        std::thread::spawn(move || {
            for input in inbox {
                let began = Instant::now();
                session.run(&[input]).unwrap();
                tell.send(began.elapsed()).unwrap();
            }
        });
        Self { inputs, times }
    }

    /// What a call takes, without waking the thread.
    fn time(&self, input: &Tensor) -> Duration {
        self.inputs.send(input.clone()).unwrap();
        self.times.recv().unwrap()
    }
}

/// An engine in a helper with a model.
pub(super) struct Helped {
    session: HelperSession,
    /// The same engine in this process, where it is one that can be.
    here: Option<Here>,
    started: Started,
    answers: u32,
    /// Of each turn: the engine's own time in the helper.
    engine_ms: Vec<f64>,
    /// What the helper takes beside that.
    added_ms: Vec<f64>,
    /// And beside a call in this process, if there is one.
    longer_ms: Vec<f64>,
}

impl Helped {
    pub(super) fn new(started: Started, onnx: &[u8], input: &Tensor) -> Self {
        let session = started.helper.session(onnx).unwrap_or_else(|error| panic!("{error}"));
        let is_tract = started.helper.name() == Tract.name();
        let here = is_tract.then(|| Here::start(Tract.load(onnx).unwrap()));
        let mut helped = Self {
            session,
            here,
            started,
            answers: ANSWERS_MIN,
            engine_ms: Vec::new(),
            added_ms: Vec::new(),
            longer_ms: Vec::new(),
        };
        helped.answer_all(input);
        // Of long answers a few too: one alone finds nothing in the processor's caches.
        helped.answers = answers(helped.engine_ms[0]).max(ANSWERS_MIN);
        helped.forget_turn();
        helped
    }

    /// Measures a turn: medians of its answers.
    pub(super) fn turn(&mut self, onnx: &[u8], input: &Tensor) {
        if self.here.is_some() {
            self.session =
                self.started.helper.session(onnx).unwrap_or_else(|error| panic!("{error}"));
            self.here = Some(Here::start(Tract.load(onnx).unwrap()));
            self.warm_up(input);
        }
        self.answer_all(input);
    }

    fn warm_up(&mut self, input: &Tensor) {
        let answers = std::mem::replace(&mut self.answers, WARM_UP);
        self.answer_all(input);
        self.forget_turn();
        self.answers = answers;
    }

    fn forget_turn(&mut self) {
        for figures in [&mut self.engine_ms, &mut self.added_ms, &mut self.longer_ms] {
            figures.pop();
        }
    }

    fn answer_all(&mut self, input: &Tensor) {
        let (mut engine_ms, mut added_ms, mut longer_ms) = (Vec::new(), Vec::new(), Vec::new());
        let input = std::slice::from_ref(input);
        for _ in 0..self.answers {
            let began = Instant::now();
            let answered = self.session.run_within(input, TURN * 1000);
            let (_, engine) = answered.unwrap_or_else(|error| panic!("{error}"));
            let whole = began.elapsed();
            engine_ms.push(ms(engine));
            added_ms.push(ms(whole) - ms(engine));
            if let Some(here) = &self.here {
                longer_ms.push(ms(whole) - ms(here.time(&input[0])));
            }
        }
        self.engine_ms.push(median(engine_ms));
        self.added_ms.push(median(added_ms));
        if self.here.is_some() {
            self.longer_ms.push(median(longer_ms));
        }
    }

    /// The figures of a model, beside ONNX Runtime's time in Python if they are to be.
    pub(super) fn report(self, model: &str, name: &str, peer_ms: Option<f64>) -> String {
        let (engine_ms, added_ms) = (median(self.engine_ms), median(self.added_ms));
        let held = |figure: &str, found: f64, bar: f64| {
            let what = format!("{model}, {name} in its helper, {figure}");
            verdict(&what, &format!("{found:.3}"), &bar.to_string(), found <= bar)
        };
        let engine = peer_ms.map_or_else(String::new, |peer_ms| {
            let ratio = engine_ms / peer_ms;
            let bar = held("share of ONNX Runtime's time", ratio, ENGINE_BAR);
            format!(", {ratio:.2} of ONNX Runtime's in Python, bar {ENGINE_BAR} {bar}")
        });
        let bar = held("ms that it adds", added_ms, ADDED_BAR);
        let here = self.here.map_or_else(String::new, |_| longer(model, name, self.longer_ms));
        format!(
            "    {name} in its helper: {engine_ms:.3} ms{engine}; adds {added_ms:.3} ms, bar \
             {ADDED_BAR} {bar}{here}"
        )
    }
}

/// What a helper takes longer than a call in this process, and how well that is known.
fn longer(model: &str, name: &str, turns: Vec<f64>) -> String {
    let error = standard_error(&turns);
    let longer_ms = median(turns);
    let what = format!("{model}, {name} in its helper, ms longer than here");
    let found = format!("{longer_ms:.3} +- {error:.3}");
    let bar = verdict_within(&what, &found, &ADDED_BAR.to_string(), longer_ms - ADDED_BAR, error);
    format!("; {found} longer than a call in this process, bar {ADDED_BAR} {bar}")
}

/// Of the median of such values, if they come as a bell curve but for a few: 1.25 times that of their
/// mean (Kendall and Stuart, The Advanced Theory of Statistics, 1: the variance of a median is that of a
/// mean times pi/2), the deviation being 1.48 times the median one.
#[expect(clippy::cast_precision_loss, reason = "turns are few")]
fn standard_error(values: &[f64]) -> f64 {
    let middle = median(values.to_vec());
    let deviations = values.iter().map(|value| (value - middle).abs()).collect();
    1.25 * 1.48 * median(deviations) / (values.len() as f64).sqrt()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
