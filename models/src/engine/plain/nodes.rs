//! What each operator of a graph is in plain form.

use super::writer::{Place, Writer, wide};
use crate::graph::{Activation, Arithmetic, GraphError, Node, Op, ValueId, Window};
use crate::onnx::AttributeProto;

/// Values that one `Concat` takes, at most: what a shader may bind at once.
const JOINED_MAX: usize = 3;

/// Adds a node of the original.
pub(super) fn write(writer: &mut Writer<'_>, node: &Node) -> Result<(), GraphError> {
    writer.begin(node);
    let first = node.inputs[0];
    let place = match &node.op {
        Op::Conv { window, group } => conv(writer, node, window, *group)?,
        Op::Gemm { alpha, beta, transposed } => gemm(writer, node, *alpha, *beta, *transposed)?,
        Op::MatMul => matmul(writer, node)?,
        Op::Arithmetic(arithmetic) => {
            let dims = writer.dims(node.output);
            let [a, b] = [operand(writer, node.inputs[0])?, operand(writer, node.inputs[1])?];
            writer.push(word(*arithmetic), &[&a, &b], Vec::new(), dims)
        }
        Op::Activation(function) => {
            let place = writer.place(first)?;
            activation(writer, *function, place)
        }
        Op::MaxPool(window) => pool(writer, node, "MaxPool", window, false)?,
        Op::AveragePool { window, include_pad } => {
            pool(writer, node, "AveragePool", window, *include_pad)?
        }
        Op::GlobalAveragePool => {
            let place = writer.place(first)?;
            let [n, c] = [place.dims[0], place.dims[1]];
            let rest = place.dims[2..].iter().product();
            let picture =
                if let [_, _, h, w] = *place.dims { [n, c, h, w] } else { [n, c, rest, 1] };
            let place = writer.reshape(place, &picture);
            writer.push("GlobalAveragePool", &[&place.name], Vec::new(), vec![n, c, 1, 1])
        }
        Op::Reduce { axes, mean } => reduce(writer, node, axes, *mean)?,
        Op::Softmax { axis, log: false } => {
            let place = writer.place(first)?;
            let place = along(writer, place, axis + 1, 1);
            let (axis, dims) = (vec![AttributeProto::int("axis", 1)], place.dims.clone());
            writer.push("Softmax", &[&place.name], axis, dims)
        }
        Op::BatchNormalization { epsilon, .. } => normalization(writer, node, *epsilon)?,
        // Elements stay; `define` gives them the extents of the output. Inference drops nothing.
        Op::Reshape | Op::Dropout { .. } => writer.place(first)?,
        Op::Concat { axis } => concat(writer, node, axis + 1)?,
        Op::Transpose { axes } => {
            let place = writer.place(first)?;
            let order: Vec<i64> =
                std::iter::once(0).chain(axes.iter().map(|axis| wide(axis + 1))).collect();
            let order = vec![AttributeProto::ints("perm", &order)];
            let dims = writer.dims(node.output);
            writer.push("Transpose", &[&place.name], order, dims)
        }
        Op::Softmax { log: true, .. } | Op::Pad { .. } | Op::Crop { .. } => {
            return Err(GraphError::Operator {
                node: node.name.clone(),
                operator: node.op.label(),
                purpose: super::PURPOSE,
                advice: "another engine may run it".to_owned(),
            });
        }
    };
    writer.define(node.output, place);
    Ok(())
}

/// The name of a value or of a constant without leading extents of 1, which broadcasting adds.
fn operand(writer: &mut Writer<'_>, id: ValueId) -> Result<String, GraphError> {
    let Some((dims, values)) = writer.constant(id) else { return Ok(writer.place(id)?.name) };
    let ones = dims.iter().take_while(|extent| **extent == 1).count();
    let dims = if ones == dims.len() { &[1][..] } else { &dims[ones..] };
    Ok(writer.tensor(dims, values))
}

fn word(arithmetic: Arithmetic) -> &'static str {
    match arithmetic {
        Arithmetic::Add => "Add",
        Arithmetic::Sub => "Sub",
        Arithmetic::Mul => "Mul",
        Arithmetic::Div => "Div",
    }
}

