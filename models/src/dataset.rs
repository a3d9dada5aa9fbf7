//! Data sets for training: decoded from bytes, split, partitioned, drawn in seeded batches.

pub mod cifar10;
mod gunzip;
pub mod idx;
mod order;
pub mod partition;

pub use order::Order;

/// Labelled examples of one shape, kept as bytes (pixels 0 to 255) until a batch needs floats.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Examples {
    /// Shape of one example, `[c, h, w]`.
    pub shape: [usize; 3],
    /// Pixels, example after example, channels first.
    pub pixels: Vec<u8>,
    /// Class of each example.
    pub labels: Vec<u32>,
}

/// A data set: what to train on and what to judge with.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The file format it came in: `idx` or `cifar10`.
    pub format: &'static str,
    /// Number of classes.
    pub classes: usize,
    /// Names of the classes by index; empty when they are unknown.
    pub class_names: Vec<String>,
    /// To train on; may be empty when `test` is not.
    pub train: Examples,
    /// To judge with; may be empty when `train` is not.
    pub test: Examples,
    /// How pixels become model inputs: `(pixel / 255 - mean) / std`. 0.5 in both formats.
    pub mean: f32,
    /// See `mean`. 0.25 for `cifar10`, 0.5 for `idx`: inputs from -2 to 2 and from -1 to 1.
    pub std: f32,
}

/// Why files are not a data set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatasetError {
    /// A file is damaged or another thing.
    #[error("{file}: {problem}")]
    File {
        /// The file's name.
        file: String,
        /// What is wrong and what was expected.
        problem: String,
    },
    /// There are no examples.
    #[error("data set has no examples")]
    Empty,
    /// A label outside of the classes.
    #[error("{file}: record {record} has label {label}, expected 0 to {max}")]
    Label {
        /// The file's name.
        file: String,
        /// Counted from 0.
        record: usize,
        /// The label.
        label: u32,
        /// The largest label of the format.
        max: u32,
    },
    /// The names are those of no known format.
    #[error("no data set format has these files: {found}; expected {expected}")]
    Format {
        /// The names found.
        found: String,
        /// The names that the formats use.
        expected: &'static str,
    },
}

/// Classes of both formats, unless `labels.txt` names others.
const CLASSES: usize = 10;

/// The file names that are understood.
const NAMES: &str = "train*.bin, data_batch_*.bin and test*.bin (CIFAR-10), or \
                     train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and \
                     t10k-labels-idx1-ubyte (IDX), each possibly with .gz";

/// Decodes the files of a data set folder, by their names, each possibly with `.gz` behind it:
/// CIFAR-10 binary (`data_batch_*.bin` or `train*.bin`, `test*.bin`) or IDX
/// (`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`; a dot before `idx` is
/// accepted). `labels.txt` or `batches.meta.txt`, one name a line, names the classes and so
/// gives their number. Files with other names are left alone; training files are joined in name
/// order.
///
/// # Errors
/// [`DatasetError`] naming the file.
pub fn decode(files: &[(String, Vec<u8>)]) -> Result<Dataset, DatasetError> {
    let class_names = class_names(files)?;
    let classes = if class_names.is_empty() { CLASSES } else { class_names.len() };
    let mut sorted: Vec<(&str, &[u8])> =
        files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    sorted.sort_unstable();
    let idx = sorted.iter().any(|(name, _)| idx::split_of(name).is_some());
    let cifar10 = sorted.iter().any(|(name, _)| cifar10::is_train(name).is_some());
    let (format, std, (train, test)) = match (cifar10, idx) {
        (true, false) => ("cifar10", 0.25, cifar10::decode(&sorted, classes)?),
        (false, true) => ("idx", 0.5, idx::decode(&sorted, classes)?),
        (both, _) => {
            let names: Vec<&str> = sorted.iter().map(|(name, _)| *name).collect();
            let found = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let expected = if both { "the files of one format only" } else { NAMES };
            return Err(DatasetError::Format { found, expected });
        }
    };
    if train.is_empty() && test.is_empty() {
        return Err(DatasetError::Empty);
    }
    Ok(Dataset { format, classes, class_names, train, test, mean: 0.5, std })
}

