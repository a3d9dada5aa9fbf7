//! The engines of this device: those of the CPU, and those of the helper that loads libraries and
//! drivers.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use jobs::engine::EngineFacts;
use jobs::id::Bytes;
use models::engine::Engine;
use models::engine::frames::Probed;
use models::engine::native::Native;

pub use self::helper::{Helper, HelperError, HelperSession};
use self::probe::Keep;
pub(crate) use self::program::BESIDE;
pub use self::program::{Kind, Program};
use self::rates::Rates;
pub(crate) use self::session::{AnySession, Ran, SessionError};

mod child;
mod helper;
mod memory;
mod pipe;
mod polling;
mod probe;
mod process;
mod program;
mod rates;
mod session;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;

/// The file of an agent's state that keeps results of probes.
const KEPT: &str = "engines.json";

/// Engines of the helper that loads libraries.
pub const HELPED: [&str; 3] = ["cuda", "webgpu", "ort-cpu"];

/// Engines of the CPU, which every device has and which are trusted; the one that is tried first
/// in front.
pub const CPU: [&str; 2] = ["native", "tract"];

/// The engines of the CPU: `native` is part of this program, `tract` has a helper of its own.
#[derive(Debug, Clone)]
pub(crate) struct Cpu {
    tract: Result<Helper, String>,
    /// What measured rates depend on.
    key: String,
    rates: Arc<Mutex<Rates>>,
}

impl Cpu {
    /// Finds the helper; it is not started before the first use.
    pub(crate) fn find(options: &Options) -> Self {
        let Options { tract, scratch, threads, .. } = options;
        let program = Program::find(Kind::Tract, tract.as_deref(), scratch.as_deref());
        let stamp = program.as_ref().map(Program::stamp).unwrap_or_default();
        let key = format!("{} {stamp}", env!("CARGO_PKG_VERSION"));
        let read = options.kept.first().filter(|_| !options.afresh);
        let rates = read.map(|kept| rates::read(kept, &key)).unwrap_or_default();
        let tract = program.map(|program| Helper::new("tract", program, *threads));
        Self { tract, key, rates: Arc::new(Mutex::new(rates)) }
    }

    /// Whether it was not measured how fast they are.
    pub(crate) fn lacks_rates(&self) -> bool {
        self.rates().is_empty()
    }

    /// Lets the agent's program, `own`, measure how fast they are; whether that is known then.
    ///
    /// # Errors
    /// Why it could not be measured.
    pub(crate) fn measure_rates(&self, own: &Path, options: &Options) -> Result<bool, String> {
        let Some(kept) = options.kept.first() else { return Ok(false) };
        rates::measure(own, kept.parent().unwrap_or(kept), options.tract.as_deref())?;
        *self.rates() = rates::read(kept, &self.key);
        Ok(!self.lacks_rates())
    }

    fn rates(&self) -> MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a device says of them; `device` is the processor's name.
    pub(crate) fn facts(&self, device: &str) -> Vec<EngineFacts> {
        let facts = |engine: &str| EngineFacts {
            engine: engine.to_owned(),
            unusable: self.tract.as_ref().err().filter(|_| engine == "tract").cloned(),
            device: Some(device.to_owned()).filter(|device| !device.is_empty()),
            gflops: self.rates().get(engine).copied(),
            ..EngineFacts::default()
        };
        CPU.map(facts).into()
    }

    /// Keeps measured rates for agents; which files could not be written.
    fn keep(&self, rates: &Rates, files: &[PathBuf]) -> Vec<String> {
        let write = |file: &PathBuf| {
            let written = rates::write(file, self.key.clone(), rates.clone());
            Some(format!("{}: {}", rates::file(file).display(), written.err()?))
        };
        files.iter().filter_map(write).collect()
    }

    /// Loads an ONNX file into one of [`CPU`].
    ///
    /// # Errors
    /// [`SessionError`] when the engine does not take the model, failed, or is not there.
    ///
    /// # Panics
    /// For another name.
    pub(crate) fn load(&self, engine: &str, onnx: &[u8]) -> Result<AnySession, SessionError> {
        match (engine, &self.tract) {
            ("native", _) => Ok(AnySession::Own(Native.load(onnx)?.into())),
            ("tract", Ok(helper)) => Ok(AnySession::Helped(Arc::new(helper.session(onnx)?))),
            ("tract", Err(reason)) => Err(SessionError::Absent(reason.clone())),
            (other, _) => unreachable!("{other} is no engine of the CPU"),
        }
    }

    /// Whether one of [`CPU`] is there.
    fn has(&self, engine: &str) -> bool {
        engine != "tract" || self.tract.is_ok()
    }
}

/// How far an engine's outputs may lie from the CPU's, relative to the largest of an output:
/// additions in another order make differences of 1e-6 to 1e-4 in deep networks.
pub(crate) const TOLERANCE: f32 = 1e-3;

/// What is known of the helper's engines on this device.
#[derive(Debug, Clone, Default)]
pub struct Engines {
    /// Results of the probes; one for each of [`HELPED`].
    pub probed: Vec<Probed>,
    /// Files that could not be written, with the reasons.
    pub(crate) problems: Vec<String>,
    /// Engines that another probe may find usable though nothing has changed.
    passing: Vec<String>,
    /// Whether an engine lacks something that may be installed later.
    lacking: bool,
    helpers: Vec<Helper>,
}