/// One of the four operations with a number.
fn with(writer: &mut Writer<'_>, operator: &str, place: &Place, number: f32) -> Place {
    let number = writer.tensor(&[1], &[number]);
    writer.push(operator, &[&place.name, &number], Vec::new(), place.dims.clone())
}

fn conv(
    writer: &mut Writer<'_>,
    node: &Node,
    window: &Window,
    group: usize,
) -> Result<Place, GraphError> {
    let place = writer.place(node.inputs[0])?;
    let (extents, weights) = writer.weight(node.inputs[1])?;
    let maps = extents[0];
    let bias = match node.inputs.get(2) {
        Some(id) => writer.weight(*id)?.1.to_vec(),
        None => vec![0.0; maps],
    };
    let mut window = *window;
    let mut shape = extents.to_vec();
    let mut values = weights.to_vec();
    let padded_by_one = window.dilation == [1; 2] && window.begin == [1; 2] && window.end == [1; 2];
    if window.kernel == [3; 2] && window.stride == [1; 2] && group == 1 && !padded_by_one {
        // One more row of zeros makes it another kernel: wonnx takes the weights of 3 x 3 as it
        // lays them out for a padding of one alone.
        values = weights.chunks(9).flat_map(|map| [map, &[0.0; 3]].concat()).collect();
        shape[2] = 4;
        window.kernel[0] = 4;
        window.end[0] += window.dilation[0];
    }
    let weights = writer.tensor(&shape, &values);
    let bias = writer.tensor(&[maps], &bias);
    let mut attributes = geometry(&window);
    attributes.push(AttributeProto::int("group", wide(group)));
    attributes.push(AttributeProto::ints("dilations", &window.dilation.map(wide)));
    let dims = writer.dims(node.output);
    Ok(writer.push("Conv", &[&place.name, &weights, &bias], attributes, dims))
}

fn geometry(window: &Window) -> Vec<AttributeProto> {
    let [[top, left], [bottom, right]] = [window.begin.map(wide), window.end.map(wide)];
    vec![
        AttributeProto::ints("kernel_shape", &window.kernel.map(wide)),
        AttributeProto::ints("strides", &window.stride.map(wide)),
        AttributeProto::ints("pads", &[top, left, bottom, right]),
    ]
}

fn gemm(
    writer: &mut Writer<'_>,
    node: &Node,
    alpha: f32,
    beta: f32,
    transposed: bool,
) -> Result<Place, GraphError> {
    let place = writer.place(node.inputs[0])?;
    let (extents, weights) = writer.weight(node.inputs[1])?;
    let columns = extents[usize::from(!transposed)];
    let bias = match node.inputs.get(2) {
        Some(id) => writer.weight(*id)?.1,
        None => &[0.0],
    };
    let bias: Vec<f32> =
        (0..columns).map(|column| beta * bias[column.min(bias.len() - 1)]).collect();
    let scaled: Vec<f32> = weights.iter().map(|weight| alpha * weight).collect();
    Ok(product(writer, place, &scaled, transposed, &bias))
}

fn matmul(writer: &mut Writer<'_>, node: &Node) -> Result<Place, GraphError> {
    let place = writer.place(node.inputs[0])?;
    let (extents, weights) = writer.weight(node.inputs[1])?;
    Ok(product(writer, place, weights, false, &vec![0.0; extents[1]]))
}

/// Rows of `d` elements times weights `[d, m]`, or `[m, d]` when `transposed`, as a convolution
/// of 1 x 1.
fn product(
    writer: &mut Writer<'_>,
    place: Place,
    weights: &[f32],
    transposed: bool,
    bias: &[f32],
) -> Place {
    let (d, m) = (weights.len() / bias.len(), bias.len());
    let rows = place.dims.iter().product::<usize>() / d;
    let maps: Vec<f32> = if transposed {
        weights.to_vec()
    } else {
        (0..m).flat_map(|map| (0..d).map(move |at| weights[at * m + map])).collect()
    };
    let weights = writer.tensor(&[m, d, 1, 1], &maps);
    let bias = writer.tensor(&[m], bias);
    let place = writer.reshape(place, &[rows, d, 1, 1]);
    let window = Window::POINT;
    let mut attributes = geometry(&window);
    attributes.push(AttributeProto::int("group", 1));
    attributes.push(AttributeProto::ints("dilations", &[1, 1]));
    writer.push("Conv", &[&place.name, &weights, &bias], attributes, vec![rows, m, 1, 1])
}

