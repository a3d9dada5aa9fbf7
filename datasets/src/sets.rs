//! The data sets of a process: read in the background, kept while they are used.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jobs::device::DatasetFacts;
use jobs::id::DatasetName;
use jobs::report::{Failure, FailureCode};
use jobs::wire;
use models::dataset::{self, Dataset, DatasetError, Limits};

use crate::folder::Folder;

/// Why a data set cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file cannot be read.
    #[error("data set {name} in {path}: {source}", path = path.display())]
    Unreadable {
        /// Which data set.
        name: DatasetName,
        /// Where it is.
        path: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// It has so many names that a message cannot hold them.
    #[error(
        "data set {name} in {path}: its {classes} classes and {columns} columns cannot be declared, \
         {bytes} bytes where {DECLARED_MAX} are allowed: name the column of classes in \
         dataset.toml (label = \"...\"), or shorten names",
        path = path.display()
    )]
    Undeclarable {
        /// Which data set.
        name: DatasetName,
        /// Where it is.
        path: PathBuf,
        /// How many classes.
        classes: u32,
        /// How many columns with names.
        columns: usize,
        /// What declaring them takes.
        bytes: usize,
    },
    /// The files are something else.
    #[error("data set {name} in {path}: {source}", path = path.display())]
    Invalid {
        /// Which data set.
        name: DatasetName,
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        source: DatasetError,
    },
}

/// The data sets by name.
#[derive(Debug)]
pub struct Datasets {
    sets: BTreeMap<DatasetName, Arc<Entry>>,
}

/// Channels whose mean and deviation are declared, at most: a message has a megabyte.
const CHANNELS_MAX: usize = 4096;
/// Bytes that one data set's description may take: all of a device travel in one message.
const DECLARED_MAX: usize = 256 * 1024;
/// The memory over this is what the examples of one data set may take.
const MEMORY_SHARE: u64 = 2;

#[derive(Debug)]
struct Entry {
    name: DatasetName,
    path: PathBuf,
    limits: Limits,
    facts: Mutex<Option<DatasetFacts>>,
    /// Held while decoding, so that it is done once.
    decoded: Mutex<Option<Decoded>>,
}

#[derive(Debug)]
struct Decoded {
    dataset: Arc<Dataset>,
    used: Instant,
    /// How long decoding took.
    took: Duration,
}

/// What took long to decode is kept for so many times as long.
const KEPT_FACTOR: u32 = 20;

impl Datasets {
    /// The data sets of a process that has so many bytes of memory; 0 when nobody knows.
    pub fn new(paths: BTreeMap<DatasetName, PathBuf>, memory: u64) -> Self {
        let share = usize::try_from(memory / MEMORY_SHARE).unwrap_or(usize::MAX);
        // Who does not know its memory has no smaller limit.
        let limits = if share == 0 { Limits::default() } else { Limits { bytes: share } };
        let entry = |(name, path): (DatasetName, PathBuf)| {
            let (facts, decoded) = (Mutex::default(), Mutex::default());
            (name.clone(), Arc::new(Entry { name, path, limits, facts, decoded }))
        };
        Self { sets: paths.into_iter().map(entry).collect() }
    }

    /// Reads every data set; whether there is any.
    ///
    /// # Errors
    /// When one cannot be read, or is none.
    pub fn read_all(&self) -> impl Future<Output = Result<bool, DataError>> + Send + use<> {
        let entries: Vec<Arc<Entry>> = self.sets.values().cloned().collect();
        async move {
            let any = !entries.is_empty();
            let mut kept = 0_usize;
            for entry in entries {
                let read = tokio::task::spawn_blocking(move || entry.read(kept)).await;
                // A panic of the decoder shows again when a task needs the data set.
                kept = kept.saturating_add(read.unwrap_or(Ok(0))?);
            }
            Ok(any)
        }
    }

    /// What is known of the data sets that have been read.
    pub fn facts(&self) -> Vec<DatasetFacts> {
        self.sets.values().filter_map(|entry| lock(&entry.facts).clone()).collect()
    }

    /// What is known of one data set; `None` until it has been read.
    pub fn facts_of(&self, name: &DatasetName) -> Option<DatasetFacts> {
        self.sets.get(name).and_then(|entry| lock(&entry.facts).clone())
    }

    /// A data set; decoding blocks the thread.
    ///
    /// # Errors
    /// When there is none of this name, or its files are no data set.
    pub fn get(&self, name: &DatasetName) -> Result<Arc<Dataset>, Failure> {
        let Some(entry) = self.sets.get(name) else {
            let known: Vec<&str> = self.sets.keys().map(DatasetName::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let message = format!("no data set {name:?} here, only {known}: start with --data");
            return Err(Failure::new(FailureCode::UnknownDataset, message));
        };
        entry.get().map_err(|error| Failure::new(FailureCode::InvalidDataset, error.to_string()))
    }

    /// Lets go of what nobody used for so long, or longer when decoding took long; it is decoded
    /// again when needed.
    pub fn forget_unused(&self, after: Duration) {
        for entry in self.sets.values() {
            // Whoever decodes now holds the lock and uses it.
            let Ok(mut decoded) = entry.decoded.try_lock() else { continue };
            let unused = |decoded: &Decoded| {
                decoded.used.elapsed() >= after.max(decoded.took.saturating_mul(KEPT_FACTOR))
            };
            if decoded.as_ref().is_some_and(unused) {
                *decoded = None;
            }
        }
    }
}

impl Entry {
    /// Learns what is to be declared; bytes that stay in memory. What does not fit beside `kept`
    /// bytes of others is read again when it is used.
    fn read(&self, kept: usize) -> Result<usize, DataError> {
        let dataset = self.get()?;
        let bytes = dataset.train.bytes() + dataset.test.bytes();
        if kept.saturating_add(bytes) <= self.limits.bytes {
            return Ok(bytes);
        }
        *lock(&self.decoded) = None;
        Ok(0)
    }

