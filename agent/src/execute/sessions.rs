//! Models ready to answer: loaded once, kept while they are used, bounded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use jobs::id::{BlobRef, Bytes as Size, Digest};
use jobs::report::{Failure, FailureCode};
use models::artifact::{Descriptor, Manifest, ModelConfig};

use self::loaded::Loaded;
use super::compute::Compute;
use crate::cache::{Gates, Keep};
use crate::device::Device;
use crate::engines::CPU;

mod calibrate;
mod health;
pub(super) mod loaded;

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
}

impl Sessions {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self { bytes_max, ready: Mutex::default(), gates: Gates::default() }
    }

    /// The model of a manifest, loaded if it is not ready; many requests share one loading.
    pub(super) async fn get(
        &self,
        manifest: &Digest,
        device: &Arc<Device>,
        compute: &Compute,
    ) -> Result<Arc<Ready>, Failure> {
        if let Some(ready) = self.find(manifest) {
            return Ok(ready);
        }
        let _only_one = self.gates.enter(manifest).await;
        if let Some(ready) = self.find(manifest) {
            return Ok(ready);
        }
        let (ready, onnx) = Box::pin(load(manifest, device, compute)).await?;
        let ready = Arc::new(ready);
        self.insert(manifest.clone(), ready.clone());
        let digests = self.lock().iter().map(|(digest, _)| digest.clone()).collect();
        device.models.send_replace(digests);
        // Answers do not wait for it.
        tokio::spawn(calibrate::all(ready.model.clone(), onnx, device.clone()));
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

    fn lock(&self) -> MutexGuard<'_, Vec<(Digest, Arc<Ready>)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ready {
    /// Makes an engine ready that the request allows, where none is so far: waits for what is
    /// known of engines, loads, compares and measures. One of the CPU's is waited for alone.
    pub(super) async fn provide(
        &self,
        allowed: impl Fn(&str) -> bool,
        device: &Arc<Device>,
    ) -> Result<(), Failure> {
        let missing = self.model.missing(allowed);
        if missing.is_empty() {
            return Ok(());
        }
        let onnx = device.cache.get(&self.onnx, Keep::Disk).await?;
        let (cpu, others): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|engine| CPU.contains(engine));
        let mut waiting = cpu.into_iter();
        while let Some(engine) = waiting.next() {
            calibrate::some(self.model.clone(), vec![engine], onnx.clone(), device.clone()).await;
            if self.model.session(engine).is_some() {
                let rest = waiting.chain(others).collect();
                tokio::spawn(calibrate::some(self.model.clone(), rest, onnx, device.clone()));
                return Ok(());
            }
        }
        calibrate::some(self.model.clone(), others, onnx, device.clone()).await;
        Ok(())
    }

    /// Tries engines that failed anew.
    pub(super) async fn try_again(&self, engines: Vec<&'static str>, device: &Arc<Device>) {
        match device.cache.get(&self.onnx, Keep::Disk).await {
            Ok(onnx) => calibrate::some(self.model.clone(), engines, onnx, device.clone()).await,
            Err(failure) => tracing::warn!("{}", failure.message),
        }
    }
}

/// Manifest, then config and ONNX file, then the first engine of the CPU that takes it, or ONNX
/// Runtime.
async fn load(
    manifest: &Digest,
    device: &Arc<Device>,
    compute: &Compute,
) -> Result<(Ready, Bytes), Failure> {
    let cache = &device.cache;
    let manifest = cache.get_by_digest(manifest, Keep::Disk).await?;
    let manifest = Manifest::parse(&manifest).map_err(|error| invalid(&error))?;
    let (config, onnx_blob) = (blob(&manifest.config)?, blob(manifest.onnx())?);
    let (config, onnx) =
        futures::try_join!(cache.get(&config, Keep::Disk), cache.get(&onnx_blob, Keep::Disk))?;
    let config = ModelConfig::parse(&config).map_err(|error| invalid(&error))?;
    let (bytes, shared) = (onnx.clone(), device.clone());
    let loaded = compute.infer(move || Ok(Loaded::load(&shared.cpu, &bytes))).await?;
    let model = match loaded {
        Ok(model) => model,
        Err(unloaded) if unloaded.is_final() => {
            let (engines, bytes) = (device.engines().await, onnx.clone());
            compute.infer(move || unloaded.load(&engines, &bytes)).await?
        }
        Err(unloaded) => return Err(unloaded.failure()),
    };
    Ok((Ready { config, model: Arc::new(model), onnx: onnx_blob }, onnx))
}

fn blob(descriptor: &Descriptor) -> Result<BlobRef, Failure> {
    let digest = Digest::parse(&descriptor.digest).map_err(|error| invalid(&error))?;
    Ok(BlobRef::by_digest(digest, Size(descriptor.size)))
}

fn invalid(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureCode::InvalidModel, format!("the registered model: {error}"))
}
