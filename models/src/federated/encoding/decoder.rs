//! Reads an encoded update while it arrives.

use super::{EncodingError, FRAME_VALUES, Format, Header, frame, layout_digest};
use crate::params::{Layout, ParametersError, append_le_bytes};

/// Parameters as safetensors, from a safetensors header and an encoded file behind it.
///
/// # Errors
/// [`EncodingError`].
pub fn decode_parameters(bytes: &[u8]) -> Result<Vec<u8>, EncodingError> {
    let layout = Layout::parse(bytes)?.ok_or_else(|| {
        ParametersError::Format(format!("{} bytes end within the header", bytes.len()))
    })?;
    let (header, file) = bytes.split_at(layout.data_start());
    let mut decoder = Decoder::new(layout.total_len(), &layout_digest(&layout), None);
    let mut parameters = header.to_vec();
    decoder.take(file, |_, values| append_le_bytes(values, &mut parameters))?;
    decoder.finish()?;
    Ok(parameters)
}

/// Decodes a file piece by piece. Memory: a frame, and what of a piece does not fill one.
#[derive(Debug)]
pub struct Decoder {
    values: usize,
    layout: String,
    base: Option<String>,
    header: Option<Header>,
    /// Bytes of the header or the frame that is not whole yet.
    waiting: Vec<u8>,
    /// Values that were handed out.
    done: usize,
}

impl Decoder {
    /// For updates of a model of so many values with this [layout](super::layout_digest). If they
    /// may be differences, then from the parameters of the digest `base`.
    pub fn new(values: usize, layout: &str, base: Option<&str>) -> Self {
        Self {
            values,
            layout: layout.to_owned(),
            base: base.map(str::to_owned),
            header: None,
            waiting: Vec::new(),
            done: 0,
        }
    }

    /// Whether its values are differences from the base; not known before the header is read.
    pub fn is_difference(&self) -> bool {
        self.header.as_ref().is_some_and(|header| header.base.is_some())
    }

    /// Takes the next bytes; hands out the values of each frame that is whole, with the index of
    /// the first.
    ///
    /// # Errors
    /// [`EncodingError`]; nothing that was handed out may be used then.
    pub fn take(
        &mut self,
        piece: &[u8],
        mut with: impl FnMut(usize, &[f32]),
    ) -> Result<(), EncodingError> {
        let joined;
        let mut bytes = piece;
        if !self.waiting.is_empty() {
            self.waiting.extend_from_slice(piece);
            joined = std::mem::take(&mut self.waiting);
            bytes = &joined;
        }
        if self.header.is_none() {
            let Some((header, length)) = Header::parse(bytes)? else {
                self.waiting = bytes.to_vec();
                return Ok(());
            };
            self.check(&header)?;
            bytes = &bytes[length..];
            self.header = Some(header);
        }
        let Some(Header { format, sparse, .. }) = self.header else { return Ok(()) };
        let format = (format, sparse);
        while let Some(frame) = self.frame(&mut bytes, format)? {
            self.read(frame, format, &mut with)?;
        }
        self.waiting = bytes.to_vec();
        Ok(())
    }

    /// The file is at its end.
    ///
    /// # Errors
    /// [`EncodingError::Length`] when values are missing.
    pub fn finish(self) -> Result<(), EncodingError> {
        let (expected, found) = (self.values, self.done);
        let whole = self.header.is_some() && self.waiting.is_empty() && expected == found;
        if whole { Ok(()) } else { Err(EncodingError::Length { expected, found }) }
    }

    fn check(&self, header: &Header) -> Result<(), EncodingError> {
        if header.layout != self.layout || header.values != self.values {
            let (expected, found) = (self.values, header.values);
            return Err(EncodingError::Layout { expected, found });
        }
        let Some(found) = &header.base else { return Ok(()) };
        if Some(found) == self.base.as_ref() {
            return Ok(());
        }
        let expected = match &self.base {
            Some(base) => format!("parameters, or differences from {base}"),
            None => "parameters".to_owned(),
        };
        let found = format!("differences from {}", found.chars().take(80).collect::<String>());
        Err(EncodingError::Base { expected, found })
    }

    /// Takes a whole frame off the front.
    fn frame<'a>(
        &self,
        bytes: &mut &'a [u8],
        (format, sparse): (Format, bool),
    ) -> Result<Option<&'a [u8]>, EncodingError> {
        if !bytes.is_empty() && self.done == self.values {
            return Err(EncodingError::TooLong);
        }
        let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > frame::bytes_max(format, sparse, self.next_count()) {
            let problem = "its frame is longer than the format makes it";
            return Err(EncodingError::Frame { offset: self.done, problem });
        }
        let Some((frame, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        *bytes = rest;
        Ok(Some(frame))
    }

    /// Values of the next frame.
    fn next_count(&self) -> usize {
        FRAME_VALUES.min(self.values - self.done)
    }

    fn read(
        &mut self,
        frame: &[u8],
        (format, sparse): (Format, bool),
        with: &mut impl FnMut(usize, &[f32]),
    ) -> Result<(), EncodingError> {
        let offset = self.done;
        let values = frame::read(format, sparse, frame, self.next_count());
        let values = values.map_err(|problem| EncodingError::Frame { offset, problem })?;
        // A loop without a way out is made of vectors.
        if !values.iter().fold(true, |all, value| all & value.is_finite()) {
            let at = values.iter().position(|value| !value.is_finite()).unwrap_or_default();
            let (index, value) = (offset + at, values[at]);
            return Err(EncodingError::NotFinite { index, value, format: format.as_str() });
        }
        with(offset, &values);
        self.done += values.len();
        Ok(())
    }
}
