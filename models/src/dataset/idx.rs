//! IDX, the format of MNIST: big-endian extents, then bytes.
//!
//! Source: Y. LeCun, C. Cortes, C. Burges, <http://yann.lecun.com/exdb/mnist>, "File formats".

use super::files::Source;
use super::{DatasetError, Examples, Limits, Values, check_labels, gunzip};

/// The pair of files that hold one part of the data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    TrainImages,
    TrainLabels,
    TestImages,
    TestLabels,
}

/// Unsigned bytes in three dimensions.
const IMAGES_MAGIC: [u8; 4] = [0, 0, 8, 3];
/// Unsigned bytes in one dimension.
const LABELS_MAGIC: [u8; 4] = [0, 0, 8, 1];

/// Which part a file holds, by its name.
pub(super) fn split_of(name: &str) -> Option<Part> {
    match gunzip::plain(name).replace(".idx", "-idx").as_str() {
        "train-images-idx3-ubyte" => Some(Part::TrainImages),
        "train-labels-idx1-ubyte" => Some(Part::TrainLabels),
        "t10k-images-idx3-ubyte" => Some(Part::TestImages),
        "t10k-labels-idx1-ubyte" => Some(Part::TestLabels),
        _ => None,
    }
}

/// Training and test examples of the files that have such names.
pub(super) fn decode(
    source: Source<'_>,
    classes: usize,
    limits: Limits,
) -> Result<(Examples, Examples), DatasetError> {
    let find = |part| source.names().iter().find(|name| split_of(name) == Some(part)).copied();
    let pair = |images, labels| pair(source, find(images), find(labels), classes);
    let mut train = pair(Part::TrainImages, Part::TrainLabels)?;
    let mut test = pair(Part::TestImages, Part::TestLabels)?;
    limits.check(train.bytes() + test.bytes())?;
    if train.is_empty() {
        train.shape = test.shape;
    } else if test.is_empty() {
        test.shape = train.shape;
    } else if train.shape != test.shape {
        let file = find(Part::TestImages).unwrap_or_default();
        let problem = format!(
            "images of {:?} pixels, the training images have {:?}",
            &test.shape[1..],
            &train.shape[1..]
        );
        return Err(DatasetError::file(file, problem));
    }
    Ok((train, test))
}

/// Joins images and labels; empty when neither file is there.
fn pair(
    source: Source<'_>,
    images: Option<&str>,
    labels: Option<&str>,
    classes: usize,
) -> Result<Examples, DatasetError> {
    let (images, labels) = match (images, labels) {
        (None, None) => return Ok(Examples::default()),
        (Some(images), Some(labels)) => (images, labels),
        (Some(file), None) => return Err(DatasetError::file(file, "its labels file is missing")),
        (None, Some(file)) => return Err(DatasetError::file(file, "its images file is missing")),
    };
    let (extents, pixels) = parse(source, images, IMAGES_MAGIC)?;
    let (counts, classes_of) = parse(source, labels, LABELS_MAGIC)?;
    if counts[0] != extents[0] {
        let problem = format!("{} labels for {} images of {images}", counts[0], extents[0]);
        return Err(DatasetError::file(labels, problem));
    }
    if extents[0] > 0 && (extents[1] == 0 || extents[2] == 0) {
        return Err(DatasetError::file(images, format!("images of {:?} pixels", &extents[1..])));
    }
    let labels_of: Vec<u32> = classes_of.iter().map(|label| u32::from(*label)).collect();
    check_labels(labels, &labels_of, classes)?;
    Ok(Examples::pictures([1, extents[1], extents[2]], pixels, labels_of))
}

/// The extents and the bytes of a file with this magic number.
fn parse(
    source: Source<'_>,
    file: &str,
    magic: [u8; 4],
) -> Result<(Vec<usize>, Vec<u8>), DatasetError> {
    let mut bytes = source.content(file)?.into_owned();
    let dimensions = usize::from(magic[3]);
    let header = 4 + 4 * dimensions;
    let found = &bytes[..4.min(bytes.len())];
    if found != magic {
        let problem =
            format!("expected an IDX file of bytes (begins with {magic:?}), found {found:?}");
        return Err(DatasetError::file(file, problem));
    }
    let Some(fields) = bytes.get(4..header) else {
        let problem = format!("{} bytes, expected a header of {header}: truncated", bytes.len());
        return Err(DatasetError::file(file, problem));
    };
    let extents: Vec<usize> = fields
        .chunks_exact(4)
        .map(|field| field.iter().fold(0, |value, byte| value << 8 | usize::from(*byte)))
        .collect();
    let expected = extents.iter().try_fold(1_usize, |size, extent| size.checked_mul(*extent));
    let rest = &bytes[header..];
    if expected != Some(rest.len()) {
        let problem = format!(
            "{} bytes after the header, expected {} for the extents {extents:?}: truncated or \
             damaged",
            rest.len(),
            expected.map_or("too many".to_owned(), |size| size.to_string()),
        );
        return Err(DatasetError::file(file, problem));
    }
    bytes.drain(..header);
    Ok((extents, bytes))
}

/// Writes examples as an IDX file of images and one of labels; `None` when they have more than
/// one channel or are no pictures, or a label needs more than a byte.
pub fn encode(examples: &Examples) -> Option<(Vec<u8>, Vec<u8>)> {
    let [1, h, w] = examples.shape else { return None };
    let field = |extent: usize| u32::try_from(extent).ok().map(u32::to_be_bytes);
    let mut images = IMAGES_MAGIC.to_vec();
    for extent in [examples.len(), h, w] {
        images.extend(field(extent)?);
    }
    let Values::Pixels(pixels) = &examples.values else { return None };
    images.extend_from_slice(pixels);
    let mut labels = LABELS_MAGIC.to_vec();
    labels.extend(field(examples.len())?);
    for label in &examples.labels {
        labels.push(u8::try_from(*label).ok()?);
    }
    Some((images, labels))
}
