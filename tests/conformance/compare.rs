//! Counts how answers differ from ONNX Runtime's.

use std::fmt;

use models::tensor::Tensor;

use super::cases::Case;

/// Images of one request.
const BATCH: usize = 32;

/// How the answers to a case's images are.
pub(crate) struct Score<'a> {
    case: &'a Case,
    images: u32,
    same: u32,
    right: u32,
    difference_max: f32,
}

impl<'a> Score<'a> {
    pub(crate) fn new(case: &'a Case) -> Self {
        Self { case, images: 0, same: 0, right: 0, difference_max: 0.0 }
    }

    /// Counts the outputs of these images, one row for each.
    pub(crate) fn add(&mut self, indices: &[usize], outputs: &[f32]) {
        assert_eq!(outputs.len() % indices.len(), 0, "{}", self.case.name);
        for (row, &index) in outputs.chunks(outputs.len() / indices.len()).zip(indices) {
            let class = argmax(row);
            self.images += 1;
            self.same += u32::from(class == self.case.classes[index]);
            self.right += u32::from(class == self.case.examples.labels[index] as usize);
            if let Some(expected) = self.case.outputs.get(index) {
                assert_eq!(row.len(), expected.len(), "{}", self.case.name);
                for (a, b) in row.iter().zip(expected) {
                    self.difference_max = self.difference_max.max((a - b).abs() / self.case.scale);
                }
            }
        }
    }

    /// Whether the answers are ONNX Runtime's, as near as the case asks.
    pub(crate) fn is_near(&self) -> bool {
        self.part(self.same) >= self.case.agreement_min
            && self.difference_max <= self.case.difference_max
    }

    fn part(&self, count: u32) -> f64 {
        f64::from(count) / f64::from(self.images)
    }
}

impl fmt::Display for Score<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<34} {:>6} images, same class {:>6.2} %, largest relative difference {:.1e}, \
             accuracy {:.2} %",
            self.case.name,
            self.images,
            self.part(self.same) * 100.0,
            self.difference_max,
            self.part(self.right) * 100.0,
        )
    }
}

/// Every `step`-th image of a case, some at a time, with its indices.
pub(crate) fn batches(
    case: &Case,
    step: usize,
) -> impl Iterator<Item = (Vec<usize>, Tensor)> + use<'_> {
    let all: Vec<usize> = (0..case.classes.len()).step_by(step).collect();
    let batches: Vec<Vec<usize>> = all.chunks(BATCH).map(<[usize]>::to_vec).collect();
    batches.into_iter().map(|indices| {
        let input = input(case, &indices);
        (indices, input)
    })
}

/// The model's input of these images.
fn input(case: &Case, indices: &[usize]) -> Tensor {
    let [c, h, w] = case.examples.shape;
    let size = c * h * w;
    let mut values = Vec::with_capacity(indices.len() * size);
    for &index in indices {
        let pixels = case.examples.picture(index).unwrap();
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
