//! The grammar of NATS subjects, built and parsed in this one place.
//!
//! | subject | who publishes | what |
//! |---|---|---|
//! | `jobs.{infer,train,telemetry,help}` | people, programs | the front door, core NATS |
//! | `fleet.<device>.{hello,heartbeat,telemetry,log,goodbye}` | agents | stream `FLEET` |
//! | `offer.<device>` | brokers | a task for one device, core NATS |
//! | `held.<device>` | brokers | asks for bytes of an update that the device holds, core NATS |
//! | `report.<job>.<device>` | agents | what became of a task, stream `REPORTS` |
//! | `work.<kind>.<job>` | brokers | accepted jobs waiting for a device, work queue `WORK` |
//! | `cmd.{<device>,all,group.<group>}.<verb>` | people, brokers | scatter and gather |
//! | `events.<job>.<event>` | brokers | what happened to a job, stream `EVENTS` |

use crate::id::{DeviceId, GroupName, JobId};
use crate::spec::JobKind;

/// Stream of hellos, heartbeats, telemetry and logs.
pub const STREAM_FLEET: &str = "FLEET";
/// Stream of task reports; a coordinator replays it after a restart.
pub const STREAM_REPORTS: &str = "REPORTS";
/// Work queue of accepted jobs that nobody waits for at the other end.
pub const STREAM_WORK: &str = "WORK";
/// Stream of job events.
pub const STREAM_EVENTS: &str = "EVENTS";

/// Every hello, heartbeat, telemetry and log of every device.
pub const FLEET_ALL: &str = "fleet.>";
/// Every report of every task.
pub const REPORTS_ALL: &str = "report.>";
/// Every accepted job.
pub const WORK_ALL: &str = "work.>";
/// Every event of every job.
pub const EVENTS_ALL: &str = "events.>";

/// The queue group that the brokers share at the front door.
pub const BROKER_QUEUE: &str = "dunlin";

/// What people ask at the front door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrontDoor {
    /// `jobs.infer`
    Infer,
    /// `jobs.train`
    Train,
    /// `jobs.telemetry`
    Telemetry,
    /// `jobs.help`
    Help,
}

impl FrontDoor {
    /// All of them, in the order of the documentation.
    pub const ALL: [FrontDoor; 4] =
        [FrontDoor::Infer, FrontDoor::Train, FrontDoor::Telemetry, FrontDoor::Help];

    /// The last token of the subject.
    pub fn token(self) -> &'static str {
        match self {
            FrontDoor::Infer => "infer",
            FrontDoor::Train => "train",
            FrontDoor::Telemetry => "telemetry",
            FrontDoor::Help => "help",
        }
    }

    /// The whole subject.
    pub fn subject(self) -> String {
        format!("jobs.{}", self.token())
    }
}

/// What an agent tells without being asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FleetTopic {
    /// Facts, on joining and when asked by `cmd.all.hello`.
    Hello,
    /// Alive, with the tasks at work.
    Heartbeat,
    /// Measurements.
    Telemetry,
    /// A line of the log.
    Log,
    /// The agent ends: [`crate::device::Goodbye`].
    Goodbye,
}

impl FleetTopic {
    fn token(self) -> &'static str {
        match self {
            FleetTopic::Hello => "hello",
            FleetTopic::Heartbeat => "heartbeat",
            FleetTopic::Telemetry => "telemetry",
            FleetTopic::Log => "log",
            FleetTopic::Goodbye => "goodbye",
        }
    }
}

/// `fleet.<device>.<topic>`
pub fn fleet(device: &DeviceId, topic: FleetTopic) -> String {
    format!("fleet.{device}.{}", topic.token())
}

