//! Model versions: kept in the bucket `models`, cached whole in memory, which a watch keeps right.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use bytes::Bytes;
use jobs::id::{BlobRef, Bytes as Size, Digest, JobId, ModelName, ModelRef, ModelVersion};
use jobs::spec::ModelQuery;
use link::blobs::{BlobError, Blobs};
use models::artifact::{self, Descriptor, Manifest, ModelConfig};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::error::{ApiCode, ApiError};
use crate::record::ModelRecord;
use crate::store::{self, Change, Progress, Store, StoreError, Versioned, model_key};

/// Names shown in a hint, at most.
const HINT_NAMES: usize = 10;
/// Version numbers that are tried in turn while others take them.
const NUMBERS_TRIED: usize = 20;
/// How long to wait until what was written is seen by the watch.
const SEEN_WITHIN: Duration = Duration::from_secs(5);

type Models = BTreeMap<String, Versioned<Arc<ModelRecord>>>;

/// Which version a model becomes.
#[derive(Debug, Clone)]
pub(crate) enum Numbering<'a> {
    /// This one.
    Exactly(ModelVersion),
    /// The next number.
    Next,
    /// The next number, unless the job has made a version before.
    OnceFor(&'a JobId),
}

/// The model registry; cheap to clone.
#[derive(Debug, Clone)]
pub struct Registry {
    store: Store,
    models: Arc<RwLock<Models>>,
    progress: Arc<Progress>,
}

impl Registry {
    /// Loads every model version and follows changes.
    ///
    /// # Errors
    /// When the bucket cannot be read.
    pub async fn start(store: Store, token: CancellationToken) -> Self {
        let changes = store.models.follow(token.clone());
        let registry = Self { store, models: Arc::default(), progress: Arc::default() };
        let (current, is_current) = tokio::sync::oneshot::channel();
        let follower = registry.clone();
        tokio::spawn(token.run_until_cancelled_owned(async move {
            follower.follow(changes, current).await;
        }));
        // An error means that the broker is being stopped.
        let _ = is_current.await;
        registry
    }

    async fn follow(
        &self,
        mut changes: mpsc::Receiver<Change<ModelRecord>>,
        current: tokio::sync::oneshot::Sender<()>,
    ) {
        let mut current = Some(current);
        while let Some(change) = changes.recv().await {
            match change {
                Change::Put(key, Versioned { value, revision }, _) => {
                    let entry = Versioned { value: Arc::new(value), revision };
                    let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
                    models.insert(key.clone(), entry);
                    drop(models);
                    self.progress.note(&key, revision);
                }
                Change::Unreadable(key, revision) => self.progress.note_unreadable(&key, revision),
                Change::Gone(key, revision) => {
                    self.models.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
                    self.progress.note(&key, revision);
                }
                Change::Anew => {
                    self.models.write().unwrap_or_else(PoisonError::into_inner).clear();
                    self.progress.begin_anew();
                }
                Change::Current => {
                    if let Some(current) = current.take() {
                        let _ = current.send(());
                    }
                }
            }
        }
    }

    /// A model version; the one registered last when the query names none. That there is none is
    /// said when everything that is stored was looked through.
    ///
    /// # Errors
    /// [`ApiCode::UnknownModel`] with what there is; [`ApiCode::Unavailable`].
    pub async fn find(&self, query: &ModelQuery) -> Result<Arc<ModelRecord>, ApiError> {
        self.look_up(query).await?.ok_or_else(|| unknown(query, &self.read()))
    }

