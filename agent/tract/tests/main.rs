//! The program as an agent uses it.

#![expect(clippy::unwrap_used, reason = "a test program stops at the first surprise")]

use std::io::{Read as _, Write as _};
use std::process::{Command, ExitStatus, Stdio};

use models::engine::Engine as _;
use models::engine::frames::{self, Header, PREFIX, PROTOCOL, Reply, Request};
use models::engine::native::Native;
use models::tensor::Tensor;
use models::train::{Loss, Trainer};
use models::zoo;

const SHAPE: [usize; 3] = [3, 32, 32];

struct Ended {
    replies: Vec<(Reply, Vec<u8>)>,
    status: ExitStatus,
    log: String,
}

/// Starts the program, says `input` to it, and takes what it answers.
fn run(arguments: &[&str], threads: &str, input: Vec<u8>) -> Ended {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dunlin-tract"))
        .args(arguments)
        .env("DUNLIN_THREADS", threads)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut requests = child.stdin.take().unwrap();
    // A program that ended hears nothing.
    let writer = std::thread::spawn(move || requests.write_all(&input).ok());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let (mut rest, mut replies) = (output.stdout.as_slice(), Vec::new());
    while let Some((prefix, behind)) = rest.split_first_chunk::<PREFIX>() {
        let lengths = frames::lengths(*prefix).unwrap();
        let (header, behind) = behind.split_at(lengths.header);
        let (body, behind) = behind.split_at(lengths.body);
        replies.push((frames::decode(header).unwrap(), body.to_vec()));
        rest = behind;
    }
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Ended { replies, status: output.status, log }
}

fn frame(request: &Request, body: &[u8]) -> Vec<u8> {
    [&frames::encode(request, body.len()).unwrap(), body].concat()
}

fn model() -> Vec<u8> {
    let graph = zoo::build("resnet8", SHAPE, 10, 5).unwrap();
    Trainer::for_evaluation(&graph, Loss::default()).unwrap().to_folded_onnx()
}

fn input(examples: u16) -> Tensor {
    let [c, h, w] = SHAPE;
    let count = usize::from(examples) * c * h * w;
    let values = (0..=250_u8).cycle().take(count).map(|value| f32::from(value) / 251.0);
    Tensor::f32(&[usize::from(examples), c, h, w], values.collect()).unwrap()
}

#[test]
fn it_answers_as_the_native_engine_does_whatever_the_number_of_threads() {
    let onnx = model();
    let native = Native.load(&onnx).unwrap();
    for threads in ["1", "3"] {
        let mut said = frame(&Request::Load { session: 4 }, &onnx);
        let examples = [1, 2, 70];
        for count in examples {
            let tensors = [input(count)];
            let (inputs, body) = frames::pack(&tensors);
            said.extend(frame(&Request::Run { session: 4, inputs }, &body.concat()));
        }
        let Ended { replies, status, log } = run(&["serve", "tract"], threads, said);
        assert!(status.success(), "{log}");
        let hello = Reply::Hello { protocol: PROTOCOL, engine: "tract".to_owned(), memory: false };
        assert_eq!(replies[0].0, hello);
        assert!(matches!(&replies[1].0, Reply::Loaded { inputs, .. } if inputs[0].shape[1] == 3));
        for (count, (reply, body)) in examples.into_iter().zip(&replies[2..]) {
            let Reply::Answered { outputs, .. } = reply else { panic!("{reply:?}") };
            let expected = native.run(&[input(count)]).unwrap();
            assert_eq!(outputs[0], Header::of(&expected[0]));
            let found = frames::unpack(outputs, body).unwrap();
            models::engine::choice::compare(&expected, &found, 1e-4).unwrap();
        }
    }
}

/// The kernel ends who has the most points when memory lacks.
#[test]
fn it_is_ended_before_the_agent_where_memory_lacks() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dunlin-tract"))
        .args(["serve", "tract"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut hello = [0; PREFIX];
    child.stdout.as_mut().unwrap().read_exact(&mut hello).unwrap();
    let points = std::fs::read_to_string(format!("/proc/{}/oom_score_adj", child.id())).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().is_ok() && points.trim() == "1000", "{points}");
}

#[test]
fn what_it_cannot_do_is_refused_and_it_goes_on() {
    let tensors = [input(1)];
    let (inputs, body) = frames::pack(&tensors);
    let said = [
        frame(&Request::Load { session: 1 }, b"\x89PNG"),
        frame(&Request::Load { session: 1 }, &model()),
        frame(&Request::Run { session: 1, inputs: Vec::new() }, &[]),
        frame(&Request::Run { session: 1, inputs }, &body.concat()),
    ];
    let Ended { replies, status, log } = run(&["serve", "tract"], "2", said.concat());
    assert!(status.success(), "{log}");
    let refused =
        |at: usize| matches!(&replies[at].0, Reply::Refused { reason, .. } if !reason.is_empty());
    assert!(refused(1) && refused(3), "{replies:?}");
    assert!(matches!(replies[4].0, Reply::Answered { .. }));
}

#[test]
fn wrong_usage_and_foreign_bytes_end_it_with_a_reason() {
    let ended = run(&["serve", "cuda"], "1", Vec::new());
    assert_eq!(ended.status.code(), Some(2));
    assert!(ended.log.contains("usage: dunlin-tract serve tract"), "{}", ended.log);
    let ended = run(&["serve", "tract"], "1", b"GET / HTTP/1.1\r\n\r\n".to_vec());
    assert_eq!(ended.status.code(), Some(1));
    assert!(ended.log.contains("a frame of"), "{}", ended.log);
    let ended = run(&["serve", "tract"], "many", Vec::new());
    assert!(ended.log.contains("DUNLIN_THREADS") && ended.log.contains("many"), "{}", ended.log);
}
