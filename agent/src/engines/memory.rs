//! Memory that a helper shares, for bodies that are long for its pipes.
//!
//! It is a file without a name, whose length nobody can change. What a helper put there is read as
//! from a file, not where it lies: whatever the helper does meanwhile, it is an error or some bytes.
#![expect(unsafe_code, reason = "a file is written where it is mapped")]

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use memmap2::MmapRaw;
use models::engine::frames::SHARED_MAX;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

#[derive(Debug)]
pub(super) struct Memory {
    file: File,
    mapped: MmapRaw,
    /// Bytes in front that have been written, and so have memory.
    touched: usize,
}

impl Memory {
    /// Makes one; it takes memory as it is written.
    ///
    /// # Errors
    /// When the system has no such files, or forbids them.
    pub(super) fn new() -> Result<Self> {
        let create = |flags| {
            let flags = flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            memfd_create("dunlin-bodies", flags)
        };
        // Before Linux 6.3 the flag is not known; since then it may be demanded.
        let made = create(MemfdFlags::NOEXEC_SEAL).or_else(|_| create(MemfdFlags::empty()))?;
        let file = File::from(made);
        file.set_len(SHARED_MAX as u64)?;
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let mapped = MmapRaw::map_raw(&file)?;
        Ok(Self { file, mapped, touched: 0 })
    }

    /// Where a process of the same user opens it, as long as this one has it.
    pub(super) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Puts a body's parts one after another to its beginning.
    ///
    /// # Errors
    /// When they are too long, or there is no memory left.
    pub(super) fn write(&mut self, parts: &[&[u8]]) -> Result<()> {
        let mut begin = 0;
        for part in parts {
            let end = begin + part.len();
            if end <= self.touched {
                // SAFETY: so many bytes could be written to the file, whose length is fixed and which
                // is mapped as a whole. No reference to them exists in this process.
                unsafe {
                    let target = self.mapped.as_mut_ptr().add(begin);
                    std::ptr::copy_nonoverlapping(part.as_ptr(), target, part.len());
                }
            } else {
                // Where memory lacks this is an error, and the other a signal.
                self.file.write_all_at(part, begin as u64)?;
                self.touched = end;
            }
            begin = end;
        }
        Ok(())
    }

    /// Takes `len` bytes from its beginning.
    ///
    /// # Errors
    /// `InvalidData` when there are fewer.
    pub(super) fn read(&self, len: usize) -> Result<Vec<u8>> {
        if len > self.mapped.len() {
            let reason = format!("{len} bytes in shared memory of {}", self.mapped.len());
            return Err(Error::new(ErrorKind::InvalidData, reason));
        }
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_see_what_was_written_last() {
        let mut memory = Memory::new().unwrap();
        let other = File::options().read(true).write(true).open(memory.path()).unwrap();
        // At first as a file, then where it is mapped.
        for parts in [[&b"ab"[..], b"", b"cde"], [b"fghi", b"j", b""], [b"k", b"lmnop", b"q"]] {
            memory.write(&parts).unwrap();
            let mut seen = vec![0; parts.concat().len()];
            other.read_exact_at(&mut seen, 0).unwrap();
            assert_eq!(seen, parts.concat());
        }
        other.write_all_at(b"xyz", 0).unwrap();
        assert_eq!(memory.read(4).unwrap(), b"xyzn");
    }

    #[test]
    fn nobody_changes_its_length() {
        let mut memory = Memory::new().unwrap();
        let other = File::options().read(true).write(true).open(memory.path()).unwrap();
        for len in [0, SHARED_MAX as u64 + 1] {
            assert!(other.set_len(len).is_err());
        }
        let error = memory.read(SHARED_MAX + 1).unwrap_err();
        assert_eq!(error.to_string(), "67108865 bytes in shared memory of 67108864");
        assert!(memory.write(&[&vec![1; SHARED_MAX], b"2"]).is_err());
        memory.write(&[&vec![3; SHARED_MAX]]).unwrap();
        memory.write(&[&vec![4; SHARED_MAX]]).unwrap();
        assert!(memory.read(SHARED_MAX).unwrap() == vec![4; SHARED_MAX]);
    }
}
