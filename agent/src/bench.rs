//! `dunlin-agent bench`: how fast this device trains, and where the time goes.

use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use clap::Args;
use models::train::{OperatorTime, Sgd, SquareProduct, TrainError, Trainer};
use models::zoo;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// What is measured.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// A built-in family, such as resnet18
    #[arg(long, value_name = "NAME")]
    pub model: String,
    /// Examples per step
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..))]
    pub batch_size: u16,
    /// Channels, height and width of an example
    #[arg(long, value_name = "C,H,W", value_delimiter = ',', default_value = "3,32,32")]
    pub shape: Vec<u16>,
    /// Threads that compute; 0 takes every processor
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: u8,
    /// Steps that are measured, after two that are not
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub steps: u16,
    /// The result as JSON
    #[arg(long)]
    pub json: bool,
}

/// Why nothing can be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Not a built-in family.
    #[error("{found:?} is no built-in family: expected one of {families}")]
    Family {
        /// What was asked for.
        found: String,
        /// What there is.
        families: String,
    },
    /// Not a shape.
    #[error("shape {0:?}: expected channels, height and width, such as 3,32,32")]
    Shape(Vec<u16>),
    /// More than this command may take.
    #[error("{0} values in a batch: expected at most {VALUES_MAX}")]
    TooLarge(u64),
    /// The family cannot be trained at this shape.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The system gives no threads.
    #[error("no threads: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    model: String,
    batch_size: usize,
    threads: usize,
    /// Median of the steps: forward, backward, optimizer.
    step_ms: f64,
    /// The same in processor time, of all threads together.
    processor_ms: f64,
    examples_per_second: f64,
    /// Trained values.
    parameters: u64,
    /// Of convolutions and products, forward, per example.
    multiply_adds: u64,
    /// Of convolutions and products; a backward pass counts as two forward passes. Per second of
    /// processor time where that is shorter, as it is in one thread that others keep waiting.
    gflops: f64,
    /// Of the fastest of five products of large matrices on the same threads, per second alike.
    gemm_gflops: f64,
    /// Of the trainer, in bytes, as it is known before the first step.
    estimated_memory: u64,
    /// Of the process, in bytes; 0 where the system does not tell.
    peak_memory: u64,
    operators: Vec<Operator>,
}

#[derive(Debug, Serialize)]
struct Operator {
    name: String,
    nodes: usize,
    /// Of one step.
    forward_ms: f64,
    backward_ms: f64,
}

/// Rows and columns of the matrices whose product shows what the machine can do.
const SQUARE: usize = 768;
const CLASSES: usize = 10;
/// Values of a batch, at most: 256 MB.
const VALUES_MAX: u64 = 1 << 26;
const WARM_UP: u16 = 2;

/// Measures, and gives the result as text.
///
/// # Errors
/// [`BenchError`].
#[expect(clippy::missing_panics_doc, reason = "names and numbers are JSON")]
pub fn run(args: &BenchArgs) -> Result<String, BenchError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.into()).build()?;
    let measured = pool.install(|| measure(args))?;
    Ok(if args.json {
        serde_json::to_string_pretty(&measured).expect("names and numbers are JSON")
    } else {
        text(&measured)
    })
}

fn measure(args: &BenchArgs) -> Result<Measured, BenchError> {
    let [c, h, w] = args.shape[..] else { return Err(BenchError::Shape(args.shape.clone())) };
    if [c, h, w].contains(&0) {
        return Err(BenchError::Shape(args.shape.clone()));
    }
    let values = [c, h, w].into_iter().map(u64::from).product::<u64>();
    let values = values.saturating_mul(args.batch_size.into());
    if values > VALUES_MAX {
        return Err(BenchError::TooLarge(values));
    }
    let shape = [c, h, w].map(usize::from);
    let family =
        || BenchError::Family { found: args.model.clone(), families: zoo::FAMILIES.join(", ") };
    let cost = zoo::cost(&args.model, shape, CLASSES).ok_or_else(family)?;
    let onnx = zoo::build(&args.model, shape, CLASSES, 1).ok_or_else(family)?;
    let sgd = Sgd { learning_rate: 0.001, momentum: 0.9, weight_decay: 0.0 };
    let mut trainer = Trainer::new(&onnx, sgd)?;
    drop(onnx);
    let batch = usize::from(args.batch_size);
    let estimated_memory = trainer.memory(batch, rayon::current_num_threads()).total();
    let examples = examples(batch * shape.iter().product::<usize>());
    let labels: Vec<u32> = (0..10).cycle().take(batch).collect();
    for _ in 0..WARM_UP {
        trainer.step(&examples, &labels)?;
    }
    trainer.profile(clock);
    let (mut steps, mut processor) = (Vec::new(), Vec::new());
    for _ in 0..args.steps {
        let began = (Instant::now(), processor_time());
        trainer.step(&examples, &labels)?;
        steps.push(began.0.elapsed());
        processor.push(processor_time().saturating_sub(began.1));
    }
    let (step, processor) = (median(steps).as_secs_f64(), median(processor).as_secs_f64());
    let peak_memory = peak_memory();
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let (operations, count) = (6.0 * cost.multiply_adds as f64 * batch as f64, batch as f64);
    Ok(Measured {
        model: args.model.clone(),
        batch_size: batch,
        threads: rayon::current_num_threads(),
        step_ms: step * 1e3,
        processor_ms: processor * 1e3,
        examples_per_second: count / step,
        parameters: cost.parameters,
        multiply_adds: cost.multiply_adds,
        gflops: operations / step.min(processor) / 1e9,
        gemm_gflops: gemm_rate() / 1e9,
        estimated_memory,
        peak_memory,
        operators: trainer.operator_times().iter().map(|time| operator(time, args.steps)).collect(),
    })
}

