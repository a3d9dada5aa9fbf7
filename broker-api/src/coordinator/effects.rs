//! What the machine of a training asks for, done.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::header::HeaderMap;
use jobs::id::{Attempt, BlobRef, DeviceId, ObjectId, RoundNumber};
use jobs::round::{self, Outcome};
use jobs::spec::{
    ControlVariates, Download, EvaluateTask, LISTENED_MAX, LocalTraining, Offer, Purpose, Schedule,
    Strategy, Task, TaskId, TaskWork, TrainTask, Transfer,
};
use jobs::training::{Effect, Event};
use jobs::{subject, wire};

use super::beside::whatever_happens;
use super::finish::Unregistered;
use super::owner::{Owner, REST, Stop};
use super::pace::Offered;
use super::state::round_key;
use crate::metrics::Counter;
use crate::record::EventBody;
use crate::store::StoreError;

/// Copies of parameters that devices listen to while they are uploaded, in bytes, at most.
const COPIES_MAX: u64 = 32 * 1024 * 1024;

impl Owner {
    /// Performs effects, and those of the events that they answer at once.
    pub(super) async fn perform(&mut self, queue: &mut VecDeque<Effect>) -> Result<(), Stop> {
        let mut outward = Vec::new();
        self.begin_folding(queue).await;
        while let Some(effect) = queue.pop_front() {
            match effect {
                Effect::Round { round, effect: round::Effect::FindDevices } => {
                    self.note_absent();
                    let event = Event::Round { round, event: self.devices_found() };
                    queue.extend(self.machine.step(self.core.fleet.now(), &event));
                    self.begin_folding(queue).await;
                }
                Effect::Round {
                    round,
                    effect: round::Effect::CheckUpdate { device, update, base },
                } => self.check(round, device, update, base),
                Effect::Round { round, effect: round::Effect::Aggregate { updates, stale } } => {
                    // Which updates are combined is settled, and a private round paid for,
                    // before there is noise.
                    if self.spec.privacy.is_some() {
                        self.save().await?;
                    }
                    self.aggregate(round, updates, stale);
                }
                Effect::Round {
                    round,
                    effect: round::Effect::CheckMessage { device, purpose, message },
                } => self.check_message(round, device, purpose, message),
                Effect::Round { round, effect: round::Effect::Unmask { exchange, .. } } => {
                    if self.spec.privacy.is_some() {
                        self.save().await?;
                    }
                    self.unmask(round, *exchange);
                }
                Effect::Round { round, effect: round::Effect::Evaluate { parameters } } => {
                    self.judge(round, parameters);
                }
                Effect::Round { effect: round::Effect::End(_), .. } => {}
                effect @ (Effect::Round { .. }
                | Effect::PublishRound(_)
                | Effect::Register { .. }
                | Effect::End(_)) => outward.push(effect),
            }
        }
        if outward.is_empty() {
            return Ok(());
        }
        self.save().await?;
        // Devices do not wait until the round before is told; who follows the job hears of its
        // end before the start of the next.
        let (to_devices, others): (Vec<Effect>, Vec<Effect>) =
            outward.into_iter().partition(|effect| matches!(effect, Effect::Round { .. }));
        let started = started(self.machine.number(), &to_devices);
        for effect in to_devices {
            self.perform_outward(effect).await?;
        }
        self.send_offers().await?;
        for effect in others {
            self.perform_outward(effect).await?;
        }
        if let Some((round, devices)) = started {
            self.tell_started(round, devices);
        }
        Ok(())
    }

    /// Lets the updates know who is invited to a round, before the first of them arrives.
    async fn begin_folding(&mut self, queue: &VecDeque<Effect>) {
        let mut devices = Vec::new();
        let mut begun = None;
        for effect in queue {
            let Effect::Round { round, effect } = effect else { continue };
            match effect {
                round::Effect::Offer { device, purpose: Purpose::Train, .. }
                | round::Effect::CheckUpdate { device, base: None, .. }
                    if round.0 != self.folding && *round == self.machine.number() =>
                {
                    begun = Some(round.0);
                    devices.push(device.clone());
                }
                round::Effect::Offer { .. }
                | round::Effect::CheckUpdate { .. }
                | round::Effect::FindDevices
                | round::Effect::Withdraw { .. }
                | round::Effect::CheckMessage { .. }
                | round::Effect::Unmask { .. }
                | round::Effect::Aggregate { .. }
                | round::Effect::Earlier { .. }
                | round::Effect::Evaluate { .. }
                | round::Effect::End(_) => {}
            }
        }
        if let Some(round) = begun {
            self.folding = round;
            self.updates.begin(devices, self.machine.parameters()).await;
        }
    }

