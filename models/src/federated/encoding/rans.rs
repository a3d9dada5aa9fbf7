//! Entropy coding of bytes by how often each occurs: asymmetric numeral systems (Duda 2013,
//! arXiv 1311.2540), the range variant with a state of 32 bits and four states in turn.
//!
//! ```text
//! first symbol u8   symbols - 1 u8   frequency of each (1 or 2 bytes, sum 4096)
//! states 4 x u32    words u16, to the end
//! ```
//!
//! The decoder ends in the states that the encoder began with, and with no word left: so much
//! damage shows here. All of it shows in the digest of the blob.

use super::coder::Damaged;

/// Bits of a frequency.
const SCALE_BITS: u32 = 12;
/// The sum of all frequencies.
const SCALE: u32 = 1 << SCALE_BITS;
/// States are from here to 2^32.
const LOW: u32 = 1 << 16;
/// States in turn: the processor works on one while it waits for another.
const STATES: usize = 4;

/// Frequencies of the bytes, with the sum [`SCALE`].
struct Frequencies {
    of: [u32; 256],
    first: usize,
    last: usize,
}

impl Frequencies {
    /// Those of bytes, of which there is at least one: each that occurs has a frequency above 0.
    fn counted(bytes: &[u8]) -> Self {
        let mut counts = [[0_u32; 256]; 2];
        for pair in bytes.chunks(2) {
            for (counts, byte) in counts.iter_mut().zip(pair) {
                counts[usize::from(*byte)] += 1;
            }
        }
        let [mut of, other] = counts;
        let total = bytes.len() as u64;
        let mut sum = 0;
        for (count, other) in of.iter_mut().zip(other) {
            let all = u64::from(*count + other);
            let share = u32::try_from(all * u64::from(SCALE) / total).unwrap_or(SCALE);
            *count = if all == 0 { 0 } else { share.max(1) };
            sum += *count;
        }
        // What rounding left over, or took too much, falls to the most frequent ones.
        while sum != SCALE {
            let most = of.iter_mut().max_by_key(|frequency| **frequency).expect("256 of them");
            let before = *most;
            *most = if sum < SCALE {
                before + SCALE - sum
            } else {
                before - (sum - SCALE).min(before / 2)
            };
            sum = sum + *most - before;
        }
        let first = of.iter().position(|frequency| *frequency > 0).unwrap_or(0);
        let last = of.iter().rposition(|frequency| *frequency > 0).unwrap_or(0);
        Self { of, first, last }
    }

    /// Bits that these bytes take, nearly.
    fn bits(&self, bytes: &[u8]) -> u64 {
        // log2 between powers of two as a straight line, in 1/256.
        let cost = self.of.map(|frequency| {
            let whole = frequency.max(1).ilog2();
            (SCALE_BITS - whole) * 256 + 256 - ((frequency.max(1) << 8) >> whole)
        });
        bytes.iter().map(|byte| u64::from(cost[usize::from(*byte)])).sum::<u64>() / 256
    }

