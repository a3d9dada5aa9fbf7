//! `dunlin-agent probe`: which engines this device has, and why not the others.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use models::engine::frames::Probed;
use models::tensor::Tensor;
use models::train::Definition;
use models::zoo;

use super::{CPU, Cpu, Engines, KEPT, Options};

/// What is asked for.
#[derive(Debug, Clone, Args)]
pub struct ProbeArgs {
    /// The program dunlin-accel [default: the one beside this program, or inside of it]
    #[arg(long, env = "DUNLIN_ACCEL", value_name = "FILE")]
    pub accel: Option<PathBuf>,
    /// The program dunlin-tract [default: the one beside this program, or inside of it]
    #[arg(long, env = "DUNLIN_TRACT", value_name = "FILE")]
    pub tract: Option<PathBuf>,
    /// ONNX Runtime's library, or the folder that it lies in [default: what `ORT_DYLIB_PATH` names,
    /// the usual places, pip's packages]
    #[arg(long, env = "DUNLIN_ONNXRUNTIME", value_name = "PATH")]
    pub onnxruntime: Option<PathBuf>,
    /// Where the agent keeps its state, whose results are refreshed [default: those of this
    /// user's agents, and of the service]
    #[arg(long, env = "DUNLIN_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// The result as JSON
    #[arg(long)]
    pub json: bool,
    /// The processor's engines alone, behind everything else: as an agent lets them be measured
    #[arg(long, hide = true)]
    pub processor: bool,
}

/// The family whose answers are timed, with the shape of an example.
const KNOWN: (&str, [usize; 3]) = ("resnet18", [3, 32, 32]);
const CLASSES: usize = 10;
/// Runs after the first one, which is of one example; the fastest counts.
const RUNS: usize = 4;
/// Examples of each of them.
const EXAMPLES: u16 = 8;
/// None is begun after so long: one example takes a slow device seconds.
const RUNS_TIME: Duration = Duration::from_secs(2);
/// How long a run may take.
const RUN_LIMIT: Duration = Duration::from_mins(1);

/// Where an agent of the system's service keeps its state.
const SERVICE: &str = "/var/lib/dunlin-agent";

/// Probes every engine afresh and gives the result as text. What agents keep of earlier probes is
/// written anew; they read it when they are started.
#[expect(clippy::missing_panics_doc, reason = "names and numbers are JSON")]
pub fn run(args: &ProbeArgs) -> String {
    let ProbeArgs { accel, tract, onnxruntime, .. } = args.clone();
    let kept = kept(args);
    let options = Options { accel, tract, onnxruntime, kept, afresh: true, ..Options::default() };
    let helped = if args.processor {
        step_back();
        Engines::default()
    } else {
        Engines::probe(&options, None)
    };
    let cpu = Cpu::find(&options);
    let own = CPU.map(|engine| probe_cpu(&cpu, engine));
    let rate = |probed: &Probed| Some((probed.engine.clone(), probed.gflops?));
    let unkept = cpu.keep(&own.iter().filter_map(rate).collect(), &options.kept);
    let all: Vec<Probed> = own.into_iter().chain(helped.probed).collect();
    if args.json {
        return serde_json::to_string_pretty(&all).expect("names and numbers are JSON");
    }
    let mut shown = text(&all);
    for problem in helped.problems.iter().chain(&unkept) {
        let _ = write!(shown, "\nnot refreshed: {problem}");
    }
    shown
}

/// Files that keep results for agents on this device.
fn kept(args: &ProbeArgs) -> Vec<PathBuf> {
    if let Some(state) = &args.state_dir {
        // What stands in the way is told when files are written.
        let _ = std::fs::create_dir_all(state);
        return vec![state.join(KEPT)];
    }
    let below = crate::config::state_base().join("dunlin");
    let own = std::fs::read_dir(below).into_iter().flatten().filter_map(Result::ok);
    let own = own.map(|entry| entry.path());
    let service = crate::config::state_base().join("dunlin-agent");
    let files = own.chain([service, SERVICE.into()]).map(|state| state.join(KEPT));
    let mut files: Vec<PathBuf> = files.filter(|file| file.is_file()).collect();
    files.sort();
    files.dedup();
    files
}

