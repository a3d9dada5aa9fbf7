//! Inputs as people send them become those that a model declares.

use jobs::spec::{InferInput, TensorHeader};
use models::artifact::{ModelConfig, TensorInfo};

use super::invalid;
#[cfg(doc)]
use crate::error::ApiCode;
use crate::error::ApiError;

/// Fits an input to a model. Of tensors an example without its batch gets a batch of one, a flat
/// example gets its shape. What fits already, or cannot be judged, stays as it is.
///
/// # Errors
/// [`ApiCode::InvalidSpec`] naming the input and what the model declares, or for a picture where it
/// takes none.
pub fn fit(input: InferInput, model: &ModelConfig) -> Result<InferInput, ApiError> {
    let declared = &model.inputs[..];
    let mut tensors = match input {
        InferInput::Tensors { tensors } => tensors,
        InferInput::Picture if model.preprocessing.is_some() => return Ok(input),
        InferInput::Picture => {
            return Err(invalid(
                "the model takes no pictures",
                "send tensors, or register the model with 'preprocessing'",
            ));
        }
    };
    if declared.is_empty() {
        return Ok(InferInput::Tensors { tensors });
    }
    if tensors.len() != declared.len() {
        return Err(invalid(
            format!("the model has {} inputs, found {}", declared.len(), tensors.len()),
            format!("give these: {}", names(declared)),
        ));
    }
    for (index, tensor) in tensors.iter_mut().enumerate() {
        let info = if tensor.name.is_empty() {
            declared.get(index)
        } else {
            declared.iter().find(|info| info.name == tensor.name)
        };
        let info = info.ok_or_else(|| {
            invalid(
                format!("the model has no input {:?}", tensor.name),
                format!("its inputs are: {}", names(declared)),
            )
        })?;
        fit_tensor(tensor, info)?;
    }
    Ok(InferInput::Tensors { tensors })
}

fn fit_tensor(tensor: &mut TensorHeader, info: &TensorInfo) -> Result<(), ApiError> {
    let fits = |shape: &[u64]| {
        shape.len() == info.shape.len()
            && shape.iter().zip(&info.shape).enumerate().all(|(axis, (found, expected))| {
                // A fixed batch is no limit: engines run larger batches in pieces.
                axis == 0 || u64::try_from(*expected).map_or(true, |expected| expected == *found)
            })
    };
    if fits(&tensor.shape) {
        return Ok(());
    }
    let batched: Vec<u64> = std::iter::once(1).chain(tensor.shape.iter().copied()).collect();
    if fits(&batched) {
        tensor.shape = batched;
        return Ok(());
    }
    let example: Option<Vec<u64>> =
        info.shape.iter().skip(1).map(|extent| u64::try_from(*extent).ok()).collect();
    if let Some(example) = example {
        let elements = |shape: &[u64]| {
            shape.iter().try_fold(1_u64, |product, extent| product.checked_mul(*extent))
        };
        let expected = elements(&example);
        if !example.is_empty() && expected.is_some() && expected == elements(&tensor.shape) {
            tensor.shape = std::iter::once(1).chain(example).collect();
            return Ok(());
        }
    }
    Err(invalid(
        format!(
            "input {:?} has shape {:?}, the model declares {:?} (-1 is any)",
            info.name, tensor.shape, info.shape
        ),
        "give the example in the model's shape",
    ))
}

fn names(declared: &[TensorInfo]) -> String {
    declared
        .iter()
        .map(|info| format!("{} {}{:?}", info.name, info.datatype, info.shape))
        .collect::<Vec<_>>()
        .join(", ")
}
