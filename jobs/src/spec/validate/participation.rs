//! Who takes part in a round: what must hold of it.

use super::{DAY_MS, Problems};
use crate::round::DEVICES_MAX;
use crate::spec::{Participation, Selection, TrainSpec};

impl Problems {
    pub(super) fn participation(&mut self, spec: &TrainSpec) {
        let part = &spec.participation;
        let all = DEVICES_MAX as u64;
        if let Some(devices) = part.devices {
            self.whole("work.participation.devices", devices.into(), 1, all);
        }
        let quorum_max = part.devices.map_or(all, |devices| all.min(devices.into()));
        self.whole("work.participation.quorum", part.quorum.into(), 1, quorum_max.max(1));
        let surplus = (0.0..=10.0).contains(&part.over_selection);
        self.check(surplus, "work.participation.over_selection", part.over_selection, "0 to 10");
        let some = part.devices.is_some()
            || matches!(part.selection, Selection::Fraction { .. } | Selection::Cyclic);
        let expected = "0 without participation.devices (--devices), because all devices that are \
                        there are invited then: say how many updates a round wants";
        let is_drawn = spec.privacy.is_some_and(|privacy| privacy.sampling_rate < 1.0);
        let unused = part.over_selection > 0.0 && !some && !is_drawn;
        let field = "work.participation.over_selection";
        self.check(!unused, field, part.over_selection, expected);
        self.whole("work.participation.deadline_ms", part.deadline_ms.0, 1, 7 * DAY_MS);
        let failed = part.failed_rounds_max;
        self.whole("work.participation.failed_rounds_max", failed.into(), 1, 100);
        self.selection(&part.selection, part.devices);
        self.cyclic(part);
        for (name, value, expected) in part.quarantine_problems(spec.combination()) {
            self.add(format!("work.participation.quarantine.{name}"), value, expected);
        }
    }

    fn selection(&mut self, selection: &Selection, devices: Option<u32>) {
        const FIELD: &str = "work.participation.selection";
        match selection {
            Selection::Random | Selection::RoundRobin | Selection::Cyclic => {}
            Selection::Fraction { fraction } => {
                let share = *fraction > 0.0 && *fraction <= 1.0;
                self.check(share, &format!("{FIELD}.fraction"), fraction, "above 0, at most 1");
            }
            Selection::ByLoss { candidates } => {
                if let Some(candidates) = *candidates {
                    let least = devices.unwrap_or(1).max(1).into();
                    let field = format!("{FIELD}.candidates");
                    self.whole(&field, candidates.into(), least, u32::MAX.into());
                }
            }
            Selection::BySpeed { exploration } => {
                let share = (0.0..=1.0).contains(exploration);
                self.check(share, &format!("{FIELD}.exploration"), exploration, "0 to 1");
            }
            Selection::Windows { label } => {
                self.check(!label.is_empty(), &format!("{FIELD}.label"), "empty", "a label's key");
            }
        }
        let field = "work.participation.devices";
        match (selection, devices) {
            (Selection::Fraction { .. }, Some(devices)) => {
                self.check(false, field, devices, "none, because a fraction says how many");
            }
            (Selection::Cyclic, _) => {}
            (chosen, None) if chosen.remembers() => {
                let expected = format!("a number, because {chosen} chooses some of all devices");
                self.check(false, field, "absent", &expected);
            }
            _ => {}
        }
    }

    fn cyclic(&mut self, part: &Participation) {
        if part.selection != Selection::Cyclic {
            return;
        }
        let expected = "because cyclic lets one device train after another";
        let (devices, quorum) = (part.devices.unwrap_or(1), part.quorum);
        for (name, found) in [("devices", devices), ("quorum", quorum)] {
            let field = format!("work.participation.{name}");
            self.check(found <= 1, &field, found, &format!("1, {expected}"));
        }
        let surplus = part.over_selection;
        let field = "work.participation.over_selection";
        self.check(surplus <= 0.0, field, surplus, &format!("0, {expected}"));
    }
}
