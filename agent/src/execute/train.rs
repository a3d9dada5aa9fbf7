//! Local training and evaluation of a round.

use std::sync::Arc;

use bytes::Bytes;
use datasets::{Sums, check_fit, judging};
use jobs::id::{BlobRef, Digest, Millis};
use jobs::report::{EvaluationReport, Failure, FailureCode, ReportBody, UpdateReport};
use jobs::spec::{EvaluateTask, TaskId, TrainTask};
use models::dataset::{Batches, Dataset, Normalization, Order};
use models::params::Parameters;
use models::train::Trainer;
use tokio::sync::mpsc;

use self::control::Control;
use self::memory::Room;
pub(crate) use self::meter::Latest;
use self::meter::{Meter, Steps};
use self::prepare::begin;
use self::update::{Given, Update};
use super::memory::Promise;
use super::{Run, Stopped, failures};
use crate::cache::{self, Keep};
use crate::checkpoints::Saver;
use crate::device::Device;
use crate::guards::Heat;
use crate::work::Told;

mod control;
mod levels;
mod masked;
mod memory;
mod meter;
mod prepare;
mod protect;
mod settings;
mod update;

/// The engine's name in reports.
const ENGINE: &str = "native";

/// Local training without the network around it.
struct LocalRun {
    id: TaskId,
    task: TrainTask,
    /// The server's control variate, if there is one.
    control: Option<Bytes>,
    stopped: Stopped,
    tell: mpsc::Sender<Told>,
    room: Room,
    heat: Heat,
}

/// What local training gave.
struct Trained {
    update: Vec<u8>,
    examples: u64,
    sums: Sums,
    steps: u64,
    initial_loss: Option<f64>,
    /// By what the device's control variate changed, if it has one, and whether that was lost before.
    control_change: Option<(Vec<u8>, bool)>,
}

impl Run {
    /// Trains from the given parameters, uploads the result, and describes it.
    pub(super) async fn train(&self, task: TrainTask) -> Result<ReportBody, Failure> {
        if let Some(refusal) = self.executor.device.refusal().await {
            return Ok(ReportBody::Declined(refusal));
        }
        if task.local.update_norm_max.is_some() {
            let message = "update_norm_max is given: only masked updates are shortened by it";
            return Err(Failure::new(FailureCode::InvalidSpec, message));
        }
        let (received, examples) = self.received(&task).await?;
        self.listen(&task).await;
        if task.local.epochs == 0 {
            return self.untouched(task, received, examples).await;
        }
        let may_hold = self.holds(&task);
        let trained = self.trained(task, received).await?;
        let Given { parameters, crc32 } = self.hand_over(trained.update, may_hold).await?;
        let (control_change, control_anew) = match trained.control_change {
            Some((change, anew)) => {
                let name = format!("{}/control", self.update_name());
                (Some(self.upload(name, change).await?), anew)
            }
            None => (None, false),
        };
        // The checkpoint stays until the next round: should the agent end before its report is
        // stored, the last steps are all that is done again.
        Ok(ReportBody::Trained(UpdateReport {
            parameters,
            examples: trained.examples,
            loss: trained.sums.loss(),
            accuracy: trained.sums.accuracy(),
            steps: trained.steps,
            duration_ms: self.duration(),
            engine: ENGINE.to_owned(),
            initial_loss: trained.initial_loss,
            control_change,
            held: crc32.is_some(),
            crc32,
            control_anew,
        }))
    }

    /// Whether the broker may read the update from this device: it reads one after the other, so
    /// what comes slowly is better stored beside the others.
    fn holds(&self, task: &TrainTask) -> bool {
        let Device { config, cache, .. } = &*self.executor.device;
        task.hold && config.bytes_per_second.is_none() && cache.is_way_quick()
    }

    /// Holds an update for the broker, or stores it.
    async fn hand_over(&self, update: Vec<u8>, may_hold: bool) -> Result<Given, Failure> {
        let update = Bytes::from(update);
        if may_hold && let Some(held) = self.hold(update.clone(), None).await {
            return Ok(held);
        }
        let parameters = self.upload(self.update_name(), update).await?;
        Ok(Given { parameters, crc32: None })
    }

    async fn upload(&self, name: String, bytes: impl Into<Bytes>) -> Result<BlobRef, Failure> {
        let stored = self.executor.device.blobs.put_named(name, bytes.into()).await;
        stored.map_err(|error| cache::explain(&error))
    }

