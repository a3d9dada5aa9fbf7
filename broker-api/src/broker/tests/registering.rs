//! Which models are registered.

use jobs::device::Hello;

use super::*;

#[tokio::test]
async fn an_operator_that_only_onnx_runtime_has_needs_a_device_that_has_it() {
    let world = World::new().await;
    let broker = world.broker().await;
    let mut model =
        models::onnx::parse(&models::zoo::build("mlp", [1, 2, 2], 3, 7).unwrap()).unwrap();
    let relu = model.graph.iter_mut().flat_map(|graph| &mut graph.node);
    relu.filter(|node| node.op_type == "Relu").for_each(|node| node.op_type = "Det".to_owned());
    let onnx = Bytes::from(model.to_bytes());
    let name = id("m");
    let register = || broker.register(&name, None, onnx.clone(), ModelConfig::default());
    let _plain = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    let error = register().await.unwrap_err();
    assert!(
        error.detail.contains("operator Det") && error.hint.contains("ONNX Runtime"),
        "{error}"
    );
    let engines = ["native", "ort-cpu"].map(str::to_owned).to_vec();
    let _other =
        Device::start_with(&world, Hello { engines, ..hello("d2") }, |_| Action::Work).await;
    joined(&broker, 2).await;
    let record = register().await.unwrap();
    assert_eq!(record.engine.as_deref(), Some("ort-cpu"));
    for _ in 0..4 {
        assert_eq!(infer(&broker, 5000).await.unwrap().device.as_str(), "d2");
    }
}

#[tokio::test]
async fn pictures_are_prepared_as_a_model_can_be_asked() {
    let world = World::new().await;
    let broker = world.broker().await;
    let onnx = Bytes::from(models::zoo::build("mlp", [1, 2, 2], 3, 7).unwrap());
    let register = |preprocessing: &str| {
        let preprocessing = serde_json::from_str(preprocessing).unwrap();
        let config = ModelConfig { preprocessing: Some(preprocessing), ..ModelConfig::default() };
        let (broker, onnx) = (broker.clone(), onnx.clone());
        async move { broker.register(&id("m"), None, onnx, config).await }
    };
    for (preprocessing, word) in [
        (r#"{"width": 0, "height": 2, "channels": 1}"#, "pixels"),
        (r#"{"width": 2, "height": 2, "channels": 1, "divisor": 0}"#, "divisor"),
        (r#"{"width": 2, "height": 2, "channels": 1, "std": [1, 2, 3]}"#, "std"),
    ] {
        let error = register(preprocessing).await.unwrap_err();
        assert_eq!(error.code, ApiCode::InvalidSpec, "{error}");
        assert!(error.detail.contains(word), "{error}");
    }
    register(r#"{"width": 2, "height": 2, "channels": 1}"#).await.unwrap();
    let picture = crate::request::picture("m", Bytes::from_static(b"x")).unwrap();
    let work = WorkSpec::Infer(picture.spec);
    let spec = JobSpec { selector: Selector::default(), deadline_ms: Millis(1000), work };
    assert_eq!(broker.check(&spec).await.unwrap().devices, []);
    // A newer version takes none.
    broker.register(&id("m"), None, onnx, ModelConfig::default()).await.unwrap();
    let error = broker.submit(spec, Bytes::from_static(b"x"), None, None).await.unwrap_err();
    assert!(error.detail.contains("takes no pictures"), "{error}");
}
