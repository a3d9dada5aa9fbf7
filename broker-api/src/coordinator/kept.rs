//! Parameters of a training that others may go on from.

use jobs::id::{BlobRef, RoundNumber};
use jobs::round::Outcome;

use super::state::StoredTraining;
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
    /// What the strategy kept with those.
    pub(crate) states: Vec<(RoundNumber, BlobRef)>,
}

impl Kept {
    /// What stayed of this one.
    pub(crate) fn of(stored: &StoredJob) -> Self {
        Self {
            last: stored.parameters.clone(),
            state: stored.server_state.clone(),
            rounds: stored.kept_rounds.clone(),
            states: stored.kept_states.clone(),
        }
    }

    /// All blobs, some twice.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &BlobRef> {
        let newest = self.last.iter().chain(&self.state);
        newest.chain(self.rounds.iter().chain(&self.states).map(|(_, blob)| blob))
    }

    /// Whether this blob stays.
    pub(crate) fn has(&self, blob: &BlobRef) -> bool {
        self.blobs().any(|kept| kept.object_name() == blob.object_name())
    }
}

/// Keeps the parameters of a round, and what the strategy kept with them, beside those of the rounds
/// before, of so many in all; what is not kept any more. A round that is kept already changes nothing.
pub(super) fn keep(stored: &mut StoredTraining, most: usize, outcome: &Outcome) -> Vec<BlobRef> {
    let StoredTraining { kept, kept_states: states, .. } = stored;
    let round = outcome.round;
    if kept.iter().any(|(known, _)| *known == round) {
        return Vec::new();
    }
    kept.push((round, outcome.parameters.clone()));
    states.extend(outcome.server_state.iter().map(|state| (round, state.clone())));
    let surplus = kept.len().saturating_sub(most);
    let mut gone: Vec<BlobRef> = kept.drain(..surplus).map(|(_, blob)| blob).collect();
    let oldest = kept.first().map_or(round, |(oldest, _)| *oldest);
    let old = states.iter().take_while(|(round, _)| *round < oldest).count();
    gone.extend(states.drain(..old).map(|(_, blob)| blob));
    gone
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

    fn blob(number: u32) -> BlobRef {
        let digest = link::digest::of(&number.to_le_bytes());
        BlobRef::by_digest(digest, Bytes(1))
    }

    fn outcome(round: u32, has_state: bool) -> Outcome {
        let state = has_state.then(|| blob(100 + round));
        serde_json::from_value(serde_json::json!({"round": round, "parameters": blob(round),
            "server_state": state, "failure": null, "updates": [], "evaluations": [],
            "missing": [], "started_at": 0, "ended_at": 1}))
        .unwrap()
    }

    #[test]
    fn the_newest_rounds_are_kept_and_each_once() {
        let (mut stored, mut gone) = (StoredTraining::default(), Vec::new());
        for round in [1, 2, 2, 4, 5, 5] {
            gone.extend(keep(&mut stored, 2, &outcome(round, round != 4)));
        }
        let rounds = stored.kept;
        assert_eq!(rounds, [(RoundNumber(4), blob(4)), (RoundNumber(5), blob(5))]);
        assert_eq!(stored.kept_states, [(RoundNumber(5), blob(105))]);
        assert_eq!(gone, [blob(1), blob(101), blob(2), blob(102)]);
        let (last, state) = (Some(blob(7)), Some(blob(8)));
        let kept = Kept { last, state, rounds, states: stored.kept_states };
        let has = [4, 5, 105, 7, 8, 2, 102].map(|number| kept.has(&blob(number)));
        assert_eq!(has, [true, true, true, true, true, false, false]);
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
