//! Rounds that the broker judges on data of its own.

use serde_json::Value;

use crate::story::{assert_problem, fleet, training};

/// The broker has the data of the first device: what both say of the same parameters is the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_broker_judges_as_a_device_with_the_same_data_does() {
    let mut fleet = fleet(2).await;
    let mut job = training("mlp", 2);
    job["spec"]["evaluate"] = "broker".into();
    let refused = fleet.world.post("/v1/jobs", &job).await;
    assert_problem(&refused, 404, "unknown_dataset");

    fleet.world.broker.kill();
    let data = format!("digits={}", fleet.digits.share(1).display());
    fleet.world.restart_broker_with(&["--data", &data]).await;
    let world = &fleet.world;
    for device in ["device-1", "device-2"] {
        world.online(device, true).await;
    }
    let train = ["train", "--dataset", "digits", "--model", "mlp", "--rounds", "2", "--evaluate"];
    for who in ["both", "broker"] {
        let output = world.dunlin(&[&train[..], &[who]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text} {}", String::from_utf8_lossy(&output.stderr));
        let id = text.split_whitespace().nth(1).unwrap().trim_end_matches(':');
        let job = world.job(id).await;
        assert_eq!(job["spec"]["work"]["evaluate"], who, "{job:#}");
        let rounds = job["rounds"].as_array().unwrap();
        assert_eq!(rounds.len(), 2, "{job:#}");
        for round in rounds {
            let broker = without_duration(&round["judgement"]["judged"]);
            assert!(broker["examples"].as_u64() > Some(0), "{round:#}");
            let first = &round["evaluations"][0];
            if who == "both" {
                assert_eq!(first[0], "device-1");
                assert_eq!(without_duration(&first[1]), broker, "{round:#}");
            } else {
                assert!(first.is_null(), "{round:#}");
            }
        }
        let told = text.matches("devices: ").count();
        assert_eq!(told, if who == "both" { 2 } else { 0 }, "{text}");
        let examples = &rounds[1]["judgement"]["judged"]["examples"];
        assert!(text.contains(&format!("on {examples} test examples")), "{text}");
        let csv = world.dunlin(&["rounds", "export", id]);
        let csv = String::from_utf8(csv.stdout).unwrap();
        assert_eq!(csv.matches(",broker,").count(), 2, "{csv}");
    }
}

fn without_duration(judged: &Value) -> Value {
    let mut judged = judged.clone();
    let judgement = judged.as_object_mut().unwrap_or_else(|| panic!("nothing was judged"));
    judgement.remove("duration_ms");
    judged
}
