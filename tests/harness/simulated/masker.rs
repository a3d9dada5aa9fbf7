//! A device's part in a secure aggregation, kept in memory alone: who is killed has forgotten it.

use jobs::id::{JobId, RoundNumber};
use jobs::spec::{Levels, Purpose, TaskId};
use models::params::Layout;
use secagg::{Client, Quantisation, Rounding, Secret};
use serde::Serialize;

/// One round of one device.
pub(super) struct Masker {
    job: JobId,
    round: RoundNumber,
    client: Client,
    /// Its update, and behind it the weight.
    levels: Vec<u32>,
}

impl Masker {
    /// Every value moved by `number`, with as much weight as counts of so many examples.
    pub(super) fn new(
        (job, round): (JobId, RoundNumber),
        parameters: &[u8],
        (number, examples): (u32, u64),
        levels: Levels,
    ) -> Self {
        let values = Layout::of_whole(parameters).unwrap().total_len();
        let weight = u32::try_from(examples).unwrap().min(levels.weight_max);
        let quantisation = Quantisation::new(levels.clip, levels.devices, levels.weight_max);
        let moved = vec![f32::from(u16::try_from(number).unwrap()); values];
        let mut vector = Vec::with_capacity(values + 1);
        let quantisation = quantisation.unwrap();
        quantisation.encode(0, &moved, weight, &Rounding::Nearest, &mut vector).unwrap();
        vector.push(weight);
        Self { client: Client::new(Secret::new(seed(number))), job, round, levels: vector }
    }

    pub(super) fn is_of(&self, task: &TaskId) -> bool {
        (&self.job, self.round) == (&task.job, task.round)
    }

    pub(super) fn keys(&self) -> Vec<u8> {
        json(&self.client.keys())
    }

    /// What is answered to a question, or why nothing is.
    pub(super) fn answer(&mut self, stage: Purpose, question: &[u8]) -> Result<Vec<u8>, String> {
        fn read<T: serde::de::DeserializeOwned>(question: &[u8]) -> T {
            serde_json::from_slice(question).unwrap()
        }
        let answer = match stage {
            Purpose::Share => self.client.share(&read(question)).map(|shares| json(&shares)),
            Purpose::Mask => self.client.mask(&read(question)).map(|masks| {
                let mut masked = self.levels.clone();
                masks.apply(0, &mut masked);
                masked.iter().flat_map(|value| value.to_le_bytes()).collect()
            }),
            Purpose::Unmask
            | Purpose::Train
            | Purpose::Evaluate
            | Purpose::Infer
            | Purpose::Telemetry => self.client.unmask(&read(question)).map(|shares| json(&shares)),
        };
        answer.map_err(|refusal| refusal.to_string())
    }
}

fn json(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).unwrap()
}

/// Another one each time. It hides nothing: what these devices send is known.
fn seed(number: u32) -> [u8; 32] {
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let parts = [&number.to_le_bytes()[..], &std::process::id().to_le_bytes(), &now.to_le_bytes()];
    let mut seed = [0; 32];
    seed[..24].copy_from_slice(&parts.concat());
    seed
}
