//! Room in memory for requests, of HTTP and NATS together.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{ApiCode, ApiError};

/// Bodies of the largest size that are held at the same time.
const LARGEST_HELD: usize = 4;
/// JSON above this length is parsed one body at a time: numbers take up to eight times their text.
const LARGE_JSON: usize = 1024 * 1024;

/// The room that there is; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    size: usize,
    left: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

/// The room that one request takes, until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Place(Option<OwnedSemaphorePermit>);

impl Room {
    /// Room for a few bodies of the largest size.
    pub(crate) fn new(body_bytes: usize) -> Self {
        let size = body_bytes.saturating_mul(LARGEST_HELD).min(Semaphore::MAX_PERMITS);
        let (left, turns) = (Arc::new(Semaphore::new(size)), Arc::new(Semaphore::new(1)));
        Self { size, left, turns }
    }

    /// Takes room for more of a request; it never waits for it while it holds some.
    ///
    /// # Errors
    /// [`ApiCode::Overloaded`] when there is none.
    pub(crate) fn take(&self, place: &mut Place, bytes: usize) -> Result<(), ApiError> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let more = self.left.clone().try_acquire_many_owned(bytes).map_err(|_| {
            ApiError::new(
                ApiCode::Overloaded,
                format!("requests of {} bytes are being read or answered already", self.size),
                "try again in a moment",
            )
        })?;
        if let Some(taken) = &mut place.0 {
            taken.merge(more);
        } else {
            place.0 = Some(more);
        }
        Ok(())
    }

    /// As [`Room::take`], for an answer, which may be larger than all of the room: then it takes that.
    ///
    /// # Errors
    /// As [`Room::take`].
    pub(crate) fn take_most(&self, place: &mut Place, bytes: usize) -> Result<(), ApiError> {
        self.take(place, bytes.min(self.size))
    }

    /// Waits for the turn to parse JSON of this length, which lasts until the result is dropped.
    pub(crate) async fn turn(&self, length: usize) -> Option<OwnedSemaphorePermit> {
        if length <= LARGE_JSON {
            return None;
        }
        self.turns.clone().acquire_owned().await.ok()
    }
}
