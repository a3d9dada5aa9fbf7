//! Files against a slow reader of the definition, against the bounds of their formats, and against
//! any bytes.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "numbers of tests are small"
)]

use proptest::prelude::*;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;

use super::*;

mod reference;

const ALL: [Format; 5] = [
    Format::Float32,
    Format::Float16,
    Format::BFloat16,
    Format::Int8 { block: 256 },
    Format::Int8 { block: 4096 },
];

/// All formats, by all coders.
fn all() -> impl Iterator<Item = (Format, Coder)> {
    let coders = [Coder::Rans, Coder::Zstd];
    ALL.into_iter().flat_map(move |format| coders.map(|coder| (format, coder)))
}

fn header(format: Format, values: usize, base: Option<&str>) -> Header {
    let layout = "sha256:1".to_owned();
    Header {
        format,
        coder: Coder::Rans,
        sparse: false,
        values,
        layout,
        base: base.map(str::to_owned),
    }
}

/// A file of all values, pushed in pieces of a length.
fn dense(format: Format, values: &[f32], seed: u64, cut: usize) -> Vec<u8> {
    dense_of(header(format, values.len(), None), values, seed, cut)
}

fn dense_of(header: Header, values: &[f32], seed: u64, cut: usize) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = Encoder::dense(header, seed, &mut file);
    for piece in values.chunks(cut) {
        encoder.push(piece, &mut file).unwrap();
    }
    encoder.finish(&mut file).unwrap();
    file
}

fn sparse(format: Format, values: &[f32], share: f64) -> Vec<u8> {
    encode_largest(&header(format, values.len(), Some("b")), 1, share, &mut [&mut values.to_vec()])
        .unwrap()
}

/// All values of a file that comes in pieces of a length.
fn decoded(file: &[u8], values: usize, cut: usize) -> Result<Vec<f32>, EncodingError> {
    let mut decoder = Decoder::new(values, "sha256:1", Some("b"));
    let mut all = Vec::new();
    for piece in file.chunks(cut) {
        decoder.take(piece, |offset, values| {
            assert_eq!(offset, all.len());
            all.extend_from_slice(values);
        })?;
    }
    decoder.finish().map(|()| all)
}

/// The largest error of a value of a block, the largest magnitude of which is known.
fn bound(format: Format, value: f32, largest: f32) -> f64 {
    let (value, largest) = (f64::from(value).abs(), f64::from(largest));
    match format {
        Format::Float32 => 0.0,
        Format::Float16 => (value * 2_f64.powi(-11)).max(2_f64.powi(-25)),
        Format::BFloat16 => (value * 2_f64.powi(-8)).max(2_f64.powi(-134)),
        // A subnormal scale is rounded up by a step.
        Format::Int8 { .. } => (largest / 127.0 * (1.0 + 2e-7)) + 1e-44,
    }
}

fn assert_near(format: Format, values: &[f32], found: &[f32]) {
    assert_eq!(values.len(), found.len());
    let block = match format {
        Format::Int8 { block } => block,
        Format::Float32 | Format::Float16 | Format::BFloat16 => FRAME_VALUES,
    };
    for (values, found) in values.chunks(FRAME_VALUES).zip(found.chunks(FRAME_VALUES)) {
        for (values, found) in values.chunks(block).zip(found.chunks(block)) {
            let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            for (value, found) in values.iter().zip(found) {
                let error = (f64::from(*value) - f64::from(*found)).abs();
                assert!(error <= bound(format, *value, largest), "{format:?}: {value} is {found}");
            }
        }
    }
}

/// Values as updates have them: of several magnitudes, some of them 0.
fn values() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        4 => -1e-2_f32..1e-2,
        2 => -1.0_f32..1.0,
        1 => Just(0.0),
        1 => -6e4_f32..6e4,
        1 => -1e-40_f32..1e-40,
    ];
    prop::collection::vec(value, 0..700)
}

