//! Parameters as they travel to devices, beside the exact ones.
//!
//! They are encoded once a round, after the exact ones are stored and before the state names both.
//! An owner that takes over in between makes both again, under names of its own; from the same
//! updates they are the same bits.

use jobs::id::BlobRef;
use jobs::round::Aggregate;
use jobs::spec::{Download, TrainSpec};
use link::blobs::Blobs;
use models::federated::encoding::Format;
use models::params::Layout;

use super::updates::{Updates, encode};

/// Values that share a scale: few, as layers of different sizes lie side by side.
const BLOCK: usize = 256;

/// How the new parameters of a round are to travel.
pub(super) struct Encoding {
    format: Option<Format>,
    /// Decides how integers are rounded.
    seed: u64,
    name: String,
}

impl Encoding {
    /// As a job says; the seed is that of the round that made the parameters.
    pub(super) fn of(spec: &TrainSpec, seed: u64, name: String) -> Self {
        let format = match spec.download {
            Download::Plain => None,
            Download::Float32 => Some(Format::Float32),
            Download::Float16 => Some(Format::Float16),
            Download::BFloat16 => Some(Format::BFloat16),
            Download::Int8 => Some(Format::Int8 { block: BLOCK }),
        };
        Self { format, seed, name }
    }

    /// Stores parameters of a model as they are to travel; where that fails, they travel as they
    /// are.
    pub(super) async fn store(
        self,
        blobs: &Blobs,
        model: &Layout,
        parameters: &BlobRef,
    ) -> Option<BlobRef> {
        let encoded = encode(blobs, model, parameters, (self.format?, self.seed), self.name).await;
        encoded
            .inspect_err(|error| tracing::warn!(%error, "parameters travel without an encoding"))
            .ok()
    }

    /// The same of new parameters.
    pub(super) async fn store_new(self, updates: &Updates, made: Aggregate) -> Aggregate {
        if self.format.is_none() {
            return made;
        }
        let Some(model) = updates.model().await else { return made };
        let encoded = self.store(updates.blobs(), &model, &made.parameters).await;
        Aggregate { encoded, ..made }
    }
}
