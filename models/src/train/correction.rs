//! What is added to gradients before a step, and their clipping.

use crate::params::Parameters;

/// Additions to the gradients, by weight in name order.
#[derive(Debug, Default)]
pub(super) struct Corrections {
    /// Weights that the proximal term pulls towards; empty without one.
    anchors: Vec<Vec<f32>>,
    /// Control variates; empty without them.
    controls: Vec<Vec<f32>>,
}

impl Corrections {
    pub(super) fn set_anchors(&mut self, anchors: Vec<Vec<f32>>) {
        self.anchors = anchors;
    }

    #[cfg(test)]
    pub(super) fn anchors(&self) -> &[Vec<f32>] {
        &self.anchors
    }

    pub(super) fn set_controls(&mut self, controls: Option<&Parameters>) {
        let items = controls.map_or(&[][..], Parameters::items);
        self.controls = items.iter().map(|item| item.values.clone()).collect();
    }

    /// Adds `mu (w - w0)` and the control variate to the gradient of weight `index`.
    pub(super) fn add(&self, index: usize, mu: f32, weights: &[f32], gradient: &mut [f32]) {
        if let Some(anchor) = self.anchors.get(index) {
            let pulls = weights.iter().zip(anchor).map(|(weight, anchor)| mu * (weight - anchor));
            gradient.iter_mut().zip(pulls).for_each(|(gradient, pull)| *gradient += pull);
        }
        if let Some(control) = self.controls.get(index) {
            gradient.iter_mut().zip(control).for_each(|(gradient, control)| *gradient += control);
        }
    }
}

/// The factor that brings gradients with this sum of squares to at most this norm.
pub(super) fn clip_factor(squares: f64, norm_max: f32) -> f32 {
    /// As PyTorch has it, so that nothing is divided by 0.
    const EPSILON: f64 = 1e-6;
    let factor = f64::from(norm_max) / (squares.sqrt() + EPSILON);
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
    let factor = factor.min(1.0) as f32;
    factor
}
