use jobs::job::JobState;
use jobs::report::FailureCode;
use jobs::selector::Selector;
use jobs::spec::{InferSpec, JobSpec, Purpose, WorkSpec};

use super::*;
use crate::error::ApiCode;
use crate::record::{EventBody, JobResult};
use crate::room::Place;
use crate::testing::*;

mod listing;
mod registering;

fn request() -> crate::request::InferRequest {
    crate::request::infer(br#"{"model":"m","input":[[[0.5,1.0],[1.5,2.0]]]}"#).unwrap()
}

fn infer_spec() -> (JobSpec, Bytes) {
    let request = request();
    let work = WorkSpec::Infer(request.spec);
    (JobSpec { selector: request.selector, deadline_ms: Millis(60_000), work }, request.binary)
}

async fn infer(broker: &Broker, deadline: u64) -> Result<Answer, ApiError> {
    let (spec, binary): (InferSpec, Bytes) = (request().spec, request().binary);
    broker.infer(spec, binary, Selector::default(), Millis(deadline)).await
}

#[tokio::test]
async fn a_request_is_answered_by_a_device() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let error = infer(&broker, 5000).await.unwrap_err();
    assert_eq!(error.code, ApiCode::Job(FailureCode::NoDevice), "{error}");
    let _device = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    let answer = infer(&broker, 5000).await.unwrap();
    assert_eq!(answer.device.as_str(), "d1");
    assert_eq!(answer.outputs, request().binary);
    assert!(broker.metrics().contains("dunlin_infer_overhead_seconds_count 1"));
    broker.stop().await;
}

#[tokio::test]
async fn a_request_goes_elsewhere_when_its_device_dies() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let mut silent = Device::start_as(&world, "d1", |_| Action::Silence).await;
    joined(&broker, 1).await;
    let asking = broker.clone();
    let answer = tokio::spawn(async move { infer(&asking, 30_000).await });
    silent.offered(Purpose::Infer).await;
    let _other = Device::start(&world, "d2").await;
    joined(&broker, 2).await;
    drop(silent);
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.device.as_str(), "d2");
}

#[tokio::test]
async fn a_device_that_is_gone_is_noticed_at_once() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let device = Device::start(&world, "d1").await;
    joined(&broker, 1).await;
    drop(device);
    let began = std::time::Instant::now();
    let error = infer(&broker, 30_000).await.unwrap_err();
    assert_eq!(error.code, ApiCode::Job(FailureCode::NoDevice), "{error}");
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn a_failure_that_lasts_is_told_at_once() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let behaviour = |_: &_| Action::Fail(FailureCode::InvalidModel);
    let _device = Device::start_as(&world, "d1", behaviour).await;
    joined(&broker, 1).await;
    let error = infer(&broker, 30_000).await.unwrap_err();
    assert_eq!(error.code, ApiCode::Job(FailureCode::InvalidModel));
    assert!(error.detail.contains("d1"), "{error}");
}

#[tokio::test]
async fn the_same_job_is_accepted_once() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let (spec, binary) = infer_spec();
    let key = || Some("order 17 / é".to_owned());
    let first = broker.submit(spec.clone(), binary.clone(), None, key()).await.unwrap();
    let again = broker.submit(spec.clone(), binary.clone(), None, key()).await.unwrap();
    assert_eq!(first.id, again.id);
    let other = JobSpec { deadline_ms: Millis(7), ..spec.clone() };
    let error = broker.submit(other.clone(), binary.clone(), None, key()).await.unwrap_err();
    assert_eq!(error.code, ApiCode::Conflict);
    let mine: Option<JobId> = Some(id("mine"));
    broker.submit(spec.clone(), binary.clone(), mine.clone(), None).await.unwrap();
    broker.submit(spec, binary.clone(), mine.clone(), None).await.unwrap();
    let error = broker.submit(other, binary, mine, None).await.unwrap_err();
    assert_eq!(error.code, ApiCode::Conflict);
    assert!(error.detail.contains("mine"));
}

