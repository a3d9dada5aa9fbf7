//! Virtual time, what happens in it, and what survives crashes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use jobs::id::{BlobRef, Bytes, DeviceId, Digest, Millis, ModelRef, RoundNumber};
use jobs::report::TaskReport;
use jobs::round::{Outcome, Round};
use jobs::spec::{
    Download, Evaluate, Keep, LateUpdates, LocalTraining, Offer, Participation, Purpose,
    Quarantine, Selection, Staleness, Strategy, TaskId, TrainSpec, Transfer, UpdateEncoding,
};
use jobs::training::{Ending, Event, Training};
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::broker::Broker;
use crate::check;
use crate::device::Device;
use crate::masked::{self, Question};
use crate::private;
use crate::{Kind, Plant};

/// When faults end.
const HEALED_AT: u64 = 60_000;
/// The job's deadline; a training that takes longer is stuck.
const DEADLINE: u64 = 600_000;
/// Steps of one run, at most.
const STEPS_MAX: u32 = 200_000;

/// Something that happens at a time.
#[derive(Debug)]
pub(crate) enum Happening {
    OfferArrives {
        device: usize,
        offer: Offer,
        question: Option<Question>,
    },
    WorkDone {
        device: usize,
        instance: u32,
        task: TaskId,
    },
    ReportSent {
        device: usize,
        instance: u32,
        report: TaskReport,
    },
    DeviceCrashes {
        device: usize,
    },
    DeviceStarts {
        device: usize,
    },
    /// The broker has not heard of a device for too long.
    Silence {
        device: usize,
        instance: u32,
    },
    BrokerStarts,
    BrokerReads {
        term: u64,
    },
    BrokerWakes {
        term: u64,
    },
    BrokerStores {
        term: u64,
    },
    /// A check, an average or a registration is done.
    BrokerDid {
        term: u64,
        event: Event,
    },
    /// A mean is written, whoever owns the training by now.
    MeanWritten {
        term: u64,
        round: RoundNumber,
        name: String,
        blob: Blob,
    },
}

/// An object: a number stands for its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) value: u64,
    /// What it was trained from; 0 for means.
    pub(crate) base: u64,
    /// It is not what a model needs.
    pub(crate) bad: bool,
}

/// What the store has of the training.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    pub(crate) machine: Option<Training>,
    pub(crate) sequence: usize,
    pub(crate) term: u64,
}

/// How often what happened.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) broker_crashes: u64,
    /// The same while devices were asked to share, to mask, to unmask.
    pub(crate) crashes_at_stages: [u64; 3],
    pub(crate) device_crashes: u64,
    pub(crate) offers_lost: u64,
    pub(crate) reports_repeated: u64,
    pub(crate) rounds: u64,
    pub(crate) rounds_failed: u64,
    /// Rounds of trainings with a budget.
    pub(crate) rounds_private: u64,
    /// Devices that were in quarantine in a round.
    pub(crate) kept_out: u64,
    /// Updates that counted in a later round than that of their task.
    pub(crate) late: u64,
    /// Updates that counted and that their devices had made again in the same attempt.
    pub(crate) remade: u64,
    /// Rounds that gave the sum of masked updates, and those whose sum could not be unmasked.
    pub(crate) rounds_masked: u64,
    pub(crate) not_unmasked: u64,
    /// Devices that did not answer all stages of such rounds.
    pub(crate) dropped_out: u64,
    /// Questions that devices had reasons not to answer.
    pub(crate) refused_to_answer: u64,
    pub(crate) steps: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        self.broker_crashes += other.broker_crashes;
        for (all, one) in self.crashes_at_stages.iter_mut().zip(other.crashes_at_stages) {
            *all += one;
        }
        self.device_crashes += other.device_crashes;
        self.offers_lost += other.offers_lost;
        self.reports_repeated += other.reports_repeated;
        self.rounds += other.rounds;
        self.rounds_failed += other.rounds_failed;
        self.rounds_private += other.rounds_private;
        self.kept_out += other.kept_out;
        self.late += other.late;
        self.remade += other.remade;
        self.rounds_masked += other.rounds_masked;
        self.not_unmasked += other.not_unmasked;
        self.dropped_out += other.dropped_out;
        self.refused_to_answer += other.refused_to_answer;
        self.steps += other.steps;
    }

    /// A broker died that was so far.
    pub(crate) fn killed_in(&mut self, machine: &Training) {
        self.broker_crashes += 1;
        match machine.round().and_then(Round::stage) {
            Some(Purpose::Share) => self.crashes_at_stages[0] += 1,
            Some(Purpose::Mask) => self.crashes_at_stages[1] += 1,
            Some(_) => self.crashes_at_stages[2] += 1,
            None => {}
        }
    }
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) random: ChaCha8Rng,
    pub(crate) plant: Option<Plant>,
    pub(crate) counts: Counts,
    pub(crate) spec: TrainSpec,
    pub(crate) devices: Vec<Device>,
    pub(crate) broker: Option<Broker>,
    // Durable.
    pub(crate) stored: Stored,
    /// Reports with the time at which they were stored.
    pub(crate) stream: Vec<(u64, TaskReport)>,
    pub(crate) objects: BTreeMap<String, Blob>,
    pub(crate) published: BTreeMap<RoundNumber, Outcome>,
    pub(crate) registered: Vec<(BlobRef, ModelRef)>,
    pub(crate) ended: Option<Ending>,
    // For the checks.
    pub(crate) collecting_until: BTreeMap<RoundNumber, u64>,
    /// The updates behind what was seen of a private training's rounds.
    pub(crate) released: BTreeMap<RoundNumber, Vec<u64>>,
    /// When the mean of a round was asked for first.
    pub(crate) closed: BTreeMap<RoundNumber, u64>,
    /// Whose words were refused in a round because of what is in them.
    pub(crate) refused: BTreeSet<(RoundNumber, DeviceId)>,
    pub(crate) masked: masked::Known,
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    happenings: BTreeMap<u64, Happening>,
    scheduled: u64,
    /// Share of steps that go wrong.
    faults: f64,
    tells: bool,
}

