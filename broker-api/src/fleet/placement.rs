//! Which device gets a piece of work: pure.

use jobs::device::{Hello, Presence};
use jobs::engine::{ENGINES, EnginePolicy};
use jobs::id::{DatasetName, DeviceId};
use jobs::selector::Selector;

/// What a device is assumed to need for an answer until it was measured, microseconds.
const LATENCY_PRIOR_US: u64 = 20_000;
/// What loading a model is assumed to cost, microseconds: an idle device with the model is
/// preferred until its queue is longer than this.
const LOAD_COST_US: u64 = 500_000;

/// What a device must be like.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Requirements of the job.
    pub selector: &'a Selector,
    /// A data set that it must have.
    pub dataset: Option<&'a DatasetName>,
    /// Engines that may answer, where a model is asked: a device must have one of them.
    pub engine: Option<&'a EnginePolicy>,
    /// Devices that failed this job: used only when there is no other.
    pub avoid: &'a [DeviceId],
}

/// A device as placement sees it.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// What it is.
    pub hello: &'a Hello,
    /// Whether it can be given work.
    pub presence: Presence,
    /// Tasks that this broker has placed on it and that are not answered yet.
    pub in_flight: u32,
    /// Training and evaluation tasks by its last heartbeat.
    pub training: u32,
    /// Whether the model is loaded.
    pub loaded: bool,
    /// Its measured time for one answer of the model, microseconds.
    pub latency_us: Option<u64>,
    /// When it was chosen last, in turns: the longest ago wins among equals.
    pub last_turn: u64,
}

/// Where the work goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// To this device.
    Device(DeviceId),
    /// Every device that matches has its hands full.
    Busy,
    /// No device that matches is online.
    Nobody,
    /// Devices that match are online, and none has an engine that may answer.
    Lacking {
        /// These.
        devices: Vec<Lacking>,
        /// Whether one may have such an engine later: it is offline, or has not said yet what it
        /// has.
        may_come: bool,
    },
}

/// A device without an engine that may answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lacking {
    /// Which.
    pub device: DeviceId,
    /// Why it has none.
    pub reason: String,
}

impl Wanted<'_> {
    /// Whether a device may take part, online or not.
    pub fn matches(&self, hello: &Hello) -> bool {
        self.matches_but_for_engines(hello) && self.answers(hello)
    }

    fn matches_but_for_engines(&self, hello: &Hello) -> bool {
        let has = |name: &DatasetName| hello.datasets.iter().any(|dataset| dataset.name == *name);
        self.dataset.is_none_or(has) && self.selector.matches(hello)
    }

    /// Whether a device has an engine that may answer.
    fn answers(&self, hello: &Hello) -> bool {
        // Older agents tell no engines.
        self.engine.is_none_or(|policy| {
            hello.engines.is_empty() || hello.engines.iter().any(|engine| policy.allows(engine))
        })
    }

    /// Why a device has no engine that may answer, by what it says of them.
    fn lack(&self, hello: &Hello) -> String {
        let allowed = |engine: &&str| self.engine.is_none_or(|policy| policy.allows(engine));
        let reason = |engine: &str| {
            let facts = hello.engine_facts.iter().find(|facts| facts.engine == engine);
            match facts.map(|facts| facts.unusable.as_deref()) {
                Some(Some(reason)) => reason,
                Some(None) => "it is not there any more",
                None if hello.engine_facts.is_empty() => "it has not been looked for so far",
                None => "the device does not know it",
            }
        };
        match ENGINES.into_iter().filter(allowed).collect::<Vec<_>>()[..] {
            [] => "the request allows none".to_owned(),
            [engine] => reason(engine).to_owned(),
            ref engines => {
                let each = engines.iter().map(|engine| format!("{engine}: {}", reason(engine)));
                each.collect::<Vec<_>>().join(", ")
            }
        }
    }
}

/// Chooses the device that will probably answer first.
pub fn choose<'a>(wanted: &Wanted<'_>, candidates: impl Iterator<Item = Candidate<'a>>) -> Choice {
    let mut best: Option<((bool, u64, u64), &DeviceId)> = None;
    let mut busy = false;
    let (mut lacking, mut may_come) = (Vec::new(), false);
    for candidate in candidates {
        let hello = candidate.hello;
        if !wanted.matches_but_for_engines(hello) {
            continue;
        }
        match (candidate.presence, wanted.answers(hello)) {
            (Presence::Online, true) => {}
            (Presence::Online, false) => {
                may_come |= hello.engine_facts.is_empty();
                let (device, reason) = (hello.device.clone(), wanted.lack(hello));
                lacking.push(Lacking { device, reason });
                continue;
            }
            (Presence::Stale | Presence::Offline, answers) => {
                may_come |= answers;
                continue;
            }
        }
        if candidate.in_flight >= hello.slots.max(1) {
            busy = true;
            continue;
        }
        let device = &hello.device;
        let rank = (wanted.avoid.contains(device), candidate.cost_us(), candidate.last_turn);
        if best.is_none_or(|(least, _)| rank < least) {
            best = Some((rank, device));
        }
    }
    match best {
        Some((_, device)) => Choice::Device(device.clone()),
        None if busy => Choice::Busy,
        None if lacking.is_empty() => Choice::Nobody,
        None => Choice::Lacking { devices: lacking, may_come },
    }
}

impl Candidate<'_> {
    /// The expected time until this device has answered.
    fn cost_us(&self) -> u64 {
        let queue = u64::from(self.in_flight) + 2 * u64::from(self.training) + 1;
        let load = if self.loaded { 0 } else { LOAD_COST_US };
        queue.saturating_mul(self.latency_us.unwrap_or(LATENCY_PRIOR_US)).saturating_add(load)
    }
}

