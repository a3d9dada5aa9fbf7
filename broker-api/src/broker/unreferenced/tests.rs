use bytes::Bytes;
use jobs::id::{BlobRef, JobId};
use jobs::job::JobState;
use jobs::report::FailureCode;
use jobs::spec::{JobSpec, ModelQuery, Purpose, WorkSpec};
use link::blobs::Listed;

use super::*;
use crate::broker::Broker;
use crate::error::ApiCode;
use crate::record::JobResult;
use crate::testing::*;

mod interleavings;

const AT_ONCE: Millis = Millis(0);

async fn swept(broker: &Broker, kept: Millis) -> Removed {
    let mut removed = Removed::default();
    sweep(&broker.core, kept, &mut removed).await.unwrap();
    removed
}

fn bytes(seed: u8, size: usize) -> Bytes {
    (0..=250).cycle().map(|byte: u8| byte.wrapping_add(seed)).take(size).collect()
}

async fn submit_infer(broker: &Broker, first: f32) -> (JobId, Bytes) {
    let text = format!(r#"{{"model":"m","input":[[[{first},1.0],[1.5,2.0]]]}}"#);
    let request = crate::request::infer(text.as_bytes()).unwrap();
    let work = WorkSpec::Infer(request.spec);
    let spec = JobSpec { selector: request.selector, deadline_ms: Millis(60_000), work };
    let job = broker.submit(spec, request.binary.clone(), None, None).await.unwrap().id;
    (job, request.binary)
}

async fn outputs(broker: &Broker, job: &JobId) -> BlobRef {
    match broker.job(job).await.unwrap().result {
        Some(JobResult::Infer { outputs: Some(outputs), .. }) => outputs,
        other => panic!("expected outputs, found {other:?}"),
    }
}

async fn is_stored(broker: &Broker, digest: &Digest) -> bool {
    broker.core.store.blobs.is_stored(digest).await.unwrap()
}

/// Messages and bytes of the store.
async fn taken(broker: &Broker) -> (u64, u64) {
    let context = broker.core.store.context();
    let stream = context.get_stream("OBJ_blobs").await.unwrap();
    let state = &stream.cached_info().state;
    (state.messages, state.bytes)
}

#[tokio::test]
async fn what_nothing_refers_to_goes_and_what_is_needed_stays() {
    let world = World::new().await;
    let broker = world.broker().await;
    let blobs = &broker.core.store.blobs;
    let model = register(&broker, "m").await;
    let manifest = manifest_digests(blobs, &model.reference.digest).await.unwrap().unwrap();
    let device = Device::start(&world, "d1").await;
    let (over, _) = submit_infer(&broker, 0.5).await;
    assert_eq!(ended(&broker, &over).await.state, JobState::Succeeded);
    drop(device);
    let (_gate, open) = tokio::sync::watch::channel(false);
    let mut device = Device::start_as(&world, "d2", move |_| Action::After(open.clone())).await;
    joined(&broker, 1).await;
    let training = broker.submit(train_spec(1, 1), Bytes::new(), None, None).await.unwrap().id;
    device.offered(Purpose::Train).await;
    let graph = broker.core.store.trainings.get(training.as_str()).await.unwrap().unwrap();
    let graph = graph.value.prepared.unwrap().graph;
    let (waiting, input) = submit_infer(&broker, 0.25).await;

    let before = taken(&broker).await;
    let orphans = [bytes(1, 10), bytes(2, 300_000)];
    for orphan in &orphans {
        blobs.put(orphan.clone()).await.unwrap();
    }
    assert_eq!(swept(&broker, KEPT).await, Removed::default());
    let removed = swept(&broker, AT_ONCE).await;
    assert_eq!(removed, Removed { blobs: 2, bytes: 300_010 });
    assert_eq!(taken(&broker).await, before);
    assert_eq!(swept(&broker, AT_ONCE).await, Removed::default());

    assert_eq!(manifest.len(), 2);
    for digest in manifest.iter().chain([&model.reference.digest, &graph.digest]) {
        assert!(is_stored(&broker, digest).await);
    }
    let outputs = outputs(&broker, &over).await;
    assert!(blobs.get(&outputs).await.is_ok());
    assert_eq!(blobs.get_by_digest(&link::digest::of(&input)).await.unwrap(), input);

    // What is over and forgotten, and what is not registered any more, needs nothing.
    broker.cancel(&training).await.unwrap();
    broker.cancel(&waiting).await.unwrap();
    ended(&broker, &training).await;
    ended(&broker, &waiting).await;
    let query = ModelQuery { name: id("m"), version: None };
    broker.remove_model(&query).await.unwrap();
    for job in [&over, &waiting] {
        broker.core.store.jobs.remove(job.as_str()).await.unwrap();
    }
    swept(&broker, AT_ONCE).await;
    for digest in manifest.iter().chain([&graph.digest, &outputs.digest]) {
        assert!(!is_stored(&broker, digest).await);
    }
}

/// An agent that was killed when its update was stored, and not reported.
#[tokio::test]
async fn what_a_device_did_not_report_goes_with_the_training() {
    let world = World::new().await;
    let broker = world.broker().await;
    let (_gate, open) = tokio::sync::watch::channel(false);
    let mut device = Device::start_as(&world, "d1", move |_| Action::After(open.clone())).await;
    joined(&broker, 1).await;
    let training = broker.submit(train_spec(1, 1), Bytes::new(), None, None).await.unwrap().id;
    device.offered(Purpose::Train).await;
    let blobs = &broker.core.store.blobs;
    let mut stored = Vec::new();
    for job in [training.as_str(), "forgotten"] {
        for name in ["update/JOB/1/d9/1", "update/JOB/1/d9/1/control", "exchange/JOB/1/d9/share/1"]
        {
            stored.push(blobs.put_named(name.replace("JOB", job), bytes(3, 10)).await.unwrap());
        }
    }
    let there = async || {
        let mut there = Vec::new();
        for blob in &stored {
            there.push(blobs.size(blob).await.unwrap().is_some());
        }
        there
    };
    assert_eq!(swept(&broker, KEPT).await, Removed::default());
    assert_eq!(there().await, [true; 6]);
    assert_eq!(swept(&broker, AT_ONCE).await, Removed { blobs: 3, bytes: 0 });
    assert_eq!(there().await, [true, true, true, false, false, false]);
    broker.cancel(&training).await.unwrap();
    ended(&broker, &training).await;
    let trainings = &broker.core.store.trainings;
    let forgotten = async {
        while trainings.get(training.as_str()).await.unwrap().is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.expect("the training is forgotten");
    swept(&broker, AT_ONCE).await;
    assert_eq!(there().await, [false; 6]);
}

/// Brokers that died one after another, each before it stored what it had begun with.
#[tokio::test]
async fn what_brokers_stored_for_a_training_goes_with_it_but_for_what_the_job_keeps() {
    let world = World::new().await;
    let broker = world.broker().await;
    let (gate, open) = tokio::sync::watch::channel(false);
    let device = move |_: &jobs::spec::Task| Action::After(open.clone());
    let mut device = Device::start_as(&world, "d1", device).await;
    joined(&broker, 1).await;
    let mut spec = train_spec(2, 1);
    let WorkSpec::Train(train) = &mut spec.work else { unreachable!() };
    (train.keep_rounds, train.strategy) = (Some(1), "fedadam".parse().unwrap());
    let job = broker.submit(spec, Bytes::new(), None, None).await.unwrap().id;
    device.offered(Purpose::Train).await;
    let (blobs, trainings) = (&broker.core.store.blobs, &broker.core.store.trainings);
    let mut stored = Vec::new();
    for name in ["parameters/JOB/0/9", "server-state/JOB/0/9", "encoded/JOB/1/9", "other/JOB/1"] {
        let name = name.replace("JOB", job.as_str());
        stored.push(blobs.put_named(name, bytes(3, 10)).await.unwrap());
    }
    assert_eq!(swept(&broker, AT_ONCE).await, Removed::default(), "it is at work");
    gate.send(true).unwrap();
    assert_eq!(ended(&broker, &job).await.state, JobState::Succeeded);
    let forgotten = async {
        while trainings.get(job.as_str()).await.unwrap().is_some() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.expect("the training is forgotten");
    swept(&broker, AT_ONCE).await;
    let mut there = Vec::new();
    for blob in &stored {
        there.push(blobs.size(blob).await.unwrap().is_some());
    }
    assert_eq!(there, [false, false, false, true]);
    let kept = Kept::of(&broker.core.stored(&job).await.unwrap());
    assert!(kept.blobs().count() >= 2, "{kept:?}");
    for blob in kept.blobs() {
        assert!(blobs.size(blob).await.unwrap().is_some(), "{}", blob.object_name());
    }
}

/// Whoever stores what is old while it is looked through finds it afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_again_during_a_sweep_stays() {
    let kept = Millis(2000);
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    for round in 0..3 {
        let inputs: Vec<f32> = (0..20_u8).map(f32::from).collect();
        if round > 0 {
            let old = std::time::Duration::from_millis(kept.0 + 100);
            tokio::time::sleep(old).await;
        }
        let sweeping = async {
            let mut all = 0;
            for _ in 0..3 {
                all += swept(&broker, kept).await.blobs;
            }
            all
        };
        let storing = async {
            let mut jobs = Vec::new();
            for first in inputs {
                let (job, input) = submit_infer(&broker, first).await;
                jobs.push(job);
                let read = broker.core.store.blobs.get_by_digest(&link::digest::of(&input)).await;
                assert_eq!(read.unwrap(), input, "round {round}");
            }
            jobs
        };
        let (removed, jobs) = tokio::join!(sweeping, storing);
        tracing::info!(round, removed, "swept");
        for job in jobs {
            let input = broker.core.stored(&job).await.unwrap().input.unwrap();
            assert!(broker.core.store.blobs.get(&input).await.is_ok(), "round {round}");
            // The next round finds blobs that nothing refers to.
            broker.core.store.jobs.remove(job.as_str()).await.unwrap();
        }
    }
}

/// Brokers that die in the middle of their sweeps leave nothing to the last one.
#[tokio::test]
async fn what_a_sweep_leaves_that_is_killed_goes_with_the_next() {
    let world = World::new().await;
    let broker = world.broker().await;
    let model = register(&broker, "m").await;
    let before = taken(&broker).await;
    let mut kills = 0;
    // On a busy machine a sweep is over before it is killed.
    while taken(&broker).await == before {
        kills += 1;
        assert!(kills < 10, "sweeps are over before they are killed");
        killed_sweeps(&world, &broker).await;
    }
    swept(&broker, AT_ONCE).await;
    assert_eq!(taken(&broker).await, before);
    assert!(broker.core.store.blobs.get(&model.onnx).await.is_ok());
}

/// Stores forty blobs, and kills a sweep after every eight of them.
async fn killed_sweeps(world: &World, broker: &Broker) {
    let before = taken(broker).await.0;
    for seed in 0..40 {
        broker.core.store.blobs.put(bytes(seed, 200_000)).await.unwrap();
    }
    for round in 1..=4 {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let dying = world.broker_on(&runtime).await;
        let core = dying.core.clone();
        runtime.spawn(async move { sweep(&core, AT_ONCE, &mut Removed::default()).await });
        let less = before + 3 * (40 - 8 * round);
        while taken(broker).await.0 > less {
            tokio::task::yield_now().await;
        }
        runtime.shutdown_background();
        drop(dying);
    }
}

#[tokio::test]
async fn a_value_that_cannot_be_read_keeps_everything() {
    let world = World::new().await;
    let broker = world.broker().await;
    let orphan = broker.core.store.blobs.put(bytes(1, 10)).await.unwrap();
    let jobs = broker.core.store.context().get_key_value("jobs").await.unwrap();
    jobs.put("odd", "{\"kind\":\"of tomorrow\"}".into()).await.unwrap();
    let error = sweep(&broker.core, AT_ONCE, &mut Removed::default()).await.unwrap_err();
    assert!(error.to_string().contains("jobs/odd"), "{error}");
    assert!(is_stored(&broker, &orphan.digest).await);
    jobs.purge("odd").await.unwrap();
    assert_eq!(swept(&broker, AT_ONCE).await.blobs, 1);
}

#[tokio::test]
async fn a_job_whose_input_is_gone_fails_and_is_not_tried_again() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let (job, input) = submit_infer(&broker, 0.5).await;
    let page = broker.core.store.blobs.list(0, PAGE).await.unwrap();
    let digest = link::digest::of(&input);
    let listed: Vec<Listed> =
        page.blobs.into_iter().filter(|listed| listed.digest == digest).collect();
    assert!(broker.core.store.blobs.remove_listed(&listed[0]).await.unwrap());
    let _device = Device::start(&world, "d1").await;
    let record = ended(&broker, &job).await;
    let failure = record.failure.unwrap();
    assert_eq!(failure.code, FailureCode::BlobUnavailable, "{failure:?}");
    let error = broker.retry(&job).await.unwrap_err();
    assert_eq!(error.code, ApiCode::Job(FailureCode::BlobUnavailable), "{error}");
}
