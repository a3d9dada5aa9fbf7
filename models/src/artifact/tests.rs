//! Manifests and configs, stored and read again.

use super::*;

#[cfg(feature = "tract")]
const TINY: &[u8] = include_bytes!("../../../tests/conformance/tiny_cnn.onnx");

#[cfg(feature = "tract")]
#[test]
fn a_model_version_is_read_as_stored() {
    let mut config = ModelConfig { labels: vec!["a".into(), "b".into()], ..Default::default() };
    config.describe(&bytes::Bytes::from_static(TINY)).unwrap();
    assert_eq!((config.inputs.len(), config.outputs[0].shape[1], config.parameters), (1, 3, 55));
    let config_bytes = config.to_bytes();
    assert_eq!(ModelConfig::parse(&config_bytes).unwrap(), config);
    let manifest = Manifest::of(&config_bytes, TINY);
    assert_eq!(manifest.onnx().digest, digest::of(TINY));
    assert_eq!(manifest.onnx().size, 695);
    assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
}

/// A version's digest is the digest of these bytes, so they may never change by themselves.
#[test]
fn stored_bytes_are_fixed() {
    let bytes = Manifest::of(b"{}", b"onnx").to_bytes();
    let expected = concat!(
        r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","#,
        r#""artifactType":"application/vnd.dunlin.model.v1","config":{"#,
        r#""mediaType":"application/vnd.dunlin.model.config.v1+json","digest":"sha256:"#,
        r#"44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"#,
        r#""layers":[{"mediaType":"application/vnd.onnx","digest":"sha256:"#,
        r#"87e93f89f2be0db364e8be052f79f389e6c2da239831922e24513288af522a43","size":4}]}"#,
    );
    assert_eq!(String::from_utf8(bytes).unwrap(), expected);
}

#[test]
fn other_manifests_are_refused_by_field() {
    let stored = String::from_utf8(Manifest::of(b"{}", b"onnx").to_bytes()).unwrap();
    let digest = digest::of(b"onnx");
    let cases = [
        (ARTIFACT_TYPE, "application/other", "artifactType is \"application/other\""),
        (MANIFEST_MEDIA_TYPE, "application/vnd.oci.image.index.v1+json", "mediaType"),
        ("\"schemaVersion\":2", "\"schemaVersion\":1", "schemaVersion is \"1\", expected 2"),
        (digest.as_str(), "sha256:xyz", "layers is \"sha256:xyz\""),
        ("\"layers\":[", "\"layers\":[],\"other\":[", "layers is \"0\", expected 1"),
        ("\"size\":4", "\"size\":-4", "manifest is not what it should be"),
    ];
    for (part, other, expected) in cases {
        assert!(stored.contains(part));
        let refused = Manifest::parse(stored.replacen(part, other, 1).as_bytes()).unwrap_err();
        assert!(refused.to_string().contains(expected), "{refused}");
    }
    let annotated = stored.replacen('{', "{\"annotations\":{\"a\":\"b\"},", 1);
    assert!(Manifest::parse(annotated.as_bytes()).is_ok());
    let long = vec![b' '; DOCUMENT_BYTES_MAX + 1];
    assert!(matches!(Manifest::parse(&long), Err(ArtifactError::TooLarge { .. })));
}

#[test]
fn configs_that_cannot_be_used_are_refused() {
    let refused = |text: &str| ModelConfig::parse(text.as_bytes()).unwrap_err().to_string();
    assert!(refused(r#"{"lables": []}"#).contains("lables"));
    let preprocessing = r#"{"preprocessing": {"width": 32, "height": 32, "channels": 4}}"#;
    assert!(refused(preprocessing).contains("1 or 3 channels, found 4"));
    assert_eq!(ModelConfig::parse(b"{}").unwrap(), ModelConfig::default());
}
