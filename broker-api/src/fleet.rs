//! The devices as this broker sees them: what they said last, and whether they are there.
//!
//! What is in memory is a cache: facts live in the bucket `devices`, presence comes from
//! heartbeats on this broker's clock, and both are rebuilt when a broker starts.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use async_nats::Message;
use futures::StreamExt as _;
use jobs::device::{Goodbye, Heartbeat, Hello, Presence, Telemetry};
use jobs::engine::EnginePolicy;
use jobs::id::{DatasetName, DeviceId, Digest, Millis};
use jobs::selector::Selector;
use jobs::spec::Purpose;
use jobs::subject::{self, FleetTopic};
use jobs::{device, wire};
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::record::DeviceRecord;
use crate::store::{self, Store};

mod kept;
pub mod placement;

use kept::Unstored;
use placement::{Candidate, Choice, Lacking, Wanted};

/// How often silence is looked at.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
/// How long a starting broker waits for devices that it knows to say hello.
const GREETING: Duration = Duration::from_millis(300);
/// Events that a slow listener may be behind before it has to look at everything anew.
const EVENTS_WAITING: usize = 4096;
/// Models whose speed is remembered for each device.
const LATENCIES_MAX: usize = 64;

/// Something that matters to work that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FleetEvent {
    /// A device is offline, or began anew: what it was doing is lost.
    Lost(DeviceId),
    /// A device that was lost is there again, or a new one came.
    Returned(DeviceId),
}

/// The devices; cheap to clone.
#[derive(Debug, Clone)]
pub struct Fleet {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    devices: RwLock<BTreeMap<DeviceId, Device>>,
    unstored: Unstored,
    events: broadcast::Sender<FleetEvent>,
    /// Counts changes after which work that found no device may find one.
    chances: watch::Sender<u64>,
    /// Counts placements.
    turn: AtomicU64,
    began: Instant,
    began_at: Millis,
}

#[derive(Debug)]
struct Device {
    hello: Hello,
    /// The instance that said hello before this one.
    before: Option<String>,
    /// It was told that there are two of this name.
    is_double: bool,
    last_seen: Millis,
    presence: Presence,
    telemetry: Option<Telemetry>,
    tasks: usize,
    training: u32,
    loaded: Vec<Digest>,
    in_flight: u32,
    last_turn: u64,
    latency_us: HashMap<Digest, u64>,
}

/// Counts as one task in flight on a device until it is dropped.
#[derive(Debug)]
pub struct Slot {
    fleet: Fleet,
    device: DeviceId,
}

/// What came of looking for a device.
#[derive(Debug)]
pub enum Placed {
    /// This one, and a slot on it.
    On(DeviceId, Slot),
    /// Every device that matches has its hands full.
    Busy,
    /// No device that matches is online.
    Nobody,
    /// Devices that match are online, and none has an engine that may answer; see [`Choice`].
    Lacking {
        /// These.
        devices: Vec<Lacking>,
        /// Whether one may have such an engine later.
        may_come: bool,
    },
}

impl Fleet {
    /// Loads the devices that are known, listens to all, and asks them to say hello.
    ///
    /// # Errors
    /// When NATS does not take the subscription or the bucket cannot be read.
    pub async fn start(store: Store, token: CancellationToken) -> anyhow::Result<Self> {
        let shared = Shared {
            store: store.clone(),
            devices: RwLock::default(),
            unstored: Unstored::default(),
            events: broadcast::channel(EVENTS_WAITING).0,
            chances: watch::channel(0).0,
            turn: AtomicU64::new(1),
            began: Instant::now(),
            began_at: store::now(),
        };
        let fleet = Self { shared: Arc::new(shared) };
        let messages = store.client().subscribe(subject::FLEET_ALL).await?;
        let loading = token.child_token();
        let mut known = store.devices.follow(loading.clone());
        while let Some(change) = known.recv().await {
            match change {
                store::Change::Put(_, hello, _) => fleet.load(hello.value),
                store::Change::Gone(..) | store::Change::Unreadable(..) | store::Change::Anew => {}
                store::Change::Current => break,
            }
        }
        loading.cancel();
        let listener = fleet.clone();
        let listen = async move { listener.listen(messages).await };
        tokio::spawn(token.clone().run_until_cancelled_owned(listen));
        let sweeper = fleet.clone();
        let sweep = async move { sweeper.sweep().await };
        tokio::spawn(token.clone().run_until_cancelled_owned(sweep));
        let keeper = fleet.clone();
        tokio::spawn(token.run_until_cancelled_owned(async move { keeper.keep().await }));
        fleet.ask_all().await;
        fleet.await_greetings().await;
        Ok(fleet)
    }

