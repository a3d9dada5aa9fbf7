//! A training's state as it is stored, each write of it as it is made: what a broker has written
//! is known here before the store has told it so.

use std::borrow::Cow;
use std::io::Read as _;
use std::time::Duration;

use async_nats::{Client, Subscriber};
use flate2::read::GzDecoder;
use futures::{FutureExt as _, StreamExt as _};
use serde_json::Value;

use crate::process::PATIENCE;

/// The writes of one training.
#[derive(Debug)]
pub struct Writes {
    messages: Subscriber,
}

impl Writes {
    /// Those from now on.
    pub async fn of(client: &Client, job: &str) -> Self {
        let messages = client.subscribe(format!("$KV.trainings.{job}")).await.unwrap();
        client.flush().await.unwrap();
        Self { messages }
    }

    /// The next one; `None` when the training is removed, which is the last that happens to it.
    ///
    /// # Panics
    /// When there is none in time: an owner writes at least once a second.
    pub async fn next(&mut self) -> Option<Stored> {
        let message = tokio::time::timeout(PATIENCE, self.messages.next()).await;
        let message = message.expect("a training is written in time").unwrap();
        (!message.payload.is_empty()).then(|| Stored::read(&message.payload))
    }

    /// Forgets those that have come and were not looked at: the next one is new.
    pub fn forget(&mut self) {
        while self.messages.next().now_or_never().is_some() {}
    }

    /// The next one, if it comes in this time and is not the removal.
    pub async fn within(&mut self, time: Duration) -> Option<Stored> {
        tokio::time::timeout(time, self.next()).await.ok().flatten()
    }

    /// The next one that is as asked for; `None` when the training is removed before.
    pub async fn find(&mut self, mut wanted: impl FnMut(&Stored) -> bool) -> Option<Stored> {
        loop {
            let stored = self.next().await?;
            if wanted(&stored) {
                return Some(stored);
            }
        }
    }
}

/// A training as it is stored.
#[derive(Debug, Clone)]
pub struct Stored(pub Value);

impl Stored {
    /// What a value in the bucket says: JSON, or gzip of it where it is long.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let json = if bytes.starts_with(&[0x1f, 0x8b]) {
            let mut json = Vec::new();
            GzDecoder::new(bytes).read_to_end(&mut json).unwrap();
            Cow::Owned(json)
        } else {
            Cow::Borrowed(bytes)
        };
        Self(serde_json::from_slice(&json).unwrap())
    }

    /// The name of the broker that owns it, and how many did.
    pub fn owner(&self) -> (&str, u64) {
        (self.0["owner"].as_str().unwrap_or_default(), self.0["term"].as_u64().unwrap())
    }

    /// How often its owners have written it before.
    pub fn write(&self) -> u64 {
        self.0["write"].as_u64().unwrap()
    }

    /// Where it is: `preparing` before there is a machine, then the phase of the job's machine, and
    /// where that is in a round the round's, or the stage of its secure aggregation.
    pub fn phase(&self) -> &str {
        let machine = &self.0["machine"];
        let round = &machine["round"]["phase"];
        let phase = match machine["phase"]["type"].as_str() {
            None => return "preparing",
            Some("training") => round["type"].as_str().unwrap(),
            Some(phase) => return phase,
        };
        if phase == "exchanging" { round["purpose"].as_str().unwrap() } else { phase }
    }

    /// The number of the round at work, or of the last one.
    pub fn round(&self) -> u64 {
        self.0["machine"]["number"].as_u64().unwrap_or_default()
    }

    /// Devices that are asked something in this phase, in those that have answered and the others.
    pub fn devices(&self) -> (Vec<String>, Vec<String>) {
        let list = match self.phase() {
            "collecting" | "aggregating" => "members",
            "evaluating" => "judges",
            "share" | "mask" | "unmask" => "speakers",
            _ => return (Vec::new(), Vec::new()),
        };
        let members = self.0["machine"]["round"][list].as_array();
        let members = members.map_or(&[][..], Vec::as_slice).iter();
        let (answered, others): (Vec<&Value>, Vec<&Value>) =
            members.partition(|member| member["standing"]["answered"].is_object());
        let names = |members: Vec<&Value>| {
            members.iter().map(|it| it["device"].as_str().unwrap().to_owned()).collect()
        };
        (names(answered), names(others))
    }

    /// Whether some devices have answered in this phase, and others not yet.
    pub fn is_partway(&self) -> bool {
        let (answered, others) = self.devices();
        !answered.is_empty() && !others.is_empty()
    }
}
