use super::*;
use jobs::id::{DeviceId, Digest, ModelName, ModelRef, ModelVersion};
use jobs::report::InferReport;
use serde_json::Value;

fn model() -> ModelQuery {
    ModelQuery { name: ModelName::parse("m").unwrap(), version: None }
}

fn parsed(text: &str) -> Result<OipRequest, ApiError> {
    parse(model(), &Bytes::copy_from_slice(text.as_bytes()), None)
}

fn answer() -> Answer {
    let header = |name: &str, datatype: &str, shape: &[u64], size| TensorHeader {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: shape.to_vec(),
        size: Size(size),
    };
    let mut outputs: Vec<u8> = [1.5_f32, -2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    outputs.extend(7_i64.to_le_bytes());
    Answer {
        device: DeviceId::parse("pi-1").unwrap(),
        report: InferReport {
            model: ModelRef {
                name: ModelName::parse("m").unwrap(),
                version: ModelVersion::parse("3").unwrap(),
                digest: Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap(),
            },
            engine: "tract".into(),
            engine_us: 12,
            refused_engines: Vec::new(),
            outputs: vec![header("y", "FP32", &[1, 2], 8), header("label", "INT64", &[1], 8)],
            classes: Vec::new(),
        },
        outputs: outputs.into(),
    }
}

fn tensors(request: &OipRequest) -> &[TensorHeader] {
    match &request.ask.spec.input {
        InferInput::Tensors { tensors } => tensors,
        InferInput::Picture => panic!("expected tensors"),
    }
}

#[test]
fn json_and_binary_tensors_are_joined_in_order() {
    let json = br#"{"inputs":[
        {"name":"a","shape":[2],"datatype":"UINT8","parameters":{"binary_data_size":2}},
        {"name":"b","shape":[1,2],"datatype":"INT8","data":[[3,-4]]},
        {"name":"c","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}}]}"#;
    let mut body = json.to_vec();
    body.extend([1, 2, 5]);
    let request = parse(model(), &body.into(), Some(json.len())).unwrap();
    assert_eq!(request.ask.binary[..], [1, 2, 3, 252, 5]);
    let names: Vec<&str> = tensors(&request).iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

#[test]
fn binary_tensors_alone_are_not_copied() {
    let json = br#"{"inputs":[{"name":"a","shape":[3],"datatype":"UINT8",
        "parameters":{"binary_data_size":3}}]}"#;
    let mut body = json.to_vec();
    body.extend([1, 2, 3]);
    let body = Bytes::from(body);
    let request = parse(model(), &body, Some(json.len())).unwrap();
    assert_eq!(request.ask.binary.as_ptr(), body[json.len()..].as_ptr());
}

#[test]
fn wrong_shapes_are_named() {
    let cases = [
        ("{", "line 1 column 1"),
        (r#"{"inputs":[]}"#, "inputs is empty"),
        (r#"{"input":[]}"#, "unknown field `input`, expected one of `id`, `parameters`"),
        (r#"{"inputs":[{"name":"a","shape":[1],"datatype":"FP32"}]}"#, "has no data"),
        (
            r#"{"inputs":[{"name":"a","shape":[3],"datatype":"FP32","data":[1,2]}]}"#,
            "needs 12 bytes, found 8",
        ),
        (r#"{"inputs":[{"name":"a","shape":[1],"datatype":"BYTES","data":[1]}]}"#, "BYTES"),
        (r#"{"inputs":[{"name":"a","shape":[-1],"datatype":"FP32","data":[1]}]}"#, "-1"),
        (
            r#"{"inputs":[{"name":"a","shape":[1],"datatype":"UINT8",
                "parameters":{"binary_data_size":9}}]}"#,
            "binary_data_size is 9, 0 bytes are left",
        ),
        (
            r#"{"inputs":[{"name":"a","shape":[1],"datatype":"UINT8","data":[1]}],
                "parameters":{"deadline_ms":0}}"#,
            "deadline_ms is 0",
        ),
        (
            r#"{"inputs":[{"name":"a","shape":[1],"datatype":"UINT8","data":[1]}],
                "parameters":{"deadline_ms":[5]}}"#,
            "invalid type: sequence, expected u64",
        ),
    ];
    for (body, expected) in cases {
        let error = parsed(body).unwrap_err();
        assert!(error.detail.contains(expected), "{error:?} lacks {expected:?}");
    }
    let error = parse(model(), &Bytes::from_static(b"{}"), Some(3)).unwrap_err();
    assert!(error.detail.contains("Inference-Header-Content-Length is 3"), "{error:?}");
    let json = r#"{"inputs":[{"name":"a","shape":[1],"datatype":"UINT8","data":[1]}]}"#;
    let error = parse(model(), &format!("{json}xyz").into(), Some(json.len())).unwrap_err();
    assert!(error.detail.contains("3 bytes follow"), "{error:?}");
}

#[test]
fn answers_hold_data_or_its_length() {
    let form = AnswerForm { id: Some("7".into()), ..AnswerForm::default() };
    let response = respond(&answer(), &form).unwrap();
    assert_eq!(response.json_length, None);
    let value: Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!(value["id"], "7");
    assert_eq!(value["model_version"], "3");
    assert_eq!(value["outputs"][0]["data"], json!([1.5, -2.0]));
    assert_eq!(value["outputs"][1]["data"], json!([7]));

    let form = AnswerForm {
        outputs: vec![("label".into(), Some(true)), ("y".into(), None)],
        ..AnswerForm::default()
    };
    let response = respond(&answer(), &form).unwrap();
    let (json, tail) = response.body.split_at(response.json_length.unwrap());
    let value: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(value["outputs"][0]["parameters"]["binary_data_size"], 8);
    assert_eq!(value["outputs"][1]["data"], json!([1.5, -2.0]));
    assert_eq!(tail, 7_i64.to_le_bytes());
}

#[test]
fn an_output_that_is_not_there_is_named() {
    let form = AnswerForm { outputs: vec![("z".into(), None)], ..AnswerForm::default() };
    let error = respond(&answer(), &form).unwrap_err();
    assert!(error.detail.contains("\"z\"") && error.hint.contains("y, label"), "{error:?}");
}
