//! One frame: values into planes of bytes and back.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng as _;

use super::{BLOCK_VALUES, Coder, FRAME_VALUES, Format, element};

/// What a frame is wrong in.
pub(super) type Problem = &'static str;

const CUT: Problem = "its frame ends too early";
/// Bytes that a plane takes beside its own, at most.
const PLANE_SLACK: usize = 3;
/// Planes of a frame, at most: those of scales, one of integers, one of indices.
const PLANES_MAX: usize = 6;
/// Bytes of a gap between two indices, at most.
const GAP_BYTES: usize = 2;

/// Bytes of a frame without its length, at most.
pub(super) fn bytes_max(format: Format, sparse: bool, values: usize) -> usize {
    let width = match format {
        Format::Float32 => 4,
        Format::Float16 | Format::BFloat16 => 2,
        Format::Int8 { .. } => 1,
    };
    let scales = 4 * values.div_ceil(*BLOCK_VALUES.start());
    let indices = if sparse { GAP_BYTES * (values + 2) } else { 0 };
    width * values + scales + indices + PLANES_MAX * PLANE_SLACK
}

/// Appends a frame of all values.
pub(super) fn write_dense(
    (format, coder): (Format, Coder),
    values: &[f32],
    rng: &mut ChaCha8Rng,
    frame: &mut Vec<u8>,
) -> Result<(), usize> {
    write_values((format, coder), values, rng, frame)
}

/// Appends a frame of the values that are kept; the others are 0.
pub(super) fn write_sparse(
    (format, coder): (Format, Coder),
    values: &[f32],
    mut keep: impl FnMut(f32) -> bool,
    rng: &mut ChaCha8Rng,
    frame: &mut Vec<u8>,
) -> Result<(), usize> {
    let (mut gaps, mut kept, mut places) = (Vec::new(), Vec::new(), Vec::new());
    let mut next = 0;
    for (place, value) in values.iter().enumerate().filter(|(_, value)| keep(**value)) {
        append_number(place - next, &mut gaps);
        next = place + 1;
        kept.push(*value);
        places.push(place);
    }
    append_number(kept.len(), frame);
    append_number(gaps.len(), frame);
    write_plane(coder, &gaps, frame);
    write_values((format, coder), &kept, rng, frame).map_err(|at| places[at])
}

/// The values of a whole frame of `count`.
pub(super) fn read(
    format: Format,
    sparse: bool,
    mut frame: &[u8],
    count: usize,
) -> Result<Vec<f32>, Problem> {
    let values = if sparse {
        read_sparse(format, &mut frame, count)?
    } else {
        read_values(format, &mut frame, count)?
    };
    if frame.is_empty() { Ok(values) } else { Err("its frame goes on behind the last value") }
}

fn read_sparse(format: Format, frame: &mut &[u8], count: usize) -> Result<Vec<f32>, Problem> {
    let kept = read_number(frame)?;
    let gap_bytes = read_number(frame)?;
    if kept > count || gap_bytes > GAP_BYTES * kept {
        return Err("it has more indices than values");
    }
    let gaps = read_plane(frame, gap_bytes)?;
    let kept = read_values(format, frame, kept)?;
    let mut values = vec![0.0; count];
    let mut gaps = &gaps[..];
    let mut next = 0;
    for value in kept {
        let place = next + read_number(&mut gaps)?;
        *values.get_mut(place).ok_or("it has an index behind its last value")? = value;
        next = place + 1;
    }
    if gaps.is_empty() { Ok(values) } else { Err("it has more indices than values") }
}

/// Appends the planes of values; the place of the first that the format cannot hold.
fn write_values(
    (format, coder): (Format, Coder),
    values: &[f32],
    rng: &mut ChaCha8Rng,
    frame: &mut Vec<u8>,
) -> Result<(), usize> {
    match format {
        Format::Float32 => {
            check(values, f32::is_finite)?;
            // The sign goes to the end: then the first plane is the exponents alone.
            write_planes(
                coder,
                &values.iter().map(|value| value.to_bits().rotate_left(1).to_be_bytes()),
                frame,
            );
        }
        Format::Float16 => {
            check(values, |value| element::to_float16(value) & 0x7c00 != 0x7c00)?;
            write_planes(
                coder,
                &values
                    .iter()
                    .map(|value| element::to_float16(*value).rotate_left(1).to_be_bytes()),
                frame,
            );
        }
        Format::BFloat16 => {
            check(values, |value| element::to_bfloat16(value) & 0x7f80 != 0x7f80)?;
            write_planes(
                coder,
                &values
                    .iter()
                    .map(|value| element::to_bfloat16(*value).rotate_left(1).to_be_bytes()),
                frame,
            );
        }
        Format::Int8 { block } => {
            check(values, f32::is_finite)?;
            let scales: Vec<f32> = values.chunks(block).map(scale).collect();
            write_planes(coder, &scales.iter().map(|scale| scale.to_be_bytes()), frame);
            let mut integers = Vec::with_capacity(values.len());
            for (values, scale) in values.chunks(block).zip(scales) {
                integers.extend(values.iter().map(|value| quantise(*value, scale, rng)));
            }
            write_plane(coder, &integers, frame);
        }
    }
    Ok(())
}

fn check(values: &[f32], holds: impl Fn(f32) -> bool) -> Result<(), usize> {
    // A loop without a way out is made of vectors.
    if values.iter().fold(true, |all, value| all & holds(*value)) {
        return Ok(());
    }
    Err(values.iter().position(|value| !holds(*value)).unwrap_or_default())
}

