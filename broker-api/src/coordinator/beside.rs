//! Work that is done beside a training's owner, which hears of what comes of it.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use jobs::id::RoundNumber;
use jobs::report::{Failure, FailureCode};
use jobs::round;
use jobs::training::Event;

use super::owner::Owner;

impl Owner {
    /// Does work of a round; the owner hears of the event that it makes, or that is made of a
    /// fault of the program.
    pub(super) fn beside(
        &self,
        round: RoundNumber,
        at_fault: impl FnOnce(Failure) -> round::Event + Send + 'static,
        work: impl Future<Output = round::Event> + Send + 'static,
    ) {
        let done = self.done.clone();
        self.core.spawn(async move {
            let event = whatever_happens(work, at_fault).await;
            // Nobody listens when the training was let go of.
            let _ = done.send(Event::Round { round, event }).await;
        });
    }
}

/// What work makes, or what is made of a panic in it: whoever waits for an answer has one.
pub(super) async fn whatever_happens<T>(
    work: impl Future<Output = T>,
    at_fault: impl FnOnce(Failure) -> T,
) -> T {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|_| {
        let text = "the broker met a fault of the program: see its log";
        at_fault(Failure::new(FailureCode::Internal, text))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer_too() {
        let told = |failure: Failure| failure.code.as_str().to_owned();
        let done = async { "done".to_owned() };
        assert_eq!(whatever_happens(done, told).await, "done");
        let panics = async {
            tokio::task::yield_now().await;
            panic!("a fault");
        };
        assert_eq!(whatever_happens(panics, told).await, "internal");
    }
}
