//! What a test device does in a round whose updates are masked.

use jobs::id::{Attempt, RoundNumber};
use jobs::report::{ExchangeReport, ReportBody};
use jobs::spec::{Levels, MaskedTrainTask, Purpose, Task, TaskId};
use models::federated::robust::norm_bound::NormBound;
use models::params::Parameters;
use secagg::{Client, Keys, Quantisation, Rounding, Secret};

use super::Agent;

/// A device's part in a session, and its update in levels.
pub(super) struct Masked {
    client: Client,
    levels: Vec<u32>,
}

/// Levels of an update that adds a number to every parameter, shortened to a norm if there is one.
pub(crate) fn levels(
    given: &Parameters,
    step: f32,
    weight: u32,
    levels: Levels,
    norm: Option<f64>,
) -> Vec<u32> {
    let quantisation = Quantisation::new(levels.clip, levels.devices, levels.weight_max).unwrap();
    let values = given.items().iter().flat_map(|item| &item.values);
    let mut moved: Vec<f32> = values.map(|value| (value + step) - value).collect();
    let found = moved.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt();
    if let Some(norm) = norm {
        NormBound::new(norm).unwrap().shorten(found, &mut moved);
    }
    let mut vector = Vec::new();
    quantisation.encode(0, &moved, weight, &Rounding::Nearest, &mut vector).unwrap();
    vector.push(weight);
    if levels.within {
        vector.push(u32::from(norm.is_none_or(|norm| found <= norm)));
    }
    vector
}

/// A device at the beginning of a session.
fn client(device: &str, round: RoundNumber, attempt: Attempt) -> Client {
    let mut seed = [0; 32];
    seed[..device.len()].copy_from_slice(device.as_bytes());
    seed[30] = u8::try_from(round.0).unwrap();
    seed[31] = u8::try_from(attempt.0).unwrap();
    Client::new(Secret::new(seed))
}

/// What a device says first in the first round.
pub(crate) fn keys(device: &str) -> Keys {
    client(device, RoundNumber(1), Attempt(1)).keys()
}

impl Agent {
    /// Makes the same update as unmasked, and sends keys.
    pub(super) async fn train_masked(&self, task: &Task, work: &MaskedTrainTask) -> ReportBody {
        let bytes = self.blobs.get(&work.train.parameters).await.unwrap();
        let parameters = Parameters::from_safetensors(&bytes).unwrap();
        let examples = u32::try_from(super::examples(&self.hello.device)).unwrap();
        let weight = examples.min(work.levels.weight_max);
        let norm = work.train.local.update_norm_max;
        let levels = levels(&parameters, self.number(), weight, work.levels, norm);
        let TaskId { round, attempt, .. } = task.id;
        self.given.send_modify(|given| drop(given.insert(round.0, parameters)));
        let client = client(self.hello.device.as_str(), round, attempt);
        let keys = serde_json::to_vec(&client.keys()).unwrap();
        self.masked.lock().unwrap().insert(round.0, Masked { client, levels });
        self.upload(task, keys).await
    }

    /// Answers a stage.
    pub(super) async fn exchange(&self, task: &Task, question: &[u8]) -> ReportBody {
        let TaskId { job, round, purpose, attempt } = &task.id;
        let answer = {
            let mut masked = self.masked.lock().unwrap();
            let Masked { client, levels } = masked.get_mut(&round.0).unwrap();
            if *purpose == Purpose::Share {
                let roster = serde_json::from_slice(question).unwrap();
                serde_json::to_vec(&client.share(&roster).unwrap()).unwrap()
            } else if *purpose == Purpose::Mask {
                let inbox = serde_json::from_slice(question).unwrap();
                let mut vector = levels.clone();
                client.mask(&inbox).unwrap().apply(0, &mut vector);
                vector.iter().flat_map(|value| value.to_le_bytes()).collect()
            } else {
                let request = serde_json::from_slice(question).unwrap();
                serde_json::to_vec(&client.unmask(&request).unwrap()).unwrap()
            }
        };
        let device = &self.hello.device;
        let name = format!("exchange/{job}/{round}/{}/{device}/{attempt}", purpose.as_str());
        let message = self.blobs.put_named(name, answer.into()).await.unwrap();
        ReportBody::Exchanged(ExchangeReport { message })
    }
}
