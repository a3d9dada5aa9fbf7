//! `make deploy`: the right file goes to a device and runs there as a service. The device is a
//! folder, and `ssh` and `scp` are scripts that act in it.

use std::path::Path;
use std::process::{Command, Output};

use tests::process::program;

use crate::service::{CONFIG, Device, PROGRAM};

/// A device of a kind that is reached by `ssh`, and the files that `make dist` makes.
fn reachable(machine: &str) -> Device {
    let device = Device::new();
    let folder = device.folder().display().to_string();
    for name in ["home", "dist", "tmp"] {
        std::fs::create_dir(device.folder().join(name)).unwrap();
    }
    device.script("uname", &format!("echo {machine}"));
    // Whoever runs the tests is root there.
    device.script("id", "echo 0");
    let options =
        "while :; do case $1 in -o) shift 2 ;; -O) exit ;; -*) shift ;; *) break ;; esac; done";
    device.script(
        "ssh",
        &format!(
            "{options}\n[ \"$1\" = pi@attic ] || {{ echo \"unknown host $1\" >&2; exit 255; }}\n\
             shift\ncd {folder}/home && HOME={folder}/home exec sh -c \"$*\""
        ),
    );
    device.script(
        "scp",
        &format!("{options}\necho \"$1 ${{2%%:*}}\" >>{folder}/copied\ncp \"$1\" \"${{2#*:}}\""),
    );
    device
}

/// A file of `dist/`, which is our own program whatever the name.
fn built(device: &Device, name: &str) {
    let path = device.folder().join("dist").join(name);
    std::os::unix::fs::symlink(program("dunlin-agent"), path).unwrap();
}

fn deploy(device: &Device, words: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut command = Command::new(root.join("scripts/deploy.sh"));
    command.args(words).env("PATH", device.path()).env("DIST", device.folder().join("dist"));
    command.env("TMPDIR", device.folder().join("tmp"));
    command.env("DUNLIN_SERVICE_ROOT", device.root()).output().unwrap()
}

fn text(output: &Output) -> String {
    let (out, error) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(error))
}

