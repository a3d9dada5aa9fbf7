//! Weights in the order in which tiles read them: panels of rows, in a panel by element of the
//! window, then by channel, then by row.

use rayon::prelude::*;

use super::{Geometry, Panel, panels};
use crate::kernels::simd::Instructions;

/// Weights that a thread takes at least.
const WEIGHTS_MIN: usize = 1 << 14;

/// Rows are output channels, as the forward pass needs them.
pub(super) fn by_maps(
    geometry: &Geometry,
    weights: &[f32],
    instructions: Instructions,
    packed: &mut [f32],
) {
    let (elements, channels, depth) = (geometry.elements(), geometry.channels, geometry.depth());
    let panels = panels(geometry.maps, instructions.rows());
    for_panels(&panels, geometry.maps * depth, depth, packed, |group, panel, packed| {
        let rows = panel.rows;
        let weights = &weights[(group * geometry.maps + panel.first) * depth..][..rows * depth];
        for (row, weights) in weights.chunks_exact(depth).enumerate() {
            for (channel, weights) in weights.chunks_exact(elements).enumerate() {
                for (element, weight) in weights.iter().enumerate() {
                    packed[(element * channels + channel) * rows + row] = *weight;
                }
            }
        }
    });
}

/// Rows are input channels, as the pass to the input's gradient needs them.
pub(super) fn by_channels(
    geometry: &Geometry,
    weights: &[f32],
    instructions: Instructions,
    packed: &mut [f32],
) {
    let (elements, maps, depth) = (geometry.elements(), geometry.maps, geometry.depth());
    let panels = panels(geometry.channels, instructions.rows());
    for_panels(&panels, maps * depth, maps * elements, packed, |group, panel, packed| {
        let rows = panel.rows;
        let weights = &weights[group * maps * depth..][..maps * depth];
        for (map, weights) in weights.chunks_exact(depth).enumerate() {
            let weights = &weights[panel.first * elements..][..rows * elements];
            for (row, weights) in weights.chunks_exact(elements).enumerate() {
                for (element, weight) in weights.iter().enumerate() {
                    packed[(element * maps + map) * rows + row] = *weight;
                }
            }
        }
    });
}

/// Visits `(group, panel, its part of packed)` in parallel; a row takes `row_len`.
fn for_panels(
    panels: &[Panel],
    group_len: usize,
    row_len: usize,
    packed: &mut [f32],
    pack: impl Fn(usize, Panel, &mut [f32]) + Sync,
) {
    let mut parts = Vec::with_capacity(packed.len() / group_len * panels.len());
    for (group, mut rest) in packed.chunks_exact_mut(group_len).enumerate() {
        for panel in panels {
            let (part, behind) = rest.split_at_mut(panel.rows * row_len);
            parts.push((group, *panel, part));
            rest = behind;
        }
    }
    let rows = panels.first().map_or(1, |panel| panel.rows);
    let len_min = WEIGHTS_MIN.div_ceil(row_len * rows);
    let parts = parts.into_par_iter().with_min_len(len_min);
    parts.for_each(|(group, panel, part)| pack(group, panel, part));
}