/// The same values again and again, so that there are several frames.
fn many(values: &[f32], count: usize) -> Vec<f32> {
    values.iter().copied().cycle().take(if values.is_empty() { 0 } else { count }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn values_come_back_within_the_bound_however_they_are_cut(
        few in values(), count in prop_oneof![0..700_usize, 16_000..40_000_usize],
        cut in 1..9000_usize, seed: u64,
    ) {
        let values = many(&few, count);
        for (format, coder) in all() {
            let header = Header { coder, ..header(format, values.len(), None) };
            let file = dense_of(header.clone(), &values, seed, cut);
            prop_assert_eq!(&file, &dense_of(header, &values, seed, 1 << 20));
            let found = decoded(&file, values.len(), cut).unwrap();
            assert_near(format, &values, &found);
            let bits = |values: Vec<f32>| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let expected = bits(reference::decode(&file));
            prop_assert_eq!(bits(decoded(&file, values.len(), 1 << 20).unwrap()), expected.clone());
            prop_assert_eq!(bits(found), expected);
        }
    }

    #[test]
    fn the_largest_are_sent_and_the_rest_is_kept(
        few in values(), count in 0..20_000_usize, share in 0.001..1.0_f64,
    ) {
        let values = many(&few, count);
        for (format, coder) in all() {
            let mut left = values.clone();
            let header = Header { coder, ..header(format, values.len(), Some("b")) };
            let (first, second) = left.split_at_mut(values.len() / 3);
            let file = encode_largest(&header, 1, share, &mut [first, second]).unwrap();
            let sent = decoded(&file, values.len(), 777).unwrap();
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&sent), bits(&reference::decode(&file)));
            let chosen = reference::largest(&values, share);
            for (at, value) in values.iter().enumerate() {
                prop_assert_eq!(left[at].to_bits(), (value - sent[at]).to_bits());
                prop_assert!(chosen.contains(&at) || sent[at] == 0.0);
                if format == Format::Float32 && chosen.contains(&at) {
                    prop_assert_eq!(sent[at].to_bits(), value.to_bits());
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused(
        noise in prop::collection::vec(any::<u8>(), 0..300), few in values(), share in 0.01..0.9_f64,
        at: prop::sample::Index, byte: u8, cut in 1..400_usize,
    ) {
        prop_assert!(decoded(&noise, 5, cut).is_err() || noise.is_empty());
        let values = many(&few, 600);
        for (format, coder) in all() {
            let header = Header { coder, ..header(format, values.len(), Some("b")) };
            let sparse = encode_largest(&header, 1, share, &mut [&mut values.clone()]).unwrap();
            for mut file in [dense_of(header, &values, 1, 99), sparse] {
                let frames = frames_of(&file);
                let _ = decoded(&[&file[..frames], &noise].concat(), values.len(), cut);
                let at = at.index(file.len());
                prop_assert!(decoded(&file[..at], values.len(), cut).is_err());
                file[at] = byte;
                if let Ok(found) = decoded(&file, values.len(), cut) {
                    prop_assert!(found.len() == values.len() && found.iter().all(|v| v.is_finite()));
                }
            }
        }
    }
}

/// Where the first frame begins.
fn frames_of(file: &[u8]) -> usize {
    Header::parse(file).unwrap().unwrap().1
}

#[test]
fn integers_have_the_right_expectation() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let values: Vec<f32> = (0..500).map(|_| rng.next_u32() as i32 as f32 / 2e9).collect();
    let (mut sums, files) = (vec![0.0_f64; values.len()], 4000);
    for seed in 0..files {
        let file = dense(Format::Int8 { block: 256 }, &values, seed, 500);
        for (sum, found) in sums.iter_mut().zip(decoded(&file, values.len(), 999).unwrap()) {
            *sum += f64::from(found);
        }
    }
    let mut worst = 0.0_f64;
    let mut total = 0.0_f64;
    for (sum, value) in sums.iter().zip(&values) {
        // In standard deviations of the mean, which is that of one step at most.
        let deviation = 1.1 / 127.0 / 2.0 / (files as f64).sqrt();
        let error = (sum / files as f64 - f64::from(*value)) / deviation;
        worst = worst.max(error.abs());
        total += error;
    }
    assert!(worst < 4.5, "{worst}");
    assert!(total.abs() / (values.len() as f64).sqrt() < 4.5, "{total}");
}

#[test]
fn error_feedback_sends_everything_in_the_end() {
    let values = [5.0_f32, 0.5, -0.25, 0.125, 0.0, -1.0];
    let mut left = vec![0.0; values.len()];
    let mut sent = vec![0.0_f64; values.len()];
    let rounds = 400;
    for seed in 0..rounds {
        for (left, value) in left.iter_mut().zip(values) {
            *left += value;
        }
        let header = header(Format::BFloat16, values.len(), Some("b"));
        let file = encode_largest(&header, seed, 0.2, &mut [&mut left]).unwrap();
        let found = decoded(&file, values.len(), 50).unwrap();
        assert!(found.iter().filter(|value| **value != 0.0).count() <= 2);
        for (sum, found) in sent.iter_mut().zip(found) {
            *sum += f64::from(found);
        }
    }
    for ((sent, left), value) in sent.iter().zip(&left).zip(values) {
        let all = f64::from(value) * f64::from(u32::try_from(rounds).unwrap());
        assert!((sent + f64::from(*left) - all).abs() < 1e-2 * all.abs().max(1.0));
        // What waits does not grow with the rounds.
        assert!(left.abs() < 25.0, "{left}");
    }
}

#[test]
fn bytes_follow_the_format() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    // The sum of twelve uniform numbers is nearly normal.
    let mut normal = || (0..12).map(|_| rng.next_u32() as f32 / 4.3e9).sum::<f32>() - 6.0;
    let values: Vec<f32> = (0..FRAME_VALUES * 3).map(|_| 1e-3 * normal()).collect();
    let plain = 4.0 * values.len() as f64;
    for (format, most) in [
        (Format::Float32, 0.86),
        (Format::Float16, 0.44),
        (Format::BFloat16, 0.345),
        (Format::Int8 { block: 1024 }, 0.24),
    ] {
        let share = dense(format, &values, 1, 5000).len() as f64 / plain;
        assert!(share < most, "{format:?}: {share}");
        // A hundredth of the values with their indices.
        let share = sparse(format, &values, 0.01).len() as f64 / plain;
        assert!(share < 0.0125 * 1.1, "{format:?}, sparse: {share}");
    }
    // Zstandard has no table of its own for each plane's exponents, and comes near.
    let coder = Coder::Zstd;
    let header = Header { coder, ..header(Format::BFloat16, values.len(), None) };
    let share = dense_of(header, &values, 1, 5000).len() as f64 / plain;
    assert!(share < 0.36, "{share}");
    let still = dense(Format::Float32, &vec![0.0; FRAME_VALUES * 3], 1, 5000);
    assert!(still.len() < 600, "{}", still.len());
}

#[test]
fn what_is_wrong_is_named() {
    let values = vec![1.0_f32; 40];
    let good = dense(Format::Float32, &values, 1, 40);
    let frames = frames_of(&good);
    let reheaded = |json: &str| {
        let length = u32::try_from(json.len()).unwrap().to_le_bytes();
        [&MAGIC[..], &length, json.as_bytes(), &good[frames..]].concat()
    };
    let of = |changed: &Header| [changed.to_bytes(), good[frames..].to_vec()].concat();
    let known = header(Format::Float32, 40, None);
    let overlong = [&good[..frames], &u32::MAX.to_le_bytes()[..]].concat();
    let cases = [
        (b"{\"w\":{}}".to_vec(), "dunlinup"),
        ([&MAGIC[..], &u32::MAX.to_le_bytes()].concat(), "at most 4096"),
        (reheaded("[]"), "its header"),
        (reheaded(r#"{"version":2,"planes":7}"#), "version 2, this program reads up to 1"),
        (reheaded(r#"{"version":1,"format":"int8","block":9,"values":40,"layout":""}"#), "int8"),
        (of(&Header { values: 1 << 40, ..known.clone() }), "expected 40"),
        (of(&Header { layout: "sha256:2".to_owned(), ..known.clone() }), "other names or shapes"),
        (
            of(&Header { base: Some("c".to_owned()), ..known.clone() }),
            "differences from c, expected",
        ),
        (overlong, "longer than the format"),
        (good[..good.len() - 1].to_vec(), "0 values, expected 40"),
        ([good.clone(), vec![0]].concat(), "more bytes"),
    ];
    for (file, expected) in cases {
        for cut in [1, 5000] {
            let error = decoded(&file, 40, cut).unwrap_err().to_string();
            assert!(error.contains(expected), "{error:?} lacks {expected:?}");
        }
    }
    let refused = Decoder::new(40, "sha256:1", None)
        .take(&of(&Header { base: Some("b".to_owned()), ..known }), |_, _| ())
        .unwrap_err();
    assert_eq!(refused.to_string(), "the update holds differences from b, expected parameters");
}

#[test]
fn what_a_format_cannot_hold_is_refused() {
    for (format, value, words) in [
        (Format::Float32, f32::NAN, "value 20000 is NaN"),
        (Format::Float16, 65_520.0, "65520, which float16 cannot hold"),
        (Format::BFloat16, f32::MAX, "bfloat16 cannot hold"),
        (Format::Int8 { block: 256 }, f32::INFINITY, "inf"),
    ] {
        let mut values = vec![0.5; 30_000];
        values[20_000] = value;
        let mut file = Vec::new();
        let mut encoder = Encoder::dense(header(format, 30_000, None), 1, &mut file);
        let pushed = encoder.push(&values, &mut file);
        let error = pushed.and_then(|()| encoder.finish(&mut file)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        let header = header(format, 30_000, Some("b"));
        let error = encode_largest(&header, 1, 0.1, &mut [&mut values]).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let mut file = Vec::new();
    let encoder = Encoder::dense(header(Format::Float32, 3, None), 1, &mut file);
    assert_eq!(encoder.finish(&mut file), Err(EncodingError::Length { expected: 3, found: 0 }));
    // A scale that is rounded up does not carry a value out of the range.
    for largest in [f32::MAX, f32::from_bits(1), 1e-44] {
        let values = [largest, -largest, 0.0];
        let format = Format::Int8 { block: 256 };
        assert_near(format, &values, &decoded(&dense(format, &values, 1, 3), 3, 999).unwrap());
    }
    // A hostile scale.
    let mut file = dense(Format::Int8 { block: 256 }, &[1.0], 1, 1);
    let scale = frames_of(&file) + 5;
    file[scale] = 0x7f;
    file[scale + 2] = 0xff;
    let error = decoded(&file, 1, 99).unwrap_err();
    assert!(matches!(error, EncodingError::NotFinite { index: 0, .. }), "{error}");
}

/// What devices decode is what the format holds of the parameters, under the same header.
#[test]
fn parameters_come_back_as_their_format_holds_them() {
    let values: Vec<f32> = (0..40_000_u16).map(|number| (f32::from(number) - 2e4) * 1e-3).collect();
    let layout = Layout::new([("a", &[100, 300][..]), ("b", &[10_000][..])].into_iter());
    let whole = layout.parameters(&values).unwrap().to_safetensors();
    for (format, error) in
        [(Format::Float32, 0.0), (Format::Float16, 2e-2), (Format::BFloat16, 0.1)]
    {
        let (sparse, base) = (false, None);
        let (count, digest) = (layout.total_len(), layout_digest(&layout));
        let header =
            Header { format, coder: Coder::Zstd, sparse, values: count, layout: digest, base };
        let mut file = layout.header();
        let mut encoder = Encoder::dense(header, 0, &mut file);
        encoder.push(&values, &mut file).unwrap();
        encoder.finish(&mut file).unwrap();
        let decoded = decode_parameters(&file).unwrap();
        assert_eq!(decoded == whole, format == Format::Float32);
        assert_eq!(decoded.len(), whole.len());
        assert!(file.len() < whole.len());
        let decoded = crate::params::Parameters::from_safetensors(&decoded).unwrap();
        let found = decoded.items().iter().flat_map(|item| &item.values);
        for (found, value) in found.zip(&values) {
            assert!((found - value).abs() <= error, "{format:?}: {found} for {value}");
        }
        for cut in [0, 7, layout.data_start(), file.len() - 1] {
            assert!(decode_parameters(&file[..cut]).is_err(), "{cut}");
        }
    }
}
