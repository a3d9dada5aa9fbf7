//! ONNX files whose parameters are kept apart: their initializers have shapes and no values.

use crate::graph::GraphError;
use crate::onnx::{ModelProto, StringStringEntryProto};

/// The entry of a model's metadata that says so.
const KEY: &str = "dunlin.parameters";
const APART: &str = "apart";
/// Bytes of such parameters, at most: an ONNX file could not hold more.
const BYTES_MAX: usize = i32::MAX as usize;

/// A model without values of parameters, marked as one.
pub(super) fn marked(mut model: ModelProto) -> ModelProto {
    let (key, value) = (KEY.to_owned(), APART.to_owned());
    model.metadata_props.push(StringStringEntryProto { key, value });
    model
}

/// Puts zeros where a marked model has no values, and takes the mark off. Whether it was one.
pub(super) fn fill(model: &mut ModelProto) -> Result<bool, GraphError> {
    let before = model.metadata_props.len();
    model.metadata_props.retain(|entry| entry.key != KEY || entry.value != APART);
    if model.metadata_props.len() == before {
        return Ok(false);
    }
    let mut room = BYTES_MAX;
    for tensor in model.graph.iter_mut().flat_map(|graph| &mut graph.initializer) {
        if tensor.raw_data.is_some() || !tensor.float_data.is_empty() || !tensor.is_f32() {
            continue;
        }
        let bytes = tensor.shape().and_then(|(_, elements)| elements.checked_mul(4));
        let left = bytes.and_then(|bytes| room.checked_sub(bytes));
        let (Some(bytes), Some(left)) = (bytes, left) else {
            let text = format!("initializer {:?} of {:?} is too large", tensor.name, tensor.dims);
            return Err(GraphError::Graph(text));
        };
        room = left;
        tensor.raw_data = Some(vec![0; bytes].into());
    }
    Ok(true)
}