    fn check(
        &mut self,
        round: RoundNumber,
        device: DeviceId,
        update: jobs::report::UpdateReport,
        base: Option<Box<round::Base>>,
    ) {
        let (core, job, updates) = (self.core.clone(), self.job.clone(), self.updates.clone());
        let masked = self.terms(round).zip(self.machine.round());
        let masked = masked.map(|(terms, round)| (terms, self.key_ring.turn(round)));
        let (of, parameters) = (device.clone(), update.parameters.clone());
        let checked = |refused| round::Event::UpdateChecked { device: of, parameters, refused };
        let check = async move {
            let refused = match masked {
                None => updates.check(&job, &device, &update, base.as_deref()).await,
                Some((terms, turn)) => {
                    updates.check_keys(turn, &terms, &device, &update.parameters).await
                }
            };
            let reason = refused.as_ref().map_or("accepted", |failure| failure.code.as_str());
            core.metrics.add(Counter::Updates, format!("reason=\"{reason}\""), 1);
            let bytes = update.sent().0;
            core.metrics.add(Counter::RoundBytes, "direction=\"up\"".to_owned(), bytes);
            refused
        };
        self.beside(round, check, Some, checked);
    }

    fn tell_started(&self, round: u32, devices: Vec<DeviceId>) {
        let body = EventBody::RoundStarted { round, devices };
        let (core, job) = (self.core.clone(), self.job.clone());
        let id = format!("round.{round}.started");
        self.core.spawn(async move {
            if let Err(error) = core.store.publish_event(&job, &id, body).await {
                tracing::warn!(%job, %error, "the start of a round was not told");
            }
        });
    }

    async fn perform_outward(&mut self, effect: Effect) -> Result<(), Stop> {
        match effect {
            Effect::Round { round, effect } => match effect {
                round::Effect::Offer { device, purpose, attempt, parameters } => {
                    self.pace.push(Offered { round, device, purpose, attempt, parameters });
                }
                round::Effect::Withdraw { device, purpose, attempt, reason } => {
                    self.pace.heard(&device);
                    if self.pace.withdraw(round, &device, purpose, attempt) {
                        return Ok(());
                    }
                    let task = self.task_id(round, purpose, attempt);
                    let cancel = Offer::Cancel { task, reason, refused: false };
                    self.send(&device, &cancel, None, false).await;
                }
                round::Effect::FindDevices
                | round::Effect::CheckUpdate { .. }
                | round::Effect::CheckMessage { .. }
                | round::Effect::Unmask { .. }
                | round::Effect::Aggregate { .. }
                | round::Effect::Earlier { .. }
                | round::Effect::Evaluate { .. }
                | round::Effect::End(_) => {}
            },
            Effect::PublishRound(outcome) => self.publish_round(*outcome).await?,
            Effect::Register { parameters } => self.register(parameters),
            Effect::End(ending) => {
                self.end(*ending).await?;
                return Err(Stop::Over);
            }
        }
        Ok(())
    }

    pub(super) fn task_id(&self, round: RoundNumber, purpose: Purpose, attempt: Attempt) -> TaskId {
        TaskId { job: self.job.clone(), round, purpose, attempt }
    }

    /// Sends the offers whose time has come.
    pub(super) async fn send_offers(&mut self) -> Result<(), Stop> {
        while let Some(offered) = self.pace.next(Instant::now()) {
            let Offered { round, device, purpose, attempt, .. } = &offered;
            if matches!(purpose, Purpose::Share | Purpose::Mask | Purpose::Unmask) {
                let asked = self.offer_stage(*round, device.clone(), *purpose, *attempt);
                let asked = Box::pin(asked).await?;
                self.machine.asked(asked);
            } else {
                self.offer(offered).await;
            }
        }
        Ok(())
    }

