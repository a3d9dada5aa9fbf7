//! The broker's shell around the training: the same order of storing and sending as the real one,
//! and a crash wherever it may be killed.

use std::collections::{BTreeSet, VecDeque};

use jobs::id::{BlobRef, DeviceId, Millis, ModelRef, RoundNumber};
use jobs::report::{EvaluationReport, Failure, FailureCode, UpdateReport};
use jobs::round;
use jobs::spec::{Download, PrivacyMode, Purpose};
use jobs::training::{Effect, Event, Training};
use rand::RngExt as _;

use crate::masked::Masking;
use crate::task::understood;
use crate::world::{Blob, Happening, World, mixed, reference};
use crate::{Plant, check};

/// How long changes that nobody else sees may wait to be stored.
const STORE_WITHIN: u64 = 50;

pub(crate) struct Broker {
    pub(crate) term: u64,
    pub(crate) machine: Training,
    /// Reports of the stream that the machine knows.
    sequence: usize,
    /// Devices that it takes for online.
    online: BTreeSet<DeviceId>,
    wake_at: Option<u64>,
    /// What waited in the stream when it began is not read yet.
    behind: bool,
    /// The session of a masked round at the stage at work.
    pub(crate) masking: Option<Masking>,
    /// How far it was when it was looked at last.
    pub(crate) phase: (RoundNumber, usize),
}

/// The broker was killed on its way.
struct Killed;

impl World {
    pub(crate) fn broker_starts(&mut self) -> Result<(), String> {
        self.stored.term += 1;
        let term = self.stored.term;
        let up = self.devices.iter().filter(|device| device.worker.is_some());
        let online = up.map(|device| device.id.clone()).collect();
        let (machine, effects) = if let Some(machine) = &self.stored.machine {
            // As it is stored: through JSON.
            let json = serde_json::to_vec(machine).unwrap();
            let machine: Training = serde_json::from_slice(&json).unwrap();
            let effects = machine.pending_effects();
            (machine, if self.is(Plant::EffectsForgotten) { Vec::new() } else { effects })
        } else {
            let first = reference("first", &self.objects["first"]);
            let deadline = Millis(600_000);
            Training::begin(Millis(self.now), self.spec.clone(), deadline, first)
        };
        let sequence = self.stored.sequence;
        self.broker = Some(Broker {
            term,
            machine,
            sequence,
            online,
            wake_at: None,
            behind: true,
            masking: None,
            phase: (RoundNumber(0), 0),
        });
        for device in 0..self.devices.len() {
            let instance = self.devices[device].instance;
            self.after(900, Happening::Silence { device, instance });
        }
        self.after(3, Happening::BrokerReads { term });
        self.proceed(effects)?;
        if self.is(Plant::LossesBeforeReports) { self.compare_presence() } else { Ok(()) }
    }

    /// Kills the broker; another one takes over after a while.
    fn kill(&mut self) {
        if let Some(broker) = self.broker.take() {
            self.counts.killed_in(&broker.machine);
        }
        let down = self.random.random_range(10..6000);
        self.after(down, Happening::BrokerStarts);
    }

    fn owner(&mut self, term: u64) -> Option<&mut Broker> {
        self.broker.as_mut().filter(|broker| broker.term == term)
    }

    /// Applies an event now.
    fn apply(&mut self, event: &Event) -> Result<(), String> {
        let now = Millis(self.now);
        let Some(broker) = &mut self.broker else { return Ok(()) };
        let effects = broker.machine.step(now, event);
        self.proceed(effects)
    }

    fn in_round(&mut self, event: round::Event) -> Result<(), String> {
        let Some(broker) = &self.broker else { return Ok(()) };
        let round = broker.machine.number();
        self.apply(&Event::Round { round, event })
    }

    pub(crate) fn lose(&mut self, device: usize) -> Result<(), String> {
        let device = self.devices[device].id.clone();
        let heeds = self.heeds_fleet();
        let Some(broker) = &mut self.broker else { return Ok(()) };
        broker.online.remove(&device);
        if heeds { self.in_round(round::Event::DeviceLost { device }) } else { Ok(()) }
    }

    /// What is known of devices counts once the reports that waited are known.
    fn heeds_fleet(&self) -> bool {
        self.broker.as_ref().is_some_and(|broker| !broker.behind)
    }

