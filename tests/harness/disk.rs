//! A disk that can be full: a file system in memory that only the programs see which are started
//! on it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{PATIENCE, Process};
use crate::untested::not_tested;

/// Mounts the disk, and keeps it until it is killed.
const MOUNT: &str =
    r#"mount -t tmpfs -o "size=$1" tmpfs "$2" && echo mounted && exec sleep infinity"#;

/// A small disk over a folder; gone when dropped, after the programs on it.
#[derive(Debug)]
pub struct Disk {
    keeper: Process,
    folder: PathBuf,
}

impl Disk {
    /// A disk of so many bytes over a folder below `world`; `None`, said so, on machines that do
    /// not let this user mount one in a namespace of its own.
    pub fn new(world: &Path, name: &str, bytes: u64) -> Option<Self> {
        let folder = world.join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", MOUNT, "sh", &bytes.to_string()]);
        let name = format!("disk-{name}");
        let mut keeper = Process::start(&name, world, {
            command.arg(&folder);
            command
        });
        let begun = Instant::now();
        let out = world.join(format!("{name}.out"));
        while !std::fs::read_to_string(&out).unwrap().contains("mounted") {
            if keeper.has_ended() {
                not_tested(&format!("no disk can be mounted here: {}", keeper.log()));
                return None;
            }
            assert!(begun.elapsed() < PATIENCE, "a disk is not mounted");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(Self { keeper, folder })
    }

    /// The same command, started where the disk is.
    #[must_use]
    pub fn on(&self, command: &Command) -> Command {
        let mut here = Command::new("nsenter");
        here.args(["--target", &self.keeper.pid().to_string(), "--user", "--mount"]);
        here.args(["--preserve-credentials", "sh", "-c", r#"cd "$0" && exec "$@""#]);
        here.arg(command.get_current_dir().unwrap_or(Path::new("/")));
        here.arg(command.get_program()).args(command.get_args());
        here
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut command = Command::new("sh");
        command.args(["-c", r#"cat /dev/zero > "$0/ballast""#]).arg(&self.folder);
        let ended = self.on(&command).output().unwrap();
        assert!(!ended.status.success(), "zeros have no end: {ended:?}");
    }

    /// Gives it back.
    pub fn make_room(&self) {
        let mut command = Command::new("rm");
        command.arg(self.folder.join("ballast"));
        assert!(self.on(&command).status().unwrap().success());
    }
}