#[tokio::test]
async fn a_queued_job_waits_for_a_device_across_a_kill_and_is_answered_once() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let (spec, binary) = infer_spec();
    let job = broker.submit(spec, binary.clone(), None, None).await.unwrap().id;
    drop(broker);
    let broker = world.broker().await;
    let device = Device::start(&world, "d1").await;
    let record = ended(&broker, &job).await;
    assert_eq!(record.state, JobState::Succeeded, "{record:?}");
    let Some(JobResult::Infer { outputs: Some(outputs), .. }) = record.result else {
        panic!("expected outputs")
    };
    assert_eq!(broker.blob(&outputs.digest).await.unwrap(), binary);
    let events: Vec<_> = broker.events(&job, 0).await.unwrap().collect().await;
    let names: Vec<_> = events.iter().map(|event| event.body.name()).collect();
    assert_eq!(names, ["accepted", "placed", "ended"]);
    assert_eq!(device.offered.borrow().len(), 1);
    // Who has seen the end sees nothing more, whatever a device that is late still says.
    let last = events.last().unwrap().sequence;
    let late = EventBody::Placed { device: id("d1") };
    broker.core.store.publish_event(&job, "late", late).await.unwrap();
    let events: Vec<_> = broker.events(&job, last).await.unwrap().collect().await;
    assert_eq!(events, []);
}

#[tokio::test]
async fn a_record_without_its_place_in_the_queue_is_queued() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let (spec, binary) = infer_spec();
    // What a broker leaves that dies right after it has stored the record.
    let input = broker.core.store.blobs.put(binary).await.unwrap();
    let record = JobRecord {
        id: id("half"),
        spec,
        state: JobState::Accepted,
        accepted_at: crate::store::now(),
        ended_at: None,
        devices: Vec::new(),
        failure: None,
        result: None,
        waiting: None,
        notes: Vec::new(),
        rounds: Vec::new(),
    };
    let stored = crate::record::StoredJob::of(record, Some(input));
    broker.core.store.jobs.create("half", &stored).await.unwrap();
    drop(broker);
    let broker = world.broker().await;
    let _device = Device::start(&world, "d1").await;
    assert_eq!(ended(&broker, &id("half")).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn jobs_are_listed_cancelled_and_tried_again() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let (spec, binary) = infer_spec();
    let first = broker.submit(spec.clone(), binary.clone(), None, None).await.unwrap().id;
    let second = broker.submit(spec, binary, None, None).await.unwrap().id;
    assert_eq!(broker.retry(&first).await.unwrap_err().code, ApiCode::Conflict);
    broker.cancel(&first).await.unwrap();
    assert_eq!(ended(&broker, &first).await.state, JobState::Cancelled);
    let _device = Device::start(&world, "d1").await;
    assert_eq!(ended(&broker, &second).await.state, JobState::Succeeded);
    let third = broker.retry(&first).await.unwrap().id;
    assert_eq!(ended(&broker, &third).await.state, JobState::Succeeded);
    let page = broker.jobs(2, None).await.unwrap().jobs;
    let ids: Vec<_> = page.iter().map(|record| record.id.clone()).collect();
    assert_eq!(ids, [third, second.clone()]);
    let page = broker.jobs(2, Some(second)).await.unwrap();
    assert_eq!((page.jobs.len(), page.next), (1, None));
    assert_eq!(page.jobs[0].id, first);
    let unknown = broker.job(&id("unknown")).await.unwrap_err();
    assert_eq!(unknown.code, ApiCode::UnknownJob);
}

#[tokio::test]
async fn a_telemetry_job_measures_every_device() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _devices = (Device::start(&world, "d1").await, Device::start(&world, "d2").await);
    joined(&broker, 2).await;
    let (spec, _) = crate::request::job(Some(jobs::spec::JobKind::Telemetry), b"").unwrap();
    let job = broker.submit(spec, Bytes::new(), None, None).await.unwrap().id;
    let record = ended(&broker, &job).await;
    let Some(JobResult::Telemetry { devices }) = record.result else { panic!("{record:?}") };
    let names: Vec<_> = devices.iter().map(|(device, _)| device.as_str()).collect();
    assert_eq!(names, ["d1", "d2"]);
}

