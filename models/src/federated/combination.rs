//! Combinations of updates: what most rules come to once their coefficients are known.

use super::tile::{TileError, check_centre, check_finite, check_shape, fill};
use crate::kernels::simd::vectorised;

/// A tile of a combination of updates, written to `combined`.
///
/// With a `centre` the rows are parameters that devices trained from it, and the result is
/// `centre + sum c_k (row_k - centre)`; without one it is `sum c_k row_k`, right for updates that
/// are differences already, and for parameters whose coefficients have the sum 1.
///
/// Sums are `f64`, in the order of devices. A row whose coefficient is 0 is not read: a refused
/// update cannot spoil the result.
///
/// Shapes: `rows [n][length]`, `coefficients [n]`, `centre [length]` -> `combined [length]`.
///
/// # Errors
/// [`TileError`]; `combined` is then without meaning.
pub fn combine(
    centre: Option<&[f32]>,
    rows: &[&[f32]],
    coefficients: &[f64],
    combined: &mut [f32],
) -> Result<(), TileError> {
    if let Some(row) = coefficients.iter().position(|value| !value.is_finite()) {
        return Err(TileError::Coefficient { row, value: coefficients[row] });
    }
    check_shape(rows, coefficients.len(), combined.len())?;
    check_centre(centre, rows.len(), combined.len())?;
    fill(combined, |columns, combined| {
        if let Some(centre) = centre {
            check_finite(rows.len(), centre, columns.clone())?;
        }
        let centre = centre.map(|centre| &centre[columns.clone()]);
        let mut sums = vec![0.0; columns.len()];
        for (index, (row, coefficient)) in rows.iter().zip(coefficients).enumerate() {
            if *coefficient == 0.0 {
                continue;
            }
            check_finite(index, row, columns.clone())?;
            let row = &row[columns.clone()];
            vectorised(|| add(&mut sums, row, centre, *coefficient));
        }
        vectorised(|| finish(&sums, centre, combined));
        Ok(())
    })
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
fn add(sums: &mut [f64], row: &[f32], centre: Option<&[f32]>, coefficient: f64) {
    let Some(centre) = centre else {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += coefficient * f64::from(*value);
        }
        return;
    };
    for ((sum, value), centre) in sums.iter_mut().zip(row).zip(centre) {
        *sum += coefficient * (f64::from(*value) - f64::from(*centre));
    }
}

#[inline(always)]
#[expect(clippy::inline_always, reason = "to be compiled for the caller's instructions")]
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn finish(sums: &[f64], centre: Option<&[f32]>, combined: &mut [f32]) {
    match centre {
        Some(centre) => {
            for ((value, sum), centre) in combined.iter_mut().zip(sums).zip(centre) {
                *value = (f64::from(*centre) + sum) as f32;
            }
        }
        None => {
            for (value, sum) in combined.iter_mut().zip(sums) {
                *value = *sum as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests;
