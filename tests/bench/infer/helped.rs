//! An answer of an engine in a helper: the engine's own time, and what a helper adds. `tract` is
//! called in this process too, in turns with its helper, and what the helper takes longer is what
//! it adds; of ONNX Runtime, which is in no process of ours, it is what the call takes beside the
//! engine's own time in the helper.
//!
//! Both wait for their turn asleep, as engines do for requests: a processor that slept computes more
//! slowly for a while than one that was kept awake.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use agent::engines::HelperSession;
use models::engine::{Engine as _, Session, tract::Tract};
use models::tensor::Tensor;
use tests::helper::Started;

use super::{TURN, answers, median};
use crate::figures::verdict;

/// What a helper may add, in milliseconds.
const ADDED_BAR: f64 = 0.3;
/// What the engine may take, in shares of what ONNX Runtime takes in Python.
const ENGINE_BAR: f64 = 1.05;

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
    _started: Started,
    answers: u32,
    engine_ms: Vec<f64>,
    added_ms: Vec<f64>,
}

impl Helped {
    pub(super) fn new(started: Started, onnx: &[u8], input: &Tensor) -> Self {
        let session = started.helper.session(onnx).unwrap_or_else(|error| panic!("{error}"));
        let is_tract = started.helper.name() == Tract.name();
        let here = is_tract.then(|| Here::start(Tract.load(onnx).unwrap()));
        let mut helped = Self {
            session,
            here,
            _started: started,
            answers: 2,
            engine_ms: Vec::new(),
            added_ms: Vec::new(),
        };
        helped.turn(input);
        helped.answers = answers(helped.engine_ms[0]);
        (helped.engine_ms, helped.added_ms) = (Vec::new(), Vec::new());
        helped
    }

    /// Measures a turn: medians of its answers.
    pub(super) fn turn(&mut self, input: &Tensor) {
        let (mut engine_ms, mut added_ms) = (Vec::new(), Vec::new());
        let input = std::slice::from_ref(input);
        for _ in 0..self.answers {
            let began = Instant::now();
            let answered = self.session.run_within(input, TURN * 1000);
            let (_, engine) = answered.unwrap_or_else(|error| panic!("{error}"));
            let whole = began.elapsed();
            let without = self.here.as_ref().map_or(engine, |here| here.time(&input[0]));
            let ms = |time: Duration| time.as_secs_f64() * 1e3;
            engine_ms.push(ms(engine));
            added_ms.push(ms(whole) - ms(without));
        }
        self.engine_ms.push(median(engine_ms));
        self.added_ms.push(median(added_ms));
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
        let beside = if self.here.is_some() {
            "beside a call in this process"
        } else {
            "beside its own time there"
        };
        format!(
            "    {name} in its helper: {engine_ms:.3} ms{engine}; adds {added_ms:.3} ms {beside}, \
             bar {ADDED_BAR} {bar}"
        )
    }
}
