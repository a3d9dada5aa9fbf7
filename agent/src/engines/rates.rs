//! How fast the CPU's engines are, as `dunlin-agent probe` measured it: kept beside the results of
//! other probes, for what agents say of themselves. An agent lets it be measured by a process of
//! its own, for that takes seconds and the memory of a model.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::probe::{self, Unprobed};
use super::program::Program;

/// How long measuring may take.
const LIMIT: Duration = Duration::from_mins(10);

/// Operations per second by engine, in 10^9.
pub(super) type Rates = BTreeMap<String, f64>;

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// What they depend on.
    key: String,
    gflops: Rates,
}

/// Its place beside a file that keeps results of probes.
pub(super) fn file(probes: &Path) -> PathBuf {
    probes.with_file_name("rates.json")
}

/// What is kept and still holds; nothing where there is none.
pub(super) fn read(probes: &Path, key: &str) -> Rates {
    let kept = std::fs::read(file(probes)).ok();
    let kept = kept.and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
    kept.filter(|kept| kept.key == key).map(|kept| kept.gflops).unwrap_or_default()
}

/// Keeps them; a file that is damaged counts as none, so it need not be synced.
pub(super) fn write(probes: &Path, key: String, gflops: Rates) -> std::io::Result<()> {
    let beside = file(probes).with_extension("new");
    std::fs::write(&beside, serde_json::to_vec_pretty(&Kept { key, gflops })?)?;
    std::fs::rename(beside, file(probes))
}

/// Lets an agent's program measure them, and keep them for the agent with this state folder; `tract`
/// names its helper.
///
/// # Errors
/// Why it did not.
pub(super) fn measure(own: &Path, state: &Path, tract: Option<&Path>) -> Result<(), String> {
    let words = ["probe", "--processor", "--json", "--state-dir"].map(OsStr::new);
    let mut arguments = [&words[..], &[state.as_os_str()]].concat();
    if let Some(tract) = tract {
        arguments.extend([OsStr::new("--tract"), tract.as_os_str()]);
    }
    match probe::ask(&Program::File(own.to_owned()), &arguments, LIMIT) {
        Ok(_) => Ok(()),
        Err(Unprobed::NotStarted(reason) | Unprobed::Failed(reason)) => Err(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_hold_for_what_they_were_measured_with() {
        let folder = tempfile::tempdir().unwrap();
        let probes = folder.path().join("engines.json");
        assert_eq!(read(&probes, "a"), Rates::new());
        let rates = Rates::from([("native".to_owned(), 12.5)]);
        write(&probes, "a".to_owned(), rates.clone()).unwrap();
        assert_eq!(read(&probes, "a"), rates);
        assert_eq!(read(&probes, "b"), Rates::new(), "another version");
        std::fs::write(folder.path().join("rates.json"), "{").unwrap();
        assert_eq!(read(&probes, "a"), Rates::new());
    }
}