#[tokio::test]
async fn versions_of_models_are_numbered_and_do_not_change() {
    let world = World::new().await;
    let broker = world.broker().await;
    let first = register(&broker, "m").await;
    let second = register(&broker, "m").await;
    assert_eq!(first.reference.version.as_str(), "1");
    assert_eq!(second.reference.version.as_str(), "2");
    let query = |text: &str| text.parse::<ModelQuery>().unwrap();
    assert_eq!(broker.model(&query("m")).await.unwrap(), second);
    assert_eq!(broker.model(&query("m:1")).await.unwrap(), first);
    let other = models::zoo::build("mlp", [1, 2, 2], 3, 8).unwrap();
    let version = Some(id("1"));
    let config = ModelConfig::default();
    let taken = broker.register(&id("m"), version, other.into(), config.clone()).await;
    assert_eq!(taken.unwrap_err().code, ApiCode::Conflict);
    let bad = broker.register(&id("m"), None, Bytes::from_static(b"no"), config).await;
    assert_eq!(bad.unwrap_err().code, ApiCode::Job(FailureCode::InvalidModel));
    broker.remove_model(&query("m:2")).await.unwrap();
    assert_eq!(broker.model(&query("m")).await.unwrap(), first);
    let error = broker.model(&query("m:2")).await.unwrap_err();
    assert!(error.code == ApiCode::UnknownModel && error.hint.contains('1'), "{error:?}");
}

/// Leaves a bucket so little room that two thirds are taken.
async fn fill(broker: &Broker, stream: &str) {
    let context = broker.core.store.context();
    let mut stream = context.get_stream(stream).await.unwrap();
    let bytes = stream.info().await.unwrap().state.bytes;
    let mut config = stream.cached_info().config.clone();
    config.max_bytes = i64::try_from(bytes).unwrap() * 3 / 2;
    context.update_stream(config).await.unwrap();
}

