//! `dunlin models zoo`: the built-in families and what they cost; asks no broker.

use clap::Args;
use models::zoo::{self, Cost};
use serde::Serialize;

use crate::cli::failure::CliError;
use crate::cli::output::Output;
use crate::cli::table::{self, Table};

/// `dunlin models zoo`
#[derive(Debug, Args)]
pub(super) struct ZooArgs {
    /// Channels, height and width of an example.
    #[arg(long, value_name = "C,H,W", value_parser = shape, default_value = "3,32,32")]
    shape: Shape,
    /// Classes.
    #[arg(long, value_name = "N", default_value_t = 10)]
    classes: usize,
}

type Shape = [usize; 3];

/// Most values of an example and most classes: what a device can hold.
const EXTENT_MAX: usize = 1 << 24;

/// A family as a document.
#[derive(Debug, Serialize)]
struct Family {
    name: &'static str,
    parameters: u64,
    /// Of a forward pass of one example: two for each multiplication with an addition.
    flops: u64,
    bytes: u64,
}

/// Lists the families.
pub(super) fn run(args: &ZooArgs, output: &mut Output) -> Result<(), CliError> {
    if args.classes == 0 || args.classes > EXTENT_MAX {
        let message = format!("{} classes", args.classes);
        return Err(CliError::usage(message, format!("give 1 to {EXTENT_MAX}")));
    }
    let families = families(args.shape, args.classes);
    if output.json {
        return Ok(output.document(&families)?);
    }
    Ok(output.line(list(&families))?)
}

fn families(shape: Shape, classes: usize) -> Vec<Family> {
    let family = |(name, cost): (&'static str, Cost)| {
        let Cost { parameters, multiply_adds, bytes } = cost;
        Family { name, parameters, flops: 2 * multiply_adds, bytes }
    };
    zoo::list(shape, classes).into_iter().map(family).collect()
}

fn list(families: &[Family]) -> Table {
    let mut list = Table::new(&["FAMILY", ">PARAMETERS", ">MFLOP", ">SIZE"]);
    for family in families {
        list.row(vec![
            family.name.to_owned(),
            family.parameters.to_string(),
            (family.flops / 1_000_000).to_string(),
            table::bytes(family.bytes),
        ]);
    }
    list
}

fn shape(text: &str) -> Result<Shape, String> {
    let wrong = || format!("{text:?}: expected channels, height and width, such as 3,32,32");
    let extents: Result<Vec<usize>, _> = text.split(',').map(|part| part.trim().parse()).collect();
    let shape: Shape = extents.map_err(|_| wrong())?.try_into().map_err(|_| wrong())?;
    let values = shape.iter().try_fold(1_usize, |product, extent| product.checked_mul(*extent));
    match values {
        Some(1..=EXTENT_MAX) => Ok(shape),
        Some(_) | None => Err(format!("{text:?}: expected 1 to {EXTENT_MAX} values")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_sizes_are_shown() {
        let families = families([3, 224, 224], 1000);
        let of = |name| families.iter().find(|family| family.name == name).unwrap();
        assert_eq!(of("resnet50").parameters, 25_557_032);
        let list = list(&families).to_string();
        let line = list.lines().find(|line| line.starts_with("mobilenet_v2 ")).unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells[..2], ["mobilenet_v2", "3504872"]);
        // 0.30 GFLOP of multiply-adds in the paper.
        assert!((595..606).contains(&cells[2].parse::<u32>().unwrap()), "{line}");
    }

    #[test]
    fn shapes_are_three_extents() {
        assert_eq!(shape("1, 28,28"), Ok([1, 28, 28]));
        for text in ["", "3,32", "3,32,32,32", "3,0,32", "3,x,32", "3,99999999,99999999"] {
            assert!(shape(text).unwrap_err().contains("expected"), "{text}");
        }
    }
}