    /// A device says hello as a new process.
    pub(crate) fn announce(&mut self, device: usize) -> Result<(), String> {
        self.lose(device)?;
        let heeds = self.heeds_fleet();
        let device = self.devices[device].id.clone();
        let Some(broker) = &mut self.broker else { return Ok(()) };
        broker.online.insert(device.clone());
        if !heeds {
            return Ok(());
        }
        self.in_round(round::Event::DeviceReturned { device })?;
        let Some(broker) = &self.broker else { return Ok(()) };
        let devices = broker.online.iter().cloned().collect();
        self.in_round(round::Event::DevicesFound { devices })
    }

    /// Tells the machine who is there and who is not.
    fn compare_presence(&mut self) -> Result<(), String> {
        let devices: Vec<DeviceId> = self.devices.iter().map(|device| device.id.clone()).collect();
        for device in devices {
            let Some(broker) = &self.broker else { return Ok(()) };
            self.in_round(if broker.online.contains(&device) {
                round::Event::DeviceReturned { device }
            } else {
                round::Event::DeviceLost { device }
            })?;
        }
        Ok(())
    }

    pub(crate) fn broker_reads(&mut self, term: u64) -> Result<(), String> {
        let skips = self.is(Plant::ReportsSkipped);
        while let Some(broker) = self.owner(term) {
            let next = broker.sequence;
            let Some((at, report)) = self.stream.get(next).cloned() else { break };
            if skips {
                // Stored as read, and then it may be killed.
                self.stored.sequence = next + 1;
                if self.goes_wrong() {
                    self.kill();
                    return Ok(());
                }
            }
            let Some(broker) = &mut self.broker else { break };
            broker.sequence = next + 1;
            let mut event = understood(report);
            if self.plant == Some(Plant::RoundIgnored)
                && let (Event::Round { round, .. }, Some(at_work)) =
                    (&mut event, broker.machine.round())
            {
                *round = at_work.plan().round;
            }
            let effects = broker.machine.step(Millis(at), &event);
            self.proceed(effects)?;
        }
        let Some(broker) = self.owner(term) else { return Ok(()) };
        if std::mem::take(&mut broker.behind) { self.compare_presence() } else { Ok(()) }
    }

    pub(crate) fn broker_wakes(&mut self, term: u64) -> Result<(), String> {
        let (now, waiting) = (self.now, self.stream.len());
        let Some(broker) = self.owner(term) else { return Ok(()) };
        if broker.wake_at.is_none_or(|at| at > now) {
            return Ok(());
        }
        if broker.sequence < waiting {
            // What waits in the stream comes first.
            self.after(5, Happening::BrokerWakes { term });
            return Ok(());
        }
        broker.wake_at = None;
        self.apply(&Event::Tick)
    }

    pub(crate) fn broker_stores(&mut self, term: u64) {
        if self.owner(term).is_some() {
            if self.goes_wrong() {
                return self.kill();
            }
            self.store();
        }
    }

    pub(crate) fn broker_did(&mut self, term: u64, event: &Event) -> Result<(), String> {
        if self.owner(term).is_none() {
            return Ok(());
        }
        self.apply(event)
    }

    pub(crate) fn mean_written(
        &mut self,
        term: u64,
        round: RoundNumber,
        name: String,
        blob: Blob,
    ) -> Result<(), String> {
        let parameters = reference(&name, &blob);
        let mut made = round::Aggregate::of(parameters);
        if self.spec.download != Download::Plain {
            let name = format!("encoded-{name}");
            made.encoded = Some(reference(&name, &blob));
            self.objects.insert(name, blob.clone());
        }
        self.objects.insert(name, blob);
        let event = round::Event::Aggregated(made);
        self.broker_did(term, &Event::Round { round, event })
    }

    /// Performs effects; then sees to it that what changed is stored, and that it wakes in time.
    fn proceed(&mut self, effects: Vec<Effect>) -> Result<(), String> {
        match self.perform(effects) {
            Ok(()) => {}
            Err(Stop::Killed(Killed)) => {
                self.kill();
                return Ok(());
            }
            Err(Stop::Problem(problem)) => return Err(problem),
        }
        check::note_phase(self)?;
        let Some(broker) = &mut self.broker else { return Ok(()) };
        let term = broker.term;
        let wake = broker.machine.wake_at().map(|at| at.0);
        let sooner = wake.filter(|at| broker.wake_at.is_none_or(|known| *at < known));
        broker.wake_at = wake;
        if let Some(at) = sooner.or(wake) {
            let delay = at.saturating_sub(self.now);
            self.after(delay, Happening::BrokerWakes { term });
        }
        self.after(STORE_WITHIN, Happening::BrokerStores { term });
        Ok(())
    }

