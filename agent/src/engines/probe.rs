//! Finds out which engines of the helper work here: each in a child of its own, with a deadline,
//! for drivers can crash or hang.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use models::engine::frames::Probed;
use serde::{Deserialize, Serialize};

use super::child::{Running, describe};
use super::pipe;
use super::program::{Program, stamp};

/// How long the probe of one engine may take: the first use of a GPU can take half a minute.
const LIMIT: Duration = Duration::from_secs(90);
/// Bytes that a probe may say.
const SAID_MAX: usize = 1 << 16;

/// How long a helper may take to say which libraries it would load: it may ask Python.
const LIBRARIES_LIMIT: Duration = Duration::from_secs(20);
/// How long a crash, or a probe without an end, is remembered: a driver may be in a bad state, and
/// an agent that is started again and again is not to wait for it each time.
pub(super) const CRASH_KEPT: Duration = Duration::from_hours(1);

/// Files that tell versions of drivers, and folders in which drivers are announced.
const DRIVERS: [&str; 6] = [
    "/proc/driver/nvidia/version",
    "/etc/nv_tegra_release",
    "/proc/sys/kernel/osrelease",
    "/usr/share/vulkan/icd.d",
    "/etc/vulkan/icd.d",
    "/usr/local/share/vulkan/icd.d",
];

/// Variables that a helper, or a library that it loads, reads to find something.
const VARIABLES: [&str; 20] = [
    "ORT_DYLIB_PATH",
    "DUNLIN_LIBRARIES",
    "VIRTUAL_ENV",
    "HOME",
    "PATH",
    "PYTHONHOME",
    "PYTHONPATH",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "DUNLIN_WEBGPU_SOFTWARE",
    "WGPU_ADAPTER_NAME",
    "WGPU_BACKEND",
    "WGPU_POWER_PREF",
    "VK_ADD_DRIVER_FILES",
    "VK_DRIVER_FILES",
    "VK_ICD_FILENAMES",
    "VK_LOADER_DRIVERS_DISABLE",
    "VK_LOADER_DRIVERS_SELECT",
    "CUDA_DEVICE_ORDER",
    "CUDA_VISIBLE_DEVICES",
];

/// An engine that cannot be used.
pub(super) fn unusable(engine: &str, reason: String) -> Probed {
    Probed { engine: engine.to_owned(), unusable: Some(reason), ..Probed::default() }
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unprobed {
    /// There was no process for it.
    NotStarted(String),
    /// It crashed, hung or answered nonsense.
    Failed(String),
}

/// What a helper says that is started with these arguments; whatever happens becomes a reason.
pub(super) fn ask(
    program: &Program,
    arguments: &[&OsStr],
    limit: Duration,
) -> Result<Vec<u8>, Unprobed> {
    ask_at(program, None, arguments, limit)
}

/// The same with this `home` directory in place of this process's.
fn ask_at(
    program: &Program,
    home: Option<&Path>,
    arguments: &[&OsStr],
    limit: Duration,
) -> Result<Vec<u8>, Unprobed> {
    let deadline = Instant::now() + limit;
    let started = program.start(|command| {
        command.args(arguments).envs(home.map(|home| ("HOME", home))).stdin(Stdio::null());
        Running::start(command)
    });
    let not_started =
        |error| Unprobed::NotStarted(format!("the helper cannot be started: {error}"));
    let mut child = started.map_err(not_started)?;
    let late = || Unprobed::Failed(format!("its probe did not end within {limit:?}"));
    let said = match pipe::read_to_end(child.stdout(), SAID_MAX, deadline) {
        Ok(said) => said,
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            let _ = child.end();
            return Err(late());
        }
        Err(error) => return Err(Unprobed::Failed(format!("its probe: {error}"))),
    };
    let status = child.wait(deadline);
    let end = child.end();
    match status {
        Ok(status) if status.success() => Ok(said),
        Ok(status) => {
            let end = if end.is_empty() { describe(status) } else { end };
            Err(Unprobed::Failed(format!("its probe ended with {end}")))
        }
        Err(_) => Err(late()),
    }
}

/// Probes an engine in a child.
fn probe_within(program: &Program, engine: &str, limit: Duration) -> Result<Probed, Unprobed> {
    let said = ask(program, &["probe".as_ref(), engine.as_ref()], limit)?;
    let nonsense = |what: String| Unprobed::Failed(format!("its probe answered {what}"));
    let probed: Probed = serde_json::from_slice(&said)
        .map_err(|error| nonsense(format!("what is no result: {error}")))?;
    if probed.engine == engine {
        Ok(probed)
    } else {
        Err(nonsense(format!("for {:?}", probed.engine)))
    }
}

