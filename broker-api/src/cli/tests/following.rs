//! Jobs that are looked at while they run, and when they are over.

use super::*;

#[tokio::test]
async fn a_running_job_is_watched_from_where_it_is() {
    let record = |number, accuracy| {
        let outcome = serde_json::from_value(outcome(number, accuracy)).unwrap();
        serde_json::to_value(crate::history::RoundRecord::of(&outcome)).unwrap()
    };
    let list = json!({"job": "j", "rounds": [record(1, 0.5)]});
    let rounds = get(move || async move { json_of(&list) });
    let routes = training("succeeded", Value::Null, Arc::default());
    let server = broker(routes.route("/v1/jobs/{id}/rounds", rounds)).await;
    let (text, done) = dunlin(&server, &["rounds", "show", "j", "--watch"]).await;
    assert_eq!(done, Ok(()), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], train::live::HEADING);
    assert_eq!(lines[1], "    1    0.5000    50.0 %      1/1     2.0 KB     1.5 s     1.5 s");
    assert_eq!(lines[2], "    2    0.5000    87.5 %      1/1     2.0 KB     1.5 s         -");
    assert!(lines[4].starts_with("registered digits:1 (2 rounds"), "{text}");
    let (text, _) = dunlin(&server, &["--json", "rounds", "show", "j", "--watch"]).await;
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.len(), 4, "all events: {text}");
}

#[tokio::test]
async fn the_notes_of_a_job_are_shown() {
    let mut shown = job("j", "running", &Value::Null);
    shown["notes"] = json!(["moments begin at zero"]);
    let show = get(move || async move { json_of(&shown) });
    let server = broker(Router::new().route("/v1/jobs/{id}", show)).await;
    let (text, _) = dunlin(&server, &["jobs", "show", "j"]).await;
    assert!(text.contains("note     moments begin at zero"), "{text}");
}

#[tokio::test]
async fn a_job_that_ran_out_of_time_is_gone_on_with() {
    let failure = json!({"code": "deadline_exceeded", "message": "over after 2 of 9 rounds"});
    let server = broker(training("failed", failure, Arc::default())).await;
    let words = ["train", "--dataset", "digits", "--model", "mlp"];
    let error = dunlin(&server, &words).await.1.unwrap_err();
    assert!(error.hint.contains("'dunlin train --continue "), "{error:?}");
}
