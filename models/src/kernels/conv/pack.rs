//! Weights in the order in which tiles read them: panels of rows, in a panel by element of the
//! window, then by channel, then by row.

use super::{Geometry, panels};
use crate::kernels::simd::Instructions;

/// Rows are output channels, as the forward pass needs them.
pub(super) fn by_maps(
    geometry: &Geometry,
    weights: &[f32],
    instructions: Instructions,
    packed: &mut [f32],
) {
    let (elements, channels, depth) = (geometry.elements(), geometry.channels, geometry.depth());
    let groups = packed.chunks_exact_mut(geometry.maps * depth);
    for (packed, weights) in groups.zip(weights.chunks_exact(geometry.maps * depth)) {
        for panel in panels(geometry.maps, instructions.rows()) {
            let rows = panel.rows;
            let packed = &mut packed[panel.first * depth..][..rows * depth];
            for (row, weights) in weights[panel.first * depth..].chunks_exact(depth).enumerate() {
                if row == rows {
                    break;
                }
                for (channel, weights) in weights.chunks_exact(elements).enumerate() {
                    for (element, weight) in weights.iter().enumerate() {
                        packed[(element * channels + channel) * rows + row] = *weight;
                    }
                }
            }
        }
    }
}

/// Rows are input channels, as the pass to the input's gradient needs them.
pub(super) fn by_channels(
    geometry: &Geometry,
    weights: &[f32],
    instructions: Instructions,
    packed: &mut [f32],
) {
    let (elements, maps, depth) = (geometry.elements(), geometry.maps, geometry.depth());
    let groups = packed.chunks_exact_mut(maps * depth);
    for (packed, weights) in groups.zip(weights.chunks_exact(maps * depth)) {
        for panel in panels(geometry.channels, instructions.rows()) {
            let rows = panel.rows;
            let packed = &mut packed[panel.first * maps * elements..][..rows * maps * elements];
            for (map, weights) in weights.chunks_exact(depth).enumerate() {
                let weights = &weights[panel.first * elements..][..rows * elements];
                for (row, weights) in weights.chunks_exact(elements).enumerate() {
                    for (element, weight) in weights.iter().enumerate() {
                        packed[(element * maps + map) * rows + row] = *weight;
                    }
                }
            }
        }
    }
}
