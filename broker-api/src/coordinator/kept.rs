//! Parameters of a training that others may go on from.

use jobs::id::{BlobRef, RoundNumber};

use crate::record::StoredJob;

/// What stays of a training that is over.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Kept {
    /// The newest parameters, where there is no result.
    pub(crate) last: Option<BlobRef>,
    /// What the strategy kept with the result, or with the newest parameters.
    pub(crate) state: Option<BlobRef>,
    /// Those of the rounds that the job keeps, the oldest first.
    pub(crate) rounds: Vec<(RoundNumber, BlobRef)>,
}

impl Kept {
    /// What stayed of this one.
    pub(crate) fn of(stored: &StoredJob) -> Self {
        Self {
            last: stored.parameters.clone(),
            state: stored.server_state.clone(),
            rounds: stored.kept_rounds.clone(),
        }
    }

    /// All blobs, some twice.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &BlobRef> {
        let newest = self.last.iter().chain(&self.state);
        newest.chain(self.rounds.iter().map(|(_, blob)| blob))
    }

    /// Whether this blob stays.
    pub(crate) fn has(&self, blob: &BlobRef) -> bool {
        self.blobs().any(|kept| kept.object_name() == blob.object_name())
    }
}

/// Keeps the parameters of a round beside those of the rounds before, of so many in all; what is not
/// kept any more. A round that is kept already changes nothing.
pub(super) fn keep(
    kept: &mut Vec<(RoundNumber, BlobRef)>,
    most: usize,
    round: RoundNumber,
    parameters: &BlobRef,
) -> Vec<BlobRef> {
    if kept.iter().any(|(known, _)| *known == round) {
        return Vec::new();
    }
    kept.push((round, parameters.clone()));
    let surplus = kept.len().saturating_sub(most);
    kept.drain(..surplus).map(|(_, blob)| blob).collect()
}

/// Numbers in order as text: stretches by their ends.
pub(super) fn stretches(numbers: &[u32]) -> String {
    let mut found: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match found.last_mut() {
            Some((_, end)) if *end + 1 == *number => *end = *number,
            _ => found.push((*number, *number)),
        }
    }
    let text = |(first, end): &(u32, u32)| {
        if first == end { first.to_string() } else { format!("{first}-{end}") }
    };
    found.iter().map(text).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use jobs::id::Bytes;

    use super::*;

    #[test]
    fn the_newest_rounds_are_kept_and_each_once() {
        let blob = |number: u32| {
            let digest = link::digest::of(&number.to_le_bytes());
            BlobRef::by_digest(digest, Bytes(1))
        };
        let mut kept = Vec::new();
        let mut gone = Vec::new();
        for round in [1, 2, 2, 4, 5, 5] {
            gone.extend(keep(&mut kept, 2, RoundNumber(round), &blob(round)));
        }
        assert_eq!(kept, [(RoundNumber(4), blob(4)), (RoundNumber(5), blob(5))]);
        assert_eq!(gone, [blob(1), blob(2)]);
        let kept = Kept { last: Some(blob(7)), state: Some(blob(8)), rounds: kept };
        let has = [4, 5, 7, 8, 2].map(|number| kept.has(&blob(number)));
        assert_eq!(has, [true, true, true, true, false]);
    }

    #[test]
    fn numbers_are_told_by_stretches() {
        let cases: [(&[u32], &str); 4] =
            [(&[], ""), (&[3], "3"), (&[3, 4], "3-4"), (&[1, 4, 5, 6, 9], "1, 4-6, 9")];
        for (numbers, text) in cases {
            assert_eq!(stretches(numbers), text);
        }
    }
}
