//! What people take for a model.

use super::*;

#[test]
fn impostors_are_called_by_name() {
    let cases: [(&'static [u8], &str); 6] = [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:2f06\nsize 26454\n", "Git-LFS"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"{\"error\": \"not found\"}", "JSON"),
        (b"PK\x03\x04....", "PyTorch"),
        (b"\xff\xff\xff\xff", "damaged"),
    ];
    for (bytes, expected) in cases {
        let refused = describe(&Bytes::from_static(bytes)).unwrap_err().to_string();
        assert!(refused.starts_with("not an ONNX model: "), "{refused}");
        assert!(refused.contains(expected), "{refused}");
    }
}

#[test]
fn a_shape_that_no_tensor_has_is_refused() {
    let mut model =
        onnx::parse(include_bytes!("../../../../tests/conformance/tiny_cnn.onnx")).unwrap();
    for dims in [vec![1 << 40, 1 << 40], vec![-4]] {
        let graph = model.graph.as_mut().unwrap();
        graph.initializer[0].dims = dims;
        let refused = describe(&model.to_bytes().into()).unwrap_err().to_string();
        assert!(refused.contains("impossible shape"), "{refused}");
    }
}

#[test]
fn declarations_are_read_from_the_file() {
    let onnx = include_bytes!("../../../../tests/conformance/tiny_cnn.onnx");
    let Description { inputs, outputs, parameters } = describe(&Bytes::from_static(onnx)).unwrap();
    let info = |name: &str, shape: &[i64]| TensorInfo {
        name: name.to_owned(),
        datatype: "FP32".to_owned(),
        shape: shape.to_vec(),
    };
    assert_eq!(inputs, [info("picture", &[-1, 1, 8, 8])]);
    assert_eq!(outputs, [info("logits", &[-1, 3])]);
    assert_eq!(parameters, 4 * 9 + 4 + 4 * 3 + 3);
}
