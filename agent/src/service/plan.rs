//! What an installation or a removal does, step by step, from what was found.

use std::fmt;
use std::path::PathBuf;

use super::places::Places;
use super::{UNIT, unit};
use crate::config::Config;
use crate::engines::BESIDE;

/// One step. Each may be done again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Make a directory with all above it.
    Directory(PathBuf),
    /// Make a directory for its owner alone, if it is not there.
    Private(PathBuf),
    /// Put a copy of a program in place of another, at once.
    Copy { from: PathBuf, to: PathBuf },
    /// Put a text in place of another, at once.
    Write { path: PathBuf, mode: u32, text: String },
    /// Have systemd do something.
    Systemctl(Vec<String>),
    /// The same where a failure means that there was nothing to do.
    Try(Vec<String>),
    /// Let the user's services run while the user is not logged in, where that is allowed.
    Linger,
    /// Remove a file or a directory, if it is there.
    Remove(PathBuf),
    /// Remove a directory, if it is there and nothing is in it.
    RemoveEmpty(PathBuf),
}

/// What an installation found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The program that is running, to be installed.
    pub(super) program: PathBuf,
    /// Whether it already is where the service runs it.
    pub(super) in_place: bool,
    /// Helpers beside it, which are installed too.
    pub(super) beside: Vec<PathBuf>,
    /// Whether NVIDIA's program for its devices is there.
    pub(super) modprobe: bool,
}

/// Installs or updates: everything is in its place before systemd hears of it.
pub(super) fn install(places: &Places, found: &Found, config: &Config, text: String) -> Vec<Step> {
    let mut steps = Vec::new();
    if !found.in_place {
        steps.extend(places.program.parent().map(|dir| Step::Directory(dir.to_owned())));
        steps.push(Step::Copy { from: found.program.clone(), to: places.program.clone() });
        for helper in &found.beside {
            let to = places.program.with_file_name(helper.file_name().unwrap_or_default());
            steps.push(Step::Copy { from: helper.clone(), to });
        }
    }
    // systemd makes the usual one itself, as it does for every start.
    if places.user || config.state_dir != places.state {
        steps.push(Step::Private(config.state_dir.clone()));
    }
    // It may hold a token.
    let files = [
        (&places.config, 0o600, text),
        (&places.unit, 0o644, unit::text(places, config, found.modprobe)),
    ];
    for (path, mode, text) in files {
        steps.extend(path.parent().map(|dir| Step::Directory(dir.to_owned())));
        steps.push(Step::Write { path: path.clone(), mode, text });
    }
    if places.user {
        steps.push(Step::Linger);
    }
    steps.push(systemctl(&["daemon-reload"]));
    steps.push(systemctl(&["enable", UNIT]));
    // Starts it as well, and an agent that runs becomes the new one.
    steps.push(systemctl(&["restart", UNIT]));
    steps
}

/// Stops and removes; `purge` takes everything that an installation has made.
pub(super) fn uninstall(places: &Places, installed: bool, purge: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    if installed {
        steps.push(systemctl(&["disable", "--now", UNIT]));
        steps.push(Step::Remove(places.unit.clone()));
        steps.push(systemctl(&["daemon-reload"]));
        steps.push(Step::Try(words(&["reset-failed", UNIT])));
    }
    if purge {
        let made = [&places.program, &places.config, &places.state, &places.changes()];
        steps.extend(made.map(|path| Step::Remove(path.clone())));
        steps.extend(places.config.parent().map(|dir| Step::RemoveEmpty(dir.to_owned())));
        let helpers = BESIDE.map(|name| places.program.with_file_name(name));
        steps.extend(helpers.map(Step::Remove));
    }
    steps
}

fn systemctl(arguments: &[&str]) -> Step {
    Step::Systemctl(words(arguments))
}

fn words(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(ToString::to_string).collect()
}

/// What is done, for people.
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) | Self::Private(path) => {
                write!(f, "directory {}", path.display())
            }
            Self::Copy { to, .. } => write!(f, "program   {}", to.display()),
            Self::Write { path, mode, .. } => {
                write!(f, "file      {} ({mode:03o})", path.display())
            }
            Self::Systemctl(words) | Self::Try(words) => write!(f, "systemctl {}", words.join(" ")),
            Self::Linger => write!(f, "loginctl enable-linger"),
            Self::Remove(path) | Self::RemoveEmpty(path) => {
                write!(f, "removed   {}", path.display())
            }
        }
    }
}
