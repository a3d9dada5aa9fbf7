//! Models ready to answer: loaded once, kept while they are used, bounded.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::{Either, select};
use futures::stream::FuturesUnordered;
use jobs::id::{BlobRef, Bytes as Size, Digest};
use jobs::report::{Failure, FailureCode};
use models::artifact::{Descriptor, Manifest, ModelConfig};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use self::loaded::{Loaded, Unloaded};
use self::room::{Held, Room};
use super::compute::apart;
use super::{Promises, panic_failure};
use crate::cache::{Cache, Gates, Keep};
use crate::device::{Device, EnginesHere};

mod calibrate;
mod health;
pub(super) mod loaded;
mod pace;
mod room;
mod turns;

/// Models ready at once, at most.
const MODELS_MAX: usize = 16;

/// A model's config with the model, ready to answer.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) config: ModelConfig,
    pub(super) model: Arc<Loaded>,
    onnx: BlobRef,
}

/// The models that are ready, the least recently used first.
#[derive(Debug)]
pub(super) struct Sessions {
    bytes_max: u64,
    ready: Mutex<Vec<(Digest, Arc<Ready>)>>,
    gates: Gates,
    room: Room,
}

impl Sessions {
    pub(super) fn new(bytes_max: u64, promises: Arc<Promises>) -> Self {
        let (ready, gates) = (Mutex::default(), Gates::default());
        Self { bytes_max, ready, gates, room: Room::new(promises) }
    }

    /// The model of a manifest, loaded if it is not ready; many requests share one loading, which
    /// goes on for the next ones where nobody waits any more. The one that begins it waits for
    /// engines of the CPU for a part of the time `until` it is to be answered.
    pub(super) async fn get(
        self: &Arc<Self>,
        manifest: &Digest,
        device: &Arc<Device>,
        until: Instant,
    ) -> Result<Arc<Ready>, Failure> {
        if let Some(ready) = self.find(manifest) {
            return Ok(ready);
        }
        let only_one = self.gates.enter(manifest).await;
        if let Some(ready) = self.find(manifest) {
            return Ok(ready);
        }
        let (sessions, manifest, device) = (self.clone(), manifest.clone(), device.clone());
        let loading = tokio::spawn(async move {
            let _only_one = only_one;
            sessions.load(manifest, device, until).await
        });
        loading.await.unwrap_or_else(|_| Err(panic_failure("loading the model")))
    }

    async fn load(
        &self,
        manifest: Digest,
        device: Arc<Device>,
        until: Instant,
    ) -> Result<Arc<Ready>, Failure> {
        let (config, blob) = Box::pin(named(&manifest, &device.cache)).await?;
        let held = Loadable { sessions: self, device: &device };
        let room = self.room.take(blob.size.0, until, &held).await?;
        let onnx = device.cache.get(&blob, Keep::DiskIfRoom).await?;
        // An engine may take minutes; the agent may end meanwhile.
        let (here, device) = (device.engines(), Arc::downgrade(&device));
        let model = Arc::new(load(&here, &onnx, patience(until)).await?);
        // It has taken it; the engines that are tried next need their own.
        drop(room);
        let ready = Arc::new(Ready { config, model, onnx: blob });
        self.insert(manifest, ready.clone());
        if let Some(device) = device.upgrade() {
            self.tell(&device.models);
        }
        // Answers do not wait for it.
        tokio::spawn(calibrate::all(ready.model.clone(), onnx, here));
        Ok(ready)
    }

    fn find(&self, manifest: &Digest) -> Option<Arc<Ready>> {
        let mut ready = self.lock();
        let index = ready.iter().position(|(digest, _)| digest == manifest)?;
        let found = ready.remove(index);
        let model = found.1.clone();
        ready.push(found);
        Some(model)
    }

    fn insert(&self, manifest: Digest, model: Arc<Ready>) {
        let mut ready = self.lock();
        ready.push((manifest, model));
        let mut total: u64 = ready.iter().map(|(_, model)| model.onnx.size.0).sum();
        while ready.len() > 1 && (ready.len() > MODELS_MAX || total > self.bytes_max) {
            total -= ready.remove(0).1.onnx.size.0;
        }
    }

