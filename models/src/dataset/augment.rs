//! Augmentation: pictures changed at random while they are trained on.
//!
//! What happens to a picture follows from the seed, the epoch and the picture's index alone, so
//! it is the same on every machine, whatever the batches or threads are.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng as _;

use super::order::{below, generator};

/// What is done to pictures, in the order of the fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Augmentation {
    /// An eighth of the side is added around as black pixels (4 of 32, at least 1), and a picture
    /// of the old size cut out anywhere (He et al. 2016, section 4.2).
    pub pad_crop: bool,
    /// Left and right are swapped with probability 1/2.
    pub flip: bool,
    /// A rectangle of half the sides (16 of 32) around any pixel becomes 0, the mean, after
    /// normalisation; what lies outside of the picture is not covered (`DeVries` and Taylor 2017).
    pub cutout: bool,
}

/// Keeps these random numbers apart from the order of examples, which has the same seed.
const STREAM: u64 = 0x6175_676d_656e_7400;

/// What happens to one picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Change {
    /// Rows and columns by which what is cut out lies below and right of the picture.
    offset: [isize; 2],
    flip: bool,
    /// Rows and columns that become 0, from and to.
    hole: Option<[[usize; 2]; 2]>,
}

impl Augmentation {
    /// Whether anything is done.
    pub fn any(self) -> bool {
        self != Self::default()
    }

    /// Appends a picture of `shape [c, h, w]` to `out`, changed as drawn for its index in this
    /// epoch; `values` has what a pixel becomes, for each channel.
    pub(super) fn apply(
        self,
        picture: &[u8],
        shape: [usize; 3],
        values: &[[f32; 256]],
        draw: [u64; 3],
        out: &mut Vec<f32>,
    ) {
        self.draw(shape, draw).apply(picture, shape, values, out);
    }

    /// Draws what happens from `[seed, epoch, index]`.
    fn draw(self, [_, h, w]: [usize; 3], [seed, epoch, index]: [u64; 3]) -> Change {
        let mut random = generator(seed ^ STREAM, epoch << 32 | index & 0xffff_ffff);
        // All are drawn, so that no option changes what another one does.
        let mut offset = |side: usize| {
            let pad = pad(side);
            below(&mut random, 2 * pad + 1).cast_signed() - pad.cast_signed()
        };
        let offset = [offset(h), offset(w)];
        let flip = random.next_u32() & 1 == 1;
        let hole = |side: usize, random: &mut ChaCha8Rng| {
            let (middle, half) = (below(random, side), side / 4);
            [middle.saturating_sub(half), (middle + half.max(1)).min(side)]
        };
        let hole = [hole(h, &mut random), hole(w, &mut random)];
        Change {
            offset: if self.pad_crop { offset } else { [0, 0] },
            flip: self.flip && flip,
            hole: self.cutout.then_some(hole),
        }
    }
}

/// Black pixels that are added on each side.
fn pad(side: usize) -> usize {
    (side / 8).max(1)
}

impl Change {
    fn apply(
        self,
        picture: &[u8],
        [_, h, w]: [usize; 3],
        values: &[[f32; 256]],
        out: &mut Vec<f32>,
    ) {
        let [down, right] = self.offset;
        for (plane, values) in picture.chunks_exact(h * w).zip(values) {
            for y in 0..h {
                let begin = out.len();
                let row = y.checked_add_signed(down).filter(|row| *row < h);
                let row = row.map(|row| &plane[row * w..(row + 1) * w]);
                out.extend((0..w).map(|x| {
                    let x = if self.flip { w - 1 - x } else { x };
                    let pixel = x.checked_add_signed(right).and_then(|x| row?.get(x));
                    values[usize::from(*pixel.unwrap_or(&0))]
                }));
                if let Some([rows, columns]) = self.hole
                    && (rows[0]..rows[1]).contains(&y)
                {
                    out[begin + columns[0]..begin + columns[1]].fill(0.0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
