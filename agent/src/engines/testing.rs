//! A helper for tests: this test program itself, started by a script, behaves as it is told to.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use models::engine::frames::{self, Cause, Lengths, Reply, Request};
use models::engine::tract::Tract;
use models::engine::{Engine as _, Session};
use models::tensor::Tensor;

/// What a helper does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fake {
    /// Answers as tract does.
    Plain,
    /// Answers as tract does; what it was asked before it answers at once.
    Good,
    /// The same, as `ort-cpu` too.
    Both,
    /// The same with numbers that are wrong.
    Wrong,
    /// Gives wrong numbers for more than one example.
    WrongBatches,
    /// Lacks memory for more than one example.
    TakesOne,
    /// Says that it does not take the model.
    Refuses,
    /// Crashes when it is asked for what it has not seen: the golden input it has.
    Crashes,
    /// The same, but only one of its processes does.
    CrashesOnce,
    /// The same by a signal.
    Dies,
    /// The same by not answering.
    Hangs,
    /// The same by something that is no frame.
    Babbles,
    /// The same by a body that is longer than the memory, which it cannot cut off.
    Overstates,
    /// Says that it lacks memory, instead of crashing.
    LacksMemory,
    /// From the first input that it has not seen on, one of its processes refuses whatever it is
    /// asked.
    Sticks,
    /// Lacks memory for the first model that it is to load.
    LoadsLater,
    /// Ends while it starts.
    EndsAtOnce,
    /// Ends while it loads a model.
    EndsLoading,
    /// The same, but only one of its processes does.
    EndsLoadingOnce,
    /// Says nothing when it is started; as `ort-cpu` it is good.
    HangsAtHello,
    /// Does not end loading a model; as `ort-cpu` it is good.
    HangsLoading,
}

impl Fake {
    const ALL: [Fake; 21] = [
        Fake::Plain,
        Fake::Good,
        Fake::Both,
        Fake::Wrong,
        Fake::WrongBatches,
        Fake::TakesOne,
        Fake::Refuses,
        Fake::Crashes,
        Fake::CrashesOnce,
        Fake::Dies,
        Fake::Hangs,
        Fake::Babbles,
        Fake::Overstates,
        Fake::LacksMemory,
        Fake::Sticks,
        Fake::LoadsLater,
        Fake::EndsAtOnce,
        Fake::EndsLoading,
        Fake::EndsLoadingOnce,
        Fake::HangsAtHello,
        Fake::HangsLoading,
    ];
}

