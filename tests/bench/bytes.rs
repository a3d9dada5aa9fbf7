//! How updates and parameters travel: bytes, time, and what a model learns, encoding beside encoding.

use std::time::Instant;

use models::federated::encoding::{
    Decoder, Encoder, Format, Header, encode_largest, layout_digest,
};
use models::params::Layout;
use serde_json::{Value, json};
use tests::data::Digits;
use tests::world::World;

use crate::accuracy::judged;
use crate::draws::Draws;
use crate::figures::heading;

/// As `--update` takes them.
const ENCODINGS: [&str; 9] = [
    "plain",
    "float32",
    "float32:delta=true",
    "float16",
    "bfloat16",
    "int8",
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

pub(crate) async fn measure() {
    heading("an update of 25 MB whose differences are normally distributed, layer by layer");
    println!(
        "  {:<30} {:>9} {:>8} {:>11} {:>11}",
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
        code(name, format, share, &values);
    }
    heading("digits, 3 devices, Dirichlet(0.5), LeNet, 15 rounds, mean of 3 seeds");
    println!(
        "  {:<19} {:<30} {:>9} {:>9} {:>8} {:>11}",
        "download", "update", "down", "up", "of plain", "accuracy"
    );
    let world = World::start().await;
    let digits = Digits::write(world.folder(), DEVICES);
    let mut agents = Vec::new();
    for number in 1..=DEVICES {
        let share = digits.share(number);
        agents.push(world.join(&format!("device-{number}"), Some(("digits", &share))).await);
    }
    let mut plain = 0.0;
    for (update, download) in ENCODINGS.map(|update| (update, "plain")).into_iter().chain(BOTH) {
        let Learnt { down, up, accuracy } = learn(&world, update, download).await;
        plain = if (update, download) == ("plain", "plain") { down + up } else { plain };
        let (share, percent) = (100.0 * (down + up) / plain, 100.0 * accuracy);
        println!(
            "  {download:<19} {update:<30} {down:>9.0} {up:>9.0} {share:>6.1} % {percent:>9.1} %"
        );
    }
}

/// Differences of a model of 25 MB: layers of several scales, each nearly normal.
fn differences() -> Vec<f32> {
    let mut draws = Draws::new(1);
    let scale = |layer: usize| [1e-2, 1e-3, 3e-3, 1e-4][layer % 4];
    (0..VALUES).map(|at| draws.normal() * scale(at / 100_000)).collect()
}

fn code(name: &str, format: Format, share: Option<f64>, values: &[f32]) {
    let layout = Layout::new(std::iter::once(("w", &[values.len()][..])));
    let digest = layout_digest(&layout);
    let base = Some("base".to_owned());
    let header =
        Header { format, sparse: share.is_some(), values: values.len(), layout: digest, base };
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
    println!("  {name:<30} {megabytes:>9.2} {of_plain:>6.1} % {encode_s:>11.3} {decode_s:>11.3}");
}

/// Mean bytes of the parameters that a device gets and of its update, and the accuracy after the
/// last round.
struct Learnt {
    down: f64,
    up: f64,
    accuracy: f64,
}

async fn learn(world: &World, update: &str, download: &str) -> Learnt {
    let (mut down, mut up, mut updates, mut accuracy) = (0.0, 0.0, 0.0, 0.0);
    for seed in 0..SEEDS {
        let job = json!({"kind": "train", "spec": {
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
                updates += 1.0;
            }
        }
        accuracy += judged(rounds.last().unwrap());
    }
    #[expect(clippy::cast_precision_loss, reason = "few seeds")]
    let seeds = SEEDS as f64;
    Learnt { down: down / updates, up: up / updates, accuracy: accuracy / seeds }
}

/// An encoding as a job says it.
fn written(encoding: &str) -> Value {
    let encoding: jobs::spec::UpdateEncoding = encoding.parse().unwrap();
    serde_json::to_value(encoding).unwrap()
}
