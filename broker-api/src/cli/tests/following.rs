//! Jobs that are looked at while they run, and when they are over.

use super::*;

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