    /// Listens to what the next round begins with, before anybody knows of this update.
    async fn listen(&self, task: &TrainTask) {
        let Device { config, cache, .. } = &*self.executor.device;
        let may_listen = config.bytes_per_second.is_none() && !config.metered;
        if let Some(object) = task.next.as_ref().filter(|_| may_listen) {
            cache.listen(object, task.parameters.size).await;
        }
    }

    /// The parameters to train from, and the number of examples.
    async fn received(&self, task: &TrainTask) -> Result<(Bytes, u64), Failure> {
        settings::check(&task.local)?;
        update::check(task.update)?;
        let Device { config, cache, .. } = &*self.executor.device;
        if config.metered && config.bytes_per_second.is_none() {
            let message = "the device's connection is metered: it trains with --bytes-per-second";
            return Err(Failure::new(FailureCode::Metered, message));
        }
        let parameters = cache.parameters(&task.parameters, task.encoded.as_ref());
        futures::try_join!(parameters, self.examples(task))
    }

    /// What becomes of parameters in local training.
    async fn trained(&self, task: TrainTask, received: Bytes) -> Result<Trained, Failure> {
        let device = &self.executor.device;
        let graph = device.cache.get(&task.graph, Keep::Disk).await?;
        let control = match task.control.as_ref().and_then(|control| control.server.as_ref()) {
            Some(server) => Some(device.cache.get(server, Keep::Memory).await?),
            None => None,
        };
        let local = LocalRun {
            id: self.id.clone(),
            task,
            control,
            stopped: self.stopped.clone(),
            tell: self.executor.tell.clone(),
            room: self.room(),
            heat: Heat::of(device.clone()),
        };
        let shared = device.clone();
        let work = move || local.train_or_stop(&shared, &graph, &received);
        self.executor.compute.train(self.thread_name("train"), work).await
    }

    /// Judges parameters on the test split.
    pub(super) async fn evaluate(&self, task: EvaluateTask) -> Result<ReportBody, Failure> {
        let device = &self.executor.device;
        let (graph, parameters) = futures::try_join!(
            device.cache.get(&task.graph, Keep::Disk),
            device.cache.parameters(&task.parameters, task.encoded.as_ref()),
        )?;
        let (shared, stopped, room) = (device.clone(), self.stopped.clone(), self.room());
        let id = self.id.clone();
        let work = move || {
            let dataset = shared.datasets.get(&task.dataset)?;
            let mut trainer = judging::trainer(&graph, &task, &dataset)?;
            // What the device keeps is what this round's training left.
            let after = (&id, id.round.0.saturating_add(1));
            begin(&mut trainer, &parameters, &shared.kept_local, after, &task.kept_local)?;
            evaluate(trainer, &dataset, &task, &room, &stopped)
        };
        let sums = self.executor.compute.train(self.thread_name("evaluate"), work).await?;
        Ok(ReportBody::Evaluated(EvaluationReport {
            examples: sums.examples as u64,
            loss: sums.loss(),
            accuracy: sums.accuracy(),
            duration_ms: self.duration(),
        }))
    }

    /// Local examples, known without decoding when the data set was read before.
    async fn examples(&self, task: &TrainTask) -> Result<u64, Failure> {
        let device = self.executor.device.clone();
        if let Some(facts) = device.datasets.facts_of(&task.dataset) {
            return Ok(facts.train_examples);
        }
        let name = task.dataset.clone();
        let read = move || device.datasets.get(&name).map(|dataset| dataset.train.len() as u64);
        let read = tokio::task::spawn_blocking(read).await;
        read.unwrap_or_else(|_| Err(super::panic_failure("reading the data set")))
    }

    /// The update of a round without training.
    async fn untouched(
        &self,
        task: TrainTask,
        received: Bytes,
        examples: u64,
    ) -> Result<ReportBody, Failure> {
        let Given { parameters, crc32 } = self.hand_over_untouched(task, received).await?;
        Ok(ReportBody::Trained(UpdateReport {
            parameters,
            examples,
            loss: 0.0,
            accuracy: 0.0,
            steps: 0,
            duration_ms: self.duration(),
            engine: ENGINE.to_owned(),
            initial_loss: None,
            control_change: None,
            held: crc32.is_some(),
            crc32,
            control_anew: false,
        }))
    }