    /// [`Registry::find`], for who has another answer when there is none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub(crate) async fn look_up(
        &self,
        query: &ModelQuery,
    ) -> Result<Option<Arc<ModelRecord>>, StoreError> {
        if let Some(found) = self.known(query) {
            return Ok(Some(found));
        }
        self.read_all().await?;
        Ok(self.known(query))
    }

    fn known(&self, query: &ModelQuery) -> Option<Arc<ModelRecord>> {
        let models = self.read();
        let found = match &query.version {
            Some(version) => models.get(&model_key(&query.name, version)),
            None => versions(&models, &query.name).max_by_key(|entry| entry.revision),
        };
        found.map(|entry| entry.value.clone())
    }

    /// The version that a job made, if it made one.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub(crate) async fn made_by(
        &self,
        job: &JobId,
    ) -> Result<Option<Arc<ModelRecord>>, StoreError> {
        self.read_all().await?;
        Ok(made_by(&self.read(), job))
    }

    /// Waits until everything that is stored is known here.
    async fn read_all(&self) -> Result<(), StoreError> {
        self.store.models.told(&self.progress, SEEN_WITHIN).await
    }

    /// How far the bucket of models is known.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Every version of every model, in any order.
    pub(crate) fn records(&self) -> Vec<Arc<ModelRecord>> {
        self.read().values().map(|entry| entry.value.clone()).collect()
    }

    /// Every version of every model, by name, the newest first.
    pub fn list(&self) -> Vec<ModelRecord> {
        let models = self.read();
        let mut entries: Vec<_> = models.values().collect();
        entries.sort_by(|a, b| {
            let names = a.value.reference.name.cmp(&b.value.reference.name);
            names.then(b.revision.cmp(&a.revision))
        });
        entries.into_iter().map(|entry| (*entry.value).clone()).collect()
    }

    /// Stores a version's blobs and its record.
    ///
    /// The same name, version and bytes again give the same record.
    ///
    /// # Errors
    /// [`ApiCode::Conflict`] when the version is registered otherwise, or the last number is taken;
    /// [`ApiCode::Unavailable`].
    pub(crate) async fn add(
        &self,
        name: &ModelName,
        numbering: Numbering<'_>,
        onnx: Bytes,
        training: Option<BlobRef>,
        engine: Option<&str>,
        config: ModelConfig,
    ) -> Result<ModelRecord, ApiError> {
        let layer = self.store.blobs.put(onnx).await.map_err(StoreError::from)?;
        let mut layers = vec![descriptor(artifact::ONNX_MEDIA_TYPE, &layer)];
        if let Some(blob) = &training {
            layers.push(descriptor(artifact::ONNX_TRAINING_MEDIA_TYPE, blob));
        }
        let config_blob = self.put(config.to_bytes().into()).await?;
        let manifest = Manifest {
            schema_version: 2,
            media_type: artifact::MANIFEST_MEDIA_TYPE.to_owned(),
            artifact_type: artifact::ARTIFACT_TYPE.to_owned(),
            config: descriptor(artifact::CONFIG_MEDIA_TYPE, &config_blob),
            layers,
        };
        let digest = self.put(manifest.to_bytes().into()).await?.digest;
        // What was stored first may have become old meanwhile.
        for blob in [&layer, &config_blob].into_iter().chain(&training) {
            if !self.store.blobs.renew(&blob.digest).await.map_err(StoreError::from)? {
                return Err(ApiError::new(
                    ApiCode::Unavailable,
                    format!("blob {} of model {name} is not in the store any more", blob.digest),
                    "register the model again",
                ));
            }
        }
        for _ in 0..NUMBERS_TRIED {
            let chosen = match &numbering {
                Numbering::Exactly(version) => version.clone(),
                Numbering::Next => next_version(&self.read(), name)?,
                Numbering::OnceFor(job) => {
                    // By one look at both: whoever registers the job's result meanwhile takes
                    // the number.
                    let models = self.read();
                    match made_by(&models, job) {
                        Some(made) => return Ok((*made).clone()),
                        None => next_version(&models, name)?,
                    }
                }
            };
            let record = ModelRecord {
                reference: ModelRef { name: name.clone(), version: chosen, digest: digest.clone() },
                onnx: layer.clone(),
                training: training.clone(),
                engine: engine.map(str::to_owned),
                config: config.clone(),
                registered_at: store::now(),
            };
            let fixed = matches!(numbering, Numbering::Exactly(_));
            if let Some(record) = self.create(record, fixed).await? {
                return Ok(record);
            }
            // Someone took the number: the next one.
            tracing::debug!(%name, "version number was taken");
        }
        Err(ApiError::new(
            ApiCode::Unavailable,
            format!("others took {NUMBERS_TRIED} version numbers of model {name} in turn"),
            "try again, or name the version",
        ))
    }

    /// `None` when the version was taken by someone else and another one will do.
    async fn create(
        &self,
        record: ModelRecord,
        fixed: bool,
    ) -> Result<Option<ModelRecord>, ApiError> {
        let key = model_key(&record.reference.name, &record.reference.version);
        match self.store.models.create(&key, &record).await {
            Ok(revision) => {
                self.await_seen(revision).await;
                Ok(Some(record))
            }
            Err(StoreError::Conflict { .. }) => {
                let stored = self.store.models.get(&key).await?;
                if let Some(stored) = &stored {
                    self.await_seen(stored.revision).await;
                }
                match stored {
                    Some(stored) if stored.value.reference == record.reference => {
                        Ok(Some(stored.value))
                    }
                    Some(stored) if fixed => Err(taken(&stored.value, &record)),
                    Some(_) | None => Ok(None),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Removes a version. Its blobs are as young as new ones then, so that who is at work with it
    /// can go on for a while.
    ///
    /// # Errors
    /// [`ApiCode::UnknownModel`], [`ApiCode::Unavailable`].
    pub async fn remove(&self, query: &ModelQuery) -> Result<(), ApiError> {
        let record = self.find(query).await?;
        let key = model_key(&record.reference.name, &record.reference.version);
        if let Err(error) = self.renew_blobs(&record).await {
            tracing::warn!(model = name_of(&record), %error, "blobs of a model may go with it");
        }
        self.store.models.remove(&key).await?;
        // Later the watch will see it all the same.
        self.progress.until(SEEN_WITHIN, |_| !self.read().contains_key(&key)).await;
        Ok(())
    }

    async fn renew_blobs(&self, record: &ModelRecord) -> Result<(), StoreError> {
        let blobs = &self.store.blobs;
        let layers = manifest_digests(blobs, &record.reference.digest).await?.unwrap_or_default();
        for digest in record.digests().chain(&layers) {
            blobs.renew(digest).await?;
        }
        Ok(())
    }

    async fn put(&self, bytes: Bytes) -> Result<BlobRef, ApiError> {
        Ok(self.store.blobs.put(bytes).await.map_err(StoreError::from)?)
    }

    async fn await_seen(&self, revision: u64) {
        if let Err(error) = self.store.models.told_to(revision, &self.progress, SEEN_WITHIN).await {
            tracing::warn!(%error, "a model is registered and not known here yet");
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Models> {
        self.models.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The version that a job made, if it made one.
fn made_by(models: &Models, job: &JobId) -> Option<Arc<ModelRecord>> {
    let made = |record: &ModelRecord| {
        record.config.lineage.as_ref().is_some_and(|lineage| lineage.job == job.as_str())
    };
    models.values().find(|entry| made(&entry.value)).map(|entry| entry.value.clone())
}

fn next_version(models: &Models, name: &ModelName) -> Result<ModelVersion, ApiError> {
    let numbers = versions(models, name)
        .filter_map(|entry| entry.value.reference.version.as_str().parse::<u64>().ok());
    let last = numbers.max().unwrap_or_default();
    let next = last.checked_add(1).ok_or_else(|| {
        ApiError::new(
            ApiCode::Conflict,
            format!("model {name} has version {last}, after which there is no number"),
            "name the version, or remove that one first",
        )
    })?;
    Ok(ModelVersion::parse(&next.to_string()).expect("a number is a version"))
}

fn versions<'a>(
    models: &'a Models,
    name: &ModelName,
) -> impl Iterator<Item = &'a Versioned<Arc<ModelRecord>>> {
    let prefix = format!("{name}.");
    models
        .range(prefix.clone()..)
        .take_while(move |(key, _)| key.starts_with(&prefix))
        .map(|(_, entry)| entry)
}

fn descriptor(media_type: &str, blob: &BlobRef) -> Descriptor {
    let Size(size) = blob.size;
    Descriptor { media_type: media_type.to_owned(), digest: blob.digest.to_string(), size }
}

/// A version is registered already, and not as this.
fn taken(stored: &ModelRecord, record: &ModelRecord) -> ApiError {
    let other = if stored.onnx.digest != record.onnx.digest {
        "bytes"
    } else if stored.config != record.config {
        "labels, description or config"
    } else {
        "files beside the model"
    };
    ApiError::new(
        ApiCode::Conflict,
        format!("version {} is registered with other {other}", name_of(stored)),
        "choose another version, or remove that one first",
    )
}

fn name_of(record: &ModelRecord) -> String {
    format!("{}:{}", record.reference.name, record.reference.version)
}

fn unknown(query: &ModelQuery, models: &Models) -> ApiError {
    let mut same: Vec<_> = versions(models, &query.name).collect();
    same.sort_by_key(|entry| std::cmp::Reverse(entry.revision));
    if let (Some(version), false) = (&query.version, same.is_empty()) {
        let newest = same.iter().take(HINT_NAMES);
        let mut newest: Vec<&str> =
            newest.map(|entry| entry.value.reference.version.as_str()).collect();
        if same.len() > HINT_NAMES {
            newest.push("...");
        }
        return ApiError::new(
            ApiCode::UnknownModel,
            format!("model {} has no version {version}", query.name),
            format!("its versions are: {}", newest.join(", ")),
        );
    }
    let mut names: Vec<&str> =
        models.values().map(|entry| entry.value.reference.name.as_str()).collect();
    names.dedup();
    names.truncate(HINT_NAMES);
    let hint = if names.is_empty() {
        "no model is registered yet: train one, or 'dunlin models push'".to_owned()
    } else {
        format!("models are: {}", names.join(", "))
    };
    ApiError::new(ApiCode::UnknownModel, format!("no model {} is registered", query.name), hint)
}

/// Every digest that a manifest refers to; none when it is not stored.
pub(crate) async fn manifest_digests(
    blobs: &Blobs,
    manifest: &Digest,
) -> Result<Option<Vec<Digest>>, StoreError> {
    match blobs.get_by_digest(manifest).await {
        Ok(text) => Ok(Some(Digest::all_in(&String::from_utf8_lossy(&text)).collect())),
        Err(BlobError::NotFound { .. }) if !blobs.is_stored(manifest).await? => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A blob of the registry by digest.
pub(crate) fn blob_error(digest: &Digest) -> ApiError {
    ApiError::new(
        ApiCode::UnknownModel,
        format!("no blob {digest} is stored"),
        "ask for a digest that a record names",
    )
}

#[cfg(test)]
mod tests;
