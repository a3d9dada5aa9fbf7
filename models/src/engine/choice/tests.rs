use proptest::prelude::*;

use super::*;

const ENGINES: [(&str, bool); 5] =
    [("native", true), ("tract", true), ("webgpu", false), ("cuda", false), ("ort-cpu", false)];

fn measured(micros: u64) -> State {
    State::Measured(Duration::from_micros(micros))
}

fn standings(states: [State; 5]) -> Vec<Standing> {
    let each = ENGINES.into_iter().zip(states);
    each.map(|((engine, cpu), state)| Standing { engine, cpu, state }).collect()
}

#[test]
fn the_fastest_measured_one_answers_and_the_cpu_closes_the_list() {
    let all = standings([
        measured(2000),
        measured(3000),
        measured(1000),
        State::Refused("no CUDA device".into()),
        measured(2500),
    ]);
    let choice = choose(&all, |_| true);
    assert_eq!(choice.ranked, ["webgpu", "native", "tract"]);
    let reasons: Vec<_> =
        choice.refused.iter().map(|refusal| (refusal.engine, refusal.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [("cuda", "no CUDA device"), ("ort-cpu", "slower: 2.50 ms, native takes 2.00 ms")]
    );
}

#[test]
fn a_request_forces_and_forbids() {
    let all = standings([measured(1), State::Ready, measured(2), measured(3), State::Untried]);
    assert_eq!(choose(&all, |engine| engine != "native").ranked, ["webgpu", "cuda", "tract"]);
    let forced = choose(&all, |engine| engine == "cuda");
    assert_eq!(forced.ranked, ["cuda"]);
    assert!(forced.refused.iter().all(|refusal| refusal.reason.contains("does not allow")));
    assert_eq!(choose(&all, |engine| engine == "ort-cpu").ranked, [""; 0]);
}

#[test]
fn nobody_is_trusted_unmeasured_but_the_cpu() {
    let all = standings([
        State::Refused("operator Mod".into()),
        State::Ready,
        State::Ready,
        State::Untried,
        measured(9),
    ]);
    let choice = choose(&all, |_| true);
    assert_eq!(choice.ranked, ["ort-cpu", "tract"]);
    assert_eq!(choice.refused[1].reason, "it was not compared with the CPU so far");
}

fn state() -> impl Strategy<Value = State> {
    prop_oneof![
        Just(State::Untried),
        Just(State::Refused("no".into())),
        Just(State::Failed("signal 11".into())),
        Just(State::Ready),
        (0_u64..50).prop_map(measured),
    ]
}

proptest! {
    #[test]
    fn every_engine_is_ranked_or_refused(
        states in prop::array::uniform5(state()),
        allow in prop::array::uniform5(any::<bool>()),
    ) {
        let all = standings(states);
        let allowed =
            |engine: &str| allow[ENGINES.iter().position(|(name, _)| *name == engine).unwrap()];
        let choice = choose(&all, allowed);
        let find = |name: &str| all.iter().find(|standing| standing.engine == name).unwrap();
        let mut seen: Vec<_> = choice.ranked.clone();
        seen.extend(choice.refused.iter().map(|refusal| refusal.engine));
        seen.sort_unstable();
        let mut names = ENGINES.map(|(name, _)| name);
        names.sort_unstable();
        prop_assert_eq!(seen, names);
        for name in &choice.ranked {
            let standing = find(name);
            prop_assert!(allowed(name));
            prop_assert!(
                matches!(standing.state, State::Measured(_))
                    || (standing.cpu && standing.state == State::Ready)
            );
        }
        let usable = all.iter().any(|standing| {
            standing.cpu
                && allowed(standing.engine)
                && matches!(standing.state, State::Ready | State::Measured(_))
        });
        prop_assert_eq!(choice.ranked.last().is_some_and(|name| find(name).cpu), usable);
        let times: Vec<_> = choice.ranked.iter().filter_map(|name| match find(name).state {
            State::Measured(time) => Some(time),
            State::Untried | State::Refused(_) | State::Failed(_) | State::Ready => None,
        }).collect();
        prop_assert!(times.is_sorted());
    }
}

#[test]
fn outputs_are_held_to_the_cpus() {
    let floats = |values: &[f32]| [Tensor::f32(&[values.len()], values.to_vec()).unwrap()];
    let same = |a: &[f32], b: &[f32]| compare(&floats(a), &floats(b), 1e-3);
    assert_eq!(same(&[1.0, 100.0], &[1.05, 100.0]), Ok(()));
    assert_eq!(same(&[1e-9, f32::NAN], &[2e-9, f32::NAN]), Ok(()));
    assert_eq!(same(&[f32::INFINITY], &[f32::INFINITY]), Ok(()));
    assert_eq!(same(&[2e-4, 5e-4], &[2.002e-4, 5e-4]), Ok(()));
    for (a, b) in [
        ([1.0, 100.0], [1.2, 100.0]),
        // A regression's small numbers, and ones from which nothing is to be seen but that they are
        // not the same.
        ([2e-4, 5e-4], [2.01e-4, 5e-4]),
        ([2e-6, 1e-6], [0.0, 0.0]),
        ([1.0, 2.0], [1.0, f32::NAN]),
        ([f32::NAN, 2.0], [1.0, 2.0]),
        ([f32::INFINITY, 2.0], [1.0, 2.0]),
    ] {
        let refused = same(&a, &b).unwrap_err();
        assert!(refused.contains("output 0 differs from the CPU's"), "{a:?} {b:?}: {refused}");
    }
    let flat = [1.0 / 2000.0; 2000];
    assert!(same(&flat, &[0.0; 2000]).is_err(), "the probabilities of many classes");
    let refused = same(&[1.0], &[1.0, 1.0]).unwrap_err();
    assert_eq!(refused, "output 0 is FP32[2], the CPU's is FP32[1]");
    assert!(compare(&floats(&[1.0]), &[], 1e-3).unwrap_err().contains("0 outputs"));
    let bytes = |values: [u8; 2]| [Tensor::new(&[2], Data::U8(values.to_vec())).unwrap()];
    assert_eq!(compare(&bytes([1, 255]), &bytes([2, 254]), 0.0), Ok(()));
    assert!(compare(&bytes([1, 255]), &bytes([3, 255]), 0.0).is_err());
    let index = |value: i64| [Tensor::new(&[1], Data::I64(vec![value])).unwrap()];
    assert!(compare(&index(i64::MAX), &index(i64::MAX - 1), 1.0).is_err());
}
