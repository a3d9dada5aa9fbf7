//! What models are given, and how long is waited for what they say.

use super::*;

#[tokio::test]
async fn labels_may_have_commas() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let add = move |headers: HeaderMap| async move {
        let config = headers.get("dunlin-model-config").map_or(&b"null"[..], |it| it.as_bytes());
        let config: Value = serde_json::from_slice(config).unwrap();
        told.lock().unwrap().push(config);
        let record = json!({"name": "m", "version": "1", "digest": blob()["digest"],
            "onnx": blob(), "config": {}, "registered_at": 0});
        (StatusCode::CREATED, json_of(&record))
    };
    let server = broker(Router::new().route("/v1/models/{model}", post(add))).await;
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let (onnx, labels) = (file("m.onnx", "x"), file("labels", "tench, Tinca\nHai, weiß\n"));
    let config = file("config", r#"{"labels": ["none"], "parameters": 3}"#);
    for more in [
        vec!["--labels-file", &labels],
        vec!["--labels", "a,b", "--config", &config],
        vec!["--config", &config],
        vec![],
    ] {
        let words = [vec!["models", "push", "m", onnx.as_str()], more].concat();
        let (said, done) = dunlin(&server, &words).await;
        assert!(done.is_ok() && said.starts_with("registered m:1"), "{said} {done:?}");
    }
    let expected = [
        json!({"labels": ["tench, Tinca", "Hai, weiß"]}),
        json!({"labels": ["a", "b"], "parameters": 3}),
        json!({"labels": ["none"], "parameters": 3}),
        Value::Null,
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_job_is_waited_for_as_long_as_it_may_take() {
    let asked = Arc::new(Mutex::new(0));
    let count = asked.clone();
    let result = move || async move {
        let mut count = count.lock().unwrap();
        *count += 1;
        if *count < 3 {
            let error =
                ApiError::new(ApiCode::NotEnded, "job j is placed and has no result yet", "");
            return (StatusCode::CONFLICT, error.problem().to_json());
        }
        let answer = json!({"device": "pi-1", "engine": "native", "engine_us": 5, "outputs": []});
        (StatusCode::OK, answer.to_string().into_bytes())
    };
    let routes = Router::new()
        .route("/v1/jobs", post(|| async { (StatusCode::ACCEPTED, r#"{"id": "j"}"#) }))
        .route("/v1/jobs/{id}/result", get(result));
    let server = broker(routes).await;
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("x.json");
    std::fs::write(&input, "[[1]]").unwrap();
    let words =
        ["infer", "--model", "m", "--input", input.to_str().unwrap(), "--deadline-ms", "600000"];
    let (said, done) = dunlin(&server, &words).await;
    assert!(done.is_ok() && said.contains("device pi-1"), "{said} {done:?}");
    assert_eq!(*asked.lock().unwrap(), 3);
}
