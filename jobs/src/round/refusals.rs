//! Whose update a round did not use, and why.

use super::{Outcome, Verdict};
use crate::id::DeviceId;
use crate::report::FailureCode;

impl Outcome {
    /// Devices whose update was not used because of what is in it, with the reason: what a check
    /// refused, and then what the strategy left out. Each is ordered by device.
    pub fn refusals(&self) -> impl Iterator<Item = (&DeviceId, String)> {
        self.refused().chain(self.left_out())
    }

    /// Those whose update a check refused.
    pub(super) fn refused(&self) -> impl Iterator<Item = (&DeviceId, String)> {
        let refused = self.missing.iter();
        let refused = refused.filter(|(_, failure)| failure.code == FailureCode::InvalidUpdate);
        refused.map(|(device, failure)| {
            (device, format!("{}: {}", failure.code.as_str(), failure.message))
        })
    }

    /// Those whose update the strategy left out.
    pub(super) fn left_out(&self) -> impl Iterator<Item = (&DeviceId, String)> {
        let refused = self.influences.iter();
        let refused = refused.filter(|(_, influence)| influence.verdict == Verdict::Refused);
        refused.map(|(device, influence)| (device, format!("left out: {}", influence.reason)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_gave_something_that_is_not_used_is_told_why() {
        let blob = json!({"digest": format!("sha256:{:064}", 0), "size": 1});
        let outcome: Outcome = serde_json::from_value(json!({"round": 1, "parameters": blob,
            "failure": null, "updates": [], "evaluations": [], "started_at": 0, "ended_at": 1,
            "missing": [["a", {"code": "device_lost", "message": "silent"}],
                ["b", {"code": "invalid_update", "message": "NaN"}]],
            "influences": [["c", {"verdict": "kept", "reason": "near"}],
                ["d", {"verdict": "refused", "reason": "far off"}],
                ["e", {"verdict": "reduced", "reason": "long"}]]}))
        .unwrap();
        let refusals: Vec<(&str, String)> =
            outcome.refusals().map(|(device, reason)| (device.as_str(), reason)).collect();
        let expected = [("b", "invalid_update: NaN"), ("d", "left out: far off")];
        assert_eq!(refusals, expected.map(|(device, reason)| (device, reason.to_owned())));
    }
}
