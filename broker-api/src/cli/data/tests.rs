use super::*;
use models::dataset::Examples;

fn plan() -> Plan {
    Plan {
        devices: 3,
        partition: Partition::Dirichlet { alpha: 0.5 },
        test_fraction: 0.2,
        held_out: 20,
        seed: 1,
    }
}

fn all(split: &shares::Split) -> Vec<&Examples> {
    let mut all = vec![&split.held_out];
    all.extend(split.shares.iter().flat_map(|share| [&share.train, &share.test]));
    all
}

#[test]
fn every_digit_goes_to_one_place() {
    let data = digits::load();
    assert_eq!(data.train.len(), 1797);
    let pixels: Vec<u8> =
        (0..1797).flat_map(|at| data.train.picture(at).unwrap().to_vec()).collect();
    assert_eq!((pixels.iter().max(), pixels.iter().min()), (Some(&255), Some(&0)));
    let split = shares::split(&data, &plan()).unwrap();
    let key = |examples: &Examples| -> Vec<(Vec<u8>, u32)> {
        (0..examples.len())
            .map(|i| (examples.picture(i).unwrap().to_vec(), examples.labels[i]))
            .collect()
    };
    let mut given: Vec<_> = all(&split).into_iter().flat_map(key).collect();
    let mut source = key(&data.train);
    given.sort();
    source.sort();
    assert!(given == source, "shares and held-out pictures are the 1,797 digits");
    for share in &split.shares {
        let examples = share.train.len() + share.test.len();
        assert!(share.test.len().abs_diff(examples / 5) <= 1, "a fifth is for testing");
    }
}

#[test]
fn dirichlet_shares_are_skewed_and_even_ones_are_not() {
    let data = digits::load();
    let skew = |partition: Partition| {
        let split = shares::split(&data, &Plan { partition, ..plan() }).unwrap();
        let counts = split.shares.iter().map(|share| share.train.class_counts(10));
        counts.map(|counts| counts.iter().max().unwrap() - counts.iter().min().unwrap()).max()
    };
    assert!(skew(Partition::Dirichlet { alpha: 0.5 }) > Some(60));
    assert!(skew(Partition::Iid) < Some(40));
}

#[test]
fn a_seed_names_a_split() {
    let data = digits::load();
    let split = |seed| shares::split(&data, &Plan { seed, ..plan() }).unwrap();
    assert_eq!(split(1), split(1));
    assert_ne!(split(1), split(2));
}

#[test]
fn files_are_read_back_and_kept_from_mixing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("digits");
    let args = |force| SplitArgs {
        out: out.clone(),
        devices: 2,
        partition: Partition::Iid,
        test_fraction: 0.25,
        held_out: 5,
        seed: 3,
        force,
    };
    let mut output = Output::buffer(std::io::sink(), false);
    write(&digits::load(), "digits", &args(false), &mut output).unwrap();
    let first = folder::read(&out.join("device-1")).unwrap();
    let second = folder::read(&out.join("device-2")).unwrap();
    let count = |data: &Dataset| data.train.len() + data.test.len();
    assert_eq!(count(&first) + count(&second), 1792);
    let pictures: Vec<String> = std::fs::read_dir(out.join("held-out"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(pictures.len(), 5);
    let path = out.join("held-out").join(&pictures[0]);
    let picture = image::open(path).unwrap();
    assert_eq!((picture.width(), picture.height()), (8, 8));

    let error = write(&digits::load(), "digits", &args(false), &mut output).unwrap_err();
    assert!(error.detail.contains("earlier split") && error.hint.contains("--force"));
    write(&digits::load(), "digits", &args(true), &mut output).unwrap();

    // A share can be split again: its test part is then dealt out.
    let again = folder::read(&out.join("device-1")).unwrap();
    let split = shares::split(&again, &Plan { held_out: 4, partition: Partition::Iid, ..plan() });
    let tests: usize = split.unwrap().shares.iter().map(|share| share.test.len()).sum();
    assert_eq!(tests, again.test.len() - 4);
}

#[test]
fn impossible_splits_say_why() {
    let data = digits::load();
    let cases = [
        (Plan { devices: 0, ..plan() }, "0 devices"),
        (Plan { devices: 5000, partition: Partition::Iid, ..plan() }, "5000 devices"),
        (Plan { held_out: 1797, ..plan() }, "hold out 1797"),
        (Plan { test_fraction: 1.0, ..plan() }, "test fraction 1"),
    ];
    for (plan, expected) in cases {
        let error = shares::split(&data, &plan).unwrap_err();
        assert!(error.detail.contains(expected), "{error:?}");
    }
    let folder = tempfile::tempdir().unwrap();
    let error = folder::read(folder.path()).unwrap_err();
    assert!(error.detail.contains("no data set format"), "{error:?}");
    assert!(partition("dirichlet:-1").unwrap_err().contains("dirichlet"));
}

mod formats;
