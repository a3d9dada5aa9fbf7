//! Strategies as text and JSON, and what is wrong with them.

use super::*;

#[test]
fn text_and_json_say_the_same() {
    for (text, json) in [
        ("fedavg", r#"{"name":"fedavg"}"#),
        ("fedavgm:learning_rate=1.0,momentum=0.5", r#"{"name":"fedavgm","momentum":0.5}"#),
        ("fedadagrad:learning_rate=0.1,tau=0.001", r#"{"name":"fedadagrad"}"#),
        (
            "fedadam:beta1=0.9,beta2=0.99,learning_rate=0.1,tau=0.25",
            r#"{"name":"fedadam","tau":0.25}"#,
        ),
        ("fedyogi:beta1=0.9,beta2=0.99,learning_rate=0.01,tau=0.001", r#"{"name":"fedyogi"}"#),
        (
            "fedadagrad:learning_rate=0.1,tau=0.5,v0=0.25",
            r#"{"name":"fedadagrad","tau":0.5,"v0":0.25}"#,
        ),
        ("qfedavg:q=0.1", r#"{"name":"qfedavg"}"#),
        ("qfedavg:learning_rate=0.5,q=2.0", r#"{"name":"qfedavg","q":2,"learning_rate":0.5}"#),
        ("fednova", r#"{"name":"fednova"}"#),
        ("scaffold:learning_rate=1.0", r#"{"name":"scaffold"}"#),
        ("fedmedian", r#"{"name":"fedmedian"}"#),
        ("fedtrimmedavg:fraction=0.2", r#"{"name":"fedtrimmedavg"}"#),
        ("krum:byzantine=2", r#"{"name":"krum","byzantine":2}"#),
        ("multikrum:byzantine=0", r#"{"name":"multikrum"}"#),
        ("multikrum:byzantine=1,selected=3", r#"{"name":"multikrum","byzantine":1,"selected":3}"#),
        ("bulyan:byzantine=1", r#"{"name":"bulyan","byzantine":1}"#),
        ("geometricmedian", r#"{"name":"geometricmedian"}"#),
        ("centredclipping:iterations=1,radius=2.5", r#"{"name":"centredclipping","radius":2.5}"#),
        ("normbound:norm=10.0", r#"{"name":"normbound","norm":10}"#),
    ] {
        let strategy: Strategy = text.parse().unwrap();
        assert_eq!(serde_json::from_str::<Strategy>(json).unwrap(), strategy);
        let written = serde_json::to_string(&strategy).unwrap();
        assert_eq!(serde_json::from_str::<Strategy>(&written).unwrap(), strategy);
        assert_eq!(strategy.to_string().parse(), Ok(strategy));
        let mut words: Vec<String> = text.split([':', ',']).map(str::to_owned).collect();
        let shown = strategy.to_string();
        let mut found: Vec<String> = shown.split([':', ',']).map(str::to_owned).collect();
        words.sort();
        found.sort();
        assert_eq!(found, words);
    }
    assert_eq!("fedavg".parse(), Ok(Strategy::default()));
    assert_eq!("fedadam".parse(), Ok(Strategy::FedAdam(FedAdam::default())));
}

#[test]
fn settings_out_of_range_are_found() {
    for (text, names) in [
        ("fedavg", ""),
        ("fedadam", ""),
        ("fedavgm:learning_rate=0,momentum=1", "learning_rate momentum"),
        ("fedadagrad:tau=0,learning_rate=inf", "learning_rate tau"),
        ("fedyogi:beta1=-0.1,beta2=1,tau=-1", "beta1 beta2 tau"),
        ("fedyogi:v0=-1e-6", "v0"),
        ("fedadam:v0=1e31", "v0"),
        ("fedadagrad:v0=1e-6", ""),
        ("qfedavg:q=-1,learning_rate=0", "q learning_rate"),
        ("scaffold:learning_rate=0", "learning_rate"),
        ("fedtrimmedavg:fraction=0.5", "fraction"),
        ("fedtrimmedavg:fraction=0", "fraction"),
        ("krum", "byzantine"),
        ("bulyan", "byzantine"),
        ("multikrum", "byzantine"),
        ("multikrum:byzantine=1", ""),
        ("multikrum:selected=0", "byzantine selected"),
        ("centredclipping:radius=0,iterations=0", "radius iterations"),
        ("normbound:norm=-1", "norm"),
    ] {
        let strategy = text.parse::<Strategy>();
        // JSON has no infinity: it is refused before.
        let Ok(strategy) = strategy else {
            assert!(text.contains("inf"), "{strategy:?}");
            continue;
        };
        let found: Vec<&str> = strategy.problems().iter().map(|problem| problem.0).collect();
        assert_eq!(found.join(" "), names);
    }
    let steep = FedAdam { learning_rate: f64::INFINITY, ..FedAdam::default() };
    assert_eq!(Strategy::FedAdam(steep).problems()[0].0, "learning_rate");
}

#[test]
fn what_is_no_strategy_says_why() {
    for (text, words) in [
        ("fedsum", "unknown variant `fedsum`, expected one of"),
        ("fedprox", "no strategy is named fedprox: any strategy is that with a proximal term"),
        ("fedprox:mu=0.1", "--proximal 0.01, local.proximal in JSON and plans"),
        ("FedBN", "--keep-local '*norm*', local.kept_local in JSON and plans"),
        ("fedcyclic", "--selection cyclic, participation.selection {\"kind\": \"cyclic\"}"),
        ("q-FedAvg", "it is written qfedavg"),
        ("Multi-Krum:byzantine=1", "it is written multikrum"),
        ("secagg+", "--secure-aggregation, secure_aggregation in JSON"),
        ("normbound", "missing field `norm`"),
        ("krum:byzantine=0.5", "expected u32"),
        ("", "unknown variant ``"),
        ("fedavg:momentum=0.9", "unknown field `momentum`"),
        ("fedadam:momentum=0.9", "unknown field `momentum`"),
        ("fedadam:beta1", "\"beta1\" has no value"),
        ("fedadam:beta1=much", "beta1 is \"much\", not a number"),
        ("fedadam:beta1=0,beta1=0", "beta1 is there twice"),
    ] {
        let error = text.parse::<Strategy>().unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn a_name_of_elsewhere_is_told_in_json_too() {
    let error = serde_json::from_str::<Strategy>(r#"{"name": "fedprox", "mu": 1}"#).unwrap_err();
    assert!(error.to_string().contains("local.proximal in JSON and plans"), "{error}");
    for name in elsewhere::NAMES {
        let strategy: Result<Strategy, _> = name.parse();
        let error = strategy.map_or_else(|error| error.to_string(), |_| String::new());
        assert!(!error.contains("unknown variant"), "{error}");
    }
}

#[test]
fn a_strategy_says_what_local_training_it_cannot_do_with() {
    let plain = LocalTraining { momentum: 0.0, ..LocalTraining::default() };
    let found = |strategy: &str, local: &LocalTraining| {
        let strategy: Strategy = strategy.parse().unwrap();
        let names: Vec<&str> = strategy.conflicts(local).iter().map(|found| found.0).collect();
        names.join(" ")
    };
    let untrained = LocalTraining { epochs: 0, ..plain.clone() };
    let adam = LocalTraining { optimizer: Optimizer::Adam, warm_up: 3, ..plain.clone() };
    let proximal = LocalTraining { proximal: 0.5, ..LocalTraining::default() };
    let pulled = LocalTraining { proximal: 20.0, ..plain.clone() };
    let kept = LocalTraining {
        kept_local: vec!["bn*".to_owned()],
        gradient_norm_max: Some(1.0),
        ..plain.clone()
    };
    for (strategy, local, names) in [
        ("fedavg", &untrained, ""),
        ("fedadam", &adam, ""),
        ("qfedavg", &untrained, "epochs"),
        ("qfedavg", &adam, ""),
        ("fednova", &plain, ""),
        ("fednova", &LocalTraining::default(), ""),
        ("fednova", &kept, ""),
        ("fednova", &untrained, "epochs"),
        ("fednova", &adam, "optimizer schedule"),
        ("fednova", &proximal, "proximal"),
        ("fednova", &pulled, "proximal"),
        ("scaffold", &plain, ""),
        ("scaffold", &LocalTraining::default(), "momentum"),
        ("scaffold", &adam, "optimizer schedule"),
        ("scaffold", &proximal, "momentum proximal"),
        ("scaffold", &kept, "gradient_norm_max kept_local"),
    ] {
        assert_eq!(found(strategy, local), names, "{strategy} {local:?}");
    }
}

#[test]
fn an_update_without_what_its_strategy_needs_is_refused() {
    let blob = crate::id::BlobRef::by_digest(
        format!("sha256:{:064x}", 1).parse().unwrap(),
        crate::id::Bytes(8),
    );
    let update = UpdateReport {
        parameters: blob.clone(),
        examples: 3,
        loss: 0.5,
        accuracy: 0.5,
        steps: 2,
        duration_ms: crate::id::Millis(1),
        engine: "native".to_owned(),
        initial_loss: None,
        control_change: None,
        held: false,
        crc32: None,
        control_anew: false,
    };
    let refused = |strategy: &str, update: &UpdateReport| {
        let local = LocalTraining { epochs: 5, batch_size: 2, ..LocalTraining::default() };
        strategy.parse::<Strategy>().unwrap().refuses(&local, update).unwrap_or_default()
    };
    let loss = |loss| UpdateReport { initial_loss: Some(loss), ..update.clone() };
    let steps = |steps| UpdateReport { steps, ..update.clone() };
    let control = UpdateReport { control_change: Some(blob), ..update.clone() };
    for (strategy, update, words) in [
        ("fedavg", &update, ""),
        ("qfedavg", &loss(0.0), ""),
        ("qfedavg", &update, "the loss before the training is missing"),
        ("qfedavg", &loss(1e38), ""),
        ("qfedavg", &loss(1e308), "1e308, expected 0 to 3.4028234663852886e38"),
        ("qfedavg:q=0", &loss(1e30), ""),
        ("qfedavg:q=0", &loss(1e308), "expected 0 to 3.4028234663852886e38"),
        ("qfedavg:q=100", &loss(99.0), ""),
        ("qfedavg:q=100", &loss(101.0), "is 1.01e2, expected 0 to"),
        ("qfedavg", &loss(f64::NAN), "NaN"),
        ("qfedavg", &loss(-1.0), "-1"),
        ("fednova", &steps(10), ""),
        ("fednova", &steps(0), "0 steps, expected 1 to 4294967295"),
        ("fednova", &steps(9), "9 steps, expected 10: epochs 5 of 3 examples in batches of 2"),
        ("fednova", &steps(11), "11 steps, expected 10"),
        ("fedavg", &steps(11), ""),
        ("fednova", &steps(u64::MAX), "expected 1 to"),
        ("scaffold", &control, ""),
        ("scaffold", &update, "control variate is missing"),
    ] {
        let found = refused(strategy, update);
        assert_eq!(found.is_empty(), words.is_empty(), "{strategy}: {found:?}");
        assert!(found.contains(words), "{strategy}: {found:?}");
    }
}
