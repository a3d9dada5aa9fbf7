//! CIFAR-100, and what tells it from CIFAR-10.

use super::*;

fn encode_hundred(labels: &[u32]) -> (Examples, Vec<u8>) {
    let examples = examples([3, 32, 32], labels);
    let bytes = cifar::encode(&examples, Cifar::Hundred).unwrap();
    (examples, bytes)
}

#[test]
fn cifar100_is_read_as_written() {
    let (train, bytes) = encode_hundred(&[99, 0, 42]);
    let (test, held) = encode_hundred(&[7]);
    assert_eq!(bytes.len(), 3 * 3074);
    // Apples are fruit: coarse 4, fine 0.
    assert_eq!(bytes[3074..3076], [4, 0]);
    let names = (0..100).map(|class| format!("class {class}")).collect::<Vec<_>>().join("\n");
    let files = named(&[
        ("train.bin.gz", &gzip(&bytes)),
        ("test.bin", &held),
        ("fine_label_names.txt", names.as_bytes()),
        ("coarse_label_names.txt", b"fish"),
    ]);
    let set = decode(&files).unwrap();
    assert_eq!((set.format, set.classes, set.class_names.len()), ("cifar100", 100, 100));
    assert_eq!((set.train, set.test), (train.clone(), test));
    // Without names beside them the size of the records tells.
    let alone = decode(&named(&[("train.bin", &bytes)])).unwrap();
    assert_eq!((alone.format, alone.classes, alone.train), ("cifar100", 100, train));
}

#[test]
fn each_coarse_class_has_five_fine_ones() {
    let labels: Vec<u32> = (0..100).collect();
    let (_, bytes) = encode_hundred(&labels);
    let mut counts = [0; 20];
    for record in bytes.chunks_exact(3074) {
        counts[usize::from(record[0])] += 1;
    }
    assert_eq!(counts, [5; 20]);
}

#[test]
fn what_could_be_either_is_said() {
    let both = vec![0; 3073 * 3074];
    let error = decode(&named(&[("train.bin", &both)])).unwrap_err().to_string();
    assert!(error.contains("fine_label_names.txt") && error.contains("3074"), "{error}");
    let named_so = |name| decode(&named(&[("train.bin", &both), (name, b"a\nb\n")])).unwrap();
    assert_eq!(named_so("batches.meta.txt").train.len(), 3074);
    assert_eq!(named_so("fine_label_names.txt").train.len(), 3073);
    let (_, mut bytes) = encode_hundred(&[1, 2]);
    bytes[3074] = 20;
    let error = decode(&named(&[("train.bin", &bytes)])).unwrap_err().to_string();
    assert!(error.contains("record 1 has coarse label 20"), "{error}");
}

/// 10,000 real records are CIFAR-10 by their size.
#[test]
#[expect(clippy::print_stdout, reason = "says what is not tested")]
fn real_cifar10_is_told_by_its_size() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/cifar10");
    let Ok(bytes) = std::fs::read(format!("{folder}/test_jpeg_2000.bin.gz")) else {
        println!("absent, not tested: {folder}");
        return;
    };
    let set = decode(&named(&[("test.bin.gz", &bytes)])).unwrap();
    assert_eq!((set.format, set.test.len()), ("cifar10", 2000));
    assert_eq!(set.test.class_counts(10), [200; 10]);
    assert_eq!(set.test.bytes(), 2000 * (3072 + 4), "a byte for a pixel");
}
