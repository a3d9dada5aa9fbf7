//! Shares of a data set: who gets which examples, and their files.

use std::path::Path;

use models::dataset::cifar::{self, Cifar};
use models::dataset::partition::Partition;
use models::dataset::{Dataset, Examples, Normalization, Order, idx, table};

use crate::cli::failure::CliError;

/// How a data set is split.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) devices: usize,
    pub(super) partition: Partition,
    pub(super) test_fraction: f64,
    pub(super) held_out: usize,
    pub(super) seed: u64,
}

/// What one device gets.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Share {
    pub(super) train: Examples,
    pub(super) test: Examples,
}

/// A data set, split.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Split {
    pub(super) shares: Vec<Share>,
    pub(super) held_out: Examples,
}

/// Splits. Held-out examples come from the test part if there is one, and no device gets them.
///
/// With a test part, the rest of it is dealt out evenly; without one, each device tests with a
/// share of its own examples.
///
/// # Errors
/// When there are too few examples for that.
pub(super) fn split(data: &Dataset, plan: &Plan) -> Result<Split, CliError> {
    if !(0.0..1.0).contains(&plan.test_fraction) {
        return Err(CliError::usage(
            format!("test fraction {} is not within 0 and 1", plan.test_fraction),
            "such as --test-fraction 0.2",
        ));
    }
    let source = if data.test.is_empty() { &data.train } else { &data.test };
    if plan.held_out >= source.len() {
        return Err(CliError::usage(
            format!("{} examples cannot hold out {}", source.len(), plan.held_out),
            "lower --held-out",
        ));
    }
    let order = Order::new(source.len(), plan.seed, 0);
    let (held, mut rest) = {
        let (held, rest) = order.indices().split_at(plan.held_out);
        (source.select(held), rest.to_vec())
    };
    rest.sort_unstable();
    let rest = source.select(&rest);
    let shares = if data.test.is_empty() {
        let lists = partition(&plan.partition, &rest, plan)?;
        lists.iter().enumerate().map(|(index, list)| own_test(&rest, list, index, plan)).collect()
    } else {
        let train = partition(&plan.partition, &data.train, plan)?;
        let test = partition(&Partition::Iid, &rest, plan)?;
        let pairs = train.iter().zip(&test);
        pairs
            .map(|(train, test)| Share { train: data.train.select(train), test: rest.select(test) })
            .collect()
    };
    Ok(Split { shares, held_out: held })
}

fn partition(
    partition: &Partition,
    examples: &Examples,
    plan: &Plan,
) -> Result<Vec<Vec<usize>>, CliError> {
    partition
        .split(&examples.labels, plan.devices, plan.seed)
        .map_err(|error| CliError::usage(error.to_string(), "see --partition and --devices"))
}

/// A device's list in a train and a test part; at least one example is trained on.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a small count is a small count"
)]
fn own_test(examples: &Examples, list: &[usize], device: usize, plan: &Plan) -> Share {
    let count = (list.len() as f64 * plan.test_fraction).round() as usize;
    let count = count.min(list.len().saturating_sub(1));
    let order = Order::new(list.len(), plan.seed, device as u64 + 1);
    let mut mixed: Vec<usize> = order.indices().iter().map(|index| list[*index]).collect();
    let train = mixed.split_off(count);
    Share { train: examples.select(&train), test: examples.select(&mixed) }
}

/// Makes the folder; one with an earlier split is refused, or emptied of it.
///
/// # Errors
/// When it holds an earlier split and `force` is not set.
pub(super) fn prepare(out: &Path, force: bool) -> Result<(), CliError> {
    let wrong = |error: std::io::Error| CliError::file(out, &error);
    std::fs::create_dir_all(out).map_err(wrong)?;
    for entry in std::fs::read_dir(out).map_err(wrong)? {
        let entry = entry.map_err(wrong)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = name.strip_prefix("device-").and_then(|rest| rest.parse::<u32>().ok());
        if number.is_none() && name != "held-out" {
            continue;
        }
        if !force {
            return Err(CliError::usage(
                format!("{} holds an earlier split ({name})", out.display()),
                "replace it with --force, or choose another folder",
            ));
        }
        std::fs::remove_dir_all(entry.path()).map_err(wrong)?;
    }
    Ok(())
}

/// Writes a share in the format of its data set, so that a device reads what was split: pictures
/// of folders at the size they were brought to.
///
/// # Errors
/// When a file cannot be written, or the format cannot hold the examples.
pub(super) fn write(folder: &Path, data: &Dataset, share: &Share) -> Result<(), CliError> {
    std::fs::create_dir_all(folder).map_err(|error| CliError::file(folder, &error))?;
    for (name, bytes) in files(data, share)? {
        let path = folder.join(name);
        std::fs::write(&path, bytes).map_err(|error| CliError::file(&path, &error))?;
    }
    if data.format == "image_folder" {
        for (part, examples) in [("train", &share.train), ("test", &share.test)] {
            write_classes(&folder.join(part), data, examples)?;
        }
    }
    Ok(())
}

