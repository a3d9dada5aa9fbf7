//! The weighted mean of ten updates of 100 MB that lie in memory, beside the memory's own speed and
//! numpy's: side by side, as updates that are held are combined, and one after another, as a mean is
//! made while they arrive.

use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use models::federated::combination::combine;
use models::federated::mean::WeightedMean;
use rayon::prelude::*;
use serde_json::Value;

use crate::figures::{Times, against_bar, heading, ms};
use crate::pytorch::json_lines;

const DEVICES: usize = 10;
const LENGTH: usize = 25_000_000;
const TURNS: usize = 5;
/// Values of a tile, as the broker takes them of so many updates.
const TILE: usize = 2 * 1024 * 1024 / DEVICES;
/// Bytes that adding one update to sums of 8 bytes moves, as a share of its own: it is read, and the
/// sums are read and written.
const MOVED: f64 = 5.0;
/// Values of a chunk, as updates arrive.
const CHUNK: usize = 32 * 1024;

pub(crate) fn measure() {
    heading("the mean of 10 updates of 100 MB in memory, 2 threads");
    let updates: Vec<Vec<f32>> = (0..DEVICES).map(update).collect();
    let weights: Vec<f64> =
        (0..DEVICES).map(|device| 1.0 + f64::from(u8::try_from(device % 3).unwrap())).collect();
    let total: f64 = weights.iter().sum();
    let shares: Vec<f64> = weights.iter().map(|weight| weight / total).collect();
    let mut result = vec![0.0_f32; LENGTH];
    let mut sums = WeightedMean::new(LENGTH);
    let [mut reading, mut tiles, mut chunks, mut left] = <[Times; 4]>::default();
    let (last, others) = updates.split_last().unwrap();
    for _ in 0..TURNS {
        reading.push(timed(|| _ = black_box(read(&updates))));
        tiles.push(timed(|| in_tiles(&updates, &shares, &mut result)));
        let before = timed(|| in_chunks(others, &weights, &mut sums));
        let end = timed(|| {
            add(last, weights[DEVICES - 1], &mut sums);
            hand_out(&sums);
        });
        chunks.push(before + end);
        left.push(end);
    }
    let (limit, tiles, chunks) = (reading.best(), tiles.best(), chunks.best());
    println!("  {:<44} {:>12}", "reading them once", ms(limit));
    let share = |time: Duration| limit.as_secs_f64() / time.as_secs_f64();
    let shown = format!("{} = {:.2}", ms(tiles), share(tiles));
    against_bar("side by side, in tiles", &shown, "0.5 of reading", share(tiles) >= 0.5);
    let shown = format!("{} = {:.2}", ms(chunks), share(chunks));
    against_bar("one after another, in chunks", &shown, "0.5 of reading", share(chunks) >= 0.5);
    let moved = MOVED * share(chunks);
    println!("  {:<44} {:>12}", "the same by the bytes that it moves", format!("{moved:.2}"));
    let shown = format!("{} = {:.2}", ms(left.best()), share(left.best()));
    println!("  {:<44} {shown:>12}", "what is left of it when the last one comes");
    let Some(lines) = numpy() else { return };
    for (way, time) in [("side by side", tiles), ("one after another", chunks)] {
        let its_own = lines.iter().filter(|line| line["way"] == way);
        let seconds = its_own.filter_map(|line| line["seconds"].as_f64()).reduce(f64::min);
        let numpy = Duration::from_secs_f64(seconds.expect("numpy tells its times"));
        println!("  {:<44} {:>12}", format!("numpy, in blocks, {way}"), ms(numpy));
        let ratio = numpy.as_secs_f64() / time.as_secs_f64();
        let name = format!("numpy's time of ours, {way}");
        against_bar(&name, &format!("{ratio:.1} x"), "3 x", ratio >= 3.0);
    }
}

fn update(device: usize) -> Vec<f32> {
    let value = 1.0 + f32::from(u8::try_from(device).unwrap());
    (0..LENGTH)
        .into_par_iter()
        .map(|index| value + f32::from(u16::try_from(index % 1000).unwrap()))
        .collect()
}

fn timed(work: impl FnOnce()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

/// Reads every value once, on all threads.
fn read(updates: &[Vec<f32>]) -> u32 {
    let words = |values: &[f32]| {
        let (lines, _) = values.as_chunks::<16>();
        let mut sums = [0_u32; 16];
        for line in lines {
            for (sum, value) in sums.iter_mut().zip(line) {
                *sum ^= value.to_bits();
            }
        }
        sums.iter().fold(0, |all, sum| all ^ sum)
    };
    updates
        .iter()
        .map(|update| update.par_chunks(64 * 1024).map(words).reduce(|| 0, |a, b| a ^ b))
        .fold(0, |a, b| a ^ b)
}

fn in_tiles(updates: &[Vec<f32>], shares: &[f64], result: &mut [f32]) {
    for (number, combined) in result.chunks_mut(TILE).enumerate() {
        let start = number * TILE;
        let rows: Vec<&[f32]> =
            updates.iter().map(|update| &update[start..start + combined.len()]).collect();
        combine(None, &rows, shares, combined).unwrap();
    }
}

fn in_chunks(updates: &[Vec<f32>], weights: &[f64], sums: &mut WeightedMean) {
    sums.clear();
    for (update, weight) in updates.iter().zip(weights) {
        add(update, *weight, sums);
    }
}

fn add(update: &[f32], weight: f64, sums: &mut WeightedMean) {
    for (number, chunk) in update.chunks(CHUNK).enumerate() {
        sums.add_piece(number * CHUNK, chunk, weight);
    }
    sums.add_weight(weight);
}

fn hand_out(sums: &WeightedMean) {
    for start in (0..LENGTH).step_by(1 << 20) {
        black_box(sums.piece(start, 1 << 20).unwrap());
    }
}

/// The best times of its ways; `None` where it is not installed.
fn numpy() -> Option<Vec<Value>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../.tools/onnx/bin/python");
    if !python.exists() {
        println!("  numpy is not there: scripts/setup.sh bench");
        return None;
    }
    let mut command = Command::new(python);
    let size = [DEVICES, LENGTH, TURNS].map(|number| number.to_string());
    command.arg(root.join("tools/numpy_mean.py")).args(size);
    Some(json_lines(command))
}