/// The largest magnitude of a block divided by 127, rounded up: no integer is out of range.
fn scale(values: &[f32]) -> f32 {
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let scale = largest / 127.0;
    if f64::from(scale) * 127.0 < f64::from(largest) { scale.next_up() } else { scale }
}

/// The value in steps of the scale, up or down at random so that its expectation is the value;
/// 128 stands for 0.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 255")]
fn quantise(value: f32, scale: f32, rng: &mut ChaCha8Rng) -> u8 {
    // A uniform number of 0 to below 1, exactly.
    let uniform = f64::from(rng.next_u32()) / 4_294_967_296.0;
    if scale == 0.0 {
        return 128;
    }
    let steps = f64::from(value) / f64::from(scale);
    ((steps + uniform).floor().clamp(-127.0, 127.0) + 128.0) as u8
}

/// The values of `count` elements.
fn read_values(format: Format, frame: &mut &[u8], count: usize) -> Result<Vec<f32>, Problem> {
    Ok(match format {
        Format::Float32 => {
            let values = read_planes(frame, count)?;
            values.map(|bytes| f32::from_bits(u32::from_be_bytes(bytes).rotate_right(1))).collect()
        }
        Format::Float16 => {
            let values = read_planes(frame, count)?;
            values
                .map(|bytes| element::from_float16(u16::from_be_bytes(bytes).rotate_right(1)))
                .collect()
        }
        Format::BFloat16 => {
            let values = read_planes(frame, count)?;
            values
                .map(|bytes| element::from_bfloat16(u16::from_be_bytes(bytes).rotate_right(1)))
                .collect()
        }
        Format::Int8 { block } => {
            let scales = read_planes(frame, count.div_ceil(block))?.map(f32::from_be_bytes);
            let scales: Vec<f32> = scales.collect();
            let integers = read_plane(frame, count)?;
            let mut values = Vec::with_capacity(count);
            for (integers, scale) in integers.chunks(block).zip(scales) {
                // 127 of a scale that was rounded up may lie beyond the range.
                let value =
                    |byte: &u8| ((f32::from(*byte) - 128.0) * scale).clamp(f32::MIN, f32::MAX);
                let finite = scale.is_finite();
                values.extend(integers.iter().map(|byte| if finite { value(byte) } else { scale }));
            }
            values
        }
    })
}

/// Appends the planes of elements of `N` bytes.
fn write_planes<const N: usize>(
    coder: Coder,
    elements: &(impl ExactSizeIterator<Item = [u8; N]> + Clone),
    frame: &mut Vec<u8>,
) {
    let mut plane = Vec::with_capacity(elements.len());
    for at in 0..N {
        plane.clear();
        plane.extend(elements.clone().map(|bytes| bytes[at]));
        write_plane(coder, &plane, frame);
    }
}

/// Elements of `N` bytes, from their planes.
fn read_planes<const N: usize>(
    frame: &mut &[u8],
    count: usize,
) -> Result<impl Iterator<Item = [u8; N]> + use<N>, Problem> {
    let mut elements = vec![[0; N]; count];
    for at in 0..N {
        let plane = read_plane(frame, count)?;
        for (element, byte) in elements.iter_mut().zip(plane) {
            element[at] = byte;
        }
    }
    Ok(elements.into_iter())
}

/// Appends a plane: 0 and its bytes, or what coded them, a length, and its bytes coded.
fn write_plane(coder: Coder, plane: &[u8], frame: &mut Vec<u8>) {
    let start = frame.len();
    frame.extend([coder.kind(), 0, 0]);
    if coder.encode(plane, frame) {
        let length = frame.len() - start - PLANE_SLACK;
        let length = u16::try_from(length).expect("shorter than the plane of a frame");
        frame[start + 1..start + PLANE_SLACK].copy_from_slice(&length.to_le_bytes());
    } else {
        frame.truncate(start);
        frame.push(0);
        frame.extend_from_slice(plane);
    }
}

fn read_plane(frame: &mut &[u8], length: usize) -> Result<Vec<u8>, Problem> {
    match frame.split_off_first().ok_or(CUT)? {
        0 => frame.split_off(..length).map(<[u8]>::to_vec).ok_or(CUT),
        kind => {
            let coder = Coder::of(*kind).ok_or("it has a plane of an unknown kind")?;
            let shorter = frame.split_off(..2).ok_or(CUT)?;
            let shorter = usize::from(u16::from_le_bytes([shorter[0], shorter[1]]));
            let bytes = frame.split_off(..shorter).ok_or(CUT)?;
            let mut plane = Vec::new();
            let decoded = coder.decode(bytes, length, &mut plane);
            decoded.map_err(|_| "its coded bytes are damaged")?;
            Ok(plane)
        }
    }
}

/// Appends a number below 2^15 in one byte or two.
#[expect(clippy::cast_possible_truncation, reason = "7 bits each")]
fn append_number(number: usize, bytes: &mut Vec<u8>) {
    if number < 0x80 {
        bytes.push(number as u8);
    } else {
        bytes.extend([number as u8 | 0x80, (number >> 7) as u8]);
    }
}

/// Takes a number off the front.
fn read_number(bytes: &mut &[u8]) -> Result<usize, Problem> {
    let low = usize::from(*bytes.split_off_first().ok_or(CUT)?);
    if low < 0x80 {
        return Ok(low);
    }
    Ok(low & 0x7f | usize::from(*bytes.split_off_first().ok_or(CUT)?) << 7)
}

// Few gaps are so wide that they take two bytes.
const _: () = assert!(FRAME_VALUES + FRAME_VALUES / 0x80 < 1 << 15, "numbers fit two bytes");
