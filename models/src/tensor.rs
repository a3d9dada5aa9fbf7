//! Host tensors: shape, element type, row-major data.

// Elements travel as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"), "big-endian machines are not supported");

/// Elements of a tensor.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are the ONNX element types of the same names")]
pub enum Data {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    Bool(Vec<bool>),
}

/// A tensor in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: Data,
}

/// Why numbers do not make a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The shape wants another number of elements.
    #[error("shape {shape:?} needs {expected} elements, found {found}")]
    Length {
        /// The shape.
        shape: Vec<usize>,
        /// Its number of elements.
        expected: usize,
        /// The number given.
        found: usize,
    },
    /// The last element is not whole.
    #[error("{found} bytes hold no whole number of {datatype} elements")]
    Part {
        /// The element type.
        datatype: String,
        /// The bytes given.
        found: usize,
    },
    /// The element type has no such name.
    #[error("datatype {0:?} is not known: expected FP32, FP64, INT64, INT32, INT8, UINT8 or BOOL")]
    Datatype(String),
}

/// Bytes of an element; `None` for the name of no element type of a tensor here.
pub fn width(datatype: &str) -> Option<usize> {
    match datatype {
        "FP64" | "INT64" => Some(8),
        "FP32" | "INT32" => Some(4),
        "INT8" | "UINT8" | "BOOL" => Some(1),
        _ => None,
    }
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(v) => v.len(),
            Data::F64(v) => v.len(),
            Data::I64(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::I8(v) => v.len(),
            Data::U8(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element type's name in Open Inference Protocol V2.
    pub fn datatype(&self) -> &'static str {
        match self {
            Data::F32(_) => "FP32",
            Data::F64(_) => "FP64",
            Data::I64(_) => "INT64",
            Data::I32(_) => "INT32",
            Data::I8(_) => "INT8",
            Data::U8(_) => "UINT8",
            Data::Bool(_) => "BOOL",
        }
    }
}

impl Tensor {
    /// Joins a shape and its elements.
    ///
    /// # Errors
    /// [`TensorError::Length`] when they do not fit.
    pub fn new(shape: &[usize], data: Data) -> Result<Self, TensorError> {
        let expected = shape.iter().product();
        let found = data.len();
        if expected == found {
            Ok(Self { shape: shape.to_vec(), data })
        } else {
            Err(TensorError::Length { shape: shape.to_vec(), expected, found })
        }
    }

    /// A tensor of `f32`; the common case of [`Tensor::new`].
    ///
    /// # Errors
    /// [`TensorError::Length`] when shape and elements do not fit.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Result<Self, TensorError> {
        Self::new(shape, Data::F32(data))
    }

    /// Extents, slowest first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The elements as `f32`, if they are.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(values) => Some(values),
            Data::F64(_)
            | Data::I64(_)
            | Data::I32(_)
            | Data::I8(_)
            | Data::U8(_)
            | Data::Bool(_) => None,
        }
    }

    /// Length of the elements in bytes, as they travel.
    pub fn size(&self) -> usize {
        self.data.len() * width(self.data.datatype()).unwrap_or(1)
    }

    /// Parses little-endian bytes, as they travel.
    ///
    /// # Errors
    /// [`TensorError`] for an unknown datatype or a length that does not fit the shape.
    pub fn from_le_bytes(
        datatype: &str,
        shape: &[usize],
        bytes: &[u8],
    ) -> Result<Self, TensorError> {
        macro_rules! parse {
            ($type:ty) => {{
                let (elements, rest) = bytes.as_chunks::<{ size_of::<$type>() }>();
                if !rest.is_empty() {
                    let (datatype, found) = (datatype.to_owned(), bytes.len());
                    return Err(TensorError::Part { datatype, found });
                }
                elements.iter().map(|bytes| <$type>::from_le_bytes(*bytes)).collect()
            }};
        }
        let data = match datatype {
            "FP32" => Data::F32(parse!(f32)),
            "FP64" => Data::F64(parse!(f64)),
            "INT64" => Data::I64(parse!(i64)),
            "INT32" => Data::I32(parse!(i32)),
            "INT8" => Data::I8(parse!(i8)),
            "UINT8" => Data::U8(bytes.to_vec()),
            "BOOL" => Data::Bool(bytes.iter().map(|byte| *byte != 0).collect()),
            other => return Err(TensorError::Datatype(other.to_owned())),
        };
        Self::new(shape, data)
    }

    /// The elements as little-endian bytes, as they travel.
    pub fn le_bytes(&self) -> &[u8] {
        match &self.data {
            Data::F32(v) => bytemuck::cast_slice(v),
            Data::F64(v) => bytemuck::cast_slice(v),
            Data::I64(v) => bytemuck::cast_slice(v),
            Data::I32(v) => bytemuck::cast_slice(v),
            Data::I8(v) => bytemuck::cast_slice(v),
            Data::U8(v) => v,
            Data::Bool(v) => bytemuck::cast_slice(v),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_round_trip() {
        let tensor = Tensor::f32(&[2, 1], vec![1.5, -2.0]).unwrap();
        let back = Tensor::from_le_bytes("FP32", &[2, 1], tensor.le_bytes()).unwrap();
        assert_eq!(back, tensor);
        for length in [7, 9, 12] {
            assert!(Tensor::from_le_bytes("FP32", &[2, 1], &vec![0; length]).is_err(), "{length}");
        }
        let tensor = Tensor::new(&[2], Data::I64(vec![1, -2])).unwrap();
        let (first, second) = tensor.le_bytes().split_at(8);
        assert_eq!(first, [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(second, [254, 255, 255, 255, 255, 255, 255, 255]);
        assert!(Tensor::from_le_bytes("BF16", &[1], &[0; 2]).is_err());
    }
}
