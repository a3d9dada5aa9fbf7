//! Batches: the only place where examples become floats, one batch at a time.

use super::augment::Augmentation;
use super::{Examples, Normalization, Values};

/// Makes batches of examples; memory of one batch is used again for the next.
#[derive(Debug)]
pub struct Batches<'a> {
    examples: &'a Examples,
    /// What a pixel becomes, for each channel of pictures.
    pixels: Vec<[f32; 256]>,
    /// Mean and deviation of each column of a table.
    columns: Vec<(f32, f32)>,
    augmentation: Augmentation,
    seed: u64,
    x: Vec<f32>,
    labels: Vec<u32>,
}

impl<'a> Batches<'a> {
    /// Batches of these examples, normalised so.
    pub fn new(examples: &'a Examples, normalization: &Normalization) -> Self {
        let channels = |wanted: bool| if wanted { 0..examples.channels() } else { 0..0 };
        let pictures = matches!(examples.values, Values::Pixels(_));
        let pixels = channels(pictures).map(|channel| {
            let (mean, std) = normalization.of(channel);
            let mut values = [0.0_f32; 256];
            for (value, pixel) in values.iter_mut().zip(0_u8..=255) {
                *value = (f32::from(pixel) / 255.0 - mean) / std;
            }
            values
        });
        let table = matches!(examples.values, Values::Numbers(_));
        Self {
            examples,
            pixels: pixels.collect(),
            columns: channels(table).map(|column| normalization.of(column)).collect(),
            augmentation: Augmentation::default(),
            seed: 0,
            x: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// The same with pictures changed at random, drawn from this seed; other examples are left
    /// as they are.
    #[must_use]
    pub fn augmented(mut self, augmentation: Augmentation, seed: u64) -> Self {
        (self.augmentation, self.seed) = (augmentation, seed);
        self
    }

    /// Number of examples.
    pub fn examples(&self) -> usize {
        self.examples.len()
    }

    /// The examples with these indices as they are in an epoch: `x [n, c, h, w]`, `labels [n]`.
    ///
    /// # Panics
    /// When an index is not below [`Examples::len`].
    pub fn get(&mut self, indices: &[usize], epoch: u64) -> (&[f32], &[u32]) {
        self.x.clear();
        self.x.reserve(indices.len() * self.examples.size());
        self.labels.clear();
        for &index in indices {
            self.push(index, epoch);
            self.labels.push(self.examples.labels[index]);
        }
        (&self.x, &self.labels)
    }

    fn push(&mut self, index: usize, epoch: u64) {
        let [c, h, w] = self.examples.shape;
        let size = self.examples.kept_size();
        let range = index * size..(index + 1) * size;
        let x = &mut self.x;
        match &self.examples.values {
            Values::Pixels(pixels) if self.augmentation.any() => {
                let draw = [self.seed, epoch, index as u64];
                self.augmentation.apply(&pixels[range], [c, h, w], &self.pixels, draw, x);
            }
            Values::Pixels(pixels) => {
                for (plane, values) in pixels[range].chunks_exact(h * w).zip(&self.pixels) {
                    x.extend(plane.iter().map(|pixel| values[usize::from(*pixel)]));
                }
            }
            Values::Numbers(numbers) => {
                let columns = numbers[range].iter().zip(&self.columns);
                x.extend(columns.map(|(value, (mean, std))| (value - mean) / std));
            }
            Values::Symbols(symbols) => {
                for symbol in &symbols[range] {
                    let begin = x.len();
                    x.resize(begin + w, 0.0);
                    x[begin + usize::from(*symbol)] = 1.0;
                }
            }
        }
    }
}
