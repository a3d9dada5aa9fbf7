//! New parameters of a round are made beside its owner, which hears of it when they are stored.

use jobs::id::{DeviceId, RoundNumber};
use jobs::report::UpdateReport;
use jobs::round::{self, Aggregate, Exchange};
use jobs::training::Event;

use super::beside::whatever_happens;
use super::download::Encoding;
use super::owner::Owner;
use super::state::{encoded_name, parameters_name, server_state_name, unknown};
use super::updates::{How, Unmade};

impl Owner {
    /// Makes new parameters of updates.
    pub(super) fn aggregate(
        &self,
        round: RoundNumber,
        updates: Vec<(DeviceId, UpdateReport)>,
        stale: Vec<(DeviceId, round::Base)>,
    ) {
        let (fold, names) = (self.updates.clone(), self.names(round));
        let how = How::of(&self.machine, &self.secret);
        self.make(round, async move { fold.aggregate(names, &updates, &stale, how).await });
    }

    /// Makes new parameters of masked updates.
    pub(super) fn unmask(&self, round: RoundNumber, exchange: Exchange) {
        let Some(terms) = self.terms(round) else { return };
        let (updates, names) = (self.updates.clone(), self.names(round));
        let how = How::of(&self.machine, &self.secret);
        let devices = self.devices_max();
        self.make(
            round,
            async move { updates.unmask(names, &terms, devices, &exchange, how).await },
        );
    }

    /// Of the parameters, and of what a server optimizer keeps with them.
    fn names(&self, round: RoundNumber) -> (String, String) {
        let term = self.stored.term;
        (parameters_name(&self.job, round.0, term), server_state_name(&self.job, round.0, term))
    }

    /// Tells what comes of this. When the training was let go of meanwhile, nobody knows what was
    /// stored but whoever stored it.
    fn make(
        &self,
        round: RoundNumber,
        made: impl Future<Output = Result<Aggregate, Unmade>> + Send + 'static,
    ) {
        let (core, job, term) = (self.core.clone(), self.job.clone(), self.stored.term);
        let (updates, done) = (self.updates.clone(), self.done.clone());
        let name = encoded_name(&job, round.0, term);
        let download = Encoding::of(&self.spec, self.machine.seed(round), name);
        let work = async move {
            match made.await {
                Ok(made) => round::Event::Aggregated(download.store_new(&updates, made).await),
                Err(Unmade { failure, without: Some(device) }) => {
                    round::Event::UpdateGone { device, failure }
                }
                Err(Unmade { failure, without: None }) => {
                    round::Event::AggregationFailed { failure }
                }
            }
        };
        let at_fault = |failure| round::Event::AggregationFailed { failure };
        let made = whatever_happens(work, at_fault);
        self.core.spawn(self.making.track_future(async move {
            let event = made.await;
            if done.send(Event::Round { round, event }).await.is_err() {
                core.remove(&job, unknown(&job, round.0, term)).await;
            }
        }));
    }
}
