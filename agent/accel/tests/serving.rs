//! Frames, refusals, and ends.

use models::engine::frames::{Cause, Header, Reply, Request};
use models::tensor::{Data, Tensor};
use models::train::{Loss, Trainer};
use models::zoo;

use super::conformance::{examples, forms, reference};
use super::process::{Helper, command, engines, settings, small};

fn input(values: Vec<f32>) -> Vec<Tensor> {
    vec![Tensor::f32(&[values.len() / 192, 3, 8, 8], values).unwrap()]
}

#[test]
fn models_are_loaded_run_and_forgotten() {
    for engine in &engines() {
        let Some(settings) = settings(engine) else { continue };
        let mut helper = Helper::start(engine, &settings);
        let onnx = zoo::build("resnet8", [3, 8, 8], 4, 9).unwrap();
        let onnx = Trainer::for_evaluation(&onnx, Loss::default()).unwrap().to_folded_onnx();
        let Reply::Loaded { inputs, outputs } = helper.load(7, &onnx) else { panic!("{engine}") };
        assert_eq!(
            (inputs[0].shape.as_slice(), inputs[0].datatype.as_str()),
            (&[-1, 3, 8, 8][..], "FP32")
        );
        assert_eq!((outputs[0].shape.as_slice(), outputs.len()), (&[-1, 4][..], 1));
        for count in [1, 6, 70] {
            let values = examples(count, 192);
            let expected = reference(&onnx, &values);
            let (answered, _) = helper.run(7, &input(values)).unwrap();
            assert_eq!(answered[0].shape(), [count, 4]);
            let found = accel::probe::difference(answered[0].as_f32().unwrap(), &expected);
            assert!(found <= accel::probe::tolerance(engine), "{engine}, {count}: {found}");
        }
        assert_eq!(helper.ask(&Request::Unload { session: 7 }, &[]).0, Reply::Unloaded);
        let refused = helper.run(7, &input(examples(1, 192))).unwrap_err();
        assert!(refused.contains("session 7 is not loaded"), "{refused}");
        assert_eq!(helper.end().0, Some(0));
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_the_helper_goes_on() {
    for engine in &engines() {
        let Some(settings) = settings(engine) else { continue };
        let mut helper = Helper::start(engine, &settings);
        for bad in [&b"\x89PNG"[..], b"", &[0xff; 100]] {
            let reply = helper.load(1, bad);
            assert!(
                matches!(&reply, Reply::Refused { reason, .. } if !reason.is_empty()),
                "{reply:?}"
            );
        }
        assert!(matches!(helper.load(1, &small()), Reply::Loaded { .. }));
        let values = examples(1, 192);
        for (inputs, said) in [
            (Vec::new(), "1 inputs"),
            (vec![Tensor::f32(&[1, 3, 64], values.clone()).unwrap()], "[-1, 3, 8, 8]"),
            (vec![Tensor::new(&[192], Data::U8(vec![0; 192])).unwrap()], "UINT8"),
            (vec![Tensor::f32(&[0, 3, 8, 8], Vec::new()).unwrap()], "[0, 3, 8, 8]"),
        ] {
            let refused = helper.run(1, &inputs).unwrap_err();
            assert!(refused.contains(said), "{engine}: {refused}");
        }
        let short = Header { datatype: "FP32".to_owned(), shape: vec![1, 3, 8, 8] };
        let (reply, _) = helper.ask(&Request::Run { session: 1, inputs: vec![short] }, &[0; 12]);
        assert!(matches!(&reply, Reply::Refused { reason, .. } if reason.contains("12 bytes")));
        assert_eq!(helper.run(1, &input(values)).unwrap().0[0].shape(), [1, 4]);
        assert_eq!(helper.end().0, Some(0));
    }
}

/// A path of drivers that names none stands for a machine without a GPU.
#[test]
fn only_a_model_that_passes_asks_for_the_adapter() {
    let none = ["VK_ICD_FILENAMES", "VK_DRIVER_FILES"].map(|name| (name, "/nowhere".to_owned()));
    let mut helper = Helper::start("webgpu", &none);
    let refused = |reply| {
        let Reply::Refused { reason, cause } = reply else { panic!("it is no refusal") };
        (reason, cause)
    };
    for (name, onnx) in forms::outside() {
        let (reason, cause) = refused(helper.load(1, &onnx));
        assert!(reason.contains(&name), "{reason}");
        assert_eq!(cause, Cause::Operator);
    }
    for _ in 0..2 {
        let (reason, cause) = refused(helper.load(1, &small()));
        assert!(reason.contains("no GPU is reached through Vulkan"), "{reason}");
        // It may be there another time.
        assert_eq!(cause, Cause::Other);
    }
    assert_eq!(helper.end().0, Some(0));
}

#[test]
fn onnx_runtime_tells_nobody_and_keeps_nothing() {
    let Some(mut settings) = settings("ort-cpu") else { return };
    let folder = tempfile::tempdir().unwrap();
    for home in ["HOME", "XDG_CACHE_HOME", "TMPDIR"] {
        settings.push((home, folder.path().display().to_string()));
    }
    let mut helper = Helper::start("ort-cpu", &settings);
    assert!(matches!(helper.load(1, &small()), Reply::Loaded { .. }));
    helper.run(1, &input(examples(1, 192))).unwrap();
    assert_eq!(helper.end().0, Some(0));
    let kept: Vec<_> = std::fs::read_dir(folder.path()).unwrap().flatten().collect();
    assert!(kept.is_empty(), "{kept:?}");
}

#[test]
fn bytes_that_are_no_frames_end_the_helper_with_a_message() {
    let Some(settings) = settings("ort-cpu") else { return };
    let mut helper = Helper::start("ort-cpu", &settings);
    helper.write(b"GET / HTTP/1.1\r\n\r\n");
    let (code, said) = helper.end();
    assert!(code == Some(1) && said.contains("expected at most"), "{code:?} {said}");
    let mut helper = Helper::start("ort-cpu", &settings);
    helper.write(&[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b'{', b'}']);
    let (code, said) = helper.end();
    assert!(code == Some(1) && said.contains("no message"), "{code:?} {said}");
    // The pipe is closed within a frame.
    let mut helper = Helper::start("ort-cpu", &settings);
    helper.write(&[2, 0, 0]);
    let (code, said) = helper.end();
    assert!(code == Some(1) && said.contains("pipe"), "{code:?} {said}");
}

#[test]
fn wrong_usage_is_told() {
    for arguments in [&[][..], &["serve"], &["probe", "ort-cpu", "more"], &["help"]] {
        let output = command(arguments, &[]).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage"));
    }
    let output = command(&["serve", "abacus"], &[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("ort-cpu"));
    assert!(output.stdout.is_empty());
}
