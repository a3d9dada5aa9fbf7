//! The configuration of a service: what it was, and what is given now.

use std::ffi::OsString;
use std::path::{Path, PathBuf, absolute};

use toml::{Table, Value};

use super::ServiceError;
use super::places::Places;
use crate::config::{self, Config, ConfigError, Settings};

/// The variable that names ONNX Runtime's library.
pub(super) const NAMED: &str = "ORT_DYLIB_PATH";

/// The text of the configuration file: that of the service, or of the file that `--config` names,
/// with what was given in its place. Paths become absolute, since a service starts in `/`.
pub(super) fn text(places: &Places, given: &Settings) -> Result<String, ServiceError> {
    let own = places.real(&places.config);
    let base = given.config.as_ref().unwrap_or(&own);
    let mut table = match std::fs::read_to_string(base) {
        Ok(text) => parse(base, &text)?,
        Err(error) if given.config.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            Table::new()
        }
        Err(source) => {
            return Err(ConfigError::Unreadable { path: base.clone(), source }.into());
        }
    };
    lay_over(&mut table, given, base)?;
    let state = places.state.to_string_lossy().into_owned();
    table.entry("state-dir").or_insert(Value::String(state));
    make_absolute(&mut table);
    let head = "# Options of the service's agent, with the names of its flags; after a change:\n\
                # systemctl restart dunlin-agent\n";
    let body = toml::to_string(&table).map_err(|error| file(base, error.to_string()))?;
    Ok(format!("{head}{body}"))
}

fn parse(path: &Path, text: &str) -> Result<Table, ServiceError> {
    toml::from_str(text).map_err(|error| file(path, error.to_string().trim_end().to_owned()))
}

fn file(path: &Path, problem: String) -> ServiceError {
    ConfigError::File { path: path.to_owned(), problem }.into()
}

/// Puts what was given in place of what a file said. Labels and data sets are added to its own,
/// groups replace them.
fn lay_over(table: &mut Table, given: &Settings, base: &Path) -> Result<(), ServiceError> {
    table.extend(Table::try_from(given).map_err(|error| file(base, error.to_string()))?);
    if !given.groups.is_empty() {
        table.insert("groups".to_owned(), given.groups.clone().into());
    }
    for (name, option, flags) in
        [("labels", "--label", &given.labels), ("data", "--data", &given.data)]
    {
        if flags.is_empty() {
            continue;
        }
        let entry = table.entry(name).or_insert_with(|| Table::new().into());
        let found = entry.as_table_mut();
        let entries = found.ok_or_else(|| file(base, format!("{name}: expected a table")))?;
        for flag in flags {
            let (key, value) = config::pair(option, flag)?;
            entries.insert(key.to_owned(), value.into());
        }
    }
    Ok(())
}

/// Paths that are not absolute are taken from the current directory.
fn make_absolute(table: &mut Table) {
    let make = |value: &mut Value| {
        if let Value::String(text) = value
            && let Ok(path) = absolute(&*text)
        {
            *text = path.to_string_lossy().into_owned();
        }
    };
    for name in ["state-dir", "creds", "tls-ca", "accel", "tract", "onnxruntime"] {
        table.get_mut(name).into_iter().for_each(make);
    }
    if let Some(Value::Table(data)) = table.get_mut("data") {
        data.iter_mut().for_each(|(_, value)| make(value));
    }
}

/// What a configuration says of a library that was found: its folder, so that the next version is
/// found there as well, except for one that a variable named, for which nobody searches.
pub(super) fn lasting(library: &Path, named: Option<OsString>) -> PathBuf {
    match (named, library.parent()) {
        (None, Some(folder)) => folder.to_owned(),
        (Some(_), _) | (None, None) => library.to_owned(),
    }
}

/// The files that a configuration names can be read.
pub(super) fn check_named(config: &Config) -> Result<(), ServiceError> {
    let named: [(&'static str, &Option<PathBuf>); 5] = [
        ("--creds", &config.link.credentials),
        ("--tls-ca", &config.link.tls_ca),
        ("--accel", &config.accel),
        ("--tract", &config.tract),
        ("--onnxruntime", &config.onnxruntime),
    ];
    for (option, path) in named {
        let Some(path) = path else { continue };
        std::fs::File::open(path).map_err(|source| ServiceError::Named {
            option,
            path: path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// Whether a directory is another user's, by owner and mode, and not for everybody to write in.
pub(super) fn is_foreign(owner: u32, own: u32, mode: u32) -> bool {
    owner != own && mode & 0o002 == 0
}
