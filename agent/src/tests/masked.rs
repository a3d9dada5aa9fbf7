//! An agent in a secure aggregation: stopped and started between any two stages, it gives the same
//! answers, and to another question none.

use async_nats::header::HeaderMap;
use jobs::report::FailureCode;
use jobs::spec::{Levels, LocalTraining, MaskedTrainTask, Noised, Rounding};
use models::params::Parameters;
use secagg::{Client as Device, Inbox, Keys, Party, Quantisation, Roster, Secret, Server};
use serde::Serialize;

use super::train::{Model, training, update_of};
use super::*;

const LEVELS: Levels =
    Levels { clip: 2.0, weight_max: 10, rounding: Rounding::Stochastic, devices: 4, within: false };

fn masked(model: &Model, attempt: u32) -> Task {
    let local = LocalTraining { epochs: 3, batch_size: 8, ..LocalTraining::default() };
    let mut task = training(model, "job1", attempt, local);
    let TaskWork::Train(train) = task.work else { panic!("a training") };
    task.work = TaskWork::TrainMasked(Box::new(MaskedTrainTask { train, levels: LEVELS }));
    task
}

impl World {
    /// Asks the agent a stage's question; how it ends.
    async fn asked<T: Serialize>(
        &self,
        purpose: Purpose,
        attempt: u32,
        question: &T,
    ) -> TaskReport {
        let mut reports = self.listen("report.job1.pi").await;
        let task = task("job1", purpose, attempt, TaskWork::Exchange);
        let question = serde_json::to_vec(question).unwrap();
        let encoded = wire::encode_with_binary(&Offer::Task(Box::new(task)), &question);
        let mut headers = HeaderMap::new();
        headers.insert(wire::JSON_LENGTH_HEADER, encoded.json_length.unwrap().to_string());
        self.client.publish_with_headers("offer.pi", headers, encoded.payload).await.unwrap();
        final_report(&mut reports).await.0
    }

    /// The same where an answer comes.
    async fn answered<T: Serialize>(&self, purpose: Purpose, attempt: u32, question: &T) -> Bytes {
        let report = self.asked(purpose, attempt, question).await;
        let ReportBody::Exchanged(said) = report.body else { panic!("no answer: {report:?}") };
        self.blobs.get(&said.message).await.unwrap()
    }

    /// Stops the agent and starts it again.
    async fn restart(&self, agent: Agent) -> Agent {
        agent.stop().await;
        self.join(self.config_with_data()).await
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).unwrap()
}

