//! Trainings that promise differential privacy, with real agents.

use serde_json::{Value, json};

use crate::story::fleet;

const BUDGET: &str = "noise_multiplier=2,delta=1e-5,epsilon_budget=3.5";

/// The job that `dunlin train` says it submitted.
async fn job_of(world: &tests::world::World, text: &str) -> Value {
    let id = text.split_whitespace().nth(1).unwrap().trim_end_matches(':');
    world.get(&format!("/v1/jobs/{id}")).await.body
}

/// Two rounds are within the budget, and the command says so, before and after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_training_registers_what_its_budget_is_enough_for() {
    let fleet = fleet(3).await;
    let world = &fleet.world;
    let train = ["train", "--dataset", "digits", "--model", "mlp", "--rounds", "9"];
    let all = ["--devices", "3", "--quorum", "3"];
    let masks = ["--secure-aggregation", "clip=17"];
    for (name, how, mode, planned) in [
        ("seen", &all[..], "central", json!(3)),
        (
            "own",
            &[&all[..], &["--no-evaluate", "--strategy", "fedmedian"]].concat(),
            "local",
            Value::Null,
        ),
        ("masked", &[&all[..], &masks].concat(), "central", json!(3)),
        ("moving", &[&all[..], &masks].concat(), "central", json!(3)),
        ("both", &[&all[..], &masks, &["--no-evaluate"]].concat(), "local", Value::Null),
    ] {
        let moves = name == "moving";
        let norm = if moves { "initial=1,rate=2,count_deviation=4" } else { "norm=1" };
        let privacy = format!("{mode}:{norm},{BUDGET}");
        let named = ["--register-as", name, "--privacy", &privacy];
        let output = world.dunlin(&[&train[..], how, &named[..]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
        assert!(text.contains("epsilon 3.5 is enough for 2"), "{text}");
        assert!(text.contains("the privacy budget is spent"), "{text}");
        assert!(text.contains(&format!("registered {name}:1")), "{text}");
        let job = job_of(world, &text).await;
        let rounds = job["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 2, "{job:#}");
        assert_eq!(job["result"]["enough"], "privacy_budget", "{job:#}");
        let norms = (&rounds[0]["privacy"]["norm"], &rounds[1]["privacy"]["norm"]);
        assert_eq!(norms.0 != norms.1, moves, "{job:#}");
        for (number, round) in (1..).zip(rounds) {
            assert_eq!(round["within"].is_number(), moves, "{round:#}");
            assert_eq!(round["privacy"]["rounds"], number, "{round:#}");
            assert_eq!(round["privacy"]["planned"], planned, "{round:#}");
            let loss = round["updates"][0][1]["loss"].as_f64().unwrap();
            assert_eq!(loss > 0.0, mode == "central", "{round:#}");
        }
    }
}

/// A promise that cannot be kept is refused with all that is wrong with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promise_that_cannot_be_kept_is_refused() {
    let fleet = fleet(1).await;
    let world = &fleet.world;
    let privacy = "central:norm=1,noise_multiplier=0.1,delta=1e-5,epsilon_budget=1";
    let train = ["train", "--dataset", "digits", "--model", "mlp", "--target-accuracy", "0.9"];
    let output = world.dunlin(&[&train[..], &["--privacy", privacy]].concat());
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    for words in ["epsilon_budget", "noise_multiplier 3.", "--target-accuracy", "--devices"] {
        assert!(text.contains(words), "{text} lacks {words}");
    }
}
