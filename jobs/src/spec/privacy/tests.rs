use super::*;
use crate::spec::{JobSpec, validate};

const CENTRAL: &str =
    r#"{"clip":{"norm":1},"noise_multiplier":1.1,"delta":1e-5,"epsilon_budget":8}"#;

/// The fields that are wrong with a training with this promise and these further members.
fn wrong(privacy: &str, more: &str) -> String {
    let text = format!(
        r#"{{"deadline_ms":1,"work":{{"kind":"train","model":"mlp","dataset":"digits","rounds":1,
        "privacy":{privacy}{more}}}}}"#
    );
    let spec: JobSpec = serde_json::from_str(&text).unwrap();
    let problems = validate(&spec);
    let fields: Vec<&str> = problems.iter().map(|problem| &problem.field[..]).collect();
    fields.join(" ").replace("work.", "").replace("privacy.", "")
}

const DEVICES: &str = r#","participation":{"devices":10}"#;

#[test]
fn a_promise_that_can_be_kept_is_valid() {
    assert_eq!(wrong(CENTRAL, DEVICES), "");
    for privacy in [
        r#"{"clip":{"adaptive":{}},"noise_multiplier":0.9,"delta":1e-5,"epsilon_budget":8}"#,
        r#"{"clip":{"adaptive":{"initial":2,"quantile":0.75,"rate":0.1,"count_deviation":5}},
            "noise_multiplier":2,"delta":1e-5,"epsilon_budget":8,"sampling_rate":0.1}"#,
    ] {
        assert_eq!(wrong(privacy, DEVICES), "");
    }
    let local = r#"{"mode":"local","clip":{"norm":1},"noise_multiplier":4,"delta":1e-5,
        "epsilon_budget":8}"#;
    assert_eq!(wrong(local, r#","evaluate":false,"strategy":{"name":"normbound","norm":1}"#), "");
}

#[test]
fn every_problem_of_a_promise_is_found_at_once() {
    let bad = r#"{"clip":{"norm":0},"noise_multiplier":0,"delta":1,"epsilon_budget":-1,
        "sampling_rate":0}"#;
    let more = r#","target_accuracy":0.5,"early_stopping":{"patience":1},"keep":"best","strategy":{"name":"normbound","norm":1},
        "participation":{"over_selection":0.5}"#;
    assert_eq!(
        wrong(bad, more),
        "clip.norm noise_multiplier delta epsilon_budget sampling_rate target_accuracy \
         early_stopping keep participation.over_selection participation.devices strategy"
    );
    let adaptive = r#"{"clip":{"adaptive":{"initial":0,"quantile":2,"rate":0,
        "count_deviation":0}},"noise_multiplier":1,"delta":0.1,"epsilon_budget":8}"#;
    let fields = "initial quantile rate count_deviation";
    assert_eq!(wrong(adaptive, DEVICES).replace("clip.adaptive.", ""), fields);
    let local = r#"{"mode":"local","clip":{"adaptive":{}},"noise_multiplier":1,"delta":1e-5,
        "epsilon_budget":8,"sampling_rate":0.5}"#;
    let scaffold = r#","strategy":{"name":"scaffold"},"local":{"momentum":0,
        "noised":{"norm":1,"noise_multiplier":1},"update_norm_max":1}"#;
    assert_eq!(
        wrong(local, scaffold),
        "local.noised local.update_norm_max clip sampling_rate strategy evaluate"
    );
}

