//! Formats written and read again, and what is refused.

use std::io::Write as _;

use proptest::prelude::*;

use super::cifar::Cifar;
use super::*;

fn examples(shape: [usize; 3], labels: &[u32]) -> Examples {
    let size: usize = shape.iter().product();
    let pixels = (0..labels.len() * size).map(|at| u8::try_from(at * 7 % 256).unwrap()).collect();
    Examples::pictures(shape, pixels, labels.to_vec())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn named(files: &[(&str, &[u8])]) -> Vec<(String, Vec<u8>)> {
    files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect()
}

fn decode(files: &[(String, Vec<u8>)]) -> Result<Dataset, DatasetError> {
    super::decode(&files.to_vec(), Limits::default())
}

fn encode_ten(examples: &Examples) -> Vec<u8> {
    cifar::encode(examples, Cifar::Ten).unwrap()
}

#[test]
fn cifar10_is_read_as_written() {
    let (first, second) = (examples([3, 32, 32], &[3, 9]), examples([3, 32, 32], &[0]));
    let (one, two) = (encode_ten(&first), gzip(&encode_ten(&second)));
    let meta = b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n";
    let files = named(&[
        ("data_batch_2.bin.gz", &two),
        ("data_batch_1.bin", &one),
        ("test_batch.bin", &one),
        ("batches.meta.txt", meta),
        ("readme.html", b"<html>"),
    ]);
    let set = decode(&files).unwrap();
    assert_eq!((set.format, set.classes, set.class_names.len()), ("cifar10", 10, 10));
    assert_eq!(set.train.labels, [3, 9, 0]);
    assert_eq!(set.train.picture(2), second.picture(0));
    assert_eq!(set.test, first);
    let alone = decode(&named(&[("train_part_7.bin", &one)])).unwrap();
    assert_eq!((alone.train, alone.test.len()), (first, 0));
}

#[test]
fn idx_is_read_as_written() {
    let (train, test) = (examples([1, 5, 4], &[1, 2, 3]), examples([1, 5, 4], &[0]));
    let (train_images, train_labels) = idx::encode(&train).unwrap();
    let (test_images, test_labels) = idx::encode(&test).unwrap();
    let files = named(&[
        ("train-images-idx3-ubyte.gz", &gzip(&train_images)),
        ("train-labels-idx1-ubyte", &train_labels),
        ("t10k-images.idx3-ubyte", &test_images),
        ("t10k-labels-idx1-ubyte.gz", &gzip(&test_labels)),
    ]);
    let set = decode(&files).unwrap();
    assert_eq!((set.format, set.classes), ("idx", 10));
    assert_eq!((set.train, set.test), (train, test.clone()));
    let alone = decode(&files[2..]).unwrap();
    assert_eq!((alone.train.len(), alone.train.shape), (0, [1, 5, 4]));
    assert_eq!(alone.test, test);
}

#[test]
fn labels_txt_sets_the_classes() {
    let (images, labels) = idx::encode(&examples([1, 2, 2], &[0, 2])).unwrap();
    let mut files = named(&[
        ("train-images-idx3-ubyte", &images),
        ("train-labels-idx1-ubyte", &labels),
        ("labels.txt", "\u{feff}nut\n bolt \nscrew\n".as_bytes()),
    ]);
    let set = decode(&files).unwrap();
    assert_eq!(
        (set.classes, set.class_names),
        (3, ["nut", "bolt", "screw"].map(str::to_owned).to_vec())
    );
    files[2].1 = b"nut\nbolt\n".to_vec();
    let file = "train-labels-idx1-ubyte".to_owned();
    assert_eq!(decode(&files), Err(DatasetError::Label { file, record: 1, label: 2, max: 1 }));
}

#[test]
fn damaged_files_are_named() {
    let record = encode_ten(&examples([3, 32, 32], &[3]));
    let (images, labels) = idx::encode(&examples([1, 2, 2], &[0, 2])).unwrap();
    let (other, _) = idx::encode(&examples([1, 2, 2], &[0])).unwrap();
    let zipped = gzip(&record);
    let pair = |images: &[u8], labels: &[u8]| {
        named(&[("train-images-idx3-ubyte", images), ("train-labels-idx1-ubyte", labels)])
    };
    let cases = [
        (named(&[("test.bin", &record[1..])]), "test.bin: 3072 bytes"),
        (named(&[("train.bin.gz", &zipped[..zipped.len() / 2])]), "train.bin.gz: damaged"),
        (pair(&images[..images.len() - 1], &labels), "train-images-idx3-ubyte: 7 bytes"),
        (pair(&images[..9], &labels), "expected a header of 16"),
        (pair(&labels, &labels), "train-images-idx3-ubyte: expected an IDX file"),
        (pair(&other, &labels), "2 labels for 1 images"),
        (pair(&images, &labels)[..1].to_vec(), "its labels file is missing"),
        (named(&[("notes.txt", b"")]), "no data set format has these files: notes.txt"),
    ];
    for (files, expected) in cases {
        let error = decode(&files).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
    assert_eq!(decode(&named(&[("train.bin", b"")])), Err(DatasetError::Empty));
    let huge = [&images[..4], &[255; 12], &images[16..]].concat();
    assert!(matches!(decode(&pair(&huge, &labels)), Err(DatasetError::File { .. })));
    let both = [pair(&images, &labels), named(&[("train.bin", &record)])].concat();
    assert!(matches!(decode(&both), Err(DatasetError::Format { .. })));
}

#[test]
fn what_a_format_cannot_hold_is_not_written() {
    assert_eq!(cifar::encode(&examples([1, 2, 2], &[0]), Cifar::Ten), None);
    assert_eq!(cifar::encode(&examples([3, 32, 32], &[100]), Cifar::Hundred), None);
    assert_eq!(idx::encode(&examples([3, 2, 2], &[0])), None);
    assert_eq!(idx::encode(&examples([1, 2, 2], &[256])), None);
}

#[test]
fn batches_are_normalised_and_reuse_memory() {
    let set = Examples::pictures([1, 1, 2], vec![0, 255, 51, 102], vec![7, 8]);
    let mut batches = Batches::new(&set, &Normalization::uniform(0.5, 0.25));
    batches.get(&[0, 1, 0, 1], 0);
    let (x, labels) = batches.get(&[1, 0, 1], 0);
    assert_eq!(labels, [8, 7, 8]);
    let expected = [-1.2, -0.4, -2.0, 2.0, -1.2, -0.4];
    assert!(x.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{x:?}");
    assert_eq!(set.select(&[1]).picture(0), Some(&[51, 102][..]));
    assert_eq!(set.class_counts(9), [0, 0, 0, 0, 0, 0, 0, 1, 1]);
}

#[test]
fn orders_are_permutations_by_seed_and_epoch() {
    let order = Order::new(100, 5, 1);
    let mut sorted = order.indices().to_vec();
    sorted.sort_unstable();
    assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    assert_eq!(order, Order::new(100, 5, 1));
    assert_ne!(order, Order::new(100, 5, 2));
    assert_ne!(order, Order::new(100, 6, 1));
    assert_eq!(order.batches(30).map(<[usize]>::len).collect::<Vec<_>>(), [30, 30, 30, 10]);
    // Orders are part of what makes a training repeatable: they may not change by themselves.
    assert_eq!(Order::new(8, 1, 0).indices(), [5, 6, 2, 4, 1, 7, 0, 3]);
}

proptest! {
    /// What is read from a disk may be anything.
    #[test]
    fn foreign_bytes_never_panic(
        name in prop_oneof![
            Just("train.csv"), Just("train.txt"), Just("a/1.png"), Just("train.bin"),
            Just("train-images-idx3-ubyte"), Just("train.csv.gz"),
        ],
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        text in "[0-9a,.\"\n -]{0,80}",
        options in "(size|label|classes|context|mean|std|alphabet) = [\\[\\]0-9,.\" -]{0,9}",
    ) {
        for content in [&bytes, text.as_bytes()] {
            let mut files = named(&[(name, content)]);
            if let Ok(set) = decode(&files) {
                set.train.statistics();
                let all: Vec<usize> = (0..set.train.len()).collect();
                let mut batches = Batches::new(&set.train, &set.normalization);
                prop_assert_eq!(batches.get(&all, 0).0.len(), all.len() * set.train.size());
            }
            files.push(("dataset.toml".to_owned(), options.as_bytes().to_vec()));
            let _ = decode(&files);
        }
    }
}

mod cifar100;
mod folders;
mod normalizations;
mod tables;
mod texts;
