//! What bytes look like that are no ONNX model.

/// First bytes that no ONNX file has, and what they mean.
const MAGICS: [(&[u8], &str); 7] = [
    (b"version https://git-lfs", "a Git-LFS pointer: fetch the file itself with git lfs pull"),
    (b"PK\x03\x04", "a zip archive (PyTorch's .pt and Keras' .keras are): export it to ONNX"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"\x89HDF\r\n", "an HDF5 file (Keras' .h5 is): export it to ONNX"),
    (b"\x80\x02", "a Python pickle (old PyTorch files are): export it to ONNX"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
];

/// What the bytes are, where they begin as no ONNX file does.
pub(super) fn certainly(bytes: &[u8]) -> Option<String> {
    if bytes.is_empty() {
        return Some("the file is empty: fetch it again".to_owned());
    }
    if let Some((_, what)) = MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        return Some((*what).to_owned());
    }
    match bytes.get(4..8) {
        Some(b"TFL3") => Some("a TensorFlow Lite model: convert it with tf2onnx".to_owned()),
        Some(_) | None => None,
    }
}

/// What the bytes are likely to be, once they were found to be no ONNX model.
pub(super) fn perhaps(bytes: &[u8]) -> Option<String> {
    if let Some((length, rest)) = bytes.split_first_chunk::<8>()
        && u64::from_le_bytes(*length) < 1 << 32
        && rest.first() == Some(&b'{')
    {
        return Some("a safetensors file: it has weights but no graph, export to ONNX".to_owned());
    }
    let head = &bytes[..bytes.len().min(512)];
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // A character cut in two at the end.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&head[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if text.chars().any(|c| c.is_control() && !c.is_ascii_whitespace()) {
        return None;
    }
    let text = text.trim_start_matches('\u{feff}').trim_start();
    let lower = text.to_ascii_lowercase();
    let what = if lower.starts_with("<!doctype html") || lower.starts_with("<html") {
        "an HTML page"
    } else if text.starts_with('<') {
        "XML"
    } else if text.starts_with(['{', '[']) {
        "JSON"
    } else {
        "text"
    };
    let start: String = text.chars().take(40).collect();
    Some(format!("it is {what} beginning {start:?}: check the address it was fetched from"))
}
