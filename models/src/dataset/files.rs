//! The files of a data set, wherever they are: each is read when its turn comes.

use std::borrow::Cow;

use super::{DatasetError, Limits, gunzip};

/// The files of a data set.
pub trait Files {
    /// Paths below the data set's folder, parts joined by `/`.
    fn names(&self) -> Vec<&str>;

    /// The content of one of them.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, name: &str) -> std::io::Result<Cow<'_, [u8]>>;

    /// Bytes of one of them, as far as they are known without reading it.
    fn size(&self, name: &str) -> u64;
}

impl Files for Vec<(String, Vec<u8>)> {
    fn names(&self) -> Vec<&str> {
        self.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn read(&self, name: &str) -> std::io::Result<Cow<'_, [u8]>> {
        let found = self.iter().find(|(known, _)| known == name);
        let (_, bytes) = found.ok_or(std::io::ErrorKind::NotFound)?;
        Ok(Cow::Borrowed(bytes))
    }

    fn size(&self, name: &str) -> u64 {
        let found = self.iter().find(|(known, _)| known == name);
        found.map_or(0, |(_, bytes)| bytes.len() as u64)
    }
}

/// Files with their names in order, read with errors that name them.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    files: &'a dyn Files,
    names: &'a [&'a str],
    limits: Limits,
}

impl<'a> Source<'a> {
    /// `names` in order.
    pub(super) fn new(files: &'a dyn Files, names: &'a [&'a str], limits: Limits) -> Self {
        Self { files, names, limits }
    }

    /// Every name, in order.
    pub(super) fn names(&self) -> &'a [&'a str] {
        self.names
    }

    /// Whether there is a file of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains(&name)
    }

    /// Bytes of a file as it is.
    pub(super) fn size(&self, name: &str) -> u64 {
        self.files.size(name)
    }

    /// A file as it is. What examples may take is what one file may take while it is read.
    pub(super) fn read(&self, name: &str) -> Result<Cow<'a, [u8]>, DatasetError> {
        let (size, max) = (self.size(name), self.limits.bytes);
        if size > max as u64 {
            let problem = format!("{size} bytes, at most {max} are read into memory: split it");
            return Err(DatasetError::file(name, problem));
        }
        let read = self.files.read(name);
        read.map_err(|error| DatasetError::file(name, format!("cannot be read: {error}")))
    }

    /// A file, unpacked if it is gzipped.
    pub(super) fn content(&self, name: &str) -> Result<Cow<'a, [u8]>, DatasetError> {
        gunzip::unpacked(name, self.read(name)?, self.limits.bytes as u64)
    }

    /// A file of text, if it is there.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, DatasetError> {
        if !self.has(name) {
            return Ok(None);
        }
        let bytes = self.read(name)?;
        // Some editors begin a file with a mark.
        let text = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
        let text = String::from_utf8(text.to_vec());
        text.map(Some).map_err(|_| DatasetError::file(name, "expected UTF-8 text"))
    }
}
