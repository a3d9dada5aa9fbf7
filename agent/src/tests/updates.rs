//! How updates travel.

use jobs::id::RoundNumber;
use jobs::spec::{LocalTraining, UpdateEncoding};
use models::federated::encoding::{Coder, Decoder, Encoder, Format, Header, layout_digest};
use models::params::Layout;

use super::train::{Model, training, update_of};
use super::*;

/// What a device sends after a round of training in which it was asked for an encoding.
async fn sent(
    world: &World,
    model: &Model,
    (job, round, attempt): (&str, u32, u32),
    (update, epochs): (&str, u32),
) -> Bytes {
    sent_after(world, model, (job, round, attempt), (update, epochs), None).await
}

/// The same where an update of the device counted in a round before.
async fn sent_after(
    world: &World,
    model: &Model,
    (job, round, attempt): (&str, u32, u32),
    (update, epochs): (&str, u32),
    counted: Option<u32>,
) -> Bytes {
    let local = LocalTraining { epochs, batch_size: 8, ..LocalTraining::default() };
    let mut task = training(model, job, attempt, local);
    task.id.round = RoundNumber(round);
    let TaskWork::Train(work) = &mut task.work else { unreachable!() };
    work.update = update.parse().unwrap();
    work.counted = counted.map(RoundNumber);
    let mut reports = world.listen(&format!("report.{job}.pi")).await;
    world.offer(&task).await;
    let update = update_of(final_report(&mut reports).await.0);
    let bytes = world.blobs.get(&update.parameters).await.unwrap();
    assert_eq!(update.parameters.size.0, bytes.len() as u64);
    bytes
}

fn values(safetensors: &[u8]) -> Vec<f32> {
    let data = Layout::of_whole(safetensors).unwrap().data_start();
    models::params::from_le_bytes(&safetensors[data..])
}

/// The values that an encoded update stands for: those of parameters, or differences.
fn decoded(model: &Model, update: &[u8]) -> Vec<f32> {
    let layout = Layout::of_whole(&model.values).unwrap();
    let base = Some(model.parameters.digest.as_str());
    let mut decoder = Decoder::new(layout.total_len(), &layout_digest(&layout), base);
    let mut all = Vec::new();
    decoder.take(update, |_, values| all.extend_from_slice(values)).unwrap();
    decoder.finish().unwrap();
    all
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| largest.max(value.abs()))
}

