//! Where each tensor lies in a safetensors blob of parameters.

use std::ops::Range;

use bytes::Bytes;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::{Parameter, Parameters, ParametersError};
use crate::kernels::simd::vectorised;
use crate::onnx::TensorProto;

/// Longest header accepted: 100,000 tensors with long names fit.
pub const HEADER_BYTES_MAX: usize = 16 << 20;

/// Bytes before the header: its length as a little-endian `u64`.
const LENGTH_BYTES: usize = 8;

/// Bytes that are looked at together when a blob is checked.
const PIECE_BYTES: usize = 64 * 1024;

/// One tensor in the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The parameter's name.
    pub name: String,
    /// Extents, slowest first.
    pub shape: Vec<usize>,
    /// Its place, counted in `f32` elements from the start of the data.
    pub elements: Range<usize>,
}

/// A blob's header, understood: spans follow each other without gaps, in the order of the data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    data_start: usize,
    spans: Vec<Span>,
}

impl Layout {
    /// The layout of the blob that [`Parameters::to_safetensors`] makes.
    pub fn of(parameters: &Parameters) -> Self {
        let tensors = parameters.items().iter();
        Self::new(tensors.map(|item| (item.name.as_str(), item.shape.as_slice())))
    }

    /// Tensors of these names and shapes, one after another.
    pub fn new<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> Self {
        let mut start = 0;
        let spans = tensors.map(|(name, shape)| {
            let elements = start..start + shape.iter().product::<usize>();
            start = elements.end;
            Span { name: name.to_owned(), shape: shape.to_vec(), elements }
        });
        let mut layout = Self { data_start: 0, spans: spans.collect() };
        layout.data_start = layout.header().len();
        layout
    }

    /// Reads the layout from the first bytes of a blob; `None` while they do not hold the whole
    /// header yet.
    ///
    /// # Errors
    /// [`ParametersError::Format`] for what can be no header, and for tensors that are not `F32`.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, ParametersError> {
        let format = |problem: String| Err(ParametersError::Format(problem));
        let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u64::from_le_bytes(*length);
        let length = match usize::try_from(length) {
            Ok(length) if length <= HEADER_BYTES_MAX => length,
            Ok(_) | Err(_) => {
                return format(format!(
                    "expected a safetensors header of at most {HEADER_BYTES_MAX} bytes, its length reads {length}"
                ));
            }
        };
        if rest.first().is_some_and(|byte| *byte != b'{') {
            return format("expected a safetensors header in JSON".to_owned());
        }
        let Some(header) = rest.get(..length) else { return Ok(None) };
        let metadata: Metadata = match serde_json::from_slice(header) {
            Ok(metadata) => metadata,
            Err(error) => return format(format!("safetensors header: {error}")),
        };
        let mut spans = Vec::new();
        for name in metadata.offset_keys() {
            let Some(info) = metadata.info(&name) else { continue };
            if info.dtype != Dtype::F32 {
                return format(format!("tensor {name:?} is of {}, expected F32", info.dtype));
            }
            let elements = info.data_offsets.0 / 4..info.data_offsets.1 / 4;
            spans.push(Span { name, shape: info.shape.clone(), elements });
        }
        Ok(Some(Self { data_start: LENGTH_BYTES + length, spans }))
    }

    /// The layout of a blob that is there to its end.
    ///
    /// # Errors
    /// [`ParametersError::Format`].
    pub fn of_whole(blob: &[u8]) -> Result<Self, ParametersError> {
        let layout = Self::parse(blob)?.ok_or_else(|| {
            ParametersError::Format(format!("{} bytes end within the header", blob.len()))
        })?;
        if blob.len() == layout.byte_len() {
            return Ok(layout);
        }
        Err(ParametersError::Format(format!(
            "the header announces {} bytes, found {}",
            layout.byte_len(),
            blob.len()
        )))
    }

    /// Bytes before the first value.
    pub fn data_start(&self) -> usize {
        self.data_start
    }

    /// Bytes of the whole blob.
    pub fn byte_len(&self) -> usize {
        self.data_start.saturating_add(self.total_len().saturating_mul(4))
    }

    /// Number of values.
    pub fn total_len(&self) -> usize {
        self.spans.last().map_or(0, |span| span.elements.end)
    }

    /// The tensors in the order of the data.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Whether a blob of this layout can stand for one of `model`, element by element: the same
    /// names and shapes in the same places.
    ///
    /// # Errors
    /// [`ParametersError`] naming the first tensor that is missing, unexpected, of another shape
    /// or elsewhere.
    pub fn check_like(&self, model: &Layout) -> Result<(), ParametersError> {
        let mine = self.by_name();
        let theirs = model.by_name();
        for (at, expected) in theirs.iter().enumerate() {
            let found = match mine.get(at) {
                Some(found) if found.name < expected.name => {
                    return Err(ParametersError::Unexpected(found.name.clone()));
                }
                Some(found) if found.name == expected.name => found,
                Some(_) | None => return Err(ParametersError::Missing(expected.name.clone())),
            };
            if found.shape != expected.shape {
                return Err(ParametersError::Shape {
                    name: found.name.clone(),
                    expected: expected.shape.clone(),
                    found: found.shape.clone(),
                });
            }
            if found.elements != expected.elements {
                return Err(ParametersError::Format(format!(
                    "parameter {:?} lies at elements {:?}, expected {:?}: write tensors in name order",
                    found.name, found.elements, expected.elements
                )));
            }
        }
        mine.get(theirs.len())
            .map_or(Ok(()), |extra| Err(ParametersError::Unexpected(extra.name.clone())))
    }

    /// Parameters of these values, which lie as in the blob.
    ///
    /// # Errors
    /// [`ParametersError::Format`] when the values are not as many as the layout has.
    pub fn parameters(&self, values: &[f32]) -> Result<Parameters, ParametersError> {
        if values.len() != self.total_len() {
            let (expected, found) = (self.total_len(), values.len());
            let problem = format!("{found} values, expected {expected}");
            return Err(ParametersError::Format(problem));
        }
        let item = |span: &Span| Parameter {
            name: span.name.clone(),
            shape: span.shape.clone(),
            values: values[span.elements.clone()].to_vec(),
        };
        Parameters::new(self.spans.iter().map(item).collect())
    }

    /// Checks a piece of the data: `values` from element `offset` on.
    ///
    /// # Errors
    /// [`ParametersError::NotFinite`] for the first value that is NaN or infinite.
    pub fn check_finite(&self, offset: usize, values: &[f32]) -> Result<(), ParametersError> {
        let Some(at) = first_not_finite(values) else { return Ok(()) };
        let element = offset + at;
        let span = self.spans.partition_point(|span| span.elements.end <= element);
        let (name, start) = self
            .spans
            .get(span)
            .map_or((String::new(), 0), |span| (span.name.clone(), span.elements.start));
        Err(ParametersError::NotFinite { name, index: element - start, value: values[at] })
    }

    /// The blob's first bytes, up to the first value.
    #[expect(clippy::missing_panics_doc, reason = "spans always make a header")]
    pub fn header(&self) -> Vec<u8> {
        let info = |span: &Span| TensorInfo {
            dtype: Dtype::F32,
            shape: span.shape.clone(),
            data_offsets: (span.elements.start * 4, span.elements.end * 4),
        };
        let tensors = self.spans.iter().map(|span| (span.name.clone(), info(span))).collect();
        let metadata = Metadata::new(None, tensors).expect("spans follow each other");
        let mut json = serde_json::to_vec(&metadata).expect("names and numbers are JSON");
        json.resize(json.len().next_multiple_of(LENGTH_BYTES), b' ');
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut json);
        bytes
    }

    fn by_name(&self) -> Vec<&Span> {
        let mut spans: Vec<&Span> = self.spans.iter().collect();
        spans.sort_by(|a, b| a.name.cmp(&b.name));
        spans
    }
}

