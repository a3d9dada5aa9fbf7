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
async fn what_a_job_waits_for_and_its_notes_are_shown() {
    let waiting = json!({"round": 3, "reason": "waiting for devices: 1 of quorum 2 eligible (x offline)",
        "since": 5, "until": 60_005});
    let mut shown = job("j", "running", &Value::Null);
    shown["waiting"] = waiting.clone();
    shown["notes"] = json!(["moments begin at zero"]);
    let list = json!({"job": "j", "waiting": waiting, "rounds": []});
    let mut told = waiting;
    told["event"] = json!("waiting");
    let events = event(1, &told)
        + &event(
            2,
            &json!({"event": "ended", "state": "cancelled", "failure": null, "result": null}),
        );
    let stream = || async move { ([(header::CONTENT_TYPE, "text/event-stream")], events) };
    let routes = Router::new()
        .route("/v1/jobs/{id}", get(move || async move { json_of(&shown) }))
        .route("/v1/jobs/{id}/rounds", get(move || async move { json_of(&list) }))
        .route("/v1/jobs/{id}/events", get(stream));
    let server = broker(routes).await;
    let reason = "round 3: waiting for devices: 1 of quorum 2 eligible (x offline), ";
    let (text, _) = dunlin(&server, &["jobs", "show", "j"]).await;
    assert!(text.contains(&format!("waits    {reason}")), "{text}");
    assert!(text.contains("note     moments begin at zero"), "{text}");
    let (text, _) = dunlin(&server, &["rounds", "show", "j"]).await;
    assert!(text.starts_with(&format!("no round has ended yet\n{reason}")), "{text}");
    let (text, _) = dunlin(&server, &["rounds", "show", "j", "--watch"]).await;
    assert!(text.lines().nth(1).unwrap().ends_with(&format!("  {reason}60.0 s at most")), "{text}");
}

#[tokio::test]
async fn a_job_that_ran_out_of_time_is_gone_on_with() {
    let failure = json!({"code": "deadline_exceeded", "message": "over after 2 of 9 rounds"});
    let server = broker(training("failed", failure, Arc::default())).await;
    let words = ["train", "--dataset", "digits", "--model", "mlp"];
    let error = dunlin(&server, &words).await.1.unwrap_err();
    assert!(error.hint.contains("'dunlin train --continue "), "{error:?}");
}
