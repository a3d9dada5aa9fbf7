//! An answer of our engines beside ONNX Runtime's, one example on one thread.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use clap::Args;
use models::engine::{Engine, Session, native::Native, tract::Tract};
use models::tensor::Tensor;
use models::train::{Sgd, Trainer};
use rustix::time::{ClockId, clock_gettime};
use serde::Deserialize;
use tests::helper::Started;
use tests::process::{static_agent, static_agent_with_malloc};

use crate::figures::{heading, verdict};

use self::helped::Helped;
use self::shipped::Shipped;

mod helped;
mod shipped;

/// What is measured of an answer.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// infer: built-in families
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "resnet8,resnet18,resnet50,mobilenet_v2,efficientnet_b0"
    )]
    families: Vec<String>,
    /// infer: sides of the picture of 3 channels; of 224 without resnet8
    #[arg(long, value_name = "PIXELS", value_delimiter = ',', default_value = "32,224")]
    sides: Vec<usize>,
    /// infer: turns of everyone
    #[arg(long, value_name = "N", default_value_t = 9)]
    turns: usize,
}

/// What an answer may take, in shares of what ONNX Runtime takes.
const BAR: f64 = 1.5;

/// Processor time of a turn: as many answers as fit in it, one at least.
const TURN: Duration = Duration::from_millis(60);

const CLASSES: usize = 10;

pub(crate) async fn measure(options: &Options) {
    heading(&format!(
        "an answer, one example, 1 thread: processor time, ms; medians of {} turns of everyone",
        options.turns
    ));
    let mut shipped = Vec::new();
    match static_agent() {
        Some(program) => shipped.push(Shipped::start(&program).await),
        None => println!("  the static build is not there: scripts/dist.sh"),
    }
    if let Some(program) = static_agent_with_malloc() {
        println!("  the last columns: a static build with the C library's allocator");
        shipped.push(Shipped::start(&program).await);
    }
    println!(
        "  {:<16}{:>5}{:>10}{:>10}{:>14}{:>8}  {:<12}{:>10}{:>10}{:>16}{:>10}{:>8}  BAR",
        "NETWORK",
        "SIDE",
        "NATIVE",
        "TRACT",
        "ONNX RUNTIME",
        "RATIO",
        "BAR",
        "DIFFERS",
        "TRACT",
        "STATIC: NATIVE",
        "TRACT",
        "RATIO"
    );
    for &side in &options.sides {
        for family in &options.families {
            if side < 64 || family != "resnet8" {
                measure_one(family, side, options.turns, &shipped).await;
            }
        }
    }
}

async fn measure_one(family: &str, side: usize, turns: usize, shipped: &[Shipped]) {
    let folder = tempfile::tempdir().unwrap();
    let (onnx, input) = network(family, side);
    let peer = Peer::start(folder.path(), &onnx, &input);
    let tensor = Tensor::f32(&[1, 3, side, side], input).unwrap();
    let native = Ours::new(&Native, &onnx, &tensor);
    let tract = Ours::new(&Tract, &onnx, &tensor);
    let tract_helper = Started::new("dunlin-tract", "tract", "", 1);
    let mut tract_helper = Helped::new(tract_helper, &onnx, &tensor);
    let onnx_runtime = Started::onnx_runtime(1);
    let mut onnx_runtime = onnx_runtime.map(|started| Helped::new(started, &onnx, &tensor));
    let mut peer = peer;
    let mut asked = Vec::new();
    for shipped in shipped {
        asked.push(shipped.model(&format!("{family}-{side}"), &onnx, &tensor).await);
    }
    let mut times: [Vec<f64>; 4] = Default::default();
    for _ in 0..turns {
        times[0].push(native.turn(&tensor));
        times[1].push(tract.turn(&tensor));
        if let Some(peer) = &mut peer {
            let turn = peer.turn();
            times[2].push(turn.processor_ms);
            times[3].push(turn.wall_ms);
        }
        tract_helper.turn(&onnx, &tensor);
        if let Some(helper) = &mut onnx_runtime {
            helper.turn(&onnx, &tensor);
        }
        for asked in &mut asked {
            asked.turn().await;
        }
    }
    let [native_ms, tract_ms, peer_ms, peer_wall_ms] = times.map(median);
    print!("  {family:<16}{side:>5}{native_ms:>10.3}{tract_ms:>10.3}");
    let Some(peer) = peer else {
        println!("  ONNX Runtime is missing: scripts/setup.sh bench");
        return;
    };
    let what = format!("{family}, {side}");
    let (ratio, bar) = against_bar(&what, native_ms.min(tract_ms), peer_ms);
    let [ours, theirs] = [&native, &tract].map(|ours| difference(&ours.output, &peer.output));
    print!("{peer_ms:>14.3}{ratio:>8.2}  {bar:<12}{ours:>10.1e}{theirs:>10.1e}");
    for asked in asked {
        let [native_ms, tract_ms] = asked.medians();
        let static_agent = format!("{what}, a static agent");
        let (ratio, bar) = against_bar(&static_agent, native_ms.min(tract_ms), peer_ms);
        print!("{native_ms:>16.3}{tract_ms:>10.3}{ratio:>8.2}  {bar}");
    }
    println!();
    println!("{}", tract_helper.report(&what, "tract", None));
    if let Some(helper) = onnx_runtime {
        println!("{}", helper.report(&what, "ort-cpu", Some(peer_wall_ms)));
    }
}

