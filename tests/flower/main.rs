//! The figures of Flower's own unit tests (`unit_tests.json`: facts, no code): each of them is met by
//! a test of ours that is named here, or is excluded with a reason. A figure that is neither, and a
//! test that is not there, fail.
//!
//! The tests read their figures from the same file. This one computes nothing.

#![expect(clippy::unwrap_used, reason = "a test program stops at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

/// Figures by the test of ours that meets them: file, function, Flower's names.
const COUNTERPARTS: &[(&str, &str, &[&str])] = &[
    (
        "models/src/federated/tests/unit_tests.rs",
        "flower_unit_tests",
        &[
            "server/strategy/aggregate_test.py::test_aggregate",
            "server/strategy/aggregate_test.py::test_check_weights_equality_true",
            "server/strategy/aggregate_test.py::test_check_weights_equality_numeric_false",
            "server/strategy/aggregate_test.py::test_check_weights_equality_various_length_false",
            "server/strategy/aggregate_test.py::test_find_reference_weights",
            "server/strategy/aggregate_test.py::test_aggregate_n_closest_weights_mean",
            "server/strategy/bulyan_test.py::test_aggregate_fit",
            "server/strategy/fedadagrad_test.py::test_aggregate_fit",
            "server/strategy/fedavg_test.py::inplace_equivalence",
            "server/strategy/fedavgm_test.py::near_one_lr_no_momentum",
            "server/strategy/fedavgm_test.py::lr_and_momentum",
            "serverapp/strategy/fedavgm_test.py::near_one_lr_no_momentum",
            "serverapp/strategy/fedavgm_test.py::lr_and_momentum",
            "serverapp/strategy/fedavgm_test.py::scalar_weights",
            "server/strategy/fedmedian_test.py::test_aggregate_fit",
            "serverapp/strategy/fedmedian_test.py::test_aggregate_fit",
            "serverapp/strategy/fedmedian_test.py::scalar",
            "server/strategy/krum_test.py::test_aggregate_fit",
            "server/strategy/multikrum_test.py::test_aggregate_fit",
            "serverapp/strategy/multikrum_test.py::krum",
            "serverapp/strategy/multikrum_test.py::multikrum",
            "serverapp/strategy/fedtrimmedavg_test.py::test_aggregate_fit",
            "serverapp/strategy/fedtrimmedavg_test.py::scalar",
            "serverapp/strategy/bulyan_test.py::single_layer_single_value",
            "serverapp/strategy/bulyan_test.py::multiple_layers",
            "serverapp/strategy/bulyan_test.py::beta_equals_one",
            "serverapp/strategy/bulyan_test.py::beta_equals_all",
            "serverapp/strategy/bulyan_test.py::nontrivial_shapes",
            "serverapp/strategy/bulyan_test.py::identical_weights",
            "serverapp/strategy/bulyan_test.py::invalid_beta_too_large",
            "serverapp/strategy/fedopt_test.py::compute_deltat",
            "serverapp/strategy/fedopt_test.py::scalar_arrays",
            "serverapp/strategy/strategy_utils_test.py::arrayrecords",
            "serverapp/strategy/strategy_utils_test.py::consistency",
            "common/differential_privacy_test.py::get_norm",
            "common/differential_privacy_test.py::clip_inputs_inplace",
            "common/differential_privacy_test.py::compute_stdv",
            "common/differential_privacy_test.py::compute_clip_model_update",
            "clientapp/mod/dp_mods_test.py::fixedclipping_scalar",
            "clientapp/mod/dp_mods_test.py::adaptiveclipping_scalar",
            "clientapp/mod/dp_mods_test.py::localdp_scalar",
        ],
    ),
    (
        "jobs/src/round/tests/flower.rs",
        "a_fraction_is_invited",
        &[
            "server/strategy/(fedavg|fedmedian|krum)_test.py::num_fit_clients(20)",
            "server/strategy/(fedavg|fedmedian|krum)_test.py::num_fit_clients(19)",
            "server/strategy/(fedavg|fedmedian|krum)_test.py::num_fit_clients(10)",
            "server/strategy/(fedavg|fedmedian|krum)_test.py::num_fit_clients(9)",
            "server/strategy/(fedavg|fedmedian|krum)_test.py::num_evaluation_clients(40)",
            "server/strategy/(fedavg|fedmedian|krum)_test.py::num_evaluation_clients(39)",
            "server/strategy/(fedavg|fedmedian|krum)_test.py::num_evaluation_clients(20)",
            "server/strategy/(fedavg|fedmedian|krum)_test.py::num_evaluation_clients(19)",
        ],
    ),
    (
        "jobs/src/round/tests/flower.rs",
        "a_quorum_decides",
        &[
            "server/strategy/fault_tolerant_fedavg_test.py::fit_no_results_no_failures",
            "server/strategy/fault_tolerant_fedavg_test.py::fit_no_results",
            "server/strategy/fault_tolerant_fedavg_test.py::fit_not_enough_results",
            "server/strategy/fault_tolerant_fedavg_test.py::fit_just_enough_results",
            "server/strategy/fault_tolerant_fedavg_test.py::fit_no_failures",
        ],
    ),
    (
        "jobs/src/round/tests/flower.rs",
        "judgements_that_came_count",
        &[
            "server/strategy/fault_tolerant_fedavg_test.py::evaluate_no_results_no_failures",
            "server/strategy/fault_tolerant_fedavg_test.py::evaluate_no_results",
            "server/strategy/fault_tolerant_fedavg_test.py::evaluate_just_enough_results",
            "server/strategy/fault_tolerant_fedavg_test.py::evaluate_no_failures",
        ],
    ),
    (
        "jobs/src/round/tests/flower.rs",
        "losses_are_averaged_by_examples",
        &[
            "server/strategy/aggregate_test.py::test_weighted_loss_avg_single_value",
            "server/strategy/aggregate_test.py::test_weighted_loss_avg_multiple_values",
        ],
    ),
    (
        "jobs/src/round/tests/flower.rs",
        "metrics_are_averaged_by_examples",
        &["serverapp/strategy/strategy_utils_test.py::metricrecords"],
    ),
    (
        "jobs/src/round/tests/flower.rs",
        "reports_are_whole",
        &["serverapp/strategy/strategy_utils_test.py::consistency"],
    ),
    (
        "jobs/src/round/tests/flower.rs",
        "an_adaptive_norm_takes_a_part_of_the_noise",
        &["common/differential_privacy_test.py::compute_adaptive_noise_params"],
    ),
    (
        "secagg/src/tests/flower.rs",
        "shares_give_the_secret_or_nothing",
        &[
            "common/secure_aggregation/crypto/shamir_test.py::roundtrip",
            "common/secure_aggregation/crypto/shamir_test.py::empty",
            "common/secure_aggregation/crypto/shamir_test.py::block_multiple / non_aligned",
            "common/secure_aggregation/crypto/shamir_test.py::too_few",
            "common/secure_aggregation/crypto/shamir_test.py::tampered",
        ],
    ),
    (
        "secagg/src/tests/flower.rs",
        "stages_follow_each_other",
        &["client/mod/secure_aggregation/secaggplus_mod_test.py::stage_transition"],
    ),
];

