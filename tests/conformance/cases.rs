//! The cases: models, images, and what ONNX Runtime answers.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use models::dataset::{self, Examples, Limits};
use serde::Deserialize;

/// One model with images and ONNX Runtime's answers.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) onnx: Vec<u8>,
    pub(crate) examples: Examples,
    /// Shape of one example as the model takes it.
    pub(crate) shape: Vec<usize>,
    /// Channels last.
    pub(crate) nhwc: bool,
    pub(crate) divisor: f32,
    pub(crate) mean: Vec<f32>,
    pub(crate) std: Vec<f32>,
    /// ONNX Runtime's class of every image.
    pub(crate) classes: Vec<usize>,
    /// ONNX Runtime's outputs of the first images.
    pub(crate) outputs: Vec<Vec<f32>>,
    /// Every how many-th image an agent is asked for.
    pub(crate) step: usize,
    /// Smallest part of the images with the same class.
    pub(crate) agreement_min: f64,
    /// Largest difference of an output, relative to `scale`.
    pub(crate) difference_max: f32,
    /// The largest of ONNX Runtime's outputs, 1 at least.
    pub(crate) scale: f32,
}

#[derive(Deserialize)]
struct Expected {
    results: BTreeMap<String, Answers>,
}

#[derive(Deserialize)]
struct Answers {
    #[serde(default)]
    layout: String,
    #[serde(default)]
    preprocess: String,
    mean: Option<Vec<f32>>,
    std: Option<Vec<f32>>,
    shape: Option<Vec<usize>>,
    divide_by: Option<f32>,
    argmax: Vec<usize>,
    outputs_first_32: Vec<Vec<f32>>,
}

/// Difference that float32 in another order of additions makes in these models, relative to the
/// largest output.
const DIFFERENCE_MAX: f32 = 1e-3;

/// The CIFAR-10 models, or nothing where the data is absent.
pub(crate) fn cifar10() -> Option<Vec<Case>> {
    let expected: Expected = serde_json::from_slice(&read("expected_cifar10.json")?).unwrap();
    let images = vec![("test_batch.bin.gz".to_owned(), read("cifar10/test_jpeg_2000.bin.gz")?)];
    let examples = dataset::decode(&images, Limits::default()).unwrap().test;
    let cases = expected.results.into_iter().map(|(key, answers)| {
        let (name, _) = key.split_once(" @ ").unwrap();
        let nhwc = answers.layout == "NHWC";
        let shape = if nhwc { [32, 32, 3] } else { [3, 32, 32] };
        let divisor = if answers.preprocess == "u8" { 1.0 } else { 255.0 };
        case(name, answers, &examples, shape.to_vec(), nhwc, divisor)
    });
    Some(cases.collect())
}

/// The MNIST models, or nothing where the data is absent.
pub(crate) fn mnist() -> Option<Vec<Case>> {
    let expected: Expected = serde_json::from_slice(&read("expected_mnist.json")?).unwrap();
    let files = ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"];
    let files: Vec<_> = files
        .iter()
        .map(|file| Some(((*file).to_owned(), read(&format!("mnist/{file}"))?)))
        .collect::<Option<_>>()?;
    let examples = dataset::decode(&files, Limits::default()).unwrap().test;
    let cases = expected.results.into_iter().map(|(name, answers)| {
        let shape = answers.shape.as_ref().unwrap()[1..].to_vec();
        let divisor = answers.divide_by.unwrap();
        case(&name, answers, &examples, shape, false, divisor)
    });
    Some(cases.collect())
}

impl Case {
    /// Whether it computes with 8-bit integers.
    pub(crate) fn is_int8(&self) -> bool {
        self.name.contains("int8")
    }
}

fn case(
    name: &str,
    answers: Answers,
    examples: &Examples,
    shape: Vec<usize>,
    nhwc: bool,
    divisor: f32,
) -> Case {
    let scale = answers.outputs_first_32.iter().flatten().fold(1.0_f32, |a, b| a.max(b.abs()));
    // Integer arithmetic rounds in other places than ONNX Runtime does.
    let (step, agreement_min, difference_max) =
        if name.contains("int8") { (10, 0.97, f32::MAX) } else { (1, 0.999, DIFFERENCE_MAX) };
    Case {
        name: name.to_owned(),
        onnx: read(&format!("models/{name}")).unwrap(),
        examples: examples.clone(),
        shape,
        nhwc,
        divisor,
        mean: answers.mean.unwrap_or_else(|| vec![0.0]),
        std: answers.std.unwrap_or_else(|| vec![1.0]),
        classes: answers.argmax,
        outputs: answers.outputs_first_32,
        step,
        agreement_min,
        difference_max,
        scale,
    }
}

/// A file of `../shared/data`, or nothing, said so, where it is absent.
pub(crate) fn read(path: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(path);
    let mut bytes = Vec::new();
    match std::fs::File::open(&path).and_then(|mut file| file.read_to_end(&mut bytes)) {
        Ok(_) => Some(bytes),
        Err(error) => {
            println!("absent, not tested: {}: {error}", path.display());
            None
        }
    }
}