/// The share of ONNX Runtime's time, and whether it is within the bar.
fn against_bar(what: &str, ms: f64, peer_ms: f64) -> (f64, String) {
    let ratio = ms / peer_ms;
    let said = verdict(what, &format!("{ratio:.2}"), &BAR.to_string(), ratio <= BAR);
    (ratio, format!("{BAR} {said}"))
}

/// A family for inference, and an example.
fn network(family: &str, side: usize) -> (Vec<u8>, Vec<f32>) {
    let onnx = models::zoo::build(family, [3, side, side], CLASSES, 1);
    let onnx = onnx.unwrap_or_else(|| panic!("{family} is no built-in family"));
    let sgd = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    let folded = Trainer::new(&onnx, sgd).unwrap().to_folded_onnx();
    let pixel = |at: usize| f32::from(u16::try_from(at * 7919 % 1009).unwrap()) / 504.0 - 1.0;
    (folded, (0..3 * side * side).map(pixel).collect())
}

/// One of our engines with a model.
struct Ours {
    session: Box<dyn Session>,
    /// Answers of a turn.
    answers: u32,
    output: Vec<f32>,
}

impl Ours {
    fn new(engine: &dyn Engine, onnx: &[u8], input: &Tensor) -> Self {
        let session = engine.load(onnx).unwrap();
        let mut ours = Self { session, answers: 1, output: Vec::new() };
        ours.output = ours.answer(input);
        let once = ours.turn(input);
        ours.answers = answers(once);
        ours
    }

    fn answer(&self, input: &Tensor) -> Vec<f32> {
        let outputs = self.session.run(std::slice::from_ref(input)).unwrap();
        outputs[0].as_f32().unwrap().to_vec()
    }

    /// Milliseconds of an answer.
    fn turn(&self, input: &Tensor) -> f64 {
        let began = processor_ms();
        for _ in 0..self.answers {
            self.answer(input);
        }
        (processor_ms() - began) / f64::from(self.answers)
    }
}

/// How many answers of so many milliseconds make a turn.
fn answers(once_ms: f64) -> u32 {
    let wanted = (TURN.as_secs_f64() * 1e3 / once_ms.max(1e-3)).clamp(1.0, 1e4);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 1 and 10,000"
    )]
    let answers = wanted as u32;
    answers
}

/// Processor time of this thread.
#[expect(clippy::cast_precision_loss, reason = "times are short")]
fn processor_ms() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The largest difference, relative to the largest number that is expected.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0_f32, f32::max) / largest
}

/// ONNX Runtime with a model, in a process of its own.
struct Peer {
    child: Child,
    asked: ChildStdin,
    answered: BufReader<ChildStdout>,
    answers: u32,
    output: Vec<f32>,
}

#[derive(Deserialize)]
struct Turn {
    processor_ms: f64,
    wall_ms: f64,
    output: Vec<f32>,
}

impl Peer {
    /// `None` where it is not installed.
    fn start(folder: &Path, onnx: &[u8], input: &[f32]) -> Option<Self> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
        let python = root.join(".tools/onnx/bin/python");
        if !python.exists() {
            return None;
        }
        let (model, example) = (folder.join("model.onnx"), folder.join("example"));
        std::fs::write(&model, onnx).unwrap();
        let bytes: Vec<u8> = input.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(&example, bytes).unwrap();
        let mut child = Command::new(python)
            .arg(root.join("tests/tools/onnxruntime_answer.py"))
            .args([&model, &example])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let asked = child.stdin.take().unwrap();
        let answered = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Self { child, asked, answered, answers: 1, output: Vec::new() };
        peer.output = peer.turn().output;
        peer.answers = answers(peer.turn().processor_ms);
        Some(peer)
    }

    fn turn(&mut self) -> Turn {
        writeln!(self.asked, "{}", self.answers).unwrap();
        let mut line = String::new();
        self.answered.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("ONNX Runtime: {error}: {line}"))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