#[cfg(test)]
mod tests {
    use jobs::device::Facts;
    use jobs::engine::EngineFacts;
    use jobs::id::Millis;

    use super::*;

    fn hello(name: &str, slots: u32) -> Hello {
        Hello {
            device: DeviceId::parse(name).unwrap(),
            instance: "i".to_owned(),
            started_at: Millis(0),
            heartbeat_ms: Millis(2000),
            agent_version: "1".to_owned(),
            groups: Vec::new(),
            labels: std::collections::BTreeMap::default(),
            datasets: Vec::new(),
            engines: Vec::new(),
            engine_facts: Vec::new(),
            facts: Facts::default(),
            slots,
            masks: false,
            masks_within: false,
        }
    }

    fn idle(hello: &Hello) -> Candidate<'_> {
        Candidate {
            hello,
            presence: Presence::Online,
            in_flight: 0,
            training: 0,
            loaded: true,
            latency_us: Some(1000),
            last_turn: 0,
        }
    }

    fn choice(candidates: &[Candidate<'_>], avoid: &[DeviceId]) -> Choice {
        let selector = Selector::default();
        let wanted = Wanted { selector: &selector, dataset: None, engine: None, avoid };
        choose(&wanted, candidates.iter().copied())
    }

    #[test]
    fn the_shortest_expected_wait_wins() {
        let (a, b) = (hello("a", 4), hello("b", 4));
        let device = |name| Choice::Device(DeviceId::parse(name).unwrap());
        let cases = [
            ([Candidate { latency_us: Some(2000), ..idle(&a) }, idle(&b)], "b"),
            ([Candidate { in_flight: 3, ..idle(&a) }, idle(&b)], "b"),
            ([idle(&a), Candidate { loaded: false, ..idle(&b) }], "a"),
            ([Candidate { last_turn: 2, ..idle(&a) }, Candidate { last_turn: 1, ..idle(&b) }], "b"),
            ([Candidate { presence: Presence::Stale, ..idle(&a) }, idle(&b)], "b"),
            ([Candidate { training: 1, ..idle(&a) }, idle(&b)], "b"),
        ];
        for (candidates, expected) in cases {
            assert_eq!(choice(&candidates, &[]), device(expected));
        }
        assert_eq!(choice(&[idle(&a), idle(&b)], std::slice::from_ref(&a.device)), device("b"));
        assert_eq!(choice(&[idle(&a)], std::slice::from_ref(&a.device)), device("a"));
    }

    #[test]
    fn a_device_has_an_engine_that_the_request_allows() {
        let device = |name, engines: &[&str]| {
            let engines = engines.iter().map(|engine| (*engine).to_owned()).collect();
            Hello { engines, ..hello(name, 1) }
        };
        let (plain, gpu) = (device("a", &["tract", "native"]), device("b", &["cuda", "tract"]));
        let place = |text: &str, devices: &[&Hello]| {
            let (selector, policy) = (Selector::default(), text.parse().unwrap());
            let wanted =
                Wanted { selector: &selector, dataset: None, engine: Some(&policy), avoid: &[] };
            choose(&wanted, devices.iter().map(|device| idle(device)))
        };
        assert_eq!(place("cuda", &[&plain, &gpu]), Choice::Device(gpu.device.clone()));
        assert_eq!(place("!cuda,!tract", &[&plain, &gpu]), Choice::Device(plain.device.clone()));
        let lacking = |choice| {
            let Choice::Lacking { devices, may_come } = choice else { panic!("{choice:?}") };
            let reasons = devices.into_iter().map(|it| (it.device.to_string(), it.reason));
            (reasons.collect::<Vec<_>>(), may_come)
        };
        let reason = |name: &str, reason: &str| (name.to_owned(), reason.to_owned());
        let unknown = "it has not been looked for so far";
        assert_eq!(
            lacking(place("webgpu", &[&plain, &gpu])),
            (vec![reason("a", unknown), reason("b", unknown)], true)
        );
        let facts = |engine: &str, unusable: &str| EngineFacts {
            engine: engine.to_owned(),
            unusable: Some(unusable.to_owned()),
            ..EngineFacts::default()
        };
        let known = Hello { engine_facts: vec![facts("cuda", "no NVIDIA GPU")], ..plain.clone() };
        assert_eq!(lacking(place("cuda", &[&known])), (vec![reason("a", "no NVIDIA GPU")], false));
        let both = "cuda: no NVIDIA GPU, webgpu: the device does not know it";
        assert_eq!(lacking(place("webgpu,cuda", &[&known])), (vec![reason("a", both)], false));
        let none = "!native,!tract,!cuda,!webgpu,!ort-cpu";
        let expected = (vec![reason("a", "the request allows none")], false);
        assert_eq!(lacking(place(none, &[&known])), expected);
        // One that has it comes back.
        let (selector, policy) = (Selector::default(), "cuda".parse().unwrap());
        let wanted =
            Wanted { selector: &selector, dataset: None, engine: Some(&policy), avoid: &[] };
        let away = Candidate { presence: Presence::Offline, ..idle(&gpu) };
        let choice = choose(&wanted, [idle(&known), away].into_iter());
        assert_eq!(lacking(choice), (vec![reason("a", "no NVIDIA GPU")], true));
        assert_eq!(choose(&wanted, [away].into_iter()), Choice::Nobody);
    }

    #[test]
    fn nobody_and_busy_are_told_apart() {
        let a = hello("a", 1);
        let offline = Candidate { presence: Presence::Offline, ..idle(&a) };
        assert_eq!(choice(&[], &[]), Choice::Nobody);
        assert_eq!(choice(&[offline], &[]), Choice::Nobody);
        assert_eq!(choice(&[Candidate { in_flight: 1, ..idle(&a) }], &[]), Choice::Busy);
    }
}
