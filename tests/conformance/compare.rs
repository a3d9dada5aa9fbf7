//! Runs an engine on a case and measures how it differs.

use std::fmt;
use std::time::{Duration, Instant};

use models::engine::Engine;
use models::tensor::Tensor;

use super::cases::Case;

/// Images of one run.
const BATCH: usize = 32;

/// How an engine did on a case.
pub(crate) struct Report {
    engine: &'static str,
    model: String,
    images: usize,
    pub(crate) agreement: f64,
    pub(crate) difference_max: f32,
    accuracy: f64,
    load: Duration,
    took: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, model, images, agreement, difference_max, accuracy, load, took } = self;
        let rate = f64::from(u32::try_from(*images).unwrap()) / took.as_secs_f64();
        write!(
            f,
            "{engine} {model}: {images} images, same class {:.2} %, max difference \
             {difference_max:.2e}, accuracy {:.2} %, {rate:.0} images/s, loaded in {load:.0?}",
            agreement * 100.0,
            accuracy * 100.0,
        )
    }
}

/// Loads and runs the model on all images.
pub(crate) fn run(engine: &dyn Engine, case: &Case) -> Report {
    let started = Instant::now();
    let session = engine.load(&case.onnx).unwrap();
    let load = started.elapsed();
    let all: Vec<usize> = (0..case.classes.len()).step_by(case.step).collect();
    let images = all.len();
    let (mut same, mut right, mut difference_max) = (0_u32, 0_u32, 0.0_f32);
    let mut took = Duration::ZERO;
    for indices in all.chunks(BATCH) {
        let input = input(case, indices);
        let started = Instant::now();
        let outputs = session.run(std::slice::from_ref(&input)).unwrap();
        took += started.elapsed();
        let rows = outputs[0].as_f32().unwrap();
        assert_eq!(rows.len() % indices.len(), 0);
        for (row, &index) in rows.chunks(rows.len() / indices.len()).zip(indices) {
            let class = argmax(row);
            same += u32::from(class == case.classes[index]);
            right += u32::from(class == case.examples.labels[index] as usize);
            if let Some(expected) = case.outputs.get(index) {
                assert_eq!(row.len(), expected.len(), "{}", case.name);
                for (a, b) in row.iter().zip(expected) {
                    difference_max = difference_max.max((a - b).abs());
                }
            }
        }
    }
    let part = |count: u32| f64::from(count) / f64::from(u32::try_from(images).unwrap());
    Report {
        engine: engine.name(),
        model: case.name.clone(),
        images,
        agreement: part(same),
        difference_max,
        accuracy: part(right),
        load,
        took,
    }
}

/// The model's input of these images.
fn input(case: &Case, indices: &[usize]) -> Tensor {
    let [c, h, w] = case.examples.shape;
    let size = c * h * w;
    let mut values = Vec::with_capacity(indices.len() * size);
    for &index in indices {
        let pixels = &case.examples.pixels[index * size..(index + 1) * size];
        for at in 0..size {
            let (channel, at) =
                if case.nhwc { (at % c, (at % c) * h * w + at / c) } else { (at / (h * w), at) };
            let (mean, std) =
                (case.mean[channel % case.mean.len()], case.std[channel % case.std.len()]);
            values.push((f32::from(pixels[at]) / case.divisor - mean) / std);
        }
    }
    let shape: Vec<usize> = std::iter::once(indices.len()).chain(case.shape.clone()).collect();
    Tensor::f32(&shape, values).unwrap()
}

fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
}