    /// Milliseconds since the Unix epoch that never go backwards.
    pub fn now(&self) -> Millis {
        let elapsed = u64::try_from(self.shared.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.shared.began_at.plus(Millis(elapsed))
    }

    /// Every device that ever joined, by id.
    pub fn records(&self) -> Vec<DeviceRecord> {
        let record = |device: &Device| DeviceRecord {
            hello: device.hello.clone(),
            presence: device.presence,
            last_seen: device.last_seen,
            telemetry: device.telemetry.clone(),
            tasks: device.tasks,
        };
        self.read().values().map(record).collect()
    }

    /// Devices that match and are online, by id.
    pub fn matching(&self, selector: &Selector, dataset: Option<&DatasetName>) -> Vec<Hello> {
        self.online(&Wanted { selector, dataset, engine: None, avoid: &[] })
    }

    /// Online devices that match and have an engine which may answer, by id.
    pub(crate) fn answering(&self, selector: &Selector, engine: &EnginePolicy) -> Vec<Hello> {
        self.online(&Wanted { selector, dataset: None, engine: Some(engine), avoid: &[] })
    }

    fn online(&self, wanted: &Wanted<'_>) -> Vec<Hello> {
        self.read()
            .values()
            .filter(|device| device.presence == Presence::Online && wanted.matches(&device.hello))
            .map(|device| device.hello.clone())
            .collect()
    }

    /// Looks at all devices that ever joined, by id.
    pub(crate) fn for_each(&self, mut look: impl FnMut(&Hello, Presence)) {
        self.read().values().for_each(|device| look(&device.hello, device.presence));
    }

    /// Devices that match, of all that ever joined, by id.
    pub(crate) fn known(&self, selector: &Selector, dataset: &DatasetName) -> Vec<Hello> {
        let wanted = Wanted { selector, dataset: Some(dataset), engine: None, avoid: &[] };
        let devices = self.read();
        let hellos = devices.values().map(|device| &device.hello);
        hellos.filter(|hello| wanted.matches(hello)).cloned().collect()
    }

    /// Whether a device can be given work.
    pub fn presence(&self, device: &DeviceId) -> Presence {
        self.read().get(device).map_or(Presence::Offline, |device| device.presence)
    }

    /// Chooses a device for a model's answer and takes a slot on it.
    pub fn place(&self, wanted: &Wanted<'_>, model: Option<&Digest>) -> Placed {
        let mut devices = self.write();
        let candidates = devices.values().map(|device| Candidate {
            hello: &device.hello,
            presence: device.presence,
            in_flight: device.in_flight,
            training: device.training,
            loaded: model.is_none_or(|model| device.loaded.contains(model)),
            latency_us: model.and_then(|model| device.latency_us.get(model).copied()),
            last_turn: device.last_turn,
        });
        let chosen = match placement::choose(wanted, candidates) {
            Choice::Device(device) => device,
            Choice::Busy => return Placed::Busy,
            Choice::Nobody => return Placed::Nobody,
            Choice::Lacking { devices, may_come } => return Placed::Lacking { devices, may_come },
        };
        let turn = self.shared.turn.fetch_add(1, Ordering::Relaxed);
        if let Some(device) = devices.get_mut(&chosen) {
            device.in_flight += 1;
            device.last_turn = turn;
        }
        Placed::On(chosen.clone(), Slot { fleet: self.clone(), device: chosen })
    }

    /// Remembers how long a device took for an answer, and that the model is loaded there.
    pub fn measured(&self, device: &DeviceId, model: &Digest, took: Duration) {
        let mut devices = self.write();
        let Some(device) = devices.get_mut(device) else { return };
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if device.latency_us.len() >= LATENCIES_MAX && !device.latency_us.contains_key(model) {
            device.latency_us.clear();
        }
        let mean = device.latency_us.entry(model.clone()).or_insert(took);
        *mean = (*mean * 3 + took) / 4;
        if !device.loaded.contains(model) {
            device.loaded.push(model.clone());
        }
    }

    /// Nobody listens to a device's offers: it is not connected.
    pub fn unreachable(&self, device: &DeviceId) {
        self.lose(device);
    }

    /// Losses and returns from now on.
    pub fn events(&self) -> broadcast::Receiver<FleetEvent> {
        self.shared.events.subscribe()
    }

    /// Changes whenever work that found no device may find one.
    pub fn chances(&self) -> watch::Receiver<u64> {
        self.shared.chances.subscribe()
    }

    fn load(&self, hello: Hello) {
        let device = Device::new(hello, Presence::Offline);
        self.write().insert(device.hello.device.clone(), device);
    }

    async fn ask_all(&self) {
        let asked = self.shared.store.client().publish(subject::command_all("hello"), "".into());
        if let Err(error) = asked.await {
            tracing::warn!(%error, "devices could not be asked to say hello");
        }
    }

    async fn ask(&self, device: &DeviceId) {
        let subject = subject::command(device, "hello");
        if let Err(error) = self.shared.store.client().publish(subject, "".into()).await {
            tracing::debug!(%device, %error, "device could not be asked to say hello");
        }
    }

    async fn await_greetings(&self) {
        let mut chances = self.chances();
        let all_there = || self.read().values().all(|device| device.presence == Presence::Online);
        let greetings = async {
            while !all_there() {
                if chances.changed().await.is_err() {
                    return;
                }
            }
        };
        // Who is silent now may come later.
        let _ = tokio::time::timeout(GREETING, greetings).await;
    }

    async fn listen(&self, mut messages: async_nats::Subscriber) {
        while let Some(message) = messages.next().await {
            let Some((device, topic)) = subject::parse_fleet(&message.subject) else { continue };
            if let Err(error) = self.note(&device, topic, &message).await {
                tracing::warn!(%device, ?topic, %error, "a message of a device was not understood");
            }
        }
    }

    async fn note(
        &self,
        device: &DeviceId,
        topic: FleetTopic,
        message: &Message,
    ) -> Result<(), wire::DecodeError> {
        match topic {
            FleetTopic::Hello => {
                let hello: Hello = wire::decode(&message.payload)?;
                if hello.device == *device {
                    self.greeted(hello);
                }
            }
            FleetTopic::Heartbeat => {
                let heartbeat: Heartbeat = wire::decode(&message.payload)?;
                if !self.beat(device, heartbeat) {
                    self.ask(device).await;
                }
            }
            FleetTopic::Telemetry => {
                let telemetry: Telemetry = wire::decode(&message.payload)?;
                if let Some(device) = self.write().get_mut(device) {
                    device.telemetry = Some(telemetry);
                }
            }
            FleetTopic::Goodbye => {
                let goodbye: Goodbye = wire::decode(&message.payload)?;
                let is_it = |device: &Device| device.hello.instance == goodbye.instance;
                if self.read().get(device).is_some_and(is_it) {
                    self.lose(device);
                }
            }
            FleetTopic::Log => {}
        }
        Ok(())
    }

    fn greeted(&self, hello: Hello) {
        let id = hello.device.clone();
        let now = self.now();
        let (changed, was_there, began_anew) = {
            let mut devices = self.write();
            let is_new = !devices.contains_key(&id);
            let device = devices
                .entry(id.clone())
                .or_insert_with(|| Device::new(hello.clone(), Presence::Offline));
            let began_anew = device.hello.instance != hello.instance;
            let was_there = device.presence != Presence::Offline;
            let changed = is_new || device.hello != hello;
            if began_anew {
                let before = device.before.replace(device.hello.instance.clone());
                let came_back = before.as_ref() == Some(&hello.instance);
                if came_back && !std::mem::replace(&mut device.is_double, true) {
                    let hosts = (&device.hello.facts.host_name, &hello.facts.host_name);
                    tracing::warn!(device = %id, ?hosts, "two agents have this name and take \
                        turns: give each its own with --name");
                }
                device.loaded.clear();
                device.tasks = 0;
                device.training = 0;
            }
            device.hello = hello;
            device.last_seen = now;
            device.presence = Presence::Online;
            (changed, was_there, began_anew)
        };
        if was_there && began_anew {
            self.tell(FleetEvent::Lost(id.clone()));
        }
        if !was_there || began_anew {
            self.tell(FleetEvent::Returned(id.clone()));
        }
        self.chance();
        if changed {
            self.shared.unstored.add([id]);
        }
    }

    /// False when the device, or this instance of it, has not said hello yet.
    fn beat(&self, id: &DeviceId, heartbeat: Heartbeat) -> bool {
        let now = self.now();
        let returned = {
            let mut devices = self.write();
            let Some(device) = devices.get_mut(id) else { return false };
            if device.hello.instance != heartbeat.instance {
                return false;
            }
            let trains = |purpose| matches!(purpose, Purpose::Train | Purpose::Evaluate);
            let training = heartbeat.tasks.iter().filter(|task| trains(task.purpose)).count();
            device.tasks = heartbeat.tasks.len();
            device.training = u32::try_from(training).unwrap_or(u32::MAX);
            device.loaded = heartbeat.models;
            device.last_seen = now;
            let returned = device.presence != Presence::Online;
            let was_lost = device.presence == Presence::Offline;
            device.presence = Presence::Online;
            if was_lost {
                self.tell(FleetEvent::Returned(id.clone()));
            }
            returned
        };
        if returned {
            self.chance();
        }
        true
    }

    /// Looks for silence, for ever.
    async fn sweep(&self) {
        let mut interval = tokio::time::interval(SWEEP_EVERY);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let now = self.now();
            let mut lost = Vec::new();
            for (id, device) in self.write().iter_mut() {
                if device.presence == Presence::Offline {
                    continue;
                }
                let presence = device::presence(now, device.last_seen, device.hello.heartbeat_ms);
                if presence == Presence::Offline {
                    lost.push(id.clone());
                } else {
                    device.presence = presence;
                }
            }
            for id in lost {
                self.lose(&id);
            }
        }
    }

