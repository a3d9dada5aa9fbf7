//! Data sets for training: decoded from bytes, split, partitioned, drawn in seeded batches.

mod augment;
mod batches;
pub mod cifar;
mod examples;
mod files;
mod folder;
mod gunzip;
pub mod idx;
mod normalization;
mod options;
mod order;
pub mod partition;
pub mod table;
mod text;

pub use augment::Augmentation;
pub use batches::Batches;
pub use examples::{Examples, Values};
pub use files::Files;
use files::Source;
pub use normalization::{Normalization, NormalizationError};
use options::Options;
pub use order::Order;

/// A data set: what to train on and what to judge with.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// The file format it came in: `cifar10`, `cifar100`, `idx`, `image_folder`, `csv` or `text`.
    pub format: &'static str,
    /// Number of classes.
    pub classes: usize,
    /// Names of the classes by index; empty when they are unknown.
    pub class_names: Vec<String>,
    /// Names of a table's features; empty when they are unknown.
    pub columns: Vec<String>,
    /// To train on; may be empty when `test` is not.
    pub train: Examples,
    /// To judge with; may be empty when `train` is not.
    pub test: Examples,
    /// How values become inputs unless a training says otherwise. Pictures: mean 0.5 and
    /// deviation 0.25, or 0.5 for `idx`, so inputs from -2 to 2 or -1 to 1; numbers of a table
    /// are left as they are. `dataset.toml` may say otherwise.
    pub normalization: Normalization,
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
    /// The examples would fill the memory.
    #[error(
        "the examples take {bytes} bytes of memory, at most {max} are used: take fewer of them, \
         or smaller pictures (size in dataset.toml)"
    )]
    TooLarge {
        /// Bytes that all examples take, or those that were read.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
}

impl DatasetError {
    fn file(file: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::File { file: file.into(), problem: problem.into() }
    }
}

/// What decoding may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of memory for the examples.
    pub bytes: usize,
}

impl Default for Limits {
    /// 2 GiB, less a byte.
    fn default() -> Self {
        Self { bytes: 0x7fff_ffff }
    }
}

impl Limits {
    fn check(self, bytes: usize) -> Result<(), DatasetError> {
        if bytes > self.bytes {
            return Err(DatasetError::TooLarge { bytes, max: self.bytes });
        }
        Ok(())
    }
}

/// Room for so many bytes, as far as they are allowed.
fn with_capacity(bytes: usize, limits: Limits) -> Vec<u8> {
    Vec::with_capacity(bytes.min(limits.bytes))
}

/// Classes of a data set, at most.
const CLASSES_MAX: usize = 65_536;
/// Classes of IDX, unless `labels.txt` or `dataset.toml` say otherwise.
const IDX_CLASSES: usize = 10;
/// Share of the examples that is for testing, in formats whose files need not say.
const TEST_FRACTION: f64 = 0.2;
/// Names in the error about names, at most.
const NAMES_SHOWN: usize = 8;

/// The file names that are understood.
const NAMES: &str = "data_batch_*.bin, train*.bin and test*.bin (CIFAR), \
                     train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and \
                     t10k-labels-idx1-ubyte (IDX), train.csv and test.csv (CSV), each possibly \
                     with .gz; train/<class>/ and test/<class>/ with JPEG or PNG pictures; or \
                     train.txt and test.txt (text)";

/// The formats, told apart by names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Cifar,
    Idx,
    Table,
    Folder,
    Text,
}

impl Format {
    const ALL: [Self; 5] = [Self::Cifar, Self::Idx, Self::Table, Self::Text, Self::Folder];

    fn has(self, name: &str) -> bool {
        match self {
            Self::Cifar => cifar::is_train(name).is_some(),
            Self::Idx => idx::split_of(name).is_some(),
            Self::Table => table::is_table(name),
            Self::Folder => folder::is_picture(name),
            Self::Text => text::is_train(name).is_some(),
        }
    }
}

