//! What wonnx is trusted with: operators in the forms that the conformance tests run on a WebGPU
//! adapter beside the processor's answers.
//!
//! Left out, because wonnx 0.5 answers wrongly without a word: `Concat` with rows before its
//! axis, `Split` into unequal parts, `Gather`, `Mod`, `Pad`, `LeakyRelu` behind a convolution,
//! bounds of `Clip` with more than one decimal, kernels of 3 x 3 that are not padded by one,
//! `Gemm` of extents with an odd common divisor, sums that leave an axis of extent 1 in the end.

use std::collections::BTreeMap;

use models::onnx::{GraphProto, ModelProto, NodeProto, TensorProto};

use helper::engine::Refusal;

/// Checks a model in plain form, whose tensors may have `bytes_max` bytes.
///
/// # Errors
/// [`Refusal`] names the node that is not in the list.
pub(super) fn check(model: &ModelProto, bytes_max: usize) -> Result<(), Refusal> {
    let Some(graph) = &model.graph else { return Err(Refusal::lacking("there is no graph")) };
    let known = Known::of(graph);
    for tensor in &graph.initializer {
        let bytes = tensor.shape().map_or(usize::MAX, |(_, len)| len.saturating_mul(4));
        if bytes > bytes_max {
            return Err(Refusal::lacking(format!(
                "a tensor of {bytes} bytes is larger than WebGPU's buffers may be, {bytes_max}"
            )));
        }
    }
    for node in &graph.node {
        let rule = RULES.iter().find(|(operator, _)| *operator == node.op_type);
        let problem = match rule {
            None => Some("the operator is not in the list"),
            Some((_, rule)) => rule(&Form { node, known: &known }).err(),
        };
        if let Some(problem) = problem {
            return Err(Refusal::lacking(format!(
                "node {:?}: {} is not trusted to WebGPU: {problem}",
                node.name, node.op_type
            )));
        }
    }
    Ok(())
}

/// What stands in the way, for people.
type Checked = Result<(), &'static str>;

type Rule = fn(&Form<'_>) -> Checked;

/// Operators with the condition that a node has to meet.
const RULES: [(&str, Rule); 17] = [
    ("Add", arithmetic),
    ("AveragePool", pool),
    ("Clip", clip),
    ("Concat", concat),
    ("Conv", conv),
    ("Div", arithmetic),
    ("GlobalAveragePool", picture),
    ("MaxPool", pool),
    ("Mul", arithmetic),
    ("ReduceSum", reduce),
    ("Relu", function),
    ("Reshape", reshape),
    ("Sigmoid", function),
    ("Softmax", softmax),
    ("Sub", arithmetic),
    ("Tanh", function),
    ("Transpose", transpose),
];

/// Extents and tensors by name.
struct Known<'g> {
    extents: BTreeMap<&'g str, Vec<usize>>,
    tensors: BTreeMap<&'g str, &'g TensorProto>,
}

impl<'g> Known<'g> {
    fn of(graph: &'g GraphProto) -> Self {
        let declared = graph.input.iter().chain(&graph.output).chain(&graph.value_info);
        let extents = declared.filter_map(|info| {
            let (_, extents) = info.tensor()?;
            Some((info.name.as_str(), extents.into_iter().collect::<Option<Vec<_>>>()?))
        });
        let tensors = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor));
        let mut known = Self { extents: extents.collect(), tensors: tensors.collect() };
        for (name, tensor) in &known.tensors {
            known.extents.extend(tensor.shape().map(|(extents, _)| (*name, extents)));
        }
        known
    }
}

/// A node with what is known around it.
struct Form<'a> {
    node: &'a NodeProto,
    known: &'a Known<'a>,
}

impl Form<'_> {
    fn input(&self, index: usize) -> Result<&[usize], &'static str> {
        let name = self.node.input.get(index).ok_or("an input is missing")?;
        let extents = self.known.extents.get(name.as_str());
        extents.map(Vec::as_slice).ok_or("an input's extents are not known")
    }

    fn output(&self) -> Result<&[usize], &'static str> {
        let [name] = self.node.output.as_slice() else { return Err("it has several outputs") };
        let extents = self.known.extents.get(name.as_str());
        extents.map(Vec::as_slice).ok_or("the output's extents are not known")
    }

    fn tensor(&self, index: usize) -> Result<&TensorProto, &'static str> {
        let name = self.node.input.get(index).ok_or("an input is missing")?;
        self.known.tensors.get(name.as_str()).copied().ok_or("an input is not constant")
    }

    fn ints(&self, name: &str) -> &[i64] {
        let attribute = self.node.attribute.iter().find(|attribute| attribute.name == name);
        attribute.map_or(&[], |attribute| &attribute.ints)
    }

    fn int(&self, name: &str) -> Option<i64> {
        self.node.attribute.iter().find(|attribute| attribute.name == name)?.i
    }

    /// At most these attributes, and this number of inputs.
    fn only(&self, attributes: &[&str], inputs: usize) -> Checked {
        if self.node.input.len() != inputs {
            return Err("it has another number of inputs");
        }
        let known = |name: &String| attributes.contains(&name.as_str());
        if self.node.attribute.iter().all(|attribute| known(&attribute.name)) {
            Ok(())
        } else {
            Err("it has an attribute that is not known")
        }
    }
}

