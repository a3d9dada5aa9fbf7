//! Commands that cannot work say why, with the exit code of wrong usage.

use std::process::{Command, Output};

use tests::process::{nats_server, program};
use tests::world::{World, free_port};

fn run(name: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program(name));
    command.args(arguments).env("DUNLIN_NATS_SERVER", nats_server());
    command.env_remove("DUNLIN_NATS").env_remove("DUNLIN_SERVER");
    command.output().unwrap()
}

/// It ends with this code and says these words, with a hint.
fn assert_refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for word in words {
        assert!(text.contains(word), "{text} lacks {word}");
    }
}

#[test]
fn a_broker_that_is_not_there_is_named() {
    let server = format!("http://127.0.0.1:{}", free_port());
    let output = run("dunlin", &["--server", &server, "devices"]);
    assert_refused(&output, &[&server, "hint:"]);
    let nats = format!("nats://127.0.0.1:{}", free_port());
    let output = run("dunlin", &["nats", "--nats", &nats, "pub", "x", "y"]);
    assert_refused(&output, &[&nats, "hint:", "dunlin up"]);
}

#[test]
fn a_broker_without_nats_gives_up_with_a_reason() {
    let nats = format!("nats://127.0.0.1:{}", free_port());
    let output = run("dunlin", &["serve", "--nats", &nats, "--listen", "127.0.0.1:0"]);
    assert_refused(&output, &[&nats, "nats-server", "hint:"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ports_in_use_are_named() {
    let world = World::start().await;
    let address = world.http_url()["http://".len()..].to_owned();
    let output = run("dunlin", &["serve", "--nats", &world.nats_url(), "--listen", &address]);
    assert_refused(&output, &[&address, "--listen"]);
    let port = world.nats_url().rsplit(':').next().unwrap().to_owned();
    let folder = world.folder().join("other");
    let folder = folder.to_str().unwrap();
    let output = run(
        "dunlin",
        &["up", "--nats-port", &port, "--listen", "127.0.0.1:0", "--state-dir", folder],
    );
    assert_refused(&output, &[&port, "in use"]);
}

/// An agent without NATS waits and comes in when there is one; wrong flags end it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_waits_for_nats_but_not_with_wrong_flags() {
    let mut world = World::start().await;
    world.nats.kill();
    let command = world.agent_command("patient");
    let agent = world.run_agent("patient", command);
    world.until("it says what it waits for", async || agent.log().contains("NATS")).await;
    world.restart_nats();
    world.online("patient", false).await;
    for flag in ["--label=nothing", "--name=Not/A/Name", "--data=digits", "--bogus"] {
        let mut command = world.agent_command("wrong");
        command.arg(flag);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flag}: {text}");
        assert!(!text.is_empty());
    }
}

/// A plan with mistakes starts nothing; without them its rounds are told while they are made, and
/// shown afterwards with the device that is missing and why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_is_trained_and_its_rounds_are_shown() {
    let world = World::start().await;
    let _steady = world.devices("steady", &["--first", "1", "--count", "2", "--adds"]);
    let _failing = world.devices("failing", &["--first", "3", "--fails"]);
    for number in 1..=3 {
        world.online(&format!("device-{number:05}"), true).await;
    }
    let plan = world.folder().join("job.toml");
    let path = plan.to_str().unwrap();
    std::fs::write(&plan, "[spec]\nmodel = \"mlp\"\nrounds = 0\n[spec.local]\nmomentum = 2")
        .unwrap();
    let output = world.dunlin(&["train", "--plan", path]);
    assert_refused(&output, &["spec.dataset", "spec.rounds", "spec.local.momentum is 2"]);
    let typos = "[spec]\nmodel = \"mlp\"\ndataset = \"blank\"\nrounds = 0\n[spec.begin_from]\n\
                 job = \"gone\"\n[spec.local]\nfrozen = [\"stem*\"]\nkept_local = [\"nrom\"]";
    for rounds in ["rounds = 0", "rounds = 1"] {
        std::fs::write(&plan, typos.replace("rounds = 0", rounds)).unwrap();
        let output = world.dunlin(&["train", "--plan", path]);
        assert_refused(&output, &["there is no job gone", "\"stem*\"", "\"nrom\""]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(text.contains("spec.rounds is 0"), rounds == "rounds = 0", "{text}");
    }
    refused_with_what_the_broker_knows(&world, path);
    let jobs = world.get("/v1/jobs").await.body;
    assert_eq!(jobs["jobs"], serde_json::json!([]), "{jobs:#}");

    let text = "[spec]\nmodel = \"mlp\"\ndataset = \"blank\"\nrounds = 2\n\
                [spec.local]\nepochs = 0\n[spec.participation]\nquorum = 2";
    std::fs::write(&plan, text).unwrap();
    let output = world.dunlin(&["train", "--plan", path]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
    let id = text.split_whitespace().nth(1).unwrap().trim_end_matches(':');
    assert_eq!(world.job(id).await["state"], "succeeded", "{text}");
    assert!(text.contains("device-00003"), "the missing device is told: {text}");
    let failure = &world.job(id).await["rounds"][1]["missing"][0][1]["message"];
    for arguments in [&["rounds", "show", id][..], &["rounds", "show", id, "--round", "2"]] {
        let shown = String::from_utf8(world.dunlin(arguments).stdout).unwrap();
        for word in ["device-00003", failure.as_str().unwrap()] {
            assert!(shown.contains(word), "{shown} lacks {word}");
        }
    }
    let output = world.dunlin(&["rounds", "show", id, "--round", "3"]);
    assert_refused(&output, &["no round \"3\" that ended", "hint:"]);
}

/// What cannot be read, and what only the broker knows of the rest, in one answer; without a broker
/// the mistakes of the flags, at once.
fn refused_with_what_the_broker_knows(world: &World, plan: &str) {
    let text = "[spec]\nmodel = \"mlp\"\ndataset = \"blank\"\nrounds = \"many\"\n\
                [spec.begin_from]\njob = \"gone\"\n[spec.local]\nfrozen = [\"stem*\"]\nepohcs = 3";
    std::fs::write(plan, text).unwrap();
    let output = world.dunlin(&["train", "--plan", plan]);
    let of_fields = ["has 4 mistakes", "spec.rounds: ", "spec.local.epohcs: "];
    assert_refused(&output, &of_fields);
    assert_refused(&output, &["there is no job gone", "spec.local.frozen: no parameter"]);

    let words = "train --model none --dataset MINE --freeze x* --rounds many --epohcs 3 --quorum 0";
    let words: Vec<&str> = words.split(' ').collect();
    let of_flags = ["--dataset: ", "--rounds is many", "--epohcs: ", "--quorum is 0"];
    let output = world.dunlin(&words);
    assert_refused(&output, &of_flags);
    assert_refused(&output, &["5 mistakes", "no model none is registered"]);
    let server = format!("http://127.0.0.1:{}", free_port());
    let began = std::time::Instant::now();
    let output = run("dunlin", &[&["--server", &server], &words[..]].concat());
    assert!(began.elapsed().as_secs() < 3, "{:?}", began.elapsed());
    assert_refused(&output, &of_flags);
    assert_refused(&output, &["4 mistakes"]);
    let output = world.dunlin(&["train", "--continue", "gone", "--rounds", "many"]);
    assert_refused(&output, &["2 mistakes", "no job gone", "--rounds is many"]);
}
