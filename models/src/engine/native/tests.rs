//! Whole networks, batches, refusals, and foreign bytes.

use proptest::prelude::*;

use super::*;
use crate::engine::testing::{self, dense};
use crate::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
};
use crate::train::{Loss, Sgd, Trainer};
use crate::zoo;

fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto::new(&format!("the {operator}"), operator, inputs, outputs)
}

/// A model from `x [n, ..example]` to outputs of shape `[n, 2]`.
fn model(
    example: &[usize],
    outputs: &[&str],
    nodes: Vec<NodeProto>,
    tensors: Vec<TensorProto>,
) -> ModelProto {
    let graph = GraphProto {
        node: nodes,
        initializer: tensors,
        input: vec![ValueInfoProto::batched("x", "n", example)],
        output: outputs.iter().map(|name| ValueInfoProto::batched(name, "n", &[2])).collect(),
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { domain: String::new(), version: Some(17) };
    ModelProto { graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() }
}

fn refusal(model: &ModelProto) -> String {
    Native.load(&model.to_bytes()).unwrap_err().to_string()
}

/// Numbers of -1 to 1 without a pattern.
fn numbers(len: usize) -> Vec<f32> {
    let number = |at: usize| u16::try_from(at * 7919 % 1009).map(|x| f32::from(x) / 504.0 - 1.0);
    (0..len).map(|at| number(at).unwrap()).collect()
}

fn close(what: &str, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-3_f32, |largest, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-4 * largest, "{what}: {found}, expected {expected}");
    }
}

/// A family after a step that moved its statistics, for inference, without and with the
/// normalisation in its convolutions.
fn family(name: &str, shape: [usize; 3]) -> Option<[Vec<u8>; 2]> {
    let onnx = zoo::build(name, shape, 10, 1)?;
    let sgd = Sgd { learning_rate: 0.01, momentum: 0.9, weight_decay: 0.0 };
    let mut trainer = Trainer::new(&onnx, sgd).unwrap();
    trainer.step(&numbers(2 * shape.iter().product::<usize>()), &[1, 7]).unwrap();
    Some([trainer.to_inference_onnx(), trainer.to_folded_onnx()])
}

/// Families that take long even for small pictures.
const LARGE: [&str; 6] =
    ["vgg11", "resnet18", "resnet34", "resnet50", "resnet101", "efficientnet_b0"];

#[test]
fn families_answer_as_training_evaluates_them() {
    for name in zoo::FAMILIES {
        let shapes: &[[usize; 3]] = if LARGE.contains(&name) {
            &[[2, 33, 35]]
        } else {
            &[[3, 32, 32], [1, 28, 28], [2, 70, 67]]
        };
        for &shape in shapes {
            let Some(files) = family(name, shape) else { continue };
            let input = numbers(3 * shape.iter().product::<usize>());
            let expected = Trainer::for_evaluation(&files[1], Loss::default())
                .unwrap()
                .logits(&input)
                .unwrap();
            let mut extents = vec![3];
            extents.extend(shape);
            let input = Tensor::f32(&extents, input).unwrap();
            for file in files {
                let session = Native.load(&file).unwrap();
                let found = session.run(std::slice::from_ref(&input)).unwrap();
                assert_eq!(found[0].shape(), [3, 10]);
                close(&format!("{name} {shape:?}"), found[0].as_f32().unwrap(), &expected);
                #[cfg(feature = "tract")]
                {
                    let tract = crate::engine::tract::Tract.load(&file).unwrap();
                    let expected = tract.run(std::slice::from_ref(&input)).unwrap();
                    let expected = expected[0].as_f32().unwrap();
                    close(&format!("{name} in tract"), found[0].as_f32().unwrap(), expected);
                }
            }
        }
    }
}

/// Each example by itself, in a pool of several threads as outside of it.
#[test]
fn threads_of_a_pool_change_no_bit() {
    let [_, file] = family("resnet8", [3, 16, 16]).unwrap();
    let session = Native.load(&file).unwrap();
    let input = Tensor::f32(&[5, 3, 16, 16], numbers(5 * 768)).unwrap();
    let alone = session.run(std::slice::from_ref(&input)).unwrap();
    let first = Tensor::f32(&[1, 3, 16, 16], numbers(768)).unwrap();
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            assert_eq!(session.run(std::slice::from_ref(&input)).unwrap(), alone);
            let one = session.run(std::slice::from_ref(&first)).unwrap();
            assert_eq!(one[0].as_f32().unwrap(), &alone[0].as_f32().unwrap()[..10]);
        });
    }
}

#[test]
fn dense_layers_run_on_any_batch_from_any_thread() {
    testing::check(&Native, 64);
}

/// One number stands for a million.
#[test]
fn an_answer_that_would_fill_the_memory_is_refused() {
    let wide = 1 << 20;
    let mut model = model(
        &[1],
        &["y"],
        vec![node("Gemm", &["x", "w"], &["y"])],
        vec![TensorProto::from_f32("w", &[1, wide], &vec![1.0; wide])],
    );
    model.graph.as_mut().unwrap().output = vec![ValueInfoProto::batched("y", "n", &[wide])];
    let session = Native.load(&model.to_bytes()).unwrap();
    let run = |examples| session.run(&[Tensor::f32(&[examples, 1], vec![2.0; examples]).unwrap()]);
    let found = run(3).unwrap();
    close("the last value", &found[0].as_f32().unwrap()[3 * wide - 1..], &[2.0]);
    let error = run(65).unwrap_err();
    assert!(matches!(error, EngineError::Input { .. }), "{error}");
    assert!(error.to_string().contains("expected 64 examples at most"), "{error}");
}

