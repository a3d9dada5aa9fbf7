//! A training step of the agent beside PyTorch's: time, memory, and the share of the machine's
//! peak that is reached.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde::Deserialize;
use tests::process::{program, static_agent, static_agent_with_malloc};

use crate::figures::{heading, verdict};
use crate::pytorch::{PyTorch, json_lines};

/// What is measured of a training step.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// train: built-in families; those with a bar when absent
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    networks: Vec<String>,
    /// train: threads that compute
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// train: steps of a run, after two that are not measured; by the network's size when absent
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// train: runs of each program, in turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
}

/// What a step may take, in shares of what PyTorch takes.
struct Bars {
    family: &'static str,
    time: f64,
    memory: f64,
}

const NETWORKS: [Bars; 7] = [
    Bars { family: "cnn", time: 1.0, memory: 0.1 },
    Bars { family: "resnet8", time: 1.0, memory: 0.1 },
    Bars { family: "resnet20", time: 1.1, memory: 0.4 },
    Bars { family: "resnet18", time: 1.1, memory: 0.4 },
    Bars { family: "resnet50", time: 1.2, memory: 0.5 },
    Bars { family: "mobilenet_v2", time: 1.2, memory: 0.5 },
    Bars { family: "efficientnet_b0", time: 1.2, memory: 0.5 },
];

const BATCH: u16 = 32;
const SHAPE: [usize; 3] = [3, 32, 32];
const CLASSES: usize = 10;
/// Multiplications with an addition, forward, that a run has without `--steps`.
const WORK: u64 = 150_000_000_000;
/// Wall time that is so many times processor time shows that others had the processor.
const KEPT_WAITING: f64 = 1.1;

/// One run of a program, or the median of several.
#[derive(Debug, Clone, Deserialize)]
struct Run {
    step_ms: f64,
    processor_ms: f64,
    peak_memory: f64,
    parameters: u64,
    multiply_adds: u64,
    /// By the agent only.
    #[serde(default)]
    gflops: f64,
    /// Of a product of large matrices, by the agent only.
    #[serde(default)]
    gemm_gflops: f64,
    /// Before there was a network, by PyTorch only.
    #[serde(default)]
    memory_before: f64,
}

impl Run {
    /// Whether others had the processor: even one thread alone would have taken less.
    fn waited(&self) -> bool {
        self.step_ms > KEPT_WAITING * self.processor_ms
    }
}

