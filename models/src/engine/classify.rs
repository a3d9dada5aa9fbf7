//! What a classifier's outputs say: the likeliest classes with their probabilities.

use crate::tensor::Tensor;

/// A class and how likely the model holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Class {
    /// Counted from 0.
    pub index: usize,
    /// 0 to 1.
    pub probability: f32,
}

/// How far the sum of probabilities may lie from 1: room for `f32` and for 8-bit outputs.
const SUM_TOLERANCE: f32 = 0.01;

/// The `count` likeliest classes of every example, the likeliest first; of equals the one with
/// the smaller index.
///
/// Shapes: `output [n, classes]`, axes of extent 1 aside, or `[classes]` for a single example;
/// `None` for other shapes, other element types than `FP32`, and values that are not finite.
///
/// Models end in a softmax or before it, and ONNX does not say which. Rows are taken for
/// probabilities when no value is negative and every row sums to 1 within 0.01; otherwise for
/// logits, and the softmax is taken. Logits that look like probabilities in all rows keep their
/// order and only seem more certain than they are.
pub fn top_classes(output: &Tensor, count: usize) -> Option<Vec<Vec<Class>>> {
    let values = output.as_f32()?;
    let classes = classes(output.shape())?;
    if values.iter().any(|value| !value.is_finite()) {
        return None;
    }
    let probabilities = values.chunks(classes).all(|row| {
        row.iter().all(|value| *value >= 0.0)
            && (row.iter().sum::<f32>() - 1.0).abs() <= SUM_TOLERANCE
    });
    let rows = values.chunks(classes).map(|row| {
        let row = if probabilities { row.to_vec() } else { softmax(row) };
        top(&row, count)
    });
    Some(rows.collect())
}

/// The extent of the class axis.
fn classes(shape: &[usize]) -> Option<usize> {
    let (batch, rest) = match shape {
        [classes] => return (*classes > 1).then_some(*classes),
        [batch, rest @ ..] => (*batch, rest),
        [] => return None,
    };
    let mut wide = rest.iter().copied().filter(|extent| *extent != 1);
    match (wide.next(), wide.next()) {
        (Some(classes), None) if batch > 0 && classes > 0 => Some(classes),
        _ => None,
    }
}

/// `exp(x_i) / sum exp(x_j)`, shifted by the largest so that nothing overflows.
pub fn softmax(row: &[f32]) -> Vec<f32> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f32> = row.iter().map(|value| (value - largest).exp()).collect();
    let sum: f32 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

fn top(row: &[f32], count: usize) -> Vec<Class> {
    let mut classes: Vec<Class> = row
        .iter()
        .enumerate()
        .map(|(index, probability)| Class { index, probability: *probability })
        .collect();
    classes.sort_by(|a, b| b.probability.total_cmp(&a.probability));
    classes.truncate(count);
    classes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(shape: &[usize], values: &[f32]) -> Option<Vec<Vec<Class>>> {
        top_classes(&Tensor::f32(shape, values.to_vec()).unwrap(), 2)
    }

    fn indices(classes: &[Class]) -> Vec<usize> {
        classes.iter().map(|class| class.index).collect()
    }

    #[test]
    fn probabilities_are_kept_and_logits_become_some() {
        let rows_of = rows(&[2, 3], &[0.2, 0.7, 0.1, 0.0, 0.0, 1.0]).unwrap();
        assert_eq!(
            rows_of[0],
            [Class { index: 1, probability: 0.7 }, Class { index: 0, probability: 0.2 }]
        );
        assert_eq!(indices(&rows_of[1]), [2, 0]);
        let logits = rows(&[3], &[1.0, 3.0, 2.0]).unwrap();
        // exp(0) / (exp(-2) + exp(0) + exp(-1))
        assert!((logits[0][0].probability - 0.665_240_96).abs() < 1e-6);
        assert_eq!(indices(&logits[0]), [1, 2]);
        // One row that sums to 1 by chance does not make the others probabilities.
        let mixed = rows(&[2, 2], &[0.5, 0.5, 4.0, 0.0]).unwrap();
        assert_eq!(mixed[0][0], Class { index: 0, probability: 0.5 });
        assert!((mixed[1][0].probability - 0.982_013_8).abs() < 1e-6);
    }

    #[test]
    fn large_logits_do_not_overflow() {
        let classes = rows(&[1, 3, 1, 1], &[8000.0, -6000.0, 0.0]).unwrap();
        assert_eq!(classes[0][0], Class { index: 0, probability: 1.0 });
    }

    #[test]
    fn what_is_no_classification_is_none() {
        assert_eq!(rows(&[1, 2, 2], &[0.0; 4]), None);
        assert_eq!(rows(&[1], &[0.5]), None);
        assert_eq!(rows(&[2, 1], &[0.5; 2]), None);
        assert_eq!(rows(&[2], &[f32::NAN, 0.0]), None);
        assert_eq!(rows(&[0, 3], &[]), None);
    }
}