impl Engines {
    /// Probes the helper's engines; may take minutes where drivers hang. Helpers that were there
    /// `before` stay, with the models in them.
    pub fn probe(options: &Options, before: Option<&Self>) -> Self {
        let (forbidden, allowed): (Vec<&str>, Vec<&str>) =
            HELPED.into_iter().partition(|engine| options.forbidden.iter().any(|it| it == engine));
        let program = options.accel();
        let mut known = Self::default();
        match &program {
            Ok(program) => {
                let read = options.kept.first().filter(|_| !options.afresh);
                let keep = Keep { read: read.map(PathBuf::as_path), written: &options.kept };
                let (outcomes, problems) =
                    probe::probe_all(program, &allowed, keep, SystemTime::now());
                known.problems = problems;
                for outcome in outcomes {
                    if outcome.may_pass() {
                        known.passing.push(outcome.probed.engine.clone());
                    }
                    known.probed.push(outcome.probed);
                }
            }
            Err(reason) => {
                let lacking = |engine: &&str| probe::unusable(engine, reason.clone());
                known.probed.extend(allowed.iter().map(lacking));
            }
        }
        known.lacking = known.probed.iter().any(|probed| probed.unusable.is_some());
        let reason = "this device's configuration forbids it";
        let forbidden = forbidden.iter().map(|engine| probe::unusable(engine, reason.to_owned()));
        known.probed.extend(forbidden);
        let usable = |engine: &&str| {
            known.probed.iter().any(|probed| probed.engine == *engine && probed.unusable.is_none())
        };
        let helpers = program.iter().flat_map(|program| {
            let helper = |engine| {
                let there = before.and_then(|before| before.helper(engine)).cloned();
                there.unwrap_or_else(|| Helper::new(engine, program.clone(), options.threads))
            };
            HELPED.into_iter().filter(usable).map(helper)
        });
        known.helpers = helpers.collect();
        known
    }

    /// After how long another probe has a sense, if it has one: a crash is forgotten then, and what
    /// was lacking may be there.
    pub(crate) fn again_after(&self) -> Option<Duration> {
        self.lacking.then_some(probe::CRASH_KEPT + Duration::from_secs(1))
    }

    /// Whether an engine that cannot be used may be usable later.
    pub(crate) fn may_pass(&self, engine: &str) -> bool {
        self.passing.iter().any(|passing| passing == engine)
    }

    /// The helper of an engine that can be used.
    pub(crate) fn helper(&self, engine: &str) -> Option<&Helper> {
        self.helpers.iter().find(|helper| helper.name() == engine)
    }

    /// Why an engine of the helper cannot be used.
    pub(crate) fn unusable(&self, engine: &str) -> Option<&str> {
        self.probed.iter().find(|probed| probed.engine == engine)?.unusable.as_deref()
    }

    /// What a device says of them.
    pub(crate) fn facts(&self) -> Vec<EngineFacts> {
        self.probed.iter().map(facts).collect()
    }
}

fn facts(probed: &Probed) -> EngineFacts {
    let Probed { engine, unusable, device, driver, library, memory, gflops } = probed.clone();
    EngineFacts { engine, unusable, device, driver, library, memory: memory.map(Bytes), gflops }
}

/// Names of all engines that can be used, those of the helper in front.
pub(crate) fn names(cpu: &Cpu, known: Option<&Engines>) -> Vec<String> {
    let helped = known.map(|known| known.helpers.as_slice()).unwrap_or_default();
    let own = CPU.into_iter().filter(|engine| cpu.has(engine));
    helped.iter().map(Engine::name).chain(own).map(str::to_owned).collect()
}

/// The library of ONNX Runtime that engines of this device would load, for a user whose home
/// directory is `home` where it is not this one's: `Ok(None)` if none is found.
///
/// # Errors
/// Why there is no helper that would load one.
pub(crate) fn onnxruntime(
    options: &Options,
    home: Option<&Path>,
) -> Result<Option<PathBuf>, String> {
    Ok(probe::library(&options.accel()?, home))
}

/// What decides over the engines.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The program `dunlin-accel`; the usual places if `None`.
    pub accel: Option<PathBuf>,
    /// The program `dunlin-tract`; the usual places if `None`.
    pub tract: Option<PathBuf>,
    /// Engines that are not to be touched.
    pub forbidden: Vec<String>,
    /// ONNX Runtime's library or its folder; the usual places if `None`.
    pub onnxruntime: Option<PathBuf>,
    /// Threads of an engine that runs on the CPU, 0 for all.
    pub threads: usize,
    /// Files that keep results of probes; what the first one holds counts.
    pub kept: Vec<PathBuf>,
    /// Whether what is kept does not count.
    pub afresh: bool,
    /// A folder of this agent alone, for a helper inside where the system does not run it from
    /// memory.
    pub scratch: Option<PathBuf>,
}

impl Options {
    /// For an agent with this state folder.
    pub(crate) fn of(config: &crate::config::Config, state: &Path) -> Self {
        Self {
            accel: config.accel.clone(),
            tract: config.tract.clone(),
            onnxruntime: config.onnxruntime.clone(),
            forbidden: config.forbidden_engines.clone(),
            threads: config.threads,
            kept: vec![state.join(KEPT)],
            afresh: false,
            scratch: Some(state.to_owned()),
        }
    }

    /// The program that holds the engines which load libraries.
    fn accel(&self) -> Result<Program, String> {
        let program = Program::find(Kind::Accel, self.accel.as_deref(), self.scratch.as_deref());
        program.map(|program| program.told(self.onnxruntime.as_deref()))
    }
}
