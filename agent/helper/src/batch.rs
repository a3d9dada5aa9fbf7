//! Batches that a model takes in pieces: those that are larger than its fixed batch, and very
//! large ones.

use models::engine::declared::{self, Batch};
use models::engine::frames::Header;
use models::tensor::width;

use crate::engine::{Model, Refusal, View};

/// Examples of one run where the model leaves the batch open, at most; bounds the memory of
/// activations.
pub const BATCH_MAX: usize = 64;

/// Checks inputs and runs the model, in pieces where that is needed: a smaller batch than a fixed
/// one is filled up with its last example.
///
/// # Errors
/// [`Refusal`] names the input that does not fit.
pub fn run(
    model: &mut dyn Model,
    inputs: &[View<'_>],
    body: &mut Vec<u8>,
) -> Result<Vec<Header>, Refusal> {
    let batch = Batch::of(model.inputs(), model.outputs());
    let found: Vec<(&str, &[usize])> =
        inputs.iter().map(|view| (view.datatype, view.shape)).collect();
    let examples = declared::check(model.inputs(), batch, &found).map_err(Refusal::of)?;
    match (examples, batch) {
        (Some(examples), Batch::Fixed(size)) if examples != size => {
            pieces(model, inputs, body, examples, size, size)
        }
        (Some(examples), Batch::Open) if examples > BATCH_MAX => {
            pieces(model, inputs, body, examples, BATCH_MAX, 0)
        }
        _ => model.run(inputs, body),
    }
}

/// Runs `size` examples at a time, each piece filled up to `filled` of them.
fn pieces(
    model: &mut dyn Model,
    inputs: &[View<'_>],
    body: &mut Vec<u8>,
    examples: usize,
    size: usize,
    filled: usize,
) -> Result<Vec<Header>, Refusal> {
    let mut columns: Vec<(Header, Vec<u8>)> = Vec::new();
    let mut part = Vec::new();
    for start in (0..examples).step_by(size) {
        let taken = size.min(examples - start);
        let run = taken.max(filled);
        let owned: Vec<(Vec<usize>, Vec<u8>)> =
            inputs.iter().map(|input| take(input, start, taken, run)).collect();
        let views: Vec<View<'_>> = inputs
            .iter()
            .zip(&owned)
            .map(|(input, (shape, bytes))| View { datatype: input.datatype, shape, bytes })
            .collect();
        part.clear();
        let headers = model.run(&views, &mut part)?;
        append(&mut columns, headers, &part, taken, run)?;
    }
    let mut headers = Vec::with_capacity(columns.len());
    for (mut header, bytes) in columns {
        header.shape.insert(0, examples);
        headers.push(header);
        body.extend_from_slice(&bytes);
    }
    Ok(headers)
}

/// Examples `start..start + taken`, filled up with the last of them to `filled` examples.
fn take(view: &View<'_>, start: usize, taken: usize, filled: usize) -> (Vec<usize>, Vec<u8>) {
    let width = view.bytes.len() / view.shape[0];
    let mut bytes = Vec::with_capacity(filled * width);
    bytes.extend_from_slice(&view.bytes[start * width..(start + taken) * width]);
    for _ in taken..filled {
        bytes.extend_from_slice(&view.bytes[(start + taken - 1) * width..(start + taken) * width]);
    }
    let mut shape = view.shape.to_vec();
    shape[0] = filled;
    (shape, bytes)
}

/// Adds a piece's outputs, of which `taken` of `run` examples count. An output that does not
/// begin with the batch is refused, except when pieces are single examples: these are stacked on
/// a new first axis.
fn append(
    columns: &mut Vec<(Header, Vec<u8>)>,
    headers: Vec<Header>,
    mut part: &[u8],
    taken: usize,
    run: usize,
) -> Result<(), Refusal> {
    for (index, header) in headers.into_iter().enumerate() {
        let Header { datatype, shape } = header;
        let example = match shape.as_slice() {
            [first, rest @ ..] if *first == run => rest,
            shape if run == 1 => shape,
            _ => {
                return Err(Refusal::of(format!(
                    "output {index} has shape {shape:?}, expected {run} examples in front: send \
                     at most {run} examples in a batch"
                )));
            }
        };
        let width = width(&datatype).unwrap_or(1) * example.iter().product::<usize>();
        let (bytes, rest) = part.split_at(width * run);
        part = rest;
        let example = Header { datatype, shape: example.to_vec() };
        let bytes = &bytes[..width * taken];
        match columns.get_mut(index) {
            None => columns.push((example, bytes.to_vec())),
            Some((header, all)) if *header == example => all.extend_from_slice(bytes),
            Some(_) => {
                return Err(Refusal::of(format!(
                    "output {index} changes its shape between pieces"
                )));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
