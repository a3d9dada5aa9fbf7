//! How fast the CPU's engines are, as `dunlin-agent probe` measured it: kept beside the results of
//! other probes, for what agents say of themselves. An agent does not measure it when it starts,
//! which would take seconds and the memory of a model.

use std::collections::BTreeMap;
use std::io::Result;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Operations per second by engine, in 10^9.
pub(super) type Rates = BTreeMap<String, f64>;

#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// What they depend on.
    key: String,
    gflops: Rates,
}

/// Its place beside a file that keeps results of probes.
fn file(probes: &Path) -> PathBuf {
    probes.with_file_name("rates.json")
}

/// What is kept and still holds; nothing where there is none.
pub(super) fn read(probes: &Path, key: &str) -> Rates {
    let kept = std::fs::read(file(probes)).ok();
    let kept = kept.and_then(|text| serde_json::from_slice::<Kept>(&text).ok());
    kept.filter(|kept| kept.key == key).map(|kept| kept.gflops).unwrap_or_default()
}

/// Keeps them; a file that is damaged counts as none, so it need not be synced.
pub(super) fn write(probes: &Path, key: String, gflops: Rates) -> Result<()> {
    let beside = file(probes).with_extension("new");
    std::fs::write(&beside, serde_json::to_vec_pretty(&Kept { key, gflops })?)?;
    std::fs::rename(beside, file(probes))
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