#[test]
fn what_is_not_computed_exactly_is_refused() {
    let with = |nodes: Vec<NodeProto>, outputs: &[&str]| {
        let mut model = dense();
        let graph = model.graph.as_mut().unwrap();
        graph.node[0].output = vec!["z".to_owned()];
        graph.node.extend(nodes);
        graph.output =
            outputs.iter().map(|name| ValueInfoProto::batched(name, "n", &[2])).collect();
        for name in ["s", "m", "v"] {
            graph.initializer.push(TensorProto::from_f32(name, &[2], &[1.0, 2.0]));
        }
        model
    };
    let mut training = node("BatchNormalization", &["z", "s", "s", "m", "v"], &["y"]);
    training.attribute = vec![AttributeProto::int("training_mode", 1)];
    let found = refusal(&with(vec![training], &["y"]));
    assert!(found.contains("node \"the BatchNormalization\"") && found.contains("training mode"));
    let found = refusal(&with(vec![node("Dropout", &["z", "s", "m"], &["y"])], &["y"]));
    assert!(found.contains("the Dropout"), "{found}");
    let labels = vec![node("ArgMax", &["z"], &["y"])];
    assert!(refusal(&with(labels.clone(), &["y"])).contains("expected one output"));
    assert!(refusal(&with(labels, &["y", "z"])).contains("expected one output"));
    let softmax = vec![node("Softmax", &["z"], &["y"])];
    assert!(refusal(&with(softmax.clone(), &["y", "z"])).contains("expected one output"));
    let session = Native.load(&with(softmax, &["y"]).to_bytes()).unwrap();
    let x = Tensor::f32(&[1, 3], vec![0.25, 0.0, 0.0]).unwrap();
    let found = session.run(&[x]).unwrap();
    // Logits 0.75 and 0.
    close("softmax", found[0].as_f32().unwrap(), &[0.679_178_7, 0.320_821_3]);
    let found = refusal(&with(vec![node("Frobnicate", &["z"], &["y"])], &["y"]));
    let expected = "node \"the Frobnicate\": operator Frobnicate is not supported for inference";
    assert!(found.starts_with(expected), "{found}");
    let found = Native.load(b"no model at all").unwrap_err();
    assert!(matches!(found, EngineError::Graph(GraphError::NotOnnx(_))), "{found}");
}

/// Numbers that are none reach the output, as the operators say.
#[test]
fn infinite_numbers_and_nan_are_passed_on() {
    let nodes = vec![
        node("Conv", &["x", "k"], &["c"]),
        node("Relu", &["c"], &["r"]),
        node("GlobalAveragePool", &["r"], &["g"]),
        node("Flatten", &["g"], &["y"]),
    ];
    // The first map has the negated input, the second one the input.
    let kernel = TensorProto::from_f32("k", &[2, 1, 1, 1], &[-1.0, 1.0]);
    let session = Native.load(&model(&[1, 1, 2], &["y"], nodes, vec![kernel]).to_bytes()).unwrap();
    let run = |values: [f32; 2]| {
        let x = Tensor::f32(&[1, 1, 1, 2], values.to_vec()).unwrap();
        session.run(&[x]).unwrap()[0].as_f32().unwrap().to_vec()
    };
    assert_eq!(run([f32::INFINITY, 2.0]), [0.0, f32::INFINITY]);
    assert_eq!(run([f32::NEG_INFINITY, 2.0]), [f32::INFINITY, 1.0]);
    assert!(run([f32::NAN, 2.0]).iter().all(|value| value.is_nan()));
    assert_eq!(run([2.0, -4.0]), [2.0, 1.0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a damaged model does, it does not panic.
    #[test]
    fn damaged_models_are_errors(
        which in 0..2_usize,
        at: prop::sample::Index,
        with: u8,
        end: prop::sample::Index,
    ) {
        let nodes = vec![
            node("Conv", &["x", "k", "b"], &["c"]),
            node("Clip", &["c"], &["r"]),
            node("MaxPool", &["r"], &["p"]),
            node("Flatten", &["p"], &["y"]),
        ];
        let mut pictures = model(&[1, 3, 3], &["y"], nodes, vec![
            TensorProto::from_f32("k", &[2, 1, 2, 2], &[0.5; 8]),
            TensorProto::from_f32("b", &[2], &[0.5; 2]),
        ]);
        let pool = &mut pictures.graph.as_mut().unwrap().node[2];
        pool.attribute = vec![AttributeProto::ints("kernel_shape", &[2, 2])];
        let (model, shape) =
            if which == 0 { (dense(), vec![1, 3]) } else { (pictures, vec![1, 1, 3, 3]) };
        let mut bytes = model.to_bytes();
        let at = at.index(bytes.len());
        bytes[at] = with;
        let end = 1 + end.index(2 * bytes.len());
        bytes.truncate(end);
        if let Ok(session) = Native.load(&bytes) {
            let input = Tensor::f32(&shape, vec![0.5; shape.iter().product()]).unwrap();
            let _ = session.run(&[input]);
        }
    }

    #[test]
    fn foreign_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Native.load(&bytes).is_err());
    }
}
