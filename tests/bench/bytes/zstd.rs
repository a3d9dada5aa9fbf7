//! The coders of updates beside Zstandard's command, on differences that were learnt: as they lie in
//! memory, and byte by byte, as our frames take them apart. Our times include that, and of formats
//! that round the rounding.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use models::dataset::{Batches, Dataset, Order};
use models::federated::encoding::{Coder, Decoder, Encoder, Format, Header, layout_digest};
use models::params::{Layout, Parameters};
use models::train::{Sgd, Trainer};
use tests::data::{Digits, read};

use crate::figures::heading;

/// One that uses all of its weights on pictures as small as the digits are, and one most of whose
/// weights only ever see the border of zeros there: their differences are 0.
const FAMILIES: [&str; 2] = ["resnet20", "resnet18"];
const BLOCK: usize = 1024;
const BATCH: usize = 16;
const TURNS: usize = 3;

/// Bytes, and how many of those that went in become them in a second, and come back.
struct Coded {
    bytes: f64,
    encode: f64,
    decode: f64,
}

pub(super) fn measure() {
    heading("differences after an epoch of digits beside zstd -3: shares and MB/s of the format");
    println!(
        "  {:<10} {:<9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>11} {:>11} {:>11} {:>11}",
        "NETWORK",
        "FORMAT",
        "MB",
        "RANS",
        "ZSTD",
        "-3",
        "PLANES",
        "RANS MB/s",
        "ZSTD MB/s",
        "-3 MB/s",
        "PLANES MB/s"
    );
    let folder = tempfile::tempdir().unwrap();
    let dataset = read(&Digits::write_as(folder.path(), 1, "iid").share(1));
    let formats = [
        ("float32", Format::Float32),
        ("float16", Format::Float16),
        ("int8", Format::Int8 { block: BLOCK }),
    ];
    for family in FAMILIES {
        let (values, layout) = differences(family, &dataset);
        for (name, format) in formats {
            print!("  {family:<10} {name:<9}");
            compare(folder.path(), format, (&values, &layout));
        }
    }
}

/// What an epoch changes in a network, and the layout of its values.
fn differences(family: &str, dataset: &Dataset) -> (Vec<f32>, Layout) {
    let shape = dataset.example_shape().try_into().expect("pictures");
    let onnx = models::zoo::build(family, shape, dataset.classes, 1).unwrap();
    let sgd = Sgd { learning_rate: 0.02, momentum: 0.9, weight_decay: 0.0 };
    let mut trainer = Trainer::new(&onnx, sgd).unwrap();
    let before = trainer.parameters();
    let mut batches = Batches::new(&dataset.train, &dataset.normalization);
    for indices in Order::new(dataset.train.len(), 1, 0).batches(BATCH) {
        let (examples, labels) = batches.get(indices, 0);
        trainer.step(examples, labels).unwrap();
    }
    let after = trainer.parameters();
    let all = |parameters: &Parameters| -> Vec<f32> {
        parameters.items().iter().flat_map(|item| item.values.iter().copied()).collect()
    };
    let pairs = all(&after).into_iter().zip(all(&before));
    let values: Vec<f32> = pairs.map(|(after, before)| after - before).collect();
    let layout = Layout::new(std::iter::once(("w", &[values.len()][..])));
    (values, layout)
}

fn compare(folder: &Path, format: Format, (values, layout): (&[f32], &Layout)) {
    let known = decoded(&encoded((format, Coder::Rans), values, layout), layout);
    let (raw, width) = raw(format, &known);
    let paths = [folder.join("elements"), folder.join("planes")];
    std::fs::write(&paths[0], &raw).unwrap();
    std::fs::write(&paths[1], in_planes(&raw, width)).unwrap();
    let size = raw.len();
    let mut best: [Option<Coded>; 4] = [const { None }; 4];
    for _ in 0..TURNS {
        let own = [Coder::Rans, Coder::Zstd]
            .map(|coder| Some(own((format, coder), values, layout, size)));
        let theirs = [zstd(&paths[0]), zstd(&paths[1])];
        for (best, run) in best.iter_mut().zip(own.into_iter().chain(theirs)) {
            let Some(run) = run else { continue };
            let known = best.get_or_insert(Coded { ..run });
            known.encode = known.encode.max(run.encode);
            known.decode = known.decode.max(run.decode);
        }
    }
    print!(" {:>8.2}", megabytes(size));
    let missing = || "-".to_owned();
    for it in &best {
        let share = |it: &Coded| format!("{:.1} %", 100.0 * it.bytes / megabytes(size));
        print!(" {:>8}", it.as_ref().map_or_else(missing, share));
    }
    for it in &best {
        let speed = |it: &Coded| format!("{:.0} / {:.0}", it.encode, it.decode);
        print!(" {:>11}", it.as_ref().map_or_else(missing, speed));
    }
    println!();
    if best[2].is_none() {
        println!("  -3 is missing: zstd is not there, apt-get install zstd");
    }
}

