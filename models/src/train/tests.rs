mod exports;
mod folding;
mod pytorch;
mod settings;

use pytorch::Exact;

use super::*;
use crate::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto,
};
use crate::zoo;

const SGD: Sgd = Sgd { learning_rate: 0.05, momentum: 0.9, weight_decay: 5e-4 };

fn batch(trainer: &Trainer, n: usize) -> (Vec<f32>, Vec<u32>) {
    let len: usize = trainer.example_shape().iter().product();
    let classes = trainer.classes();
    let labels: Vec<u32> = (0..n).map(|i| u32::try_from(i % classes).unwrap()).collect();
    let pixel = |i: usize| {
        let wave = u16::try_from((i * 37 + i / len * 101) % 255).unwrap();
        f32::from(wave) / 127.5 - 1.0
    };
    ((0..n * len).map(pixel).collect(), labels)
}

#[test]
fn small_families_learn_on_small_and_usual_pictures() {
    for family in ["mlp", "lenet", "cnn", "resnet8"] {
        for shape in [[1, 8, 8], [3, 32, 32]] {
            let onnx = zoo::build(family, shape, 4, 7).unwrap();
            let mut trainer = Trainer::new(&onnx, SGD).unwrap();
            let (examples, labels) = batch(&trainer, 8);
            let first = trainer.step(&examples, &labels).unwrap();
            let mut last = first;
            for _ in 0..30 {
                last = trainer.step(&examples, &labels).unwrap();
            }
            assert!(last.loss < first.loss / 2.0, "{family} {shape:?}: {first:?} {last:?}");
            assert_eq!(last.examples, 8);
        }
    }
}

fn trained(family: &str, shape: [usize; 3], steps: usize) -> Trainer {
    let onnx = zoo::build(family, shape, 4, 7).unwrap();
    let mut trainer = Trainer::new(&onnx, SGD).unwrap();
    let (examples, labels) = batch(&trainer, 8);
    for _ in 0..steps {
        trainer.step(&examples, &labels).unwrap();
    }
    trainer
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for family in ["lenet", "cnn", "resnet8", "mobilenet_v3_small"] {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| trained(family, [3, 16, 16], 3)).parameters()
        };
        assert_eq!(on(1), on(3), "{family}");
    }
}

#[test]
fn training_goes_on_from_the_written_file() {
    let mut first = trained("resnet8", [1, 8, 8], 2);
    let mut second = Trainer::new(&first.to_training_onnx(), SGD).unwrap();
    assert_eq!(second.parameters(), first.parameters());
    let (examples, labels) = batch(&first, 8);
    assert_eq!(first.evaluate(&examples, &labels), second.evaluate(&examples, &labels));
    first.set_parameters(&second.parameters()).unwrap();
    assert_eq!(first.step(&examples, &labels), second.step(&examples, &labels));
    assert_eq!(first.parameters(), second.parameters());
}

#[cfg(feature = "tract")]
#[test]
fn the_inference_file_computes_what_evaluation_does() {
    use tract_onnx::prelude::*;
    // Of the large ones the layers are those of smaller ones.
    let small = |family: &&str| {
        zoo::cost(family, [1, 8, 8], 4).is_some_and(|cost| cost.parameters < 6_000_000)
    };
    for family in zoo::FAMILIES.into_iter().filter(small) {
        // Small steps: large ones make deep networks so steep that last bits of the input show.
        let onnx = zoo::build(family, [1, 8, 8], 4, 7).unwrap();
        let gentle = Sgd { learning_rate: 1e-3, ..SGD };
        let mut trainer = Trainer::new(&onnx, gentle).unwrap();
        let (examples, labels) = batch(&trainer, 8);
        for _ in 0..5 {
            trainer.step(&examples, &labels).unwrap();
        }
        let (examples, _) = batch(&trainer, 5);
        let expected = trainer.logits(&examples).unwrap();
        let largest = expected.iter().fold(0.0_f32, |most, logit| most.max(logit.abs()));
        for onnx in [trainer.to_inference_onnx(), trainer.to_folded_onnx()] {
            let model = tract_onnx::onnx()
                .model_for_read(&mut onnx.as_slice())
                .unwrap()
                .into_optimized()
                .unwrap()
                .into_runnable()
                .unwrap();
            let input =
                tract_ndarray::Array4::from_shape_vec((5, 1, 8, 8), examples.clone()).unwrap();
            let found = model.run(tvec!(Tensor::from(input).into())).unwrap();
            let found = found[0].to_plain_array_view::<f32>().unwrap();
            assert_eq!(found.shape(), [5, 4]);
            for (found, expected) in found.iter().zip(&expected) {
                let differs = (found - expected).abs();
                assert!(differs < 1e-4 * largest, "{family}: {found}, expected {expected}");
            }
        }
    }
}

fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto::new("", operator, inputs, &[output])
}

/// Values of a tensor, around 0.1.
fn ramp(name: &str, shape: &[usize]) -> TensorProto {
    let count = u16::try_from(shape.iter().product::<usize>()).unwrap();
    let value = |i: u16| f32::from(i * 37 % 61) / 61.0 - 0.4;
    TensorProto::from_f32(name, shape, &(0..count).map(value).collect::<Vec<f32>>())
}

fn model(
    node: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    input: &[usize],
    classes: usize,
) -> Vec<u8> {
    let graph = GraphProto {
        node,
        initializer,
        input: vec![ValueInfoProto::batched("input", "n", input)],
        output: vec![ValueInfoProto::batched("logits", "n", &[classes])],
        ..GraphProto::default()
    };
    let opset = OperatorSetIdProto { domain: String::new(), version: Some(17) };
    ModelProto { graph: Some(graph), opset_import: vec![opset], ..ModelProto::default() }.to_bytes()
}

/// `x * x` joined with two more of `x`, and one dense layer.
fn several_times() -> Vec<u8> {
    let axis = vec![AttributeProto::int("axis", 1)];
    let all = node("Concat", &["x", "square", "x", "square", "x"], "all");
    let nodes = vec![
        node("MatMul", &["input", "first"], "x"),
        node("Mul", &["x", "x"], "square"),
        NodeProto { attribute: axis, ..all },
        node("MatMul", &["all", "second"], "logits"),
    ];
    model(nodes, vec![ramp("first", &[3, 2]), ramp("second", &[10, 2])], &[3], 2)
}

/// Networks in which what is computed again for the backward pass is made of what is computed
/// again itself: normalisations and functions of them in a row, and one that feeds two functions.
pub(in crate::train) fn computed_again() -> Vec<Vec<u8>> {
    let normal = |input: &str, output: &str| {
        let of = |what: &str| format!("{output}.{what}");
        let names = [of("scale"), of("bias"), of("mean"), of("var")];
        let inputs: Vec<&str> =
            [input].into_iter().chain(names.iter().map(String::as_str)).collect();
        let mut tensors = vec![ramp(&names[1], &[3]), ramp(&names[2], &[3])];
        for name in [&names[0], &names[3]] {
            tensors.push(TensorProto::from_f32(name, &[3], &[0.9, 1.1, 1.3]));
        }
        (node("BatchNormalization", &inputs, output), tensors)
    };
    let conv = |input: &str, output: &str| {
        let weight = format!("{output}.weight");
        (node("Conv", &[input, &weight], output), vec![ramp(&weight, &[3, 3, 1, 1])])
    };
    let plain = |operator: &str, inputs: &[&str], output: &str| {
        (node(operator, inputs, output), Vec::new())
    };
    let whole = |layers: Vec<(NodeProto, Vec<TensorProto>)>, last: &str| {
        let transposed = vec![AttributeProto::int("transB", 1)];
        let dense = node("Gemm", &["flat", "classes", "level"], "logits");
        let dense = NodeProto { attribute: transposed, ..dense };
        let end = [
            plain("GlobalAveragePool", &[last], "pooled"),
            plain("Flatten", &["pooled"], "flat"),
            (dense, vec![ramp("classes", &[3, 3]), ramp("level", &[3])]),
        ];
        let (nodes, tensors): (Vec<_>, Vec<_>) = layers.into_iter().chain(end).unzip();
        model(nodes, tensors.concat(), &[3, 4, 4], 3)
    };
    let mut networks = Vec::new();
    for function in ["Relu", "LeakyRelu", "Sigmoid"] {
        let begin =
            || vec![conv("input", "c0"), normal("c0", "n1"), plain(function, &["n1"], "a1")];
        let row = [normal("a1", "n2"), conv("n2", "c1")];
        networks.push(whole(begin().into_iter().chain(row).collect(), "c1"));
        let longer = [
            normal("a1", "n2"),
            plain(function, &["n2"], "a2"),
            normal("a2", "n3"),
            plain(function, &["n3"], "a3"),
            conv("a3", "c1"),
        ];
        networks.push(whole(begin().into_iter().chain(longer).collect(), "c1"));
        let two = [
            conv("a1", "c1"),
            plain(function, &["n1"], "b1"),
            conv("b1", "c2"),
            plain("Add", &["c1", "c2"], "sum"),
        ];
        networks.push(whole(begin().into_iter().chain(two).collect(), "sum"));
    }
    networks
}