/// How long a result holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// Until something changes that it depends on.
    UntilChange,
    /// Until this second of Unix time.
    Until(u64),
    /// It is looked for again each time.
    Once,
    /// The same, since there was no process for it.
    NotStarted,
}

/// A result.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outcome {
    pub(super) probed: Probed,
    holds: Holds,
}

impl Outcome {
    /// Whether another probe may find the engine usable though nothing has changed that can be
    /// seen.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self.holds, Holds::Until(_) | Holds::NotStarted)
    }
}

/// Results that a file keeps.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// What they depend on.
    key: String,
    probed: Vec<Entry>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    probed: Probed,
    /// The second of Unix time at which it is forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

/// Files that keep results.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Keep<'a> {
    /// What they hold counts.
    pub(super) read: Option<&'a Path>,
    /// What is found goes into these.
    pub(super) written: &'a [std::path::PathBuf],
}

/// Probes engines of the helper. What worked is kept until the helper, a library, a driver or the
/// system changes, what crashed for [`CRASH_KEPT`]; what an engine lacked is looked for again each
/// time. Beside it, which files could not be written.
pub(super) fn probe_all(
    program: &Program,
    engines: &[&str],
    keep: Keep<'_>,
    now: SystemTime,
) -> (Vec<Outcome>, Vec<String>) {
    if engines.is_empty() {
        return Default::default();
    }
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let key =
        if keep.read.is_some() || !keep.written.is_empty() { key(program) } else { String::new() };
    let kept = keep.read.map(|file| read(file, &key, now)).unwrap_or_default();
    let outcomes: Vec<Outcome> =
        engines.iter().map(|engine| find(program, engine, &kept, now)).collect();
    let lasting = Kept { key, probed: outcomes.iter().filter_map(entry).collect() };
    let mut problems = Vec::new();
    for file in keep.written {
        if (keep.read != Some(file) || lasting != kept)
            && let Err(error) = write(file, &lasting)
        {
            problems.push(format!("{}: {error}", file.display()));
        }
    }
    (outcomes, problems)
}

fn find(program: &Program, engine: &str, kept: &Kept, now: Duration) -> Outcome {
    if let Some(known) = kept.probed.iter().find(|entry| entry.probed.engine == engine) {
        let holds = known.until.map_or(Holds::UntilChange, Holds::Until);
        return Outcome { probed: known.probed.clone(), holds };
    }
    match probe_within(program, engine, LIMIT) {
        Ok(probed) => {
            let works = probed.unusable.is_none();
            Outcome { probed, holds: if works { Holds::UntilChange } else { Holds::Once } }
        }
        Err(Unprobed::NotStarted(reason)) => {
            Outcome { probed: unusable(engine, reason), holds: Holds::NotStarted }
        }
        Err(Unprobed::Failed(reason)) => {
            let until = (now + CRASH_KEPT).as_secs();
            Outcome { probed: unusable(engine, reason), holds: Holds::Until(until) }
        }
    }
}

fn entry(outcome: &Outcome) -> Option<Entry> {
    let until = match outcome.holds {
        Holds::UntilChange => None,
        Holds::Until(until) => Some(until),
        Holds::Once | Holds::NotStarted => return None,
    };
    Some(Entry { probed: outcome.probed.clone(), until })
}

/// What a file keeps and still holds.
fn read(file: &Path, key: &str, now: Duration) -> Kept {
    let kept = std::fs::read(file).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let mut kept: Kept = kept.filter(|kept: &Kept| kept.key == key).unwrap_or_default();
    // A clock that was wrong does not keep it for longer.
    let until = now.as_secs()..=(now + CRASH_KEPT).as_secs();
    kept.probed
        .retain(|entry| entry.until.is_none_or(|at| until.contains(&at) && at > now.as_secs()));
    kept
}

/// A file that is damaged is only probed anew, so it need not be synced.
fn write(file: &Path, kept: &Kept) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec_pretty(kept)?)?;
    std::fs::rename(beside, file)
}

/// Changes when a probe may find something else.
fn key(program: &Program) -> String {
    let mut parts = vec![env!("CARGO_PKG_VERSION").to_owned(), program.stamp()];
    for path in DRIVERS.map(Path::new) {
        let text = std::fs::read_to_string(path).map(|text| text.trim().to_owned());
        parts.push(text.unwrap_or_else(|_| stamp(path)));
    }
    for name in VARIABLES {
        let value = std::env::var_os(name).unwrap_or_default();
        let file = Path::new(&value);
        let file = if file.is_file() { stamp(file) } else { String::new() };
        parts.push(format!("{name}={} {file}", value.display()));
    }
    parts.extend(libraries(program));
    parts.join("\n")
}