/// Figures of what is not there in this design, and why it is not.
const EXCLUDED: &[(&str, &str)] = &[(
    "server/strategy/fault_tolerant_fedavg_test.py::evaluate_not_enough_results",
    "judgements have no quorum: that of the devices which gave one stands, with who they are",
)];

/// Figures that are met in another way than Flower's, whose counterparts say what is right here.
const DIFFERENT: &[(&str, &str)] = &[
    (
        "clientapp/mod/dp_mods_test.py::fixedclipping_scalar",
        "McMahan et al. 2018: all of an update is clipped, single numbers too",
    ),
    (
        "clientapp/mod/dp_mods_test.py::adaptiveclipping_scalar",
        "the same, and by Andrew et al. 2021 those count which were not clipped",
    ),
    ("clientapp/mod/dp_mods_test.py::localdp_scalar", "the same before noise is added"),
    (
        "server/strategy/krum_test.py::test_aggregate_fit",
        "Blanchard et al. 2017: n >= 2 f + 3, so f = 1 of 3 devices is refused",
    ),
    ("serverapp/strategy/multikrum_test.py::krum", "the same"),
    ("server/strategy/multikrum_test.py::test_aggregate_fit", "the same"),
    ("serverapp/strategy/multikrum_test.py::multikrum", "the same"),
    (
        "serverapp/strategy/bulyan_test.py::invalid_beta_too_large",
        "a rule that would average more values than there are updates is not made",
    ),
    (
        "server/strategy/aggregate_test.py::test_find_reference_weights",
        "rules know updates by their place: equal ones are those at no distance",
    ),
    (
        "common/differential_privacy_test.py::compute_adaptive_noise_params",
        "a job without noise is refused, as is one whose count alone costs more",
    ),
    (
        "serverapp/strategy/strategy_utils_test.py::metricrecords",
        "loss and accuracy are all the metrics that there are",
    ),
    (
        "client/mod/secure_aggregation/secaggplus_mod_test.py::stage_transition",
        "what was answered is answered again in the same way, another question is refused",
    ),
];