const EVALUATE: [Evaluate; 4] =
    [Evaluate::None, Evaluate::Devices, Evaluate::Broker, Evaluate::Both];

/// Who takes part, of so many devices; `least` of them in any case.
fn participation(random: &mut ChaCha8Rng, seed: u64, least: u32, devices: u32) -> Participation {
    let wanted = random.random_range(least..=devices);
    let all = Participation {
        devices: random.random_bool(0.7).then_some(wanted),
        over_selection: if random.random_bool(0.5) { 1.0 } else { 0.0 },
        quorum: random.random_range(least..=wanted),
        deadline_ms: Millis(8000),
        failed_rounds_max: 1000,
        selection: Selection::Random,
        quarantine: quarantine(seed),
        late_updates: if seed % 3 == 1 && least == 1 {
            LateUpdates::Staleness(Staleness { exponent: 0.5, staleness_max: 2 })
        } else {
            LateUpdates::Refuse
        },
    };
    let selection = match seed.to_le_bytes()[0] % 5 {
        0 => Selection::Random,
        1 => Selection::RoundRobin,
        2 => Selection::ByLoss { candidates: None },
        3 => Selection::BySpeed { exploration: 0.5 },
        _ if least > 1 => Selection::Random,
        _ => {
            let (selection, devices) = (Selection::Cyclic, None);
            let (quorum, over_selection, late_updates) = (1, 0.0, LateUpdates::Refuse);
            return Participation {
                selection,
                devices,
                quorum,
                over_selection,
                late_updates,
                ..all
            };
        }
    };
    Participation { selection, ..all }
}