    async fn offer(&self, offered: Offered) {
        let Offered { round, device, purpose, attempt, parameters } = offered;
        let (graph, dataset) = (self.prepared.graph.clone(), self.spec.dataset.clone());
        let normalization = self.prepared.normalization.clone();
        let local = LocalTraining {
            normalization,
            noised: self.machine.noised(),
            update_norm_max: self.machine.update_norm_max(),
            ..self.spec.local.clone()
        };
        let encoded = self.machine.encoded_of(&parameters).cloned();
        let control = self.control(&device).filter(|_| purpose == Purpose::Train);
        let size = encoded.as_ref().unwrap_or(&parameters).size.0
            + control
                .iter()
                .filter_map(|control| control.server.as_ref())
                .map(|it| it.size.0)
                .sum::<u64>();
        let work = match purpose {
            Purpose::Evaluate => {
                TaskWork::Evaluate(EvaluateTask { encoded, ..self.evaluation(parameters) })
            }
            Purpose::Train
            | Purpose::Share
            | Purpose::Mask
            | Purpose::Unmask
            | Purpose::Infer
            | Purpose::Telemetry => {
                let seed = self.machine.seed(round);
                // Agents that do not know schedules take part where there is none.
                let constant = local.schedule == Schedule::Constant && local.warm_up == 0;
                let (rounds_done, rounds) =
                    if constant { (0, 0) } else { (self.machine.rounds_done(), self.spec.rounds) };
                let next = self.next_of(&parameters);
                self.masked_or_not(TrainTask {
                    graph,
                    parameters,
                    dataset,
                    local,
                    seed,
                    rounds_done,
                    rounds,
                    initial_loss: matches!(self.spec.strategy, Strategy::QFedAvg(_)),
                    control,
                    update: self.spec.update,
                    counted: self.machine.counted(&device),
                    encoded,
                    hold: self.may_hold(&device),
                    next,
                    accept_at_once: self.spec.staleness().is_some(),
                })
            }
        };
        let timeout_ms = if purpose == Purpose::Train {
            self.spec.training_timeout_ms()
        } else {
            self.spec.participation.deadline_ms
        };
        let task = Task { id: self.task_id(round, purpose, attempt), timeout_ms, work };
        self.core.metrics.add(Counter::RoundBytes, "direction=\"down\"".to_owned(), size);
        self.send(&device, &Offer::Task(Box::new(task)), None, true).await;
    }

    /// The control variates that a device works with, and which of its own it is to keep for others.
    fn control(&self, device: &DeviceId) -> Option<ControlVariates> {
        let kept_since = self.stored.kept.first().map(|(oldest, _)| *oldest);
        Some(ControlVariates { kept_since, ..self.machine.control(device)? })
    }

    /// Where devices may listen to the parameters that follow these. NATS keeps a copy for each device
    /// until it is sent.
    fn next_of(&self, parameters: &BlobRef) -> Option<ObjectId> {
        let follows = self.machine.rounds_done() + 1 < self.spec.rounds;
        let plain = self.spec.download == Download::Plain && self.spec.secure_aggregation.is_none();
        let round = self.machine.round().filter(|round| round.invites_all())?;
        let copies = parameters.size.0.saturating_mul(round.eligible().count() as u64);
        let small = parameters.size <= LISTENED_MAX && copies <= COPIES_MAX;
        (follows && plain && small).then(|| self.updates.next_mean()).flatten()
    }

    /// Whether a device may hold its update until it is read.
    fn may_hold(&self, device: &DeviceId) -> bool {
        let masked = self.spec.secure_aggregation.is_some();
        self.spec.transfer == Transfer::Direct && !masked && self.updates.may_be_held(device)
    }

