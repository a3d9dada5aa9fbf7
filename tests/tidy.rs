//! What ARCHITECTURE.md promises of the tree, held to it: who may know whom, what the agent may
//! not hold, how large a file may be, which links lead somewhere. And that what is said of a
//! program's parts is what it is built with.

#![expect(clippy::unwrap_used, reason = "a test program stops at the first surprise")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

const LINES_MAX: usize = 500;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files that are kept in version control, or would be.
fn files() -> Vec<String> {
    let arguments = ["ls-files", "--cached", "--others", "--exclude-standard"];
    let output = Command::new("git").args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter(|name| root().join(name).is_file());
    let names: Vec<String> = names.map(str::to_owned).collect();
    assert!(names.len() > 100, "the tree has {} files", names.len());
    names
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

fn sources() -> Vec<String> {
    let mut names = files();
    names.retain(|name| {
        Path::new(name).extension().is_some_and(|extension| extension == "rs" || extension == "sh")
    });
    names
}

/// Crates that a crate is built with for a static agent, as many levels down as asked, tests'
/// own left out.
fn built_with(name: &str, depth: u32) -> BTreeSet<String> {
    let mut command = Command::new(env!("CARGO"));
    command.args(["tree", "--package", name, "--edges", "normal", "--prefix", "none"]);
    command.args(["--target", "x86_64-unknown-linux-musl", "--offline", "--locked"]);
    command.args(["--depth", &depth.to_string()]);
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let names = text.lines().filter_map(|line| line.split_whitespace().next());
    names.filter(|found| *found != name).map(str::to_owned).collect()
}

/// The same with everything below.
fn all_below(name: &str) -> BTreeSet<String> {
    built_with(name, 100)
}

#[test]
fn crates_know_only_whom_they_may() {
    let own = [
        "accel",
        "agent",
        "broker-api",
        "datasets",
        "helper",
        "jobs",
        "link",
        "models",
        "secagg",
        "tests",
        "tract-helper",
    ];
    let allowed: [(&str, &[&str]); 10] = [
        ("jobs", &[]),
        ("models", &[]),
        ("secagg", &[]),
        ("link", &["jobs"]),
        ("datasets", &["jobs", "models"]),
        ("agent", &["datasets", "jobs", "link", "models", "secagg"]),
        ("broker-api", &["datasets", "jobs", "link", "models", "secagg"]),
        ("helper", &["models"]),
        ("accel", &["helper", "models"]),
        ("tract-helper", &["helper", "models"]),
    ];
    for (name, may) in allowed {
        let below = built_with(name, 1);
        let known: Vec<&str> =
            below.iter().map(String::as_str).filter(|other| own.contains(other)).collect();
        assert_eq!(known, may, "{name} knows");
    }
}

#[test]
fn pure_crates_do_no_input_or_output() {
    for name in ["jobs", "models", "secagg"] {
        let below = all_below(name);
        for shell in ["tokio", "async-nats", "reqwest", "axum", "tracing-subscriber", "hyper"] {
            assert!(!below.contains(shell), "{name} is built with {shell}");
        }
    }
    let words = ["std::fs", "std::net", "std::process", "std::env", "SystemTime::now", "async fn"];
    for name in sources() {
        let pure = ["jobs/src", "models/src", "secagg/src"];
        let pure = pure.iter().any(|folder| name.starts_with(folder));
        if !pure || name.contains("tests") {
            continue;
        }
        for word in words {
            assert!(!read(&name).contains(word), "{name} has {word}");
        }
    }
}

#[test]
fn the_agent_is_small_loads_no_library_and_has_one_crypto_provider() {
    let agent = all_below("agent");
    assert!(agent.contains("async-nats") && agent.contains("aws-lc-rs"), "the graph is read");
    for name in [
        "libloading",
        "dlopen2",
        "ort",
        "wgpu",
        "wonnx",
        "tract-onnx",
        "axum",
        "reqwest",
        "smartcore",
        "image-webp",
    ] {
        assert!(!agent.contains(name), "the agent is built with {name}");
    }
    for program in ["agent", "broker-api"] {
        let below = all_below(program);
        for name in ["ring", "openssl", "openssl-sys", "native-tls"] {
            assert!(!below.contains(name), "{program} is built with {name}");
        }
    }
}

#[test]
fn nats_is_reached_and_subjects_are_built_in_one_place() {
    for name in sources() {
        let shell = name.starts_with("agent/src") || name.starts_with("broker-api/src");
        // The operator's `dunlin nats` is a client like any other.
        if !shell || name.contains("test") || name.ends_with("cli/nats.rs") {
            continue;
        }
        let text = read(&name);
        assert!(!text.contains("async_nats::connect("), "{name} opens a connection");
        assert!(!text.contains("ConnectOptions::"), "{name} opens a connection");
        for prefix in ["offer", "fleet", "report", "cmd"] {
            let built = format!("format!(\"{prefix}.");
            assert!(!text.contains(&built), "{name} builds a subject: see jobs::subject");
        }
    }
}

#[test]
fn files_are_short_and_named_as_agreed() {
    for name in sources() {
        let lines = read(&name).lines().count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines, {LINES_MAX} at most");
        assert!(!name.ends_with("/mod.rs"), "{name}: name the module's file after it");
        let stem = Path::new(&name).file_stem().unwrap().to_str().unwrap();
        assert!(!["utils", "util", "helpers", "common", "misc"].contains(&stem), "{name}");
    }
}

#[test]
fn links_in_documents_lead_somewhere() {
    let mut links = 0;
    for name in
        files().iter().filter(|name| Path::new(name).extension().is_some_and(|it| it == "md"))
    {
        let folder = root().join(name).parent().unwrap().to_owned();
        for part in read(name).split("](").skip(1) {
            let target = part.split(')').next().unwrap().split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            assert!(folder.join(target).exists(), "{name} links to {target}");
        }
    }
    assert!(links > 10, "{links} links");
}

#[test]
fn an_sbom_has_the_crates_that_are_linked() {
    let target = "x86_64-unknown-linux-musl";
    let mut command = Command::new("scripts/sbom.py");
    command.args(["Makefile", "agent", target, "rustc 1.95.0 (59807616e 2026-04-14)"]);
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document["bomFormat"], "CycloneDX");
    assert_eq!(document["metadata"]["component"]["name"], "Makefile");
    let component = |name: &str| {
        let mut all = document["components"].as_array().unwrap().iter();
        all.find(|component| component["name"] == name)
    };
    for name in ["models", "rayon", "aws-lc-sys", "mimalloc", "std", "musl"] {
        assert!(component(name).is_some(), "{name} is linked");
    }
    for name in ["cc", "serde_derive", "syn", "axum"] {
        assert!(component(name).is_none(), "{name} is not linked");
    }
    let lock = read("Cargo.lock");
    let checksum = component("async-nats").unwrap()["hashes"][0]["content"].as_str().unwrap();
    assert!(checksum.len() == 64 && lock.contains(checksum), "{checksum}");
    let references: BTreeSet<&str> = document["components"]
        .as_array()
        .unwrap()
        .iter()
        .chain([&document["metadata"]["component"]])
        .map(|component| component["bom-ref"].as_str().unwrap())
        .collect();
    for edge in document["dependencies"].as_array().unwrap() {
        for end in edge["dependsOn"].as_array().unwrap().iter().chain([&edge["ref"]]) {
            assert!(references.contains(end.as_str().unwrap()), "{end} is described");
        }
    }
}