fn read(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::read_to_string(root.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Names of Flower's tests, with the number of figures of each.
fn figures() -> BTreeMap<String, usize> {
    let file: Value = serde_json::from_str(include_str!("unit_tests.json")).unwrap();
    let tests = file["tests"].as_array().unwrap();
    assert_eq!(Some(tests.len() as u64), file["count"].as_u64());
    let mut names = BTreeMap::new();
    for test in tests {
        let name = test["test"].as_str().unwrap().strip_prefix("framework/py/flwr/").unwrap();
        *names.entry(name.to_owned()).or_default() += 1;
    }
    names
}

#[test]
fn every_figure_is_met_or_excluded() {
    let figures = figures();
    assert_eq!(figures.values().sum::<usize>(), 72);
    let met: BTreeSet<&str> =
        COUNTERPARTS.iter().flat_map(|(.., names)| names.iter().copied()).collect();
    let excluded: BTreeSet<&str> = EXCLUDED.iter().map(|(name, _)| *name).collect();
    for name in figures.keys() {
        let (met, excluded) = (met.contains(&name[..]), excluded.contains(&name[..]));
        assert!(met || excluded, "{name} has no counterpart and is not excluded");
        assert!(!(met && excluded), "{name} has a counterpart and is excluded");
    }
    for name in met.iter().chain(&excluded) {
        assert!(figures.contains_key(*name), "{name} is no test of Flower's");
    }
    for (name, reason) in DIFFERENT {
        assert!(met.contains(name) && !reason.is_empty(), "{name} has no counterpart");
    }
    assert!(EXCLUDED.iter().all(|(_, reason)| !reason.is_empty()));
}

#[test]
fn every_counterpart_is_a_test_that_reads_the_figures() {
    for (file, function, _) in COUNTERPARTS {
        let text = read(file);
        let (_, after) = text
            .split_once(&format!("fn {function}()"))
            .map(|(before, after)| (before.trim_end(), after))
            .filter(|(before, _)| before.ends_with("#[test]"))
            .unwrap_or_else(|| panic!("{file} has no test {function}"));
        let body = after.split("\n}\n").next().unwrap();
        let reads = body.contains("unit_tests.json") || body.contains("facts(\"");
        assert!(reads && text.contains("tests/flower/unit_tests.json"), "{function} reads none");
    }
}
