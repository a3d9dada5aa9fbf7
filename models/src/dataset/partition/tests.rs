//! Properties of partitions.

use proptest::prelude::*;

use super::*;

fn partitions() -> impl Strategy<Value = Partition> {
    prop_oneof![
        Just(Partition::Iid),
        (1..4_usize).prop_map(|per_device| Partition::Shards { per_device }),
        prop_oneof![Just(0.01), Just(0.1), Just(0.5), Just(100.0)]
            .prop_map(|alpha| Partition::Dirichlet { alpha }),
    ]
}

proptest! {
    #[test]
    fn every_example_goes_to_one_device(
        partition in partitions(),
        labels in prop::collection::vec(0..10_u32, 60..400),
        devices in 1..20_usize,
        seed: u64,
    ) {
        let lists = partition.split(&labels, devices, seed).unwrap();
        prop_assert_eq!(lists.len(), devices);
        prop_assert!(lists.iter().all(|list| !list.is_empty()));
        let mut all = lists.concat();
        all.sort_unstable();
        prop_assert_eq!(all, (0..labels.len()).collect::<Vec<_>>());
        prop_assert_eq!(&partition.split(&labels, devices, seed).unwrap(), &lists);
        let made = Partition::Indices(lists.clone());
        prop_assert_eq!(made.split(&labels, devices, 0).unwrap(), lists);
    }
}

/// 1000 examples of each of 10 classes.
fn labels() -> Vec<u32> {
    (0..10_000).map(|index| index % 10).collect()
}

/// Mean part of a device's largest class: 0.1 when even, 1 when a device sees one class.
fn skew(lists: &[Vec<usize>], labels: &[u32]) -> f64 {
    let parts = lists.iter().map(|list| {
        let mut counts = [0_u32; 10];
        for index in list {
            counts[labels[*index] as usize] += 1;
        }
        f64::from(*counts.iter().max().unwrap()) / f64::from(counts.iter().sum::<u32>())
    });
    parts.sum::<f64>() / f64::from(u32::try_from(lists.len()).unwrap())
}

#[test]
fn smaller_alpha_is_more_skewed() {
    let labels = labels();
    let skews = [0.05, 0.5, 5.0, 1000.0].map(|alpha| {
        let lists = Partition::Dirichlet { alpha }.split(&labels, 20, 7).unwrap();
        assert!(lists.iter().all(|list| list.len() >= EXAMPLES_MIN));
        skew(&lists, &labels)
    });
    assert!(skews.is_sorted_by(|a, b| a > b), "{skews:?}");
    assert!(skews[0] > 0.6 && skews[3] < 0.13, "{skews:?}");
    let iid = skew(&Partition::Iid.split(&labels, 20, 7).unwrap(), &labels);
    assert!(iid < 0.15, "{iid}");
}

#[test]
fn shards_bring_few_classes() {
    let labels = labels();
    let lists = Partition::Shards { per_device: 2 }.split(&labels, 50, 3).unwrap();
    for list in &lists {
        let classes: std::collections::BTreeSet<u32> =
            list.iter().map(|index| labels[*index]).collect();
        assert!(list.len() == 200 && classes.len() <= 2);
    }
    assert_ne!(lists, Partition::Shards { per_device: 2 }.split(&labels, 50, 4).unwrap());
}

#[test]
fn text_forms_round_trip() {
    for text in ["iid", "shards:2", "dirichlet:0.5"] {
        assert_eq!(text.parse::<Partition>().unwrap().to_string(), text);
    }
    for text in ["", "iid:1", "shards:0", "shards:x", "dirichlet:0", "dirichlet:NaN", "random"] {
        let error = text.parse::<Partition>().unwrap_err();
        assert!(error.to_string().contains("dirichlet:<alpha above 0>"), "{error}");
    }
}

#[test]
fn lists_that_do_not_fit_are_refused() {
    let lists = |json: &str| Partition::from_json(json.as_bytes());
    let split = |json: &str| lists(json).unwrap().split(&[0, 0, 1], 2, 0).unwrap_err();
    assert!(matches!(lists("[]"), Err(PartitionError::Json(_))));
    let whole = lists(r#"{"train": {"10": [0], "2": [1, 2]}, "test": {}}"#).unwrap();
    assert_eq!(whole.split(&[0, 0, 1], 2, 0).unwrap(), [vec![1, 2], vec![0]]);
    assert_eq!(
        split(r#"{"train": {"0": [0, 1], "1": [1, 2]}}"#),
        PartitionError::Times { index: 1, times: 2 }
    );
    assert_eq!(
        split(r#"{"train": {"0": [0], "1": [1]}}"#),
        PartitionError::Times { index: 2, times: 0 }
    );
    assert_eq!(
        split(r#"{"train": {"0": [0], "1": [1, 3]}}"#),
        PartitionError::Range { list: 1, index: 3, examples: 3 }
    );
    assert_eq!(split(r#"{"train": {"0": [], "1": [1]}}"#), PartitionError::EmptyList { list: 0 });
    assert_eq!(split(r#"{"train": {"0": [1]}}"#), PartitionError::Devices { lists: 1, devices: 2 });
}

#[test]
fn too_few_examples_are_refused() {
    let split = |partition: Partition, devices| partition.split(&[0; 5], devices, 0).unwrap_err();
    let few = |devices, needed| PartitionError::TooFew { examples: 5, devices, needed };
    assert_eq!(split(Partition::Iid, 6), few(6, 6));
    assert_eq!(split(Partition::Shards { per_device: 2 }, 3), few(3, 6));
    assert_eq!(split(Partition::Dirichlet { alpha: 0.1 }, 0), few(0, 1));
}

/// The lists that the replaced system used.
#[test]
#[expect(clippy::print_stdout, reason = "says what is not tested")]
fn published_partitions_are_read() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data/partitions");
    for name in ["dict_users_lda_0.1_10", "dict_users_10_iid", "dict_users_10_2"] {
        let Ok(bytes) = std::fs::read(format!("{folder}/{name}.json.gz")) else {
            println!("absent, not tested: {name}");
            continue;
        };
        let lists = Partition::from_json(&bytes).unwrap().split(&vec![0; 50_000], 100, 0).unwrap();
        assert_eq!(lists.len(), 100);
    }
}
