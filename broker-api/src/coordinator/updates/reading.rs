//! When updates are read: each at its turn, so that it is read once.

use std::sync::atomic::Ordering;
use std::time::Duration;

use link::blobs::{BlobError, BlobReader};
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, sleep_until};

use super::{ReadError, Updates};
use crate::coordinator::fold::{Fold, Part};

/// How often an update is read that is being replaced, and the rest in between, times the attempt.
const ATTEMPTS: u32 = 3;
const REST: Duration = Duration::from_millis(100);
/// How long an update waits for its turn, since the last turn of another.
pub(super) const PATIENCE: Duration = Duration::from_millis(20);
/// And a second more for so many bytes of it: about what reading it in vain takes.
const PATIENCE_BYTES_PER_SECOND: u64 = 100_000_000;
/// Bytes that are handed over to the thread at once, but at an update's end: it is woken each time.
const HANDED_OVER_BYTES: usize = 200 * 1024;

impl Updates {
    /// Reads an update to its end and adds it, now or when its turn comes. A device that is offered
    /// a task again may store its update again meanwhile: then it is read anew.
    pub(super) async fn read(&self, part: &Part) -> Result<(), ReadError> {
        let mut attempt = 1;
        loop {
            let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
            let read = self.read_as(ticket, part).await;
            if read.is_err() {
                self.tell(move |fold| fold.forget(ticket)).await;
            }
            self.turn.notify_waiters();
            match read {
                Err(ReadError::Blob(BlobError::Damaged { .. } | BlobError::NotFound { .. }))
                    if attempt < ATTEMPTS =>
                {
                    tokio::time::sleep(REST * attempt).await;
                    attempt += 1;
                }
                read => return read,
            }
        }
    }

    async fn read_as(&self, ticket: u64, part: &Part) -> Result<(), ReadError> {
        let _permit = self.opened(ticket, part).await?;
        // A thousand may wait for their turn, and need none of this yet.
        Box::pin(self.read_whole(ticket, part)).await
    }

    async fn read_whole(&self, ticket: u64, part: &Part) -> Result<(), ReadError> {
        let mut reader = self.reader(part).await?;
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        while let Some(piece) = reader.next().await? {
            bytes += piece.len();
            pieces.push(piece);
            if bytes >= HANDED_OVER_BYTES {
                let pieces = std::mem::take(&mut pieces);
                bytes = 0;
                self.tell(move |fold| fold.read_all(ticket, &pieces)).await;
            }
        }
        let last = move |fold: &mut Fold| {
            fold.read_all(ticket, &pieces);
            fold.close(ticket)
        };
        Ok(self.ask(last).await??)
    }

    /// Where an update is read from.
    pub(super) async fn reader(&self, part: &Part) -> Result<BlobReader, BlobError> {
        if part.held {
            return Ok(self.blobs.open_held(&part.device, &part.parameters, part.crc32));
        }
        self.blobs.open(&part.parameters).await
    }

    /// Waits until the update has a place: its turn, or room to wait for it. It goes on without one
    /// when for a while no other's turn comes: the next in order may never arrive.
    async fn opened(&self, ticket: u64, part: &Part) -> Result<SemaphorePermit<'_>, ReadError> {
        let patience = self.patience + reading_time(part.parameters.size.0);
        let mut until = Instant::now() + patience;
        let mut turns = None;
        loop {
            let turn = self.turn.notified();
            let permit = self.reading.acquire().await.map_err(|_| ReadError::Thread)?;
            let late = Instant::now() >= until;
            let part = part.clone();
            let found = self.ask(move |fold| {
                let (_, busy) = fold.turns();
                let early = (busy || !late) && fold.is_too_early(&part.device);
                if !early {
                    fold.open(ticket, part);
                }
                early.then(|| fold.turns())
            });
            let found = found.await?;
            let Some((_, busy)) = found else { return Ok(permit) };
            drop(permit);
            if busy || found != turns {
                turns = found;
                until = Instant::now() + patience;
            }
            tokio::select! {
                () = turn => {}
                () = sleep_until(until) => {}
            }
        }
    }
}

fn reading_time(bytes: u64) -> Duration {
    Duration::from_micros(bytes.saturating_mul(1_000_000) / PATIENCE_BYTES_PER_SECOND)
}

#[cfg(test)]
mod tests;