/// Leaves processor and memory to others: where memory is short this ends before the agent.
fn step_back() {
    // Only a courtesy.
    let _ = rustix::process::setpriority_process(None, 19);
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

fn probe_cpu(cpu: &Cpu, engine: &str) -> Probed {
    let device = Some(crate::facts::read(Path::new("/")).cpu).filter(|cpu| !cpu.is_empty());
    let (gflops, unusable) = match rate(cpu, engine) {
        Ok(rate) => (Some(rate), None),
        Err(reason) => (None, Some(reason)),
    };
    Probed { engine: engine.to_owned(), unusable, device, gflops, ..Probed::default() }
}

/// Operations per second, in 10^9; of one thread where the engine uses one.
fn rate(cpu: &Cpu, engine: &str) -> Result<f64, String> {
    fn text(error: impl std::fmt::Display) -> String {
        error.to_string()
    }
    let (family, shape) = KNOWN;
    let unknown = || format!("there is no family {family}");
    let onnx = zoo::build(family, shape, CLASSES, 1).ok_or_else(unknown)?.into();
    let (definition, parameters) = Definition::read_with_parameters(&onnx).map_err(text)?;
    let onnx = definition.to_inference_onnx(&parameters.into()).map_err(text)?;
    let session = cpu.load(engine, &onnx).map_err(text)?;
    let time = |examples: u16| -> Result<Duration, String> {
        let extents: Vec<usize> = std::iter::once(examples.into()).chain(shape).collect();
        let values = vec![0.5; extents.iter().product()];
        let input = [Tensor::f32(&extents, values).map_err(text)?];
        Ok(session.run(&input, RUN_LIMIT).map_err(text)?.took / u32::from(examples))
    };
    let (began, mut best) = (Instant::now(), time(1)?);
    for _ in 0..RUNS {
        if began.elapsed() >= RUNS_TIME {
            break;
        }
        best = best.min(time(EXAMPLES)?);
    }
    let cost = zoo::cost(family, shape, CLASSES).ok_or_else(unknown)?;
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let operations = 2.0 * cost.multiply_adds as f64;
    Ok(operations / best.as_secs_f64() / 1e9)
}

fn text(all: &[Probed]) -> String {
    let mut text =
        format!("{:<10}{:<8}{:>10}  {}", "ENGINE", "USABLE", "GFLOP/S", "WHAT IT HAS, OR WHY NOT");
    for probed in all {
        let Probed { engine, unusable, device, driver, library, memory, gflops } = probed;
        let usable = if unusable.is_some() { "no" } else { "yes" };
        let rate = gflops.map_or_else(String::new, |rate| format!("{rate:.1}"));
        let memory = memory.map(|bytes| format!("{} MB", bytes / 1_000_000));
        let has = [device, driver, library, &memory].into_iter().flatten().cloned();
        let has = unusable.clone().unwrap_or_else(|| has.collect::<Vec<_>>().join(", "));
        let _ = write!(text, "\n{engine:<10}{usable:<8}{rate:>10}  {has}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::HELPED;
    use crate::engines::testing::{self, Fake};

    #[test]
    fn every_engine_is_shown_with_what_it_has_or_lacks() {
        let folder = tempfile::tempdir().unwrap();
        let accel = Some(testing::write(folder.path(), Fake::Good));
        let tract = Some(testing::write(folder.path(), Fake::Plain));
        let state_dir = Some(folder.path().to_owned());
        let args =
            ProbeArgs { accel, tract, onnxruntime: None, state_dir, json: false, processor: false };
        std::fs::write(folder.path().join(KEPT), "of an earlier probe").unwrap();
        let shown = run(&args);
        let line = |engine: &str| shown.lines().find(|line| line.starts_with(engine)).unwrap();
        for engine in CPU {
            assert!(line(engine).contains("yes"), "{shown}");
        }
        assert!(line("cuda").contains("1.5  a fake"), "{shown}");
        assert!(line("webgpu").contains("no") && line("webgpu").contains("this is a fake"));
        let all: Vec<Probed> =
            serde_json::from_str(&run(&ProbeArgs { json: true, ..args.clone() })).unwrap();
        assert_eq!(all.len(), CPU.len() + HELPED.len());
        let kept = std::fs::read_to_string(folder.path().join(KEPT)).unwrap();
        assert!(kept.contains("a fake"), "{kept}");
        let read = |tract| {
            let kept = vec![folder.path().join(KEPT)];
            Cpu::find(&Options { tract, kept, ..Options::default() }).facts("a processor")
        };
        let facts = read(args.tract.clone());
        assert_eq!(facts.iter().map(|it| it.engine.as_str()).collect::<Vec<_>>(), CPU);
        for it in facts {
            assert!(it.gflops.is_some() && it.unusable.is_none(), "{it:?}");
            assert_eq!(it.device.as_deref(), Some("a processor"));
        }
        let absent = Some(folder.path().join("absent"));
        let facts = read(absent.clone());
        assert!(facts[1].unusable.as_ref().unwrap().contains("No such file"), "{facts:?}");
        assert_eq!(facts[1].gflops, None, "of another helper");
        let shown = run(&ProbeArgs { accel: absent.clone(), tract: absent, ..args.clone() });
        let line = |engine: &str| shown.lines().find(|line| line.starts_with(engine)).unwrap();
        assert!(line("native").contains("yes"), "{shown}");
        for engine in ["tract", "cuda"] {
            assert!(line(engine).contains("absent: No such file"), "{shown}");
        }
    }

    #[test]
    fn a_state_folder_is_made_and_one_that_cannot_be_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let absent = Some(folder.path().join("absent"));
        let probe = |state: &Path| {
            run(&ProbeArgs {
                accel: absent.clone(),
                tract: absent.clone(),
                onnxruntime: None,
                state_dir: Some(state.to_owned()),
                json: false,
                processor: true,
            })
        };
        let state = folder.path().join("state/new");
        let shown = probe(&state);
        assert!(!shown.contains("not refreshed") && !shown.contains("cuda"), "{shown}");
        assert!(state.join("rates.json").is_file());
        std::fs::write(folder.path().join("file"), "").unwrap();
        let state = folder.path().join("file/state");
        let shown = probe(&state);
        let expected = format!("not refreshed: {}", state.join("rates.json").display());
        assert!(shown.contains(&expected), "{shown}");
    }

    /// The process that an agent starts, where its program, a script, says so; nothing among
    /// the tests.
    #[test]
    fn measures_for_an_agent() {
        let Ok(arguments) = std::env::var("DUNLIN_MEASURES") else { return };
        let words: Vec<&str> = arguments.split(' ').collect();
        let [state, tract] = [4, 6].map(|index| Some(PathBuf::from(words[index])));
        assert_eq!(words[..4], ["probe", "--processor", "--json", "--state-dir"]);
        let args = ProbeArgs {
            accel: None,
            tract,
            onnxruntime: None,
            state_dir: state,
            json: true,
            processor: true,
        };
        run(&args);
    }

    #[test]
    fn an_agent_lets_its_engines_be_measured_by_a_process_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("agent");
        let own = std::env::current_exe().unwrap();
        let text = format!(
            "#!/bin/sh\nDUNLIN_MEASURES=\"$*\" exec {} --exact \
             engines::table::tests::measures_for_an_agent\n",
            own.display()
        );
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let tract = Some(testing::write(folder.path(), Fake::Plain));
        let kept = vec![folder.path().join("state").join(KEPT)];
        let options = Options { tract, kept, ..Options::default() };
        let cpu = Cpu::find(&options);
        assert!(cpu.lacks_rates());
        assert_eq!(cpu.measure_rates(&program, &options), Ok(true));
        assert!(cpu.facts("").iter().all(|facts| facts.gflops.is_some()));
        let failure = cpu.measure_rates(&folder.path().join("none"), &options).unwrap_err();
        assert!(failure.contains("No such file"), "{failure}");
    }
}
