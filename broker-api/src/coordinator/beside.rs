//! Work that is done beside a training's owner, which hears of what comes of it.

use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use jobs::id::RoundNumber;
use jobs::report::{Failure, FailureCode};
use jobs::round;
use jobs::training::Event;

use super::owner::Owner;

impl Owner {
    /// Does work of a round; the owner hears of it as an event, of a fault of the program too.
    pub(super) fn beside<T: Send + 'static>(
        &self,
        round: RoundNumber,
        work: impl Future<Output = T> + Send + 'static,
        at_fault: fn(Failure) -> T,
        event: impl FnOnce(T) -> round::Event + Send + 'static,
    ) {
        let done = self.done.clone();
        let made = whatever_happens(work, at_fault);
        self.core.spawn(async move {
            let event = event(made.await);
            // Nobody listens when the training was let go of.
            let _ = done.send(Event::Round { round, event }).await;
        });
    }
}

/// What work makes, or what is made of a panic in it: whoever waits for an answer has one.
pub(super) fn whatever_happens<T>(
    work: impl Future<Output = T>,
    at_fault: impl FnOnce(Failure) -> T,
) -> impl Future<Output = T> {
    let work = AssertUnwindSafe(Box::pin(work)).catch_unwind();
    work.map(|made| {
        made.unwrap_or_else(|_| {
            let text = "the broker met a fault of the program: see its log";
            at_fault(Failure::new(FailureCode::Internal, text))
        })
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