#[tokio::test]
async fn devices_that_are_away_longest_are_forgotten_before_the_store_is_full() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _here = Device::start(&world, "here").await;
    let mut away = Vec::new();
    for number in 0..9_usize {
        let name = format!("away-{number}");
        away.push((Device::start(&world, &name).await, id(&name)));
        joined(&broker, 2 + number).await;
    }
    let known = || broker.devices().into_iter().map(|device| device.hello.device.to_string());
    while let Some((device, id)) = away.pop() {
        drop(device);
        let until = std::time::Instant::now() + PATIENCE;
        while broker.core.fleet.presence(&id) != jobs::device::Presence::Offline {
            assert!(std::time::Instant::now() < until, "{id} is away");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    broker.core.fleet.forget_absent().await.unwrap();
    assert_eq!(known().count(), 10, "there is room");
    fill(&broker, "KV_devices").await;
    broker.core.fleet.forget_absent().await.unwrap();
    let left: Vec<String> = known().collect();
    assert_eq!(left.len(), 8, "{left:?}");
    assert!(left.contains(&"here".to_owned()), "{left:?}");
    for gone in ["away-7", "away-8"] {
        assert!(!left.contains(&gone.to_owned()), "{left:?}");
        assert_eq!(broker.core.store.devices.get(gone).await.unwrap(), None);
    }
}

#[tokio::test]
async fn the_oldest_jobs_go_before_the_store_is_full() {
    let world = World::new().await;
    let broker = world.broker().await;
    let _silent = Device::start_as(&world, "d1", |_| Action::Silence).await;
    joined(&broker, 1).await;
    let mut jobs = Vec::new();
    for _ in 0..24 {
        let job = broker.submit(train_spec(1, 1), Bytes::new(), None, None).await.unwrap().id;
        broker.cancel(&job).await.unwrap();
        assert_eq!(ended(&broker, &job).await.state, JobState::Cancelled);
        jobs.push(job);
    }
    let left = || broker.core.index.surplus(|_| 0).len();
    broker.core.prune().await.unwrap();
    assert_eq!(left(), 24, "there is room");
    fill(&broker, "KV_jobs").await;
    broker.core.prune().await.unwrap();
    let until = std::time::Instant::now() + PATIENCE;
    while left() > 21 && std::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(left(), 21);
    for (number, job) in jobs.iter().enumerate() {
        let found = broker.core.store.jobs.get(job.as_str()).await.unwrap();
        assert_eq!(found.is_some(), number >= 3, "job {number}");
    }
}

#[tokio::test]
async fn an_input_that_fits_no_message_is_refused_before_it_is_stored() {
    let world = World::new().await;
    let broker = world.broker().await;
    let onnx = models::zoo::build("mlp", [1, 2, 2], 3, 7).unwrap();
    let preprocessing =
        serde_json::from_str(r#"{"width": 2, "height": 2, "channels": 1}"#).unwrap();
    let config = ModelConfig { preprocessing: Some(preprocessing), ..ModelConfig::default() };
    broker.register(&id("m"), None, onnx.into(), config).await.unwrap();
    let (mut spec, _) = infer_spec();
    let WorkSpec::Infer(infer) = &mut spec.work else { panic!("an inference") };
    infer.input = jobs::spec::InferInput::Picture;
    let picture = Bytes::from(vec![0; crate::nats_server::MAX_PAYLOAD]);
    let error = broker.submit(spec, picture, None, None).await.unwrap_err();
    assert_eq!(error.code, ApiCode::TooLarge, "{error}");
    assert!(error.detail.contains("8388608") && error.hint.contains("max_payload"), "{error:?}");
    assert_eq!(broker.jobs(1, None).await.unwrap().jobs, []);
}

#[tokio::test]
async fn the_input_of_a_job_is_read_when_it_is_offered() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let (spec, binary) = infer_spec();
    let job = broker.submit(spec, binary.clone(), None, None).await.unwrap().id;
    // The broker has looked for a device once the queue has handed the job out.
    let stream = broker.core.store.stream(jobs::subject::STREAM_WORK).await.unwrap();
    let handed_out = async {
        while stream.consumer_info("brokers").await.map_or(0, |info| info.num_ack_pending) == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, handed_out).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let input = broker.core.stored(&job).await.unwrap().input.unwrap();
    broker.core.store.blobs.delete(&input).await.unwrap();
    let _device = Device::start(&world, "d1").await;
    let failure = ended(&broker, &job).await.failure.unwrap();
    assert_eq!(failure.code, FailureCode::BlobUnavailable, "{failure:?}");
}

#[tokio::test]
async fn after_the_last_number_there_is_no_version() {
    let world = World::new().await;
    let broker = world.broker().await;
    let add = |version: Option<&str>, seed| {
        let onnx = models::zoo::build("mlp", [1, 2, 2], 3, seed).unwrap();
        let (broker, version) = (broker.clone(), version.map(id));
        async move { broker.register(&id("m"), version, onnx.into(), ModelConfig::default()).await }
    };
    add(Some("18446744073709551615"), 7).await.unwrap();
    let next = tokio::time::timeout(PATIENCE, add(None, 8)).await.expect("an answer");
    let error = next.unwrap_err();
    assert_eq!(error.code, ApiCode::Conflict, "{error}");
    assert!(error.detail.contains("18446744073709551615"), "{error}");
    add(Some("other"), 8).await.unwrap();
}

#[tokio::test]
async fn no_event_is_after_the_last_place() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let (spec, binary) = infer_spec();
    let job = broker.submit(spec, binary, None, None).await.unwrap().id;
    let mut events = broker.events(&job, u64::MAX).await.unwrap();
    broker.cancel(&job).await.unwrap();
    ended(&broker, &job).await;
    assert!(tokio::time::timeout(Duration::from_millis(200), events.next()).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_others_always_change_is_left() {
    let world = World::new().await;
    let broker = world.broker().await;
    let keys = broker.core.store.idempotency.clone();
    let value = |text: &str| crate::record::StoredKey {
        job: id(text),
        asked: link::digest::of(text.as_bytes()),
    };
    keys.put("k", &value("first")).await.unwrap();
    let (others, mut tries) = (keys.clone(), 0);
    let change = |stored: &mut crate::record::StoredKey| {
        tries += 1;
        let runtime = tokio::runtime::Handle::current();
        let put = async { others.put("k", &value("other")).await };
        tokio::task::block_in_place(|| runtime.block_on(put)).unwrap();
        stored.job = id("mine");
        true
    };
    let changed = tokio::time::timeout(PATIENCE, keys.modify("k", change)).await;
    let error = changed.expect("an end").unwrap_err();
    assert!(error.to_string().contains("changed by others"), "{error}");
    assert!((5..100).contains(&tries), "{tries} tries");
    assert_eq!(keys.get("k").await.unwrap().unwrap().value.job, id("other"));
}

#[tokio::test]
async fn a_record_names_the_last_devices_once() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let (spec, binary) = infer_spec();
    let job = broker.submit(spec, binary, None, None).await.unwrap().id;
    for (event, device) in (1..=20).chain([7, 20, 20]).enumerate() {
        let device = id(&format!("d{device}"));
        broker.core.note_placed(&job, &device, &format!("placed.1.{event}")).await;
    }
    let devices = broker.job(&job).await.unwrap().devices;
    let expected: Vec<DeviceId> =
        (5..=19).filter(|n| *n != 7).chain([7, 20]).map(|n| id(&format!("d{n}"))).collect();
    assert_eq!(devices, expected);
}

#[tokio::test]
async fn requests_over_nats_are_bounded_in_bytes() {
    let world = World::new().await;
    let broker = world.broker().await;
    register(&broker, "m").await;
    let _device = Device::start_as(&world, "d1", |_| Action::Silence).await;
    joined(&broker, 1).await;
    let client = world.client().await;
    let mut body = br#"{"model":"m","input":[[[0.5,1.0],[1.5,2.0]]],"deadline_ms":60000}"#.to_vec();
    body.resize(crate::nats_server::MAX_PAYLOAD - 4096, b' ');
    let body = Bytes::from(body);
    let in_flight = || broker.core.metrics.in_flight.value();
    for count in 1..=32 {
        client.publish_with_reply("jobs.infer", "held", body.clone()).await.unwrap();
        let taken = async {
            while in_flight() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, taken).await.expect("a request that is answered");
    }
    let refused = client.request("jobs.infer", body).await.unwrap();
    let problem: crate::error::Problem = serde_json::from_slice(&refused.payload).unwrap();
    assert_eq!(problem.code, "overloaded", "{problem:?}");
    assert!(problem.detail.contains("268435456 bytes"), "{problem:?}");
    // It is the room of HTTP as well.
    assert!(broker.core.room.take(&mut Place::default(), crate::nats_server::MAX_PAYLOAD).is_err());
}

#[tokio::test]
async fn the_fleet_is_measured_a_few_times_at_once() {
    let world = World::new().await;
    let broker = world.broker().await;
    let mut device = Device::start_as(&world, "d1", |_| Action::Silence).await;
    joined(&broker, 1).await;
    // Those that wait for their turn give up before the first ones have theirs behind them.
    let measure = |number| {
        let (broker, within) = (broker.clone(), Millis(if number < 16 { 2000 } else { 300 }));
        async move {
            let gateway = &broker.core.gateway;
            gateway.measure(&new_job_id(), &Selector::default(), within).await
        }
    };
    let answers = futures::future::join_all((0..20).map(measure)).await;
    let refused = answers.iter().filter_map(|answer| answer.as_ref().err());
    let codes: Vec<ApiCode> = refused.map(|error| error.code).collect();
    assert_eq!(codes, [ApiCode::Overloaded; 4]);
    assert_eq!(device.offered.borrow_and_update().len(), 16);
}

/// The server forgets who follows the bucket of models, as it does when it loses its disk; those
/// notice it after ten seconds of silence.
#[tokio::test]
async fn a_model_is_found_though_the_watch_on_models_is_broken() {
    let world = World::new().await;
    let (first, second) = (world.broker().await, world.broker().await);
    let context = async_nats::jetstream::new(world.client().await);
    let models = context.get_stream("KV_models").await.unwrap();
    let mut forgotten = 0;
    let mut names = models.consumer_names();
    while let Some(name) = names.next().await {
        models.delete_consumer(&name.unwrap()).await.unwrap();
        forgotten += 1;
    }
    assert_eq!(forgotten, 2);
    let began = std::time::Instant::now();
    let registered = register(&first, "m").await;
    let query = |version: Option<&str>| ModelQuery { name: id("m"), version: version.map(id) };
    for query in [query(None), query(Some("1"))] {
        assert_eq!(first.model(&query).await.unwrap(), registered);
        assert_eq!(second.model(&query).await.unwrap(), registered);
    }
    let unknown = second.model(&query(Some("2"))).await.unwrap_err();
    assert_eq!(unknown.code, ApiCode::UnknownModel, "{unknown}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}