fn ensure(holds: bool, problem: &'static str) -> Checked {
    if holds { Ok(()) } else { Err(problem) }
}

fn conv(form: &Form<'_>) -> Checked {
    form.only(&["kernel_shape", "strides", "pads", "dilations", "group"], 3)?;
    let maps = form.tensor(1)?.dims[0];
    form.tensor(2)?;
    ensure(form.input(0)?.len() == 4 && form.input(1)?.len() == 4, "its input is no picture")?;
    let (kernel, strides) = (form.ints("kernel_shape"), form.ints("strides"));
    let (pads, dilations) = (form.ints("pads"), form.ints("dilations"));
    let known = kernel.len() == 2 && strides.len() == 2 && pads.len() == 4 && dilations.len() == 2;
    ensure(known && form.int("group").is_some(), "its geometry is not written down")?;
    let matrices =
        kernel == [3; 2] && strides == [1; 2] && form.int("group") == Some(1) && maps % 4 == 0;
    let padded = pads == [1; 4] && dilations == [1; 2];
    ensure(!matrices || padded, "a kernel of 3 x 3 that is not padded by one")
}

fn picture(form: &Form<'_>) -> Checked {
    form.only(&[], 1)?;
    ensure(form.input(0)?.len() == 4, "its input is no picture")
}

fn pool(form: &Form<'_>) -> Checked {
    form.only(&["kernel_shape", "strides", "pads", "dilations", "count_include_pad"], 1)?;
    ensure(form.input(0)?.len() == 4, "its input is no picture")?;
    let (kernel, strides) = (form.ints("kernel_shape"), form.ints("strides"));
    let known = kernel.len() == 2 && strides.len() == 2 && form.ints("pads").len() == 4;
    ensure(known, "its geometry is not written down")
}

/// Two values of one rank, or a value and a constant of a lower rank: constants are not padded to
/// the vectors that a shader without broadcasting reads.
fn arithmetic(form: &Form<'_>) -> Checked {
    form.only(&[], 2)?;
    let rank = form.output()?.len();
    for index in 0..2 {
        let lower = form.input(index)?.len() < rank;
        ensure(lower == form.tensor(index).is_ok(), "a rank that is not the output's")?;
    }
    Ok(())
}

fn function(form: &Form<'_>) -> Checked {
    form.only(&[], 1)?;
    ensure(form.input(0)? == form.output()?, "the output has other extents")
}

/// Bounds that one decimal tells exactly.
fn clip(form: &Form<'_>) -> Checked {
    form.only(&[], 3)?;
    for index in [1, 2] {
        let (_, values) = form.tensor(index)?.to_f32().map_err(|_| "a bound is no float")?;
        let [bound] = values[..] else { return Err("a bound is not one number") };
        let exact = bound.is_finite() && format!("{bound:.1}").parse() == Ok(bound);
        ensure(exact, "a bound has more than one decimal")?;
    }
    Ok(())
}

/// Nothing but extents of 1 before the axis.
fn concat(form: &Form<'_>) -> Checked {
    form.only(&["axis"], form.node.input.len())?;
    ensure(form.node.input.len() <= 3, "it has more than three inputs")?;
    let axis = form.int("axis").and_then(|axis| usize::try_from(axis).ok());
    let before = axis.and_then(|axis| form.output().ok()?.get(..axis));
    let before = before.ok_or("its axis is not written down")?;
    ensure(before.iter().all(|extent| *extent == 1), "rows lie before its axis")
}

fn reduce(form: &Form<'_>) -> Checked {
    form.only(&[], 2)?;
    let (_, axes) = form.tensor(1)?.to_i64().map_err(|_| "its axes are no integers")?;
    let extents = form.input(0)?;
    let last = extents.len() == 2 || extents.len() == 3 && extents[2] > 1;
    ensure(axes == [1] && last, "other axes than the second of two or three")
}

fn softmax(form: &Form<'_>) -> Checked {
    form.only(&["axis"], 1)?;
    let rank = form.input(0)?.len();
    let second = form.int("axis") == Some(1) && (rank == 2 || rank == 3);
    ensure(second, "another axis than the second of two or three")
}

fn reshape(form: &Form<'_>) -> Checked {
    form.only(&[], 2)?;
    form.tensor(1)?;
    let len = |extents: &[usize]| extents.iter().product::<usize>();
    ensure(len(form.input(0)?) == len(form.output()?), "the output has another number of elements")
}

fn transpose(form: &Form<'_>) -> Checked {
    form.only(&["perm"], 1)?;
    let (from, to, order) = (form.input(0)?, form.output()?, form.ints("perm"));
    let moved =
        order.iter().map(|axis| usize::try_from(*axis).ok().and_then(|axis| from.get(axis)));
    ensure(
        order.len() == from.len() && moved.eq(to.iter().map(Some)),
        "its order is not written down",
    )
}

#[cfg(test)]
mod tests;
