//! A reader of whole files, written after the definition and nothing else.

/// Takes `count` bytes off the front.
fn bytes<'a>(file: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = file.split_at(count);
    *file = rest;
    taken
}

fn little(bytes: &[u8]) -> usize {
    bytes.iter().rev().fold(0, |number, byte| number * 256 + usize::from(*byte))
}

fn number(file: &mut &[u8]) -> usize {
    let low = usize::from(bytes(file, 1)[0]);
    if low < 128 { low } else { low - 128 + 128 * usize::from(bytes(file, 1)[0]) }
}

fn plane(file: &mut &[u8], length: usize) -> Vec<u8> {
    let kind = bytes(file, 1)[0];
    if kind == 0 {
        return bytes(file, length).to_vec();
    }
    let coded = little(bytes(file, 2));
    let coded = bytes(file, coded);
    let mut plane = vec![0; length];
    match kind {
        1 => {
            plane.clear();
            super::super::rans::decode(coded, length, &mut plane).unwrap();
        }
        2 => assert_eq!(zstd_safe::decompress(&mut plane[..], coded), Ok(length)),
        _ => panic!("a plane of kind {kind}"),
    }
    plane
}

/// Elements of so many bytes, as one number each.
fn elements(file: &mut &[u8], width: usize, count: usize) -> Vec<u64> {
    let planes: Vec<Vec<u8>> = (0..width).map(|_| plane(file, count)).collect();
    let element =
        |at: usize| planes.iter().fold(0, |number, plane| number * 256 + u64::from(plane[at]));
    (0..count).map(element).collect()
}

/// A number of `width` bits whose lowest one is the sign.
fn signed_last(number: u64, width: u32) -> u32 {
    u32::try_from((number & 1) << (width - 1) | number >> 1).unwrap()
}

fn values(file: &mut &[u8], format: &str, block: usize, count: usize) -> Vec<f32> {
    let floats = |numbers: Vec<u64>, of: fn(u64) -> f32| numbers.into_iter().map(of).collect();
    match format {
        "float32" => floats(elements(file, 4, count), |n| f32::from_bits(signed_last(n, 32))),
        "bfloat16" => {
            floats(elements(file, 2, count), |n| f32::from_bits(signed_last(n, 16) << 16))
        }
        "float16" => floats(elements(file, 2, count), |n| {
            let bits = signed_last(n, 16);
            let (exponent, fraction) = (bits >> 10 & 31, f64::from(bits & 1023) / 1024.0);
            let magnitude = match exponent {
                0 => fraction * 2_f64.powi(-14),
                _ => (1.0 + fraction) * 2_f64.powi(exponent as i32 - 15),
            };
            (if bits >> 15 == 0 { magnitude } else { -magnitude }) as f32
        }),
        _ => {
            let scales = elements(file, 4, count.div_ceil(block));
            let integers = plane(file, count);
            let value = |(at, byte): (usize, &u8)| {
                let scale = f32::from_bits(u32::try_from(scales[at / block]).unwrap());
                let value = f64::from(scale) * (f64::from(*byte) - 128.0);
                value.clamp(f32::MIN.into(), f32::MAX.into()) as f32
            };
            integers.iter().enumerate().map(value).collect()
        }
    }
}

/// All values of a file.
pub(super) fn decode(mut file: &[u8]) -> Vec<f32> {
    assert_eq!(bytes(&mut file, 8), b"dunlinup");
    let length = little(bytes(&mut file, 4));
    let header: serde_json::Value = serde_json::from_slice(bytes(&mut file, length)).unwrap();
    let number_of = |name: &str| header[name].as_u64().map_or(1, |n| usize::try_from(n).unwrap());
    let (format, block) = (header["format"].as_str().unwrap(), number_of("block"));
    let mut all = vec![0.0; number_of("values")];
    for frame in all.chunks_mut(16_384) {
        let length = little(bytes(&mut file, 4));
        let mut body = bytes(&mut file, length);
        if header["sparse"] == true {
            let (count, gap_bytes) = (number(&mut body), number(&mut body));
            let gaps = plane(&mut body, gap_bytes);
            let kept = values(&mut body, format, block, count);
            let (mut gaps, mut at) = (&gaps[..], 0);
            for value in kept {
                at += number(&mut gaps);
                frame[at] = value;
                at += 1;
            }
        } else {
            frame.copy_from_slice(&values(&mut body, format, block, frame.len()));
        }
        assert!(body.is_empty());
    }
    assert!(file.is_empty());
    all
}

/// The places of the largest magnitudes, by sorting; of equal ones the first.
pub(super) fn largest(values: &[f32], share: f64) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b)));
    let count = (values.len() as f64 * share).ceil() as usize;
    places.truncate(count.max(1));
    places.retain(|at| values[*at] != 0.0);
    places
}
