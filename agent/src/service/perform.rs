//! Does the steps: files and programs.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::ServiceError;
use super::places::Places;
use super::plan::Step;
use super::settings;
use crate::config::Config;
use crate::engines::{self, Options};

/// Does all steps in their order and tells each that was done.
pub(super) fn all(
    steps: &[Step],
    places: &Places,
    out: &mut dyn Write,
) -> Result<(), ServiceError> {
    for one in steps {
        step(one, places)?;
        if !matches!(one, Step::Directory(_) | Step::Private(_) | Step::RemoveEmpty(_)) {
            writeln!(out, "{one}")?;
        }
    }
    Ok(())
}

/// Does a step; what a program wrote.
pub(super) fn step(step: &Step, places: &Places) -> Result<String, ServiceError> {
    let done = match step {
        Step::Directory(path) => fs::create_dir_all(places.real(path)),
        Step::Private(path) => private(&places.real(path)),
        Step::Copy { from, to } => {
            File::open(from).and_then(|mut file| replace(&places.real(to), 0o755, &mut file))
        }
        Step::Write { path, mode, text } => {
            replace(&places.real(path), *mode, &mut text.as_bytes())
        }
        Step::Remove(path) => remove(&places.real(path)),
        Step::RemoveEmpty(path) => {
            let _ = fs::remove_dir(places.real(path));
            Ok(())
        }
        Step::Linger => {
            let _ = Command::new("loginctl").arg("--no-ask-password").arg("enable-linger").output();
            Ok(())
        }
        Step::Try(words) => {
            let _ = systemctl(words, places);
            Ok(())
        }
        Step::Systemctl(words) => return systemctl(words, places).map_err(failed(step)),
    };
    done.map(|()| String::new()).map_err(|error| failed(step)(error.to_string()))
}

fn failed(step: &Step) -> impl FnOnce(String) -> ServiceError {
    let step = step.to_string();
    move |problem| ServiceError::Step { step, problem }
}

/// Writes a file beside another and puts it in its place, so that there always is a whole one,
/// also while the one before is being run.
fn replace(path: &Path, mode: u32, content: &mut dyn Read) -> io::Result<()> {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".part");
    let part = path.with_file_name(name);
    remove(&part)?;
    let written = write(&part, mode, content).and_then(|()| fs::rename(&part, path));
    if written.is_err() {
        let _ = fs::remove_file(&part);
    }
    written?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// A new file; nobody else can open it before it has its mode.
fn write(path: &Path, mode: u32, content: &mut dyn Read) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    io::copy(content, &mut file)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

fn private(path: &Path) -> io::Result<()> {
    if let Some(above) = path.parent() {
        fs::create_dir_all(above)?;
    }
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        done => done,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Runs systemctl; what it wrote, or why it failed.
fn systemctl(words: &[String], places: &Places) -> Result<String, String> {
    let mut command = Command::new("systemctl");
    if places.user {
        command.arg("--user");
    }
    let output = match command.arg("--no-pager").args(words).output() {
        Ok(output) => output,
        Err(error) => return Err(format!("systemctl cannot be run: {error}")),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut problem = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if problem.is_empty() {
        problem = output.status.to_string();
    }
    if places.user && variable("XDG_RUNTIME_DIR").is_none() {
        problem.push_str(" (XDG_RUNTIME_DIR is not set: log in as this user, not with su)");
    }
    Err(problem)
}

/// The last lines of the service's log, as far as they can be read.
pub(super) fn last_of_log(places: &Places) -> Vec<String> {
    let logs = places.logs();
    let mut words = logs.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).args(["--lines=6", "--output=cat", "--no-pager", "--quiet"]);
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&output).lines().map(str::to_owned).collect()
}

/// The owner of a directory in which a service of this user cannot write, though the user be root:
/// the unit takes the capability for it away.
pub(super) fn foreign_owner(directory: &Path) -> Option<u32> {
    let found = fs::metadata(directory).ok()?;
    let own = rustix::process::geteuid().as_raw();
    settings::is_foreign(found.uid(), own, found.mode()).then(|| found.uid())
}

/// What a program says of its version.
pub(super) fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// The program that is running.
pub(super) fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// Helpers beside a program.
pub(super) fn beside(program: &Path) -> Vec<PathBuf> {
    let files = engines::BESIDE.map(|name| program.with_file_name(name));
    files.into_iter().filter(|file| file.is_file()).collect()
}

/// ONNX Runtime's library, as the engines of whoever installs would find it; with sudo, of who
/// called that.
///
/// # Errors
/// Why there is no helper that would load one.
pub(super) fn onnxruntime(config: &Config) -> Result<Option<PathBuf>, String> {
    let options = Options { onnxruntime: None, ..Options::of(config, &config.state_dir) };
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let caller = variable("SUDO_UID").and_then(|id| home_of(&users, id.to_str()?));
    if let Some(home) = caller.filter(|_| rustix::process::geteuid().is_root())
        && let Some(found) = engines::onnxruntime(&options, Some(&home))?
    {
        return Ok(Some(found));
    }
    engines::onnxruntime(&options, None)
}

/// The home directory of a user with this number, by the lines of `/etc/passwd`.
pub(super) fn home_of(users: &str, id: &str) -> Option<PathBuf> {
    let mut users = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = users.find(|user| user.get(2) == Some(&id))?;
    user.get(5).filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// Whether two paths are one file.
pub(super) fn is_same(one: &Path, other: &Path) -> bool {
    matches!((one.canonicalize(), other.canonicalize()), (Ok(one), Ok(other)) if one == other)
}

/// Whether there is something.
pub(super) fn exists(path: &Path) -> bool {
    path.exists()
}

/// An environment variable that is not empty.
pub(super) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// The user of a user's service, and whether the service runs while that user is not logged in.
pub(super) fn lingering(places: &Places) -> (Option<String>, bool) {
    let user = variable("USER").filter(|_| places.user).and_then(|user| user.into_string().ok());
    let lingers = user
        .as_ref()
        .is_some_and(|user| places.real(&Path::new("/var/lib/systemd/linger").join(user)).exists());
    (user, lingers)
}
