//! The helper's own ends of its pipes. Libraries and drivers print what they like: what they
//! write to standard output goes to standard error, so that the pipe carries only frames.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes that a pipe may hold: a picture of 224 x 224 fits, so neither side waits for the other
/// in the middle of a frame. What Linux allows without privileges.
const PIPE_LEN: usize = 1 << 20;

/// How long a reader stays awake: the rest of a request, or the next one, often comes before a
/// processor has gone to sleep and woken up again.
const AWAKE: Duration = Duration::from_micros(100);

/// Takes standard output for frames alone; from then on everybody else's goes to standard error.
///
/// # Errors
/// When the file descriptors cannot be copied.
pub fn take_stdout() -> io::Result<File> {
    let kept: OwnedFd = rustix::io::fcntl_dupfd_cloexec(io::stdout().as_fd(), 3)?;
    rustix::stdio::dup2_stdout(io::stderr().as_fd())?;
    widen(&kept);
    Ok(File::from(kept))
}

/// Standard input, unbuffered: whole frames are read at once.
///
/// # Errors
/// When the file descriptor cannot be copied.
pub fn take_stdin() -> io::Result<Requests> {
    let kept: OwnedFd = rustix::io::fcntl_dupfd_cloexec(io::stdin().as_fd(), 3)?;
    widen(&kept);
    Ok(Requests(File::from(kept)))
}

/// A pipe whose reader sleeps only when nothing has come for [`AWAKE`].
#[derive(Debug)]
pub struct Requests(File);

impl Read for Requests {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let asleep = Instant::now() + AWAKE;
        while !readable(&self.0) && Instant::now() < asleep {
            // Whoever sends may be waiting for this processor.
            thread::yield_now();
        }
        self.0.read(buffer)
    }
}

/// Whether a read would return at once.
fn readable(pipe: &File) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).map_or(true, |ready| ready > 0)
}

/// Makes a pipe larger, where it is one and there is room; works without.
pub fn widen(pipe: impl AsFd) {
    if rustix::pipe::fcntl_getpipe_size(&pipe).is_ok_and(|len| len < PIPE_LEN) {
        let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE_LEN);
    }
}
