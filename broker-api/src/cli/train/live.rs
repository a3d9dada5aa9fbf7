//! What is on the screen while rounds run: a table that grows, and the round at work below it.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use jobs::id::Millis;
use jobs::report::Progress;

use super::rounds;
use crate::cli::failure::CliError;
use crate::cli::output::Output;
use crate::cli::table;
use crate::history::RoundRecord;
use crate::record::{EventBody, JobEvent, Waiting};

/// Stands above the lines of [`View`].
pub(in crate::cli) const HEADING: &str =
    "round      loss  accuracy  devices      moved      time       eta  missing";
/// How often the terminal is drawn when nothing happens.
const TICK: Duration = Duration::from_millis(250);
/// The share of the first round from which on it tells how long the job will take.
const SHARE_MIN: f64 = 0.02;

/// How fast rounds follow each other.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    /// Rounds of the job.
    rounds: u32,
    /// Rounds that gave new parameters.
    done: u32,
    began_at: Option<Millis>,
    ended_at: Millis,
}

impl Pace {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bounded before")]
    fn ended(&mut self, round: &RoundRecord) {
        self.done += u32::from(round.failure.is_none());
        self.began_at.get_or_insert(round.started_at);
        let took = Millis((round.seconds * 1000.0).round().clamp(0.0, 1e15) as u64);
        self.ended_at = self.ended_at.max(round.started_at.plus(took));
    }

    /// Time until the last round ends, `elapsed` after the beginning of one of which `share` is
    /// done: rounds to come take as long as those before did on average, failed ones included.
    fn left(&self, elapsed: Duration, share: f64) -> Option<Duration> {
        let to_come = self.rounds.saturating_sub(self.done);
        if to_come == 0 {
            return None;
        }
        let each = match (self.began_at, self.done) {
            (Some(began), 1..) => Duration::from_millis(self.ended_at.since(began).0) / self.done,
            _ if share >= SHARE_MIN => elapsed.div_f64(share.min(1.0)),
            _ => return None,
        };
        Some((each * to_come).saturating_sub(elapsed.min(each)))
    }
}

fn shown(left: Option<Duration>) -> String {
    left.map_or_else(|| "-".to_owned(), |left| table::seconds(left.as_secs_f64()))
}

/// Follows the events of a training.
pub(super) struct View {
    bar: ProgressBar,
    pace: Pace,
    round: u32,
    /// The newest round of the table.
    shown: u32,
    /// Devices of the round at work: how far each is, as far as it told.
    devices: BTreeMap<String, Option<Progress>>,
}

impl View {
    /// The view of a job of so many rounds.
    pub(super) fn new(output: &Output, rounds: u32) -> Self {
        let bar = if output.terminal { ProgressBar::new(1000) } else { ProgressBar::hidden() };
        let pace = Pace { rounds, ..Pace::default() };
        Self { bar, pace, round: 0, shown: 0, devices: BTreeMap::new() }
    }

    /// Puts a round that ended into the table, once.
    pub(super) fn ended(
        &mut self,
        round: &RoundRecord,
        output: &mut Output,
    ) -> Result<(), CliError> {
        if round.round <= self.shown {
            return Ok(());
        }
        self.shown = round.round;
        self.pace.ended(round);
        let line = self.line(round);
        Ok(self.bar.suspend(|| output.line(line))?)
    }