#[test]
fn gradients_of_what_is_computed_again_are_right() {
    for (index, onnx) in computed_again().iter().enumerate() {
        let mut trainer = Trainer::new(onnx, SGD).unwrap();
        let (examples, labels) = batch(&trainer, 6);
        trainer.step(&examples, &labels).unwrap();
        let mut exact = Exact::new(onnx);
        exact.run(&examples, &labels);
        let mut seen = 0;
        for (value, exact) in exact.graph.values.iter().zip(&exact.gradients) {
            let Some(gradient) = trainer.gradient(&value.name) else { continue };
            let largest = exact.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
            for (found, exact) in gradient.iter().zip(exact) {
                let differs = (f64::from(*found) - exact).abs();
                assert!(
                    differs < 1e-4 * largest + 1e-6,
                    "network {index}, {}: {found}, expected {exact}",
                    value.name
                );
            }
            seen += 1;
        }
        assert!(seen >= 5);
    }
}

/// A weight that no path leads to from the logits is none to train.
#[test]
fn what_has_no_weight_on_its_way_is_refused() {
    let nodes = vec![
        node("MatMul", &["input", "weight"], "logits"),
        node("MatMul", &["input", "unused"], "nowhere"),
    ];
    let onnx = model(nodes, vec![ramp("weight", &[3, 2]), ramp("unused", &[3, 2])], &[3], 2);
    let settings = Settings { frozen: vec!["weight".to_owned()], ..Settings::default() };
    let error = Trainer::with_settings(&onnx, SGD, settings).unwrap_err();
    assert!(error.to_string().contains("no weight that is trained"), "{error}");
}

#[test]
fn gradients_of_inputs_taken_several_times_are_summed() {
    check_gradients("several times", &several_times(), 2);
}

#[test]
fn evaluation_changes_nothing_and_batches_may_change() {
    let mut trainer = trained("resnet8", [1, 8, 8], 1);
    let before = trainer.parameters();
    let (examples, labels) = batch(&trainer, 20);
    let all = trainer.evaluate(&examples, &labels).unwrap();
    assert_eq!(trainer.parameters(), before);
    let logits = trainer.logits(&examples).unwrap();
    let one = trainer.logits(&examples[19 * 64..]).unwrap();
    for (alone, among) in one.iter().zip(&logits[19 * 4..]) {
        assert!((alone - among).abs() < 1e-5, "{alone} {among}");
    }
    let halves: f64 = [0, 10]
        .map(|at| trainer.evaluate(&examples[at * 64..][..640], &labels[at..][..10]).unwrap().loss)
        .iter()
        .sum();
    assert!((halves / 2.0 - all.loss).abs() < 1e-5);
    let mut other = trained("resnet8", [1, 8, 8], 1);
    assert_eq!(
        trainer.step(&examples[..512], &labels[..8]),
        other.step(&examples[..512], &labels[..8]),
        "a larger batch in between leaves no trace"
    );
}

#[test]
fn the_same_threads_give_the_same_bits() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| trained("resnet8", [3, 16, 16], 5).parameters())
    };
    assert_eq!(run(1), run(1));
    assert_eq!(run(3), run(3));
    for (one, three) in run(1).items().iter().zip(run(3).items()) {
        for (a, b) in one.values.iter().zip(&three.values) {
            assert!((a - b).abs() < 1e-3 * a.abs().max(0.1), "{}: {a} {b}", one.name);
        }
    }
}

