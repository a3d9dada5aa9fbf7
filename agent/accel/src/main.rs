//! `dunlin-accel`: runs models on engines that load shared libraries, for the agent that started
//! it.
//!
//! `serve ENGINE` speaks frames on standard input and output until the input is closed;
//! `probe ENGINE` prints one line of JSON; `libraries` prints the files that probes would load, in
//! lines; `library` the one of ONNX Runtime that most engines can use, if there is one;
//! `compare ENGINE` measures networks beside the processor,
//! for people. Exit codes: 0 done, 1 the engine cannot be used or the
//! pipe failed, 2 wrong usage, 101 a panic.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use accel::{compare, probe};
use helper::engine::Refusal;
use helper::streams;

const PROGRAM: &str = "dunlin-accel";

fn main() -> ExitCode {
    accel::prepare();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match *arguments {
        ["serve", engine] => helper::run(engine, || accel::serve(engine)),
        ["probe", engine] => print(engine),
        ["libraries"] => print_paths(accel::onnxruntime::libraries()),
        ["library"] => print_paths(accel::onnxruntime::library()),
        ["compare", engine] => streams::take_stdout()
            .map_err(Refusal::of)
            .and_then(|output| compare::compare(engine, output)),
        ["--version"] => {
            #[expect(clippy::print_stdout, reason = "what the flag is for")]
            {
                println!("{PROGRAM} {}", env!("CARGO_PKG_VERSION"));
            }
            Ok(())
        }
        _ => {
            let usage =
                format!("libraries | library | serve|probe|compare {}", accel::ENGINES.join("|"));
            return helper::misused(PROGRAM, &usage);
        }
    };
    helper::ended(PROGRAM, outcome)
}

fn print(engine: &str) -> Result<(), Refusal> {
    let mut output = streams::take_stdout().map_err(Refusal::of)?;
    let probed = probe::probe(engine);
    let mut line = serde_json::to_vec(&probed).map_err(Refusal::of)?;
    line.push(b'\n');
    output.write_all(&line).map_err(Refusal::of)
}

fn print_paths(paths: impl IntoIterator<Item = PathBuf>) -> Result<(), Refusal> {
    let mut output = streams::take_stdout().map_err(Refusal::of)?;
    for path in paths {
        let line = [path.as_os_str().as_encoded_bytes(), b"\n"].concat();
        output.write_all(&line).map_err(Refusal::of)?;
    }
    Ok(())
}