/// The libraries that a helper would load, each with its length and time of change.
fn libraries(program: &Program) -> Vec<String> {
    match ask(program, &["libraries".as_ref()], LIBRARIES_LIMIT) {
        Ok(said) => {
            let said = String::from_utf8_lossy(&said);
            said.lines().map(|line| stamp(Path::new(line))).collect()
        }
        Err(Unprobed::NotStarted(reason) | Unprobed::Failed(reason)) => vec![reason],
    }
}

/// The library of ONNX Runtime that a helper would load for most engines, by the home directory
/// that is given, else this process's.
pub(super) fn library(program: &Program, home: Option<&Path>) -> Option<PathBuf> {
    let said = ask_at(program, home, &["library".as_ref()], LIBRARIES_LIMIT).ok()?;
    let line = said.split(|byte| *byte == b'\n').next().filter(|line| !line.is_empty())?;
    Some(PathBuf::from(OsStr::from_bytes(line)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::engines::{Engines, HELPED, Options};

    fn script(folder: &Path, text: &str) -> Program {
        let path = folder.join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        Program::File(path)
    }

    #[test]
    fn whatever_a_probe_does_becomes_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let reason = |text: &str| {
            let program = script(folder.path(), text);
            match probe_within(&program, "cuda", Duration::from_millis(1500)).unwrap_err() {
                Unprobed::Failed(reason) => reason,
                Unprobed::NotStarted(reason) => panic!("{reason}"),
            }
        };
        assert_eq!(reason("kill -SEGV $$"), "its probe ended with signal 11");
        assert_eq!(
            reason("echo no driver >&2; exit 101"),
            "its probe ended with exit code 101: no driver"
        );
        assert_eq!(reason("exec sleep 60"), "its probe did not end within 1.5s");
        assert!(reason("echo garbage").contains("what is no result"));
        assert!(reason("echo '{\"engine\":\"webgpu\"}'").contains("answered for \"webgpu\""));
        assert!(reason("head -c 10000000 /dev/zero").contains("more than 65536 bytes"));
        let probed = script(folder.path(), "echo '{\"engine\":\"cuda\",\"device\":\"RTX\"}'");
        assert_eq!(probe_within(&probed, "cuda", LIMIT).unwrap().device.as_deref(), Some("RTX"));
        let absent = Program::File(folder.path().join("absent"));
        let refused = probe_within(&absent, "cuda", LIMIT).unwrap_err();
        assert!(matches!(&refused, Unprobed::NotStarted(reason) if reason.contains("cannot be")));
    }

    #[test]
    fn a_helper_is_told_where_onnx_runtime_is() {
        let folder = tempfile::tempdir().unwrap();
        let program = script(
            folder.path(),
            "echo \"file=$ORT_DYLIB_PATH folder=$DUNLIN_LIBRARIES home=$HOME\"",
        );
        let said = |path: &Path| {
            let told = program.clone().told(Some(path));
            assert_ne!(told.stamp(), program.stamp(), "another key");
            library(&told, Some(Path::new("/home/ada"))).unwrap().display().to_string()
        };
        let file = folder.path().join("libonnxruntime.so.1.31.0");
        assert!(said(&file).contains(&format!("file={} ", file.display())), "{}", said(&file));
        let below = said(folder.path());
        let expected = format!("file= folder={} home=/home/ada", folder.path().display());
        assert_eq!(below, expected);
        assert_eq!(library(&script(folder.path(), "exit 2"), None), None);
        assert_eq!(library(&script(folder.path(), "exit 0"), None), None);
    }

    /// A helper that counts how often each engine is probed: cuda works, webgpu crashes.
    struct Counted {
        folder: tempfile::TempDir,
        program: Program,
        now: SystemTime,
    }

    impl Counted {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let program = Self::write(folder.path(), "first");
            Self { folder, program, now: SystemTime::now() }
        }

        fn write(folder: &Path, device: &str) -> Program {
            let (count, library) = (folder.join("count"), folder.join("library"));
            let text = format!(
                "[ $1 = libraries ] && echo {} && exit\n\
                 echo $2 >> {}\n[ $2 = webgpu ] && exit 101\n[ $2 = ort-cpu ] && \
                 echo '{{\"engine\":\"ort-cpu\",\"unusable\":\"no library\"}}' || \
                 echo '{{\"engine\":\"cuda\",\"device\":\"{device}\"}}'",
                library.display(),
                count.display()
            );
            script(folder, &text)
        }

        fn file(&self) -> std::path::PathBuf {
            self.folder.path().join("engines.json")
        }

        fn probe(&self) -> Vec<Outcome> {
            let file = self.file();
            let keep = Keep { read: Some(&file), written: std::slice::from_ref(&file) };
            let (outcomes, problems) = probe_all(&self.program, &HELPED, keep, self.now);
            assert!(problems.is_empty(), "{problems:?}");
            outcomes
        }

        /// How often cuda, webgpu and ort-cpu were probed.
        fn asked(&self) -> [usize; 3] {
            let asked = std::fs::read_to_string(self.folder.path().join("count")).unwrap();
            ["cuda", "webgpu", "ort-cpu"]
                .map(|engine| asked.lines().filter(|line| *line == engine).count())
        }
    }

    #[test]
    fn what_worked_is_kept_until_something_changes_and_a_crash_for_an_hour() {
        let mut helper = Counted::new();
        let all = helper.probe();
        assert_eq!(all.len(), HELPED.len());
        assert_eq!(helper.probe(), all);
        assert_eq!(helper.asked(), [1, 1, 2]);
        assert_eq!(all.iter().map(Outcome::may_pass).collect::<Vec<_>>(), [false, true, false]);
        helper.now += CRASH_KEPT;
        helper.probe();
        assert_eq!(helper.asked(), [1, 2, 3]);
        helper.now -= 3 * CRASH_KEPT;
        helper.probe();
        assert_eq!(helper.asked(), [1, 3, 4], "a clock that was put back");
        // The library that would be loaded.
        std::fs::write(helper.folder.path().join("library"), "another one").unwrap();
        helper.probe();
        assert_eq!(helper.asked(), [2, 4, 5]);
        helper.program = Counted::write(helper.folder.path(), "another one");
        let again = helper.probe();
        let device = |outcome: &Outcome| outcome.probed.device.clone();
        assert!(again.iter().any(|outcome| device(outcome).as_deref() == Some("another one")));
        std::fs::write(helper.file(), "damaged").unwrap();
        assert_eq!(helper.probe(), again);
    }

    #[test]
    fn what_could_not_be_started_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("engines.json");
        let keep = Keep { read: Some(&file), written: std::slice::from_ref(&file) };
        let absent = Program::File(folder.path().join("helper"));
        let (outcomes, _) = probe_all(&absent, &["cuda"], keep, SystemTime::now());
        assert!(outcomes[0].may_pass(), "{outcomes:?}");
        let kept: Kept = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!(kept.probed, []);
        let lost = folder.path().join("absent/engines.json");
        let keep = Keep { read: None, written: std::slice::from_ref(&lost) };
        let (_, problems) = probe_all(&absent, &["cuda"], keep, SystemTime::now());
        assert!(problems[0].contains("absent/engines.json: No such file"), "{problems:?}");
    }

    /// ONNX Runtime may be installed while an agent runs, and a GPU appear after the system began.
    #[test]
    fn what_lacks_something_is_looked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let accel = Some(folder.path().join("helper"));
        let kept = vec![folder.path().join("engines.json")];
        let options = Options { accel, kept, ..Options::default() };
        let absent = Engines::probe(&options, None);
        assert!(absent.again_after().is_some_and(|after| after > CRASH_KEPT), "no helper");
        let answers = |rest: &str| {
            let line = format!("{{\\\"engine\\\":\\\"$2\\\"{rest}}}");
            script(folder.path(), &format!("[ $1 = probe ] && echo \"{line}\""));
        };
        answers(",\\\"unusable\\\":\\\"no library\\\"");
        let lacking = Engines::probe(&options, Some(&absent));
        assert_eq!(lacking.unusable("cuda"), Some("no library"));
        assert!(lacking.again_after().is_some() && !lacking.may_pass("cuda"));
        answers("");
        let found = Engines::probe(&options, Some(&lacking));
        assert!(found.helper("cuda").is_some());
        assert_eq!(found.again_after(), None);
    }

    #[test]
    fn forbidden_engines_are_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        let asked = folder.path().join("asked");
        let text = format!("echo $2 >> {}; exit 101", asked.display());
        script(folder.path(), &text);
        let helper = Some(folder.path().join("helper"));
        let forbidden = vec!["webgpu".to_owned(), "ort-cpu".to_owned()];
        let options = Options { accel: helper, forbidden, ..Options::default() };
        let mut known = Engines::probe(&options, None).probed;
        known.sort_by(|a, b| a.engine.cmp(&b.engine));
        assert_eq!(std::fs::read_to_string(&asked).unwrap(), "cuda\n");
        let reasons: Vec<_> = known.into_iter().map(|probed| probed.unusable.unwrap()).collect();
        assert!(reasons[0].contains("exit code 101"), "{reasons:?}");
        assert!(reasons[1..].iter().all(|reason| reason.contains("forbids")), "{reasons:?}");
        // Nor is anything asked of libraries that no engine may use.
        std::fs::remove_file(&asked).unwrap();
        let forbidden = HELPED.map(str::to_owned).to_vec();
        let options = Options { forbidden, kept: vec![folder.path().join("kept")], ..options };
        let known = Engines::probe(&options, None);
        assert_eq!((known.probed.len(), known.again_after()), (HELPED.len(), None));
        assert!(!asked.exists());
    }
}
