//! The ONNX project's tests, as `scripts/setup.sh tests` puts them into `.tools`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use models::onnx::{self, GraphProto, TensorProto, ValueInfoProto};
use models::tensor::Tensor;

use super::tensors::{self, tensor};
use super::{boundary, classifier, constants, selection};

/// The folder of these tests; the version is that of `scripts/setup.sh`.
const FOLDER: &str = ".tools/onnx-tests-1.19.1";
/// Names the folder where the program runs on another machine than it was built on.
const ELSEWHERE: &str = "DUNLIN_ONNX_TESTS";

/// Folders of tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Group {
    /// One operator each, or the function that defines it.
    Node,
    /// Small models that exporters made, `PyTorch`'s above all.
    Exports,
}

const FOLDERS: [(&str, Group); 4] = [
    ("node", Group::Node),
    ("pytorch-converted", Group::Exports),
    ("pytorch-operator", Group::Exports),
    ("simple", Group::Exports),
];

/// A model with inputs and the outputs that the ONNX project expects.
#[derive(Debug)]
pub(crate) struct Test {
    pub(crate) name: String,
    pub(crate) group: Group,
    /// The operator under test, or the operators of an exported model.
    pub(crate) operator: String,
    /// The graph holds nothing but [operators of vision](selection::vision).
    pub(crate) vision: bool,
    /// Outputs are 16-bit floats.
    pub(crate) half: bool,
    /// What a model would hold as constants are initializers.
    pub(crate) folded: Model,
    /// Every input is fed, as the ONNX project keeps the test; absent where that is no other.
    pub(crate) fed: Option<Model>,
    /// The model as a [classifier](classifier::of), where it can be one, and its output.
    pub(crate) classifier: Option<(Model, BTreeMap<String, Tensor>)>,
    pub(crate) outputs: BTreeMap<String, Tensor>,
}

/// An ONNX file and its inputs.
#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) onnx: Vec<u8>,
    pub(crate) inputs: BTreeMap<String, Tensor>,
}

/// The tests of the selection, and how many others there are for which reason.
#[derive(Debug, Default)]
pub(crate) struct Collection {
    pub(crate) tests: Vec<Test>,
    pub(crate) left_out: BTreeMap<String, usize>,
}

/// Reads every test.
pub(crate) fn read() -> Collection {
    let root = std::env::var_os(ELSEWHERE).map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(FOLDER),
        PathBuf::from,
    );
    let mut collection = Collection::default();
    for (folder, group) in FOLDERS {
        let folder = root.join(folder);
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| {
            panic!("{}: {error}: run scripts/setup.sh tests", folder.display())
        });
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        folders.sort();
        for folder in folders {
            match test(&folder, group) {
                Ok(test) => collection.tests.push(test),
                Err(reason) => *collection.left_out.entry(reason).or_default() += 1,
            }
        }
    }
    collection
}

/// One test, or why it is outside the selection.
fn test(folder: &Path, group: Group) -> Result<Test, String> {
    let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
    let model = onnx::parse(&file(&folder.join("model.onnx"))).unwrap();
    let graph = model.graph.as_ref().unwrap();
    let values = |kind: &str, declared: &[ValueInfoProto]| -> Vec<TensorProto> {
        let value = |(at, info): (usize, &ValueInfoProto)| {
            let path = folder.join(format!("test_data_set_0/{kind}_{at}.pb"));
            TensorProto { name: info.name.clone(), ..tensors::decode(&file(&path)) }
        };
        declared.iter().enumerate().map(value).collect()
    };
    let filled =
        |input: &ValueInfoProto| graph.initializer.iter().any(|tensor| tensor.name == input.name);
    let declared: Vec<ValueInfoProto> =
        graph.input.iter().filter(|input| !filled(input)).cloned().collect();
    for value in declared.iter().chain(&graph.output) {
        selection::check_type(value)?;
    }
    let inputs = values("input", &declared);
    selection::check(&name, graph, &inputs)?;
    let outputs = values("output", &graph.output);
    let (constants, others): (Vec<_>, Vec<_>) =
        inputs.iter().cloned().partition(|input| constants::constant(graph, &input.name));
    let prepared = |constants: &[TensorProto], inputs: &[TensorProto]| {
        let mut model = model.clone();
        let graph = model.graph.as_mut().unwrap();
        constants::fold(graph, constants);
        boundary::cast(&mut model);
        let inputs = inputs.iter().map(|input| (input.name.clone(), tensor(input))).collect();
        Model { onnx: model.to_bytes(), inputs }
    };
    let classifier = classifier::of(&model, &inputs, &outputs).map(|model| {
        let first = &outputs[0];
        let flat = classifier::flat(&tensor(first));
        let fed = BTreeMap::from([(inputs[0].name.clone(), tensor(&inputs[0]))]);
        (
            Model { onnx: model.to_bytes(), inputs: fed },
            BTreeMap::from([(first.name.clone(), flat)]),
        )
    });
    Ok(Test {
        classifier,
        group,
        operator: operator(&name, graph, group),
        vision: selection::vision(graph),
        half: outputs.iter().any(tensors::half),
        folded: prepared(&constants, &others),
        fed: (!constants.is_empty()).then(|| prepared(&[], &inputs)),
        outputs: outputs.iter().map(|output| (output.name.clone(), tensor(output))).collect(),
        name,
    })
}

fn file(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The operator that a test is about, for tables.
fn operator(name: &str, graph: &GraphProto, group: Group) -> String {
    let mut operators: Vec<&str> = graph.node.iter().map(|node| node.op_type.as_str()).collect();
    operators.sort_unstable();
    operators.dedup();
    match operators.as_slice() {
        [one] => (*one).to_owned(),
        _ if group == Group::Node => match name.split_once("_expanded") {
            Some((function, _)) => {
                format!("{} (its function)", function.trim_start_matches("test_"))
            }
            None => operators.join("+"),
        },
        _ => operators.join("+"),
    }
}