/// The tensors of a blob, which share its memory, once it is found to be one of `model`.
pub(crate) fn tensors(blob: &Bytes, model: &Layout) -> Result<Vec<TensorProto>, ParametersError> {
    let layout = Layout::of_whole(blob)?;
    layout.check_like(model)?;
    let data = blob.slice(layout.data_start..);
    let tensors = layout.spans.iter().map(|span| {
        let raw = data.slice(span.elements.start * 4..span.elements.end * 4);
        for (at, piece) in raw.chunks(PIECE_BYTES).enumerate() {
            let offset = span.elements.start + at * PIECE_BYTES / 4;
            layout.check_finite(offset, &from_le_bytes(piece))?;
        }
        Ok(TensorProto::raw_f32(&span.name, &span.shape, raw))
    });
    tensors.collect()
}

/// Number of elements of a shape; `None` when it overflows.
pub(super) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent))
}

/// Values from little-endian bytes, as they lie in a blob; bytes left over are ignored.
pub fn from_le_bytes(bytes: &[u8]) -> Vec<f32> {
    let mut values = Vec::new();
    extend_from_le_bytes(&mut values, bytes);
    values
}

/// Appends the same values to others.
pub fn extend_from_le_bytes(values: &mut Vec<f32>, bytes: &[u8]) {
    values.extend(bytes.as_chunks::<4>().0.iter().map(|chunk| f32::from_le_bytes(*chunk)));
}

/// Where the first value is that is NaN or infinite.
pub(crate) fn first_not_finite(values: &[f32]) -> Option<usize> {
    let mut spoiled = false;
    // A loop without a way out is made of vectors.
    vectorised(|| spoiled = values.iter().fold(false, |found, value| found | !value.is_finite()));
    if spoiled { values.iter().position(|value| !value.is_finite()) } else { None }
}

/// Appends values as little-endian bytes, as they lie in a blob.
pub fn append_le_bytes(values: &[f32], bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(as_le_bytes(values));
}

/// Values as they lie in a blob.
pub fn as_le_bytes(values: &[f32]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "all devices are") };
    bytemuck::cast_slice(values)
}
