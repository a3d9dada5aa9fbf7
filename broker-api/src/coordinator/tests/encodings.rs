//! Updates that travel encoded.

use super::*;

/// What a device was given in each round of a job.
type Given = BTreeMap<u32, Vec<f32>>;

/// What an agent that knows encodings was given, of three of which the first knows none.
async fn given(update: &str, strategy: &str) -> Given {
    given_as(update, "plain", strategy).await.1
}

/// What either of them was given, with parameters that travel so.
async fn given_as(update: &str, download: &str, strategy: &str) -> (Given, Given) {
    let world = World::new().await;
    let broker = world.broker().await;
    let d1 = Device::start_as(&world, "d1", |_| Action::Plain).await;
    let d2 = Device::start(&world, "d2").await;
    let _d3 = Device::start(&world, "d3").await;
    joined(&broker, 3).await;
    let mut spec = train_spec(4, 3);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.update = update.parse().unwrap();
    train.download = download.parse().unwrap();
    train.strategy = strategy.parse().unwrap();
    let job = submit(&broker, spec).await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    for outcome in &record.rounds {
        let sizes: Vec<u64> =
            outcome.updates.iter().map(|(_, update)| update.parameters.size.0).collect();
        let is_exact = update == "plain" || update.starts_with("float32");
        assert!(is_exact || sizes[1] < sizes[0] / 2, "{sizes:?}");
        assert_eq!(outcome.encoded.is_some(), download != "plain");
    }
    forgotten(&world, &job).await;
    let values = |parameters: &Parameters| {
        parameters.items().iter().flat_map(|item| item.values.clone()).collect()
    };
    let given = |device: &Device| {
        let given = device.given.borrow();
        given.iter().map(|(round, parameters)| (*round, values(parameters))).collect()
    };
    (given(&d1), given(&d2))
}

/// Devices add the same to each value, which every encoding holds nearly.
#[tokio::test]
async fn encoded_updates_come_to_what_plain_ones_do() {
    for strategy in
        ["fedavg", "fedadam:tau=0.1", "fedmedian", "geometricmedian", "normbound:norm=2"]
    {
        let expected = given("plain", strategy).await;
        assert_eq!(expected.len(), 4);
        for update in ["int8", "bfloat16:coder=zstd", "topk:share=0.5,values=int8"] {
            if strategy == "fedmedian" && update.starts_with("topk") {
                continue;
            }
            let found = given(update, strategy).await;
            assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
            for (found, expected) in found.values().zip(expected.values()) {
                for (found, expected) in found.iter().zip(expected) {
                    // A step of an integer of the device that weighs most.
                    let near = (found - expected).abs() <= 0.02;
                    assert!(near, "{strategy}, {update}: {found} is not {expected}");
                }
            }
        }
    }
}

/// What is rounded on the way to devices is not lost: each round adds the same to the broker's exact
/// parameters, and devices get these, rounded. An agent that knows no encodings gets them exactly.
#[tokio::test]
async fn rounded_parameters_lose_nothing_of_what_is_learnt() {
    let update = "float32:delta=true";
    for (strategy, downloads) in [
        ("fedavg", &["float32", "float16", "bfloat16", "int8"][..]),
        ("fedavgm", &["int8"][..]),
        ("fedmedian", &["bfloat16"][..]),
    ] {
        let (_, expected) = given_as(update, "plain", strategy).await;
        for download in downloads {
            let (exact, rounded) = given_as(update, download, strategy).await;
            assert_eq!((exact.len(), rounded.len()), (4, 4));
            let error = match *download {
                "float32" => 0.0,
                "float16" => 1e-3,
                // Of the largest value that there is, and so of that of any block.
                _ => 1.0 / 127.0,
            };
            for (round, expected) in &expected {
                let case = format!("{download}, {strategy}, round {round}");
                assert!(farthest(&exact[round], expected) <= 1e-5, "{case}");
                let largest = farthest(expected, &vec![0.0; expected.len()]);
                let off = farthest(&rounded[round], &exact[round]);
                assert!(off <= error * largest, "{case}: {off} of {largest}");
                assert!(off > 0.0 || error == 0.0, "{case}: they are rounded");
            }
        }
    }
}

/// The largest difference between two values of the same place.
fn farthest(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[tokio::test]
async fn differences_that_nobody_asked_for_are_refused() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _d1 = Device::start(&world, "d1").await;
    let wrong = |task: &jobs::spec::Task| match &task.work {
        TaskWork::Train(work) => Action::Upload(difference_of_nothing(&work.parameters)),
        TaskWork::TrainMasked(_)
        | TaskWork::Exchange
        | TaskWork::Evaluate(_)
        | TaskWork::Infer(_)
        | TaskWork::Telemetry => Action::Work,
    };
    let _d2 = Device::start_as(&world, "d2", wrong).await;
    joined(&broker, 2).await;
    let mut spec = train_spec(1, 2);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    train.participation.quorum = 1;
    let record = ended(&broker, &submit(&broker, spec).await).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let (device, failure) = &record.rounds[0].missing[0];
    assert_eq!((device.as_str(), failure.code), ("d2", FailureCode::InvalidUpdate));
    assert!(failure.message.contains("expected parameters"), "{failure:?}");
}

/// An encoded update of the tests' model that says nothing but what it is a difference from.
fn difference_of_nothing(base: &BlobRef) -> Vec<u8> {
    use models::federated::encoding::{Coder, Encoder, Format, Header, layout_digest};
    let onnx = models::zoo::build("mlp", [1, 2, 2], 3, 7).unwrap();
    let definition = models::train::Definition::read(&onnx.into()).unwrap();
    let layout = definition.layout();
    let header = Header {
        format: Format::Float32,
        coder: Coder::Rans,
        sparse: false,
        values: layout.total_len(),
        layout: layout_digest(layout),
        base: Some(base.digest.to_string()),
    };
    let mut file = Vec::new();
    let mut encoder = Encoder::dense(header, 1, &mut file);
    encoder.push(&vec![0.0; layout.total_len()], &mut file).unwrap();
    encoder.finish(&mut file).unwrap();
    file
}