    fn lose(&self, id: &DeviceId) {
        let mut devices = self.write();
        let Some(device) = devices.get_mut(id) else { return };
        if device.presence != Presence::Offline {
            device.presence = Presence::Offline;
            device.loaded.clear();
            device.tasks = 0;
            device.training = 0;
            self.tell(FleetEvent::Lost(id.clone()));
        }
    }

    fn tell(&self, event: FleetEvent) {
        // Nobody has to be listening.
        let _ = self.shared.events.send(event);
    }

    fn chance(&self) {
        self.shared.chances.send_modify(|count| *count += 1);
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<DeviceId, Device>> {
        self.shared.devices.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<DeviceId, Device>> {
        self.shared.devices.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device {
    fn new(hello: Hello, presence: Presence) -> Self {
        Self {
            last_seen: Millis(0),
            hello,
            before: None,
            is_double: false,
            presence,
            telemetry: None,
            tasks: 0,
            training: 0,
            loaded: Vec::new(),
            in_flight: 0,
            last_turn: 0,
            latency_us: HashMap::new(),
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let was_full = {
            let mut devices = self.fleet.write();
            let Some(device) = devices.get_mut(&self.device) else { return };
            device.in_flight = device.in_flight.saturating_sub(1);
            device.in_flight + 1 >= device.hello.slots.max(1)
        };
        if was_full {
            self.fleet.chance();
        }
    }
}
