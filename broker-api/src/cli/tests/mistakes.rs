//! What is wrong with a training that is typed, told at once, before anything is asked for.

use super::*;

#[tokio::test]
async fn all_mistakes_of_flags_are_told_at_once_by_their_names() {
    let check = || async {
        let said = ApiError::new(ApiCode::InvalidSpec, "no device has a data set d", "");
        (StatusCode::BAD_REQUEST, ApiError::all(vec![said]).unwrap().problem().to_json())
    };
    let server = broker(Router::new().route("/v1/jobs", post(check))).await;
    let words = "train --dataset d --model mlp --rounds x --epochs=y --strategy foo --seed -1 \
        --selection bar --learning-rate -1 --quorum 3 --devices 2 --epohcs 3 --deadline 5y \
        --augment flip,spin --no-evaluate=3 --batch-size -2";
    let words: Vec<&str> = words.split_whitespace().collect();
    let (_, done) = dunlin(&server, &words).await;
    let error = done.unwrap_err();
    let mut mistakes: Vec<&str> = error.detail.lines().skip(1).map(str::trim).collect();
    mistakes.sort_unstable();
    let expected = [
        "--augment: \"spin\" is no augmentation: expected flip, pad_crop or cutout",
        "--batch-size is -2: expected a whole number, 0 to 4294967295",
        "--deadline is 5y: expected a time such as 30s, 10m or 2h",
        "--epochs is y: expected a whole number, 0 to 4294967295",
        "--epohcs: there is no such flag; --epochs is similar",
        "--learning-rate is -1: expected above 0, finite",
        "--no-evaluate: unexpected value '3' for '--no-evaluate' found; no more were expected",
        "--quorum is 3: expected 1 to 2",
        "--rounds is x: expected a whole number, 0 to 4294967295",
        "--seed is -1: expected a whole number, 0 to 18446744073709551615",
        "--selection: \"bar\" is no selection: expected random",
        "--strategy: \"foo\" is no strategy",
        "no device has a data set d",
    ];
    assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
    for (mistake, expected) in mistakes.iter().zip(expected) {
        assert!(mistake.starts_with(expected), "{mistake:?}: {expected:?}");
    }
    assert_eq!((error.code, error.hint.as_str()), (failure::USAGE, "see 'dunlin train --help'"));
    // What a job cannot be without is a mistake as others are, unless it cannot be read.
    let (_, done) = dunlin(&server, &["train", "--dataset", "D", "--rounds", "0"]).await;
    let detail = done.unwrap_err().detail;
    let mistakes: Vec<&str> = detail.lines().skip(1).map(str::trim).collect();
    assert!(mistakes[0].starts_with("--dataset: "), "{mistakes:?}");
    let missing = "--model: missing, expected a registered model or a family";
    let rounds = "--rounds is 0: expected 1 to 10000";
    assert_eq!(mistakes[1..], [missing, rounds, "no device has a data set d"]);
}

