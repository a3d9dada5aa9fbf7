use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::device::{DatasetFacts, Facts};
use crate::id::{Bytes, DatasetName, DeviceId, GroupName, Millis};

fn pi() -> Hello {
    Hello {
        device: DeviceId::parse("pi4").unwrap(),
        instance: "1".to_owned(),
        started_at: Millis(0),
        heartbeat_ms: Millis(2000),
        agent_version: "0.1.0".to_owned(),
        groups: vec![GroupName::parse("lab").unwrap(), GroupName::parse("arm").unwrap()],
        labels: BTreeMap::from([
            ("site".to_owned(), "Roof".to_owned()),
            ("empty".to_owned(), String::new()),
        ]),
        datasets: vec![DatasetFacts {
            columns: Vec::new(),
            name: DatasetName::parse("digits").unwrap(),
            format: "idx".to_owned(),
            shape: vec![1, 28, 28],
            classes: 10,
            train_examples: 1,
            test_examples: 1,
            train_class_counts: Vec::new(),
            labels: Vec::new(),
            mean: Vec::new(),
            std: Vec::new(),
            channel_mean: vec![],
            channel_std: vec![],
        }],
        engines: vec!["native".to_owned(), "tract".to_owned()],
        engine_facts: Vec::new(),
        facts: Facts {
            arch: "aarch64".to_owned(),
            os: "linux".to_owned(),
            model: "Raspberry Pi 4 Model B Rev 1.4".to_owned(),
            cpus: 4,
            memory: Bytes(4 << 30),
            ..Facts::default()
        },
        slots: 1,
        masks: false,
        masks_within: false,
    }
}

#[test]
fn requirements_that_a_device_meets() {
    for text in [
        "",
        " ",
        "device=pi4",
        "arch=arm64",
        "arch==AArch64",
        "arch in (amd64, arm64)",
        "arch!=x86_64,os=linux",
        "model=raspberry pi 4*",
        "model=*Model B*",
        "model=*",
        "device=p*4",
        "group=lab,group=arm,group!=other",
        "dataset=digits",
        "engine=tract",
        "accelerator notin (cuda,webgpu)",
        "label.site=roof",
        "label.empty",
        "label.nothing!=x",
        "!label.nothing",
        "cpus>=4",
        "cpus<5",
        "memory>=4GiB",
        "memory >= 4000 MB , memory<5gib",
    ] {
        assert!(Selector::parse(text).unwrap().matches(&pi()), "{text:?}");
    }
}

#[test]
fn requirements_that_a_device_does_not_meet() {
    for text in [
        "device=pi",
        "device=pi4x",
        "device=*pi",
        "device=p*i*p*4",
        "arch=arm",
        "arch=armv7",
        "arch!=arm64",
        "arch notin (arm64)",
        "os=darwin",
        "group notin (lab)",
        "dataset=cifar10",
        "engine=cuda",
        "!engine",
        "label.site!=roof",
        "!label.site",
        "label.nothing",
        "label.nothing=*",
        "cpus>=5",
        "cpus<4",
        "memory<4GiB",
        "arch=arm64,os=macos",
    ] {
        assert!(!Selector::parse(text).unwrap().matches(&pi()), "{text:?}");
    }
}

#[test]
fn an_unknown_fact_is_no_value() {
    let mut device = pi();
    device.facts.model.clear();
    assert!(Selector::parse("!model").unwrap().matches(&device));
    assert!(Selector::parse("model!=x").unwrap().matches(&device));
    assert!(!Selector::parse("model=*").unwrap().matches(&device));
}

#[test]
fn errors_name_the_requirement_and_what_is_accepted() {
    for (text, parts) in [
        ("arch=", ["requirement \"arch=\"", "a value is missing"]),
        ("os=linux,colour=red", ["requirement \"colour=red\"", "device, arch, os"]),
        ("os=linux,", ["requirement \"\"", "expected 'key=value'"]),
        ("arch in arm64", ["requirement \"arch in arm64\"", "'key in (a,b)'"]),
        ("arch in (arm64", ["'(' without ')'", "selector"]),
        ("arch in ()", ["requirement \"arch in ()\"", "a value is missing"]),
        ("arch=a=b", ["requirement \"arch=a=b\"", "must not hold"]),
        ("cpus=4", ["requirement \"cpus=4\"", "'>=' and '<'"]),
        ("cpus<=4", ["requirement \"cpus<=4\"", "'>=' and '<'"]),
        ("!memory", ["requirement \"!memory\"", "'>=' and '<'"]),
        ("cpus>=4GiB", ["requirement", "not a number"]),
        ("memory>=4XiB", ["no such unit \"xib\"", "GiB"]),
        ("memory>=99999999999TiB", ["requirement", "fits 64 bits"]),
        ("label.=x", ["requirement \"label.=x\"", "label's key"]),
        ("=x", ["requirement \"=x\"", "expected 'key=value'"]),
    ] {
        let error = Selector::parse(text).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
    assert!(Selector::parse(&"a".repeat(TEXT_LENGTH_MAX + 1)).is_err());
}

#[test]
fn a_selector_is_a_text_in_json() {
    let selector: Selector = serde_json::from_str("\"arch=arm64, memory>=1KiB\"").unwrap();
    assert_eq!(serde_json::to_string(&selector).unwrap(), "\"arch=aarch64,memory>=1024\"");
    let error = serde_json::from_str::<Selector>("\"colour=red\"").unwrap_err();
    assert!(error.to_string().contains("colour"), "{error}");
}

fn value() -> impl Strategy<Value = String> {
    "[a-z0-9*._-]{1,3}( [a-z*]{1,2})?"
}

fn requirement() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec!["device", "arch", "model", "engine", "label.a-b.c"]);
    let has = (key.clone(), prop::sample::select(vec!["=", "!="]), value())
        .prop_map(|(key, operator, value)| format!("{key}{operator}{value}"));
    let list = (key.clone(), prop::sample::select(vec!["in", "notin"]), value(), value())
        .prop_map(|(key, operator, one, two)| format!("{key}  {operator} ({one} ,{two})"));
    let number = (0_u64..5000).prop_map(|limit| format!("memory>={limit}MiB"));
    prop_oneof![has, list, number, key.prop_map(str::to_owned)]
}

/// The obvious way: every cut of the text.
fn is_like_slowly(text: &str, pattern: &str) -> bool {
    match pattern.chars().next() {
        None => text.is_empty(),
        Some('*') => (0..=text.len()).any(|cut| is_like_slowly(&text[cut..], &pattern[1..])),
        Some(first) => {
            text.strip_prefix(first).is_some_and(|rest| is_like_slowly(rest, &pattern[1..]))
        }
    }
}

proptest! {
    #[test]
    fn the_text_parses_back(requirements in prop::collection::vec(requirement(), 0..4)) {
        let selector = Selector::parse(&requirements.join(",")).unwrap();
        prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
    }

    #[test]
    fn foreign_text_never_panics(text in "[a-z=!<>(),.* é]{0,20}") {
        if let Ok(selector) = Selector::parse(&text) {
            selector.matches(&pi());
            prop_assert_eq!(Selector::parse(&selector.to_string()).unwrap(), selector);
        }
    }

    #[test]
    fn patterns_match_as_every_cut_says(text in "[ab]{0,7}", pattern in "[ab*]{0,6}") {
        prop_assert_eq!(is_like(&text, &pattern), is_like_slowly(&text, &pattern));
    }
}
