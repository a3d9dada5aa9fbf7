//! Nested arrays of numbers in JSON, flattened while they are read.

use std::fmt;

use models::tensor::width;
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use serde_json::Value;

/// Levels of nesting, at most.
const DEPTH_MAX: usize = 16;

/// An element as JSON has it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Element {
    Float(f64),
    Integer(i64),
    Unsigned(u64),
    Truth(bool),
}

/// A rectangular nested array: its shape, and its elements row by row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Nested {
    shape: Vec<usize>,
    elements: Vec<Element>,
}

impl Nested {
    /// Extents, slowest first; empty for a single number.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements as little-endian bytes of a datatype of the Open Inference Protocol.
    ///
    /// # Errors
    /// A text that names the first element that does not fit, or the datatype.
    pub fn to_le_bytes(&self, datatype: &str) -> Result<Vec<u8>, String> {
        let width = width(datatype).ok_or_else(|| {
            format!(
                "datatype {datatype:?} is not known, expected FP32, FP64, INT64, INT32, INT8, \
                 UINT8 or BOOL"
            )
        })?;
        let mut out = Vec::with_capacity(self.elements.len() * width);
        for (index, element) in self.elements.iter().enumerate() {
            if !element.append(datatype, &mut out) {
                return Err(format!("element {index} is {element}, which is no {datatype}"));
            }
        }
        Ok(out)
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Float(value) => value.fmt(f),
            Element::Integer(value) => value.fmt(f),
            Element::Unsigned(value) => value.fmt(f),
            Element::Truth(value) => value.fmt(f),
        }
    }
}

impl Element {
    /// Appends the element; false when it does not fit the datatype.
    fn append(self, datatype: &str, out: &mut Vec<u8>) -> bool {
        match datatype {
            "FP32" => {
                // JSON has no infinity: a number that becomes one is no FP32.
                let value = self.float().map(as_f32).filter(|value| value.is_finite());
                value.is_some_and(|value| extend(out, value.to_le_bytes()))
            }
            "FP64" => self.float().is_some_and(|value| extend(out, value.to_le_bytes())),
            "INT64" => self.integer().is_some_and(|value| extend(out, value.to_le_bytes())),
            "INT32" => self
                .integer()
                .and_then(|value| i32::try_from(value).ok())
                .is_some_and(|value| extend(out, value.to_le_bytes())),
            "INT8" => self
                .integer()
                .and_then(|value| i8::try_from(value).ok())
                .is_some_and(|value| extend(out, value.to_le_bytes())),
            "UINT8" => self
                .integer()
                .and_then(|value| u8::try_from(value).ok())
                .is_some_and(|value| extend(out, [value])),
            "BOOL" => self.truth().is_some_and(|value| extend(out, [u8::from(value)])),
            _ => false,
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "floats were asked for")]
    fn float(self) -> Option<f64> {
        match self {
            Element::Float(value) => Some(value),
            Element::Integer(value) => Some(value as f64),
            Element::Unsigned(value) => Some(value as f64),
            Element::Truth(_) => None,
        }
    }

    fn integer(self) -> Option<i64> {
        match self {
            Element::Integer(value) => Some(value),
            Element::Unsigned(value) => i64::try_from(value).ok(),
            Element::Float(_) | Element::Truth(_) => None,
        }
    }

    fn truth(self) -> Option<bool> {
        match self {
            Element::Truth(value) => Some(value),
            Element::Unsigned(0) | Element::Integer(0) => Some(false),
            Element::Unsigned(1) | Element::Integer(1) => Some(true),
            Element::Float(_) | Element::Integer(_) | Element::Unsigned(_) => None,
        }
    }
}

fn extend<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N]) -> bool {
    out.extend_from_slice(&bytes);
    true
}

#[expect(clippy::cast_possible_truncation, reason = "rounds to the nearest f32")]
fn as_f32(value: f64) -> f32 {
    value as f32
}

/// The shortest decimal number that reads back as this one, as `serde_json` writes an `f32` into
/// text; what JSON cannot say (NaN) is null.
///
/// `Value::from(f32)` would widen it first and tell digits that were never there.
pub fn shortest(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

/// Little-endian elements as JSON numbers; what JSON cannot say (NaN) is null.
pub fn numbers(datatype: &str, bytes: &[u8]) -> Vec<Value> {
    macro_rules! read {
        ($type:ty) => {
            read!($type, Value::from)
        };
        ($type:ty, $value:expr) => {
            bytes
                .chunks_exact(size_of::<$type>())
                .filter_map(|chunk| chunk.try_into().ok().map(<$type>::from_le_bytes))
                .map($value)
                .collect()
        };
    }
    match datatype {
        "FP32" => read!(f32, shortest),
        "FP64" => read!(f64),
        "INT64" => read!(i64),
        "INT32" => read!(i32),
        "INT8" => read!(i8),
        "UINT8" => read!(u8),
        "BOOL" => bytes.iter().map(|byte| Value::from(*byte != 0)).collect(),
        _ => Vec::new(),
    }
}

impl<'de> serde::Deserialize<'de> for Nested {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut reader = Reader::default();
        Level { reader: &mut reader, depth: 0 }.deserialize(deserializer)?;
        let shape = reader.extents.into_iter().map(|extent| extent.unwrap_or(0)).collect();
        Ok(Nested { shape, elements: reader.elements })
    }
}

#[derive(Default)]
struct Reader {
    /// Extent of each level, as soon as one array of it has ended.
    extents: Vec<Option<usize>>,
    /// The level at which numbers stand.
    leaf: Option<usize>,
    elements: Vec<Element>,
}

struct Level<'a> {
    reader: &'a mut Reader,
    depth: usize,
}

impl Level<'_> {
    fn leaf<E: Error>(self, element: Element) -> Result<(), E> {
        let depth = self.depth;
        if *self.reader.leaf.get_or_insert(depth) != depth || self.reader.extents.len() > depth {
            return Err(E::custom("numbers stand at different levels of the nested array"));
        }
        self.reader.elements.push(element);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Level<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number or a nested array of numbers")
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.leaf(Element::Float(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.leaf(Element::Integer(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.leaf(Element::Unsigned(value))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.leaf(Element::Truth(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let depth = self.depth;
        if depth == DEPTH_MAX || self.reader.leaf.is_some_and(|leaf| leaf <= depth) {
            return Err(A::Error::custom("the nested array is too deep, or ragged"));
        }
        if self.reader.extents.len() == depth {
            self.reader.extents.push(None);
        }
        let mut count = 0;
        while items
            .next_element_seed(Level { reader: &mut *self.reader, depth: depth + 1 })?
            .is_some()
        {
            count += 1;
        }
        let extent = self.reader.extents[depth].get_or_insert(count);
        if *extent == count {
            Ok(())
        } else {
            let message = format!(
                "the nested array is ragged: level {depth} has rows of {extent} and of {count}"
            );
            Err(A::Error::custom(message))
        }
    }
}
