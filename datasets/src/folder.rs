//! A data set's files on disk.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use models::dataset::Files;
use walkdir::{DirEntry, WalkDir};

/// Folders in folders that are looked into, at most.
const DEPTH_MAX: usize = 8;
/// Files of a data set, at most.
const FILES_MAX: usize = 4_000_000;

/// A folder with its files, or one file alone; hidden ones are left out.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    names: Vec<String>,
}

impl Folder {
    /// Lists the files.
    ///
    /// # Errors
    /// When the path cannot be read, or there are too many files.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        if !std::fs::metadata(path)?.is_dir() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let root = path.parent().map_or_else(PathBuf::new, Path::to_owned);
            return Ok(Self { root, names: vec![name] });
        }
        let hidden = |entry: &DirEntry| entry.depth() > 0 && is_hidden(entry.path());
        // Links are followed, as users lay out data with them.
        let walk = WalkDir::new(path).follow_links(true).max_depth(DEPTH_MAX);
        let mut names = Vec::new();
        for entry in walk.into_iter().filter_entry(|entry| !hidden(entry)) {
            let entry = match entry {
                // Such as an editor's lock, a link that leads nowhere.
                Err(error) if error.path().is_some_and(is_hidden) => continue,
                entry => entry?,
            };
            if !entry.file_type().is_file() {
                continue;
            }
            if names.len() == FILES_MAX {
                return Err(std::io::Error::other(format!("more than {FILES_MAX} files")));
            }
            let below = entry.path().strip_prefix(path).unwrap_or(entry.path());
            let Some(name) = below.to_str() else {
                let problem = format!("the name of {} is not UTF-8", below.display());
                return Err(std::io::Error::other(problem));
            };
            names.push(name.to_owned());
        }
        Ok(Self { root: path.to_owned(), names })
    }
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

impl Files for Folder {
    fn names(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    fn read(&self, name: &str) -> std::io::Result<Cow<'_, [u8]>> {
        std::fs::read(self.root.join(name)).map(Cow::Owned)
    }

    fn size(&self, name: &str) -> u64 {
        std::fs::metadata(self.root.join(name)).map_or(0, |metadata| metadata.len())
    }
}
