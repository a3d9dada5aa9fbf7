//! What a training begins with.

use super::Controls;
use crate::id::BlobRef;

/// The first parameters, and what goes with them.
#[derive(Debug, Clone)]
pub struct Start {
    /// The parameters.
    pub parameters: BlobRef,
    /// The same as they travel to devices, where they are encoded.
    pub encoded: Option<BlobRef>,
    /// What the strategy keeps with them, of a job before.
    pub server_state: Option<BlobRef>,
    /// What devices keep of that job, where the strategy goes on with it.
    pub controls: Option<Controls>,
    /// Rounds of jobs that this one goes on from: what is drawn at random goes on behind them.
    pub rounds_before: u32,
    /// By this number, which nobody else knows, a private job draws who takes part where it leaves
    /// that to chance.
    pub secret_seed: Option<u64>,
}

impl Start {
    /// Parameters, and nothing more.
    pub fn of(parameters: BlobRef) -> Self {
        let (encoded, server_state, controls) = (None, None, None);
        let (rounds_before, secret_seed) = (0, None);
        Self { parameters, encoded, server_state, controls, rounds_before, secret_seed }
    }
}

/// Decides all that is drawn at random in a round, but for who takes part: of the seed of a job, and
/// the number of the round where the jobs' before are counted too.
pub fn seed_of(seed: u64, round: u32) -> u64 {
    seed ^ (u64::from(round) << 32)
}