/// Parses [`fleet`].
pub fn parse_fleet(subject: &str) -> Option<(DeviceId, FleetTopic)> {
    let [head, device, topic] = tokens(subject)?;
    let topic = match topic {
        "hello" => FleetTopic::Hello,
        "heartbeat" => FleetTopic::Heartbeat,
        "telemetry" => FleetTopic::Telemetry,
        "log" => FleetTopic::Log,
        "goodbye" => FleetTopic::Goodbye,
        _ => return None,
    };
    (head == "fleet").then_some((DeviceId::parse(device).ok()?, topic))
}

/// `offer.<device>`: tasks for one device.
pub fn offer(device: &DeviceId) -> String {
    format!("offer.{device}")
}

/// `held.<device>`: [requests](crate::held::HeldRequest) for what the device holds.
pub fn held(device: &DeviceId) -> String {
    format!("held.{device}")
}

/// `report.<job>.<device>`
pub fn report(job: &JobId, device: &DeviceId) -> String {
    format!("report.{job}.{device}")
}

/// Every report of one job.
pub fn reports_of(job: &JobId) -> String {
    format!("report.{job}.*")
}

/// Parses [`report`].
pub fn parse_report(subject: &str) -> Option<(JobId, DeviceId)> {
    let [head, job, device] = tokens(subject)?;
    (head == "report").then_some((JobId::parse(job).ok()?, DeviceId::parse(device).ok()?))
}

/// `work.<kind>.<job>`
pub fn work(kind: JobKind, job: &JobId) -> String {
    format!("work.{}.{job}", kind.as_str())
}

/// `events.<job>.<event>`
pub fn event(job: &JobId, event: &str) -> String {
    format!("events.{job}.{event}")
}

/// Every event of one job.
pub fn events_of(job: &JobId) -> String {
    format!("events.{job}.>")
}

/// `cmd.<device>.<verb>`
pub fn command(device: &DeviceId, verb: &str) -> String {
    format!("cmd.{device}.{verb}")
}

/// `cmd.all.<verb>`
pub fn command_all(verb: &str) -> String {
    format!("cmd.all.{verb}")
}

/// `cmd.group.<group>.<verb>`
pub fn command_group(group: &GroupName, verb: &str) -> String {
    format!("cmd.group.{group}.{verb}")
}

/// The verb of a command subject, whoever it is addressed to.
pub fn parse_command(subject: &str) -> Option<&str> {
    let mut parts = subject.split('.');
    let verb = match (parts.next()?, parts.next()?) {
        ("cmd", "group") => parts.nth(1)?,
        ("cmd", _) => parts.next()?,
        _ => return None,
    };
    parts.next().is_none().then_some(verb)
}

fn tokens<const N: usize>(subject: &str) -> Option<[&str; N]> {
    let parts: Vec<&str> = subject.split('.').collect();
    parts.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_subjects_parse_back() {
        let device = DeviceId::parse("pi-4").unwrap();
        let job = JobId::parse("01job").unwrap();
        let topics = [
            FleetTopic::Hello,
            FleetTopic::Heartbeat,
            FleetTopic::Telemetry,
            FleetTopic::Log,
            FleetTopic::Goodbye,
        ];
        for topic in topics {
            assert_eq!(parse_fleet(&fleet(&device, topic)), Some((device.clone(), topic)));
        }
        assert_eq!(parse_report(&report(&job, &device)), Some((job, device.clone())));
        let group = GroupName::parse("lab").unwrap();
        for subject in
            [command(&device, "ping"), command_all("ping"), command_group(&group, "ping")]
        {
            assert_eq!(parse_command(&subject), Some("ping"));
        }
    }

    #[test]
    fn foreign_subjects_are_none() {
        for subject in ["", "fleet", "fleet.pi.hello.x", "fleet.PI.hello", "fleet.pi.other"] {
            assert_eq!(parse_fleet(subject), None, "{subject:?}");
        }
        for subject in ["cmd.all", "cmd.group.lab", "cmd.all.ping.x", "other.all.ping"] {
            assert_eq!(parse_command(subject), None, "{subject:?}");
        }
    }
}
