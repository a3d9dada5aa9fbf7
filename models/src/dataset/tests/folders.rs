//! Folders of pictures.

use std::io::Cursor;

use image::{DynamicImage, ImageFormat, RgbImage};

use super::*;

fn picture(width: u32, height: u32, color: [u8; 3], format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    let picture = RgbImage::from_pixel(width, height, image::Rgb(color));
    DynamicImage::ImageRgb8(picture).write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn png(color: [u8; 3]) -> Vec<u8> {
    picture(2, 2, color, ImageFormat::Png)
}

#[test]
fn folders_name_the_classes() {
    let files = named(&[
        ("train/nut/2.PNG", &png([1, 2, 3])),
        ("train/bolt/deep/1.png", &png([4, 5, 6])),
        ("test/nut/1.png", &png([7, 8, 9])),
        ("val/nut/1.png", b"not read"),
        ("train/bolt/notes.txt", b"left alone"),
    ]);
    let set = decode(&files).unwrap();
    assert_eq!((set.format, set.classes), ("image_folder", 2));
    assert_eq!(set.class_names, ["bolt", "nut"]);
    assert_eq!((&set.train.labels[..], &set.test.labels[..]), (&[0, 1][..], &[1][..]));
    assert_eq!((set.example_shape(), set.is_pictures()), (vec![3, 2, 2], true));
    assert_eq!(set.train.picture(1), Some(&[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3][..]));
    // A device that has not all of the classes counts them as the others do.
    let some = named(&[
        ("labels.txt", b"axle\nnut\nbolt\n"),
        ("train/nut/1.png", &png([0, 0, 0])),
        ("val/bolt/1.png", &png([0, 0, 0])),
    ]);
    let set = decode(&some).unwrap();
    assert_eq!((set.classes, set.train.labels, set.test.labels), (3, vec![1], vec![2]));
}

#[test]
fn without_parts_a_fifth_is_for_testing() {
    let names: Vec<String> = (0..10).map(|at| format!("{}/{at}.png", ["a", "b"][at % 2])).collect();
    let pictures: Vec<Vec<u8>> = (0..10).map(|at| png([at, 0, 0])).collect();
    let mut files: Vec<(String, Vec<u8>)> = names.into_iter().zip(pictures).collect();
    let set = decode(&files).unwrap();
    assert_eq!((set.train.len(), set.test.len()), (8, 2));
    files.reverse();
    assert_eq!(decode(&files).unwrap(), set, "whatever order a disk lists them in");
    files.push(("dataset.toml".to_owned(), b"test_fraction = 0.5\nseed = 9".to_vec()));
    assert_eq!(decode(&files).unwrap().test.len(), 5);
}

#[test]
fn sizes_are_stated_or_all_the_same() {
    let large = picture(8, 4, [200, 100, 50], ImageFormat::Jpeg);
    let mut files = named(&[("a/1.jpg", &large), ("b/1.png", &png([9, 9, 9]))]);
    let error = decode(&files).unwrap_err().to_string();
    assert!(error.starts_with("b/1.png: 2 x 2 pixels, a/1.jpg has 8 x 4"), "{error}");
    assert!(error.contains("size = 32"), "{error}");
    let mut with = |toml: &str| {
        files.retain(|(name, _)| name != "dataset.toml");
        files.push(("dataset.toml".to_owned(), toml.as_bytes().to_vec()));
        decode(&files)
    };
    let set = with("size = [3, 5]\ntest_fraction = 0.0").unwrap();
    assert_eq!(set.train.shape, [3, 3, 5]);
    let color: Vec<u8> = set.train.picture(0).unwrap().iter().step_by(15).copied().collect();
    assert!(
        color.iter().zip([200, 100, 50]).all(|(a, b): (&u8, u8)| a.abs_diff(b) < 4),
        "{color:?}"
    );
    let grey = with("size = 4\nchannels = 1\ntest_fraction = 0.0").unwrap();
    assert_eq!((grey.train.shape, grey.train.picture(1)), ([1, 4, 4], Some(&[9; 16][..])));
    for (toml, expected) in [
        ("size = 0", "size is 0 x 0"),
        ("size = [1, 2, 3]", "dataset.toml: "),
        ("channels = 2", "channels is 2: expected 1 or 3"),
        ("test_fraction = 1.0", "test_fraction is 1"),
        ("sise = 3", "unknown field"),
        ("size = 4\nmean = [0.1, 0.2]", "mean has 2 values, expected 1 or 3"),
        ("size = 4\nstd = [0.0]", "std holds 0, expected finite numbers above 0"),
    ] {
        let error = with(toml).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
    let set = with("size = 4\nmean = [0.1, 0.2, 0.3]\nstd = [0.5]").unwrap();
    assert_eq!(set.normalization, Normalization { mean: vec![0.1, 0.2, 0.3], std: vec![0.5] });
}

#[test]
fn broken_pictures_and_odd_places_are_named() {
    let good = png([1, 1, 1]);
    let cut = &good[..good.len() / 2];
    for (files, expected) in [
        (named(&[("a/1.png", &good), ("a/2.png", cut)]), "a/2.png: picture cannot be decoded"),
        (named(&[("a/1.jpg", b"GIF89a")]), "a/1.jpg: picture cannot be decoded"),
        (named(&[("train/1.png", &good), ("train/a/1.png", &good)]), "train/1.png: lies in train/"),
        (named(&[("train/a/1.png", &good), ("b/1.png", &good)]), "b/1.png: lies beside train/"),
        (named(&[("b/1.png", &good), ("labels.txt", b"a")]), "class \"b\" is not in labels.txt"),
    ] {
        let error = decode(&files).unwrap_err().to_string();
        assert!(error.contains(expected), "{error} does not say {expected:?}");
    }
    let toml: &[u8] = b"size = [40, 40]";
    let files = named(&[("a/1.png", &good), ("b/2.png", &good), ("dataset.toml", toml)]);
    let error = super::super::decode(&files, Limits { bytes: 9599 }).unwrap_err();
    assert_eq!(error, DatasetError::TooLarge { bytes: 9600, max: 9599 });
    // Pictures beside data files are no data.
    let record = encode_ten(&examples([3, 32, 32], &[3]));
    let set = decode(&named(&[("train.bin", &record), ("held-out/1.png", &good)])).unwrap();
    assert_eq!(set.format, "cifar10");
}

/// 50 real pictures, five of each class, the same pixels that a model is asked with.
#[test]
#[expect(clippy::print_stdout, reason = "says what is not tested")]
fn real_pictures_are_read() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/cifar10/jpg");
    let Ok(classes) = std::fs::read_dir(root) else {
        println!("absent, not tested: {root}");
        return;
    };
    let mut files = Vec::new();
    for class in classes {
        let class = class.unwrap().path();
        for picture in std::fs::read_dir(&class).unwrap() {
            let path = picture.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            files.push((name, std::fs::read(&path).unwrap()));
        }
    }
    let set = decode(&files).unwrap();
    assert_eq!((set.classes, set.train.len() + set.test.len()), (10, files.len()));
    assert_eq!((set.train.shape, &set.class_names[0][..]), ([3, 32, 32], "airplane"));
    assert!(set.test.class_counts(10).iter().sum::<usize>() == files.len() / 5);
}