/// The files of a share, pictures of folders left out.
fn files(data: &Dataset, share: &Share) -> Result<Vec<(&'static str, Vec<u8>)>, CliError> {
    let unfit = || {
        let found = data.train.shape;
        CliError::usage(format!("examples of shape {found:?} do not fit {}", data.format), "")
    };
    let mut files: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let mut names = "labels.txt";
    match data.format {
        "cifar10" | "cifar100" => {
            let hundred = data.format == "cifar100";
            let (cifar, train, test) = if hundred {
                (Cifar::Hundred, "train.bin", "test.bin")
            } else {
                (Cifar::Ten, "data_batch_1.bin", "test_batch.bin")
            };
            files.push((train, cifar::encode(&share.train, cifar).ok_or_else(unfit)?));
            files.push((test, cifar::encode(&share.test, cifar).ok_or_else(unfit)?));
            if hundred {
                names = "fine_label_names.txt";
            }
        }
        "csv" => {
            for (name, examples) in [("train.csv", &share.train), ("test.csv", &share.test)] {
                let text = table::encode(examples, &data.columns, &data.class_names);
                files.push((name, text.ok_or_else(unfit)?));
            }
        }
        "image_folder" => {}
        "idx" => {
            let (images, labels) = idx::encode(&share.train).ok_or_else(unfit)?;
            files.push(("train-images-idx3-ubyte", images));
            files.push(("train-labels-idx1-ubyte", labels));
            let (images, labels) = idx::encode(&share.test).ok_or_else(unfit)?;
            files.push(("t10k-images-idx3-ubyte", images));
            files.push(("t10k-labels-idx1-ubyte", labels));
        }
        other => {
            let hint = "give each device a text of its own (train.txt); all have the same classes";
            return Err(CliError::usage(format!("data of format {other} is not split"), hint));
        }
    }
    if !data.class_names.is_empty() {
        files.push((names, (data.class_names.join("\n") + "\n").into_bytes()));
    }
    files.push(("dataset.toml", options(data).into_bytes()));
    Ok(files)
}

/// What a share's files do not say themselves, as `dataset.toml`.
fn options(data: &Dataset) -> String {
    let list = |values: &[f32]| {
        let texts: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
        texts.join(", ")
    };
    let Normalization { mean, std } = &data.normalization;
    let mut lines = vec![
        format!("mean = [{}]", list(mean)),
        format!("std = [{}]", list(std)),
        // What has no test part here is to have none.
        "test_fraction = 0".to_owned(),
    ];
    if data.class_names.is_empty() {
        lines.push(format!("classes = {}", data.classes));
    }
    let label = table::label_name(&data.columns);
    if data.format == "csv" && label != "label" {
        lines.push(format!("label = {label:?}"));
    }
    if data.format == "image_folder" {
        let [channels, h, w] = data.train.shape;
        lines.push(format!("channels = {channels}\nsize = [{h}, {w}]"));
    }
    lines.join("\n") + "\n"
}

/// Writes pictures as `<class>/00003.png`.
fn write_classes(folder: &Path, data: &Dataset, examples: &Examples) -> Result<(), CliError> {
    for (index, label) in examples.labels.iter().enumerate() {
        let class = data.class_names.get(*label as usize);
        let folder = folder.join(class.map_or_else(|| label.to_string(), Clone::clone));
        std::fs::create_dir_all(&folder).map_err(|error| CliError::file(&folder, &error))?;
        write_picture(&folder.join(format!("{index:05}.png")), examples, index)?;
    }
    Ok(())
}

/// Writes what no device gets: pictures as `0003-7.png`, a number and the class, and a table as
/// `held-out.csv`.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn write_held_out(
    folder: &Path,
    data: &Dataset,
    examples: &Examples,
) -> Result<(), CliError> {
    if examples.is_empty() {
        return Ok(());
    }
    std::fs::create_dir_all(folder).map_err(|error| CliError::file(folder, &error))?;
    if let Some(text) = table::encode(examples, &data.columns, &data.class_names) {
        let path = folder.join("held-out.csv");
        return std::fs::write(&path, text).map_err(|error| CliError::file(&path, &error));
    }
    for (index, label) in examples.labels.iter().enumerate() {
        write_picture(&folder.join(format!("{:04}-{label}.png", index + 1)), examples, index)?;
    }
    Ok(())
}

fn write_picture(path: &Path, examples: &Examples, index: usize) -> Result<(), CliError> {
    let [channels, height, width] = examples.shape;
    let plane = height * width;
    let side = |extent: usize| u32::try_from(extent).unwrap_or(u32::MAX);
    let Some(pixels) = examples.picture(index) else { return Ok(()) };
    // Pictures hold a pixel's channels together, data sets hold each channel as a plane.
    let mixed: Vec<u8> = (0..plane)
        .flat_map(|at| (0..channels).map(move |channel| pixels[channel * plane + at]))
        .collect();
    let color = match channels {
        1 => image::ExtendedColorType::L8,
        _ => image::ExtendedColorType::Rgb8,
    };
    image::save_buffer(path, &mixed, side(width), side(height), color)
        .map_err(|error| CliError::usage(format!("{}: {error}", path.display()), ""))
}
