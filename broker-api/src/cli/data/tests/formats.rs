//! Shares of every format are read back as what was split.

use models::dataset::cifar::{self, Cifar};
use models::dataset::{Normalization, Values};

use super::*;

/// Splits what is in a folder over two devices; the shares as devices read them.
fn shares_of(from: &std::path::Path, seed: u64) -> (Dataset, [Dataset; 2]) {
    let out = tempfile::tempdir().unwrap();
    let data = folder::read(from).unwrap();
    let args = SplitArgs {
        out: out.path().to_owned(),
        devices: 2,
        partition: Partition::Iid,
        test_fraction: 0.25,
        held_out: 2,
        seed,
        force: false,
    };
    let mut output = Output::buffer(std::io::sink(), false);
    write(&data, "data", &args, &mut output).unwrap();
    let read = |number| folder::read(&out.path().join(format!("device-{number}"))).unwrap();
    let shares = [read(1), read(2)];
    assert!(out.path().join("held-out").read_dir().unwrap().count() > 0);
    (data, shares)
}

/// Every example with its label, in an order of its own.
fn sorted(sets: &[&Dataset]) -> Vec<(Vec<u32>, u32)> {
    let parts = sets.iter().flat_map(|set| [&set.train, &set.test]);
    let mut all: Vec<(Vec<u32>, u32)> = parts
        .flat_map(|part| (0..part.len()).map(|index| part.select(&[index])))
        .map(|one| {
            let values = match one.values {
                Values::Pixels(bytes) | Values::Symbols(bytes) => {
                    bytes.into_iter().map(u32::from).collect()
                }
                Values::Numbers(numbers) => numbers.into_iter().map(f32::to_bits).collect(),
            };
            (values, one.labels[0])
        })
        .collect();
    all.sort();
    all
}

/// What devices read is what was there, less two examples that are held out.
fn check(from: &std::path::Path) -> (Dataset, [Dataset; 2]) {
    let (data, shares) = shares_of(from, 1);
    let whole = sorted(&[&data]);
    let given = sorted(&[&shares[0], &shares[1]]);
    assert_eq!(given.len(), whole.len() - 2);
    assert!(given.iter().all(|example| whole.contains(example)));
    for share in &shares {
        assert_eq!((share.format, share.classes), (data.format, data.classes));
        assert_eq!(share.class_names, data.class_names);
        assert_eq!(share.example_shape(), data.example_shape());
        assert_eq!(share.normalization, data.normalization);
    }
    // A seed names a split.
    assert_eq!(shares_of(from, 1).1, shares);
    assert_ne!(shares_of(from, 2).1, shares);
    (data, shares)
}

#[test]
fn a_folder_of_pictures() {
    let folder = tempfile::tempdir().unwrap();
    for (class, count) in [("nut", 12), ("bolt", 9)] {
        std::fs::create_dir(folder.path().join(class)).unwrap();
        for at in 0..count {
            let path = folder.path().join(format!("{class}/{at}.png"));
            let picture = image::RgbImage::from_fn(3, 2, |x, y| {
                image::Rgb([at, u8::try_from(x + y).unwrap(), if class == "nut" { 200 } else { 0 }])
            });
            picture.save(path).unwrap();
        }
    }
    let toml = "mean = [0.1, 0.2, 0.3]\nstd = [0.5]\n";
    std::fs::write(folder.path().join("dataset.toml"), toml).unwrap();
    let (data, shares) = check(folder.path());
    assert_eq!(
        (data.format, &data.class_names[..]),
        ("image_folder", &["bolt", "nut"].map(str::to_owned)[..])
    );
    assert!(shares.iter().all(|share| !share.test.is_empty()));
    let normalization = Normalization { mean: vec![0.1, 0.2, 0.3], std: vec![0.5] };
    assert_eq!(shares[0].normalization, normalization);
}

#[test]
fn a_table() {
    let folder = tempfile::tempdir().unwrap();
    let rows: Vec<String> = (0_u8..30)
        .map(|row| {
            format!(
                "{},{}e-3,{}",
                f32::from(row) / 7.0,
                row,
                ["setosa", "virginica"][usize::from(row % 2)]
            )
        })
        .collect();
    let path = folder.path().join("iris.csv");
    std::fs::write(&path, "width,length,species\n".to_owned() + &rows.join("\n")).unwrap();
    let (data, _) = check(&path);
    assert_eq!((data.format, data.columns), ("csv", vec!["width".to_owned(), "length".to_owned()]));
}

#[test]
fn cifar100() {
    let folder = tempfile::tempdir().unwrap();
    let labels: Vec<u32> = (0..20).map(|at| at * 5).collect();
    let pixels = (0..20 * 3072).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let examples = Examples::pictures([3, 32, 32], pixels, labels);
    let bytes = cifar::encode(&examples, Cifar::Hundred).unwrap();
    std::fs::write(folder.path().join("train.bin"), bytes).unwrap();
    let names = (0..100).map(|class| format!("class {class}")).collect::<Vec<_>>();
    std::fs::write(folder.path().join("fine_label_names.txt"), names.join("\n")).unwrap();
    let (data, _) = check(folder.path());
    assert_eq!((data.format, data.class_names.len()), ("cifar100", 100));
}

#[test]
fn a_text_is_not_split() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("train.txt"), "to be or not to be ".repeat(20)).unwrap();
    let data = folder::read(folder.path()).unwrap();
    let split = shares::split(&data, &Plan { partition: Partition::Iid, ..plan() }).unwrap();
    let error = shares::write(&folder.path().join("share"), &data, &split.shares[0]).unwrap_err();
    assert!(error.detail.contains("text is not split"), "{error:?}");
}

#[test]
fn classes_are_shown_as_a_histogram() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.csv");
    std::fs::write(&path, "x,label\n1,a\n2,a\n3,a\n4,b\n5,a\n").unwrap();
    let shown = |json| {
        let written = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut output = Output::buffer(Shared(written.clone()), json);
        describe::run(&folder::read(&path).unwrap(), &mut output).unwrap();
        drop(output);
        let bytes = written.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    };
    let text = shown(false);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "csv: examples of shape [1], 2 classes, 4 to train on, 1 to test");
    assert!(lines[1].starts_with("mean [") && lines[2].starts_with("CLASS"), "{text}");
    assert!(lines[3].starts_with("a ") && lines[3].ends_with(&"#".repeat(40)), "{text}");
    let json: serde_json::Value = serde_json::from_str(&shown(true)).unwrap();
    let counts = |part: &str| {
        let counts = json[part].as_array().unwrap().iter();
        counts.map(|count| count.as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!((counts("train_class_counts"), counts("test_class_counts")), (4, 1));
    assert_eq!(json["channel_mean"].as_array().unwrap().len(), 1);
}

/// A writer that others can look into.
struct Shared(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
