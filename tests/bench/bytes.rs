//! How updates and parameters travel: bytes, time, and what a model learns, encoding beside encoding.

use std::path::Path;
use std::time::Instant;

use clap::Args;
use models::federated::encoding::{
    Coder, Decoder, Encoder, Format, Header, encode_largest, layout_digest,
};
use models::params::Layout;
use serde_json::{Value, json};
use tests::data::Digits;
use tests::process::Process;
use tests::world::World;

use crate::accuracy::judged;
use crate::draws::Draws;
use crate::figures::{Times, heading};
use crate::round::between_ends;

mod zstd;

/// What is measured of bytes.
#[derive(Debug, Args)]
#[group(skip)]
pub(crate) struct Options {
    /// bytes: what devices behind a limited way may move in a second
    #[arg(long, value_name = "BYTES", default_value_t = 250_000)]
    bytes_per_second: u64,
}

/// As `--update` takes them.
const ENCODINGS: [&str; 12] = [
    "plain",
    "float32",
    "float32:delta=true",
    "float32:delta=true,coder=zstd",
    "float16",
    "bfloat16",
    "bfloat16:coder=zstd",
    "int8",
    "int8:coder=zstd",
    "topk:share=0.1",
    "topk:share=0.01",
    "topk:share=0.01,values=int8",
];
/// As `--update` and `--download` take them together.
const BOTH: [(&str, &str); 6] = [
    ("plain", "float32"),
    ("float32:delta=true", "float16"),
    ("float32:delta=true", "bfloat16"),
    ("float32:delta=true", "int8"),
    ("int8", "int8"),
    ("topk:share=0.1", "int8"),
];
/// Values of a model of 25 MB.
const VALUES: usize = 6_250_000;
const DEVICES: usize = 3;
const ROUNDS: u32 = 15;
const SEEDS: u64 = 3;
/// What devices are labelled with.
const OPEN: &str = "open";
const LIMITED: &str = "limited";

pub(crate) async fn measure(options: &Options) {
    heading("an update of 25 MB whose differences are normally distributed, layer by layer");
    println!(
        "  {:<40} {:>9} {:>8} {:>11} {:>11}",
        "encoding", "MB", "of plain", "encode s", "decode s"
    );
    let values = differences();
    for (name, format, share) in [
        ("float32:delta=true", Format::Float32, None),
        ("float16", Format::Float16, None),
        ("bfloat16", Format::BFloat16, None),
        ("int8", Format::Int8 { block: 1024 }, None),
        ("topk:share=0.1", Format::BFloat16, Some(0.1)),
        ("topk:share=0.01", Format::BFloat16, Some(0.01)),
        ("topk:share=0.01,values=int8", Format::Int8 { block: 1024 }, Some(0.01)),
    ] {
        code(name, (format, Coder::Rans), share, &values);
        let name = format!("{name}{}coder=zstd", if name.contains(':') { ',' } else { ':' });
        code(&name, (format, Coder::Zstd), share, &values);
    }
    zstd::measure();
    trainings(options.bytes_per_second).await;
}

/// Devices of two kinds learn in turn: what an encoding costs and saves, and what is learnt with it.
async fn trainings(bytes_per_second: u64) {
    heading("digits, 3 devices, Dirichlet(0.5), LeNet, 15 rounds, accuracy: mean of 3 seeds");
    println!(
        "  a round of all devices: KB, and seconds on loopback and where each device may move {} KB \
         a second",
        bytes_per_second / 1000
    );
    println!(
        "  {:<19} {:<29} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9}",
        "DOWNLOAD", "UPDATE", "DOWN", "UP", "OF PLAIN", "LOOPBACK", "LIMITED", "ACCURACY"
    );
    let world = World::start().await;
    let digits = Digits::write(world.folder(), DEVICES);
    let mut agents = Vec::new();
    for number in 1..=DEVICES {
        let share = digits.share(number);
        agents.push(joined(&world, number, &share, None).await);
        agents.push(joined(&world, number, &share, Some(bytes_per_second)).await);
    }
    let mut plain = 0.0;
    for (update, download) in ENCODINGS.map(|update| (update, "plain")).into_iter().chain(BOTH) {
        let Learnt { down, up, seconds, accuracy } =
            learn(&world, OPEN, SEEDS, (update, download)).await;
        let limited = learn(&world, LIMITED, 1, (update, download)).await.seconds;
        plain = if (update, download) == ("plain", "plain") { down + up } else { plain };
        let (share, percent) = (100.0 * (down + up) / plain, 100.0 * accuracy);
        println!(
            "  {download:<19} {update:<29} {:>8.1} {:>8.1} {share:>6.1} % {seconds:>8.2} \
             {limited:>8.2} {percent:>7.1} %",
            down / 1e3,
            up / 1e3
        );
    }
}

