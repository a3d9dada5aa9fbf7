//! The agent as a service: what an installation leaves on a device, and in which order systemd
//! hears of it. systemd is a script here that writes down what it is asked.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use tests::process::program;

/// A device whose files are below a folder and whose systemd is a script.
pub(crate) struct Device {
    folder: TempDir,
}

impl Device {
    pub(crate) fn new() -> Self {
        let device = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir_all(device.root().join("run/systemd/system")).unwrap();
        device.says("LoadState=loaded\nActiveState=active\nSubState=running\nMainPID=7\n");
        let folder = device.folder.path().display();
        device.script("loginctl", &format!("echo loginctl \"$@\" >>{folder}/calls"));
        device.script(
            "systemctl",
            &format!(
                "echo \"$@\" >>{folder}/calls\n\
                 case \"$*\" in *' show '*) cat {folder}/answer ;; esac\n\
                 if [ -e {folder}/refused ]; then cat {folder}/refused >&2; exit 1; fi"
            ),
        );
        device
    }

    /// The folder of everything.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The device's files.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Programs that come before the system's.
    pub(crate) fn path(&self) -> String {
        let own = self.folder.path().join("bin");
        format!("{}:{}", own.display(), std::env::var("PATH").unwrap())
    }

    /// Puts a shell script among them.
    pub(crate) fn script(&self, name: &str, text: &str) {
        let path = self.folder.path().join("bin").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// What systemd says of the unit from here on.
    fn says(&self, answer: &str) {
        std::fs::write(self.folder.path().join("answer"), answer).unwrap();
    }

    /// What systemd was asked since the last time.
    pub(crate) fn calls(&self) -> Vec<String> {
        let path = self.folder.path().join("calls");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let _ = std::fs::remove_file(path);
        text.lines().map(|line| line.replacen("--no-pager ", "", 1)).collect()
    }

    fn service(&self, words: &[&str]) -> Output {
        let mut command = Command::new(program("dunlin-agent"));
        command.env_clear().env("PATH", self.path()).env("HOME", "/home/ada").env("USER", "ada");
        command.env("DUNLIN_SERVICE_ROOT", self.root()).current_dir(self.folder.path());
        command.arg("service").args(words).output().unwrap()
    }

    /// The same where it succeeds; what it says.
    fn done(&self, words: &[&str]) -> String {
        let output = self.service(words);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same where it fails, with this exit code; the error.
    fn refused(&self, words: &[&str], code: i32) -> String {
        let output = self.service(words);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.root().join(path)).unwrap()
    }

    pub(crate) fn mode(&self, path: &str) -> u32 {
        std::fs::metadata(self.root().join(path)).unwrap().permissions().mode() & 0o777
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.root().join(path).exists()
    }
}

pub(crate) const PROGRAM: &str = "usr/local/bin/dunlin-agent";
pub(crate) const CONFIG: &str = "etc/dunlin/agent.toml";
const UNIT: &str = "etc/systemd/system/dunlin-agent.service";
const LINGER: &str = "var/lib/systemd/linger";
const SHOW: &str = "show dunlin-agent.service";

/// The calls without the question for the state, which is long.
fn changes(calls: &[String]) -> Vec<&str> {
    calls.iter().map(String::as_str).filter(|call| !call.starts_with(SHOW)).collect()
}

const STARTED: [&str; 3] =
    ["daemon-reload", "enable dunlin-agent.service", "restart dunlin-agent.service"];

#[test]
fn a_service_is_installed_updated_and_removed() {
    let device = Device::new();
    std::fs::create_dir(device.folder().join("digits")).unwrap();
    std::fs::write(device.folder().join("digits/train.csv"), "a,label\n1,0\n").unwrap();
    let words = ["install", "--nats", "nats://broker:4222", "--name", "pi-1", "--label", "a=b"];
    let secret = ["--token", "s3cret", "--data", "digits=digits", "--threads", "2"];
    let text = device.done(&[&words[..], &secret[..]].concat());
    assert!(text.contains("device pi-1, NATS nats://broker:4222"), "{text}");
    assert!(text.contains("journalctl -u dunlin-agent -f"), "{text}");
    assert!(!text.contains("s3cret"), "{text}");
    assert_eq!(
        (device.mode(PROGRAM), device.mode(CONFIG), device.mode(UNIT)),
        (0o755, 0o600, 0o644)
    );
    let calls = device.calls();
    assert_eq!(changes(&calls), STARTED);
    assert!(calls.last().unwrap().starts_with(SHOW), "it is looked at last: {calls:?}");
    let unit = device.read(UNIT);
    assert!(
        unit.contains("ExecStart=/usr/local/bin/dunlin-agent --config /etc/dunlin/agent.toml\n"),
        "{unit}"
    );
    let config: Vec<String> = device.read(CONFIG).lines().map(str::to_owned).collect();
    let digits = format!("digits = \"{}/digits\"", device.folder().display());
    for line in ["nats = \"nats://broker:4222\"", "token = \"s3cret\"", "threads = 2", &digits] {
        assert!(config.iter().any(|found| found == line), "{line}: {config:#?}");
    }

    // Again with another option: what is not given stays.
    device.done(&["install", "--nats", "tls://other:4222", "--label", "c=d"]);
    assert_eq!(changes(&device.calls()), STARTED);
    let config = device.read(CONFIG);
    for line in ["nats = \"tls://other:4222\"", "a = \"b\"", "c = \"d\"", "name = \"pi-1\""] {
        assert!(config.lines().any(|found| found == line), "{line}: {config}");
    }

    let text = device.done(&["status"]);
    for words in ["active (running)", "process 7", "pi-1", "tls://other:4222", "dunlin-agent 0."] {
        assert!(text.contains(words), "{words}: {text}");
    }
    device.calls();
    let state = device.root().join("var/lib/dunlin-agent");
    std::fs::create_dir_all(&state).unwrap();
    let changed = device.root().join(format!("{UNIT}.d"));
    std::fs::create_dir(&changed).unwrap();
    device.done(&["uninstall"]);
    let removed = ["disable --now dunlin-agent.service", "daemon-reload"];
    assert_eq!(changes(&device.calls())[..2], removed);
    assert!(!device.has(UNIT) && device.has(PROGRAM) && device.has(CONFIG) && state.exists());
    let text = device.done(&["uninstall"]);
    assert!(text.contains("not installed"), "{text}");
    device.done(&["uninstall", "--purge"]);
    assert!(!device.has(PROGRAM) && !device.has(CONFIG) && !state.exists());
    assert!(!device.has("etc/dunlin") && !changed.exists(), "nothing is left of it");
    assert!(!device.has("usr/local/bin/dunlin-accel"), "helpers are gone too");
    assert_eq!(device.calls(), Vec::<String>::new(), "systemd has nothing to do with it");
}

/// A program that runs from where the service has it is not copied, and one that is copied is
/// another file, so that the one that runs is not written to.
#[test]
fn the_program_is_replaced_and_not_written_to() {
    let device = Device::new();
    device.done(&["install", "--nats", "nats://broker"]);
    let installed = device.root().join(PROGRAM);
    let size = std::fs::metadata(&installed).unwrap().len();
    assert_eq!(size, std::fs::metadata(program("dunlin-agent")).unwrap().len());
    let open = std::fs::File::open(&installed).unwrap();
    device.done(&["install"]);
    let links = std::os::unix::fs::MetadataExt::nlink(&open.metadata().unwrap());
    assert_eq!(links, 0, "the file that was there is gone, not changed");
    let files = std::fs::read_dir(installed.parent().unwrap()).unwrap().count();
    assert_eq!(files, 3, "two helpers beside it, and nothing half written is left");
    for helper in ["dunlin-accel", "dunlin-tract"] {
        assert_eq!(device.mode(&format!("usr/local/bin/{helper}")), 0o755);
    }
    let mut command = Command::new(&installed);
    command.args(["service", "install"]).env("DUNLIN_SERVICE_ROOT", device.root());
    let output = command.env("PATH", device.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("agent.toml") && !text.contains("program "), "{text}");
}

/// A service has neither home directory nor variables of whoever installs it: what their search
/// finds is written down.
#[test]
fn the_library_that_is_found_now_is_named_in_the_configuration() {
    let device = Device::new();
    let capi = device.folder().join("packages/onnxruntime/capi");
    std::fs::create_dir_all(&capi).unwrap();
    let library = capi.join("libonnxruntime.so.1.31.0");
    std::fs::write(&library, "").unwrap();
    // Finds it in the home directory alone.
    let helper = device.folder().join("bin/helper");
    let name = helper.to_str().unwrap();
    let finds = |line: &str| {
        device.script("helper", &format!("[ $1 = library ] && [ $HOME = /home/ada ] && {line}"));
    };
    finds(&format!("echo {}", library.display()));
    let said = device.done(&["install", "--nats", "a", "--accel", name]);
    let told = format!("library   {}, named in the configuration\n", library.display());
    assert!(said.contains(&told), "{said}");
    let named = |path: &Path| format!("onnxruntime = \"{}\"\n", path.display());
    assert!(device.read(CONFIG).contains(&named(&capi)), "{}", device.read(CONFIG));

    // What is there stays, what is gone is looked for again, and what is given counts.
    finds("echo /elsewhere/libonnxruntime.so");
    let said = device.done(&["install"]);
    assert!(!said.contains("library "), "{said}");
    std::fs::remove_dir_all(device.folder().join("packages")).unwrap();
    std::fs::create_dir(device.folder().join("other")).unwrap();
    finds(&format!("echo {}/other/libonnxruntime.so", device.folder().display()));
    device.done(&["install"]);
    let other = device.folder().join("other");
    assert!(device.read(CONFIG).contains(&named(&other)), "{}", device.read(CONFIG));
    std::fs::write(device.folder().join("mine.so"), "").unwrap();
    device.done(&["install", "--onnxruntime", "mine.so"]);
    let mine = device.folder().join("mine.so");
    assert!(device.read(CONFIG).contains(&named(&mine)), "{}", device.read(CONFIG));

    // Nothing is there, and that is said.
    let device = Device::new();
    device.script("helper", "exit 0");
    let helper = device.folder().join("bin/helper");
    let said = device.done(&["install", "--nats", "a", "--accel", helper.to_str().unwrap()]);
    assert!(said.contains("no ONNX Runtime") && said.contains("--onnxruntime"), "{said}");
    assert!(!device.read(CONFIG).contains("onnxruntime"));
}

#[test]
fn a_users_service_is_below_the_home_directory() {
    let device = Device::new();
    let text = device.done(&["install", "--user", "--nats", "nats://broker:4222"]);
    assert!(text.contains("unless: sudo loginctl enable-linger ada"), "{text}");
    assert!(text.contains("journalctl --user -u dunlin-agent"), "{text}");
    let calls = device.calls();
    assert_eq!(calls[0], "loginctl --no-ask-password enable-linger", "before it is started");
    assert!(calls[1..].iter().all(|call| call.starts_with("--user ")), "{calls:?}");
    let unit = device.read("home/ada/.config/systemd/user/dunlin-agent.service");
    assert!(unit.contains("ExecStart=/home/ada/.local/bin/dunlin-agent --config /home/ada/"));
    assert!(unit.contains("WantedBy=default.target"), "{unit}");
    assert!(device.has("home/ada/.local/bin/dunlin-agent"));
    assert_eq!(device.mode("home/ada/.config/dunlin/agent.toml"), 0o600);
    assert_eq!(device.mode("home/ada/.local/state/dunlin-agent"), 0o700);

    // Where that was allowed, it stays so, since others may need it.
    let folder = device.folder().display().to_string();
    device.script("loginctl", &format!("cd {folder}/root && mkdir -p {LINGER} && : >{LINGER}/ada"));
    let text = device.done(&["install", "--user"]);
    assert!(text.contains("loginctl enable-linger\n") && !text.contains("It ends"), "{text}");
    let text = device.done(&["uninstall", "--user", "--purge"]);
    assert!(text.contains("kept      lingering (loginctl disable-linger ada)"), "{text}");
    assert!(!device.has("home/ada/.config/dunlin"), "{text}");
}

/// Whoever installs hears at once whether the agent reached its NATS, by its own words.
#[test]
fn the_connection_is_told_where_the_service_is() {
    let device = Device::new();
    let lost = "not connected: NATS at nats://a cannot be reached";
    device.says(&format!("LoadState=loaded\nActiveState=active\nStatusText={lost}\n"));
    let text = device.done(&["install", "--nats", "nats://a"]);
    assert!(text.contains(&format!("its link    {lost}\n")), "{text}");
    let text = device.done(&["status"]);
    assert!(text.contains(&format!("link     {lost}\n")), "{text}");
    let asked = device.calls().pop().unwrap();
    assert!(asked.starts_with(SHOW) && asked.contains("StatusText"), "{asked}");
    let unit = device.read(UNIT);
    for line in ["NotifyAccess=main", "KillMode=mixed"] {
        assert!(unit.lines().any(|found| found == line), "{line}: {unit}");
    }
}

/// A state directory that was named is not the service's alone.
#[test]
fn a_state_directory_that_was_named_is_its_owners_and_stays() {
    let device = Device::new();
    device.done(&["install", "--nats", "a", "--state-dir", "/srv/states/dunlin"]);
    assert_eq!(device.mode("srv/states/dunlin"), 0o700);
    assert_ne!(device.mode("srv/states"), 0o700, "others may use what is above");
    device.done(&["install"]);
    let text = device.done(&["uninstall", "--purge"]);
    assert!(text.contains("kept      /srv/states/dunlin (its state"), "{text}");
    assert!(device.has("srv/states/dunlin") && !device.has("etc/dunlin"));
}

/// Whatever is wrong with the configuration is said before anything is changed.
#[test]
fn a_wrong_configuration_changes_nothing() {
    let device = Device::new();
    let cases: [(&[&str], &str); 9] = [
        (&[], "no NATS server"),
        (&["--nats", "http://broker"], "nats://host:4222"),
        (&["--nats", "a", "--label", "x"], "--label"),
        (&["--nats", "a", "--name", "A b"], "--name"),
        (&["--nats", "a", "--data", "d=/does/not/exist"], "/does/not/exist"),
        (&["--nats", "a", "--creds", "absent.creds"], "absent.creds"),
        (&["--nats", "a", "--onnxruntime", "absent.so"], "--onnxruntime"),
        (&["--nats", "a", "--accel", "absent"], "--accel"),
        (&["--config", "absent.toml"], "absent.toml"),
    ];
    for (words, expected) in cases {
        let error = device.refused(&[&["install"], words].concat(), 2);
        assert!(error.contains(expected) && error.contains("nothing was changed"), "{error}");
    }
    assert!(!device.has("usr") && !device.has("etc"));
    assert_eq!(device.calls(), Vec::<String>::new());

    // A file that somebody has spoilt since.
    std::fs::create_dir_all(device.root().join("etc/dunlin")).unwrap();
    std::fs::write(device.root().join(CONFIG), "nats = 'a'\nslot = 2\n").unwrap();
    let error = device.refused(&["install", "--name", "x"], 2);
    assert!(error.contains("unknown field `slot`"), "{error}");
    assert_eq!(device.read(CONFIG), "nats = 'a'\nslot = 2\n");
}

#[test]
fn what_systemd_refuses_is_told() {
    let device = Device::new();
    std::fs::write(device.folder().join("refused"), "Access denied\n").unwrap();
    let error = device.refused(&["install", "--nats", "a"], 1);
    assert!(error.contains("systemctl daemon-reload: Access denied"), "{error}");
    std::fs::remove_file(device.folder().join("refused")).unwrap();

    device.says(
        "LoadState=loaded\nActiveState=activating\nSubState=auto-restart\nResult=exit-code\n",
    );
    let log = "case \"$*\" in '-u dunlin-agent '*) echo 'dunlin-agent: no such disk' ;; esac";
    device.script("journalctl", log);
    let error = device.refused(&["install", "--nats", "a"], 1);
    assert!(error.contains("activating (auto-restart), exit-code"), "{error}");
    assert!(error.contains("\n    dunlin-agent: no such disk"), "the log says why: {error}");
    assert!(error.contains("journalctl -u dunlin-agent"), "{error}");
    assert_eq!(device.service(&["status"]).status.code(), Some(3));

    device.says("LoadState=not-found\nActiveState=inactive\nSubState=dead\n");
    let output = device.service(&["status"]);
    assert_eq!(output.status.code(), Some(4));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("not installed") && text.contains("service install"), "{text}");
}

#[test]
fn a_device_without_systemd_is_told_what_to_do() {
    let device = Device::new();
    std::fs::remove_dir_all(device.root()).unwrap();
    for words in [&["install", "--nats", "a"][..], &["uninstall"], &["status"]] {
        let error = device.refused(words, 2);
        assert!(error.contains("run/systemd/system is absent"), "{error}");
        assert!(error.contains("dunlin-agent --config"), "{error}");
    }
    assert!(!device.has(""));
}