    fn room(&self) -> Room {
        let max = self.executor.device.config.training_bytes;
        Room { promises: self.executor.device.promises.clone(), max }
    }

    fn duration(&self) -> Millis {
        Millis(u64::try_from(self.arrived.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn update_name(&self) -> String {
        self.executor.device.held.name(&self.id)
    }

    fn thread_name(&self, what: &str) -> String {
        format!("{what}-{}", self.id.round)
    }
}

impl LocalRun {
    /// Trains from the beginning, or from where the same work was when the agent ended. When it
    /// ends again this is saved; whatever else stops the training, nobody wants the rest.
    fn train_or_stop(
        &self,
        device: &Device,
        graph: &[u8],
        received: &[u8],
    ) -> Result<Trained, Failure> {
        let dataset = device.datasets.get(&self.task.dataset)?;
        let normalization = settings::normalization(&self.task.local.normalization, &dataset)?;
        let key = key(&self.id, &self.task, &dataset, &normalization);
        let mut saver = device.checkpoints.of(&self.id, key);
        let trained = self.train(device, graph, received, &dataset, &normalization, &mut saver);
        trained.inspect_err(|failure| {
            if failure.code != FailureCode::ShuttingDown {
                saver.remove();
            }
        })
    }

    /// Trains as the task says; every wait is between two batches.
    fn train(
        &self,
        device: &Device,
        graph: &[u8],
        received: &[u8],
        dataset: &Arc<Dataset>,
        normalization: &Normalization,
        saver: &mut Saver,
    ) -> Result<Trained, Failure> {
        let local = &self.task.local;
        let examples = &dataset.train;
        if examples.is_empty() {
            let message = "the data set has no training examples";
            return Err(Failure::new(FailureCode::InvalidDataset, message));
        }
        let batch_size = local.batch_size as usize;
        let count = examples.len() as u64;
        let (per_epoch, all) = (local.steps_per_epoch(count), local.steps(count));
        let augmentation = settings::augmentation(&local.augment, dataset)?;
        let (optimizer, settings) = settings::of(&self.task, all);
        let loss = settings.loss;
        let trainer = Trainer::with_settings(graph, optimizer, settings);
        let mut trainer = trainer.map_err(|error| failures::of_training(&error))?;
        check_fit(&trainer, dataset, loss)?;
        let now = (&self.id, self.id.round.0);
        let kept = begin(&mut trainer, received, &device.kept_local, now, &local.kept_local)?;
        let control = self.task.control.as_ref().map(|variates| {
            let server = self.control.as_deref();
            Control::begin(&mut trainer, variates, server, &device.controls, &self.id)
        });
        let control = control.transpose()?;
        // Held until the first step has taken it.
        let promise = self.room.promise(&trainer, examples, local.batch_size)?;
        let initial_loss = self.task.initial_loss.then(|| {
            let plain = Batches::new(examples, normalization);
            let go_on = || check_stop(&self.stopped);
            judging::judge(&mut trainer, plain, batch_size, go_on).map(|sums| sums.loss())
        });
        let initial_loss = initial_loss.transpose()?;
        let mut batches =
            Batches::new(examples, normalization).augmented(augmentation, self.task.seed);
        let steps = Steps { per_epoch, all };
        let (sums, steps) = self.steps(&mut trainer, &mut batches, steps, promise, saver)?;
        trainer.check_finite().map_err(|error| failures::of_training(&error))?;
        let (mut result, statistics) = (trainer.parameters(), trainer.statistics());
        // What follows needs memory of its own.
        drop(trainer);
        let control_change = control.map(|control| {
            let global = Parameters::from_safetensors(received).map_err(prepare::wrong)?;
            control.end(&global, &result, steps, local.learning_rate)
        });
        let control_change = control_change.transpose()?;
        kept.keep(&mut result)?;
        let (mut sums, mut initial_loss) = (sums, initial_loss);
        if let Some(noised) = local.noised {
            let releases = (&device.releases, &self.id);
            result = protect::protected(noised, local, received, result, releases)?;
            // Noise covers parameters alone: nothing else is told of the examples.
            (sums, initial_loss) = (Sums::default(), None);
        }
        let update = Update::of(device, &self.id, &self.task).with(statistics);
        let update = update.encode(received, result)?;
        let examples = examples.len() as u64;
        Ok(Trained { update, examples, sums, steps, initial_loss, control_change })
    }

    /// Takes the steps from where they were left: the sums of the last epoch, and how many they
    /// are in all.
    fn steps(
        &self,
        trainer: &mut Trainer,
        batches: &mut Batches<'_>,
        steps: Steps,
        promise: Promise,
        saver: &mut Saver,
    ) -> Result<(Sums, u64), Failure> {
        let (examples, batch_size) = (batches.examples(), self.task.local.batch_size as usize);
        let mut promise = Some(promise);
        let (step, mut sums) = resume(trainer, saver);
        let mut meter = Meter::new(steps, step);
        while !meter.is_done() {
            let (epoch, taken) = meter.place();
            if taken == 0 {
                sums = Sums::default();
            }
            let order = Order::new(examples, self.task.seed, epoch);
            for indices in order.batches(batch_size).skip(usize::try_from(taken).unwrap_or(0)) {
                if meter.is_done() {
                    break;
                }
                if let Err(failure) = check_stop(&self.stopped).and_then(|()| self.heat.check()) {
                    if failure.code == FailureCode::ShuttingDown {
                        saver.save(meter.step, sums.to_bits(), &trainer.state());
                    }
                    return Err(failure);
                }
                let (x, labels) = batches.get(indices, epoch);
                let done = trainer.step(x, labels).map_err(|e| failures::of_training(&e))?;
                drop(promise.take());
                sums.add(done.loss, done.correct, done.examples);
                if let Some(latest) = meter.count(done.loss, done.correct, done.examples) {
                    self.tell_progress(&latest);
                }
                if saver.is_due() && !meter.is_done() {
                    trainer.check_finite().map_err(|e| failures::of_training(&e))?;
                    saver.save(meter.step, sums.to_bits(), &trainer.state());
                }
            }
        }
        Ok((sums, meter.step))
    }

    /// Progress may be lost: whoever trains does not wait. With noise on updates there is none.
    fn tell_progress(&self, latest: &Latest) {
        let told = self.task.local.noised.is_none();
        if !told || self.tell.try_send(Told::Progress(self.id.clone(), latest.clone())).is_err() {
            latest.take();
        }
    }
}

/// Stands for this work, whichever attempt it is: an update of the agent, another data set under
/// the same name, values that become other inputs, or other settings are other work.
fn key(id: &TaskId, task: &TrainTask, dataset: &Dataset, normalization: &Normalization) -> Digest {
    let TaskId { job, round, .. } = id;
    // What is said when, and how bytes travel, is nothing to the work.
    let task = TrainTask { hold: false, next: None, accept_at_once: false, ..task.clone() };
    let task = serde_json::to_string(&task).expect("a task is plain data");
    let shape = dataset.train.shape;
    let counts = dataset.train.class_counts(dataset.classes);
    let version = env!("CARGO_PKG_VERSION");
    let text = format!("{version} {job} {round} {task} {shape:?} {counts:?} {normalization:?}");
    link::digest::of(text.as_bytes())
}

/// Takes the trainer to where the work was saved, if it was: the steps taken and the sums of
/// the epoch.
fn resume(trainer: &mut Trainer, saver: &Saver) -> (u64, Sums) {
    let Some((position, state)) = saver.load() else { return (0, Sums::default()) };
    match trainer.restore(&state) {
        Ok(()) => {
            tracing::info!(step = position.step, "a training goes on from its checkpoint");
            (position.step, Sums::from_bits(position.sums))
        }
        Err(error) => {
            tracing::warn!("a checkpoint cannot be used: {error}");
            saver.remove();
            (0, Sums::default())
        }
    }
}

fn evaluate(
    mut trainer: Trainer,
    dataset: &Dataset,
    task: &EvaluateTask,
    room: &Room,
    stopped: &Stopped,
) -> Result<Sums, Failure> {
    let mut promise = Some(room.promise(&trainer, &dataset.test, task.batch_size)?);
    let mut batches = 0;
    judging::on_test_examples(&mut trainer, task, dataset, || {
        // The first batch has taken what was promised.
        if batches > 0 {
            drop(promise.take());
        }
        batches += 1;
        check_stop(stopped)
    })
}

fn check_stop(stopped: &Stopped) -> Result<(), Failure> {
    match &*stopped.borrow() {
        Some(stop) => Err(stop.0.clone()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
