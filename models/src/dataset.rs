//! Data sets for training: decoded from bytes, split, partitioned, drawn in seeded batches.

/// Labelled examples of one shape, kept as bytes (pixels 0 to 255) until a batch needs floats.
#[derive(Debug, Clone, PartialEq)]
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
    /// To train on.
    pub train: Examples,
    /// To judge with; may be empty.
    pub test: Examples,
    /// How pixels become model inputs: `(pixel / 255 - mean) / std`.
    pub mean: f32,
    /// See `mean`.
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
    #[error("data set has no training examples")]
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

/// Decodes the files of a data set folder, by their names: CIFAR-10 binary (`data_batch_*.bin`,
/// `test_batch.bin`) or IDX (`train-images-idx3-ubyte`, ... and `t10k-...`), each possibly with
/// `.gz` behind it.
///
/// # Errors
/// [`DatasetError`] naming the file.
pub fn decode(_files: &[(String, Vec<u8>)]) -> Result<Dataset, DatasetError> {
    unimplemented!()
}