    /// Offers are not acknowledged: one that is lost is made again when its device returns, or
    /// ends with the round's deadline.
    pub(super) async fn send(
        &self,
        device: &DeviceId,
        offer: &Offer,
        binary: Option<&[u8]>,
        wants_return: bool,
    ) {
        let client = self.core.store.client();
        let subject = subject::offer(device);
        let mut headers = HeaderMap::new();
        let payload = match binary {
            None => wire::encode(offer),
            Some(binary) => {
                let wire::Encoded { payload, json_length } =
                    wire::encode_with_binary(offer, binary);
                if let Some(length) = json_length {
                    headers.insert(wire::JSON_LENGTH_HEADER, length.to_string());
                }
                payload
            }
        };
        let sent = if wants_return {
            let reply = format!("{}.{device}", self.returns);
            client.publish_with_reply_and_headers(subject, reply, headers, payload).await
        } else {
            client.publish(subject, payload).await
        };
        if let Err(error) = sent {
            tracing::warn!(%device, %error, "an offer was not sent");
        }
    }

    /// Stores how a round ended, tells it, and forgets blobs of rounds before.
    async fn publish_round(&mut self, outcome: Outcome) -> Result<(), Stop> {
        while let Err(error) = self.tell_round(&outcome).await {
            self.rest(&error).await?;
        }
        self.tell_refused(&outcome).await;
        let result = if outcome.failure.is_none() { "succeeded" } else { "failed" };
        self.core.metrics.add(Counter::Rounds, format!("result=\"{result}\""), 1);
        let took = outcome.ended_at.since(outcome.started_at).0;
        self.core.metrics.rounds.observe(Duration::from_millis(took));
        self.forget(&outcome);
        Ok(())
    }

    async fn tell_round(&self, outcome: &Outcome) -> Result<(), StoreError> {
        let number = outcome.round.0;
        // Who is told of it finds it stored.
        self.core.store.rounds.put(&round_key(&self.job, number), outcome).await?;
        let body = EventBody::RoundEnded(Box::new(outcome.clone()));
        let id = format!("round.{number}.ended");
        self.core.store.publish_event(&self.job, &id, body).await
    }

    /// Tells devices whose update was not used because of what is in it. Nothing is stopped by
    /// it: no attempt is as old.
    async fn tell_refused(&self, outcome: &Outcome) {
        for (device, reason) in outcome.refusals() {
            let task = self.task_id(outcome.round, Purpose::Train, Attempt(0));
            let told = Offer::Cancel { task, reason, refused: true };
            self.send(device, &told, None, false).await;
        }
    }

    fn register(&self, parameters: BlobRef) {
        let (core, job, done) = (self.core.clone(), self.job.clone(), self.done.clone());
        let (spec, prepared) = (self.spec.clone(), self.prepared.clone());
        let (machine, updates) = (self.machine.clone(), self.updates.clone());
        let told = done.clone();
        let work = async move {
            updates.rest().await;
            loop {
                let made = core.register_result(&job, &spec, &prepared, &parameters, &machine);
                match made.await {
                    Ok(model) => return Some(Event::Registered { model }),
                    Err(Unregistered::Failed(failure)) => {
                        return Some(Event::RegistrationFailed { failure });
                    }
                    Err(Unregistered::Unavailable(error)) => {
                        tracing::warn!(%job, %error, "a result waits for the store");
                    }
                }
                let over = tokio::time::timeout(REST, done.closed()).await;
                if over.is_ok() {
                    return None;
                }
            }
        };
        let at_fault = |failure| Some(Event::RegistrationFailed { failure });
        let made = whatever_happens(work, at_fault);
        self.core.spawn(async move {
            if let Some(event) = made.await {
                let _ = told.send(event).await;
            }
        });
    }

    /// Rests before the store is asked again.
    pub(super) async fn rest(&self, error: &StoreError) -> Result<(), Stop> {
        tracing::warn!(job = %self.job, %error, "a training waits for the store");
        let rest = tokio::time::sleep(REST);
        let rested = self.core.closing.run_until_cancelled(rest).await;
        rested.ok_or(Stop::Closing)
    }
}

/// The round that first offers begin, if that is the one at work, and who gets them.
fn started(at_work: RoundNumber, effects: &[Effect]) -> Option<(u32, Vec<DeviceId>)> {
    let mut started = None;
    let mut devices = Vec::new();
    for effect in effects {
        if let Effect::Round {
            round,
            effect: round::Effect::Offer { device, purpose: Purpose::Train, attempt, .. },
        } = effect
            && *attempt == Attempt(1)
            && *round == at_work
        {
            started = Some(round.0);
            devices.push(device.clone());
        }
    }
    started.map(|round| (round, devices))
}
