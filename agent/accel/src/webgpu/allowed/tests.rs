use models::engine::plain::{OPERATORS, Plain};
use models::onnx::{AttributeProto, ValueInfoProto};
use models::train::{Loss, Trainer};
use models::zoo;

use super::*;

const BYTES_MAX: usize = 1 << 27;

fn node(operator: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto::new("odd", operator, inputs, &["y"]).with(attribute)
}

/// A value of fixed extents.
fn info(name: &str, extents: &[usize]) -> ValueInfoProto {
    let mut info = ValueInfoProto::batched(name, "n", &extents[1..]);
    if let Some(models::onnx::TypeValue::Tensor(tensor)) =
        info.r#type.as_mut().and_then(|kind| kind.value.as_mut())
    {
        let first = i64::try_from(extents[0]).unwrap();
        tensor.shape.as_mut().unwrap().dim[0].value =
            Some(models::onnx::DimensionValue::Value(first));
    }
    info
}

/// What is said of one node from `x` (and `z`, like it) to `y`.
fn judge(
    node: NodeProto,
    x: &[usize],
    y: &[usize],
    tensors: Vec<TensorProto>,
) -> Result<(), String> {
    let graph = GraphProto {
        node: vec![node],
        initializer: tensors,
        input: vec![info("x", x), info("z", x)],
        output: vec![info("y", y)],
        ..GraphProto::default()
    };
    let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
    check(&model, BYTES_MAX).map_err(|refusal| refusal.to_string())
}

fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto::ints(name, values)
}

fn window(kernel: i64, pads: i64, dilation: i64) -> Vec<AttributeProto> {
    vec![
        ints("kernel_shape", &[kernel; 2]),
        ints("strides", &[1, 1]),
        ints("pads", &[pads; 4]),
        ints("dilations", &[dilation; 2]),
        AttributeProto::int("group", 1),
    ]
}

#[test]
fn the_list_has_what_plain_graphs_have() {
    let plain: Vec<&str> = OPERATORS.iter().map(|(operator, _)| *operator).collect();
    let allowed: Vec<&str> = RULES.iter().map(|(operator, _)| *operator).collect();
    assert_eq!(allowed, plain);
}

#[test]
fn families_of_the_zoo_pass() {
    let large = ["vgg11", "resnet101"];
    for family in zoo::FAMILIES.into_iter().filter(|family| !large.contains(family)) {
        let onnx = zoo::build(family, [3, 33, 33], 7, 1).unwrap();
        let trainer = Trainer::for_evaluation(&onnx, Loss::default()).unwrap();
        let plain = Plain::read(&trainer.to_folded_onnx()).unwrap();
        for batch in if plain.has_batches() { vec![1, 4] } else { vec![1] } {
            let model = models::onnx::parse(&plain.to_onnx(batch).unwrap()).unwrap();
            check(&model, BYTES_MAX).unwrap_or_else(|refusal| panic!("{family}: {refusal}"));
        }
    }
}

#[test]
fn convolutions_that_are_answered_wrongly_are_refused() {
    let weights = |maps: usize, kernel: usize| {
        let values = vec![0.1; maps * 2 * kernel * kernel];
        vec![
            TensorProto::from_f32("w", &[maps, 2, kernel, kernel], &values),
            TensorProto::from_f32("b", &[maps], &vec![0.0; maps]),
        ]
    };
    let conv = |maps, kernel: i64, pads, dilation| {
        let node = node("Conv", &["x", "w", "b"], window(kernel, pads, dilation));
        let kernel = usize::try_from(kernel).unwrap();
        judge(node, &[1, 2, 9, 9], &[1, maps, 9, 9], weights(maps, kernel))
    };
    assert_eq!(conv(4, 3, 1, 1), Ok(()));
    assert_eq!(conv(3, 3, 0, 1), Ok(()));
    assert_eq!(conv(4, 5, 2, 1), Ok(()));
    for (pads, dilation) in [(0, 1), (2, 2), (1, 2)] {
        let refused = conv(4, 3, pads, dilation).unwrap_err();
        assert!(refused.contains("\"odd\"") && refused.contains("3 x 3"), "{refused}");
    }
    let bare = node("Conv", &["x", "w"], window(5, 2, 1));
    let refused = judge(bare, &[1, 2, 9, 9], &[1, 4, 9, 9], weights(4, 5)).unwrap_err();
    assert!(refused.contains("number of inputs"), "{refused}");
    let mut padded = window(5, 2, 1);
    padded.push(AttributeProto { name: "auto_pad".into(), ..AttributeProto::default() });
    let padded = node("Conv", &["x", "w", "b"], padded);
    assert!(judge(padded, &[1, 2, 9, 9], &[1, 4, 9, 9], weights(4, 5)).is_err());
}

#[test]
fn other_forms_outside_the_list_are_refused() {
    let number = |name: &str, value: f32| TensorProto::from_f32(name, &[], &[value]);
    let clip = |least, most| {
        let node = node("Clip", &["x", "a", "b"], Vec::new());
        judge(node, &[1, 4], &[1, 4], vec![number("a", least), number("b", most)])
    };
    assert_eq!(clip(0.0, 6.0), Ok(()));
    assert!(clip(0.25, 6.0).is_err() && clip(0.0, f32::INFINITY).is_err());

    let concat = |rows: usize| {
        let node = node("Concat", &["x", "z"], vec![AttributeProto::int("axis", 1)]);
        judge(node, &[rows, 2, 3], &[rows, 4, 3], Vec::new())
    };
    assert_eq!(concat(1), Ok(()));
    assert!(concat(2).unwrap_err().contains("rows lie before"));

    let reduce = |x: &[usize], y: &[usize], axis| {
        let axes = TensorProto::from_i64("axes", &[axis]);
        judge(node("ReduceSum", &["x", "axes"], Vec::new()), x, y, vec![axes])
    };
    assert_eq!(reduce(&[2, 3, 4], &[2, 1, 4], 1), Ok(()));
    assert!(reduce(&[2, 3, 1], &[2, 1, 1], 1).is_err() && reduce(&[2, 3], &[1, 3], 0).is_err());

    let same = TensorProto::from_f32("c", &[1, 5], &[1.0; 5]);
    let add = node("Add", &["x", "c"], Vec::new());
    assert!(judge(add, &[1, 5], &[1, 5], vec![same]).unwrap_err().contains("rank"));
    for operator in ["Mod", "Gather", "Split", "Pad", "Gemm", "LeakyRelu"] {
        let refused = judge(node(operator, &["x"], Vec::new()), &[1, 5], &[1, 5], Vec::new());
        let refused = refused.unwrap_err();
        assert!(refused.contains(operator) && refused.contains("not in the list"), "{refused}");
    }
}

#[test]
fn tensors_beyond_the_buffers_are_refused() {
    let graph = GraphProto {
        initializer: vec![TensorProto::from_f32("w", &[1 << 10], &[0.0; 1 << 10])],
        ..GraphProto::default()
    };
    let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
    assert_eq!(check(&model, 4096), Ok(()));
    assert!(check(&model, 4095).is_err());
}