    /// Takes the round at work off the terminal.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Shows an event.
    pub(super) fn show(&mut self, event: &JobEvent, output: &mut Output) -> Result<(), CliError> {
        if output.json {
            return Ok(output.document(event)?);
        }
        match &event.body {
            // Of a round that ended before one came to look.
            EventBody::RoundStarted { round, .. } | EventBody::Waiting(Waiting { round, .. })
                if *round <= self.shown =>
            {
                Ok(())
            }
            EventBody::Waiting(waiting) => {
                let line = format!("       {}", rounds::waiting(waiting, event.at));
                Ok(self.bar.suspend(|| output.line(line))?)
            }
            EventBody::RoundStarted { round, devices } => {
                self.round = *round;
                self.devices = devices.iter().map(|device| (device.to_string(), None)).collect();
                self.bar.set_style(style(self.pace));
                self.bar.reset();
                self.bar.enable_steady_tick(TICK);
                self.draw();
                Ok(())
            }
            EventBody::Progress { device, round, progress } if *round == self.round => {
                self.devices.insert(device.to_string(), Some(*progress));
                self.draw();
                Ok(())
            }
            EventBody::RoundEnded(outcome) => {
                // Until another round begins none is at work.
                self.bar.finish_and_clear();
                self.ended(&RoundRecord::of(outcome), output)
            }
            EventBody::Progress { .. }
            | EventBody::Accepted
            | EventBody::Placed { .. }
            | EventBody::Ended { .. } => Ok(()),
        }
    }

    fn line(&self, round: &RoundRecord) -> String {
        let eta = shown(self.pace.left(Duration::ZERO, 0.0));
        let line = format!("{}  {eta:>8}  {}", rounds::row(round), rounds::remarks(round));
        line.trim_end().to_owned()
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a share of 0 to 1 becomes 0 to 1000"
    )]
    fn draw(&self) {
        let all: f64 = self.devices.values().map(|progress| rounds::share(progress.as_ref())).sum();
        let share = all / self.devices.len().max(1) as f64;
        self.bar.set_position((share * 1000.0) as u64);
        self.bar.set_prefix(at_work(self.round, &self.devices));
        self.bar.set_message(rounds::on_the_way(&self.devices));
    }
}

