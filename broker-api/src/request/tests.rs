use super::*;
use models::artifact::{ModelConfig, TensorInfo};

fn info(shape: &[i64]) -> TensorInfo {
    TensorInfo { name: "x".to_owned(), datatype: "FP32".to_owned(), shape: shape.to_vec() }
}

fn header(shape: &[u64]) -> InferInput {
    let size = Size(shape.iter().product::<u64>() * 4);
    let tensor = TensorHeader {
        name: String::new(),
        datatype: "FP32".to_owned(),
        shape: shape.to_vec(),
        size,
    };
    InferInput::Tensors { tensors: vec![tensor] }
}

fn shape_of(input: &InferInput) -> Vec<u64> {
    match input {
        InferInput::Tensors { tensors } => tensors[0].shape.clone(),
        InferInput::Picture => panic!("expected tensors"),
    }
}

#[test]
fn nested_array_is_one_fp32_tensor() {
    let body = br#"{"model":"digits","input":[[1,2.5],[3,-4]],"top":2,"deadline_ms":500}"#;
    let request = infer(body).unwrap();
    assert_eq!(request.spec.model.name.as_str(), "digits");
    assert_eq!((request.spec.top, request.deadline), (2, Some(Millis(500))));
    assert_eq!(shape_of(&request.spec.input), [2, 2]);
    let expected: Vec<u8> =
        [1.0_f32, 2.5, 3.0, -4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(request.binary, expected);
}

#[test]
fn numbers_beyond_a_datatype_are_told() {
    for (datatype, number) in
        [("FP32", "1e39"), ("FP32", "-3.5e38"), ("INT32", "2147483648"), ("UINT8", "256")]
    {
        let body = format!(
            r#"{{"model":"m","inputs":[{{"shape":[2],"datatype":"{datatype}","data":[0,{number}]}}]}}"#
        );
        let error = infer(body.as_bytes()).unwrap_err();
        assert!(error.detail.contains(&format!("which is no {datatype}")), "{error}");
        assert!(error.detail.contains("element 1"), "{error}");
    }
    let error = infer(br#"{"model":"m","input":[[1e39]]}"#).unwrap_err();
    assert!(error.detail.contains("which is no FP32"), "{error}");
    let largest = infer(br#"{"model":"m","input":[3.4028235e38]}"#).unwrap();
    assert_eq!(largest.binary, f32::MAX.to_le_bytes()[..]);
}

#[test]
fn protocol_tensors_keep_their_datatype() {
    let body = br#"{"model":{"name":"m","version":"3"},"inputs":[
        {"name":"a","shape":[2],"datatype":"INT64","data":[9007199254740993,-1]},
        {"name":"b","shape":[1,2],"datatype":"UINT8","base64":"/wE="}]}"#;
    let request = infer(body).unwrap();
    assert_eq!(request.spec.model.version.unwrap().as_str(), "3");
    let mut expected = 9_007_199_254_740_993_i64.to_le_bytes().to_vec();
    expected.extend((-1_i64).to_le_bytes());
    expected.extend([255, 1]);
    assert_eq!(request.binary, expected);
}

#[test]
fn pictures_come_as_base64_or_as_the_body() {
    let request = infer(br#"{"model":"m:1","picture":"AAEC"}"#).unwrap();
    assert_eq!((request.spec.input, &request.binary[..]), (InferInput::Picture, &[0, 1, 2][..]));
    let request = picture("m:1", Bytes::from_static(&[7])).unwrap();
    assert_eq!(request.spec.model.version.unwrap().as_str(), "1");
    assert!(picture("m:1", Bytes::new()).is_err());
}

#[test]
fn wrong_requests_say_what_is_wrong() {
    let cases: [(&[u8], &str); 10] = [
        (b"not json", "expected"),
        (br#"{"input":[1]}"#, "model"),
        (br#"{"model":"m"}"#, "no input"),
        (br#"{"model":"m","input":[[1,2],[3]]}"#, "ragged"),
        (br#"{"model":"m","input":[1,[2]]}"#, "ragged"),
        (br#"{"model":"m","input":[[1],2]}"#, "different levels"),
        (br#"{"model":"m","input":[true]}"#, "element 0 is true"),
        (
            br#"{"model":"m","inputs":[{"name":"a","shape":[3],"datatype":"FP32","data":[1]}]}"#,
            "needs 12 bytes, found 4",
        ),
        (
            br#"{"model":"m","inputs":[{"name":"a","shape":[1],"datatype":"INT8","data":[300]}]}"#,
            "element 0 is 300",
        ),
        (br#"{"model":"M","input":[1]}"#, "model name \"M\""),
    ];
    for (body, expected) in cases {
        let error = infer(body).unwrap_err();
        assert!(error.detail.contains(expected), "{error:?} lacks {expected:?}");
    }
}

#[test]
fn examples_get_the_shape_of_the_model() {
    let declared = ModelConfig { inputs: vec![info(&[-1, 1, 28, 28])], ..ModelConfig::default() };
    for shape in [&[1, 28, 28][..], &[784], &[28, 28], &[1, 1, 28, 28]] {
        assert_eq!(shape_of(&fit(header(shape), &declared).unwrap()), [1, 1, 28, 28]);
    }
    assert_eq!(shape_of(&fit(header(&[5, 1, 28, 28]), &declared).unwrap()), [5, 1, 28, 28]);
    let error = fit(header(&[3, 32, 32]), &declared).unwrap_err();
    assert!(error.detail.contains("[3, 32, 32]") && error.detail.contains("[-1, 1, 28, 28]"));
}

#[test]
fn a_model_may_declare_more_than_there_is_memory() {
    let inputs = vec![info(&[-1, 1 << 40, 1 << 40])];
    let declared = ModelConfig { inputs, ..ModelConfig::default() };
    let error = fit(header(&[4]), &declared).unwrap_err();
    assert!(error.detail.contains("has shape [4]"), "{error}");
}

#[test]
fn a_picture_is_for_a_model_that_takes_pictures() {
    let error = fit(InferInput::Picture, &ModelConfig::default()).unwrap_err();
    assert!(error.detail.contains("takes no pictures"), "{error}");
    let preprocessing = serde_json::from_str(r#"{"width":8,"height":8,"channels":1}"#).unwrap();
    let config = ModelConfig { preprocessing: Some(preprocessing), ..ModelConfig::default() };
    assert_eq!(fit(InferInput::Picture, &config).unwrap(), InferInput::Picture);
}

#[test]
fn training_jobs_get_their_defaults() {
    let body = br#"{"kind":"train","model":"mlp","dataset":"digits","rounds":3}"#;
    let (spec, binary) = job(None, body).unwrap();
    assert!(binary.is_empty());
    assert_eq!(spec.deadline_ms, TRAIN_DEADLINE);
    let WorkSpec::Train(train) = spec.work else { panic!("expected training") };
    assert_eq!((train.rounds, train.local.epochs, train.model.name.as_str()), (3, 1, "mlp"));
    let error = job(Some(JobKind::Train), br#"{"model":"mlp","rounds":3}"#).unwrap_err();
    assert!(error.detail.contains("dataset"), "{error:?}");
    let error = job(Some(JobKind::Telemetry), br#"{"other":1}"#).unwrap_err();
    assert!(error.detail.contains("other"), "{error:?}");
    assert_eq!(job(Some(JobKind::Telemetry), b"").unwrap().0.work, WorkSpec::Telemetry);
}