/// Noise that is cut off is not what the accountant counts on for learning anything.
#[test]
fn what_is_masked_has_room_for_its_noise() {
    let with = |mode: &str, norm: f64, noise: f64, secure: &str| {
        let privacy = format!(
            r#"{{"mode":"{mode}","clip":{{"norm":{norm}}},"noise_multiplier":{noise},"delta":1e-5,
            "epsilon_budget":8}}"#
        );
        let more = format!(
            r#","evaluate":false,"participation":{{"devices":10,"quorum":3}},
            "secure_aggregation":{{{secure}}}"#
        );
        wrong(&privacy, &more).replace("secure_aggregation.", "")
    };
    let masked = |mode: &str, secure: &str| with(mode, 0.5, 4.0, secure);
    assert_eq!(masked("local", r#""clip":16.5"#), "");
    assert_eq!(with("local", 0.1, 5.0, r#""clip":4.1"#), "", "0.1 x 41");
    assert_eq!(with("local", 0.1, 5.0, r#""clip":4.0999"#), "clip");
    assert_eq!(masked("local", r#""clip":16.4,"weight_max":9"#), "weight_max clip");
    assert_eq!(masked("central", ""), "");
    assert_eq!(masked("central", r#""weight_max":2"#), "weight_max");
    let sampled = r#"{"clip":{"adaptive":{}},"noise_multiplier":0.45,"delta":1e-5,
        "epsilon_budget":90,"sampling_rate":0.5}"#;
    let more = r#","participation":{"devices":10,"quorum":3},"secure_aggregation":{}"#;
    assert_eq!(wrong(sampled, more), "sampling_rate");
}

/// To follow the updates' length is to know how many were shortened: of many that can be said
/// behind masks, of one by itself its own noise would have to cover it.
#[test]
fn a_norm_follows_masked_updates_but_none_that_devices_noise() {
    let local =
        "a norm, because a device's own noise covers its update, not whether it was shortened";
    for (mode, why) in [("central", None), ("local", Some(local))] {
        let text = format!(
            r#"{{"model":"mlp","dataset":"digits","rounds":1,"evaluate":false,
            "participation":{{"devices":10,"quorum":3}},"secure_aggregation":{{"clip":100}},
            "privacy":{{"mode":"{mode}","clip":{{"adaptive":{{"count_deviation":9}}}},
            "noise_multiplier":4,"delta":1e-5,"epsilon_budget":8}}}}"#
        );
        let spec: TrainSpec = serde_json::from_str(&text).unwrap();
        assert!(spec.masks_within());
        let found = problems(&spec).into_iter().filter(|(field, ..)| field.starts_with("privacy"));
        let expected =
            why.map(|why| ("privacy.clip".to_owned(), "adaptive".to_owned(), why.to_owned()));
        assert_eq!(found.collect::<Vec<_>>(), Vec::from_iter(expected), "{mode}");
        assert!(!TrainSpec { secure_aggregation: None, ..spec.clone() }.masks_within());
        assert!(!TrainSpec { privacy: None, ..spec }.masks_within());
    }
}

#[test]
fn losses_do_not_say_who_takes_part() {
    let part = |selection: &str| {
        format!(r#","participation":{{"devices":10,"selection":{{"kind":"{selection}"}}}}"#)
    };
    let sampled = r#"{"clip":{"norm":1},"noise_multiplier":4,"delta":1e-5,"epsilon_budget":8,
        "sampling_rate":0.1}"#;
    for (privacy, selection, fields) in [
        (CENTRAL, "by_loss", "participation.selection"),
        (CENTRAL, "round_robin", ""),
        (sampled, "round_robin", "participation.selection"),
        (sampled, "windows", ""),
    ] {
        assert_eq!(wrong(privacy, &part(selection)), fields, "{selection}");
    }
}

#[test]
fn a_promise_that_the_first_round_breaks_says_what_would_keep_it() {
    let text = CENTRAL.replace(":8}", ":2}");
    assert_eq!(wrong(&text, DEVICES), "epsilon_budget");
    let privacy: Privacy = serde_json::from_str(&text).unwrap();
    let spec = |privacy| {
        let text = format!(r#"{{"model":"mlp","dataset":"digits","rounds":1{DEVICES}}}"#);
        TrainSpec { privacy: Some(privacy), ..serde_json::from_str(&text).unwrap() }
    };
    let problems = problems(&spec(privacy));
    let expected = &problems[0].2;
    let noise = expected.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(expected.starts_with("at least 3.92"), "{expected}");
    let enough = Privacy { noise_multiplier: noise, ..privacy };
    assert!((1.9..=2.0).contains(&enough.epsilon(1)), "{expected}");
    // A count with little noise costs more than the whole round may.
    let clip = Clip::Adaptive(AdaptiveClip { count_deviation: Some(0.5), ..Default::default() });
    let privacy = Privacy { clip, epsilon_budget: 8.0, ..privacy };
    let problems = super::problems(&spec(privacy));
    assert_eq!(problems[0].0, "privacy.noise_multiplier");
    assert!(problems[0].2.starts_with("below 1, twice"), "{problems:?}");
}

#[test]
fn rounds_cost_until_the_budget_is_spent() {
    let privacy: Privacy = serde_json::from_str(CENTRAL).unwrap();
    let costs: Vec<f64> = (0..6).map(|rounds| privacy.epsilon(rounds)).collect();
    assert!(costs[0] <= 0.0 && costs.windows(2).all(|pair| pair[0] < pair[1]), "{costs:?}");
    let allowed = (0..100).take_while(|rounds| privacy.allows(*rounds)).count();
    assert!(costs[allowed - 1] <= 8.0 && privacy.epsilon(u32::try_from(allowed).unwrap()) > 8.0);
    for max in [1, 2, 3, 5, 1000] {
        let within = u32::try_from(allowed - 1).unwrap().min(max);
        assert_eq!(privacy.rounds_within(max), within);
    }
    assert_eq!(Privacy { epsilon_budget: 0.1, ..privacy }.rounds_within(9), 0);
}

/// Andrew et al. 2021: the norm grows where all updates are longer. Flower 1.41 counts those that
/// were shortened in place of the others, and its norm shrinks to 0.2715.
#[test]
fn an_adaptive_norm_follows_the_updates() {
    let clip = Clip::Adaptive(AdaptiveClip { initial: 0.3, ..AdaptiveClip::default() });
    let privacy = Privacy { clip, ..serde_json::from_str(CENTRAL).unwrap() };
    let next = |within| privacy.next_norm(privacy.initial_norm(), within);
    assert!((next(Some(0.0)) - 0.331_551_275_422_694_3).abs() < 1e-12);
    assert!((next(Some(1.0)) - 0.3 * (-0.1_f64).exp()).abs() < 1e-12);
    assert!((next(Some(0.5)) - 0.3).abs() < 1e-12 && (next(None) - 0.3).abs() < 1e-12);
    assert!(next(Some(-1e9)) <= 1e12 && next(Some(1e9)) >= 1e-12);
    let fixed = Privacy { clip: Clip::Norm(2.0), ..privacy };
    assert!((fixed.next_norm(2.0, Some(0.0)) - 2.0).abs() < 1e-12);
}

#[test]
fn text_and_json_say_the_same() {
    for text in [
        "central:norm=1,noise_multiplier=1.1,delta=0.00001,epsilon_budget=8",
        "local:norm=0.5,noise_multiplier=4,delta=0.00001,epsilon_budget=8",
        "central:initial=0.1,quantile=0.5,rate=0.2,noise_multiplier=1.1,delta=0.00001,\
         epsilon_budget=8",
        "central:initial=0.1,quantile=0.75,rate=0.2,count_deviation=5,noise_multiplier=1.1,\
         delta=0.00001,epsilon_budget=8,sampling_rate=0.25",
    ] {
        let privacy: Privacy = text.parse().unwrap();
        assert_eq!(privacy.to_string(), text);
        let written = serde_json::to_string(&privacy).unwrap();
        assert_eq!(serde_json::from_str::<Privacy>(&written).unwrap(), privacy);
    }
    let short: Privacy =
        "central:delta=1e-5,initial=0.1,noise_multiplier=1.1,epsilon_budget=8".parse().unwrap();
    assert_eq!(short.clip, Clip::Adaptive(AdaptiveClip::default()));
    for (text, words) in [
        ("central", "norm or initial is missing"),
        ("central:norm=1,rate=0.1", "exclude each other"),
        ("central:norm=1", "missing field `noise_multiplier`"),
        ("outside:norm=1,noise_multiplier=1,delta=0.1,epsilon_budget=1", "unknown variant"),
        ("central:norm=1,noise=1", "unknown field `noise`"),
        ("central:norm=much", "norm is \"much\""),
    ] {
        let error = text.parse::<Privacy>().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}
