//! Finds out which engines of the helper work here: each in a child of its own, with a deadline,
//! for drivers can crash or hang.

use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use models::engine::frames::Probed;
use serde::{Deserialize, Serialize};

use super::child::{Running, describe};
use super::pipe;
use super::program::{Program, stamp};

/// How long the probe of one engine may take: the first use of a GPU can take half a minute.
const LIMIT: Duration = Duration::from_secs(90);
/// Bytes that a probe may say.
const SAID_MAX: usize = 1 << 16;

/// Files that tell versions of drivers, and folders in which drivers are announced.
const DRIVERS: [&str; 6] = [
    "/proc/driver/nvidia/version",
    "/etc/nv_tegra_release",
    "/proc/sys/kernel/osrelease",
    "/usr/share/vulkan/icd.d",
    "/etc/vulkan/icd.d",
    "/usr/local/share/vulkan/icd.d",
];

/// Variables that change what a helper finds.
const VARIABLES: [&str; 5] = [
    "ORT_DYLIB_PATH",
    "DUNLIN_WEBGPU_SOFTWARE",
    "VK_ICD_FILENAMES",
    "VK_DRIVER_FILES",
    "CUDA_VISIBLE_DEVICES",
];

/// An engine that cannot be used.
pub(super) fn unusable(engine: &str, reason: String) -> Probed {
    Probed { engine: engine.to_owned(), unusable: Some(reason), ..Probed::default() }
}

/// Probes an engine in a child; whatever happens there becomes a reason.
fn probe_within(program: &Program, engine: &str, limit: Duration) -> Result<Probed, String> {
    let deadline = Instant::now() + limit;
    let started = program.command().and_then(|mut started| {
        started.command.args(["probe", engine]).stdin(Stdio::null());
        Running::start(&mut started.command)
    });
    let mut child = started.map_err(|error| format!("the helper cannot be started: {error}"))?;
    let said = match pipe::read_to_end(child.stdout(), SAID_MAX, deadline) {
        Ok(said) => said,
        Err(error) if error.kind() == ErrorKind::TimedOut => {
            let _ = child.end();
            return Err(format!("its probe did not end within {limit:?}"));
        }
        Err(error) => return Err(format!("its probe: {error}")),
    };
    let status = child.wait(deadline);
    let end = child.end();
    match status {
        Ok(status) if status.success() => {}
        Ok(status) => {
            let end = if end.is_empty() { describe(status) } else { end };
            return Err(format!("its probe ended with {end}"));
        }
        Err(_) => return Err(format!("its probe did not end within {limit:?}")),
    }
    let probed: Probed = serde_json::from_slice(&said)
        .map_err(|error| format!("its probe answered what is no result: {error}"))?;
    if probed.engine == engine {
        Ok(probed)
    } else {
        Err(format!("its probe answered for {:?}", probed.engine))
    }
}

/// Results that a file keeps.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// What they depend on.
    key: String,
    probed: Vec<Probed>,
}

/// Probes engines of the helper; what worked, or crashed, is kept in `file` until the helper, a
/// driver or the system changes. What an engine lacked is looked for again each time.
pub(super) fn probe_all(program: &Program, engines: &[&str], file: Option<&Path>) -> Vec<Probed> {
    let key = key(program);
    let kept =
        file.and_then(|file| serde_json::from_slice::<Kept>(&std::fs::read(file).ok()?).ok());
    let kept = kept.filter(|kept| kept.key == key).map(|kept| kept.probed).unwrap_or_default();
    let mut lasting = Vec::new();
    let mut all = Vec::new();
    for engine in engines {
        let known = kept.iter().find(|probed| probed.engine == *engine);
        let (probed, lasts) = match known {
            Some(known) => (known.clone(), true),
            None => match probe_within(program, engine, LIMIT) {
                Ok(probed) => {
                    let works = probed.unusable.is_none();
                    (probed, works)
                }
                Err(reason) => (unusable(engine, reason), true),
            },
        };
        if lasts {
            lasting.push(probed.clone());
        }
        all.push(probed);
    }
    if let Some(file) = file
        && lasting != kept
        && let Err(error) = keep(file, &Kept { key, probed: lasting })
    {
        tracing::warn!("{}: {error}", file.display());
    }
    all
}

/// A file that is damaged is only probed anew, so it need not be synced.
fn keep(file: &Path, kept: &Kept) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec_pretty(kept)?)?;
    std::fs::rename(beside, file)
}

fn key(program: &Program) -> String {
    let mut parts = vec![env!("CARGO_PKG_VERSION").to_owned(), program.stamp()];
    for path in DRIVERS.map(Path::new) {
        let text = std::fs::read_to_string(path).map(|text| text.trim().to_owned());
        parts.push(text.unwrap_or_else(|_| stamp(path)));
    }
    for name in VARIABLES {
        let value = std::env::var(name).unwrap_or_default();
        let file = if value.is_empty() { String::new() } else { stamp(Path::new(&value)) };
        parts.push(format!("{name}={value} {file}"));
    }
    parts.join("\n")
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
            probe_within(&program, "cuda", Duration::from_millis(1500)).unwrap_err()
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
        assert!(probe_within(&absent, "cuda", LIMIT).unwrap_err().contains("cannot be started"));
    }

    #[test]
    fn what_worked_or_crashed_is_kept_until_something_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (count, file) = (folder.path().join("count"), folder.path().join("engines.json"));
        let text = |device: &str| {
            format!(
                "echo $2 >> {}\n[ $2 = webgpu ] && exit 101\n[ $2 = ort-cpu ] && \
                 echo '{{\"engine\":\"ort-cpu\",\"unusable\":\"no library\"}}' || \
                 echo '{{\"engine\":\"cuda\",\"device\":\"{device}\"}}'",
                count.display()
            )
        };
        let program = script(folder.path(), &text("first"));
        let all = probe_all(&program, &HELPED, Some(&file));
        assert_eq!(all.len(), HELPED.len());
        assert_eq!(probe_all(&program, &HELPED, Some(&file)), all);
        let asked = || std::fs::read_to_string(&count).unwrap();
        let asked_of = |engine: &str| asked().lines().filter(|line| *line == engine).count();
        assert_eq!(["cuda", "webgpu", "ort-cpu"].map(asked_of), [1, 1, 2]);
        let program = script(folder.path(), &text("another one"));
        let again = probe_all(&program, &HELPED, Some(&file));
        assert!(again.iter().any(|probed| probed.device.as_deref() == Some("another one")));
        std::fs::write(&file, "damaged").unwrap();
        assert_eq!(probe_all(&program, &HELPED, Some(&file)), again);
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
        let mut known = Engines::probe(&options).probed;
        known.sort_by(|a, b| a.engine.cmp(&b.engine));
        assert_eq!(std::fs::read_to_string(asked).unwrap(), "cuda\n");
        let reasons: Vec<_> = known.into_iter().map(|probed| probed.unusable.unwrap()).collect();
        assert!(reasons[0].contains("exit code 101"), "{reasons:?}");
        assert!(reasons[1..].iter().all(|reason| reason.contains("forbids")), "{reasons:?}");
    }
}
