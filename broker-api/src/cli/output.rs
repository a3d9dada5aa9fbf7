//! Where commands write: text for people, JSON for programs.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

/// Standard output, or a buffer in tests.
pub(super) struct Output {
    to: Box<dyn Write + Send>,
    /// JSON was asked for.
    pub(super) json: bool,
    /// A person is looking: pictures, progress and colours make sense.
    pub(super) terminal: bool,
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Output")
            .field("json", &self.json)
            .field("terminal", &self.terminal)
            .finish_non_exhaustive()
    }
}

impl Output {
    /// Standard output.
    pub(super) fn stdout(json: bool) -> Self {
        let stdout = io::stdout();
        let terminal = stdout.is_terminal() && !json;
        Self { to: Box::new(stdout), json, terminal }
    }

    /// Another place, which is no terminal.
    #[cfg(test)]
    pub(super) fn buffer(to: impl Write + Send + 'static, json: bool) -> Self {
        Self { to: Box::new(to), json, terminal: false }
    }

    /// One line of text.
    pub(super) fn line(&mut self, text: impl fmt::Display) -> io::Result<()> {
        writeln!(self.to, "{text}")?;
        self.to.flush()
    }

    /// Bytes as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.to.write_all(bytes)?;
        self.to.flush()
    }

    /// One JSON document on one line.
    pub(super) fn document<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        let text = serde_json::to_string(value).map_err(io::Error::other)?;
        self.line(text)
    }
}
