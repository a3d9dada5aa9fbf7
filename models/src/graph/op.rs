//! The operators of a graph in training.

use super::Window;

/// An operator with what its attributes say. Axes are counted without the batch axis.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Op {
    /// `[x, w [m, c/group, kh, kw], bias [m]?]`
    Conv { window: Window, group: usize },
    /// `[x, w, bias?]`: `alpha x w' + beta bias`, `w` is `[m, d]` if `transposed`, else `[d, m]`.
    Gemm { alpha: f32, beta: f32, transposed: bool },
    /// `[x [.., d], w [d, m]]`: each row of the last axis times the weights.
    MatMul,
    /// `[a, b]`, each broadcast to the output.
    Arithmetic(Arithmetic),
    /// `[x]`
    Activation(Activation),
    /// `[x]`
    MaxPool(Window),
    /// `[x]`
    AveragePool { window: Window, include_pad: bool },
    /// `[x]`: mean over all axes after the channels.
    GlobalAveragePool,
    /// `[x]`: sum or mean over axes, in ascending order.
    Reduce { axes: Vec<usize>, mean: bool },
    /// `[x]`: along one axis, `log` of it if asked for.
    Softmax { axis: usize, log: bool },
    /// `[x]`: `value` before and behind each axis.
    Pad { begin: Vec<usize>, end: Vec<usize>, value: f32 },
    /// `[x, scale, bias]`, states `[mean, variance]`; `momentum` as ONNX counts it.
    BatchNormalization { epsilon: f32, momentum: f32 },
    /// `[x]`: the same elements of each example in row-major order under another shape.
    Reshape,
    /// `[x]`: axis `i` of the output is axis `axes[i]` of the input.
    Transpose { axes: Vec<usize> },
    /// `[x]`: as many elements along each axis as the output has, from `begin` on.
    Crop { begin: Vec<usize> },
    /// `[x...]`: the inputs behind each other along an axis.
    Concat { axis: usize },
    /// `[x]`
    Dropout { ratio: f32, share: Share },
}

/// What a dropout drops together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Share {
    Element,
    /// All elements of a channel of an example (Tompson et al. 2015).
    Channel,
    /// An example as a whole: stochastic depth (Huang et al. 2016).
    Example,
}

impl Op {
    /// What it is called in a profile: ONNX's word, convolutions with their extents.
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Conv { window, group } => {
                let [h, w] = window.kernel;
                let grouped = if *group > 1 { " grouped" } else { "" };
                format!("Conv {h}x{w}{grouped}")
            }
            Self::Gemm { .. } => "Gemm".to_owned(),
            Self::MatMul => "MatMul".to_owned(),
            Self::Arithmetic(arithmetic) => format!("{arithmetic:?}"),
            Self::Activation(activation) => {
                let text = format!("{activation:?}");
                text.split(' ').next().unwrap_or_default().to_owned()
            }
            Self::MaxPool(_) => "MaxPool".to_owned(),
            Self::AveragePool { .. } => "AveragePool".to_owned(),
            Self::GlobalAveragePool => "GlobalAveragePool".to_owned(),
            Self::BatchNormalization { .. } => "BatchNormalization".to_owned(),
            Self::Reshape => "Reshape".to_owned(),
            Self::Transpose { .. } => "Transpose".to_owned(),
            Self::Concat { .. } => "Concat".to_owned(),
            Self::Dropout { .. } => "Dropout".to_owned(),
            Self::Reduce { mean, .. } => if *mean { "ReduceMean" } else { "ReduceSum" }.to_owned(),
            Self::Softmax { log, .. } => if *log { "LogSoftmax" } else { "Softmax" }.to_owned(),
            Self::Pad { .. } => "Pad".to_owned(),
            Self::Crop { .. } => "Slice".to_owned(),
        }
    }
}

/// An operator on two numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Sub,
    Mul,
    Div,
}

/// A function of one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Activation {
    /// `max(x, 0)`
    Relu,
    /// `x`, or `slope x` below 0.
    LeakyRelu {
        slope: f32,
    },
    /// `min(max(x, least), most)`
    Clip {
        least: f32,
        most: f32,
    },
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    Tanh,
    /// `min(max(slope x + level, 0), 1)`
    HardSigmoid {
        slope: f32,
        level: f32,
    },
    /// `x min(max(x / 6 + 1 / 2, 0), 1)`
    HardSwish,
    /// `-x`
    Neg,
}