#[test]
fn wrong_batches_are_refused() {
    let mut trainer = trained("mlp", [1, 2, 2], 0);
    let error = trainer.step(&[0.0; 8], &[0, 4]).unwrap_err();
    assert_eq!(error.to_string(), "label 4 is out of range: the model has 4 classes");
    for (examples, labels, found) in
        [(7, 2, "7 values"), (0, 0, "0 values"), (8, 3, "2 examples with 3 labels")]
    {
        let error = trainer.step(&vec![0.0; examples], &vec![0; labels]).unwrap_err();
        let expected = vec![1, 2, 2];
        assert_eq!(error, TrainError::Batch { expected, found: found.to_owned() });
    }
}

#[test]
fn divergence_is_noticed_before_it_reaches_the_weights() {
    let onnx = zoo::build("cnn", [1, 8, 8], 4, 7).unwrap();
    let mut trainer = Trainer::new(&onnx, Sgd { learning_rate: 1e30, ..SGD }).unwrap();
    let (examples, labels) = batch(&trainer, 8);
    let failed = (0..20).find_map(|_| trainer.step(&examples, &labels).err()).unwrap();
    assert!(matches!(failed, TrainError::Diverged { step: 2.., .. }), "{failed}");
    let mut sound = trained("cnn", [1, 8, 8], 1);
    let before = sound.parameters();
    let failed = sound.step(&vec![f32::NAN; 512], &labels).unwrap_err();
    assert!(matches!(failed, TrainError::Diverged { step: 2, .. }), "{failed}");
    assert_eq!(sound.parameters(), before);
}

#[test]
fn parameters_of_another_model_are_refused() {
    let mut trainer = trained("mlp", [1, 2, 2], 0);
    let other = trained("mlp", [1, 2, 3], 0).parameters();
    let error = trainer.set_parameters(&other).unwrap_err();
    assert_eq!(
        error.to_string(),
        "parameter \"hidden.weight\" has shape [64, 6], the model has [64, 4]"
    );
    let cnn = trained("cnn", [1, 8, 8], 0).parameters();
    assert!(matches!(trainer.set_parameters(&cnn), Err(TrainError::Parameters(_))));
}

#[test]
fn gradients_of_a_whole_network_are_those_of_finite_differences() {
    for family in ["lenet", "resnet8"] {
        check_gradients(family, &zoo::build(family, [1, 6, 6], 3, 5).unwrap(), 10);
    }
}

/// Holds the gradients of at least so many weights against the loss's slope along them.
fn check_gradients(name: &str, onnx: &[u8], weights_min: usize) {
    let still = Sgd { learning_rate: 0.0, momentum: 0.0, weight_decay: 0.0 };
    let mut trainer = Trainer::new(onnx, still).unwrap();
    let (examples, labels) = batch(&trainer, 6);
    let start = trainer.parameters();
    trainer.step(&examples, &labels).unwrap();
    let weights: Vec<String> = start
        .items()
        .iter()
        .map(|item| item.name.clone())
        .filter(|name| trainer.gradient(name).is_some())
        .collect();
    assert!(weights.len() >= weights_min);
    for weight in weights {
        let gradient = trainer.gradient(&weight).unwrap().to_vec();
        let size = norm(&gradient);
        // Along the gradient the slope is its length.
        let mut loss = |step: f64| {
            let mut items = start.items().to_vec();
            let item = items.iter_mut().find(|item| item.name == weight).unwrap();
            for (value, gradient) in item.values.iter_mut().zip(&gradient) {
                *value += narrow(step * f64::from(*gradient) / size);
            }
            trainer.set_parameters(&Parameters::new(items).unwrap()).unwrap();
            trainer.step(&examples, &labels).unwrap().loss
        };
        let slope = (loss(1e-3) - loss(-1e-3)) / 2e-3;
        assert!((slope - size).abs() < 0.02 * size + 1e-3, "{name} {weight}: {slope} {size}");
    }
}

fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
fn narrow(value: f64) -> f32 {
    value as f32
}
