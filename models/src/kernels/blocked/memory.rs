//! Memory whose vectors lie in one line of the cache each.

#![expect(unsafe_code, reason = "lines are a row of floats")]

use crate::kernels::simd::LANES_MAX;

/// `f32`s of a line.
const LINE: usize = LANES_MAX;

#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Floats that begin at a line.
#[derive(Debug, Default)]
pub(crate) struct Memory(Vec<Line>);

impl Memory {
    /// At least `len` zeros.
    pub(crate) fn zeros(len: usize) -> Self {
        Self(vec![Line([0.0; LINE]); len.div_ceil(LINE)])
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: lines are arrays of floats without a gap.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * LINE) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * LINE) }
    }
}