/// Decodes the files of a data set folder, by their names, those of data possibly with `.gz`
/// behind them:
///
/// - CIFAR-10 or CIFAR-100 binary (`data_batch_*.bin` or `train*.bin`, `test*.bin`);
/// - IDX (`train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-...`; a dot before `idx` is
///   accepted);
/// - CSV (`train*.csv` and `test*.csv`, or one table), a header being optional, the label in the
///   column `label` or the last one;
/// - pictures, a folder for each class (`train/<class>/...` and `test/<class>/...`, or
///   `<class>/...`);
/// - text (`train.txt` or `input.txt`, `test.txt`), whose characters are told from those before.
///
/// `labels.txt` (also `batches.meta.txt`, `fine_label_names.txt`), one name a line, names the
/// classes and so gives their number; `dataset.toml` says what files do not: `size`, `channels`,
/// `label`, `classes`, `context`, `alphabet`, `test_fraction`, `seed`, `mean`, `std`. Tables,
/// pictures and texts without a part for testing give a fifth of the examples to it. Files with
/// other names are left alone; training files are joined in name order, one at a time in memory.
///
/// # Errors
/// [`DatasetError`] naming the file.
pub fn decode(files: &dyn Files, limits: Limits) -> Result<Dataset, DatasetError> {
    let mut names = files.names();
    names.sort_unstable();
    let source = Source::new(files, &names, limits);
    let format = format_of(&names)?;
    let options = options::read(source)?;
    let given = class_names(source)?;
    let mut dataset = match format {
        Format::Cifar => of_cifar(source, &options, given, limits)?,
        Format::Idx => of_idx(source, &options, given, limits)?,
        Format::Table => of_table(source, &options, &given, limits)?,
        Format::Folder => of_folder(source, &options, &given, limits)?,
        Format::Text => of_text(source, &options, limits)?,
    };
    let own = (format == Format::Table).then_some(TEST_FRACTION);
    if let Some(fraction) = options.test_fraction.or(own)
        && dataset.test.is_empty()
    {
        dataset.split_off_test(fraction, options.seed);
    }
    if dataset.train.is_empty() && dataset.test.is_empty() {
        return Err(DatasetError::Empty);
    }
    if let Some(mean) = options.mean {
        dataset.normalization.mean = mean;
    }
    if let Some(std) = options.std {
        dataset.normalization.std = std;
    }
    let channels = dataset.channels();
    let checked = dataset.normalization.check(channels);
    checked.map_err(|error| DatasetError::file(options::FILE, error.to_string()))?;
    Ok(dataset)
}

/// The one format that the names are of.
fn format_of(names: &[&str]) -> Result<Format, DatasetError> {
    let has = |format: &Format| names.iter().any(|name| format.has(name));
    let formats: Vec<Format> = Format::ALL.into_iter().filter(has).collect();
    // Folders beside data files are left alone.
    if let [format] | [format, Format::Folder] = formats[..] {
        return Ok(format);
    }
    let mut found = names.iter().take(NAMES_SHOWN).copied().collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        "none".clone_into(&mut found);
    } else if names.len() > NAMES_SHOWN {
        found = format!("{found} and {} more", names.len() - NAMES_SHOWN);
    }
    let expected = if formats.is_empty() { NAMES } else { "the files of one format only" };
    Err(DatasetError::Format { found, expected })
}

fn of_cifar(
    source: Source<'_>,
    options: &Options,
    class_names: Vec<String>,
    limits: Limits,
) -> Result<Dataset, DatasetError> {
    let cifar = cifar::kind(source)?;
    let classes = count(options, &class_names, cifar.classes());
    let (train, test) = cifar::decode(source, cifar, classes, limits)?;
    let (format, normalization) = (cifar.format(), Normalization::uniform(0.5, 0.25));
    Ok(Dataset { format, classes, class_names, columns: Vec::new(), train, test, normalization })
}

fn of_idx(
    source: Source<'_>,
    options: &Options,
    class_names: Vec<String>,
    limits: Limits,
) -> Result<Dataset, DatasetError> {
    let classes = count(options, &class_names, IDX_CLASSES);
    let (train, test) = idx::decode(source, classes, limits)?;
    let (format, normalization) = ("idx", Normalization::uniform(0.5, 0.5));
    Ok(Dataset { format, classes, class_names, columns: Vec::new(), train, test, normalization })
}

