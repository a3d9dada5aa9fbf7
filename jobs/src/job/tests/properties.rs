//! What holds for every sequence of events, beside a job told in the simplest way.

use proptest::prelude::*;

use super::*;

const DEADLINE: u64 = 40_000;

#[derive(Debug, Clone)]
enum Op {
    Chosen(Option<u8>),
    /// A report of the newest attempt, or of one before or after it.
    Reported(u8, i8, Said),
    Lost(u8),
    Unplaced,
    Cancel,
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Said {
    Accepted,
    Done,
    Failed(FailureCode),
}

fn op() -> impl Strategy<Value = Op> {
    let codes = vec![
        FailureCode::Busy,
        FailureCode::DiskFull,
        FailureCode::EngineUnavailable,
        FailureCode::InvalidInput,
    ];
    let said = prop_oneof![
        3 => Just(Said::Accepted),
        1 => Just(Said::Done),
        6 => prop::sample::select(codes).prop_map(Said::Failed),
    ];
    prop_oneof![
        6 => prop::option::weighted(0.9, 0..3_u8).prop_map(Op::Chosen),
        6 => (0..3_u8, -1..2_i8, said).prop_map(|(d, attempt, said)| Op::Reported(d, attempt, said)),
        2 => (0..3_u8).prop_map(Op::Lost),
        1 => Just(Op::Unplaced),
        1 => Just(Op::Cancel),
        6 => Just(Op::Tick),
    ]
}

/// The job as one would tell it: where it is, how often it failed, how it ended.
#[derive(Debug, Default)]
struct Model {
    at: Option<String>,
    attempt: u32,
    tries: u32,
    /// Devices whose engines could not answer.
    unavailable: Vec<String>,
    ended: Option<JobState>,
}

impl Model {
    fn fail(&mut self, code: FailureCode) {
        let device = self.at.take().unwrap();
        self.tries += u32::from(code != FailureCode::Busy);
        let unavailable = code == FailureCode::EngineUnavailable;
        let again = unavailable && self.unavailable.contains(&device);
        if !code.is_transient() || self.tries == TRIES_MAX || again {
            self.ended = Some(JobState::Failed);
        }
        if unavailable {
            self.unavailable.push(device);
        }
    }

    /// What must be so after an event; the clock's part is taken from the effects.
    fn step(&mut self, now: u64, event: &Event, effects: &[Effect]) {
        if self.ended.is_some() {
            return;
        }
        if let Event::Reported(report) = event {
            let here = self.at.as_deref() == Some(report.device.as_str());
            let here = here && report.task.attempt.0 == self.attempt;
            if let ReportBody::Failed(failure) = &report.body {
                if here {
                    self.fail(failure.code);
                }
            } else if matches!(report.body, ReportBody::Measured(_))
                && report.task.attempt.0 <= self.attempt
            {
                self.ended = Some(JobState::Succeeded);
            }
        } else if let Event::DeviceLost { device } = event {
            if self.at.as_deref() == Some(device.as_str()) {
                self.fail(FailureCode::DeviceLost);
            }
        } else if *event == Event::CancelRequested {
            self.ended = Some(JobState::Cancelled);
        } else if *event == Event::Tick && now >= DEADLINE {
            self.ended = Some(JobState::Failed);
        } else if *event == Event::Tick {
            if effects.iter().any(|effect| matches!(effect, Effect::Withdraw { .. })) {
                self.fail(FailureCode::DeadlineExceeded);
            }
        } else if now >= DEADLINE && self.at.is_none() && !effects.is_empty() {
            // A device was chosen when there was no time left for it.
            self.ended = Some(JobState::Failed);
        }
        for effect in effects {
            if let Effect::Offer { device, attempt, timeout_ms } = effect {
                assert_eq!(self.at, None, "two at work");
                assert_eq!(attempt.0, self.attempt + 1);
                assert_eq!(timeout_ms.0, DEADLINE - now);
                (self.at, self.attempt) = (Some(device.to_string()), attempt.0);
            }
        }
    }
}

proptest! {
    #[test]
    fn a_job_does_what_the_model_says(ops in prop::collection::vec((0..2000_u64, op()), 0..60)) {
        let mut job = telemetry(DEADLINE);
        let mut model = Model::default();
        let mut now = 0;
        for (pause, op) in ops.into_iter().chain([(DEADLINE, Op::Tick)]) {
            now += pause;
            let name = |d: u8| ["a", "b", "c"][usize::from(d)];
            let event = match op {
                Op::Chosen(d) => Event::DeviceChosen { device: d.map(|d| device(name(d))) },
                Op::Lost(d) => Event::DeviceLost { device: device(name(d)) },
                Op::Unplaced => {
                    Event::Unplaced { failure: Failure::new(FailureCode::NoDevice, "none") }
                }
                Op::Cancel => Event::CancelRequested,
                Op::Tick => Event::Tick,
                Op::Reported(d, attempt, said) => {
                    let attempt = job.attempt.0.saturating_add_signed(attempt.into());
                    let body = match said {
                        Said::Accepted => ReportBody::Accepted,
                        Said::Done => ReportBody::Measured(Box::default()),
                        Said::Failed(code) => ReportBody::Failed(Failure::new(code, "because")),
                    };
                    report(name(d), attempt, body)
                }
            };
            let over = model.ended.is_some();
            let effects = job.step(Millis(now), &event);
            model.step(now, &event, &effects);
            let ends = effects.iter().filter(|effect| matches!(effect, Effect::End { .. })).count();
            prop_assert_eq!(ends, usize::from(!over && model.ended.is_some()), "{:?}", event);
            if let Some(state) = model.ended {
                prop_assert_eq!(ending(&job.pending_effects()).0, state);
            }
            prop_assert_eq!(job.placed.as_ref().map(|p| p.device.as_str()), model.at.as_deref()
                .filter(|_| model.ended.is_none()));
            let withdrawn = effects.iter().any(|effect| matches!(effect, Effect::Withdraw { .. }));
            prop_assert!(!withdrawn || job.placed.is_none());
            // Nothing happens twice; the stored state is the whole state; time goes on.
            let after = job.clone();
            prop_assert_eq!(job.step(Millis(now), &event), [], "{:?} again", event);
            prop_assert_eq!(&job, &after);
            let stored = serde_json::to_string(&job).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Job>(&stored).unwrap(), &job);
            prop_assert!(!job.pending_effects().is_empty());
            prop_assert_eq!(job.wake_at().is_none(), model.ended.is_some());
            if let Event::Tick = event {
                prop_assert!(job.wake_at().is_none_or(|at| at.0 > now));
            }
        }
        prop_assert!(job.state.is_final());
    }
}
