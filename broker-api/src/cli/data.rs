//! `dunlin data`: data sets for devices, from what is at hand.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use models::dataset::partition::Partition;
use models::dataset::{self, Dataset};
use serde_json::json;

use super::failure::CliError;
use super::output::Output;
use super::table::Table;
use shares::{Plan, Share};

mod describe;
mod digits;
mod folder;
mod shares;

/// `dunlin data`
#[derive(Debug, Args)]
pub(super) struct DataArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Write the 1,797 handwritten digits (8 x 8 pixels, UCI) as a share for each device.
    Digits(SplitArgs),
    /// Show what a data set holds, as a device would read it: format, shape, examples of each
    /// class.
    Describe {
        /// The folder with the data set's files, or a table (.csv).
        #[arg(value_name = "PATH")]
        from: PathBuf,
    },
    /// Split a data set (CIFAR-10 or CIFAR-100 binary, IDX, CSV, or a folder of pictures for
    /// each class) into a share for each device.
    Split {
        /// The folder with the data set's files, or a table (.csv).
        #[arg(long, value_name = "DIR")]
        from: PathBuf,
        #[command(flatten)]
        split: SplitArgs,
    },
}

#[derive(Debug, Args)]
struct SplitArgs {
    /// Where to: DIR/device-1, DIR/device-2, ... and DIR/held-out.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many devices.
    #[arg(long, default_value_t = 3, value_name = "N")]
    devices: usize,
    /// How examples are spread: iid, shards:2, dirichlet:0.5, or @FILE with lists of indices.
    #[arg(long, default_value = "dirichlet:0.5", value_parser = partition)]
    partition: Partition,
    /// Share of each device's examples that it tests with, 0 to below 1.
    #[arg(long, default_value_t = 0.2, value_name = "SHARE")]
    test_fraction: f64,
    /// Examples that no device gets, to ask the model with.
    #[arg(long, default_value_t = 20, value_name = "N")]
    held_out: usize,
    /// The same seed gives the same shares.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replace the shares of an earlier split.
    #[arg(long)]
    force: bool,
}

fn partition(text: &str) -> Result<Partition, String> {
    match text.strip_prefix('@') {
        None => text.parse().map_err(|error: dataset::partition::PartitionError| error.to_string()),
        Some(path) => {
            let bytes = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
            Partition::from_json(&bytes).map_err(|error| format!("{path}: {error}"))
        }
    }
}

/// Splits and writes.
pub(super) fn run(args: &DataArgs, output: &mut Output) -> Result<(), CliError> {
    match &args.action {
        Action::Digits(split) => write(&digits::load(), "digits", split, output),
        Action::Describe { from } => describe::run(&folder::read(from)?, output),
        Action::Split { from, split } => {
            let name =
                from.file_stem().map_or_else(|| "data".into(), |name| name.to_string_lossy());
            write(&folder::read(from)?, &name, split, output)
        }
    }
}

fn write(
    data: &Dataset,
    name: &str,
    args: &SplitArgs,
    output: &mut Output,
) -> Result<(), CliError> {
    let plan = Plan {
        devices: args.devices,
        partition: args.partition.clone(),
        test_fraction: args.test_fraction,
        held_out: args.held_out,
        seed: args.seed,
    };
    let split = shares::split(data, &plan)?;
    shares::prepare(&args.out, args.force)?;
    for (index, share) in split.shares.iter().enumerate() {
        shares::write(&args.out.join(format!("device-{}", index + 1)), data, share)?;
    }
    shares::write_held_out(&args.out.join("held-out"), data, &split.held_out)?;
    if output.json {
        let devices: Vec<_> = split
            .shares
            .iter()
            .enumerate()
            .map(|(index, share)| {
                json!({
                    "folder": args.out.join(format!("device-{}", index + 1)).display().to_string(),
                    "train": share.train.len(),
                    "test": share.test.len(),
                    "train_class_counts": share.train.class_counts(data.classes),
                })
            })
            .collect();
        return Ok(
            output.document(&json!({ "devices": devices, "held_out": split.held_out.len() }))?
        );
    }
    output.line(table(data, &split.shares, &args.out))?;
    let out = args.out.display();
    output.line(format_args!("\n{} held-out examples in {out}/held-out", split.held_out.len()))?;
    Ok(output.line(format_args!(
        "next: dunlin-agent --nats nats://HOST:4222 --name device-1 --data {name}={out}/device-1"
    ))?)
}

fn table(data: &Dataset, shares: &[Share], out: &Path) -> Table {
    let mut headings = vec!["FOLDER".to_owned(), ">TRAIN".to_owned(), ">TEST".to_owned()];
    let class = |index: usize| data.class_names.get(index).cloned();
    headings.extend(
        (0..data.classes)
            .map(|index| format!(">{}", class(index).unwrap_or_else(|| index.to_string()))),
    );
    let headings: Vec<&str> = headings.iter().map(String::as_str).collect();
    let mut rows = Table::new(&headings);
    for (index, share) in shares.iter().enumerate() {
        let folder = out.join(format!("device-{}", index + 1));
        let mut cells = vec![
            folder.display().to_string(),
            share.train.len().to_string(),
            share.test.len().to_string(),
        ];
        cells.extend(share.train.class_counts(data.classes).iter().map(usize::to_string));
        rows.row(cells);
    }
    rows
}

#[cfg(test)]
mod tests;
