//! CIFAR's binary formats: records of one label byte (CIFAR-10) or a coarse and a fine one
//! (CIFAR-100), and 3072 pixels, planes red, green, blue, each 32 rows of 32.
//!
//! Source: Krizhevsky, <https://www.cs.toronto.edu/~kriz/cifar.html>, "Binary version".

use super::files::Source;
use super::{DatasetError, Examples, Limits, check_labels, gunzip, with_capacity};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cifar {
    /// Ten classes, one label byte.
    Ten,
    /// A hundred classes: the fine label, which is a record's second byte.
    Hundred,
}

/// Shape of one example.
const SHAPE: [usize; 3] = [3, 32, 32];
/// Pixels of one example.
const PIXELS: usize = 3 * 32 * 32;
/// Coarse classes of CIFAR-100.
const COARSE: u8 = 20;
/// CIFAR-100's names of its classes, a file of the binary version.
pub(super) const FINE_NAMES: &str = "fine_label_names.txt";

/// The coarse class of each fine one, as the data set has them.
#[rustfmt::skip]
const COARSE_OF_FINE: [u8; 100] = [
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15,
    3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4,
    2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13,
    16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
];

impl Cifar {
    /// Bytes of a record.
    pub const fn record(self) -> usize {
        match self {
            Self::Ten => 1 + PIXELS,
            Self::Hundred => 2 + PIXELS,
        }
    }

    /// Number of classes.
    pub const fn classes(self) -> usize {
        match self {
            Self::Ten => 10,
            Self::Hundred => 100,
        }
    }

    /// The word for it in facts.
    pub const fn format(self) -> &'static str {
        match self {
            Self::Ten => "cifar10",
            Self::Hundred => "cifar100",
        }
    }
}

/// Whether a file name says training (true) or test (false) records.
pub(super) fn is_train(name: &str) -> Option<bool> {
    let stem = gunzip::plain(name).strip_suffix(".bin")?;
    if stem.starts_with("data_batch") || stem.starts_with("train") {
        Some(true)
    } else if stem.starts_with("test") {
        Some(false)
    } else {
        None
    }
}

/// Which of the two formats the files are in: by the names beside the records, else by what
/// size of a record the files are made of.
pub(super) fn kind(source: Source<'_>) -> Result<Cifar, DatasetError> {
    let coarse = source.has("coarse_label_names.txt");
    if source.has(FINE_NAMES) || coarse {
        return Ok(Cifar::Hundred);
    }
    let ten = |name: &&str| name.starts_with("data_batch") || *name == "batches.meta.txt";
    if source.names().iter().any(ten) {
        return Ok(Cifar::Ten);
    }
    for name in source.names().iter().filter(|name| is_train(name).is_some()) {
        let length = source.content(name)?.len();
        let fits = |cifar: Cifar| length.is_multiple_of(cifar.record());
        match (fits(Cifar::Ten), fits(Cifar::Hundred)) {
            (true, true) if length == 0 => {}
            (true, true) => {
                let problem = format!(
                    "{length} bytes are whole records of CIFAR-10 ({}) and of CIFAR-100 ({}): \
                     put batches.meta.txt or {FINE_NAMES} beside the file, which tells them apart",
                    Cifar::Ten.record(),
                    Cifar::Hundred.record()
                );
                return Err(DatasetError::file(*name, problem));
            }
            (_, hundred) => return Ok(if hundred { Cifar::Hundred } else { Cifar::Ten }),
        }
    }
    Ok(Cifar::Ten)
}

/// Training and test examples of the files that have such names.
pub(super) fn decode(
    source: Source<'_>,
    cifar: Cifar,
    classes: usize,
    limits: Limits,
) -> Result<(Examples, Examples), DatasetError> {
    let part = |wanted: bool| {
        let names = source.names().iter().filter(|name| is_train(name) == Some(wanted));
        // Taken at once: a vector that grows holds its values twice at times.
        let size: u64 = names.map(|name| source.size(name)).sum();
        let records = usize::try_from(size).unwrap_or(usize::MAX) / cifar.record();
        Part { pixels: with_capacity(records.saturating_mul(PIXELS), limits), labels: Vec::new() }
    };
    let mut parts = [part(true), part(false)];
    for name in source.names() {
        let Some(train) = is_train(name) else { continue };
        parts[usize::from(!train)].add(source, name, cifar, classes)?;
        limits.check(parts.iter().map(|part| part.pixels.len()).sum())?;
    }
    let [train, test] = parts.map(|part| Examples::pictures(SHAPE, part.pixels, part.labels));
    Ok((train, test))
}

/// Records of several files.
struct Part {
    pixels: Vec<u8>,
    labels: Vec<u32>,
}

impl Part {
    fn add(
        &mut self,
        source: Source<'_>,
        file: &str,
        cifar: Cifar,
        classes: usize,
    ) -> Result<(), DatasetError> {
        let bytes = source.content(file)?;
        let size = cifar.record();
        let records = bytes.chunks_exact(size);
        if !records.remainder().is_empty() {
            let problem = format!(
                "{} bytes, expected records of {size} bytes ({}): {} are left over, the file is \
                 truncated or another thing",
                bytes.len(),
                cifar.format(),
                records.remainder().len()
            );
            return Err(DatasetError::file(file, problem));
        }
        let before = self.labels.len();
        for (index, record) in records.enumerate() {
            let (head, picture) = record.split_at(size - PIXELS);
            if cifar == Cifar::Hundred && head[0] >= COARSE {
                let problem = format!(
                    "record {index} has coarse label {}, expected 0 to {}: not CIFAR-100",
                    head[0],
                    COARSE - 1
                );
                return Err(DatasetError::file(file, problem));
            }
            self.labels.push(u32::from(head[head.len() - 1]));
            self.pixels.extend_from_slice(picture);
        }
        check_labels(file, &self.labels[before..], classes)
    }
}

/// Writes examples as records; `None` when they are not pictures of shape `[3, 32, 32]` or a
/// label is not one of the format's.
pub fn encode(examples: &Examples, cifar: Cifar) -> Option<Vec<u8>> {
    if examples.shape != SHAPE {
        return None;
    }
    let mut bytes = Vec::with_capacity(examples.len() * cifar.record());
    for (index, label) in examples.labels.iter().enumerate() {
        if cifar == Cifar::Hundred {
            bytes.push(*COARSE_OF_FINE.get(*label as usize)?);
        }
        bytes.push(u8::try_from(*label).ok()?);
        bytes.extend_from_slice(examples.picture(index)?);
    }
    Some(bytes)
}
