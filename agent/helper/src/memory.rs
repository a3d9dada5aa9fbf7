//! Memory that the agent shares, for bodies that are long for pipes.
#![expect(unsafe_code, reason = "a file that is mapped can be changed by others")]

use std::fs::File;
use std::io::{ErrorKind, Result};
use std::os::unix::fs::FileExt as _;

use memmap2::Mmap;
use models::engine::frames::MEMORY;

/// The agent's file.
#[derive(Debug)]
pub struct Memory {
    file: File,
    mapped: Mmap,
}

impl Memory {
    /// Opens the file that the environment names; `None` where it names none, or it cannot be
    /// opened: pipes do as well.
    pub fn open() -> Option<Self> {
        let path = std::env::var_os(MEMORY)?;
        Self::of(File::options().read(true).write(true).open(path).ok()?).ok()
    }

    /// Maps a file.
    pub(crate) fn of(file: File) -> Result<Self> {
        // SAFETY: the agent, whose file it is, fixed its length, and leaves it alone from a request
        // until its reply. Here [`Self::write`] alone writes to it, while nobody has the bytes.
        let mapped = unsafe { Mmap::map(&file)? };
        Ok(Self { file, mapped })
    }

    /// The body of a request: the first `len` bytes.
    ///
    /// # Errors
    /// `UnexpectedEof` when there are fewer.
    pub fn body(&self, len: usize) -> Result<&[u8]> {
        self.mapped.get(..len).ok_or_else(|| ErrorKind::UnexpectedEof.into())
    }

    /// Puts the body of a reply in the place of the request's.
    ///
    /// # Errors
    /// When it is too long, or there is no memory left.
    pub fn write(&mut self, body: &[u8]) -> Result<()> {
        if body.len() > self.mapped.len() {
            return Err(ErrorKind::FileTooLarge.into());
        }
        self.file.write_all_at(body, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_seen_as_the_agent_wrote_them_last() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(70_000).unwrap();
        let mut memory = Memory::of(file.try_clone().unwrap()).unwrap();
        for len in [1, 5000, 300, 70_000] {
            let sent: Vec<u8> = (0..=250).cycle().skip(len % 7).take(len).collect();
            file.write_all_at(&sent, 0).unwrap();
            assert!(memory.body(len).unwrap() == sent, "{len}");
            let answer: Vec<u8> = sent.iter().map(|byte| byte ^ 1).collect();
            memory.write(&answer[len / 2..]).unwrap();
            assert!(memory.body(len - len / 2).unwrap() == &answer[len / 2..], "{len}");
        }
        assert_eq!(memory.body(70_001).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        assert!(memory.write(&vec![0; 70_001]).is_err());
        assert_eq!(file.metadata().unwrap().len(), 70_000);
    }
}
