//! From one layout to another.

use super::{Call, Kernel, Layout};

/// The same picture in another layout; one of the two has one lane.
#[derive(Debug)]
pub(crate) struct Convert {
    pub(crate) source: Layout,
    pub(crate) target: Layout,
}

impl Kernel for Convert {
    fn run(&self, call: Call<'_, '_>) {
        let Self { source, target } = self;
        let lanes = source.lanes.max(target.lanes);
        let width = source.size[1];
        for channel in 0..source.channels {
            for y in 0..source.size[0] {
                let from = start(source, channel, y);
                let to = start(target, channel, y);
                let from = &call.sources[0][from..];
                let to = &mut call.target[to..];
                match (source.lanes, target.lanes) {
                    (1, 1) => to[..width].copy_from_slice(&from[..width]),
                    (1, _) => {
                        let to = to.iter_mut().step_by(lanes);
                        to.zip(&from[..width]).for_each(|(to, from)| *to = *from);
                    }
                    _ => {
                        let from = from.iter().step_by(lanes);
                        to[..width].iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                    }
                }
            }
        }
    }
}

/// Where a row of a channel begins.
pub(super) fn start(layout: &Layout, channel: usize, y: usize) -> usize {
    let Layout { lanes, .. } = layout;
    let plane = channel / lanes * layout.plane() + layout.origin();
    plane + y * layout.row() + channel % lanes
}
