//! What a model declares: checks of inputs against it, and batches that are run in pieces.

use super::{EngineError, pieces};
use crate::artifact::TensorInfo;
use crate::graph::GraphError;
use crate::tensor::Tensor;

/// What the first axis of the inputs means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Batch {
    /// Any number of examples.
    Open,
    /// This number of examples in every run.
    Fixed(usize),
    /// No batch: inputs have the shapes that are declared.
    None,
}

impl Batch {
    /// By the declared shapes.
    pub fn of(inputs: &[TensorInfo], outputs: &[TensorInfo]) -> Self {
        let first = |info: &TensorInfo| info.shape.first().copied();
        let Some(extent) = inputs.first().and_then(first) else { return Self::None };
        let shared = inputs.iter().all(|info| first(info) == Some(extent) && info.shape.len() > 1);
        let answered = outputs.iter().all(|info| first(info) == Some(-1));
        match usize::try_from(extent) {
            Ok(extent) if shared => Self::Fixed(extent),
            Err(_) if shared && answered => Self::Open,
            Ok(_) | Err(_) => Self::None,
        }
    }
}

/// Inputs and outputs as a model's file declares them.
#[derive(Debug)]
pub struct Declared {
    /// In order.
    pub inputs: Vec<TensorInfo>,
    /// In order.
    pub outputs: Vec<TensorInfo>,
    pub(super) batch: Batch,
}

impl Declared {
    /// What these mean for the batch follows from their shapes.
    pub fn new(inputs: Vec<TensorInfo>, outputs: Vec<TensorInfo>) -> Self {
        let batch = Batch::of(&inputs, &outputs);
        Self { inputs, outputs, batch }
    }

    /// Whether inputs may have any number of examples.
    pub fn has_batches(&self) -> bool {
        self.batch == Batch::Open
    }

    /// See [`check`].
    ///
    /// # Errors
    /// [`EngineError::Input`] names the input that does not fit.
    pub fn check(&self, inputs: &[Tensor]) -> Result<Option<usize>, EngineError> {
        let inputs: Vec<(&str, &[usize])> =
            inputs.iter().map(|tensor| (tensor.data().datatype(), tensor.shape())).collect();
        check(&self.inputs, self.batch, &inputs)
    }

    /// Checks inputs and runs them: as they are, or in pieces where a fixed batch is another, or
    /// an open one larger than `most`.
    ///
    /// # Errors
    /// [`EngineError::Input`] for inputs that do not fit, and what `run` says; with `engine`'s
    /// name for outputs that cannot be joined.
    pub fn run<E: From<EngineError>>(
        &self,
        engine: &'static str,
        most: usize,
        inputs: &[Tensor],
        mut run: impl FnMut(&[Tensor]) -> Result<Vec<Tensor>, E>,
    ) -> Result<Vec<Tensor>, E> {
        let (examples, size) = match (self.check(inputs)?, self.batch) {
            (Some(examples), Batch::Fixed(size)) if examples != size => (examples, size),
            (Some(examples), Batch::Open) if examples > most => (examples, most),
            _ => return run(inputs),
        };
        let mut parts = Vec::with_capacity(examples.div_ceil(size));
        for start in (0..examples).step_by(size) {
            let taken = size.min(examples - start);
            let filled = if self.batch == Batch::Open { taken } else { size };
            let piece: Vec<Tensor> =
                inputs.iter().map(|input| pieces::take(input, start, taken, filled)).collect();
            parts.push((taken, filled, run(&piece)?));
        }
        let names: Vec<&str> = self.outputs.iter().map(|info| info.name.as_str()).collect();
        pieces::join(&names, parts).map_err(|message| EngineError::Run { engine, message }.into())
    }
}

/// Checks the element types and shapes of inputs, all but the batch; the number of examples, if
/// there is a batch.
///
/// # Errors
/// [`EngineError::Input`] names the input that does not fit.
pub fn check(
    declared: &[TensorInfo],
    batch: Batch,
    inputs: &[(&str, &[usize])],
) -> Result<Option<usize>, EngineError> {
    if inputs.len() != declared.len() {
        let names: Vec<&str> = declared.iter().map(|info| info.name.as_str()).collect();
        let name = declared.get(inputs.len()).map_or("", |info| &info.name);
        return Err(EngineError::Input {
            name: name.to_owned(),
            expected: format!("{} inputs ({})", names.len(), names.join(", ")),
            found: inputs.len().to_string(),
        });
    }
    let mut examples = None;
    for (info, input) in declared.iter().zip(inputs) {
        check_input(info, batch, *input, &mut examples)?;
    }
    Ok(examples)
}

fn check_input(
    info: &TensorInfo,
    batch: Batch,
    (datatype, shape): (&str, &[usize]),
    examples: &mut Option<usize>,
) -> Result<(), EngineError> {
    let refuse = |expected: String| {
        let found = format!("{datatype} of shape {shape:?}");
        Err(EngineError::Input { name: info.name.clone(), expected, found })
    };
    let free = usize::from(batch != Batch::None);
    let fits = |(axis, (declared, found)): (usize, (&i64, &usize))| {
        *found > 0 && (axis < free || *declared < 0 || i64::try_from(*found) == Ok(*declared))
    };
    let right = datatype == info.datatype
        && shape.len() == info.shape.len()
        && info.shape.iter().zip(shape).enumerate().all(fits);
    if !right {
        return refuse(format!("{} of shape {:?} (-1: any)", info.datatype, info.shape));
    }
    match (batch, *examples) {
        (Batch::None, _) => Ok(()),
        (_, Some(examples)) if examples != shape[0] => {
            refuse(format!("{examples} examples, as in the input before it"))
        }
        _ => {
            *examples = Some(shape[0]);
            Ok(())
        }
    }
}

/// A declared value, whoever decoded the file.
pub(super) struct Value<'a> {
    pub(super) name: &'a str,
    /// The element type by its number; `None` for what is no tensor.
    pub(super) element: Option<i32>,
    /// Extents, `None` for open ones; `None` for a shape that is not declared.
    pub(super) shape: Option<Vec<Option<i64>>>,
}

/// A declared input or output.
///
/// # Errors
/// [`GraphError::Node`] with the value's name.
pub(super) fn info(value: &Value<'_>) -> Result<TensorInfo, GraphError> {
    let problem = |problem: String| GraphError::Node { node: value.name.to_owned(), problem };
    let Some(element) = value.element else {
        return Err(problem("expected a declared tensor type".to_owned()));
    };
    let Some(datatype) = datatype(element) else {
        return Err(problem(format!("element type {element} is not known")));
    };
    let Some(shape) = &value.shape else {
        let text = "expected a declared shape: export the model with shapes";
        return Err(problem(text.to_owned()));
    };
    let extent = |extent: &Option<i64>| extent.filter(|extent| *extent > 0).unwrap_or(-1);
    Ok(TensorInfo {
        name: value.name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.iter().map(extent).collect(),
    })
}

/// Open Inference Protocol's name of an ONNX element type.
/// Source: ONNX `TensorProto.DataType`.
pub(super) fn datatype(element: i32) -> Option<&'static str> {
    Some(match element {
        1 => "FP32",
        2 => "UINT8",
        3 => "INT8",
        4 => "UINT16",
        5 => "INT16",
        6 => "INT32",
        7 => "INT64",
        8 => "BYTES",
        9 => "BOOL",
        10 => "FP16",
        11 => "FP64",
        12 => "UINT32",
        13 => "UINT64",
        16 => "BF16",
        _ => return None,
    })
}
