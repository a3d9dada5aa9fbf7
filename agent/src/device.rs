//! What all parts of a running agent share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::{Client, Subscriber};
use datasets::Datasets;
use jobs::device::{Facts, Hello, Telemetry};
use jobs::engine::EngineFacts;
use jobs::id::{Digest, Millis};
use jobs::report::Failure;
use jobs::spec::TaskId;
use link::blobs::Blobs;
use link::connect::{LinkError, LinkState};
use tokio::sync::watch;

use crate::AgentError;
use crate::cache::Cache;
use crate::checkpoints::Checkpoints;
use crate::clock::Clock;
use crate::config::Config;
use crate::engines::{self, Cpu, Engines};
use crate::execute::Promises;
use crate::facts;
use crate::guards::{self, Condition};
use crate::held::HeldUpdates;
use crate::kept_local::KeptLocal;
use crate::masking::MaskingStore;
use crate::refusals::Refusals;
use crate::releases::Releases;
use crate::state::State;
use crate::telemetry::Probe;
use crate::telemetry::buffer::Buffer;

/// After how long the processor's engines are measured: a start has other things to do.
const RATES_AFTER: Duration = Duration::from_mins(5);

/// The device with its connection, stores and measurements.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) client: Client,
    pub(crate) context: Context,
    pub(crate) link: watch::Receiver<LinkState>,
    pub(crate) blobs: Blobs,
    pub(crate) cache: Cache,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) kept_local: KeptLocal,
    /// Control variates, kept in the same way.
    pub(crate) controls: KeptLocal,
    /// What updates left out, for the next ones.
    pub(crate) residuals: KeptLocal,
    /// Updates that were given away with noise.
    pub(crate) releases: Releases,
    /// Updates that brokers could not use.
    pub(crate) refusals: Refusals,
    pub(crate) masking: MaskingStore,
    /// Updates that wait for the broker.
    pub(crate) held: HeldUpdates,
    pub(crate) datasets: Datasets,
    pub(crate) buffer: Buffer,
    /// For heartbeats: what is at work, and what can answer at once.
    pub(crate) tasks: watch::Sender<Vec<TaskId>>,
    pub(crate) models: watch::Sender<Vec<Digest>>,
    pub(crate) cpu: Cpu,
    /// Memory that work will take.
    pub(crate) promises: Arc<Promises>,
    engines: watch::Sender<Option<Arc<Engines>>>,
    probe: Arc<Mutex<Probe>>,
    facts: Facts,
    instance: String,
    state: State,
}

/// The engines of the device; does not keep the device.
#[derive(Debug, Clone)]
pub(crate) struct EnginesHere {
    pub(crate) cpu: Cpu,
    pub(crate) promises: Arc<Promises>,
    helped: watch::Receiver<Option<Arc<Engines>>>,
}

impl EnginesHere {
    /// The engines of the helper, once they are known; none when the agent ends before.
    pub(crate) async fn helped(&self) -> Arc<Engines> {
        let mut helped = self.helped.clone();
        let _ = helped.wait_for(Option::is_some).await;
        let engines = helped.borrow().clone();
        engines.unwrap_or_default()
    }
}

impl Device {
    pub(crate) fn new(
        config: Config,
        state: State,
        client: Client,
        link: watch::Receiver<LinkState>,
    ) -> Self {
        let blobs = Blobs::new(client.clone());
        let blobs = match config.bytes_per_second {
            Some(limit) => blobs.limited_to(limit),
            None => blobs,
        };
        let facts = facts::read(state.dir());
        Self {
            clock: Clock::new(),
            context: async_nats::jetstream::new(client.clone()),
            cache: Cache::new(blobs.clone(), state.blobs(), config.cache_bytes),
            checkpoints: Checkpoints::open(
                state.checkpoints(),
                config.checkpoint,
                config.cache_bytes,
            ),
            kept_local: KeptLocal::open(state.kept_local(), config.cache_bytes),
            controls: KeptLocal::open(state.controls(), config.cache_bytes),
            residuals: KeptLocal::open(state.residuals(), config.cache_bytes),
            releases: Releases::open(state.releases()),
            refusals: Refusals::default(),
            masking: MaskingStore::open(state.masking(), config.cache_bytes),
            held: HeldUpdates::open(state.held(), config.device.clone(), config.cache_bytes),
            blobs,
            datasets: Datasets::new(config.data.clone(), facts.memory.0),
            buffer: Buffer::new(state.telemetry()),
            tasks: watch::Sender::default(),
            models: watch::Sender::default(),
            cpu: Cpu::find(&engines::Options::of(&config, state.dir())),
            promises: Arc::default(),
            engines: watch::Sender::default(),
            probe: Arc::new(Mutex::new(Probe::new(&config.guards.sysfs))),
            facts,
            instance: random_id(),
            client,
            link,
            config,
            state,
        }
    }

