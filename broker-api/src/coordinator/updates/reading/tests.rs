//! With a real nats-server: what is read, and in what order.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_nats::Client;
use jobs::id::{BlobRef, DeviceId, JobId, Millis};
use jobs::report::{FailureCode, UpdateReport};
use jobs::spec::WorkSpec;
use link::blobs::Blobs;
use models::federated::statistics::Statistics;
use models::params::{Layout, Parameter, Parameters};

use super::super::{How, Updates};
use crate::coordinator::prepare::Model;
use crate::testing::{World, id, train_spec};

/// Of a model of 20 MB: beside the sums there is room for one of them.
const VALUES: usize = 5_000_000;

fn parameters(value: f32) -> Parameters {
    let item = Parameter { name: "w".to_owned(), shape: vec![VALUES], values: vec![value; VALUES] };
    Parameters::new(vec![item]).unwrap()
}

/// A round of four devices, each of which sends its number.
struct Story {
    world: World,
    _broker: crate::broker::Broker,
    client: Client,
    blobs: Blobs,
    updates: Updates,
    job: JobId,
    base: BlobRef,
    sent: Vec<(DeviceId, UpdateReport)>,
}

impl Story {
    async fn begin() -> Self {
        let world = World::new().await;
        let broker = world.broker().await;
        let client = world.client().await;
        let blobs = Blobs::new(client.clone());
        let WorkSpec::Train(spec) = train_spec(1, 4).work else { unreachable!() };
        let layout = Layout::of(&parameters(0.0));
        let model = Model { layout, statistics: Statistics::default() };
        let updates = Updates::start(blobs.clone(), model, &spec).unwrap();
        let base = blobs.put(parameters(0.0).to_safetensors().into()).await.unwrap();
        let mut sent = Vec::new();
        for (number, device) in (1_u8..).zip(["a", "b", "c", "d"]) {
            let bytes = parameters(f32::from(number)).to_safetensors();
            let report = UpdateReport {
                parameters: blobs.put(bytes.into()).await.unwrap(),
                examples: 1,
                loss: 0.0,
                accuracy: 0.0,
                steps: 1,
                duration_ms: Millis(1),
                engine: "native".to_owned(),
                initial_loss: None,
                control_change: None,
                held: false,
                crc32: None,
                control_anew: false,
            };
            sent.push((id::<DeviceId>(device), report));
        }
        updates.begin(sent.iter().map(|(device, _)| device.clone()).collect(), &base).await;
        let job = id("01hzzzzzzzzzzzzzzzzzzzzzzz");
        Self { world, _broker: broker, client, blobs, updates, job, base, sent }
    }

    /// Lets these updates arrive, in this order, and nothing be wrong with them.
    async fn arrive(&self, order: &[usize]) {
        let checks = order.iter().map(|at| {
            let (device, update) = &self.sent[*at];
            self.updates.check(&self.job, device, update, None)
        });
        assert_eq!(futures::future::join_all(checks).await, vec![None; order.len()]);
    }