fn activation(writer: &mut Writer<'_>, function: Activation, place: Place) -> Place {
    let map = |writer: &mut Writer<'_>, operator: &str, place: &Place| {
        writer.push(operator, &[&place.name], Vec::new(), place.dims.clone())
    };
    match function {
        Activation::Relu => map(writer, "Relu", &place),
        Activation::Sigmoid => map(writer, "Sigmoid", &place),
        Activation::Tanh => map(writer, "Tanh", &place),
        Activation::Neg => with(writer, "Mul", &place, -1.0),
        Activation::LeakyRelu { slope } => {
            // What is above 0, and less of what is below.
            let above = map(writer, "Relu", &place);
            let below = with(writer, "Mul", &place, -1.0);
            let below = map(writer, "Relu", &below);
            let below = with(writer, "Mul", &below, slope);
            writer.push("Sub", &[&above.name, &below.name], Vec::new(), place.dims)
        }
        Activation::Clip { least, most } => clip(writer, place, least, most),
        Activation::HardSigmoid { slope, level } => hard_sigmoid(writer, &place, slope, level),
        Activation::HardSwish => {
            let gate = hard_sigmoid(writer, &place, 1.0 / 6.0, 0.5);
            writer.push("Mul", &[&place.name, &gate.name], Vec::new(), place.dims)
        }
    }
}

fn hard_sigmoid(writer: &mut Writer<'_>, place: &Place, slope: f32, level: f32) -> Place {
    let place = with(writer, "Mul", place, slope);
    let place = with(writer, "Add", &place, level);
    clip(writer, place, 0.0, 1.0)
}

/// Bounds of at most one decimal as they are: wonnx writes no more of them into its shaders.
fn clip(writer: &mut Writer<'_>, place: Place, least: f32, most: f32) -> Place {
    let exact = |bound: f32| bound.is_finite() && format!("{bound:.1}").parse() == Ok(bound);
    if exact(least) && exact(most) {
        let bounds = [least, most].map(|bound| writer.tensor(&[], &[bound]));
        let dims = place.dims.clone();
        return writer.push("Clip", &[&place.name, &bounds[0], &bounds[1]], Vec::new(), dims);
    }
    let relu = |writer: &mut Writer<'_>, place: &Place| {
        writer.push("Relu", &[&place.name], Vec::new(), place.dims.clone())
    };
    let mut place = place;
    if least.is_finite() {
        place = with(writer, "Sub", &place, least);
        place = relu(writer, &place);
        place = with(writer, "Add", &place, least);
    }
    if most.is_finite() {
        place = with(writer, "Sub", &place, most);
        place = with(writer, "Mul", &place, -1.0);
        place = relu(writer, &place);
        place = with(writer, "Mul", &place, -1.0);
        place = with(writer, "Add", &place, most);
    }
    place
}

/// A pool whose windows are all counted by padding, not by rounding up.
fn pool(
    writer: &mut Writer<'_>,
    node: &Node,
    operator: &str,
    window: &Window,
    include_pad: bool,
) -> Result<Place, GraphError> {
    let place = writer.place(node.inputs[0])?;
    let (input, output) = (&place.dims[2..], &writer.dims(node.output)[2..]);
    let mut window = *window;
    let mut beyond = false;
    for axis in 0..2 {
        let span = (window.kernel[axis] - 1) * window.dilation[axis] + 1;
        let last = (output[axis] - 1) * window.stride[axis] + span;
        let end = last.saturating_sub(input[axis] + window.begin[axis]);
        beyond |= end > window.end[axis];
        window.end[axis] = end;
    }
    let padded = window.begin != [0; 2] || window.end != [0; 2];
    if include_pad && beyond {
        let problem = "a last window reaches beyond the padding that counts: another engine may \
                       run it";
        return Err(writer.problem(problem));
    }
    let mut attributes = geometry(&window);
    if window.dilation != [1; 2] {
        attributes.push(AttributeProto::ints("dilations", &window.dilation.map(wide)));
    }
    if include_pad && padded {
        attributes.push(AttributeProto::int("count_include_pad", 1));
    }
    let dims = writer.dims(node.output);
    Ok(writer.push(operator, &[&place.name], attributes, dims))
}