    /// What the device says of itself.
    pub(crate) fn hello(&self) -> Hello {
        let known = self.engines.borrow().clone();
        let beat = u64::try_from(self.config.heartbeat.as_millis()).unwrap_or(u64::MAX);
        Hello {
            device: self.config.device.clone(),
            instance: self.instance.clone(),
            started_at: self.clock.started_at(),
            heartbeat_ms: Millis(beat),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            groups: self.config.groups.clone(),
            labels: self.config.labels.clone(),
            datasets: self.datasets.facts(),
            engines: engines::names(&self.cpu, known.as_deref()),
            engine_facts: known.as_ref().map(|known| self.engine_facts(known)).unwrap_or_default(),
            facts: self.facts.clone(),
            slots: self.config.slots,
            masks: true,
            masks_within: true,
        }
    }

    fn engine_facts(&self, known: &Engines) -> Vec<EngineFacts> {
        known.facts().into_iter().chain(self.cpu.facts(&self.facts.cpu)).collect()
    }

    /// Finds out which engines of the helper work here; after how long it has a sense to look
    /// again, if it has.
    pub(crate) async fn probe_engines(&self) -> Option<Duration> {
        let options = engines::Options::of(&self.config, self.state.dir());
        let before = self.engines.borrow().clone();
        let probing = move || Engines::probe(&options, before.as_deref());
        let engines = tokio::task::spawn_blocking(probing).await.ok()?;
        for problem in &engines.problems {
            tracing::warn!("{problem}");
        }
        let again = engines.again_after();
        self.engines.send_replace(Some(Arc::new(engines)));
        again
    }

    /// Lets the processor's engines be measured, if they were not, by a process of its own and once
    /// nothing else is to be done; whether that is known then.
    pub(crate) async fn rate_engines(&self) -> bool {
        let Some(own) = self.config.program.clone().filter(|_| self.cpu.lacks_rates()) else {
            return false;
        };
        tokio::time::sleep(RATES_AFTER).await;
        let _ = self.tasks.subscribe().wait_for(Vec::is_empty).await;
        let (cpu, options) =
            (self.cpu.clone(), engines::Options::of(&self.config, self.state.dir()));
        let measuring = move || cpu.measure_rates(&own, &options);
        let measured = tokio::task::spawn_blocking(measuring).await;
        let measured = measured.unwrap_or_else(|error| Err(error.to_string()));
        measured.unwrap_or_else(|reason| {
            tracing::warn!("how fast the processor's engines are is not known: {reason}");
            false
        })
    }

    /// The engines, for work that may go on when the agent has ended.
    pub(crate) fn engines(&self) -> EnginesHere {
        let (cpu, promises) = (self.cpu.clone(), self.promises.clone());
        EnginesHere { cpu, promises, helped: self.engines.subscribe() }
    }

    /// Changes with every start of the agent.
    pub(crate) fn instance(&self) -> &str {
        &self.instance
    }

    /// Hardware and system.
    pub(crate) fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Whether messages flow now.
    pub(crate) fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Listens to a subject; the subscription outlives reconnections.
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber, AgentError> {
        self.client.subscribe(subject).await.map_err(|error| {
            let servers = link::connect::without_password(&self.config.link.servers);
            AgentError::Link(LinkError::Unreachable { servers, reason: error.to_string() })
        })
    }

    /// Why the device takes no part in trainings now.
    pub(crate) async fn refusal(&self) -> Option<Failure> {
        let guards = &self.config.guards;
        if guards.are_open() {
            return None;
        }
        guards.refusal(&self.condition().await)
    }

    /// Says which guards are open because the device lacks what they look at.
    pub(crate) async fn tell_blind_guards(&self) {
        let guards = &self.config.guards;
        if guards.are_open() {
            return;
        }
        for blind in guards.blind(&self.condition().await) {
            tracing::warn!("{blind}");
        }
    }

    async fn condition(&self) -> Condition {
        let measured = self.measure().await;
        let battery = guards::battery(&self.config.guards.sysfs);
        Condition::of(&measured, self.state.dir(), battery)
    }

    /// Celsius by sensor, now; waits for the system.
    pub(crate) fn temperatures(&self) -> BTreeMap<String, f32> {
        self.probe.lock().unwrap_or_else(PoisonError::into_inner).temperatures()
    }

    /// Measures the device, away from the runtime: a file system may be slow to answer.
    pub(crate) async fn measure(&self) -> Telemetry {
        let (probe, at) = (self.probe.clone(), Clock::now());
        let measure = move || {
            let mut probe = probe.lock().unwrap_or_else(PoisonError::into_inner);
            probe.measure(at)
        };
        let measured = tokio::task::spawn_blocking(measure).await;
        let measured = measured.unwrap_or_else(|_| Telemetry { at, ..Telemetry::default() });
        Telemetry { refusals: self.refusals.newest(), ..measured }
    }
}

/// 16 hexadecimal digits that no other start of an agent has.
fn random_id() -> String {
    use std::hash::{BuildHasher as _, Hasher as _, RandomState};
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