fn of_table(
    source: Source<'_>,
    options: &Options,
    class_names: &[String],
    limits: Limits,
) -> Result<Dataset, DatasetError> {
    let read = table::decode(source, options, class_names, limits)?;
    let table::Tables { train, test, columns, class_names, classes } = read;
    let (format, normalization) = ("csv", Normalization::none());
    Ok(Dataset { format, classes, class_names, columns, train, test, normalization })
}

fn of_folder(
    source: Source<'_>,
    options: &Options,
    class_names: &[String],
    limits: Limits,
) -> Result<Dataset, DatasetError> {
    let folder::Pictures { train, test, class_names } =
        folder::decode(source, options, class_names, limits)?;
    let classes = count(options, &class_names, class_names.len()).max(class_names.len());
    let (format, normalization) = ("image_folder", Normalization::uniform(0.5, 0.25));
    Ok(Dataset { format, classes, class_names, columns: Vec::new(), train, test, normalization })
}

fn of_text(source: Source<'_>, options: &Options, limits: Limits) -> Result<Dataset, DatasetError> {
    let fraction = options.test_fraction.unwrap_or(TEST_FRACTION);
    let text::Text { train, test, class_names } = text::decode(source, options, fraction, limits)?;
    let (format, normalization) = ("text", Normalization::none());
    let classes = class_names.len();
    Ok(Dataset { format, classes, class_names, columns: Vec::new(), train, test, normalization })
}

/// The number of classes: that of the names, or what `dataset.toml` says, or the format's.
fn count(options: &Options, class_names: &[String], of_format: usize) -> usize {
    let named = (!class_names.is_empty()).then_some(class_names.len());
    named.or(options.classes).unwrap_or(of_format)
}

/// The names of the classes, if a file gives them.
fn class_names(source: Source<'_>) -> Result<Vec<String>, DatasetError> {
    for name in ["labels.txt", "batches.meta.txt", cifar::FINE_NAMES] {
        let Some(text) = source.text(name)? else { continue };
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let names: Vec<String> = lines.map(str::to_owned).collect();
        if names.is_empty() || names.len() > CLASSES_MAX {
            let problem = format!(
                "{} names, expected 1 to {CLASSES_MAX}, one class name a line",
                names.len()
            );
            return Err(DatasetError::file(name, problem));
        }
        return Ok(names);
    }
    Ok(Vec::new())
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

impl Dataset {
    /// Shape of one example as devices declare it: `[c, h, w]` of pictures, `[d]` of all others.
    pub fn example_shape(&self) -> Vec<usize> {
        let examples = self.any();
        match examples.values {
            Values::Pixels(_) => examples.shape.to_vec(),
            Values::Numbers(_) | Values::Symbols(_) => vec![examples.size()],
        }
    }

    /// Channels that are normalised, see [`Examples::channels`].
    pub fn channels(&self) -> usize {
        self.any().channels()
    }

    /// Whether the examples are pictures.
    pub fn is_pictures(&self) -> bool {
        matches!(self.any().values, Values::Pixels(_))
    }

    /// The part that is not empty.
    fn any(&self) -> &Examples {
        if self.train.is_empty() { &self.test } else { &self.train }
    }

    /// Moves a share of the training examples to the test part; at least one stays.
    fn split_off_test(&mut self, fraction: f64, seed: u64) {
        let is_test = drawn_for_test(self.train.len(), fraction, seed);
        if !is_test.contains(&true) {
            return;
        }
        self.test = self.train.split_off(&is_test);
    }
}

/// For each of `count` examples whether it is for testing: a share of them drawn from the seed,
/// never all.
fn drawn_for_test(count: usize, fraction: f64, seed: u64) -> Vec<bool> {
    let mut is_test = vec![false; count];
    let share = text::part_of(count, fraction).min(count.saturating_sub(1));
    for index in &Order::new(count, seed, 0).indices()[..share] {
        is_test[*index] = true;
    }
    is_test
}

#[cfg(test)]
mod tests;
