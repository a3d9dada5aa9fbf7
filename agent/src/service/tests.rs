//! What is planned and written; the program itself is tried in `tests/e2e/service.rs`.

use std::collections::BTreeSet;
use std::process::Command;

use clap::{CommandFactory as _, Parser as _};

use super::*;
use crate::config::Args;

fn settings(words: &[&str]) -> Settings {
    Args::try_parse_from(["dunlin-agent"].iter().chain(words)).unwrap().settings
}

fn empty() -> (tempfile::TempDir, Places) {
    let root = tempfile::tempdir().unwrap();
    let places = Places::system(root.path().to_owned());
    (root, places)
}

fn config(places: &Places, words: &[&str]) -> Config {
    let text = settings::text(places, &settings(words)).unwrap();
    Config::parse(&places.config, &text).unwrap()
}

/// Whatever flag there is reaches the file under a name that the agent reads.
#[test]
fn every_flag_is_carried_into_the_file() {
    let (_root, places) = empty();
    let mut words = Vec::new();
    let mut names = BTreeSet::new();
    for argument in Args::command().get_arguments() {
        let flag = argument.get_long().unwrap_or_default();
        if matches!(flag, "help" | "version" | "config") {
            continue;
        }
        let value = match flag {
            "label" | "data" => "key=value",
            "log" => "json",
            "metered" => "true",
            "guard-hours" => "22-06",
            "name" | "group" | "log-level" | "nats" => "some",
            _ => "7",
        };
        words.extend([format!("--{flag}"), value.to_owned()]);
        let many = ["label", "group", "forbid-engine"].contains(&flag);
        names.insert(if many { format!("{flag}s") } else { flag.to_owned() });
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let text = settings::text(&places, &settings(&words)).unwrap();
    let table: toml::Table = toml::from_str(&text).unwrap();
    let written: BTreeSet<String> = table.keys().cloned().collect();
    assert_eq!(written, names);
    let config = Config::parse(&places.config, &text).unwrap_err().to_string();
    assert!(config.contains("--heartbeat-ms"), "all names are known, 7 ms are too few: {config}");
}

#[test]
fn what_is_given_goes_over_what_was_there() {
    let (root, places) = empty();
    let own = places.real(&places.config);
    std::fs::create_dir_all(own.parent().unwrap()).unwrap();
    let before = "nats = 'a'\ntoken = 'x'\ngroups = ['one']\nforbid-engines = ['cuda']\n[labels]\na = '1'\nb = '2'\n";
    std::fs::write(&own, before).unwrap();
    let same = config(&places, &[]);
    assert_eq!((same.link.servers.as_str(), same.labels.len()), ("a", 2));
    assert_eq!(same.state_dir, places.state, "a service has a state directory of its own");
    let more =
        config(&places, &["--nats", "b", "--label", "b=3", "--group", "two", "--group", "z"]);
    assert_eq!(more.link.servers, "b");
    assert_eq!(more.link.token.as_deref(), Some("x"));
    assert_eq!(more.forbidden_engines, ["cuda"]);
    assert_eq!((more.labels["a"].as_str(), more.labels["b"].as_str()), ("1", "3"));
    assert_eq!(more.groups.len(), 2, "groups are those that are given");

    // Another file counts instead of the service's own.
    let other = root.path().join("other.toml");
    std::fs::write(&other, "nats = 'c'\ncreds = 'some.creds'\n").unwrap();
    let moved = config(&places, &["--config", other.to_str().unwrap()]);
    assert_eq!((moved.link.servers.as_str(), moved.labels.len()), ("c", 0));
    let creds = std::path::absolute("some.creds").unwrap();
    assert_eq!(moved.link.credentials, Some(creds), "services start in /");
}

#[test]
fn the_unit_is_what_it_should_be() {
    let (_root, places) = empty();
    let plain = unit::text(&places, &config(&places, &["--nats", "a"]), false);
    for line in [
        "After=network-online.target",
        "ExecStart=/usr/local/bin/dunlin-agent --config /etc/dunlin/agent.toml",
        "Restart=always",
        "StateDirectory=dunlin-agent",
        "PrivateTmp=yes",
        "ProtectHome=read-only",
        "MemoryAccounting=yes",
        "WantedBy=multi-user.target",
    ] {
        assert!(plain.lines().any(|found| found == line), "{line}: {plain}");
    }
    for directive in ["PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "modprobe"] {
        assert!(!plain.contains(directive), "{directive}: {plain}");
    }
    let words = ["--nats", "a", "--state-dir", "/srv/a b", "--data", "d=/tmp/d"];
    let other = unit::text(&places, &config(&places, &words), true);
    assert!(other.contains("ReadWritePaths=\"/srv/a b\"\n"), "{other}");
    assert!(!other.contains("StateDirectory") && !other.contains("PrivateTmp"), "{other}");
    assert!(other.contains("ExecStartPre=-+/usr/bin/nvidia-modprobe "), "{other}");
}

#[test]
fn a_users_places_follow_the_xdg_variables() {
    let home = |name: &str| (name == "HOME").then(|| "/home/100% a".into());
    let places = Places::user("/".into(), &home).unwrap();
    assert_eq!(places.config, Path::new("/home/100% a/.config/dunlin/agent.toml"));
    assert_eq!(places.state, Path::new("/home/100% a/.local/state/dunlin-agent"));
    let text = unit::text(&places, &config(&places, &["--nats", "a"]), true);
    let program = "ExecStart=\"/home/100%% a/.local/bin/dunlin-agent\" --config \"/home/100%% a/";
    assert!(text.contains(program), "{text}");
    let elsewhere = |name: &str| Some(format!("/x/{name}").into());
    let places = Places::user("/".into(), &elsewhere).unwrap();
    assert_eq!(places.unit, Path::new("/x/XDG_CONFIG_HOME/systemd/user").join(UNIT));
    assert!(matches!(Places::user("/".into(), &|_| None), Err(ServiceError::NoHome)));
}

/// systemd's own judgement, where it is installed.
#[test]
#[expect(clippy::print_stdout, reason = "a test that measures less says so")]
fn systemd_understands_the_unit() {
    let (root, mut places) = empty();
    // A program that is there and may be run.
    places.program = std::env::current_exe().unwrap();
    let words = ["--nats", "a", "--state-dir", "/var/lib/other place"];
    for (modprobe, words) in [(false, &words[..2]), (true, &words)] {
        let text = unit::text(&places, &config(&places, words), modprobe);
        let text = text.replace(unit::MODPROBE, "/bin/true");
        let path = root.path().join(UNIT);
        std::fs::write(&path, text).unwrap();
        let asked = Command::new("systemd-analyze").arg("verify").arg(&path).output();
        let Ok(output) = asked else {
            println!("not verified: systemd-analyze is absent");
            return;
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains(UNIT), "{said}");
    }
}

#[test]
fn an_installation_tells_systemd_last() {
    let (_root, places) = empty();
    let config = config(&places, &["--nats", "a", "--state-dir", "/srv/state"]);
    let found = plan::Found {
        program: "/tmp/x".into(),
        in_place: false,
        beside: vec!["/tmp/dunlin-tract".into()],
        modprobe: false,
    };
    let steps = plan::install(&places, &found, &config, "text".to_owned());
    let first = steps.iter().position(|step| matches!(step, plan::Step::Systemctl(_))).unwrap();
    assert!(steps[first..].iter().all(|step| matches!(step, plan::Step::Systemctl(_))));
    assert_eq!(steps.len() - first, 3);
    assert!(steps.contains(&plan::Step::Private("/srv/state".into())));
    let helper = plan::Step::Copy {
        from: "/tmp/dunlin-tract".into(),
        to: "/usr/local/bin/dunlin-tract".into(),
    };
    assert!(steps.contains(&helper), "{steps:?}");
    let found = plan::Found { in_place: true, ..found };
    let again = plan::install(&places, &found, &config, "text".to_owned());
    assert!(!again.iter().any(|step| matches!(step, plan::Step::Copy { .. })));
}

/// What the service loads is where it can see it, and is named by a path that lasts.
#[test]
fn a_library_is_named_by_its_folder_unless_a_variable_named_it() {
    let library = Path::new("/venv/onnxruntime/capi/libonnxruntime.so.1.32.0");
    assert_eq!(settings::lasting(library, None), library.parent().unwrap());
    assert_eq!(settings::lasting(library, Some("any".into())), library);
    let (_root, places) = empty();
    let given = config(&places, &["--nats", "a", "--onnxruntime", "capi", "--accel", "helper"]);
    assert_eq!(given.onnxruntime, Some(std::path::absolute("capi").unwrap()));
    assert_eq!(given.accel, Some(std::path::absolute("helper").unwrap()));
    let hidden = config(&places, &["--nats", "a", "--onnxruntime", "/tmp/capi"]);
    assert!(!unit::text(&places, &hidden, false).contains("PrivateTmp"));
    let users = "root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000::/home/ada:/bin/sh\n";
    assert_eq!(perform::home_of(users, "1000"), Some("/home/ada".into()));
    assert_eq!(perform::home_of(users, "7"), None);
}

#[test]
fn states_have_the_exit_codes_of_systemctl() {
    let code = |text: &str| Status::parse(text).exit_code();
    assert_eq!(code("LoadState=loaded\nActiveState=active\n"), 0);
    assert_eq!(code("LoadState=loaded\nActiveState=failed\n"), 3);
    assert_eq!(code("LoadState=not-found\nActiveState=inactive\n"), 4);
    assert_eq!(code(""), 4);
    let (_root, places) = empty();
    let config = config(&places, &["--nats", "nats://me:secret@b:1", "--name", "pi"]);
    let used = "LoadState=loaded\nActiveState=active\nSubState=running\nNRestarts=2\n\
                MemoryCurrent=9500000\nCPUUsageNSec=3900000000\n";
    let text = Status::parse(used).told(&places, "dunlin-agent 1", Ok(&config));
    for words in ["active (running), 2 restarts", "nats://b:1", "9 MB, 3 s"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(!text.contains("secret"), "{text}");
    let one = Status::parse(&used.replace("9500000", "[not set]")).told(&places, "", Ok(&config));
    assert!(one.contains("used     3 s") && !one.contains("MB"), "{one}");
    // The agent's own words, as long as it runs.
    let linked = format!("{used}StatusText=connected to nats://b:1\n");
    let text = Status::parse(&linked).told(&places, "", Ok(&config));
    assert!(text.contains("  link     connected to nats://b:1\n"), "{text}");
    let ended = linked.replace("=active\n", "=failed\n");
    assert!(!Status::parse(&ended).told(&places, "", Ok(&config)).contains("link"));
    // Without root the options cannot be read, which is no fault of theirs.
    for (kind, expected) in [
        (std::io::ErrorKind::PermissionDenied, "sudo dunlin-agent service status"),
        (std::io::ErrorKind::NotFound, "problem"),
    ] {
        let error = ConfigError::Unreadable { path: places.config.clone(), source: kind.into() };
        let text = Status::parse(&linked).told(&places, "", Err(&error));
        let is_problem = kind != std::io::ErrorKind::PermissionDenied;
        assert!(text.contains(expected) && text.contains("connected to"), "{text}");
        assert_eq!(text.contains("problem"), is_problem, "{text}");
    }
    let none = format!("LoadState=loaded\nMemoryCurrent={}\n", u64::MAX);
    assert!(!Status::parse(&none).told(&places, "", Ok(&config)).contains("used"));
}

/// Root without the capability for it writes no more than others do.
#[test]
fn a_state_directory_of_another_user_is_foreign() {
    assert!(settings::is_foreign(1000, 0, 0o755) && settings::is_foreign(1000, 0, 0o770));
    assert!(!settings::is_foreign(0, 0, 0o700) && !settings::is_foreign(1000, 1000, 0o700));
    assert!(!settings::is_foreign(1000, 0, 0o777), "as disks of other systems are");
}