/// An agent, with a limit or without.
async fn joined(world: &World, number: usize, share: &Path, limit: Option<u64>) -> Process {
    let way = if limit.is_some() { LIMITED } else { OPEN };
    let name = format!("{way}-{number}");
    let mut command = world.agent_command(&name);
    command.args(["--label", &format!("way={way}")]);
    command.arg("--data").arg(format!("digits={}", share.display()));
    if let Some(limit) = limit {
        command.args(["--bytes-per-second", &limit.to_string()]);
    }
    let agent = world.run_agent(&name, command);
    world.online(&name, true).await;
    agent
}

/// Differences of a model of 25 MB: layers of several scales, each nearly normal.
fn differences() -> Vec<f32> {
    let mut draws = Draws::new(1);
    let scale = |layer: usize| [1e-2, 1e-3, 3e-3, 1e-4][layer % 4];
    (0..VALUES).map(|at| draws.normal() * scale(at / 100_000)).collect()
}

fn code(name: &str, (format, coder): (Format, Coder), share: Option<f64>, values: &[f32]) {
    let layout = Layout::new(std::iter::once(("w", &[values.len()][..])));
    let digest = layout_digest(&layout);
    let base = Some("base".to_owned());
    let (sparse, count) = (share.is_some(), values.len());
    let header = Header { format, coder, sparse, values: count, layout: digest, base };
    let mut left = values.to_vec();
    let began = Instant::now();
    let file = if let Some(share) = share {
        encode_largest(&header, 1, share, &mut [&mut left]).unwrap()
    } else {
        let mut file = Vec::new();
        let mut encoder = Encoder::dense(header.clone(), 1, &mut file);
        encoder.push(values, &mut file).unwrap();
        encoder.finish(&mut file).unwrap();
        file
    };
    let encode_s = began.elapsed().as_secs_f64();
    let began = Instant::now();
    let mut decoder = Decoder::new(values.len(), &header.layout, Some("base"));
    let mut sum = 0.0;
    for piece in file.chunks(128 * 1024) {
        decoder.take(piece, |_, values| sum += f64::from(values[0])).unwrap();
    }
    decoder.finish().unwrap();
    let decode_s = began.elapsed().as_secs_f64();
    assert!(sum.is_finite());
    #[expect(clippy::cast_precision_loss, reason = "megabytes are shown")]
    let megabytes = file.len() as f64 / 1e6;
    let of_plain = 100.0 * megabytes / 25.0;
    println!("  {name:<40} {megabytes:>9.2} {of_plain:>6.1} % {encode_s:>11.3} {decode_s:>11.3}");
}

/// Mean bytes of a round, those of parameters that devices get and those of their updates, the median
/// of its seconds, and the accuracy after the last one.
struct Learnt {
    down: f64,
    up: f64,
    seconds: f64,
    accuracy: f64,
}

async fn learn(world: &World, way: &str, seeds: u64, (update, download): (&str, &str)) -> Learnt {
    let (mut down, mut up, mut all, mut accuracy) = (0.0, 0.0, 0.0, 0.0);
    let mut times = Times::default();
    for seed in 0..seeds {
        let job = json!({"kind": "train", "selector": format!("label.way={way}"), "spec": {
            "model": "lenet", "dataset": "digits", "rounds": ROUNDS, "seed": seed,
            "register_as": "measured", "update": written(update), "download": download,
            "participation": {"devices": DEVICES, "quorum": DEVICES},
        }});
        let id = world.submit(&job).await;
        let job = world.ended(&id).await;
        assert_eq!(job["state"], "succeeded", "{job:#}");
        let rounds = job["rounds"].as_array().unwrap();
        for round in rounds {
            let encoded = &round["encoded"];
            let fetched = if encoded.is_null() { &round["parameters"] } else { encoded };
            for update in round["updates"].as_array().unwrap() {
                down += fetched["size"].as_f64().unwrap();
                up += update[1]["parameters"]["size"].as_f64().unwrap();
            }
            all += 1.0;
        }
        between_ends(rounds).for_each(|time| times.push(time));
        accuracy += judged(rounds.last().unwrap());
    }
    #[expect(clippy::cast_precision_loss, reason = "few seeds")]
    let seeds = seeds as f64;
    let seconds = times.median().as_secs_f64();
    Learnt { down: down / all, up: up / all, seconds, accuracy: accuracy / seeds }
}

/// An encoding as a job says it.
fn written(encoding: &str) -> Value {
    let encoding: jobs::spec::UpdateEncoding = encoding.parse().unwrap();
    serde_json::to_value(encoding).unwrap()
}
