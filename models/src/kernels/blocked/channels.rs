//! Pictures behind each other.

use super::convert::start;
use super::{Call, Kernel, Layout};

/// The channels of all sources, one source after the other, of the same lanes.
/// Source: ONNX operator `Concat`, opset 13, of channels.
#[derive(Debug)]
pub(crate) struct Concat {
    pub(crate) sources: Vec<Layout>,
    pub(crate) target: Layout,
}

impl Kernel for Concat {
    fn run(&self, call: Call<'_, '_>) {
        let lanes = self.target.lanes;
        let [height, width] = self.target.size;
        let mut first = 0;
        for (layout, source) in self.sources.iter().zip(call.sources) {
            // Whole planes of lanes where they stay lanes of one plane, else one by one.
            let together = if first % lanes == 0 { lanes } else { 1 };
            for channel in (0..layout.channels).step_by(together) {
                for y in 0..height {
                    let from = &source[start(layout, channel, y)..];
                    let to = &mut call.target[start(&self.target, first + channel, y)..];
                    if together == lanes {
                        to[..width * lanes].copy_from_slice(&from[..width * lanes]);
                    } else {
                        let to = to.iter_mut().step_by(lanes).take(width);
                        to.zip(from.iter().step_by(lanes)).for_each(|(to, from)| *to = *from);
                    }
                }
            }
            first += layout.channels;
        }
    }
}