/// Three other devices.
fn others() -> Vec<Device> {
    (1..4).map(|byte| Device::new(Secret::new([byte; 32]))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_starts_again_between_any_two_stages_says_the_same() {
    let world = World::new().await;
    let mut agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let length = Parameters::from_safetensors(&model.values).unwrap().total_len() + 1;
    let mut reports = world.listen("report.job1.pi").await;
    world.offer(&masked(&model, 1)).await;
    let update = update_of(final_report(&mut reports).await.0);
    assert_eq!((update.examples, update.steps), (64, 24));
    let keys: Keys = read(&world.blobs.get(&update.parameters).await.unwrap());
    // Another attempt has the same keys, and so the same update.
    agent = world.restart(agent).await;
    world.offer(&masked(&model, 2)).await;
    let again = update_of(final_report(&mut reports).await.0);
    assert_ne!(again.parameters.object_name(), update.parameters.object_name());
    assert_eq!(read::<Keys>(&world.blobs.get(&again.parameters).await.unwrap()), keys);

    let mut others = others();
    let mut server = Server::new("job1.1".to_owned(), length as u64, secagg::Risk::default());
    server.keys(0, keys).unwrap();
    for (number, other) in (1..).zip(&others) {
        server.keys(number, other.keys()).unwrap();
    }
    let roster = server.close_keys().unwrap().clone();
    let elsewhere = Roster { purpose: "job2.1".to_owned(), ..roster.clone() };
    let report = world.asked(Purpose::Share, 1, &elsewhere).await;
    assert_eq!(failure_of(report).code, FailureCode::InvalidInput);
    let shares = world.answered(Purpose::Share, 2, &roster).await;
    server.shares(Party(0), &read(&shares)).unwrap();
    agent = world.restart(agent).await;
    assert_eq!(world.answered(Purpose::Share, 3, &roster).await, shares);
    for (number, other) in (1..).zip(&mut others) {
        server.shares(Party(number), &other.share(&roster).unwrap()).unwrap();
    }
    server.close_shares().unwrap();

    let inbox = server.inbox(Party(0)).unwrap();
    let vector = world.answered(Purpose::Mask, 1, &inbox).await;
    assert_eq!(vector.len(), 4 * length);
    agent = world.restart(agent).await;
    let fewer = Inbox { sealed: inbox.sealed[1..].to_vec(), ..inbox.clone() };
    let failure = failure_of(world.asked(Purpose::Mask, 2, &fewer).await);
    assert!(failure.message.contains("an inbox was answered before"), "{failure:?}");
    assert_eq!(world.answered(Purpose::Mask, 3, &inbox).await, vector);
    let mut sum: Vec<u32> =
        vector.chunks_exact(4).map(|bytes| u32::from_le_bytes(bytes.try_into().unwrap())).collect();
    // One of the others drops out; the two that stay send nothing but masks.
    server.masked(Party(0)).unwrap();
    for number in [1, 2] {
        let inbox = server.inbox(Party(number)).unwrap();
        let mut zeros = vec![0; length];
        others[number as usize - 1].mask(&inbox).unwrap().apply(0, &mut zeros);
        secagg::add(&mut sum, &zeros);
        server.masked(Party(number)).unwrap();
    }
    server.close_masked().unwrap();

    let request = server.unmask_request(Party(0)).unwrap();
    let unmasking = world.answered(Purpose::Unmask, 1, &request).await;
    agent = world.restart(agent).await;
    let mut other = request.clone();
    other.dropped.push(other.survivors.pop().unwrap());
    other.dropped.sort();
    let failure = failure_of(world.asked(Purpose::Unmask, 2, &other).await);
    assert!(failure.message.contains("a request to unmask was answered before"), "{failure:?}");
    assert_eq!(world.answered(Purpose::Unmask, 3, &request).await, unmasking);
    server.unmasking(Party(0), &read(&unmasking)).unwrap();
    for number in [1, 2] {
        let request = server.unmask_request(Party(number)).unwrap();
        let said = others[number as usize - 1].unmask(&request).unwrap();
        server.unmasking(Party(number), &said).unwrap();
    }
    server.finish().unwrap().apply(0, &mut sum);
    assert_eq!(sum.pop(), Some(LEVELS.weight_max), "64 examples count as 10");
    assert_trained(&world, &model, &sum).await;
    agent.stop().await;
}

/// What is left of the sum is the update of a training without masks, in levels.
async fn assert_trained(world: &World, model: &Model, sum: &[u32]) {
    let local = LocalTraining { epochs: 3, batch_size: 8, ..LocalTraining::default() };
    let mut reports = world.listen("report.job2.pi").await;
    world.offer(&training(model, "job2", 1, local)).await;
    let plain = update_of(final_report(&mut reports).await.0);
    let plain = world.blobs.get(&plain.parameters).await.unwrap();
    let values = |bytes: &[u8]| -> Vec<f32> {
        let parameters = Parameters::from_safetensors(bytes).unwrap();
        parameters.items().iter().flat_map(|item| item.values.clone()).collect()
    };
    let quantisation = Quantisation::new(LEVELS.clip, LEVELS.devices, LEVELS.weight_max).unwrap();
    let mut moved = false;
    for ((before, after), sum) in values(&model.values).iter().zip(values(&plain)).zip(sum) {
        let found = quantisation.mean(*sum, LEVELS.weight_max);
        assert!((found - f64::from(after - before)).abs() <= quantisation.step(), "{found}");
        moved |= found.abs() > 0.01;
    }
    assert!(moved);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_update_nothing_is_said() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    for purpose in [Purpose::Share, Purpose::Mask, Purpose::Unmask] {
        let failure = failure_of(world.asked(purpose, 1, &1).await);
        assert_eq!(failure.message, "this device has no update of this round");
    }
    agent.stop().await;
}

/// What the device keeps of its update for a round: levels, weight, whether it is as it was, if that
/// is said.
fn vector(world: &World, job: &str) -> Vec<u32> {
    let file = world.dir.path().join(format!("state/masking/{job}.1.levels"));
    let bytes = std::fs::read(file).unwrap();
    bytes.chunks_exact(4).map(|it| u32::from_le_bytes(it.try_into().unwrap())).collect()
}

/// Differences of that update.
fn kept(world: &World, job: &str, levels: Levels) -> Vec<f64> {
    let quantisation = Quantisation::new(levels.clip, levels.devices, levels.weight_max).unwrap();
    let mut vector = vector(world, job);
    vector.truncate(vector.len() - 1 - usize::from(levels.within));
    vector.iter().map(|level| quantisation.mean(*level, 1)).collect()
}

fn norm(values: &[f64]) -> f64 {
    values.iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// The noise is in what is masked, and the same when the device is asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_masked_has_its_noise() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let levels = Levels { clip: 8.0, weight_max: 1, ..LEVELS };
    let mut task = masked(&model, 1);
    let TaskWork::TrainMasked(work) = &mut task.work else { unreachable!() };
    work.train.local.noised = Some(Noised { norm: 0.5, noise_multiplier: 1.0 });
    work.train.local.frozen = vec!["classes.bias".to_owned()];
    work.levels = levels;
    let mut reports = world.listen("report.job1.pi").await;
    world.offer(&task).await;
    let update = update_of(final_report(&mut reports).await.0);
    assert_eq!((update.loss.to_bits(), update.accuracy.to_bits()), (0, 0), "not covered by noise");
    let noise = kept(&world, "job1", levels);
    let still = noise.iter().filter(|value| value.abs() <= 0.0).count();
    #[expect(clippy::cast_precision_loss, reason = "a few values")]
    let deviation = norm(&noise) / ((noise.len() - still) as f64).sqrt();
    assert!(still == 10 && (0.9..1.1).contains(&deviation), "{still} {deviation}");
    let agent = world.restart(agent).await;
    task.id.attempt = Attempt(2);
    world.offer(&task).await;
    update_of(final_report(&mut reports).await.0);
    assert_eq!(kept(&world, "job1", levels), noise);
    agent.stop().await;
}

/// The broker sees no update that it could shorten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_masked_is_no_longer_than_asked() {
    let world = World::new().await;
    let agent = world.join(world.config_with_data()).await;
    let model = world.model("mlp", [1, 4, 4], 10).await;
    let nearest = Levels { clip: 4.0, weight_max: 1, rounding: Rounding::Nearest, ..LEVELS };
    let mut updates = Vec::new();
    for (job, norm) in [("job1", None), ("job2", Some(0.125)), ("job3", Some(100.0))] {
        let levels = Levels { within: norm.is_some(), ..nearest };
        let mut task = masked(&model, 1);
        task.id.job = job.parse().unwrap();
        let TaskWork::TrainMasked(work) = &mut task.work else { unreachable!() };
        work.train.local.update_norm_max = norm;
        work.train.local.frozen = vec!["classes.bias".to_owned()];
        work.levels = levels;
        let mut reports = world.listen(&format!("report.{job}.pi")).await;
        world.offer(&task).await;
        let update = update_of(final_report(&mut reports).await.0);
        assert!(update.loss > 0.0, "losses are told as ever");
        updates.push(kept(&world, job, levels));
        if let Some(norm) = norm {
            let as_it_was = u32::from(norm > 1.0);
            assert_eq!(vector(&world, job)[updates[0].len()..], [1, as_it_was]);
        }
    }
    let [whole, shortened, as_it_is] = &updates[..] else { unreachable!() };
    assert!(norm(whole) > 0.25 && whole == as_it_is, "{}", norm(whole));
    let error = Quantisation::new(4.0, 4, 1).unwrap().error(false);
    #[expect(clippy::cast_precision_loss, reason = "a few values")]
    let slack = error * (whole.len() as f64).sqrt();
    assert!((norm(shortened) - 0.125).abs() <= slack + 1e-6, "{}", norm(shortened));
    let factor = 0.125 / norm(whole);
    for (whole, shortened) in whole.iter().zip(shortened) {
        assert!((whole * factor - shortened).abs() <= 3.0 * error + 1e-6);
    }
    // Where updates are not masked a broker shortens them itself.
    let mut plain = training(&model, "job4", 1, LocalTraining::default());
    let TaskWork::Train(work) = &mut plain.work else { unreachable!() };
    work.local.update_norm_max = Some(1.0);
    let mut reports = world.listen("report.job4.pi").await;
    world.offer(&plain).await;
    let failure = failure_of(final_report(&mut reports).await.0);
    assert_eq!(failure.code, FailureCode::InvalidSpec, "{failure:?}");
    agent.stop().await;
}
