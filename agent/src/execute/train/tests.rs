use jobs::id::{BlobRef, Bytes as Size};
use jobs::spec::{Augment, LocalTraining, Normalization as Wanted, UpdateEncoding};
use models::dataset::{Limits, decode};

use super::*;

/// The key of a training on this table.
fn key_of(local: LocalTraining, files: &[(&str, &str)], attempt: u32) -> Digest {
    let bytes = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
    let files: Vec<(String, Vec<u8>)> = files.iter().map(bytes).collect();
    let dataset = decode(&files, Limits::default()).unwrap();
    let blob = BlobRef::by_digest(link::digest::of(b""), Size(0));
    let normalization = settings::normalization(&local.normalization, &dataset).unwrap();
    let name = "table".parse().unwrap();
    let (graph, parameters) = (blob.clone(), blob);
    let task = TrainTask {
        graph,
        parameters,
        dataset: name,
        local,
        seed: 1,
        rounds_done: 0,
        rounds: 0,
        initial_loss: false,
        control: None,
        update: UpdateEncoding::default(),
        encoded: None,
        hold: false,
        next: None,
        counted: None,
        accept_at_once: false,
    };
    let id = format!("job1-1-train-{attempt}").parse().unwrap();
    key(&id, &task, &dataset, &normalization)
}

#[test]
fn a_checkpoint_is_that_of_the_same_inputs() {
    let table = ("a.csv", "1,10,0\n3,10,1\n");
    let plain = LocalTraining::default();
    let by_dataset = LocalTraining { normalization: Wanted::Dataset, ..plain.clone() };
    let first = key_of(plain.clone(), &[table], 1);
    assert_eq!(key_of(plain.clone(), &[table], 2), first, "another attempt is the same work");
    let flipped = LocalTraining { augment: vec![Augment::Flip], ..plain.clone() };
    let toml = ("dataset.toml", "mean = [1.0]\n");
    let other = ("a.csv", "1,10,0\n5,10,1\n");
    let keys = [
        first,
        key_of(flipped, &[table], 1),
        key_of(LocalTraining { normalization: Wanted::None, ..plain.clone() }, &[table], 1),
        key_of(by_dataset.clone(), &[table], 1),
        key_of(by_dataset, &[other], 1),
        // The same words for other values.
        key_of(plain, &[table, toml], 1),
    ];
    let different: std::collections::BTreeSet<&str> = keys.iter().map(Digest::as_str).collect();
    assert_eq!(different.len(), keys.len());
}
