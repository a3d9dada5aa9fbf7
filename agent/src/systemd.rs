//! What systemd learns of an agent that it runs: its state in words, and how serious a line of its
//! log is. Where it does not run the agent, nothing is told.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// The variable that names the socket for states.
const SOCKET: &str = "NOTIFY_SOCKET";

/// The variable that names the file behind standard error, if that is the journal.
const JOURNAL: &str = "JOURNAL_STREAM";

/// Tells the agent's state, which `systemctl status` and `dunlin-agent service status` show. Nobody
/// has to listen.
pub(crate) fn tell(state: &str) {
    if let Some(socket) = std::env::var_os(SOCKET).filter(|name| !name.is_empty()) {
        let _ = send(&socket, state);
    }
}

/// Source: `sd_notify(3)`; a name that begins with `@` is an abstract one.
fn send(socket: &OsStr, state: &str) -> io::Result<usize> {
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let sender = UnixDatagram::unbound()?;
    // The agent does not wait for a busy systemd.
    sender.set_nonblocking(true)?;
    // A further line would be another variable.
    let line = format!("STATUS={}", state.replace('\n', " "));
    sender.send_to_addr(line.as_bytes(), &address)
}

/// Whether standard error is the journal. Source: `systemd.exec(5)`, `JOURNAL_STREAM`.
pub(crate) fn reads_the_log() -> bool {
    let named = std::env::var(JOURNAL).unwrap_or_default();
    let file = rustix::fs::fstat(io::stderr());
    file.is_ok_and(|file| named == format!("{}:{}", file.st_dev, file.st_ino))
}

/// What stands before a line for the journal. Source: `sd-daemon(3)`.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        Level::DEBUG | Level::TRACE => "<7>",
    }
}

/// The same, if standard error is the journal.
pub(crate) fn mark(level: Level) -> &'static str {
    if reads_the_log() { priority(level) } else { "" }
}

/// Standard error, each line with its priority.
#[derive(Debug)]
pub(crate) struct Journal;

/// What writes the line of an event, which comes as a whole.
#[derive(Debug)]
pub(crate) struct Line(&'static str);

impl<'a> MakeWriter<'a> for Journal {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(priority(Level::INFO))
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line {
        Line(priority(*event.level()))
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // At once, so that no other thread's line comes between.
        io::stderr().lock().write_all(&[self.0.as_bytes(), line].concat())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
