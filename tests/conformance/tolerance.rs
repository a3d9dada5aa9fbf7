//! How near an answer has to come, and where it does not.

use models::tensor::{Data, Tensor};

/// A bound of `absolute + relative * |expected| + of_largest * max |expected|` for every
/// floating-point number. Integers and booleans have to be equal, and so have infinities; NaN is
/// equal to NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tolerance {
    pub(crate) relative: f64,
    pub(crate) absolute: f64,
    /// The maximum is that of the tensor.
    pub(crate) of_largest: f64,
}

/// What the ONNX project asks of a backend. Source: `onnx.backend.test.loader`.
pub(crate) const ONNX: Tolerance = Tolerance { relative: 1e-3, absolute: 1e-7, of_largest: 0.0 };

/// Operators whose results are sums in which large terms cancel: what is expected to be 0 is the
/// rounding error of these terms.
const CANCELLING: [&str; 5] = ["DFT", "GRU", "LSTM", "RNN", "STFT"];

/// Some last bits of a `f32`; the rational functions for tanh and sigmoid err as much.
const OF_LARGEST: f64 = 4e-6;

/// Two last bits of a 16-bit float.
const HALF_RELATIVE: f64 = 2e-3;

impl Tolerance {
    /// The bound for the results of an operator, computed with 16-bit floats or wider ones.
    pub(crate) fn of(self, operator: &str, half: bool) -> Self {
        let cancels = CANCELLING.contains(&operator);
        Self {
            relative: if half { self.relative.max(HALF_RELATIVE) } else { self.relative },
            of_largest: if cancels { self.of_largest.max(OF_LARGEST) } else { self.of_largest },
            ..self
        }
    }

    /// What is wrong with an answer, if something is.
    pub(crate) fn difference(&self, found: &Tensor, expected: &Tensor) -> Option<String> {
        if found.data().datatype() != expected.data().datatype() {
            let (found, expected) = (found.data().datatype(), expected.data().datatype());
            return Some(format!("element type {found}, expected {expected}"));
        }
        if found.shape() != expected.shape() {
            return Some(format!("shape {:?}, expected {:?}", found.shape(), expected.shape()));
        }
        match (found.data(), expected.data()) {
            (Data::F32(a), Data::F32(b)) => {
                let wide = |values: &[f32]| values.iter().copied().map(f64::from).collect();
                let (a, b): (Vec<f64>, Vec<f64>) = (wide(a), wide(b));
                self.floats(&a, &b)
            }
            (Data::F64(a), Data::F64(b)) => self.floats(a, b),
            (a, b) if a == b => None,
            (Data::I64(a), Data::I64(b)) => unequal(a, b),
            (Data::I32(a), Data::I32(b)) => unequal(a, b),
            (Data::I8(a), Data::I8(b)) => unequal(a, b),
            (Data::U8(a), Data::U8(b)) => unequal(a, b),
            (a, b) => Some(format!("{a:?}, expected {b:?}")),
        }
    }

    fn floats(&self, found: &[f64], expected: &[f64]) -> Option<String> {
        let finite = expected.iter().filter(|value| value.is_finite());
        let largest = finite.fold(0.0_f64, |largest, value| largest.max(value.abs()));
        let excess = |at: usize| self.excess(found[at], expected[at], largest);
        let wrong: Vec<usize> = (0..found.len()).filter(|at| excess(*at) > 0.0).collect();
        let worst = wrong.iter().copied().max_by(|a, b| excess(*a).total_cmp(&excess(*b)))?;
        let (number, count) = (wrong.len(), found.len());
        let (found, expected) = (found[worst], expected[worst]);
        Some(format!(
            "{number} of {count} numbers, such as {found:e} at {worst}, expected {expected:e}, the \
             largest {largest:e}"
        ))
    }

    /// By how much a number lies outside the bound; 0 or less where it does not.
    fn excess(&self, found: f64, expected: f64, largest: f64) -> f64 {
        if found.is_nan() && expected.is_nan() {
            return 0.0;
        }
        if !found.is_finite() || !expected.is_finite() {
            let equal = found.to_bits() == expected.to_bits();
            return if equal { 0.0 } else { f64::INFINITY };
        }
        let bound = self.absolute + self.relative * expected.abs() + self.of_largest * largest;
        (found - expected).abs() - bound
    }
}

fn unequal<T: PartialEq + std::fmt::Debug>(found: &[T], expected: &[T]) -> Option<String> {
    let wrong: Vec<usize> = (0..found.len()).filter(|at| found[*at] != expected[*at]).collect();
    let at = *wrong.first()?;
    let (number, count) = (wrong.len(), found.len());
    let (found, expected) = (&found[at], &expected[at]);
    Some(format!("{number} of {count} numbers, such as {found:?} at {at}, expected {expected:?}"))
}

#[test]
fn differences_are_found() {
    let floats = |values: &[f32]| Tensor::f32(&[values.len()], values.to_vec()).unwrap();
    let expected = floats(&[1.0, f32::NAN, f32::INFINITY, 0.0]);
    let difference = |found: &[f32]| ONNX.difference(&floats(found), &expected);
    assert_eq!(difference(&[1.0009, f32::NAN, f32::INFINITY, 9e-8]), None);
    let wrong = [
        [1.002, f32::NAN, f32::INFINITY, 0.0],
        [1.0, 0.0, f32::INFINITY, 0.0],
        [1.0, f32::NAN, f32::NEG_INFINITY, 0.0],
        [1.0, f32::NAN, f32::INFINITY, 2e-7],
        [f32::NAN, f32::NAN, f32::INFINITY, 0.0],
    ];
    for found in wrong {
        let said = difference(&found).unwrap();
        assert!(said.starts_with("1 of 4 numbers"), "{found:?}: {said}");
    }
    assert!(difference(&[1.0]).unwrap().starts_with("shape [1]"));
    let integers = |values: &[i64]| Tensor::new(&[2], Data::I64(values.to_vec())).unwrap();
    assert_eq!(ONNX.difference(&integers(&[1, 2]), &integers(&[1, 2])), None);
    let said = ONNX.difference(&integers(&[1, 3]), &integers(&[1, 2])).unwrap();
    assert_eq!(said, "1 of 2 numbers, such as 3 at 1, expected 2");
    let said = ONNX.difference(&integers(&[1, 3]), &floats(&[1.0, 3.0])).unwrap();
    assert_eq!(said, "element type INT64, expected FP32");
}