    fn perform(&mut self, effects: Vec<Effect>) -> Result<(), Stop> {
        let mut queue: VecDeque<Effect> = effects.into();
        let mut outward = Vec::new();
        while let Some(effect) = queue.pop_front() {
            match effect {
                Effect::Round { round, effect: round::Effect::FindDevices } => {
                    let now = Millis(self.now);
                    let Some(broker) = &mut self.broker else { return Ok(()) };
                    let devices = broker.online.iter().cloned().collect();
                    let event = round::Event::DevicesFound { devices };
                    queue.extend(broker.machine.step(now, &Event::Round { round, event }));
                }
                Effect::Round {
                    round,
                    effect: round::Effect::CheckUpdate { device, update, .. },
                } => {
                    self.check_update(round, device, &update);
                }
                Effect::Round { round, effect: round::Effect::Aggregate { updates, .. } } => {
                    if self.spec.privacy.is_some() && !self.is(Plant::NoiseBeforeStoring) {
                        self.may_be_killed()?;
                        self.store();
                    }
                    self.aggregate(round, &updates).map_err(Stop::Problem)?;
                    self.may_be_killed()?;
                }
                Effect::Round {
                    round,
                    effect: round::Effect::CheckMessage { device, purpose, message },
                } => self.check_message(round, device, purpose, message),
                Effect::Round { round, effect: round::Effect::Unmask { updates, exchange } } => {
                    if self.spec.privacy.is_some() && !self.is(Plant::NoiseBeforeStoring) {
                        self.may_be_killed()?;
                        self.store();
                    }
                    self.unmask(round, &updates, &exchange).map_err(Stop::Problem)?;
                    self.may_be_killed()?;
                }
                Effect::Round { round, effect: round::Effect::Evaluate { parameters } } => {
                    self.judge(round, &parameters);
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
        if !self.is(Plant::OutwardBeforeStoring) {
            self.may_be_killed()?;
            self.store();
        }
        self.may_be_killed()?;
        let (ended, outward): (Vec<Effect>, Vec<Effect>) =
            outward.into_iter().partition(|effect| matches!(effect, Effect::PublishRound(_)));
        for effect in ended.into_iter().chain(outward) {
            self.perform_outward(effect)?;
            self.may_be_killed()?;
        }
        if self.is(Plant::OutwardBeforeStoring) {
            self.store();
        }
        Ok(())
    }

    fn may_be_killed(&mut self) -> Result<(), Stop> {
        if self.goes_wrong() { Err(Stop::Killed(Killed)) } else { Ok(()) }
    }

    fn store(&mut self) {
        let Some(broker) = &self.broker else { return };
        self.stored.machine = Some(broker.machine.clone());
        self.stored.sequence = broker.sequence;
    }

    fn perform_outward(&mut self, effect: Effect) -> Result<(), Stop> {
        match effect {
            Effect::Round { round, effect } => {
                let asks = matches!(&effect, round::Effect::Offer { purpose: Purpose::Train, .. });
                if asks && self.is_private(PrivacyMode::Local) {
                    self.release(round, &[]).map_err(Stop::Problem)?;
                }
                self.tell_device(round, effect).map_err(Stop::Problem)?;
            }
            Effect::PublishRound(outcome) => {
                check::published(self, &outcome).map_err(Stop::Problem)?;
                self.published.insert(outcome.round, *outcome);
            }
            Effect::Register { parameters } => {
                let known = self.registered.iter().find(|(blob, _)| *blob == parameters);
                let model = if let Some((_, model)) = known {
                    model.clone()
                } else {
                    let digest = parameters.digest.clone();
                    let version = (self.registered.len() + 1).to_string().parse().unwrap();
                    let model = ModelRef { name: "mlp".parse().unwrap(), version, digest };
                    self.registered.push((parameters, model.clone()));
                    model
                };
                self.later(20, Event::Registered { model });
            }
            Effect::End(ending) => self.ended = Some(*ending),
        }
        Ok(())
    }

    /// The broker hears of what it began, unless it is another one by then.
    pub(crate) fn later(&mut self, usual: u64, event: Event) {
        let Some(term) = self.broker.as_ref().map(|broker| broker.term) else { return };
        let delay = self.delay(usual);
        self.after(delay, Happening::BrokerDid { term, event });
    }

    /// Judges parameters: their value says how good they are.
    fn judge(&mut self, round: RoundNumber, parameters: &BlobRef) {
        let parameters = match &self.broker {
            Some(broker) if self.is(Plant::OldParametersJudged) => broker.machine.parameters(),
            _ => parameters,
        };
        let known = self.read(parameters).filter(|blob| blob.value % 7 > 0);
        let event = if let Some(blob) = known {
            round::Event::Judged { evaluation: judgement_of(&blob) }
        } else {
            let failure = Failure::new(FailureCode::BlobUnavailable, "not judged");
            round::Event::JudgementFailed { failure }
        };
        self.later(2000, Event::Round { round, event });
    }

    fn check_update(&mut self, round: RoundNumber, device: DeviceId, update: &UpdateReport) {
        let refused = match self.read(&update.parameters) {
            _ if self.is(Plant::UpdatesUnchecked) => None,
            None => Some(Failure::new(FailureCode::BlobUnavailable, "it is another one by now")),
            Some(blob) if blob.bad => Some(Failure::new(FailureCode::InvalidUpdate, "NaN")),
            Some(_) => None,
        };
        self.note_refused(round, &device, refused.as_ref());
        let parameters = update.parameters.clone();
        let event = round::Event::UpdateChecked { device, parameters, refused };
        self.later(30, Event::Round { round, event });
    }

    fn aggregate(
        &mut self,
        round: RoundNumber,
        updates: &[(DeviceId, UpdateReport)],
    ) -> Result<(), String> {
        let Some(term) = self.broker.as_ref().map(|broker| broker.term) else { return Ok(()) };
        self.closed.entry(round).or_insert(self.now);
        let mut blobs = Vec::new();
        for (device, update) in updates {
            // Those of a private round are in the store, and it is paid for all of them.
            let stored = self.is_private(PrivacyMode::Central);
            let lost = !stored && self.goes_wrong() && self.random.random_bool(0.2);
            let Some(blob) = self.read(&update.parameters).filter(|_| !lost) else {
                let failure = Failure::new(FailureCode::BlobUnavailable, "an update is gone");
                let event = if stored {
                    round::Event::AggregationFailed { failure }
                } else {
                    round::Event::UpdateGone { device: device.clone(), failure }
                };
                self.later(30, Event::Round { round, event });
                return Ok(());
            };
            blobs.push(blob);
        }
        if self.is_private(PrivacyMode::Central) {
            let values: Vec<u64> = blobs.iter().map(|blob| blob.value).collect();
            self.release(round, &values)?;
        }
        let name = format!("parameters/01job/{round}/{term}");
        let bad = blobs.iter().any(|blob| blob.bad);
        let blob = Blob { value: mixed(blobs.iter().map(|blob| blob.value)), base: 0, bad };
        let delay = self.writing();
        self.after(delay, Happening::MeanWritten { term, round, name, blob });
        Ok(())
    }

    /// How long it takes to write a mean: a slow owner may do so when another one has taken over.
    pub(crate) fn writing(&mut self) -> u64 {
        let slow = self.goes_wrong() || self.goes_wrong();
        if slow { self.random.random_range(1..8000) } else { self.delay(100) }
    }

    /// An object whose bytes are those that were meant.
    pub(crate) fn read(&self, wanted: &jobs::id::BlobRef) -> Option<Blob> {
        let name = wanted.object_name();
        let blob = self.objects.get(name)?;
        (reference(name, blob).digest == wanted.digest).then(|| blob.clone())
    }
}

/// What the broker says of parameters.
pub(crate) fn judgement_of(blob: &Blob) -> EvaluationReport {
    let share = u32::try_from(blob.value % 101).unwrap();
    let (loss, accuracy) = (1.0, f64::from(share) / 100.0);
    EvaluationReport { examples: 10, loss, accuracy, duration_ms: Millis(1) }
}

enum Stop {
    Killed(Killed),
    Problem(String),
}
