//! Writes an encoded update while its values are made.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::{EncodingError, FRAME_VALUES, Header, Largest, frame};

/// Encodes values piece by piece; the same values and seed give the same bytes, however they are
/// cut. Memory: two frames.
#[derive(Debug)]
pub struct Encoder {
    header: Header,
    rng: ChaCha8Rng,
    /// Which values are sent; all of them without it.
    largest: Option<Largest>,
    /// Values of the frame that is not full.
    waiting: Vec<f32>,
    /// Values of all frames before.
    done: usize,
}

impl Encoder {
    /// Begins a file of all values: its first bytes go to `out`. `seed` decides how integers are
    /// rounded.
    pub fn dense(header: Header, seed: u64, out: &mut Vec<u8>) -> Self {
        Self::begin(Header { sparse: false, ..header }, seed, None, out)
    }

    /// The same of a file of some values.
    pub fn sparse(header: Header, seed: u64, largest: Largest, out: &mut Vec<u8>) -> Self {
        Self::begin(Header { sparse: true, ..header }, seed, Some(largest), out)
    }

    fn begin(header: Header, seed: u64, largest: Option<Largest>, out: &mut Vec<u8>) -> Self {
        out.extend(header.to_bytes());
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Self { header, rng, largest, waiting: Vec::new(), done: 0 }
    }

    /// Takes the next values; the frames that are full go to `out`.
    ///
    /// # Errors
    /// [`EncodingError::NotFinite`]; the file is then of no use.
    pub fn push(&mut self, mut values: &[f32], out: &mut Vec<u8>) -> Result<(), EncodingError> {
        while !values.is_empty() {
            let room = FRAME_VALUES - self.waiting.len();
            let (now, later) = values.split_at(room.min(values.len()));
            self.waiting.extend_from_slice(now);
            values = later;
            if self.waiting.len() == FRAME_VALUES {
                self.write(out)?;
            }
        }
        Ok(())
    }

    /// Ends the file: the rest goes to `out`.
    ///
    /// # Errors
    /// [`EncodingError::NotFinite`]; [`EncodingError::Length`] when the values are not as many as
    /// the header says.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), EncodingError> {
        if !self.waiting.is_empty() {
            self.write(out)?;
        }
        let (expected, found) = (self.header.values, self.done);
        if expected == found { Ok(()) } else { Err(EncodingError::Length { expected, found }) }
    }

    fn write(&mut self, out: &mut Vec<u8>) -> Result<(), EncodingError> {
        let (format, values) = (self.header.format, &self.waiting[..]);
        let written_as = (format, self.header.coder);
        let start = out.len();
        out.extend([0; 4]);
        let written = match &mut self.largest {
            None => frame::write_dense(written_as, values, &mut self.rng, out),
            Some(largest) => {
                let keep = |value| largest.takes(value);
                frame::write_sparse(written_as, values, keep, &mut self.rng, out)
            }
        };
        written.map_err(|at| EncodingError::NotFinite {
            index: self.done + at,
            value: values[at],
            format: format.as_str(),
        })?;
        let length = u32::try_from(out.len() - start - 4).expect("a frame is short");
        out[start..start + 4].copy_from_slice(&length.to_le_bytes());
        self.done += self.waiting.len();
        self.waiting.clear();
        Ok(())
    }
}
