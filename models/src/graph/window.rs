//! Sliding windows: the geometry that convolutions and pools share.

use super::GraphError;
use super::context::Context;

/// A window over the two spatial axes `[h, w]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: [usize; 2],
    pub(crate) dilation: [usize; 2],
    /// Padding before the first row and column.
    pub(crate) begin: [usize; 2],
    /// Padding behind the last row and column.
    pub(crate) end: [usize; 2],
    /// Whether a last window that is only partly filled counts.
    pub(crate) ceil: bool,
}

impl Window {
    /// One place at a time.
    pub(crate) const POINT: Self = Self {
        kernel: [1; 2],
        stride: [1; 2],
        dilation: [1; 2],
        begin: [0; 2],
        end: [0; 2],
        ceil: false,
    };

    /// Largest extent of a kernel, stride, dilation or padding: far above what networks use, and
    /// small enough that no sum of them overflows.
    pub(super) const EXTENT_MAX: usize = 1 << 16;

    /// Reads `strides`, `dilations`, `pads`, `auto_pad` and `ceil_mode` for an input of `[h, w]`.
    pub(super) fn read(
        context: &Context<'_, '_>,
        kernel: [usize; 2],
        input: [usize; 2],
    ) -> Result<Self, GraphError> {
        let pair = |name: &str, default: usize, least: i64| match context.ints(name) {
            [] => Ok([default; 2]),
            [h, w] => Ok([extent(context, name, *h, least)?, extent(context, name, *w, least)?]),
            other => Err(context.problem(format!("{name} {other:?}: expected two numbers"))),
        };
        let stride = pair("strides", 1, 1)?;
        let dilation = pair("dilations", 1, 1)?;
        let mut window = Self {
            kernel,
            stride,
            dilation,
            begin: [0; 2],
            end: [0; 2],
            ceil: context.int("ceil_mode", 0) != 0,
        };
        let auto_pad = context.attribute("auto_pad").and_then(|a| a.s.as_deref());
        match auto_pad.unwrap_or(b"NOTSET") {
            b"NOTSET" | b"" => match context.ints("pads") {
                [] => {}
                [top, left, bottom, right] => {
                    let pad = |value: &i64| extent(context, "pads", *value, 0);
                    window.begin = [pad(top)?, pad(left)?];
                    window.end = [pad(bottom)?, pad(right)?];
                }
                other => {
                    return Err(context.problem(format!("pads {other:?}: expected four numbers")));
                }
            },
            b"VALID" => {}
            same @ (b"SAME_UPPER" | b"SAME_LOWER") => {
                for axis in 0..2 {
                    let outputs = input[axis].div_ceil(stride[axis]);
                    let needed = (outputs - 1) * stride[axis] + window.span(axis);
                    let all = needed.saturating_sub(input[axis]);
                    let less = all / 2;
                    let upper = same == b"SAME_UPPER";
                    window.begin[axis] = if upper { less } else { all - less };
                    window.end[axis] = all - window.begin[axis];
                }
            }
            other => {
                let other = String::from_utf8_lossy(other);
                return Err(context.problem(format!("auto_pad {other:?} is not known")));
            }
        }
        Ok(window)
    }

    /// A kernel's extents from the attribute `kernel_shape`.
    pub(super) fn kernel_shape(context: &Context<'_, '_>) -> Result<[usize; 2], GraphError> {
        match context.ints("kernel_shape") {
            [h, w] => Ok([
                extent(context, "kernel_shape", *h, 1)?,
                extent(context, "kernel_shape", *w, 1)?,
            ]),
            other => Err(context.problem(format!("kernel_shape {other:?}: expected two numbers"))),
        }
    }

    /// Input rows (axis 0) or columns (axis 1) from a window's first to its last.
    fn span(&self, axis: usize) -> usize {
        (self.kernel[axis] - 1) * self.dilation[axis] + 1
    }

    /// Output extents; `None` when the window is larger than the padded input.
    pub(crate) fn output(&self, input: [usize; 2]) -> Option<[usize; 2]> {
        let mut output = [0; 2];
        for axis in 0..2 {
            let padded = input[axis] + self.begin[axis] + self.end[axis];
            let room = padded.checked_sub(self.span(axis))?;
            let mut steps =
                if self.ceil { room.div_ceil(self.stride[axis]) } else { room / self.stride[axis] };
            // A window that would begin behind the input sees nothing.
            if self.ceil && steps * self.stride[axis] >= input[axis] + self.begin[axis] {
                steps -= 1;
            }
            output[axis] = steps + 1;
        }
        Some(output)
    }
}

fn extent(
    context: &Context<'_, '_>,
    name: &str,
    value: i64,
    least: i64,
) -> Result<usize, GraphError> {
    let most = Window::EXTENT_MAX;
    let fits = usize::try_from(value).ok().filter(|extent| *extent <= most && value >= least);
    fits.ok_or_else(|| {
        context.problem(format!("{name}: expected {least} to {most}, found {value}"))
    })
}
