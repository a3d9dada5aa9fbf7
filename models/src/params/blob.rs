//! Parameters where they lie in a blob, so that none of them is held twice.

use std::ops::Range;

use super::layout::{Layout, from_le_bytes};
use super::{Parameters, ParametersError};

/// Values that are read together.
const PIECE: usize = 64 * 1024;

/// A safetensors blob, read in pieces.
#[derive(Debug, Clone)]
pub struct ParametersBlob<'a> {
    layout: Layout,
    data: &'a [u8],
}

impl<'a> ParametersBlob<'a> {
    /// Understands the header; values are not looked at.
    ///
    /// # Errors
    /// [`ParametersError::Format`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ParametersError> {
        let layout = Layout::of_whole(bytes)?;
        let data = &bytes[layout.data_start()..];
        Ok(Self { layout, data })
    }

    /// Where its tensors lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// These of its values, counted as the layout counts them.
    ///
    /// # Panics
    /// When they are not in the blob.
    pub fn values(&self, elements: Range<usize>) -> Vec<f32> {
        from_le_bytes(&self.data[elements.start * 4..elements.end * 4])
    }

    /// All values in order, some at a time, each with the place of the first.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, Vec<f32>)> {
        pieces(0..self.layout.total_len()).map(|piece| (piece.start, self.values(piece)))
    }

    /// Whether it can take the place of `model`: the same names and shapes in the same places, all
    /// values finite.
    ///
    /// # Errors
    /// [`ParametersError`] naming the first parameter that is missing, unexpected, of another
    /// shape, elsewhere or not finite.
    pub fn check_like(&self, model: &Layout) -> Result<(), ParametersError> {
        self.layout.check_like(model)?;
        self.pieces().try_for_each(|(start, values)| self.layout.check_finite(start, &values))
    }
}

impl Parameters {
    /// Makes of each value, and of the one in its place in a blob of the same layout, a new one.
    ///
    /// # Panics
    /// When the blob has other lengths.
    pub fn combine(&mut self, blob: &ParametersBlob<'_>, change: impl Fn(f32, f32) -> f32) {
        let spans = blob.layout.spans();
        assert_eq!(self.items.len(), spans.len());
        for (item, span) in self.items.iter_mut().zip(spans) {
            assert_eq!(item.values.len(), span.elements.len());
            let parts = item.values.chunks_mut(PIECE).zip(pieces(span.elements.clone()));
            for (values, piece) in parts {
                for (value, other) in values.iter_mut().zip(blob.values(piece)) {
                    *value = change(*value, other);
                }
            }
        }
    }
}

fn pieces(elements: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = elements.end;
    elements.step_by(PIECE).map(move |start| start..end.min(start + PIECE))
}
