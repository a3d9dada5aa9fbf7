//! Parity and speed of an engine beside the processor, for people: the table of
//! `dunlin-accel compare ENGINE`.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use models::engine::frames::{self, Header, PREFIX, Reply, Request};
use models::onnx::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
};
use models::train::{Loss, Trainer};
use models::zoo;

use crate::probe::{difference, tolerance, values};
use helper::engine::{Engine, Model, Refusal, View};

/// The networks, for pictures of 3 x 224 x 224.
const FAMILIES: [&str; 5] = ["resnet8", "resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0"];
const SHAPE: [usize; 3] = [3, 224, 224];
const CLASSES: usize = 1000;
/// Longest that one figure is measured.
const MEASURED: Duration = Duration::from_secs(3);
/// Runs of one figure, at most.
const RUNS_MAX: usize = 200;

/// Prints a line for each network and batch: the largest difference from the processor's answer,
/// and median times: of the agent's own engine on the processor, `native`, and of the engine in
/// process and through the pipes of a helper, taken by turns. All have the threads of
/// [`helper::threads`].
///
/// # Errors
/// [`Refusal`] when the engine cannot be used, or an answer is wrong.
pub fn compare(name: &str, mut output: impl Write) -> Result<(), Refusal> {
    let threads = helper::threads()?;
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(Refusal::of)?;
    let engine = crate::start(name)?;
    let about = engine.about();
    let shown = [about.device, about.driver, about.library].map(Option::unwrap_or_default);
    let mut line = |text: String| writeln!(output, "{text}").map_err(Refusal::of);
    line(format!("engine {name}: {}", shown.join(" | ")))?;
    line(format!(
        "native: the agent's own engine on the processor, {threads} threads; as many has an \
         engine there"
    ))?;
    let mut helper = Helper::start(name)?;
    for Small { what, shape, onnx } in small()? {
        let [engine, through] = times(engine.as_ref(), &mut helper, &shape, &onnx)?.times;
        line(format!(
            "{what}, one example of {:?}: {engine:.3} ms in process, {through:.3} ms through the \
             helper, {:.3} ms more",
            &shape[1..],
            through - engine
        ))?;
    }
    line(format!(
        "{:<16} {:>5} {:>11} {:>10} {:>10} {:>10} {:>9}",
        "network", "batch", "difference", "native ms", "engine ms", "helper ms", "speed-up"
    ))?;
    let mut wrong = Vec::new();
    for family in FAMILIES {
        for batch in [1, 16] {
            let row = row(engine.as_ref(), &mut helper, family, batch)?;
            if row.difference > tolerance(name) {
                wrong.push(format!("{family}, batch {batch}"));
            }
            line(format!(
                "{family:<16} {batch:>5} {:>11.1e} {:>10.2} {:>10.2} {:>10.2} {:>8.1}x",
                row.difference,
                row.native,
                row.engine,
                row.helper,
                row.native / row.engine
            ))?;
        }
    }
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(Refusal::of(format!("answers differ by more than {:.0e}: {wrong:?}", tolerance(name))))
    }
}

/// Times in milliseconds.
struct Row {
    difference: f32,
    native: f64,
    engine: f64,
    helper: f64,
}

fn row(
    engine: &dyn Engine,
    helper: &mut Helper,
    family: &str,
    batch: usize,
) -> Result<Row, Refusal> {
    let onnx = family_of(family, SHAPE)?;
    let mut native = Trainer::for_evaluation(&onnx, Loss::default()).map_err(Refusal::of)?;
    let [c, h, w] = SHAPE;
    let timed = times(engine, helper, &[batch, c, h, w], &native.to_folded_onnx())?;
    let mut expected = native.logits(&timed.examples).map_err(Refusal::of)?;
    let mut natives = Vec::new();
    let begin = Instant::now();
    while natives.is_empty() || natives.len() < RUNS_MAX && begin.elapsed() < MEASURED {
        let start = Instant::now();
        expected = native.logits(&timed.examples).map_err(Refusal::of)?;
        natives.push(start.elapsed());
    }
    let [engine, helper] = timed.times;
    let difference = difference(&timed.answered, &expected);
    Ok(Row { difference, native: median(natives), engine, helper })
}

/// What was run, and median times in process and through the helper, milliseconds.
struct Timed {
    examples: Vec<f32>,
    answered: Vec<f32>,
    times: [f64; 2],
}

