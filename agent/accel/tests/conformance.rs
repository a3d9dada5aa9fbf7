//! Answers of engines beside those of the processor's own engine, operator by operator and family
//! by family.

use std::collections::BTreeSet;

use models::engine::frames::Reply;
use models::engine::plain::{OPERATORS, Plain};
use models::tensor::Tensor;
use models::train::{Loss, Trainer};
use models::zoo;

use super::process::{Helper, engines, settings};

pub(crate) mod forms;

/// Values between -1 and 1.
pub(crate) fn examples(count: usize, len: usize) -> Vec<f32> {
    let mut state = 17_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from(u16::try_from(state >> 16).unwrap()) / 32768.0 - 1.0
    };
    (0..count * len).map(|_| next()).collect()
}

/// Logits of the processor's engine.
pub(crate) fn reference(onnx: &[u8], examples: &[f32]) -> Vec<f32> {
    Trainer::for_evaluation(onnx, Loss::default()).unwrap().logits(examples).unwrap()
}

/// Runs a model in an engine and compares, one example and a batch that WebGPU cuts in two; what is
/// wrong.
fn check(
    helper: &mut Helper,
    engine: &str,
    name: &str,
    example: &[usize],
    onnx: &[u8],
) -> Result<(), String> {
    let loaded = helper.load(1, onnx);
    if !matches!(loaded, Reply::Loaded { .. }) {
        return Err(format!("{engine}: {name}: {loaded:?}"));
    }
    for count in [1, 5] {
        let values = examples(count, example.iter().product());
        let expected = reference(onnx, &values);
        let shape: Vec<usize> = std::iter::once(count).chain(example.iter().copied()).collect();
        let input = Tensor::f32(&shape, values).unwrap();
        let answered = helper.run(1, &[input]);
        let (answered, _) = answered.map_err(|reason| format!("{engine}: {name}: {reason}"))?;
        let found = accel::probe::difference(answered[0].as_f32().unwrap(), &expected);
        let tolerance = accel::probe::tolerance(engine);
        if found > tolerance {
            return Err(format!("{engine}: {name}, {count} examples: {found:.1e}"));
        }
    }
    Ok(())
}

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

fn check_forms(forms: &[forms::Form]) {
    let mut problems = Vec::new();
    for engine in &engines() {
        let Some(settings) = settings(engine) else { continue };
        let mut helper = Helper::start(engine, &settings);
        let before = problems.len();
        for form in forms {
            let checked = check(&mut helper, engine, &form.name, &form.example, &form.onnx);
            problems.extend(checked.err());
        }
        let right = forms.len() - (problems.len() - before);
        println!("{engine}: {right} of {} forms answered as the processor's engine", forms.len());
    }
    assert_none(&problems);
}

#[test]
fn convolutions_answer_as_the_processor() {
    check_forms(&forms::convolutions());
}

#[test]
fn pools_answer_as_the_processor() {
    check_forms(&forms::pools());
}

#[test]
fn functions_answer_as_the_processor() {
    check_forms(&forms::functions());
}

#[test]
fn arithmetic_answers_as_the_processor() {
    check_forms(&forms::arithmetic());
}

#[test]
fn moves_and_sums_answer_as_the_processor() {
    check_forms(&forms::shapes());
}

#[test]
fn each_entry_of_the_list_has_a_form() {
    let mut covered = BTreeSet::new();
    for form in forms::all() {
        let plain = Plain::read(&form.onnx).unwrap().to_onnx(1).unwrap();
        let graph = models::onnx::parse(&plain).unwrap().graph.unwrap();
        covered.extend(graph.node.into_iter().map(|node| node.op_type));
    }
    let all: BTreeSet<String> = OPERATORS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(covered, all);
}

/// Small pictures: software Vulkan takes its time to compile shaders.
#[test]
fn families_of_the_zoo_answer_as_the_processor() {
    const FAMILIES: [&str; 5] =
        ["lenet", "resnet8", "mobilenet_v2", "mobilenet_v3_small", "squeezenet"];
    let mut problems = Vec::new();
    for engine in &engines() {
        let Some(settings) = settings(engine) else { continue };
        let mut helper = Helper::start(engine, &settings);
        for family in FAMILIES {
            let onnx = zoo::build(family, [3, 16, 16], 10, 3).unwrap();
            let trainer = Trainer::for_evaluation(&onnx, Loss::default()).unwrap();
            let onnx = trainer.to_folded_onnx();
            problems.extend(check(&mut helper, engine, family, &[3, 16, 16], &onnx).err());
        }
    }
    assert_none(&problems);
}

#[test]
fn a_final_softmax_is_computed() {
    let (example, logits, softmax) = forms::with_final_softmax();
    for engine in &engines() {
        let Some(settings) = settings(engine) else { continue };
        let mut helper = Helper::start(engine, &settings);
        assert!(matches!(helper.load(1, &softmax), Reply::Loaded { .. }));
        let values = examples(3, example);
        let expected: Vec<f32> = reference(&logits, &values)
            .chunks(4)
            .flat_map(|row| {
                let sum: f32 = row.iter().map(|value| value.exp()).sum();
                row.iter().map(move |value| value.exp() / sum).collect::<Vec<_>>()
            })
            .collect();
        let input = Tensor::f32(&[3, example], values).unwrap();
        let (answered, _) = helper.run(1, &[input]).unwrap();
        let found = accel::probe::difference(answered[0].as_f32().unwrap(), &expected);
        assert!(found <= accel::probe::tolerance(engine), "{engine}: {found}");
    }
}

#[test]
fn models_outside_the_list_are_refused_by_node() {
    let Some(settings) = settings("webgpu") else { return };
    let mut helper = Helper::start("webgpu", &settings);
    for (name, onnx) in forms::outside() {
        let Reply::Refused { reason, .. } = helper.load(1, &onnx) else {
            panic!("{name} is loaded")
        };
        assert!(reason.contains(&name), "{reason}");
    }
    assert_eq!(helper.end().0, Some(0));
}
