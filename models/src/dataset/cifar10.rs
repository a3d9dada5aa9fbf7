//! CIFAR-10's binary format: records of one label byte and 3072 pixels, planes red, green, blue,
//! each 32 rows of 32.
//!
//! Source: Krizhevsky, <https://www.cs.toronto.edu/~kriz/cifar.html>, "Binary version".

use super::{DatasetError, Examples, check_labels, gunzip};

/// Shape of one example.
const SHAPE: [usize; 3] = [3, 32, 32];
/// Pixels of one example.
const PIXELS: usize = 3 * 32 * 32;

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

/// Training and test examples of the files that have such names.
pub(super) fn decode(
    files: &[(&str, &[u8])],
    classes: usize,
) -> Result<(Examples, Examples), DatasetError> {
    let empty = Examples { shape: SHAPE, ..Examples::default() };
    let (mut train, mut test) = (empty.clone(), empty);
    for (name, bytes) in files {
        match is_train(name) {
            Some(true) => train.append(records(name, bytes, classes)?),
            Some(false) => test.append(records(name, bytes, classes)?),
            None => {}
        }
    }
    Ok((train, test))
}

fn records(file: &str, bytes: &[u8], classes: usize) -> Result<Examples, DatasetError> {
    let bytes = gunzip::content(file, bytes)?;
    let records = bytes.chunks_exact(1 + PIXELS);
    if !records.remainder().is_empty() {
        let problem = format!(
            "{} bytes, expected records of {} bytes: {} are left over, the file is truncated or \
             not CIFAR-10",
            bytes.len(),
            1 + PIXELS,
            records.remainder().len()
        );
        return Err(DatasetError::File { file: file.to_owned(), problem });
    }
    let mut examples = Examples {
        shape: SHAPE,
        pixels: Vec::with_capacity(records.len() * PIXELS),
        labels: Vec::with_capacity(records.len()),
    };
    for record in records {
        examples.labels.push(u32::from(record[0]));
        examples.pixels.extend_from_slice(&record[1..]);
    }
    check_labels(file, &examples.labels, classes)?;
    Ok(examples)
}

/// Writes examples as CIFAR-10 records; `None` when they are not of shape `[3, 32, 32]` or a
/// label needs more than a byte.
pub fn encode(examples: &Examples) -> Option<Vec<u8>> {
    if examples.shape != SHAPE {
        return None;
    }
    let mut bytes = Vec::with_capacity(examples.len() * (1 + PIXELS));
    for (index, label) in examples.labels.iter().enumerate() {
        bytes.push(u8::try_from(*label).ok()?);
        bytes.extend_from_slice(examples.example(index));
    }
    Some(bytes)
}