/// The names of the classes, if a file gives them.
fn class_names(files: &[(String, Vec<u8>)]) -> Result<Vec<String>, DatasetError> {
    let find = |wanted: &str| files.iter().find(|(name, _)| name == wanted);
    let Some((name, bytes)) = find("labels.txt").or_else(|| find("batches.meta.txt")) else {
        return Ok(Vec::new());
    };
    let problem = || DatasetError::File {
        file: name.clone(),
        problem: "expected UTF-8 text with one class name a line".to_owned(),
    };
    let text = std::str::from_utf8(bytes).map_err(|_| problem())?;
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if names.is_empty() { Err(problem()) } else { Ok(names) }
}

/// Checks that every label is below `classes`.
fn check_labels(file: &str, labels: &[u32], classes: usize) -> Result<(), DatasetError> {
    let max = u32::try_from(classes.saturating_sub(1)).unwrap_or(u32::MAX);
    match labels.iter().position(|label| *label > max) {
        Some(record) => {
            let label = labels[record];
            Err(DatasetError::Label { file: file.to_owned(), record, label, max })
        }
        None => Ok(()),
    }
}

impl Examples {
    /// Number of examples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no examples.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Pixels of one example, `c * h * w`.
    pub fn size(&self) -> usize {
        self.shape.iter().product()
    }

    /// Makes a batch: `out_x [n, c, h, w]` of `(pixel / 255 - mean) / std` and `out_labels [n]`,
    /// both emptied first, so that their memory is used again.
    ///
    /// # Panics
    /// When an index is not below [`Examples::len`].
    pub fn batch(
        &self,
        indices: &[usize],
        mean: f32,
        std: f32,
        out_x: &mut Vec<f32>,
        out_labels: &mut Vec<u32>,
    ) {
        let mut values = [0.0_f32; 256];
        for (value, pixel) in values.iter_mut().zip(0_u8..=255) {
            *value = (f32::from(pixel) / 255.0 - mean) / std;
        }
        out_x.clear();
        out_x.reserve(indices.len() * self.size());
        out_labels.clear();
        for &index in indices {
            out_x.extend(self.example(index).iter().map(|pixel| values[usize::from(*pixel)]));
            out_labels.push(self.labels[index]);
        }
    }

    /// Pixels of one example, `[c, h, w]` row-major.
    ///
    /// # Panics
    /// When the index is not below [`Examples::len`].
    pub fn example(&self, index: usize) -> &[u8] {
        let size = self.size();
        &self.pixels[index * size..(index + 1) * size]
    }

    /// The examples with these indices, in their order.
    ///
    /// # Panics
    /// When an index is not below [`Examples::len`].
    #[must_use]
    pub fn select(&self, indices: &[usize]) -> Examples {
        let mut pixels = Vec::with_capacity(indices.len() * self.size());
        for index in indices {
            pixels.extend_from_slice(self.example(*index));
        }
        let labels = indices.iter().map(|index| self.labels[*index]).collect();
        Examples { shape: self.shape, pixels, labels }
    }

    /// Examples of each of `classes` classes; labels outside of them are not counted.
    pub fn class_counts(&self, classes: usize) -> Vec<usize> {
        let mut counts = vec![0; classes];
        for label in &self.labels {
            if let Some(count) = counts.get_mut(*label as usize) {
                *count += 1;
            }
        }
        counts
    }

    /// Adds the examples of another file of the same shape.
    fn append(&mut self, other: Examples) {
        self.shape = other.shape;
        self.pixels.extend(other.pixels);
        self.labels.extend(other.labels);
    }
}

#[cfg(test)]
mod tests;
