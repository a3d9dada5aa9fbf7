//! Pipes with a deadline: a helper that hangs must not hold whoever talks to it.

use std::io::{Error, ErrorKind, IoSlice, Result};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use models::engine::frames::PIPED_MAX;
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Bytes read at once at most, so that a length that somebody announced takes no memory by itself.
const CHUNK: usize = 1 << 20;
/// Bytes that there is room for at least: a frame whose body is short.
const ROOM: usize = 2 * PIPED_MAX;

/// Lets calls of [`write_all`] and the others return when they cannot go on.
pub(super) fn without_blocking(fd: impl AsFd) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}

/// Writes all parts, one after another.
///
/// # Errors
/// `TimedOut` after the deadline, `BrokenPipe` when nobody reads any more.
pub(super) fn write_all(fd: impl AsFd, parts: &[&[u8]], deadline: Instant) -> Result<()> {
    let mut parts: Vec<_> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut left = parts.as_mut_slice();
    // What is empty in front counts as written.
    IoSlice::advance_slices(&mut left, 0);
    while !left.is_empty() {
        match rustix::io::writev(&fd, left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut left, written),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(fd.as_fd(), PollFlags::OUT, deadline)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads until there are `len` bytes at least, and what comes with the last of them.
///
/// # Errors
/// `TimedOut` after the deadline, `UnexpectedEof` when there are fewer.
pub(super) fn read_at_least(
    fd: impl AsFd,
    bytes: &mut Vec<u8>,
    len: usize,
    deadline: Instant,
) -> Result<()> {
    while bytes.len() < len {
        let wanted = (len - bytes.len()).clamp(ROOM, CHUNK);
        if read_some(&fd, bytes, wanted, deadline)? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// Reads until the other side closes, `most` bytes at most.
///
/// # Errors
/// `TimedOut` after the deadline, `InvalidData` when there are more.
pub(super) fn read_to_end(fd: impl AsFd, most: usize, deadline: Instant) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while read_some(&fd, &mut bytes, CHUNK, deadline)? > 0 {
        if bytes.len() > most {
            return Err(Error::new(ErrorKind::InvalidData, format!("more than {most} bytes")));
        }
    }
    Ok(bytes)
}

/// Appends what is there, with room for `room` bytes at least, and waits for the first of them; 0
/// at the end.
fn read_some(fd: impl AsFd, bytes: &mut Vec<u8>, room: usize, deadline: Instant) -> Result<usize> {
    bytes.reserve(room);
    loop {
        // Mostly there is nothing yet.
        wait(fd.as_fd(), PollFlags::IN, deadline)?;
        match rustix::io::read(&fd, spare_capacity(bytes)) {
            Ok(read) => return Ok(read),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until it can go on; after the deadline only looks whether it can.
fn wait(fd: BorrowedFd<'_>, what: PollFlags, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let left = Timespec::try_from(left).ok();
    match poll(&mut [PollFd::from_borrowed_fd(fd, what)], left.as_ref()) {
        Ok(0) => Err(ErrorKind::TimedOut.into()),
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn more_than_a_pipe_holds_goes_through() {
        let (reader, writer) = std::io::pipe().unwrap();
        without_blocking(&reader).unwrap();
        without_blocking(&writer).unwrap();
        let sent: Vec<u8> = (0..3_000_000_u32).map(|at| at.to_le_bytes()[1]).collect();
        std::thread::scope(|scope| {
            scope
                .spawn(|| write_all(&writer, &[b"", &sent[..5], b"", &sent[5..]], soon()).unwrap());
            let mut found = Vec::new();
            read_at_least(&reader, &mut found, sent.len(), soon()).unwrap();
            assert!(found == sent);
        });
        write_all(&writer, &[b"end", b""], soon()).unwrap();
        drop(writer);
        assert_eq!(read_to_end(&reader, 3, soon()).unwrap(), b"end");
        let ended = read_at_least(&reader, &mut Vec::new(), 1, soon()).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nobody_waits_beyond_the_deadline() {
        let (reader, writer) = std::io::pipe().unwrap();
        without_blocking(&reader).unwrap();
        without_blocking(&writer).unwrap();
        let begun = Instant::now();
        let soon = || Instant::now() + Duration::from_millis(20);
        let empty = read_at_least(&reader, &mut Vec::new(), 1, soon()).unwrap_err();
        assert_eq!(empty.kind(), ErrorKind::TimedOut);
        let full = write_all(&writer, &[&vec![0; 2_000_000]], soon()).unwrap_err();
        assert_eq!(full.kind(), ErrorKind::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(10));
        let flood = read_to_end(&reader, 100, soon()).unwrap_err();
        assert_eq!(flood.kind(), ErrorKind::InvalidData);
        drop(reader);
        let broken = write_all(&writer, &[&[0]], soon()).unwrap_err();
        assert_eq!(broken.kind(), ErrorKind::BrokenPipe);
    }
}
