//! A child process whose pipes do not block, with the end of what it wrote to its log.

use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read as _, Result};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::pipe;

/// Bytes of its log that are kept.
const LOG_MAX: usize = 4000;
/// Bytes of a line of it that are kept together.
const LINE_MAX: usize = 400;
/// How long a process that closed its pipes may take to end by itself.
const END_LIMIT: Duration = Duration::from_secs(2);

/// A running child; it is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    log: Arc<Mutex<String>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Running {
    /// Starts a command; its standard input is what the caller made of it.
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        command.env("RUST_BACKTRACE", "0").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let stdin = child.stdin.take();
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(Error::other("a child without pipes"));
        };
        // Whatever fails from here on, it does not outlive this.
        let mut running = Self { child, stdin, stdout, log: Arc::default(), reader: None };
        if let Some(stdin) = &running.stdin {
            pipe::without_blocking(stdin)?;
        }
        pipe::without_blocking(&running.stdout)?;
        let into = running.log.clone();
        let reader = std::thread::Builder::new()
            .name("helper-log".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || read_log(stderr, &into))?;
        running.reader = Some(reader);
        Ok(running)
    }

    pub(super) fn stdin(&self) -> Result<&ChildStdin> {
        self.stdin.as_ref().ok_or_else(|| ErrorKind::BrokenPipe.into())
    }

    pub(super) fn stdout(&self) -> &ChildStdout {
        &self.stdout
    }

    /// Waits for its own end.
    pub(super) fn wait(&mut self, deadline: Instant) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends it; how it ended if it did so itself, and what it said last.
    pub(super) fn end(mut self) -> String {
        self.stdin = None;
        // Whoever closed its pipes is about to end; whoever hangs is not waited for.
        let nothing = pipe::read_to_end(&self.stdout, 0, Instant::now());
        let ending = nothing.is_ok_and(|bytes| bytes.is_empty());
        let limit = if ending { END_LIMIT } else { Duration::ZERO };
        let status = self.wait(Instant::now() + limit).ok();
        let _ = self.child.kill();
        let _ = self.child.wait();
        // The log's other end is closed now, unless a process of its own has it.
        let until = Instant::now() + Duration::from_millis(200);
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished())
            && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(1));
        }
        let said = self.said();
        match (status.map(describe), said.is_empty()) {
            (Some(status), true) => status,
            (Some(status), false) => format!("{status}: {said}"),
            (None, _) => said,
        }
    }

    /// The last line of its log.
    fn said(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.lines().next_back().unwrap_or_default().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a process ended, as people say it.
pub(super) fn describe(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("signal {signal}"),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) => status.to_string(),
    }
}

fn read_log(stderr: ChildStderr, into: &Mutex<String>) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    loop {
        line.clear();
        match stderr.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim();
        // How to see a backtrace is of no use to whoever reads the reason.
        if line.is_empty() || line.starts_with("note: ") {
            continue;
        }
        tracing::debug!("helper: {line}");
        let mut log = into.lock().unwrap_or_else(PoisonError::into_inner);
        if log.len() > LOG_MAX {
            log.clear();
        }
        log.push_str(line);
        log.push('\n');
    }
}