/// The value with extents `[rows, extent, columns]` around some axes, or `[rows, extent]` where
/// `columns` is 1.
fn along(writer: &mut Writer<'_>, place: Place, axis: usize, count: usize) -> Place {
    let product = |extents: &[usize]| extents.iter().product::<usize>();
    let rows = product(&place.dims[..axis]);
    let extent = product(&place.dims[axis..axis + count]);
    match product(&place.dims[axis + count..]) {
        1 => writer.reshape(place, &[rows, extent]),
        columns => writer.reshape(place, &[rows, extent, columns]),
    }
}

/// Sums over neighbouring axes at once, from the last ones on; a mean divides in the end.
fn reduce(
    writer: &mut Writer<'_>,
    node: &Node,
    axes: &[usize],
    mean: bool,
) -> Result<Place, GraphError> {
    let mut place = writer.place(node.inputs[0])?;
    let mut left: Vec<usize> = axes.iter().map(|axis| axis + 1).collect();
    let mut summed = 1_usize;
    while let Some(last) = left.pop() {
        let mut first = last;
        while left.last() == Some(&(first - 1)) {
            left.pop();
            first -= 1;
        }
        let mut dims = place.dims.clone();
        let part = along(writer, place, first, last - first + 1);
        let mut out = part.dims.clone();
        summed *= out[1];
        out[1] = 1;
        let second = writer.integers(&[1]);
        let sum = writer.push("ReduceSum", &[&part.name, &second], Vec::new(), out);
        dims[first..=last].fill(1);
        place = writer.reshape(sum, &dims);
    }
    #[expect(clippy::cast_precision_loss, reason = "a divisor")]
    let share = 1.0 / summed as f32;
    Ok(if mean { with(writer, "Mul", &place, share) } else { place })
}

/// A factor and a summand of each channel.
fn normalization(writer: &mut Writer<'_>, node: &Node, epsilon: f32) -> Result<Place, GraphError> {
    let place = writer.place(node.inputs[0])?;
    let mut vectors = node.inputs[1..].iter().chain(&node.states).map(|id| writer.weight(*id));
    let mut next = || vectors.next().map_or(Ok(&[][..]), |found| found.map(|(_, values)| values));
    let (scale, bias, mean, variance) = (next()?, next()?, next()?, next()?);
    let factors: Vec<f64> = scale
        .iter()
        .zip(variance)
        .map(|(scale, variance)| {
            f64::from(*scale) / (f64::from(*variance) + f64::from(epsilon)).sqrt()
        })
        .collect();
    let summands: Vec<f32> = factors
        .iter()
        .zip(bias.iter().zip(mean))
        .map(|(factor, (bias, mean))| narrow(f64::from(*bias) - f64::from(*mean) * factor))
        .collect();
    let factors: Vec<f32> = factors.into_iter().map(narrow).collect();
    let mut dims = vec![1; place.dims.len() - 1];
    dims[0] = factors.len();
    let mut place = place;
    for (operator, values) in [("Mul", &factors), ("Add", &summands)] {
        let constant = writer.tensor(&dims, values);
        let inputs = [place.name.as_str(), constant.as_str()];
        place = writer.push(operator, &inputs, Vec::new(), place.dims.clone());
    }
    Ok(place)
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn narrow(value: f64) -> f32 {
    value as f32
}

/// Joins a few at a time.
fn concat(writer: &mut Writer<'_>, node: &Node, axis: usize) -> Result<Place, GraphError> {
    let rows: usize = writer.dims(node.output)[..axis].iter().product();
    if rows != 1 {
        return Err(writer.problem("its axis is not the first with an extent other than 1"));
    }
    let (first, others) = node.inputs.split_at(1);
    let mut joined = writer.place(first[0])?;
    for some in others.chunks(JOINED_MAX - 1) {
        let some = some.iter().map(|id| writer.place(*id)).collect::<Result<Vec<_>, _>>()?;
        let mut names = vec![joined.name.as_str()];
        names.extend(some.iter().map(|place| place.name.as_str()));
        let mut dims = joined.dims.clone();
        dims[axis] += some.iter().map(|place| place.dims[axis]).sum::<usize>();
        let axis = vec![AttributeProto::int("axis", wide(axis))];
        joined = writer.push("Concat", &names, axis, dims);
    }
    Ok(joined)
}
