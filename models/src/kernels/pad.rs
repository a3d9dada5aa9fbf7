//! Padding that no window takes in, and its opposite.

use super::{Backward, Forward, Kernel, Reads};

/// A constant before and behind each axis of an example.
/// Shapes: `x [n, d1, ...]` -> `[n, begin1 + d1 + end1, ...]`.
/// Source: ONNX operator `Pad`, opset 21, mode `constant`.
#[derive(Debug)]
pub(super) struct Pad {
    value: f32,
    within: Within,
}

impl Pad {
    pub(super) fn new(begin: &[usize], value: f32, input: &[usize], output: &[usize]) -> Self {
        Self { value, within: Within::new(begin, input, output) }
    }
}

impl Kernel for Pad {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let output = call.output;
        output.fill(self.value);
        self.within.visit(call.batch, |inner, outer| output[outer] = x[inner]);
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        gradient.clear_unless_adding();
        let (values, dy) = (&mut gradient.values, call.output_gradient);
        self.within.visit(call.batch, |inner, outer| values[inner] += dy[outer]);
    }
}

/// Some of the elements along each axis of an example.
/// Shapes: `x [n, d1, ...]` -> `[n, c1, ...]`, `begin1 + c1 <= d1`.
/// Source: ONNX operators `Slice`, opset 13, and `Split`, opset 18.
#[derive(Debug)]
pub(super) struct Crop(Within);

impl Crop {
    pub(super) fn new(begin: &[usize], input: &[usize], output: &[usize]) -> Self {
        Self(Within::new(begin, output, input))
    }
}

impl Kernel for Crop {
    fn reads(&self) -> Reads {
        Reads::NOTHING
    }

    fn forward(&mut self, call: Forward<'_>) {
        let Some(x) = call.inputs.first() else { return };
        let output = call.output;
        self.0.visit(call.batch, |inner, outer| output[inner] = x[outer]);
    }

    fn backward(&mut self, call: Backward<'_>) {
        let Some(Some(gradient)) = call.input_gradients.first_mut() else { return };
        gradient.clear_unless_adding();
        let (values, dy) = (&mut gradient.values, call.output_gradient);
        self.0.visit(call.batch, |inner, outer| values[outer] += dy[inner]);
    }
}

/// One value as a part of a larger one.
#[derive(Debug)]
struct Within {
    /// For each element of the smaller one's example that of the larger one's, both in row-major
    /// order.
    elements: Vec<usize>,
}

impl Within {
    fn new(begin: &[usize], inner: &[usize], outer: &[usize]) -> Self {
        let mut elements = vec![0];
        for ((extent, all), begin) in inner.iter().zip(outer).zip(begin) {
            elements = elements
                .iter()
                .flat_map(|base| (0..*extent).map(move |at| base * all + begin + at))
                .collect();
        }
        Self { elements }
    }

    /// Visits the places of the same element in both.
    fn visit(&self, n: usize, mut visit: impl FnMut(usize, usize)) {
        for (inner, outer) in self.elements.iter().enumerate() {
            (0..n).for_each(|example| visit(inner * n + example, outer * n + example));
        }
    }
}
