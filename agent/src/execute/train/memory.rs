//! Whether a training or an evaluation fits into memory, before it begins.

use std::sync::Arc;

use jobs::report::{Failure, FailureCode};
use models::dataset::Examples;
use models::train::{Memory, Trainer};

use crate::execute::memory::{Promise, Promises, free, megabytes};

/// One of so many parts is added for packed matrices and the allocator: the peak of ResNet-18,
/// VGG-11, `MobileNetV2` and `SqueezeNet` lay 30 to 60 MB above an estimate of 110 to 440 MB, 15 MB
/// of it the program.
const MARGIN: u64 = 10;

/// Memory that work may be promised.
#[derive(Clone)]
pub(super) struct Room {
    pub(super) promises: Arc<Promises>,
    /// See [`crate::config::Config::training_bytes`].
    pub(super) max: Option<u64>,
}

impl Room {
    /// Promises what a trainer takes for batches of some of these examples. The data set is
    /// decoded by now, so it is no part of what is free.
    pub(super) fn promise(
        &self,
        trainer: &Trainer,
        examples: &Examples,
        batch_size: u32,
    ) -> Result<Promise, Failure> {
        let batch = examples.len().min(batch_size as usize);
        let need = |batch| Need {
            trainer: trainer.memory(batch, rayon::current_num_threads()),
            batch: 4 * batch as u64 * examples.size() as u64,
        };
        promise(&self.promises, batch, need, self.max)
    }
}

/// Memory that is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// So many bytes are free.
    Free(u64),
    /// So many bytes are allowed by the configuration.
    Allowed(u64),
}

impl Left {
    /// What the system and the control group of this process have left beside `promised` bytes,
    /// or `max` if that is less; `None` when nobody knows.
    fn now(max: Option<u64>, promised: u64) -> Option<Self> {
        let free = free().map(|bytes| Self::Free(bytes.saturating_sub(promised)));
        let max = max.map(Self::Allowed);
        max.into_iter().chain(free).min_by_key(|left| left.bytes())
    }

    fn bytes(self) -> u64 {
        match self {
            Self::Free(bytes) | Self::Allowed(bytes) => bytes,
        }
    }
}

/// Promises what work with batches of `batch_size` examples takes, at most `max` bytes.
fn promise(
    promises: &Arc<Promises>,
    batch_size: usize,
    need: impl Fn(usize) -> Need,
    max: Option<u64>,
) -> Result<Promise, Failure> {
    promises.promise(|promised| {
        check(batch_size, &need, Left::now(max, promised))?;
        Ok(need(batch_size).more())
    })
}

/// What a training takes with batches of a size.
#[derive(Debug, Clone, Copy)]
struct Need {
    /// The trainer's, which has its parameters already.
    trainer: Memory,
    /// The examples of a batch.
    batch: u64,
}

impl Need {
    /// Bytes that are still to be taken; a checkpoint or the finished update comes on top.
    fn more(&self) -> u64 {
        let Memory { parameters, optimizer_state, .. } = self.trainer;
        let trainer = self.trainer.total() - parameters;
        let copy = (2 * parameters).max(parameters + optimizer_state);
        let more = [copy, self.batch].into_iter().fold(trainer, u64::saturating_add);
        more.saturating_add(more / MARGIN)
    }

    /// Bytes that grow with the batch.
    fn per_batch(&self) -> u64 {
        let Memory { activations, scratch, .. } = self.trainer;
        activations.saturating_add(scratch).saturating_add(self.batch)
    }
}

/// Refuses work that does not fit, and says which batch size would.
fn check(
    batch_size: usize,
    need: impl Fn(usize) -> Need,
    left: Option<Left>,
) -> Result<(), Failure> {
    let Some(left) = left else { return Ok(()) };
    let fits = |batch_size| need(batch_size).more() <= left.bytes();
    if fits(batch_size) {
        return Ok(());
    }
    // The largest that fits lies from `low` to below `high`; 0 is none.
    let (mut low, mut high) = (0, batch_size);
    while high - low > 1 {
        let middle = usize::midpoint(low, high);
        if fits(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    let advice = match low {
        0 => "not even one example at a time fits, take a smaller model".to_owned(),
        size => format!("a batch size of {size} fits"),
    };
    let need = need(batch_size);
    // Memory may be free later; a limit stays.
    let (code, room) = match left {
        Left::Free(bytes) => {
            (FailureCode::OutOfMemory, format!("the device has {} free", megabytes(bytes)))
        }
        Left::Allowed(bytes) => {
            (FailureCode::TooLarge, format!("--training-bytes allows {}", megabytes(bytes)))
        }
    };
    let message = format!(
        "this needs {} more memory, {room}; batches of {batch_size} examples take {} of it: \
         {advice}",
        megabytes(need.more()),
        megabytes(need.per_batch()),
    );
    Err(Failure::new(code, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_room_and_a_limit_makes_it_smaller() {
        let left = Left::now(None, 0).unwrap();
        assert!(left.bytes() > 10_000_000, "{left:?}");
        assert_eq!(Left::now(Some(5), 0), Some(Left::Allowed(5)));
        assert!(matches!(Left::now(Some(u64::MAX), 0), Some(Left::Free(_))));
        assert_eq!(Left::now(None, u64::MAX), Some(Left::Free(0)));
    }

    #[test]
    fn memory_is_promised_once() {
        let promises = Arc::new(Promises::default());
        let free = Left::now(None, 0).unwrap().bytes();
        // Two thirds of what is free.
        let large = |_| Need { trainer: Memory::default(), batch: free / 3 * 2 / 11 * 10 };
        let first = promise(&promises, 1, large, None).unwrap();
        let failure = promise(&promises, 1, large, None).unwrap_err();
        assert_eq!(failure.code, FailureCode::OutOfMemory);
        drop(first);
        assert_eq!(promises.bytes(), 0);
        promise(&promises, 1, large, None).unwrap();
    }

    /// 6 MB whatever the batch, 0.5 MB for each example.
    fn need(batch: usize) -> Need {
        let trainer = Memory {
            parameters: 1_000_000,
            gradients: 1_000_000,
            optimizer_state: 2_000_000,
            activations: 400_000 * batch as u64,
            scratch: 60_000 * batch as u64,
        };
        Need { trainer, batch: 40_000 * batch as u64 }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_both_figures_and_what_would() {
        assert_eq!(check(64, need, None), Ok(()));
        assert_eq!(check(64, need, Some(Left::Free(41_800_000))), Ok(()));
        let failure = check(64, need, Some(Left::Free(41_799_999))).unwrap_err();
        assert_eq!(failure.code, FailureCode::OutOfMemory);
        assert_eq!(
            failure.message,
            "this needs 41.8 MB more memory, the device has 41.8 MB free; batches of 64 \
             examples take 32.0 MB of it: a batch size of 63 fits"
        );
        for (allowed, words) in [
            (
                16_500_000,
                "allows 16.5 MB; batches of 64 examples take 32.0 MB of it: a batch size of 18 fits",
            ),
            (7_150_000, "a batch size of 1 fits"),
            (7_149_999, "not even one example at a time fits, take a smaller model"),
        ] {
            let Failure { code, message } =
                check(64, need, Some(Left::Allowed(allowed))).unwrap_err();
            assert_eq!((code, code.is_transient()), (FailureCode::TooLarge, false));
            assert!(message.ends_with(words), "{message}");
            assert!(message.len() <= 200, "brokers keep so much: {message}");
        }
        let message = check(1, need, Some(Left::Free(1))).unwrap_err().message;
        assert!(message.contains("not even one"), "{message}");
    }
}