/// They are no numbers of JSON, which has null in their place: as if the flag were not there.
#[tokio::test]
async fn numbers_that_are_not_finite_are_mistakes() {
    let check = || async { (StatusCode::OK, r#"{"devices":[]}"#) };
    let server = broker(Router::new().route("/v1/jobs", post(check))).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("job.toml");
    let plan = "[spec]\nmodel = \"m\"\ndataset = \"d\"\ntarget_accuracy = nan\n\
        [spec.local]\nmomentum = inf\n[spec.participation]\nover_selection = nan\n";
    std::fs::write(&file, plan).unwrap();
    let of_file = format!("--plan {}", file.display());
    let flags = "--model m --dataset d";
    for (from, words, expected) in [
        (
            flags,
            "--learning-rate 1e300",
            &["--learning-rate is 1e300: expected a finite number"][..],
        ),
        (
            flags,
            "--target-accuracy nan --gradient-norm-max=inf",
            &[
                "--gradient-norm-max is inf: expected a finite number",
                "--target-accuracy is nan: expected a finite number",
            ],
        ),
        (
            flags,
            "--schedule step:10:nan --normalization nan/1 --strategy fedadam:tau=inf",
            &[
                "--normalization: mean: expected a finite number",
                "--schedule: factor: expected a finite number",
                "--strategy: \"fedadam:tau=inf\" is no strategy: tau is inf, not a finite number",
            ],
        ),
        (
            of_file.as_str(),
            "--over-selection 0.5 --devices 3",
            &[
                "spec.local.momentum: expected a finite number",
                "spec.target_accuracy: expected a finite number",
            ],
        ),
    ] {
        let words = format!("train {from} {words} --dry-run");
        let words: Vec<&str> = words.split(' ').collect();
        let error = dunlin(&server, &words).await.1.unwrap_err();
        let mut mistakes = error.errors;
        mistakes.sort_unstable();
        assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
        for (mistake, expected) in mistakes.iter().zip(expected) {
            assert!(mistake.starts_with(expected), "{mistake:?}: {expected:?}");
        }
    }
}

/// What is not a mistake of its own, and what the broker is asked beside: the rest as it was typed.
#[tokio::test]
async fn mistyped_flags_are_asked_as_they_were_typed() {
    let asked: Arc<Mutex<Value>> = Arc::default();
    let keep = Arc::clone(&asked);
    let check = move |body: String| async move {
        let said = crate::request::training::of_body(body.as_bytes()).problems;
        let error = ApiError::new(ApiCode::InvalidBody, "", "");
        *keep.lock().unwrap() = serde_json::from_str(&body).unwrap();
        let error = ApiError { errors: said, ..error };
        (StatusCode::BAD_REQUEST, error.problem().to_json())
    };
    let server = broker(Router::new().route("/v1/jobs", post(check))).await;
    for (words, expected, fields) in [
        (
            "--model MLP --loss l1 --epohcs 3 --freeze x",
            &["--model: ", "--loss: ", "--epohcs: ", "--dataset: missing"][..],
            json!({"model": "MLP", "dataset": null, "rounds": 5,
                "local": {"loss": "l1", "epochs": null, "frozen": ["x"]}}),
        ),
        // The model and the data set come from there.
        (
            "--continue a/b --rounds 0",
            &["--continue: ", "--rounds is 0"],
            json!({"begin_from": "a/b", "model": null, "dataset": null, "rounds": 0}),
        ),
    ] {
        let words: Vec<&str> = ["train"].into_iter().chain(words.split(' ')).collect();
        let error = dunlin(&server, &words).await.1.unwrap_err();
        let mut mistakes = error.errors;
        assert_eq!(mistakes.len(), expected.len(), "{mistakes:#?}");
        for words in expected {
            mistakes.retain(|mistake| !mistake.starts_with(words));
        }
        assert_eq!(mistakes, [""; 0]);
        assert_eq!(asked.lock().unwrap()["spec"], fields);
    }
}

#[tokio::test]
async fn a_broker_that_does_not_answer_is_not_waited_for() {
    let check = || async { std::future::pending::<StatusCode>().await };
    let routes = Router::new().route("/v1/jobs", post(check)).route("/v1/jobs/{id}", get(check));
    let server = broker(routes).await;
    for from in [&["--dataset", "d", "--model", "m"][..], &["--continue", "j"]] {
        let began = std::time::Instant::now();
        let words = [&["train", "--rounds", "x"], from].concat();
        let error = dunlin(&server, &words).await.1.unwrap_err();
        assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
        let rounds = "--rounds is x: expected a whole number, 0 to 4294967295";
        assert_eq!((error.code, error.detail.as_str()), (failure::USAGE, rounds));
    }
}

#[tokio::test]
async fn what_only_the_broker_finds_is_told_by_the_names_of_flags() {
    // What a model does not fit is refused as what is wrong with the request is.
    let shape = ApiCode::Job(::jobs::report::FailureCode::ShapeMismatch);
    let check = move || async move {
        let error = |detail: &str| ApiError::new(shape, detail, "hint");
        let said = vec![error("work.evaluate is both: expected"), error("no data set d")];
        (StatusCode::UNPROCESSABLE_ENTITY, ApiError::all(said).unwrap().problem().to_json())
    };
    let routes = Router::new().route("/v1/jobs/{id}", put(check)).route("/v1/jobs", post(check));
    let server = broker(routes).await;
    for flag in ["--detach", "--dry-run"] {
        let words = ["train", "--dataset", "d", "--model", "mlp", "--evaluate", "both", flag];
        let error = dunlin(&server, &words).await.1.unwrap_err();
        let detail = "2 mistakes:\n  --evaluate is both: expected\n  no data set d";
        assert_eq!((error.detail.as_str(), error.hint.as_str()), (detail, "hint"));
        assert_eq!(error.code, failure::USAGE, "nothing was begun");
    }
}

#[tokio::test]
async fn a_plan_is_submitted_or_refused_before_anything_is_asked() {
    let said: Arc<Mutex<Option<Value>>> = Arc::default();
    let keep = Arc::clone(&said);
    let routes = Router::new().route(
        "/v1/jobs/{id}",
        put(move |Path(id): Path<String>, body: String| async move {
            *keep.lock().unwrap() = Some(serde_json::from_str(&body).unwrap());
            json_of(&job(&id, "accepted", &Value::Null))
        }),
    );
    let check = |request: Request| async move {
        assert_eq!(request.uri().query(), Some("dry_run=true"));
        let error = |detail: &str| ApiError::new(ApiCode::InvalidSpec, detail, "");
        let said = error("work.local.momentum is 2: expected 0 to below 1");
        let both = ApiError::all(vec![said, error("no device has a data set d")]).unwrap();
        (StatusCode::BAD_REQUEST, both.problem().to_json())
    };
    let routes = routes.route("/v1/jobs", post(check));
    let server = broker(routes).await;
    let folder = tempfile::tempdir().unwrap();
    let plan = folder.path().join("job.toml");
    let words = ["train", "--detach", "--rounds", "9", "--plan", plan.to_str().unwrap()];
    let (_, done) = dunlin(&server, &words).await;
    assert!(done.unwrap_err().detail.contains("job.toml: "), "there is no such file");
    std::fs::write(&plan, "[spec]\nmodel = \"mlp\"\n[spec.local]\nmomentum = 2").unwrap();
    let (_, done) = dunlin(&server, &words).await;
    let error = done.unwrap_err();
    assert_eq!(error.code, failure::USAGE);
    let mistakes: Vec<&str> = error.detail.lines().skip(1).map(str::trim).collect();
    let momentum = "spec.local.momentum is 2: expected 0 to below 1";
    let dataset = "spec.dataset: missing, expected a name, or --dataset";
    assert_eq!(mistakes, [dataset, momentum, "no device has a data set d"]);
    assert_eq!(*said.lock().unwrap(), None);
    let wrong = "[spec]\nmodel = \"mlp\"\ndataset = \"d\"\nseed = -1\n[spec.local]\nmomentum = 2";
    std::fs::write(&plan, wrong).unwrap();
    let (_, done) = dunlin(&server, &words).await;
    let detail = done.unwrap_err().detail;
    let mistakes: Vec<&str> = detail.lines().skip(1).map(str::trim).collect();
    assert!(mistakes[0].starts_with("spec.seed: "), "{mistakes:?}");
    assert_eq!(mistakes[1..], [momentum, "no device has a data set d"]);
    assert_eq!(*said.lock().unwrap(), None);
    std::fs::write(&plan, "[spec]\nmodel = \"mlp\"\ndataset = \"digits\"\nrounds = 3").unwrap();
    let (_, done) = dunlin(&server, &words).await;
    assert_eq!(done, Ok(()));
    let body = said.lock().unwrap().take().unwrap();
    assert_eq!((&body["kind"], &body["selector"]), (&json!("train"), &json!("")));
    assert_eq!((&body["spec"]["dataset"], &body["spec"]["rounds"]), (&json!("digits"), &json!(9)));
}
