//! Batches cut along their first axis, and results joined again.

use crate::tensor::{Data, Tensor};

/// Applies one expression to the elements, whatever their type.
macro_rules! each {
    ($data:expr, $values:ident => $made:expr) => {
        match $data {
            Data::F32($values) => Data::F32($made),
            Data::F64($values) => Data::F64($made),
            Data::I64($values) => Data::I64($made),
            Data::I32($values) => Data::I32($made),
            Data::I8($values) => Data::I8($made),
            Data::U8($values) => Data::U8($made),
            Data::Bool($values) => Data::Bool($made),
        }
    };
}

/// Examples `start..start + taken`, filled up with the last of them to `filled` examples.
///
/// # Panics
/// When the tensor has fewer examples, or none are taken.
pub(super) fn take(tensor: &Tensor, start: usize, taken: usize, filled: usize) -> Tensor {
    let width = tensor.data().len() / tensor.shape()[0];
    let data = each!(tensor.data(), values => {
        let mut piece = Vec::with_capacity(filled * width);
        piece.extend_from_slice(&values[start * width..(start + taken) * width]);
        for _ in taken..filled {
            piece.extend_from_slice(&values[(start + taken - 1) * width..(start + taken) * width]);
        }
        piece
    });
    let mut shape = tensor.shape().to_vec();
    shape[0] = filled;
    Tensor::new(&shape, data).expect("the piece has `filled` examples of the tensor's width")
}

/// Joins the outputs of pieces, each `(examples that count, examples that were run, outputs)`.
///
/// An output that does not begin with the batch is refused, except when pieces are single
/// examples: these are stacked on a new first axis.
pub(super) fn join(
    names: &[&str],
    parts: Vec<(usize, usize, Vec<Tensor>)>,
) -> Result<Vec<Tensor>, String> {
    let total: usize = parts.iter().map(|(taken, _, _)| taken).sum();
    let mut columns: Vec<Vec<(usize, usize, Tensor)>> = vec![Vec::new(); names.len()];
    for (taken, filled, outputs) in parts {
        for (column, output) in columns.iter_mut().zip(outputs) {
            column.push((taken, filled, output));
        }
    }
    columns.into_iter().zip(names).map(|(column, name)| join_one(name, total, column)).collect()
}

fn join_one(
    name: &str,
    total: usize,
    column: Vec<(usize, usize, Tensor)>,
) -> Result<Tensor, String> {
    let mut joined: Option<(Vec<usize>, Data)> = None;
    for (taken, filled, tensor) in column {
        let example = example_shape(&tensor, filled).ok_or_else(|| {
            format!(
                "output {name:?} has shape {:?}, expected {filled} examples in front: send at \
                 most {filled} examples in a batch",
                tensor.shape()
            )
        })?;
        let width: usize = example.iter().product();
        let part = each!(tensor.data(), values => values[..taken * width].to_vec());
        match &mut joined {
            None => joined = Some((example, part)),
            Some((shape, data)) if *shape == example => append(name, data, part)?,
            Some(_) => return Err(format!("output {name:?} changes its shape between pieces")),
        }
    }
    let (mut shape, data) = joined.ok_or_else(|| format!("output {name:?} has no pieces"))?;
    shape.insert(0, total);
    Tensor::new(&shape, data).map_err(|error| error.to_string())
}

/// The shape of one example of an output.
fn example_shape(tensor: &Tensor, examples: usize) -> Option<Vec<usize>> {
    match tensor.shape() {
        [first, rest @ ..] if *first == examples => Some(rest.to_vec()),
        shape if examples == 1 => Some(shape.to_vec()),
        _ => None,
    }
}

fn append(name: &str, data: &mut Data, part: Data) -> Result<(), String> {
    match (data, part) {
        (Data::F32(all), Data::F32(part)) => all.extend(part),
        (Data::F64(all), Data::F64(part)) => all.extend(part),
        (Data::I64(all), Data::I64(part)) => all.extend(part),
        (Data::I32(all), Data::I32(part)) => all.extend(part),
        (Data::I8(all), Data::I8(part)) => all.extend(part),
        (Data::U8(all), Data::U8(part)) => all.extend(part),
        (Data::Bool(all), Data::Bool(part)) => all.extend(part),
        (data, part) => {
            let (first, then) = (data.datatype(), part.datatype());
            return Err(format!("output {name:?} changes from {first} to {then} between pieces"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_to_what_was_cut() {
        let whole = Tensor::f32(&[5, 2], (0..10_u8).map(f32::from).collect()).unwrap();
        let parts = [(0, 2), (2, 2), (4, 1)]
            .map(|(start, taken)| (taken, 2, vec![take(&whole, start, taken, 2)]));
        assert_eq!(parts[2].2[0].as_f32().unwrap(), [8.0, 9.0, 8.0, 9.0]);
        assert_eq!(join(&["y"], parts.into()).unwrap(), [whole]);
    }

    #[test]
    fn outputs_without_a_batch_are_stacked_or_refused() {
        let row = || Tensor::f32(&[3], vec![1.0, 2.0, 3.0]).unwrap();
        let stacked = join(&["y"], vec![(1, 1, vec![row()]), (1, 1, vec![row()])]).unwrap();
        assert_eq!(stacked[0].shape(), [2, 3]);
        let refused = join(&["y"], vec![(2, 2, vec![row()])]).unwrap_err();
        assert!(refused.contains("\"y\"") && refused.contains("[3]"), "{refused}");
    }
}
