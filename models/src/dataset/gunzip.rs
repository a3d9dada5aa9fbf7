//! Files that may be gzipped.

use std::borrow::Cow;
use std::io::Read as _;

use super::DatasetError;

/// Bytes of an unpacked file, at most: the largest sets of the binary formats stay well below.
const UNPACKED_MAX: u64 = 1 << 30;

/// The file's content, unpacked if it begins as gzip does; `max` bytes at most.
pub(super) fn unpacked<'a>(
    file: &str,
    bytes: Cow<'a, [u8]>,
    max: u64,
) -> Result<Cow<'a, [u8]>, DatasetError> {
    if !bytes.starts_with(b"\x1f\x8b") {
        return Ok(bytes);
    }
    let problem = |problem: String| DatasetError::file(file, problem);
    let max = max.min(UNPACKED_MAX);
    let mut unpacked = Vec::new();
    flate2::read::MultiGzDecoder::new(&*bytes)
        .take(max + 1)
        .read_to_end(&mut unpacked)
        .map_err(|error| problem(format!("damaged or truncated gzip file: {error}")))?;
    if unpacked.len() as u64 > max {
        return Err(problem(format!("more than {max} bytes when unpacked: split it")));
    }
    Ok(Cow::Owned(unpacked))
}

/// The name without `.gz`.
pub(super) fn plain(name: &str) -> &str {
    name.strip_suffix(".gz").unwrap_or(name)
}