impl World {
    pub(crate) fn new(kind: Kind, seed: u64, plant: Option<Plant>, tells: bool) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (least, most, secure_aggregation) = match kind {
            Kind::Plain => (1, 5, None),
            Kind::Masked => (masked::DEVICES_MIN, 6, Some(masked::terms(&mut random))),
        };
        let devices = random.random_range(least..=most);
        let mut participation = participation(&mut random, seed, least, devices);
        if kind == Kind::Masked && random.random_bool(0.5) {
            // There is room for devices that drop out.
            (participation.devices, participation.quorum) = (None, least);
        }
        let spec = TrainSpec {
            model: "mlp".parse().unwrap(),
            begin_from: None,
            dataset: "digits".parse().unwrap(),
            rounds: random.random_range(1..=if kind == Kind::Masked { 3 } else { 5 }),
            local: LocalTraining::default(),
            participation,
            strategy: Strategy::default(),
            rule: None,
            privacy: private::promise(seed),
            update: UpdateEncoding::default(),
            download: if seed.is_multiple_of(3) { Download::Float32 } else { Download::Plain },
            transfer: Transfer::default(),
            secure_aggregation,
            evaluate: EVALUATE[random.random_range(0..4)],
            target_accuracy: None,
            early_stopping: None,
            keep: Keep::default(),
            keep_rounds: None,
            register_as: None,
            seed,
        };
        // Of a masked round more can go wrong.
        let shares = [[0.0, 0.03, 0.1, 0.2], [0.0, 0.01, 0.03, 0.1]];
        let faults = shares[usize::from(kind == Kind::Masked)][random.random_range(0..4)];
        let mut world = Self {
            now: 1000,
            random,
            plant,
            counts: Counts::default(),
            spec,
            devices: (0..devices).map(Device::new).collect(),
            broker: None,
            stored: Stored::default(),
            stream: Vec::new(),
            objects: BTreeMap::new(),
            published: BTreeMap::new(),
            registered: Vec::new(),
            ended: None,
            collecting_until: BTreeMap::new(),
            released: BTreeMap::new(),
            closed: BTreeMap::new(),
            refused: BTreeSet::new(),
            masked: masked::Known::default(),
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            scheduled: 0,
            faults,
            tells,
        };
        world.objects.insert("first".to_owned(), Blob { value: 1, base: 0, bad: false });
        world.after(0, Happening::BrokerStarts);
        for device in 0..world.devices.len() {
            if faults > 0.0 && world.random.random_bool(0.5) {
                let at = world.random.random_range(0..4000);
                world.after(at, Happening::DeviceCrashes { device });
            }
        }
        world
    }

    /// Runs until the training has ended.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        while self.ended.is_none() {
            let Some(Reverse((at, id))) = self.queue.pop() else {
                return Err("nothing happens any more, and the training has not ended".to_owned());
            };
            self.now = at;
            self.counts.steps += 1;
            if at > DEADLINE || self.counts.steps > u64::from(STEPS_MAX) {
                return Err(format!("no end by {at} ms, in {} steps", self.counts.steps));
            }
            let happening = self.happenings.remove(&id).unwrap();
            if self.tells {
                println!("{at}: {happening:?}");
            }
            self.happen(happening)?;
        }
        check::at_end(self)
    }

    fn happen(&mut self, happening: Happening) -> Result<(), String> {
        match happening {
            Happening::OfferArrives { device, offer, question } => {
                return self.offer_arrives(device, offer, question);
            }
            Happening::WorkDone { device, instance, task } => {
                return self.work_done(device, instance, &task);
            }
            Happening::ReportSent { device, instance, report } => {
                self.report_sent(device, instance, report);
            }
            Happening::DeviceCrashes { device } => self.device_crashes(device),
            Happening::DeviceStarts { device } => return self.device_starts(device),
            Happening::Silence { device, instance } => return self.silence(device, instance),
            Happening::BrokerStarts => return self.broker_starts(),
            Happening::BrokerReads { term } => return self.broker_reads(term),
            Happening::BrokerWakes { term } => return self.broker_wakes(term),
            Happening::BrokerStores { term } => self.broker_stores(term),
            Happening::BrokerDid { term, event } => return self.broker_did(term, &event),
            Happening::MeanWritten { term, round, name, blob } => {
                return self.mean_written(term, round, name, blob);
            }
        }
        Ok(())
    }

    /// Something happens after so many milliseconds.
    pub(crate) fn after(&mut self, delay: u64, happening: Happening) {
        self.scheduled += 1;
        self.queue.push(Reverse((self.now + delay, self.scheduled)));
        self.happenings.insert(self.scheduled, happening);
    }

    /// A delay of the network or of work.
    pub(crate) fn delay(&mut self, usual: u64) -> u64 {
        let slow = if self.goes_wrong() { 20 } else { 1 };
        self.random.random_range(1..=usual * slow)
    }

    /// Whether a fault happens here.
    pub(crate) fn goes_wrong(&mut self) -> bool {
        let chance = self.random.random_bool(self.faults.max(1e-9));
        chance && self.faults > 0.0 && self.now < HEALED_AT
    }

    /// Whether nothing goes wrong in this world.
    pub(crate) fn is_without_faults(&self) -> bool {
        self.faults <= 0.0 && self.plant.is_none()
    }

    pub(crate) fn is_masked(&self) -> bool {
        self.spec.secure_aggregation.is_some()
    }

    pub(crate) fn is(&self, plant: Plant) -> bool {
        self.plant == Some(plant)
    }
}

fn quarantine(seed: u64) -> Option<Quarantine> {
    let settings = match seed / 4 % 3 {
        0 => return None,
        1 => "refused=1,within=1,rounds=1",
        _ => "refused=2,within=4,rounds=3",
    };
    Some(settings.parse().unwrap())
}

/// The reference to a blob of this name.
pub(crate) fn reference(name: &str, blob: &Blob) -> BlobRef {
    let digest: Digest = format!("sha256:{:064x}", blob.value).parse().unwrap();
    BlobRef { name: Some(name.to_owned()), ..BlobRef::by_digest(digest, Bytes(8)) }
}

/// A number that stands for all of these, in their order.
pub(crate) fn mixed(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(0x9E37_79B9_7F4A_7C15, |sum, value| {
        let sum = (sum ^ value).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        sum ^ (sum >> 29)
    })
}