/// Values around 0 without a pattern that a kernel could use.
fn examples(count: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from((state >> 16) as u16) / 32768.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// Of all threads of this process, in the program and in the system.
fn processor_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// Since the first call.
fn clock() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Floating-point operations per second of the fastest of five products.
fn gemm_rate() -> f64 {
    let mut product = SquareProduct::new(SQUARE);
    let rates = (0..5).map(|_| {
        let began = (Instant::now(), processor_time());
        let operations = product.multiply();
        let processor = processor_time().saturating_sub(began.1);
        operations / began.0.elapsed().min(processor).as_secs_f64()
    });
    rates.fold(0.0, f64::max)
}

fn operator(time: &OperatorTime, steps: u16) -> Operator {
    let per_step = |spent: Duration| spent.as_secs_f64() * 1e3 / f64::from(steps);
    Operator {
        name: time.operator.clone(),
        nodes: time.nodes,
        forward_ms: per_step(time.forward),
        backward_ms: per_step(time.backward),
    }
}

/// The most memory that was resident so far, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn text(measured: &Measured) -> String {
    let Measured { model, batch_size, threads, step_ms, examples_per_second, .. } = measured;
    let Measured { gflops, gemm_gflops, .. } = measured;
    #[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let (estimate, peak) = (megabytes(measured.estimated_memory), megabytes(measured.peak_memory));
    let share = 100.0 * gflops / gemm_gflops;
    let mut text = format!(
        "{model}, batch {batch_size}, {threads} threads: {step_ms:.1} ms a step, \
         {examples_per_second:.1} examples a second\n\
         {gflops:.1} GFLOP/s, {share:.0} % of a matrix product's {gemm_gflops:.1}; \
         memory {estimate:.1} MB for training, {peak:.1} MB at the peak of the process\n\n\
         {:<24}{:>6}{:>13}{:>14}{:>8}",
        "OPERATOR", "NODES", "FORWARD MS", "BACKWARD MS", "SHARE"
    );
    for time in &measured.operators {
        let Operator { name, nodes, forward_ms, backward_ms } = time;
        let share = 100.0 * (forward_ms + backward_ms) / step_ms;
        let _ = write!(
            text,
            "\n{name:<24}{nodes:>6}{forward_ms:>13.2}{backward_ms:>14.2}{share:>6.1} %"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(model: &str) -> BenchArgs {
        BenchArgs {
            model: model.to_owned(),
            batch_size: 4,
            shape: vec![1, 8, 8],
            threads: 1,
            steps: 2,
            json: true,
        }
    }

    #[test]
    fn a_step_is_the_sum_of_its_operators() {
        let measured: serde_json::Value =
            serde_json::from_str(&run(&args("resnet8")).unwrap()).unwrap();
        assert!(measured["step_ms"].as_f64().unwrap() > 0.0);
        assert!(measured["processor_ms"].as_f64().unwrap() > 0.0);
        assert_eq!(measured["parameters"], 77_754);
        assert!(measured["gemm_gflops"].as_f64().unwrap() > 0.0);
        let memory = measured["estimated_memory"].as_u64().unwrap();
        let peak = measured["peak_memory"].as_u64().unwrap();
        assert!(memory > 4 * 4 * 64 && peak > memory, "{memory} {peak}");
        let operators = measured["operators"].as_array().unwrap();
        let conv = operators.iter().find(|time| time["name"] == "Conv 3x3").unwrap();
        assert_eq!(conv["nodes"], 7);
        assert!(conv["backward_ms"].as_f64().unwrap() > 0.0);
        let shown = run(&BenchArgs { json: false, ..args("mlp") }).unwrap();
        assert!(shown.contains("mlp, batch 4, 1 threads") && shown.contains("Gemm"), "{shown}");
    }

    #[test]
    fn what_cannot_be_measured_is_named() {
        let error = run(&args("resnet9")).unwrap_err().to_string();
        assert!(error.contains("resnet9") && error.contains("resnet8"), "{error}");
        for shape in [vec![3, 32], vec![0, 32, 32]] {
            let error = run(&BenchArgs { shape: shape.clone(), ..args("mlp") }).unwrap_err();
            let error = error.to_string();
            assert!(error.contains(&format!("shape {shape:?}: expected channels")), "{error}");
        }
    }
}