fn times(
    engine: &dyn Engine,
    helper: &mut Helper,
    shape: &[usize],
    onnx: &[u8],
) -> Result<Timed, Refusal> {
    let mut model = engine.load(onnx)?;
    helper.load(onnx)?;
    let examples = values(shape.iter().product());
    let mut answered = Vec::new();
    let mut once = |model: &mut dyn Model| {
        answered.clear();
        let view = View { datatype: "FP32", shape, bytes: bytemuck::cast_slice(&examples) };
        helper::batch::run(model, &[view], &mut answered)
    };
    // Once each before the clock counts: algorithms are chosen, shaders compiled.
    once(model.as_mut())?;
    helper.run(shape, &examples)?;
    let mut times: [Vec<Duration>; 2] = [Vec::new(), Vec::new()];
    let begin = Instant::now();
    while times[0].is_empty() || times[0].len() < RUNS_MAX && begin.elapsed() < MEASURED {
        let start = Instant::now();
        once(model.as_mut())?;
        times[0].push(start.elapsed());
        let start = Instant::now();
        helper.run(shape, &examples)?;
        times[1].push(start.elapsed());
    }
    let answered = bytemuck::pod_collect_to_vec(&answered);
    Ok(Timed { examples, answered, times: times.map(median) })
}

fn family_of(family: &str, shape: [usize; 3]) -> Result<Vec<u8>, Refusal> {
    zoo::build(family, shape, CLASSES, 1)
        .ok_or_else(|| Refusal::of(format!("there is no family {family}")))
}

/// A model whose own time is short: what remains is the helper's.
struct Small {
    what: &'static str,
    /// Of a batch.
    shape: Vec<usize>,
    onnx: Vec<u8>,
}

fn small() -> Result<[Small; 2], Refusal> {
    let resnet8 = family_of("resnet8", [3, 32, 32])?;
    let resnet8 = Trainer::for_evaluation(&resnet8, Loss::default()).map_err(Refusal::of)?;
    let node = |operator: &str, inputs: &[&str], output: &str| {
        NodeProto::new(operator, operator, inputs, &[output])
    };
    let graph = GraphProto {
        name: "means".to_owned(),
        node: vec![
            node("GlobalAveragePool", &["x"], "means"),
            node("Flatten", &["means"], "flat"),
            node("MatMul", &["flat", "weights"], "y"),
        ],
        initializer: vec![TensorProto::from_f32("weights", &[3, 2], &[0.5; 6])],
        input: vec![ValueInfoProto::batched("x", "n", &SHAPE)],
        output: vec![ValueInfoProto::batched("y", "n", &[2])],
        ..GraphProto::default()
    };
    let version = Some(13);
    let means = ModelProto {
        ir_version: Some(7),
        opset_import: vec![OperatorSetIdProto { version, ..OperatorSetIdProto::default() }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    Ok([
        Small { what: "resnet8", shape: vec![1, 3, 32, 32], onnx: resnet8.to_folded_onnx() },
        Small { what: "means of channels", shape: vec![1, 3, 224, 224], onnx: means.to_bytes() },
    ])
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times.get(times.len() / 2).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
}

/// This program in another process, as an agent has it.
struct Helper {
    child: Child,
    requests: ChildStdin,
    replies: ChildStdout,
    body: Vec<u8>,
}

impl Helper {
    fn start(engine: &str) -> Result<Self, Refusal> {
        let program = std::env::current_exe().map_err(Refusal::of)?;
        let mut child = Command::new(program)
            .args(["serve", engine])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(Refusal::of)?;
        let (Some(requests), Some(replies)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Refusal::of("the helper has no pipes".to_owned()));
        };
        helper::streams::widen(&requests);
        let mut helper = Self { child, requests, replies, body: Vec::new() };
        helper.reply()?;
        Ok(helper)
    }

    fn reply(&mut self) -> Result<Reply, Refusal> {
        let mut prefix = [0; PREFIX];
        self.replies.read_exact(&mut prefix).map_err(Refusal::of)?;
        let lengths = frames::lengths(prefix).map_err(Refusal::of)?;
        let mut header = vec![0; lengths.header];
        self.replies.read_exact(&mut header).map_err(Refusal::of)?;
        self.body.resize(lengths.body, 0);
        self.replies.read_exact(&mut self.body).map_err(Refusal::of)?;
        match frames::decode(&header).map_err(Refusal::of)? {
            Reply::Refused { reason, .. } => Err(Refusal::of(reason)),
            reply @ (Reply::Hello { .. }
            | Reply::Loaded { .. }
            | Reply::Answered { .. }
            | Reply::Unloaded) => Ok(reply),
        }
    }

    fn ask(&mut self, request: &Request, body: &[u8]) -> Result<Reply, Refusal> {
        let frame = frames::encode(request, body.len()).map_err(Refusal::of)?;
        self.requests.write_all(&frame).map_err(Refusal::of)?;
        self.requests.write_all(body).map_err(Refusal::of)?;
        self.reply()
    }

    fn load(&mut self, onnx: &[u8]) -> Result<(), Refusal> {
        self.ask(&Request::Load { session: 1 }, onnx).map(|_| ())
    }

    fn run(&mut self, shape: &[usize], examples: &[f32]) -> Result<(), Refusal> {
        let header = Header { datatype: "FP32".to_owned(), shape: shape.to_vec() };
        let request = Request::Run { session: 1, inputs: vec![header] };
        self.ask(&request, bytemuck::cast_slice(examples)).map(|_| ())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