fn minus(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a - b).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_written_as_the_task_wants_it() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let plain = sent(&world, &model, ("job", 1, 1), ("plain", 2)).await;
    let (base, after) = (values(&model.values), values(&plain));
    let moved = minus(&after, &base);
    for (number, (encoding, share, bound)) in (1..).zip([
        ("float32", 100, 0.0),
        ("float32:delta=true", 96, 0.0),
        ("float16", 60, 1e-3),
        ("float16:coder=zstd", 60, 1e-3),
        ("bfloat16", 50, 1e-2),
        ("int8:block=256", 50, 1e-2),
        ("int8:coder=zstd", 50, 1e-2),
        ("int8:delta=false", 50, 1e-2),
    ]) {
        // A device remembers what it did for a job and a round.
        let [first, second, third] = ["a", "b", "c"].map(|name| format!("{name}{number}"));
        let update = sent(&world, &model, (&first, 1, 1), (encoding, 2)).await;
        let most = plain.len() * share / 100;
        assert!(update.len() <= most, "{encoding}: {}", update.len());
        let parsed: UpdateEncoding = encoding.parse().unwrap();
        let expected = if parsed.is_difference() { &moved } else { &after };
        let error = largest(&minus(&decoded(&model, &update), expected));
        assert!(error <= bound * largest(expected), "{encoding}: {error}");
        let again = sent(&world, &model, (&second, 1, 1), (encoding, 2)).await;
        assert_eq!(again, update, "{encoding}: the same training gives the same bytes");
        // Without training there is nothing to tell.
        let update = sent(&world, &model, (&third, 1, 1), (encoding, 0)).await;
        let expected = if parsed.is_difference() { vec![0.0; base.len()] } else { base.clone() };
        let error = largest(&minus(&decoded(&model, &update), &expected));
        assert!(error <= bound * largest(&expected), "{encoding}: {error}");
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_update_leaves_out_is_sent_later_by_another_agent_too() {
    const TOP: &str = "topk:share=0.1,values=float32";
    let world = World::new().await;
    let mut agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let base = values(&model.values);
    let mut left = vec![0.0; base.len()];
    for round in 1..=3 {
        // Each round trains a step further from the same parameters: another difference.
        let plain = sent(&world, &model, ("plain", round, 1), ("plain", round)).await;
        let mut owed = minus(&values(&plain), &base);
        owed.iter_mut().zip(&left).for_each(|(value, left)| *value += left);
        let counted = (round > 1).then_some(round - 1);
        let update = sent_after(&world, &model, ("top", round, 1), (TOP, round), counted).await;
        let told = decoded(&model, &update);
        let count = told.iter().filter(|value| **value != 0.0).count();
        assert!(count > 0 && count <= base.len().div_ceil(10), "{count} of {}", base.len());
        assert!(update.len() < plain.len() / 5, "{} bytes", update.len());
        for (told, owed) in told.iter().zip(&owed) {
            assert!(*told == 0.0 || told.to_bits() == owed.to_bits(), "round {round}");
        }
        agent.stop().await;
        agent = world.join(world.config_with_data()).await;
        let again = sent_after(&world, &model, ("top", round, 2), (TOP, round), counted).await;
        assert_eq!(again, update, "round {round}: another attempt begins as the first one did");
        left = minus(&owed, &told);
    }
    agent.stop().await;
}

/// An update that did not count is gone with what it left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_update_that_did_not_count_left_out_is_not_sent() {
    const TOP: &str = "topk:share=0.1,values=float32";
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let owed = async |job: &str, rounds: &[(u32, Option<u32>)]| {
        let mut last = Bytes::new();
        for (round, counted) in rounds {
            let of = (job, *round, 1);
            last = sent_after(&world, &model, of, (TOP, *round), *counted).await;
        }
        decoded(&model, &last)
    };
    // Whether round 2 was lost, late, or refused: round 3 begins where the last one that counted
    // ended.
    let both = owed("both", &[(1, None), (3, Some(1))]).await;
    let lost = owed("lost", &[(1, None), (2, Some(1)), (3, Some(1))]).await;
    assert_eq!(lost, both);
    let none = owed("none", &[(3, None)]).await;
    assert_eq!(owed("nothing", &[(1, None), (2, None), (3, None)]).await, none);
    assert_ne!(both, none);
    // One of round 1 counted in round 2.
    assert_eq!(owed("late", &[(1, None), (3, Some(2))]).await, both);
    agent.stop().await;
}

/// What a device measures in a round is no difference that later ones add to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_statistics_leave_nothing_out() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("resnet8", [1, 4, 4], 10).await;
    let plain = sent(&world, &model, ("plain", 2, 1), ("plain", 1)).await;
    let moved = minus(&values(&plain), &values(&model.values));
    sent(&world, &model, ("top", 1, 1), ("topk:share=0.0001,values=float32", 1)).await;
    let most = ("topk:share=0.5,values=float32", 1);
    let told = decoded(&model, &sent_after(&world, &model, ("top", 2, 1), most, Some(1)).await);
    let layout = Layout::of_whole(&model.values).unwrap();
    let mut sent = 0;
    for span in layout.spans().iter().filter(|span| span.name.contains(".running_")) {
        for at in span.elements.clone() {
            assert!(told[at] == 0.0 || told[at].to_bits() == moved[at].to_bits(), "{}", span.name);
            sent += usize::from(told[at] != 0.0);
        }
    }
    assert!(sent > 0);
    agent.stop().await;
}