#[test]
fn a_device_gets_the_agent_of_its_kind_as_a_service() {
    let device = reachable("armv7l");
    built(&device, "dunlin-agent-armv7");
    let label = "note=it's $HOME \"here\"";
    let words = ["pi@attic", "--nats", "nats://broker:4222", "--name", "attic", "--label", label];
    let output = deploy(&device, &words);
    assert!(output.status.success(), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("device   attic") && said.contains("active (running)"), "{said}");
    let copied = std::fs::read_to_string(device.folder().join("copied")).unwrap();
    assert!(copied.ends_with("dist/dunlin-agent-armv7 pi@attic\n"), "{copied}");
    assert_eq!((device.mode(PROGRAM), device.mode(CONFIG)), (0o755, 0o600));
    assert!(device.read(CONFIG).contains("it's $HOME"), "{}", device.read(CONFIG));
    let calls = device.calls();
    assert_eq!(calls[2], "restart dunlin-agent.service", "{calls:?}");

    // A newer program with the options that are there.
    let output = deploy(&device, &["pi@attic"]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(device.read(CONFIG).contains("name = \"attic\""), "{}", device.read(CONFIG));
    for name in ["home", "tmp"] {
        let left: Vec<_> = std::fs::read_dir(device.folder().join(name)).unwrap().collect();
        assert!(left.is_empty(), "{name}: {left:?}");
    }
}

#[test]
fn a_device_with_a_gpu_gets_the_agent_for_it() {
    let device = reachable("aarch64");
    let tree = device.root().join("proc/device-tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("model"), "NVIDIA Jetson Nano Developer Kit\0").unwrap();
    built(&device, "dunlin-agent-aarch64");
    let output = deploy(&device, &["pi@attic", "--nats", "a"]);
    assert!(text(&output).contains("dunlin-agent-accel-aarch64 is missing: make agent-jetson"));
    built(&device, "dunlin-agent-accel-aarch64");
    let output = deploy(&device, &["pi@attic", "--nats", "a"]);
    assert!(output.status.success(), "{}", text(&output));
    let copied = std::fs::read_to_string(device.folder().join("copied")).unwrap();
    assert!(copied.contains("dunlin-agent-accel-aarch64"), "{copied}");
}

/// WebGPU is for any GPU with a driver for Vulkan; where nobody built that agent, the other one does.
#[test]
fn a_device_with_another_gpu_gets_the_agent_that_is_there() {
    for (machine, files, expected) in [
        ("aarch64", &["aarch64", "accel-aarch64"][..], "accel-aarch64"),
        ("x86_64", &["x86_64", "accel-x86_64"], "accel-x86_64"),
        ("aarch64", &["aarch64"], "aarch64"),
        ("armv7l", &["armv7", "accel-aarch64"], "armv7"),
    ] {
        let device = reachable(machine);
        std::fs::create_dir_all(device.root().join("dev/dri")).unwrap();
        std::fs::write(device.root().join("dev/dri/renderD128"), "").unwrap();
        for file in files {
            built(&device, &format!("dunlin-agent-{file}"));
        }
        let output = deploy(&device, &["pi@attic", "--nats", "a"]);
        assert!(output.status.success(), "{}", text(&output));
        let copied = std::fs::read_to_string(device.folder().join("copied")).unwrap();
        assert!(copied.ends_with(&format!("/dunlin-agent-{expected} pi@attic\n")), "{copied}");
        assert_eq!(text(&output).contains("which uses its GPU"), files.len() == 1);
    }
}

/// Each advice makes the very file that is missing.
#[test]
fn a_file_that_is_missing_is_told_with_what_builds_it() {
    for (machine, gpu, file, advice) in [
        ("x86_64", "", "dunlin-agent-x86_64", "scripts/dist.sh dunlin-agent-x86_64"),
        ("x86_64", "nvidia0", "dunlin-agent-accel-x86_64", "make agent-pc"),
        ("x86_64", "dri/renderD128", "dunlin-agent-accel-x86_64", "make agent-pc"),
        ("aarch64", "", "dunlin-agent-aarch64", "make agent-rpi"),
        ("aarch64", "nvidia0", "dunlin-agent-accel-aarch64", "make agent-jetson"),
        ("aarch64", "dri/renderD129", "dunlin-agent-accel-aarch64", "make agent-jetson"),
        ("armv7l", "nvidia0", "dunlin-agent-armv7", "make agent-rpi32"),
    ] {
        let device = reachable(machine);
        if !gpu.is_empty() {
            let node = device.root().join("dev").join(gpu);
            std::fs::create_dir_all(node.parent().unwrap()).unwrap();
            std::fs::write(node, "").unwrap();
        }
        let output = deploy(&device, &["pi@attic", "--nats", "a"]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        let expected = format!("dist/{file} is missing: {advice}, or make dist");
        assert!(text(&output).contains(&expected), "{machine}: {}", text(&output));
        let mut makes = file;
        if let Some(target) = advice.strip_prefix("make ") {
            let rule = format!("\n{target}: ## ");
            let makefile = include_str!("../../Makefile");
            let (_, recipe) = makefile.split_once(&rule).unwrap();
            makes = recipe.lines().nth(1).unwrap().rsplit(' ').next().unwrap();
        }
        assert_eq!(makes, file, "{advice}");
    }
}

#[test]
fn what_hinders_a_deployment_is_told() {
    let refused = |device: &Device, words: &[&str], expected: &[&str]| {
        let output = deploy(device, words);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        for word in expected {
            assert!(text(&output).contains(word), "{word}: {}", text(&output));
        }
    };
    let device = reachable("aarch64");
    refused(&device, &[], &["make deploy HOST=user@host"]);
    refused(&device, &["pi@cellar"], &["unknown host pi@cellar", "ssh pi@cellar does not work"]);
    refused(&device, &["pi@attic"], &["dist/dunlin-agent-aarch64 is missing", "make agent-rpi"]);
    built(&device, "dunlin-agent-aarch64");
    refused(&device, &["pi@attic"], &["no NATS server", "does not run on pi@attic"]);
    assert!(!device.has(PROGRAM), "nothing was changed");
    let left: Vec<_> = std::fs::read_dir(device.folder().join("home")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    refused(&reachable("armv6l"), &["pi@attic"], &["kind armv6l", "aarch64 and armv7"]);
}
