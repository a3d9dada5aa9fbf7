//! One process of a helper: what it is asked, and what it answers.

use std::io::{Error, ErrorKind, Result};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use models::engine::frames::{self, FrameError, PIPED_MAX, PREFIX, Reply, Request, SHARED_MAX};

use super::child::Running;
use super::memory::Memory;
use super::{pipe, polling};

#[derive(Debug)]
pub(super) struct Process {
    child: Running,
    /// For long bodies; where there is none they go through the pipes.
    memory: Option<Memory>,
}

impl Process {
    /// Starts a command that speaks frames.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let memory = Memory::new().ok();
        match &memory {
            Some(memory) => command.env(frames::MEMORY, memory.path()),
            None => command.env_remove(frames::MEMORY),
        };
        Ok(Self { child: Running::start(command.stdin(Stdio::piped()))?, memory })
    }

    /// What it says first.
    pub(super) fn hello(&mut self, deadline: Instant) -> Result<Reply> {
        let (hello, _) = self.answer(deadline)?;
        if !matches!(hello, Reply::Hello { memory: true, .. }) {
            self.memory = None;
        }
        Ok(hello)
    }

    /// Forgets sessions.
    pub(super) fn forget(&mut self, sessions: Vec<u64>, deadline: Instant) -> Result<()> {
        for session in sessions {
            self.ask(&Request::Unload { session }, &[], None, deadline)?;
        }
        Ok(())
    }

    /// One request and its reply, with their bodies; `usual` is how long such a one takes.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        body: &[&[u8]],
        usual: Option<Duration>,
        deadline: Instant,
    ) -> Result<(Reply, Vec<u8>)> {
        let length = body.iter().map(|part| part.len()).sum();
        let long = (PIPED_MAX + 1..=SHARED_MAX).contains(&length);
        let to = self.child.stdin()?;
        let send = |head: &[u8], body: &[&[u8]]| {
            let parts: Vec<&[u8]> = [head].into_iter().chain(body.iter().copied()).collect();
            pipe::write_all(to, &parts, deadline)
        };
        if let Some(memory) = self.memory.as_mut().filter(|_| long) {
            send(&frames::encode_shared(request, length).map_err(Error::other)?, &[])?;
            match memory.write(body) {
                Ok(()) => send(&[frames::IN_PLACE], &[])?,
                Err(_) => send(&[frames::FOLLOWS], body)?,
            }
        } else {
            send(&frames::encode(request, length).map_err(Error::other)?, body)?;
        }
        if let Some(usual) = usual {
            polling::poll_around(self.child.stdout(), usual, deadline);
        }
        self.answer(deadline)
    }

    fn answer(&mut self, deadline: Instant) -> Result<(Reply, Vec<u8>)> {
        let foreign = |error| Error::new(ErrorKind::InvalidData, error);
        let mut frame = Vec::new();
        pipe::read_at_least(self.child.stdout(), &mut frame, PREFIX, deadline)?;
        let prefix = *frame.first_chunk().ok_or(ErrorKind::UnexpectedEof)?;
        let lengths = frames::lengths(prefix).map_err(foreign)?;
        let begin = PREFIX + lengths.header;
        let end = if lengths.shared { begin } else { begin + lengths.body };
        pipe::read_at_least(self.child.stdout(), &mut frame, end, deadline)?;
        if frame.len() > end {
            return Err(Error::new(ErrorKind::InvalidData, "it answered more than it was asked"));
        }
        let reply = frames::decode(&frame[PREFIX..begin]).map_err(foreign)?;
        let body = match &self.memory {
            Some(memory) if lengths.shared => memory.read(lengths.body)?,
            None if lengths.shared => return Err(foreign(FrameError::NotShared)),
            Some(_) | None => frame.split_off(begin),
        };
        Ok((reply, body))
    }

    /// Ends it; see [`Running::end`].
    pub(super) fn end(self) -> String {
        self.child.end()
    }
}