/// Runs of the same work by everyone.
struct Measured {
    /// By build.
    ours: Vec<(&'static str, Run)>,
    pytorch: Option<Run>,
}

pub(crate) fn measure(options: &Options) {
    heading(&format!(
        "a training step, batch {BATCH} of 3x32x32: forward, backward, SGD; medians of {} runs in \
         turn",
        options.runs
    ));
    let pytorch = PyTorch::find();
    if let Some(pytorch) = &pytorch {
        println!("  beside PyTorch {}", pytorch.version);
    }
    let mut builds = vec![("glibc", program("dunlin-agent"))];
    match static_agent() {
        Some(path) => builds.insert(0, ("static", path)),
        None => println!("  the static build is not there: scripts/dist.sh"),
    }
    builds.extend(static_agent_with_malloc().map(|path| ("malloc", path)));
    let unbarred = |name: &String| NETWORKS.iter().all(|bars| bars.family != name);
    let named = options.networks.iter().filter(|name| unbarred(name));
    let named: Vec<&str> = named.map(String::as_str).collect();
    assert!(named.is_empty(), "no bars for {named:?}: --networks takes those in the table");
    let mut before = 0.0_f64;
    for &threads in &options.threads {
        let s = if threads == 1 { "" } else { "s" };
        let note = match threads {
            1 => "CPU: processor time counts, for others had the processor",
            _ => "busy: others had the processor, try again",
        };
        println!("\n  {threads} thread{s}; {note}");
        println!(
            "  {:<16}{:<7}{:>9}{:>9}{:>9}{:>9}{:>7}  {:<15}{:>8}{:>9}{:>7}  {:<11}{:>8}",
            "NETWORK",
            "BUILD",
            "MS",
            "CPU MS",
            "PYTORCH",
            "CPU MS",
            "RATIO",
            "BAR",
            "MB",
            "PYTORCH",
            "RATIO",
            "BAR",
            "OF GEMM"
        );
        for bars in &NETWORKS {
            let asked = |name: &String| name == bars.family;
            if options.networks.is_empty() || options.networks.iter().any(asked) {
                let measured = in_turn(bars.family, threads, &builds, pytorch.as_ref(), options);
                show(bars, threads, &measured);
                before = before.max(measured.pytorch.map_or(0.0, |run| run.memory_before));
            }
        }
    }
    if pytorch.is_some() {
        println!("\n  PyTorch's memory has {:.0} MB before there is a network", before / 1e6);
    }
}

/// Everyone once, then everyone again: all meet the same noise.
fn in_turn(
    family: &str,
    threads: usize,
    builds: &[(&'static str, PathBuf)],
    pytorch: Option<&PyTorch>,
    options: &Options,
) -> Measured {
    let cost = models::zoo::cost(family, SHAPE, CLASSES).unwrap();
    let per_step = cost.multiply_adds * u64::from(BATCH);
    let steps = options.steps.unwrap_or((WORK / per_step).clamp(3, 30)).to_string();
    let batch = BATCH.to_string();
    let mut ours = vec![Vec::new(); builds.len()];
    let mut theirs = Vec::new();
    for _ in 0..options.runs {
        for ((_, program), runs) in builds.iter().zip(&mut ours) {
            runs.push(run_agent(program, family, &batch, threads, &steps));
        }
        if let Some(pytorch) = pytorch {
            let arguments = [family, &batch, &threads.to_string(), &steps];
            let run = pytorch.run("pytorch_step.py", &arguments, threads).pop().unwrap();
            theirs.push(serde_json::from_value::<Run>(run).unwrap());
        }
    }
    for run in ours.iter().flatten().chain(&theirs) {
        assert_eq!(run.parameters, cost.parameters, "{family} is another network");
        assert_eq!(run.multiply_adds, cost.multiply_adds, "{family} is another network");
    }
    let named = builds.iter().map(|(build, _)| *build).zip(ours.iter().map(|runs| median(runs)));
    Measured { ours: named.collect(), pytorch: pytorch.map(|_| median(&theirs)) }
}

fn run_agent(program: &Path, family: &str, batch: &str, threads: usize, steps: &str) -> Run {
    let mut command = Command::new(program);
    command.args(["bench", "--json", "--model", family, "--batch-size", batch]);
    command.args(["--shape", "3,32,32", "--threads", &threads.to_string(), "--steps", steps]);
    serde_json::from_value(json_lines(command).pop().unwrap()).unwrap()
}

/// Of each figure by itself.
fn median(runs: &[Run]) -> Run {
    let of = |figure: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(figure).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Run {
        step_ms: of(|run| run.step_ms),
        processor_ms: of(|run| run.processor_ms),
        peak_memory: of(|run| run.peak_memory),
        gflops: of(|run| run.gflops),
        gemm_gflops: of(|run| run.gemm_gflops),
        memory_before: of(|run| run.memory_before),
        ..runs[0]
    }
}

fn show(bars: &Bars, threads: usize, measured: &Measured) {
    for (build, run) in &measured.ours {
        let waited = measured.pytorch.iter().chain([run]).any(Run::waited);
        let one = threads == 1;
        let time = |run: &Run| if waited && one { run.processor_ms } else { run.step_ms };
        let share = 100.0 * run.gflops / run.gemm_gflops;
        print!("  {:<16}{build:<7}{:>9.1}{:>9.1}", bars.family, run.step_ms, run.processor_ms);
        match &measured.pytorch {
            Some(peer) => {
                let ratio = time(run) / time(peer);
                let held = |figure: &str, ratio: f64, bar: f64| {
                    let what = format!("{}, {build}, {threads} threads, {figure}", bars.family);
                    verdict(&what, &format!("{ratio:.2}"), &format!("{bar:.1}"), ratio <= bar)
                };
                let said = match (waited, one) {
                    (false, _) => held("time", ratio, bars.time).to_owned(),
                    (true, true) => format!("{} CPU", held("time", ratio, bars.time)),
                    // What threads do at the same time cannot be told from processor time.
                    (true, false) => "busy".to_owned(),
                };
                let time_bar = format!("{:.1} {said}", bars.time);
                let memory = run.peak_memory / peer.peak_memory;
                let said = held("memory", memory, bars.memory);
                let memory_bar = format!("{:.1} {said}", bars.memory);
                print!(
                    "{:>9.1}{:>9.1}{ratio:>7.2}  {time_bar:<15}{:>8.0}{:>9.0}{memory:>7.2}  \
                     {memory_bar:<11}",
                    peer.step_ms,
                    peer.processor_ms,
                    run.peak_memory / 1e6,
                    peer.peak_memory / 1e6,
                );
            }
            None => print!("{:>42}{:>8.0}{:>29}", "", run.peak_memory / 1e6, ""),
        }
        println!("{share:>6.0} %");
    }
}
