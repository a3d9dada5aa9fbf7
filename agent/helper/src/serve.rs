//! Answers frames until the other side closes the pipe.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use models::engine::frames::{self, FrameError, PIPED_MAX, PREFIX, PROTOCOL, Reply, Request};

use crate::batch;
use crate::engine::{Engine, Model, Refusal, views};
use crate::memory::Memory;

/// Models that are loaded at a time, at most.
const SESSIONS_MAX: usize = 64;
/// Bytes that a buffer grows by at a time, before any have come.
const CHUNK: usize = 4 << 20;
/// Buffers that are kept from one request to the next, bytes at most.
const KEPT_MAX: usize = 64 << 20;
/// Bytes that are read at once: a frame whose body is short.
const READ: usize = 2 * PIPED_MAX;

/// Why serving ended before the pipe was closed.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The pipe failed, or was closed within a frame.
    #[error("pipe: {0}")]
    Pipe(#[from] io::Error),
    /// The other side does not speak this protocol.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Says hello and answers each request, until there are no more. Long bodies lie in the shared
/// memory, where there is one.
///
/// # Errors
/// [`ServeError`] when the pipe breaks or carries something else than frames.
pub fn serve(
    name: &str,
    engine: &dyn Engine,
    requests: impl Read,
    mut replies: impl Write,
    mut memory: Option<Memory>,
) -> Result<(), ServeError> {
    let mut requests = BufReader::with_capacity(READ, requests);
    let hello =
        Reply::Hello { protocol: PROTOCOL, engine: name.to_owned(), memory: memory.is_some() };
    send(&mut replies, None, &hello, &[])?;
    let mut sessions = Sessions { engine, models: BTreeMap::new() };
    let (mut header, mut piped, mut answer) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let mut prefix = [0; PREFIX];
        match read_prefix(&mut requests, &mut prefix)? {
            0 => return Ok(()),
            PREFIX => {}
            _ => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        }
        let lengths = frames::lengths(prefix)?;
        read(&mut requests, lengths.header, &mut header)?;
        let request: Request = frames::decode(&header)?;
        let in_place = lengths.shared && read_place(&mut requests)?;
        let body = match &memory {
            Some(memory) if in_place => memory.body(lengths.body)?,
            None if in_place => return Err(FrameError::NotShared.into()),
            Some(_) | None => {
                read(&mut requests, lengths.body, &mut piped)?;
                &piped
            }
        };
        answer.clear();
        let reply = sessions.answer(&request, body, &mut answer).unwrap_or_else(|refusal| {
            answer.clear();
            Reply::Refused { reason: refusal.reason, cause: refusal.cause }
        });
        send(&mut replies, memory.as_mut(), &reply, &answer)?;
        piped.shrink_to(KEPT_MAX);
        answer.shrink_to(KEPT_MAX);
    }
}

/// Fills a prefix; the bytes that came before the pipe was closed.
fn read_prefix(requests: &mut impl Read, prefix: &mut [u8; PREFIX]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < PREFIX {
        match requests.read(&mut prefix[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Whether a body is in the shared memory now, or follows.
fn read_place(requests: &mut impl Read) -> Result<bool, ServeError> {
    let mut place = [0];
    requests.read_exact(&mut place)?;
    match place {
        [frames::IN_PLACE] => Ok(true),
        [frames::FOLLOWS] => Ok(false),
        [other] => Err(FrameError::Place(other).into()),
    }
}

/// Reads `len` bytes in the place of what the buffer held. Memory is taken as the bytes come, and
/// what is there already is not filled with zeros again.
fn read(requests: &mut impl Read, len: usize, buffer: &mut Vec<u8>) -> io::Result<()> {
    let mut filled = 0;
    while filled < len {
        let end = len.min(filled + CHUNK);
        if buffer.len() < end {
            let more = end - buffer.len();
            buffer.try_reserve(more).map_err(|error| io::Error::other(error.to_string()))?;
            buffer.resize(end, 0);
        }
        requests.read_exact(&mut buffer[filled..end])?;
        filled = end;
    }
    buffer.truncate(len);
    Ok(())
}

fn send(
    replies: &mut impl Write,
    memory: Option<&mut Memory>,
    reply: &Reply,
    body: &[u8],
) -> Result<(), ServeError> {
    if body.len() <= PIPED_MAX {
        let mut frame = frames::encode(reply, body.len())?;
        frame.extend_from_slice(body);
        replies.write_all(&frame)?;
    } else if memory.is_some_and(|memory| memory.write(body).is_ok()) {
        replies.write_all(&frames::encode_shared(reply, body.len())?)?;
    } else {
        replies.write_all(&frames::encode(reply, body.len())?)?;
        replies.write_all(body)?;
    }
    replies.flush()?;
    Ok(())
}

/// Models by the names that the other side gave them.
struct Sessions<'e> {
    engine: &'e dyn Engine,
    models: BTreeMap<u64, Box<dyn Model>>,
}

impl Sessions<'_> {
    fn answer(
        &mut self,
        request: &Request,
        body: &[u8],
        answer: &mut Vec<u8>,
    ) -> Result<Reply, Refusal> {
        match request {
            Request::Load { session } => self.load(*session, body),
            Request::Run { session, inputs } => {
                let model = self.models.get_mut(session).ok_or_else(|| {
                    Refusal::of(format!("session {session} is not loaded: load the model first"))
                })?;
                let views = views(inputs, body)?;
                let begin = Instant::now();
                let outputs = guard(|| batch::run(model.as_mut(), &views, answer))?;
                let engine_us = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
                Ok(Reply::Answered { engine_us, outputs })
            }
            Request::Unload { session } => {
                self.models.remove(session);
                Ok(Reply::Unloaded)
            }
        }
    }

    fn load(&mut self, session: u64, onnx: &[u8]) -> Result<Reply, Refusal> {
        self.models.remove(&session);
        if self.models.len() >= SESSIONS_MAX {
            return Err(Refusal::of(format!(
                "{SESSIONS_MAX} models are loaded, the most there may be: unload one first"
            )));
        }
        let model = guard(|| self.engine.load(onnx))?;
        let (inputs, outputs) = (model.inputs().to_vec(), model.outputs().to_vec());
        self.models.insert(session, model);
        Ok(Reply::Loaded { inputs, outputs })
    }
}

/// Runs what foreign code does with foreign models; a panic becomes a refusal.
///
/// # Errors
/// That of the work, or what the panic said.
pub fn guard<T>(work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Refusal::of(format!("the engine panicked: {}", text.unwrap_or("it did not say why"))))
    })
}

#[cfg(test)]
mod tests;
