//! The flags of `dunlin train`, and which of them were typed: only those override a plan.

use std::any::TypeId;
use std::collections::BTreeSet;
use std::str::FromStr;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches};

use super::TrainArgs;
use super::mistyped::Mistyped;

/// The flags.
#[derive(Debug)]
pub(in crate::cli) struct Given {
    /// All of them, with defaults filled in.
    pub(super) args: TrainArgs,
    /// Names of those that were typed.
    pub(super) typed: BTreeSet<String>,
    /// Flags that cannot be read, and so are not among those.
    pub(in crate::cli) mistyped: Vec<Mistyped>,
}

impl Given {
    /// What is wrong with flags that cannot be read.
    pub(super) fn mistakes(&self) -> Vec<String> {
        self.mistyped.iter().filter_map(|mistyped| mistyped.told.clone()).collect()
    }
}

/// A setting that a job may be without: `none` leaves it out, whatever a plan or the job before has.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct OrNone<T>(pub(super) Option<T>);

impl<T: FromStr> FromStr for OrNone<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|it| Self(Some(it))) }
    }
}

/// A number that JSON has: it has neither NaN nor infinity, and null would leave the flag out.
fn finite<T: FromStr + Copy + Into<f64>>(text: &str) -> Result<T, String> {
    let number = text.parse().ok().filter(|number: &T| (*number).into().is_finite());
    number.ok_or_else(|| "expected a finite number".to_owned())
}

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        // A number below 0 is out of range, and no flag.
        TrainArgs::augment_args(command).mut_args(|flag| {
            let takes_values = flag.get_action().takes_values();
            let flag = if takes_values { flag.allow_negative_numbers(true) } else { flag };
            match flag.get_value_parser().type_id() {
                kind if kind == TypeId::of::<f32>() => flag.value_parser(finite::<f32>),
                kind if kind == TypeId::of::<f64>() => flag.value_parser(finite::<f64>),
                _ => flag,
            }
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        TrainArgs::augment_args_for_update(command)
    }
}

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let typed = matches.ids().map(clap::Id::as_str);
        let typed = typed.filter(|id| matches.value_source(id) == Some(ValueSource::CommandLine));
        let typed = typed.map(str::to_owned).collect();
        Ok(Self { args: TrainArgs::from_arg_matches(matches)?, typed, mistyped: Vec::new() })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
