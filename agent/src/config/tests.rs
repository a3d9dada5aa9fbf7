use clap::Parser as _;

use super::*;

fn args(words: &[&str]) -> Settings {
    Args::try_parse_from(["dunlin-agent"].iter().chain(words)).unwrap().settings
}

fn with_file(text: &str, words: &[&str]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    std::fs::write(&path, text).unwrap();
    let mut args = args(words);
    args.config = Some(path);
    Config::resolve(args)
}

#[test]
fn a_server_is_enough() {
    let config = Config::resolve(args(&["--nats", "nats://127.0.0.1:4222"])).unwrap();
    assert!(!config.device.as_str().is_empty());
    assert!(config.state_dir.ends_with(Path::new("dunlin").join(config.device.as_str())));
    assert_eq!(config.heartbeat, Duration::from_secs(2));
    assert_eq!((config.slots, config.cache_bytes), (1, 2_000_000_000));
}

#[test]
fn flags_win_over_the_file() {
    let file = "nats = 'a:1'\nname = 'from-file'\nslots = 3\ngroups = ['x']\nlabels = { a = '1', b = '2' }\n[data]\nd = '/x'\n";
    let config = with_file(file, &["--nats", "b:2", "--label", "a=9", "--slots", "2"]).unwrap();
    assert_eq!(config.link.servers, "b:2");
    assert_eq!(config.device.as_str(), "from-file");
    assert_eq!(config.slots, 2);
    assert_eq!(config.labels["a"], "9");
    assert_eq!(config.labels["b"], "2");
    assert_eq!(config.groups[0].as_str(), "x");
    let (name, path) = config.data.first_key_value().unwrap();
    assert_eq!((name.as_str(), path.as_path()), ("d", Path::new("/x")));
}

#[test]
fn guards_are_set_by_flags_and_in_the_file() {
    let config = |words: &[&str]| Config::resolve(args(&[&["--nats", "a"], words].concat()));
    assert!(config(&[]).unwrap().guards.are_open());
    let words = [
        "--guard-temperature-max",
        "75.5",
        "--guard-memory-min",
        "1000",
        "--guard-battery-min",
        "30",
        "--guard-hours",
        "22-06",
    ];
    let guards = config(&words).unwrap().guards;
    assert_eq!((guards.temperature_max, guards.memory_min), (Some(75.5), Some(1000)));
    assert_eq!((guards.disk_min, guards.battery_min), (None, Some(30)));
    assert_eq!(guards.hours.unwrap().to_string(), "22-06");
    let file = "nats = 'a'\nguard-hours = '01:30-5'\nguard-disk-min = 9\nguard-battery-min = 101";
    let wrong = with_file(file, &[]).unwrap_err().to_string();
    assert_eq!(wrong, "--guard-battery-min \"101\": expected percent, 0 to 100");
    let guards = with_file(file, &["--guard-battery-min", "9"]).unwrap().guards;
    assert_eq!(
        (guards.hours.unwrap().to_string(), guards.disk_min),
        ("01:30-05".to_owned(), Some(9))
    );
}

#[test]
fn trainings_are_saved_and_step_back_unless_told_otherwise() {
    let config = |words: &[&str]| Config::resolve(args(&[&["--nats", "a"], words].concat()));
    let plain = config(&[]).unwrap();
    assert_eq!((plain.threads, plain.nice, plain.training_bytes), (0, 10, None));
    assert_eq!(plain.checkpoint, Duration::from_mins(1));
    let words = ["--threads", "3", "--nice", "0", "--training-bytes", "9", "--checkpoint-ms", "0"];
    let told = config(&words).unwrap();
    assert_eq!((told.threads, told.nice, told.training_bytes), (3, 0, Some(9)));
    assert_eq!(told.checkpoint, Duration::ZERO);
    let file = "nats = 'a'\ntraining-bytes = 7\ncheckpoint-ms = 5\n";
    let told = with_file(file, &["--training-bytes", "8"]).unwrap();
    assert_eq!((told.training_bytes, told.checkpoint), (Some(8), Duration::from_millis(5)));
}

#[test]
fn a_connection_is_neither_limited_nor_paid_for_unless_told_so() {
    let config = |words: &[&str]| Config::resolve(args(&[&["--nats", "a"], words].concat()));
    let plain = config(&[]).unwrap();
    assert_eq!((plain.bytes_per_second, plain.metered), (None, false));
    let told = config(&["--metered", "--bytes-per-second", "50000"]).unwrap();
    assert_eq!((told.bytes_per_second, told.metered), (Some(50_000), true));
    let file = "nats = 'a'\nmetered = true\nbytes-per-second = 7000\n";
    let told = with_file(file, &["--metered", "false"]).unwrap();
    assert_eq!((told.bytes_per_second, told.metered), (Some(7000), false));
}

#[test]
fn every_flag_has_an_environment_variable() {
    use clap::CommandFactory as _;
    for arg in Args::command().get_arguments() {
        let name = arg.get_long().unwrap_or_default();
        if matches!(name, "help" | "version") {
            continue;
        }
        let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
        assert!(variable.is_some_and(|name| name.starts_with("DUNLIN_")), "--{name}");
    }
}

#[test]
fn an_unknown_key_is_named() {
    let error = with_file("nats = 'a'\nheartbeat = 3\n", &[]).unwrap_err().to_string();
    assert!(error.contains("unknown field `heartbeat`"), "{error}");
    assert!(error.contains("heartbeat-ms"), "{error}");
    let error = with_file("nats = 3\n", &[]).unwrap_err().to_string();
    assert!(error.contains("nats") && error.contains("line 1"), "{error}");
}

#[test]
fn what_is_wrong_is_named() {
    let cases: [(&[&str], &str); 13] = [
        (&[], "--nats"),
        (&["--nats", "http://a"], "expected nats://host:4222"),
        (&["--nats", "a", "--name", "A b"], "--name"),
        (&["--nats", "a", "--label", "site"], "name=value"),
        (&["--nats", "a", "--label", "SITE=x"], "--label"),
        (&["--nats", "a", "--group", "*"], "--group"),
        (&["--nats", "a", "--data", "x"], "--data"),
        (&["--nats", "a", "--slots", "0"], "1 to 64"),
        (&["--nats", "a", "--threads", "99999999"], "0 to 1024"),
        (&["--nats", "a", "--nice", "20"], "0 to 19"),
        (&["--nats", "a", "--bytes-per-second", "999"], "1000 or more"),
        (&["--nats", "a", "--heartbeat-ms", "5"], "--heartbeat-ms"),
        (&["--nats", "a", "--checkpoint-ms", "86400001"], "--checkpoint-ms"),
    ];
    for (words, expected) in cases {
        let error = Config::resolve(args(words)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn a_data_set_that_is_not_there_is_named() {
    let config = Config::resolve(args(&["--nats", "a", "--data", "d=/does/not/exist"])).unwrap();
    let error = config.check_data().unwrap_err().to_string();
    assert!(error.contains("--data d=/does/not/exist"), "{error}");
}
