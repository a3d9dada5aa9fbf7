//! Models ready to answer: loaded once, kept while they are used, bounded.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jobs::id::{BlobRef, Bytes as Size, Digest};
use jobs::report::{Failure, FailureCode};
use models::artifact::{Descriptor, Manifest, ModelConfig};
use models::engine::tract::Tract;
use models::engine::{Engine as _, Session};
use tokio::sync::watch;

use super::compute::Compute;
use super::failures;
use crate::cache::{Cache, Gates, Keep};

/// Models ready at once, at most.
const MODELS_MAX: usize = 16;

/// A model that can answer.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) config: ModelConfig,
    pub(super) session: Box<dyn Session>,
    pub(super) engine: &'static str,
    onnx_bytes: u64,
}

/// The models that are ready, the least recently used first.
#[derive(Debug)]
pub(super) struct Sessions {
    bytes_max: u64,
    ready: Mutex<Vec<(Digest, Arc<Loaded>)>>,
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
        cache: &Cache,
        compute: &Compute,
        shown: &watch::Sender<Vec<Digest>>,
    ) -> Result<Arc<Loaded>, Failure> {
        if let Some(loaded) = self.find(manifest) {
            return Ok(loaded);
        }
        let _only_one = self.gates.enter(manifest).await;
        if let Some(loaded) = self.find(manifest) {
            return Ok(loaded);
        }
        let loaded = Arc::new(load(manifest, cache, compute).await?);
        self.insert(manifest.clone(), loaded.clone());
        shown.send_replace(self.lock().iter().map(|(digest, _)| digest.clone()).collect());
        Ok(loaded)
    }

    fn find(&self, manifest: &Digest) -> Option<Arc<Loaded>> {
        let mut ready = self.lock();
        let index = ready.iter().position(|(digest, _)| digest == manifest)?;
        let found = ready.remove(index);
        let loaded = found.1.clone();
        ready.push(found);
        Some(loaded)
    }

    fn insert(&self, manifest: Digest, loaded: Arc<Loaded>) {
        let mut ready = self.lock();
        ready.push((manifest, loaded));
        let mut total: u64 = ready.iter().map(|(_, loaded)| loaded.onnx_bytes).sum();
        while ready.len() > 1 && (ready.len() > MODELS_MAX || total > self.bytes_max) {
            total -= ready.remove(0).1.onnx_bytes;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Digest, Arc<Loaded>)>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Manifest, then config and ONNX file, then the engine.
async fn load(manifest: &Digest, cache: &Cache, compute: &Compute) -> Result<Loaded, Failure> {
    let manifest = cache.get_by_digest(manifest, Keep::Disk).await?;
    let manifest = Manifest::parse(&manifest).map_err(|error| invalid(&error))?;
    let (config, onnx) = (blob(&manifest.config)?, blob(manifest.onnx())?);
    let (config, onnx) =
        futures::try_join!(cache.get(&config, Keep::Disk), cache.get(&onnx, Keep::Disk))?;
    let config = ModelConfig::parse(&config).map_err(|error| invalid(&error))?;
    let onnx_bytes = onnx.len() as u64;
    let engine = Tract;
    let session = compute
        .infer(move || engine.load(&onnx).map_err(|error| failures::of_engine(&error)))
        .await?;
    Ok(Loaded { config, session, engine: engine.name(), onnx_bytes })
}

fn blob(descriptor: &Descriptor) -> Result<BlobRef, Failure> {
    let digest = Digest::parse(&descriptor.digest).map_err(|error| invalid(&error))?;
    Ok(BlobRef::by_digest(digest, Size(descriptor.size)))
}

fn invalid(error: &dyn std::fmt::Display) -> Failure {
    Failure::new(FailureCode::InvalidModel, format!("the registered model: {error}"))
}
