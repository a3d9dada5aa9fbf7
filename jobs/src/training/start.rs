//! What a training begins with.

use crate::id::BlobRef;

/// The first parameters, and what goes with them.
#[derive(Debug, Clone)]
pub struct Start {
    /// The parameters.
    pub parameters: BlobRef,
    /// The same as they travel to devices, where they are encoded.
    pub encoded: Option<BlobRef>,
    /// By this number, which nobody else knows, a private job draws who takes part where it leaves
    /// that to chance.
    pub secret_seed: Option<u64>,
}

impl Start {
    /// Parameters, and nothing more.
    pub fn of(parameters: BlobRef) -> Self {
        Self { parameters, encoded: None, secret_seed: None }
    }
}