    /// The mean of these updates.
    async fn mean(&self, of: &[usize]) -> f32 {
        let list: Vec<_> = of.iter().map(|at| self.sent[*at].clone()).collect();
        let names = ("mean".to_owned(), "state".to_owned());
        let how = How::Mean(self.base.clone());
        let aggregate = self.updates.aggregate(names, &list, &[], how).await.unwrap();
        let bytes = self.blobs.get(&aggregate.parameters).await.unwrap();
        let values = Parameters::from_safetensors(&bytes).unwrap().items()[0].values.clone();
        assert!(values.iter().all(|value| value.to_bits() == values[0].to_bits()));
        values[0]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn updates_are_read_once_whatever_their_order() {
    let mut story = Story::begin().await;
    // However busy the machine is.
    story.updates.patience = Duration::from_mins(1);
    let came = || story.client.statistics().in_bytes.load(Ordering::Relaxed);
    let before = came();
    story.arrive(&[3, 1, 2, 0]).await;
    let read = came() - before;
    let size = 4 * VALUES as u64;
    assert!(read < 4 * size + size / 2, "{read} bytes of four updates of {size}");
    let before = came();
    // And the mean, which the test looks at.
    assert!((story.mean(&[0, 1, 2, 3]).await - 2.5).abs() < 1e-6);
    let read = came() - before;
    assert!(read < size + size / 2, "{read} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_never_comes_holds_nobody_up() {
    let story = Story::begin().await;
    let began = Instant::now();
    story.arrive(&[3, 2, 1]).await;
    // They wait for it for a quarter of a second.
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
    assert!((story.mean(&[1, 2, 3]).await - 3.0).abs() < 1e-6);
}

/// Answers for a device that holds its update.
async fn hold(story: &Story, at: usize, bytes: Vec<u8>) -> tokio::task::JoinHandle<()> {
    use futures::StreamExt as _;
    let client = story.world.client().await;
    let blobs = Blobs::new(client.clone());
    let subject = jobs::subject::held(&story.sent[at].0);
    let mut requests = client.subscribe(subject).await.unwrap();
    client.flush().await.unwrap();
    let bytes = bytes::Bytes::from(bytes);
    tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            let request: jobs::held::HeldRequest = jobs::wire::decode(&message.payload).unwrap();
            let from = usize::try_from(request.from).unwrap();
            let part = bytes.slice(from..from + usize::try_from(request.bytes.0).unwrap());
            blobs.give(&message.reply.unwrap(), request.from, part).await.unwrap();
        }
    })
}

/// Updates that devices hold are read like others. One that has to be read again when its device is
/// gone is told of, and the others come to new parameters without it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_whose_device_is_gone_is_left_out() {
    let mut story = Story::begin().await;
    let mut devices = Vec::new();
    for (at, number) in [(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)] {
        story.sent[at].1.held = true;
        devices.push(hold(&story, at, parameters(number).to_safetensors()).await);
    }
    story.arrive(&[2, 0, 3, 1]).await;
    assert!((story.mean(&[0, 1, 2, 3]).await - 2.5).abs() < 1e-6);

    // Another broker knows nothing of what was read.
    let devices_of = |story: &Story| story.sent.iter().map(|(device, _)| device.clone()).collect();
    story.updates.begin(devices_of(&story), &story.base).await;
    devices[1].abort();
    let list: Vec<_> = story.sent.clone();
    let names = ("mean".to_owned(), "state".to_owned());
    let how = How::Mean(story.base.clone());
    let unmade = story.updates.aggregate(names, &list, &[], how).await.unwrap_err();
    assert_eq!(unmade.without.as_ref().map(DeviceId::as_str), Some("b"), "{unmade:?}");
    assert_eq!(unmade.failure.code, FailureCode::BlobUnavailable, "{unmade:?}");
    let expected = (1.0 + 3.0 + 4.0) / 3.0;
    assert!((story.mean(&[0, 2, 3]).await - expected).abs() < 1e-6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_does_not_give_its_update_has_to_store_the_next() {
    let mut story = Story::begin().await;
    let (device, update) = &mut story.sent[0];
    update.held = true;
    let (device, update) = (device.clone(), update.clone());
    assert!(story.updates.may_be_held(&device));
    let refused = story.updates.check(&story.job, &device, &update, None).await.unwrap();
    assert_eq!(refused.code, FailureCode::BlobUnavailable);
    assert!(refused.code.is_transient(), "it gets another offer");
    assert!(!story.updates.may_be_held(&device));
    assert!(story.updates.may_be_held(&story.sent[1].0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_of_the_thread_costs_no_more_than_what_it_was_at() {
    let story = Story::begin().await;
    story.arrive(&[0, 1]).await;
    let asked = story.updates.ask(|_| -> usize { panic!("a fault") }).await;
    assert!(asked.is_err());
    // The sums may be anything by now: all of it is read again.
    story.arrive(&[2, 3]).await;
    assert!((story.mean(&[0, 1, 2, 3]).await - 2.5).abs() < 1e-6);
    let devices = story.sent.iter().map(|(device, _)| device.clone()).collect();
    story.updates.begin(devices, &story.base).await;
    story.arrive(&[1, 0]).await;
    assert!((story.mean(&[0, 1]).await - 1.5).abs() < 1e-6);
}
