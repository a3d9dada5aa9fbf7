//! One program as a process: its log in a file, its end under control.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running program; killed when dropped. Its log is shown when the test fails.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with its standard output and standard error in files of this folder:
    /// `<name>.out` and `<name>.log`. A program started again under a name continues the log.
    pub fn start(name: &str, folder: &Path, mut command: Command) -> Self {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).unwrap();
        let out = File::create(folder.join(format!("{name}.out"))).unwrap();
        let child = command.stdin(Stdio::null()).stdout(out).stderr(file).spawn();
        let child = child.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and its exit code; it has ten seconds.
    pub fn terminate(&mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.ended(Duration::from_secs(10))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        rustix::process::kill_process(pid.unwrap(), signal).unwrap();
    }

    /// Waits for its end; its exit code.
    pub fn ended(&mut self, within: Duration) -> Option<i32> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < until, "{} did not end within {within:?}", self.name);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Time that its threads have computed, in programs and in the kernel for them.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // Behind the name, which may hold spaces; in hundredths of a second.
        let fields = stat.rsplit_once(')').unwrap().1;
        let ticks = fields.split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|field| field.parse::<u64>().unwrap()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// A line `Name: 123 kB` of `/proc/<pid>/status` in bytes, such as `VmRSS` or `VmHWM`.
    pub fn memory(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let value = status.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'));
        let kib: Option<u64> =
            value.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse().ok());
        kib.unwrap_or_else(|| panic!("no {line} in {status}")) * 1024
    }
}

impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "shown with the failure of the test")]
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(30).collect();
            let lines: Vec<&str> = lines.into_iter().rev().collect();
            eprintln!("--- the last of {}:\n{}", self.name, lines.join("\n"));
        }
    }
}

/// A program of this workspace, beside the test program.
///
/// # Panics
/// When it was not built.
pub fn program(name: &str) -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let folders = own.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not built: run 'make test', or 'cargo build -p agent -p broker-api'")
    })
}

/// The static agent that `scripts/dist.sh` builds, if it did.
pub fn static_agent() -> Option<PathBuf> {
    dist("dunlin-agent")
}

/// The same with the C library's allocator, by `scripts/dist.sh dunlin-agent-malloc-x86_64` or
/// another architecture.
pub fn static_agent_with_malloc() -> Option<PathBuf> {
    dist("dunlin-agent-malloc")
}

fn dist(name: &str) -> Option<PathBuf> {
    let name = format!("../dist/{name}-{}", std::env::consts::ARCH);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    path.is_file().then_some(path)
}

/// The nats-server that `scripts/setup.sh` provides, or the one in `PATH`.
pub fn nats_server() -> PathBuf {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin/nats-server");
    if tool.exists() { tool } else { "nats-server".into() }
}
