//! The recorded figures, the networks and batches that they belong to.

use std::io::Read;
use std::path::PathBuf;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use crate::params::Parameters;

/// A file of `DUNLIN_SHARED`, or of `shared` beside this checkout, if it is there.
fn shared(path: &str) -> Option<Vec<u8>> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared");
    let root = std::env::var_os("DUNLIN_SHARED").unwrap_or_else(|| beside.into());
    std::fs::read(PathBuf::from(root).join(path)).ok()
}

pub(super) struct Recorded {
    pub(super) onnx: Vec<u8>,
    pub(super) figures: Value,
    examples: Vec<f32>,
    labels: Vec<u32>,
}

impl Recorded {
    pub(super) fn read(name: &str) -> Option<Self> {
        let onnx = shared(&format!("vectors/pytorch_training/{name}.onnx"))?;
        let figures = shared(&format!("vectors/pytorch_training/{name}.json"))?;
        let packed = shared("data/cifar10/train_orig_2283.bin.gz")?;
        let mut records = Vec::new();
        flate2::read::GzDecoder::new(packed.as_slice()).read_to_end(&mut records).unwrap();
        let records = || records.chunks_exact(3073).take(320);
        let labels = records().map(|record| u32::from(record[0])).collect();
        let normal = |pixel: &u8| (f32::from(*pixel) / 255.0 - 0.5) / 0.25;
        let examples = records().flat_map(|record| record[1..].iter().map(normal)).collect();
        let figures = serde_json::from_slice(&figures).unwrap();
        Some(Self { onnx, figures, examples, labels })
    }

    pub(super) fn batch(&self, index: usize) -> (&[f32], &[u32]) {
        (&self.examples[index * 32 * 3072..][..32 * 3072], &self.labels[index * 32..][..32])
    }
}

/// The running statistics as the recorded runs began with them: the export's trace of the graph
/// has moved those in the file.
pub(super) fn unmoved(parameters: &Parameters) -> Parameters {
    let mut items = parameters.items().to_vec();
    for item in &mut items {
        if item.name.ends_with("running_mean") {
            item.values.fill(0.0);
        } else if item.name.ends_with("running_var") {
            item.values.fill(1.0);
        }
    }
    Parameters::new(items).unwrap()
}

/// Moves each value by a step of its last bit up, down, or not at all; seed 0 moves none.
pub(super) fn perturbed(parameters: &Parameters, seed: u64) -> Parameters {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut items = parameters.items().to_vec();
    if seed > 0 {
        for value in items.iter_mut().flat_map(|item| &mut item.values) {
            *value = match random.random_range(0..3) {
                0 => value.next_down(),
                1 => value.next_up(),
                _ => *value,
            };
        }
    }
    Parameters::new(items).unwrap()
}