    fn get(&self) -> Result<Arc<Dataset>, DataError> {
        let mut decoded = lock(&self.decoded);
        if let Some(decoded) = decoded.as_mut() {
            decoded.used = Instant::now();
            return Ok(decoded.dataset.clone());
        }
        let begun = Instant::now();
        let dataset = Arc::new(self.decode()?);
        let took = begun.elapsed();
        let facts = describe(&self.name, &dataset);
        let bytes = wire::encode(&facts).len();
        if bytes > DECLARED_MAX {
            return Err(DataError::Undeclarable {
                name: self.name.clone(),
                path: self.path.clone(),
                classes: facts.classes,
                columns: facts.columns.len(),
                bytes,
            });
        }
        *lock(&self.facts) = Some(facts);
        *decoded = Some(Decoded { dataset: dataset.clone(), used: Instant::now(), took });
        Ok(dataset)
    }

    fn decode(&self) -> Result<Dataset, DataError> {
        let unreadable = |source| DataError::Unreadable {
            name: self.name.clone(),
            path: self.path.clone(),
            source,
        };
        let folder = Folder::open(&self.path).map_err(unreadable)?;
        dataset::decode(&folder, self.limits).map_err(|source| DataError::Invalid {
            name: self.name.clone(),
            path: self.path.clone(),
            source,
        })
    }
}

/// Whether a data set is there: a file, or a folder that is not empty.
///
/// # Errors
/// When the path cannot be read, or the folder is empty.
pub fn check(path: &Path) -> std::io::Result<()> {
    if !std::fs::metadata(path)?.is_dir() {
        return std::fs::File::open(path).map(drop);
    }
    match std::fs::read_dir(path)?.next() {
        Some(entry) => entry.map(drop),
        None => Err(std::io::Error::other("the folder has no files")),
    }
}

fn describe(name: &DatasetName, dataset: &Dataset) -> DatasetFacts {
    let shape = dataset.example_shape();
    let counts = dataset.train.class_counts(dataset.classes);
    let moments = dataset.train.moments().filter(|(mean, _)| mean.len() <= CHANNELS_MAX);
    let (channel_mean, channel_std) = moments.unwrap_or_default();
    DatasetFacts {
        name: name.clone(),
        format: dataset.format.to_owned(),
        shape: shape.iter().map(|n| u32::try_from(*n).unwrap_or(u32::MAX)).collect(),
        classes: u32::try_from(dataset.classes).unwrap_or(u32::MAX),
        train_examples: dataset.train.labels.len() as u64,
        test_examples: dataset.test.labels.len() as u64,
        train_class_counts: counts.into_iter().map(|count| count as u64).collect(),
        labels: dataset.class_names.clone(),
        columns: dataset.columns.clone(),
        mean: dataset.normalization.mean.clone(),
        std: dataset.normalization.std.clone(),
        channel_mean,
        channel_std,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use super::*;

    fn table(dir: &tempfile::TempDir, name: &str, text: &str) -> PathBuf {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("train.csv"), text).unwrap();
        folder
    }

    fn sets(folders: &[PathBuf], memory: u64) -> Datasets {
        let name = |at: usize| DatasetName::parse(&format!("set{at}")).unwrap();
        let paths = folders.iter().enumerate().map(|(at, folder)| (name(at), folder.clone()));
        Datasets::new(paths.collect(), memory)
    }

    #[tokio::test]
    async fn names_that_no_message_holds_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<String> = (0..9000).map(|row| format!("1,id-{row:036}")).collect();
        let error = sets(&[table(&dir, "ids", &rows.join("\n"))], 0).read_all().await.unwrap_err();
        assert!(matches!(error, DataError::Undeclarable { classes: 9000, .. }), "{error}");
        assert!(error.to_string().contains("its 9000 classes"), "{error}");
    }

    #[tokio::test]
    async fn after_the_start_those_that_fit_together_stay() {
        let dir = tempfile::tempdir().unwrap();
        let rows = "1,2,3,0\n".repeat(100);
        let folders = ["a", "b", "c"].map(|name| table(&dir, name, &rows));
        // 16 bytes an example: two of the three fit.
        let sets = sets(&folders, 2 * 3500);
        assert!(sets.read_all().await.unwrap());
        assert_eq!(sets.facts().len(), 3);
        let kept = sets.sets.values().filter(|entry| lock(&entry.decoded).is_some()).count();
        assert_eq!(kept, 2);
        for name in sets.sets.keys() {
            assert!(sets.get(name).is_ok());
        }
    }

    #[tokio::test]
    async fn odd_files_are_left_alone_or_named() {
        let dir = tempfile::tempdir().unwrap();
        let folder = table(&dir, "table", "1,0\n2,1\n");
        std::os::unix::fs::symlink("nowhere", folder.join(".#train.csv")).unwrap();
        let sets = sets(std::slice::from_ref(&folder), 0);
        assert!(sets.read_all().await.unwrap());
        let odd = folder.join(OsStr::from_bytes(b"odd-\xff.csv"));
        std::fs::write(odd, "").unwrap();
        let error = self::sets(&[folder], 0).read_all().await.unwrap_err().to_string();
        assert!(error.contains("odd-") && error.contains("not UTF-8"), "{error}");
    }
}