    /// Tells which models are ready. They are looked at in turn with others that tell it, so that what
    /// is told last is newest.
    fn tell(&self, models: &watch::Sender<Vec<Digest>>) {
        models.send_modify(|told| {
            *told = self.lock().iter().map(|(digest, _)| digest.clone()).collect();
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Digest, Arc<Ready>)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a device holds for answers.
struct Loadable<'a> {
    sessions: &'a Sessions,
    device: &'a Device,
}

impl Held for Loadable<'_> {
    fn bytes(&self) -> u64 {
        self.sessions.lock().iter().map(|(_, model)| model.onnx.size.0).sum()
    }

    fn let_go(&self) -> bool {
        self.device.cache.forget_unused(Duration::ZERO);
        let mut ready = self.sessions.lock();
        if ready.is_empty() {
            return false;
        }
        let (digest, _) = ready.remove(0);
        drop(ready);
        tracing::info!(%digest, "memory lacks: this model is not ready any more");
        self.sessions.tell(&self.device.models);
        true
    }
}

impl Ready {
    /// Makes an engine ready that the request allows, where none is so far: waits for what is
    /// known of engines, loads, compares and measures. One of the CPU's is waited for alone, any
    /// other one that is ready waits for those that may be faster for half of the time `until` the
    /// request is to be answered. What is not ready in time goes on.
    pub(super) async fn provide(
        &self,
        allowed: impl Fn(&str) -> bool,
        device: &Arc<Device>,
        until: Instant,
    ) -> Result<(), Failure> {
        let missing = self.model.missing(&allowed);
        if missing.is_empty() {
            return Ok(());
        }
        let left = until.saturating_duration_since(Instant::now());
        let (half, patience) = (until - left / 2, patience(until));
        let fetched = timeout_at(until, device.cache.get(&self.onnx, Keep::DiskIfRoom)).await;
        let Ok(onnx) = fetched else { return Ok(()) };
        let onnx = onnx?;
        let one = |engine| {
            calibrate::one(self.model.clone(), engine, onnx.clone(), device.engines(), patience)
        };
        let mut trials: FuturesUnordered<_> = missing.into_iter().map(one).collect();
        loop {
            let most = match self.model.ready(&allowed) {
                Some(engine) if self.model.trusts(engine) => return Ok(()),
                Some(_) => half,
                None => until,
            };
            match timeout_at(most, trials.next()).await {
                Ok(Some(())) => {}
                Ok(None) | Err(_) => return Ok(()),
            }
        }
    }

    /// Tries engines anew that failed, or measures them.
    pub(super) async fn try_again(&self, engines: Vec<&'static str>, device: Arc<Device>) {
        let onnx = device.cache.get(&self.onnx, Keep::DiskIfRoom).await;
        // An engine may take minutes; the agent may end meanwhile.
        let here = device.engines();
        drop(device);
        match onnx {
            Ok(onnx) => calibrate::some(self.model.clone(), engines, onnx, here).await,
            Err(failure) => tracing::warn!("{}", failure.message),
        }
    }
}

/// What a manifest names: the config, and where the ONNX file is.
async fn named(manifest: &Digest, cache: &Cache) -> Result<(ModelConfig, BlobRef), Failure> {
    let manifest = cache.get_by_digest(manifest, Keep::DiskIfRoom).await?;
    let manifest = Manifest::parse(&manifest).map_err(|error| invalid(&error))?;
    let (config, blob) = (blob(&manifest.config)?, blob(manifest.onnx())?);
    let config = cache.get(&config, Keep::DiskIfRoom).await?;
    let config = ModelConfig::parse(&config).map_err(|error| invalid(&error))?;
    Ok((config, blob))
}

/// How long a request that is to be answered `until` then waits for an engine that hangs.
fn patience(until: Instant) -> Duration {
    calibrate::ALONE.min(until.saturating_duration_since(Instant::now()) / 4)
}

/// Loads a model into the first engine of the CPU that takes it. Where none has it after `patience`
/// ONNX Runtime may come first.
async fn load(here: &EnginesHere, onnx: &Bytes, patience: Duration) -> Result<Loaded, Failure> {
    let (bytes, cpu) = (onnx.clone(), here.cpu.clone());
    let mut loading = pin!(apart("load".to_owned(), move || Loaded::load(&cpu, &bytes)));
    let loaded = if let Ok(loaded) = timeout(patience, &mut loading).await {
        loaded
    } else {
        let instead = pin!(load_instead(here, onnx, Unloaded::late(patience)));
        match select(loading, instead).await {
            Either::Left((loaded, _)) => loaded,
            Either::Right((Ok(model), _)) => return Ok(model),
            Either::Right((Err(_), loading)) => loading.await,
        }
    };
    match loaded.map_err(|reason| panicked(&reason))? {
        Ok(model) => Ok(model),
        Err(unloaded) => load_instead(here, onnx, unloaded).await,
    }
}

/// Loads a model into ONNX Runtime.
async fn load_instead(
    here: &EnginesHere,
    onnx: &Bytes,
    unloaded: Unloaded,
) -> Result<Loaded, Failure> {
    let (engines, bytes) = (here.helped().await, onnx.clone());
    let loaded = apart("load".to_owned(), move || unloaded.load(&engines, &bytes)).await;
    loaded.map_err(|reason| panicked(&reason))?
}

fn panicked(reason: &str) -> Failure {
    Failure::new(FailureCode::Internal, format!("loading the model: {reason}"))
}

fn blob(descriptor: &Descriptor) -> Result<BlobRef, Failure> {
    let digest = Digest::parse(&descriptor.digest).map_err(|error| invalid(&error))?;
    Ok(BlobRef::by_digest(digest, Size(descriptor.size)))
}

fn invalid(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureCode::InvalidModel, format!("the registered model: {error}"))
}