/// Writes a helper; of the engines that are probed `cuda` alone is usable, or `ort-cpu` too.
pub(crate) fn write(folder: &Path, fake: Fake) -> PathBuf {
    let path = folder.join(format!("helper-{fake:?}"));
    let own = std::env::current_exe().unwrap();
    let both = [Fake::Both, Fake::HangsAtHello, Fake::HangsLoading].contains(&fake);
    let second = if both { "ort-cpu" } else { "cuda" };
    let text = format!(
        r#"#!/bin/sh
[ "$1" = libraries ] && exit 0
if [ "$1" = probe ]; then
    [ "$2" = cuda ] || [ "$2" = {second} ] &&
        echo '{{"engine":"'$2'","device":"a fake","gflops":1.5}}' ||
        echo "{{\"engine\":\"$2\",\"unusable\":\"this is a fake\"}}"
    exit 0
fi
echo $$ >>"$0.processes"
exec 3>&1 1>&2
DUNLIN_FAKE="{fake:?} $2 $0" exec {own} --exact engines::testing::fake_helper --nocapture --test-threads 1
"#,
        own = own.display()
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Stops every process of a helper, as one that hangs.
pub(crate) fn stop_all(helper: &Path) {
    let processes = std::fs::read_to_string(helper.with_extension("processes")).unwrap();
    for process in processes.lines() {
        let process = rustix::process::Pid::from_raw(process.parse().unwrap()).unwrap();
        // It may have ended.
        let _ = rustix::process::kill_process(process, rustix::process::Signal::STOP);
    }
}

/// The helper, where the script says so; nothing among the tests.
#[test]
fn fake_helper() {
    let Ok(variable) = std::env::var("DUNLIN_FAKE") else { return };
    let mut words = variable.splitn(3, ' ');
    let [name, engine, path] = std::array::from_fn(|_| words.next().unwrap());
    let fake = Fake::ALL.into_iter().find(|fake| format!("{fake:?}") == name).unwrap();
    if fake == Fake::EndsAtOnce {
        end(101);
    }
    if fake == Fake::HangsAtHello && engine != "ort-cpu" {
        hang();
    }
    let mut out = std::fs::OpenOptions::new().write(true).open("/proc/self/fd/3").unwrap();
    // One of them has pipes alone.
    let memory = (fake != Fake::Plain).then(memory);
    let hangs = fake == Fake::HangsLoading && engine != "ort-cpu";
    let (protocol, engine) = (frames::PROTOCOL, engine.to_owned());
    let hello = Reply::Hello { protocol, engine, memory: memory.is_some() };
    say(&mut out, &hello, &[]);
    let mut models: HashMap<u64, Box<dyn Session>> = HashMap::new();
    let mut seen = Seen::default();
    while let Some((request, body)) = listen(&mut std::io::stdin().lock(), memory.as_ref()) {
        match request {
            Request::Load { .. } if fake == Fake::Refuses => {
                let reason = "operator Relu".to_owned();
                let refused = &Reply::Refused { reason, cause: Cause::Operator };
                say(&mut out, refused, &[]);
            }
            Request::Load { .. } if fake == Fake::LoadsLater && is_first(path) => {
                refuse(&mut out, "out of memory");
            }
            Request::Load { .. } if fake == Fake::EndsLoading => end(3),
            Request::Load { .. } if fake == Fake::EndsLoadingOnce && is_first(path) => end(3),
            Request::Load { .. } if hangs => hang(),
            Request::Load { session } => {
                let model = match Tract.load(&body) {
                    Ok(model) => model,
                    Err(error) => {
                        let (reason, cause) = (error.to_string(), Cause::Other);
                        say(&mut out, &Reply::Refused { reason, cause }, &[]);
                        continue;
                    }
                };
                let (inputs, outputs) = (model.inputs().to_vec(), model.outputs().to_vec());
                models.insert(session, model);
                say(&mut out, &Reply::Loaded { inputs, outputs }, &[]);
            }
            Request::Unload { session } => {
                models.remove(&session);
                say(&mut out, &Reply::Unloaded, &[]);
            }
            Request::Run { session, inputs } => {
                let model = models[&session].as_ref();
                run(&mut out, (fake, path), model, &mut seen, (&inputs, body));
            }
        }
    }
    end(0);
}

/// What it has seen, with the answers; and whether it answers nothing any more.
#[derive(Default)]
struct Seen {
    answers: HashMap<Vec<u8>, Vec<Tensor>>,
    stuck: bool,
}

fn run(
    out: &mut impl Write,
    (fake, path): (Fake, &str),
    model: &dyn Session,
    seen: &mut Seen,
    (inputs, body): (&[frames::Header], Vec<u8>),
) {
    let Seen { answers, stuck } = seen;
    let many = inputs[0].shape[0] > 1;
    if many && fake == Fake::TakesOne {
        return refuse(out, "out of memory");
    }
    // Of a golden input there are two.
    if !many && !answers.is_empty() && !answers.contains_key(&body) {
        if fake == Fake::LacksMemory {
            return refuse(out, "out of memory");
        }
        *stuck |= fake == Fake::Sticks && is_first(path);
        misbehave(fake, path, out);
    }
    if *stuck {
        return refuse(out, "CUDA error 700");
    }
    if fake == Fake::Plain {
        answers.clear();
    }
    let outputs = answers
        .entry(body)
        .or_insert_with_key(|body| model.run(&frames::unpack(inputs, body).unwrap()).unwrap());
    let mut outputs = outputs.clone();
    if fake == Fake::Wrong || (fake == Fake::WrongBatches && many) {
        let values = outputs[0].as_f32().unwrap();
        let wrong = values.iter().map(|value| value * 1.5 + 1.0).collect();
        outputs[0] = Tensor::f32(outputs[0].shape(), wrong).unwrap();
    }
    let (outputs, body) = frames::pack(&outputs);
    say(out, &Reply::Answered { engine_us: 3, outputs }, &body.concat());
}

#[expect(clippy::exit, reason = "as a crash ends a process")]
fn end(code: i32) -> ! {
    std::process::exit(code)
}

fn hang() {
    std::thread::sleep(std::time::Duration::from_secs(90));
}

fn misbehave(fake: Fake, path: &str, out: &mut impl Write) {
    match fake {
        Fake::Crashes => end(101),
        Fake::CrashesOnce => {
            if is_first(path) {
                end(101);
            }
        }
        // Rust's own handler takes the first one.
        Fake::Dies => loop {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::SEGV).unwrap();
        },
        Fake::Hangs => hang(),
        Fake::Babbles => out.write_all(b"cuda error: out of memory, aborting\n").unwrap(),
        Fake::Overstates => {
            assert!(memory().set_len(3).is_err());
            let reply = Reply::Answered { engine_us: 3, outputs: Vec::new() };
            out.write_all(&frames::encode_shared(&reply, 1 << 30).unwrap()).unwrap();
        }
        Fake::Plain
        | Fake::Good
        | Fake::Both
        | Fake::Wrong
        | Fake::WrongBatches
        | Fake::TakesOne
        | Fake::Refuses
        | Fake::LacksMemory
        | Fake::Sticks
        | Fake::LoadsLater
        | Fake::EndsAtOnce
        | Fake::EndsLoading
        | Fake::EndsLoadingOnce
        | Fake::HangsAtHello
        | Fake::HangsLoading => {}
    }
}

/// Whether none of the program's processes has asked before.
fn is_first(path: &str) -> bool {
    File::create_new(format!("{path}.first")).is_ok()
}

fn refuse(out: &mut impl Write, reason: &str) {
    let (reason, cause) = (reason.to_owned(), Cause::Other);
    say(out, &Reply::Refused { reason, cause }, &[]);
}

fn say(out: &mut impl Write, reply: &Reply, body: &[u8]) {
    out.write_all(&frames::encode(reply, body.len()).unwrap()).unwrap();
    out.write_all(body).unwrap();
}

/// The file that the agent shares.
fn memory() -> File {
    let path = std::env::var(frames::MEMORY).unwrap();
    File::options().read(true).write(true).open(path).unwrap()
}

fn listen(input: &mut impl Read, memory: Option<&File>) -> Option<(Request, Vec<u8>)> {
    let mut prefix = [0; frames::PREFIX];
    input.read_exact(&mut prefix).ok()?;
    let Lengths { header, body, shared } = frames::lengths(prefix).unwrap();
    assert_eq!(shared, memory.is_some() && body > frames::PIPED_MAX);
    let (mut header, mut body) = (vec![0; header], vec![0; body]);
    input.read_exact(&mut header).ok()?;
    let mut place = [frames::FOLLOWS];
    if shared {
        input.read_exact(&mut place).ok()?;
    }
    match memory.filter(|_| place == [frames::IN_PLACE]) {
        Some(memory) => memory.read_exact_at(&mut body, 0).unwrap(),
        None => input.read_exact(&mut body).ok()?,
    }
    Some((frames::decode(&header).unwrap(), body))
}