    /// The sums of the frequencies before each.
    fn starts(&self) -> [u32; 256] {
        let mut next = 0;
        self.of.map(|frequency| {
            next += frequency;
            next - frequency
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "bytes, and frequencies of 13 bits")]
    fn write(&self, coded: &mut Vec<u8>) {
        coded.extend([self.first as u8, (self.last - self.first) as u8]);
        for frequency in &self.of[self.first..=self.last] {
            if *frequency < 0x80 {
                coded.push(*frequency as u8);
            } else {
                coded.extend([(*frequency | 0x80) as u8, (*frequency >> 7) as u8]);
            }
        }
    }

    /// Takes them off the front.
    fn read(coded: &mut &[u8]) -> Result<Self, Damaged> {
        let mut next = || coded.split_off_first().copied().map(u32::from).ok_or(Damaged);
        let (first, more) = (next()? as usize, next()? as usize);
        let last = first + more;
        let mut of = [0; 256];
        let mut sum = 0;
        for frequency in of.get_mut(first..=last).ok_or(Damaged)? {
            let low = next()?;
            *frequency = if low < 0x80 { low } else { low & 0x7f | next()? << 7 };
            sum += *frequency;
        }
        if sum == SCALE { Ok(Self { of, first, last }) } else { Err(Damaged) }
    }
}

/// Appends the coded bytes; `false`, with nothing appended, where they would be more than `most`.
pub(super) fn encode(bytes: &[u8], most: usize, coded: &mut Vec<u8>) -> bool {
    if bytes.is_empty() {
        return false;
    }
    let frequencies = Frequencies::counted(bytes);
    let tables = 4 * STATES + 2 + frequencies.last - frequencies.first;
    if frequencies.bits(bytes) / 8 + tables as u64 >= most as u64 {
        return false;
    }
    let begin = coded.len();
    frequencies.write(coded);
    let starts = frequencies.starts();
    let mut states = [LOW; STATES];
    let mut words = Vec::with_capacity(bytes.len() / 2);
    for (index, byte) in bytes.iter().enumerate().rev() {
        let state = &mut states[index % STATES];
        let (frequency, start) = (frequencies.of[usize::from(*byte)], starts[usize::from(*byte)]);
        if u64::from(*state) >= u64::from(frequency) << (32 - SCALE_BITS) {
            #[expect(clippy::cast_possible_truncation, reason = "the lower half")]
            words.push(*state as u16);
            *state >>= 16;
        }
        *state = ((*state / frequency) << SCALE_BITS) + *state % frequency + start;
    }
    coded.extend(states.iter().flat_map(|state| state.to_le_bytes()));
    coded.extend(words.iter().rev().flat_map(|word| word.to_le_bytes()));
    let pays = coded.len() - begin <= most;
    if !pays {
        coded.truncate(begin);
    }
    pays
}

/// Appends the `length` bytes that were coded.
pub(super) fn decode(mut coded: &[u8], length: usize, bytes: &mut Vec<u8>) -> Result<(), Damaged> {
    let frequencies = Frequencies::read(&mut coded)?;
    let table = table(&frequencies);
    let mut states = [0; STATES];
    for state in &mut states {
        let (first, rest) = coded.split_first_chunk().ok_or(Damaged)?;
        *state = u32::from_le_bytes(*first);
        coded = rest;
    }
    let (words, rest) = coded.as_chunks::<2>();
    if !rest.is_empty() {
        return Err(Damaged);
    }
    let mut words = words.iter();
    let begin = bytes.len();
    bytes.resize(begin + length, 0);
    for places in bytes[begin..].chunks_mut(STATES) {
        for (place, state) in places.iter_mut().zip(&mut states) {
            let entry = table[(*state % SCALE) as usize];
            *place = (entry & 0xff) as u8;
            let frequency = (entry >> 8 & 0xfff) + 1;
            *state = frequency * (*state >> SCALE_BITS) + (entry >> 20);
            if *state < LOW {
                let word = words.next().ok_or(Damaged)?;
                *state = *state << 16 | u32::from(u16::from_le_bytes(*word));
            }
        }
    }
    let whole = words.next().is_none() && states == [LOW; STATES];
    if whole { Ok(()) } else { Err(Damaged) }
}

/// For each remainder of a state its byte, that one's frequency less 1, and the place in it.
fn table(frequencies: &Frequencies) -> Vec<u32> {
    let mut table = Vec::with_capacity(SCALE as usize);
    for (byte, frequency) in (0_u32..).zip(frequencies.of) {
        table.extend((0..frequency).map(|place| byte | (frequency - 1) << 8 | place << 20));
    }
    table
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Decodes by the definition: one state after the other, symbols by search.
    fn reference(mut coded: &[u8], length: usize) -> Vec<u8> {
        let frequencies = Frequencies::read(&mut coded).unwrap();
        let mut states: Vec<u64> = coded[..16]
            .chunks(4)
            .map(|state| u32::from_le_bytes(state.try_into().unwrap()).into())
            .collect();
        let mut words =
            coded[16..].chunks(2).map(|word| u64::from(word[0]) + 256 * u64::from(word[1]));
        (0..length)
            .map(|at| {
                let state = &mut states[at % 4];
                let (quotient, remainder) = (*state / 4096, *state % 4096);
                let (mut byte, mut start) = (0, 0);
                while start + u64::from(frequencies.of[byte]) <= remainder {
                    start += u64::from(frequencies.of[byte]);
                    byte += 1;
                }
                *state = quotient * u64::from(frequencies.of[byte]) + remainder - start;
                if *state < 65_536 {
                    *state = *state * 65_536 + words.next().unwrap();
                }
                u8::try_from(byte).unwrap()
            })
            .collect()
    }

    fn skewed() -> impl Strategy<Value = Vec<u8>> {
        let byte = prop_oneof![8 => 100..104_u8, 2 => 90..120_u8, 1 => any::<u8>()];
        prop_oneof![
            prop::collection::vec(byte, 1..3000),
            (any::<u8>(), 1..3000_usize).prop_map(|(byte, count)| vec![byte; count]),
        ]
    }

    proptest! {
        #[test]
        fn bytes_come_back_as_the_reference_reads_them(bytes in skewed()) {
            let mut coded = vec![7];
            if !encode(&bytes, bytes.len() - 1, &mut coded) {
                prop_assert_eq!(coded, [7]);
                return Ok(());
            }
            prop_assert!(coded.len() <= bytes.len());
            let mut decoded = vec![9];
            decode(&coded[1..], bytes.len(), &mut decoded).unwrap();
            prop_assert_eq!(&decoded[1..], &bytes[..]);
            prop_assert_eq!(reference(&coded[1..], bytes.len()), bytes);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(
            bytes in skewed(), at: prop::sample::Index, byte: u8, noise: Vec<u8>, length in 0..5000_usize,
        ) {
            let mut out = Vec::new();
            let _ = decode(&noise, length, &mut out);
            let mut coded = Vec::new();
            if encode(&bytes, bytes.len(), &mut coded) {
                let at = at.index(coded.len());
                coded[at] = byte;
                let _ = decode(&coded, length, &mut out);
                let _ = decode(&coded[..at], bytes.len(), &mut out);
            }
        }
    }

    #[test]
    fn bytes_take_little_more_than_their_entropy() {
        // Three quarters of one, a quarter of another: 0.811 bits each.
        let bytes: Vec<u8> = (0..16_384).map(|at| if at % 4 == 0 { 3 } else { 200 }).collect();
        let mut coded = Vec::new();
        assert!(encode(&bytes, bytes.len(), &mut coded));
        assert!((1662..1900).contains(&coded.len()), "{}", coded.len());
        coded.clear();
        assert!(encode(&[5; 16_384], 100, &mut coded));
        assert_eq!(coded.len(), 2 + 2 + 16);
        let noise: Vec<u8> = (0..=255).cycle().take(16_384).collect();
        assert!(!encode(&noise, 16_000, &mut coded));
        assert!(!encode(&[1, 2, 3], 3, &mut coded) && !encode(&[], 0, &mut coded));
    }

    #[test]
    fn much_damage_shows() {
        let bytes: Vec<u8> = (0..5000_u32).map(|at| (at * at % 17) as u8).collect();
        let mut coded = Vec::new();
        assert!(encode(&bytes, bytes.len(), &mut coded));
        let mut out = Vec::new();
        for length in [0, 4999, 5001] {
            assert_eq!(decode(&coded, length, &mut out), Err(Damaged), "{length}");
        }
        let is_found = |at: &usize| {
            let mut damaged = coded.clone();
            damaged[*at] ^= 0x10;
            decode(&damaged, 5000, &mut Vec::new()) == Err(Damaged)
        };
        let shown = (0..coded.len()).filter(is_found).count();
        assert!(2 * shown > coded.len(), "{shown} of {}", coded.len());
    }
}