/// The round at work as a row, up to the time: loss and accuracy of the examples that devices
/// train on now, and how many of them have taken their last step.
#[expect(clippy::cast_precision_loss, reason = "counts of devices are small")]
fn at_work(round: u32, devices: &BTreeMap<String, Option<Progress>>) -> String {
    let told: Vec<&Progress> = devices.values().flatten().collect();
    let mean = |values: Vec<f64>| {
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let loss = mean(told.iter().map(|progress| progress.loss).collect());
    let accuracy = mean(told.iter().filter_map(|progress| progress.accuracy).collect());
    let done = told.iter().filter(|progress| progress.step >= progress.steps).count();
    rounds::columns(
        round,
        &loss.map_or_else(|| "-".to_owned(), table::loss),
        &accuracy.map_or_else(|| "-".to_owned(), table::percent),
        &format!("{done}/{}", devices.len()),
        "-",
    )
}

/// Two lines: the row of the round at work, and how far its devices are.
fn style(pace: Pace) -> ProgressStyle {
    let template = "{prefix}  {time_and_eta}\n{spinner} [{bar:24}] {wide_msg}";
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    #[expect(clippy::cast_precision_loss, reason = "a position is 0 to 1000")]
    let time_and_eta = move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
        let (elapsed, share) = (state.elapsed(), state.pos() as f64 / 1000.0);
        let (time, eta) = (shown(Some(elapsed)), shown(pace.left(elapsed, share)));
        // A string takes what is written.
        let _ = write!(text, "{time:>8}  {eta:>8}");
    };
    style.with_key("time_and_eta", time_and_eta).progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jobs::round::Outcome;
    use serde_json::json;

    fn outcome(from: u64, to: u64, failed: bool) -> Outcome {
        let blob = json!({"digest": format!("sha256:{}", "0".repeat(64)), "size": 1000});
        let failure = json!({"code": "no_quorum", "message": "0 of 1"});
        serde_json::from_value(json!({
            "round": 1, "parameters": blob, "failure": failed.then_some(failure), "updates": [],
            "evaluations": [], "missing": [], "started_at": from, "ended_at": to,
        }))
        .unwrap()
    }

    fn record(from: u64, to: u64, failed: bool) -> RoundRecord {
        RoundRecord::of(&outcome(from, to, failed))
    }

    #[test]
    fn rounds_to_come_take_as_long_as_those_before() {
        let s = Duration::from_secs;
        let mut pace = Pace { rounds: 4, ..Pace::default() };
        assert_eq!(pace.left(s(5), 0.0), None, "nothing is known yet");
        assert_eq!(pace.left(s(5), 0.5), Some(s(35)), "four of 10 s, less 5 s");
        pace.ended(&record(1000, 9000, false));
        assert_eq!(pace.left(s(0), 0.0), Some(s(24)));
        assert_eq!(pace.left(s(3), 0.9), Some(s(21)));
        assert_eq!(pace.left(s(99), 0.1), Some(s(16)), "late, but the others are still to come");
        pace.ended(&record(9000, 11_000, true));
        assert_eq!(pace.left(s(0), 0.0), Some(s(30)), "a failed round costs its time");
        for _ in 0..3 {
            pace.ended(&record(11_000, 12_000, false));
        }
        assert_eq!(pace.left(s(0), 0.0), None);
        pace.ended(&record(11_000, 12_000, false));
        assert_eq!(pace.left(s(0), 0.0), None, "more rounds than were asked for");
    }

    #[test]
    fn the_round_at_work_is_a_row_under_the_heading() {
        let at = |step, loss, accuracy| {
            Some(Progress { step, steps: 8, loss, accuracy, ..Progress::default() })
        };
        let devices: BTreeMap<String, Option<Progress>> =
            [("a", at(8, 1.0, Some(0.5))), ("b", at(2, 2.0, None)), ("c", None)]
                .map(|(name, progress)| (name.to_owned(), progress))
                .into();
        let row = at_work(3, &devices);
        assert_eq!(row, "    3    1.5000    50.0 %      1/3          -");
        for (column, end) in [("loss", 15), ("accuracy", 25), ("devices", 34), ("moved", 45)] {
            assert_eq!(HEADING.find(column).unwrap() + column.len(), end);
        }
        assert_eq!(row.len(), 45);
        assert_eq!(at_work(1, &BTreeMap::new()), "    1         -         -      0/0          -");
    }

    #[test]
    fn the_terminal_shows_the_round_at_work() {
        let terminal = indicatif::InMemoryTerm::new(8, 100);
        let target = indicatif::ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let bar = ProgressBar::with_draw_target(Some(1000), target);
        let pace = Pace { rounds: 4, ..Pace::default() };
        let mut view = View { bar, pace, round: 0, shown: 0, devices: BTreeMap::new() };
        view.pace.ended(&record(0, 8000, false));
        let mut output = Output::buffer(std::io::sink(), false);
        let mut show = |view: &mut View, body: serde_json::Value| {
            let event = json!({"sequence": 1, "job": "j", "at": 0, "body": body});
            view.show(&serde_json::from_value(event).unwrap(), &mut output).unwrap();
        };
        show(&mut view, json!({"event": "round_started", "round": 2, "devices": ["a", "b"]}));
        show(
            &mut view,
            json!({"event": "progress", "device": "a", "round": 2, "progress":
            {"step": 4, "steps": 8, "loss": 0.5, "examples_per_second": 10.0}}),
        );
        view.bar.force_draw();
        let text = terminal.contents();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("    2    0.5000         -      0/2"), "{text}");
        assert!(lines[0].ends_with(" s"), "time and what is left: {text}");
        assert!(lines[1].contains("[======>") && lines[1].ends_with("a 50 %, b 0 %"), "{text}");
        let mut ended = serde_json::to_value(outcome(8000, 9000, false)).unwrap();
        ended["event"] = json!("round_ended");
        show(&mut view, ended);
        assert_eq!(terminal.contents(), "", "no round is at work");
        show(&mut view, json!({"event": "round_started", "round": 3, "devices": ["a"]}));
        view.bar.force_draw();
        let text = terminal.contents();
        assert!(text.starts_with("    3         -         -      0/1"), "{text}");
        view.finish();
        assert_eq!(terminal.contents(), "");
    }
}