/// A device begins with what it decodes, and its differences are from that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parameters_may_come_encoded() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let layout = Layout::of_whole(&model.values).unwrap();
    let sent = async |job: &str, format: Format, update: &str| {
        let (values, digest) = (layout.total_len(), layout_digest(&layout));
        let (coder, base) = (Coder::Rans, None);
        let header = Header { format, coder, sparse: false, values, layout: digest, base };
        let mut file = layout.header();
        let mut encoder = Encoder::dense(header, 0, &mut file);
        encoder.push(&self::values(&model.values), &mut file).unwrap();
        encoder.finish(&mut file).unwrap();
        let local = LocalTraining { epochs: 0, ..LocalTraining::default() };
        let mut task = training(&model, job, 1, local);
        let TaskWork::Train(work) = &mut task.work else { unreachable!() };
        work.encoded = Some(world.put(file).await);
        work.update = update.parse().unwrap();
        let mut reports = world.listen(&format!("report.{job}.pi")).await;
        world.offer(&task).await;
        let update = update_of(final_report(&mut reports).await.0);
        world.blobs.get(&update.parameters).await.unwrap()
    };
    assert_eq!(sent("exact", Format::Float32, "plain").await, model.values);
    let rounded = sent("parameters", Format::BFloat16, "float32").await;
    let rounded = decoded(&model, &rounded);
    let off = largest(&minus(&rounded, &values(&model.values)));
    assert!(off > 0.0 && off < largest(&rounded) / 128.0, "{off}");
    let difference = sent("differences", Format::BFloat16, "float32:delta=true").await;
    let off = largest(&decoded(&model, &difference));
    assert!(off <= 0.0, "{off}");
    agent.stop().await;
}

/// An update that waits on the device is what would be stored, and still there when the agent was
/// ended and came back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_is_held_until_it_is_asked_for() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let mut reports = world.listen("report.*.pi").await;
    let mut update = async |job: &str, epochs: u32, hold: bool, update: &str| {
        // On a busy machine the way may not be quick.
        for number in 0..20 {
            let local = LocalTraining { epochs, batch_size: 8, ..LocalTraining::default() };
            let mut task = training(&model, &format!("{job}{number}"), 1, local);
            let TaskWork::Train(work) = &mut task.work else { unreachable!() };
            (work.hold, work.update) = (hold, update.parse().unwrap());
            world.offer(&task).await;
            let update = update_of(final_report(&mut reports).await.0);
            if update.held == hold {
                return update.parameters;
            }
            assert!(hold);
        }
        panic!("no update is held");
    };
    let mut pairs = Vec::new();
    for (number, (epochs, encoding)) in
        [(1, "plain"), (0, "plain"), (0, "float32"), (1, "float32")].into_iter().enumerate()
    {
        let stored = update(&format!("stored{number}"), epochs, false, encoding).await;
        let held = update(&format!("held{number}"), epochs, true, encoding).await;
        assert_eq!(held.digest, stored.digest);
        assert!(world.blobs.open(&held).await.is_err(), "it is not in the store");
        pairs.push((stored, held));
    }
    agent.stop().await;
    let agent = world.join(world.config_with_data()).await;
    for (stored, held) in pairs {
        let mut reader = world.blobs.open_held(&"pi".parse().unwrap(), &held, None);
        let mut bytes = Vec::new();
        while let Some(chunk) = reader.next().await.unwrap() {
            bytes.extend_from_slice(&chunk);
        }
        assert_eq!(world.blobs.get(&stored).await.unwrap(), bytes);
    }
    agent.stop().await;
}

/// A device that cannot hold an update stores it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_cannot_be_held_is_stored() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let held = world.dir.path().join("state/held");
    std::fs::remove_dir(&held).unwrap();
    std::fs::write(&held, b"no folder").unwrap();
    let mut reports = world.listen("report.job.pi").await;
    let local = LocalTraining { epochs: 0, ..LocalTraining::default() };
    let mut task = training(&model, "job", 1, local);
    let TaskWork::Train(work) = &mut task.work else { unreachable!() };
    work.hold = true;
    world.offer(&task).await;
    let update = update_of(final_report(&mut reports).await.0);
    assert!(!update.held);
    assert_eq!(world.blobs.get(&update.parameters).await.unwrap(), model.values);
    agent.stop().await;
}
