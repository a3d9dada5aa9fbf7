//! Every engine against right answers: the ONNX project's own tests, and the models of
//! `../shared/data/models` as ONNX Runtime answers them; an agent too, on all of their images.
//!
//! Without `../shared` the tests of its models print so and pass.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program: it says what it measured and stops at the first surprise"
)]

use models::engine::{Engine, EngineError, Session, native::Native, tract::Tract};
use models::graph::GraphError;
use models::tensor::Tensor;

mod cases;
mod compare;
mod engines;
mod helper;
mod onnx;
mod through_agent;
mod tolerance;

use cases::Case;
use compare::{Score, batches};
use engines::Contender;

/// Every how many-th image an engine is asked for.
const STEP: usize = 8;

#[test]
fn tract_answers_as_onnx_runtime() {
    check_all(&engines::tract());
}

#[test]
fn native_answers_as_onnx_runtime() {
    check_all(&engines::native());
}

#[test]
fn onnx_runtime_answers_as_it_did() {
    check_all(&engines::onnx_runtime());
}

#[test]
fn cuda_answers_as_onnx_runtime() {
    engines::cuda().iter().for_each(check_all);
}

#[test]
fn webgpu_answers_as_onnx_runtime() {
    engines::webgpu().iter().for_each(check_all);
}

fn check_all(Contender { engine, floors, .. }: &Contender) {
    let (Some(cifar10), Some(mnist)) = (cases::cifar10(), cases::mnist()) else { return };
    let cases: Vec<&Case> = cifar10.iter().chain(&mnist).collect();
    let mut answered = 0;
    let mut problems = Vec::new();
    for case in &cases {
        match engine.load(&case.onnx) {
            Ok(session) => {
                if engine.name() == "ort-cpu" && case.is_int8() && saturates() {
                    println!("ort-cpu {:<34} NOT compared: no VNNI here", case.name);
                } else {
                    problems.extend(check(engine.name(), session.as_ref(), case).err());
                }
                answered += 1;
            }
            Err(refused) => println!("{} {:<34} {refused}", engine.name(), case.name),
        }
    }
    println!("{} answers {answered} of {} models", engine.name(), cases.len());
    if answered < floors.models {
        problems.push(format!("{} answers {answered}, {} did", engine.name(), floors.models));
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// Whether ONNX Runtime's sums of 8-bit products are cut at 16 bits, which gives other answers than
/// the expected ones: on `x86_64` without VNNI.
///
/// Source: "Quantize ONNX Models" of ONNX Runtime's documentation, on S8S8 and reduced ranges.
fn saturates() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        !std::is_x86_feature_detected!("avx512vnni") && !std::is_x86_feature_detected!("avxvnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Prints how an engine answers a case; what is wrong with that.
fn check(engine: &str, session: &dyn Session, case: &Case) -> Result<(), String> {
    let mut score = Score::new(case);
    for (indices, input) in batches(case, STEP) {
        let outputs = session.run(std::slice::from_ref(&input));
        let outputs = outputs.map_err(|error| format!("{engine} {}: {error}", case.name))?;
        score.add(&indices, outputs[0].as_f32().unwrap());
    }
    println!("{engine} {score}");
    if score.is_near() { Ok(()) } else { Err(format!("{engine} {score}")) }
}

#[test]
fn what_is_no_model_is_refused_by_what_it_is() {
    let Some(bytes) = cases::read("negative/mnist-8.lfs-pointer.onnx") else { return };
    let refused = Tract.load(&bytes).unwrap_err();
    assert!(matches!(refused, EngineError::Graph(GraphError::NotOnnx(_))), "{refused}");
    assert!(refused.to_string().contains("Git-LFS"), "{refused}");
}

#[test]
fn truncated_models_are_refused() {
    let Some(bytes) = cases::read("models/rten_mnist.onnx") else { return };
    for length in [0, 1, 100, 1000, bytes.len() / 2, bytes.len() - 1] {
        let refused = Tract.load(&bytes[..length]).unwrap_err();
        assert!(matches!(refused, EngineError::Graph(_)), "{length} bytes: {refused}");
    }
}

/// The project's own model, 695 bytes, a convolution and a dense layer, with ONNX Runtime 1.32's
/// outputs.
#[test]
fn tiny_model_answers_as_onnx_runtime() {
    let picture: Vec<f32> = (0..128_u16).map(|at| f32::from(at * 11 % 31) / 31.0).collect();
    let picture = Tensor::f32(&[2, 1, 8, 8], picture).unwrap();
    let expected =
        [-0.492_565_5, -0.357_799_9, -0.264_805_94, -0.489_809_1, -0.361_658_9, -0.265_908_5];
    for engine in [&Tract as &dyn Engine, &Native] {
        let session = engine.load(include_bytes!("tiny_cnn.onnx")).unwrap();
        let outputs = session.run(std::slice::from_ref(&picture)).unwrap();
        assert_eq!(outputs[0].shape(), [2, 3]);
        for (value, expected) in outputs[0].as_f32().unwrap().iter().zip(expected) {
            assert!((value - expected).abs() < 1e-6_f32, "{value} {expected}");
        }
    }
}