/// What our coder makes of values, `size` bytes of their format.
fn own(written_as: (Format, Coder), values: &[f32], layout: &Layout, size: usize) -> Coded {
    let rate = |began: Instant| megabytes(size) / began.elapsed().as_secs_f64();
    let began = Instant::now();
    let file = encoded(written_as, values, layout);
    let encode = rate(began);
    let began = Instant::now();
    let found = decoded(&file, layout);
    let decode = rate(began);
    assert_eq!(found.len(), values.len());
    Coded { bytes: megabytes(file.len()), encode, decode }
}

fn encoded((format, coder): (Format, Coder), values: &[f32], layout: &Layout) -> Vec<u8> {
    let (layout, base) = (layout_digest(layout), Some("base".to_owned()));
    let (sparse, count) = (false, values.len());
    let header = Header { format, coder, sparse, values: count, layout, base };
    let mut file = Vec::new();
    let mut encoder = Encoder::dense(header, 1, &mut file);
    encoder.push(values, &mut file).unwrap();
    encoder.finish(&mut file).unwrap();
    file
}

fn decoded(file: &[u8], layout: &Layout) -> Vec<f32> {
    let mut found = Vec::with_capacity(layout.total_len());
    let mut decoder = Decoder::new(layout.total_len(), &layout_digest(layout), Some("base"));
    for piece in file.chunks(128 * 1024) {
        decoder.take(piece, |_, values| found.extend_from_slice(values)).unwrap();
    }
    decoder.finish().unwrap();
    found
}

/// Values that the format can say exactly as its elements, and the bytes of one; before the integers
/// of a block comes its scale.
fn raw(format: Format, values: &[f32]) -> (Vec<u8>, usize) {
    match format {
        Format::Float16 => (values.iter().flat_map(|it| half(*it).to_le_bytes()).collect(), 2),
        Format::Int8 { block } => {
            let mut bytes = Vec::with_capacity(values.len());
            for block in values.chunks(block) {
                let most = block.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                let scale = if most > 0.0 { most / 127.0 } else { 1.0 };
                #[expect(clippy::cast_possible_truncation, reason = "-127 to 127")]
                let level = |value: &f32| (value / scale).round() as i8;
                bytes.extend(scale.to_le_bytes());
                bytes.extend(block.iter().map(|value| level(value).to_le_bytes()[0]));
            }
            (bytes, 1)
        }
        Format::Float32 | Format::BFloat16 => {
            (values.iter().flat_map(|value| value.to_le_bytes()).collect(), 4)
        }
    }
}

/// The bits of an IEEE 754 binary16 that has this value exactly.
fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    // 2^-14 and more are normal: an exponent whose bias is 15 in place of 127.
    let magnitude = if value.abs() < 1.0 / 16_384.0 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 1024")]
        let steps = (value.abs() * 16_777_216.0) as u32;
        steps
    } else {
        ((bits & 0x7fff_ffff) >> 13) - (112 << 10)
    };
    u16::try_from(magnitude | ((bits >> 16) & 0x8000)).expect("16 bits")
}

/// All first bytes, all second bytes.
fn in_planes(bytes: &[u8], width: usize) -> Vec<u8> {
    (0..width).flat_map(|at| bytes.iter().skip(at).step_by(width).copied()).collect()
}

/// What the command says of a file in its memory; `None` where it is not installed.
fn zstd(path: &Path) -> Option<Coded> {
    let output = Command::new("zstd").args(["-q", "-b3", "-i1"]).arg(path).output().ok()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.trim_start().starts_with("-3"));
    let fields: Vec<&str> = line.map_or_else(Vec::new, |line| line.split_whitespace().collect());
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok());
    let (Some(bytes), Some(encode), Some(decode)) = (number(1), number(3), number(5)) else {
        panic!("zstd -b said something else: {text}");
    };
    Some(Coded { bytes: bytes / 1e6, encode, decode })
}

#[expect(clippy::cast_precision_loss, reason = "megabytes are shown")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}
