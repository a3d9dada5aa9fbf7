//! IDX, the format of MNIST: big-endian extents, then bytes.
//!
//! Source: Y. LeCun, C. Cortes, C. Burges, <http://yann.lecun.com/exdb/mnist>, "File formats".

use super::{DatasetError, Examples, check_labels, gunzip};

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
    files: &[(&str, &[u8])],
    classes: usize,
) -> Result<(Examples, Examples), DatasetError> {
    let find = |part| files.iter().find(|(name, _)| split_of(name) == Some(part)).copied();
    let mut train = pair(find(Part::TrainImages), find(Part::TrainLabels), classes)?;
    let mut test = pair(find(Part::TestImages), find(Part::TestLabels), classes)?;
    if train.is_empty() {
        train.shape = test.shape;
    } else if test.is_empty() {
        test.shape = train.shape;
    } else if train.shape != test.shape {
        let file = find(Part::TestImages).map_or("", |(name, _)| name).to_owned();
        let problem = format!(
            "images of {:?} pixels, the training images have {:?}",
            &test.shape[1..],
            &train.shape[1..]
        );
        return Err(DatasetError::File { file, problem });
    }
    Ok((train, test))
}

/// Joins images and labels; empty when neither file is there.
fn pair(
    images: Option<(&str, &[u8])>,
    labels: Option<(&str, &[u8])>,
    classes: usize,
) -> Result<Examples, DatasetError> {
    let (images, labels) = match (images, labels) {
        (None, None) => return Ok(Examples::default()),
        (Some(images), Some(labels)) => (images, labels),
        (Some((file, _)), None) => return Err(error(file, "its labels file is missing".into())),
        (None, Some((file, _))) => return Err(error(file, "its images file is missing".into())),
    };
    let (extents, pixels) = parse(images, IMAGES_MAGIC)?;
    let (counts, classes_of) = parse(labels, LABELS_MAGIC)?;
    if counts[0] != extents[0] {
        let problem = format!("{} labels for {} images of {}", counts[0], extents[0], images.0);
        return Err(error(labels.0, problem));
    }
    if extents[0] > 0 && (extents[1] == 0 || extents[2] == 0) {
        return Err(error(images.0, format!("images of {:?} pixels", &extents[1..])));
    }
    let labels_of: Vec<u32> = classes_of.iter().map(|label| u32::from(*label)).collect();
    check_labels(labels.0, &labels_of, classes)?;
    Ok(Examples { shape: [1, extents[1], extents[2]], pixels, labels: labels_of })
}

/// The extents and the bytes of a file with this magic number.
fn parse(
    (file, bytes): (&str, &[u8]),
    magic: [u8; 4],
) -> Result<(Vec<usize>, Vec<u8>), DatasetError> {
    let bytes = gunzip::content(file, bytes)?;
    let dimensions = usize::from(magic[3]);
    let header = 4 + 4 * dimensions;
    let found = &bytes[..4.min(bytes.len())];
    if found != magic {
        let problem =
            format!("expected an IDX file of bytes (begins with {magic:?}), found {found:?}");
        return Err(error(file, problem));
    }
    let Some(fields) = bytes.get(4..header) else {
        let problem = format!("{} bytes, expected a header of {header}: truncated", bytes.len());
        return Err(error(file, problem));
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
        return Err(error(file, problem));
    }
    Ok((extents, rest.to_vec()))
}

/// Writes examples as an IDX file of images and one of labels; `None` when they have more than
/// one channel, or a label needs more than a byte.
pub fn encode(examples: &Examples) -> Option<(Vec<u8>, Vec<u8>)> {
    let [1, h, w] = examples.shape else { return None };
    let field = |extent: usize| u32::try_from(extent).ok().map(u32::to_be_bytes);
    let mut images = IMAGES_MAGIC.to_vec();
    for extent in [examples.len(), h, w] {
        images.extend(field(extent)?);
    }
    images.extend_from_slice(&examples.pixels);
    let mut labels = LABELS_MAGIC.to_vec();
    labels.extend(field(examples.len())?);
    for label in &examples.labels {
        labels.push(u8::try_from(*label).ok()?);
    }
    Some((images, labels))
}

fn error(file: &str, problem: String) -> DatasetError {
    DatasetError::File { file: file.to_owned(), problem }
}
