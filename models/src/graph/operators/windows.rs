//! Operators with a window, and means over pictures.

use super::node;
use crate::graph::context::Context;
use crate::graph::reader::Made;
use crate::graph::{GraphError, Op, ValueId, Window};

/// An activation of `[c, h, w]`.
fn picture(context: &mut Context<'_, '_>) -> Result<(ValueId, [usize; 3]), GraphError> {
    let (x, dims) = context.activation(0)?;
    match dims.as_slice() {
        [c, h, w] => Ok((x, [*c, *h, *w])),
        _ => Err(context.misfit("[n, c, h, w]", context.shape(x))),
    }
}

pub(super) fn conv(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, [c, h, w]) = picture(context)?;
    let (weight, extents) = context.weight(1, 4)?;
    let group = context.int("group", 1);
    let group = usize::try_from(group).ok().filter(|group| {
        *group >= 1 && c == extents[1].saturating_mul(*group) && extents[0] % group == 0
    });
    let Some(group) = group else {
        let expected = format!("weights for {c} channels in {} groups", context.int("group", 1));
        return Err(context.misfit(expected, context.shape(weight)));
    };
    let kernel = [extents[2], extents[3]];
    if !context.ints("kernel_shape").is_empty() && Window::kernel_shape(context)? != kernel {
        return Err(context.misfit("weights of the kernel_shape", context.shape(weight)));
    }
    let window = Window { ceil: false, ..Window::read(context, kernel, [h, w])? };
    let dims = window_output(context, &window, x, extents[0], [h, w])?;
    let mut inputs = vec![x, weight];
    if context.has(2) {
        inputs.push(context.vector(2, extents[0])?);
    }
    Ok(node(Op::Conv { window, group }, inputs, dims))
}

fn window_output(
    context: &Context<'_, '_>,
    window: &Window,
    x: ValueId,
    channels: usize,
    input: [usize; 2],
) -> Result<Vec<usize>, GraphError> {
    let Some([h, w]) = window.output(input) else {
        let [h, w] = window.kernel;
        let expected = format!("an input that the {h} x {w} kernel fits in");
        return Err(context.misfit(expected, context.shape(x)));
    };
    Ok(vec![channels, h, w])
}

pub(super) fn max_pool(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, [c, h, w]) = picture(context)?;
    let window = Window::read(context, Window::kernel_shape(context)?, [h, w])?;
    if (0..2).any(|axis| window.begin[axis].max(window.end[axis]) >= window.kernel[axis]) {
        return Err(context.problem("pads must be smaller than the kernel".to_owned()));
    }
    let dims = window_output(context, &window, x, c, [h, w])?;
    Ok(node(Op::MaxPool(window), vec![x], dims))
}

pub(super) fn average_pool(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, [c, h, w]) = picture(context)?;
    let window = Window::read(context, Window::kernel_shape(context)?, [h, w])?;
    if (0..2).any(|axis| window.begin[axis].max(window.end[axis]) >= window.kernel[axis]) {
        return Err(context.problem("pads must be smaller than the kernel".to_owned()));
    }
    let dims = window_output(context, &window, x, c, [h, w])?;
    let include_pad = context.int("count_include_pad", 0) != 0;
    Ok(node(Op::AveragePool { window, include_pad }, vec![x], dims))
}

pub(super) fn global_average_pool(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, dims) = context.activation(0)?;
    let ones = std::iter::repeat_n(1, dims.len() - 1);
    let dims = dims.iter().take(1).copied().chain(ones).collect();
    Ok(node(Op::GlobalAveragePool, vec![x], dims))
}

/// The largest of each channel: a window as large as the picture.
pub(super) fn global_max_pool(context: &mut Context<'_, '_>) -> Result<Made, GraphError> {
    let (x, [c, h, w]) = picture(context)?;
    let window = Window {
        kernel: [h, w],
        stride: [1; 2],
        dilation: [1; 2],
        begin: [0; 2],
        end: [0; 2],
        ceil: false,
    };
    Ok(node(Op::MaxPool(window), vec![x], vec![c, 1, 1]))
}
