use std::os::unix::fs::FileExt as _;

use models::artifact::TensorInfo;
use models::engine::frames::Header;

use super::*;
use crate::engine::{About, View};

/// Loads everything but what is empty, and panics when told so.
#[derive(Debug)]
struct Fake;

#[derive(Debug)]
struct Halves(TensorInfo);

impl Engine for Fake {
    fn about(&self) -> About {
        About::default()
    }

    fn load(&self, onnx: &[u8]) -> Result<Box<dyn Model>, Refusal> {
        match onnx {
            b"" => Err(Refusal::of("it is empty".to_owned())),
            b"panic" => panic!("no node {}", 7),
            _ => Ok(Box::new(Halves(TensorInfo {
                name: "x".to_owned(),
                datatype: "UINT8".to_owned(),
                shape: vec![-1, 2],
            }))),
        }
    }
}

impl Model for Halves {
    fn inputs(&self) -> &[TensorInfo] {
        std::slice::from_ref(&self.0)
    }

    fn outputs(&self) -> &[TensorInfo] {
        std::slice::from_ref(&self.0)
    }

    fn run(&mut self, inputs: &[View<'_>], body: &mut Vec<u8>) -> Result<Vec<Header>, Refusal> {
        body.extend(inputs[0].bytes.iter().map(|byte| byte / 2));
        assert!(inputs[0].bytes[0] != 13, "an unlucky number");
        let shape = inputs[0].shape.to_vec();
        Ok(vec![Header { datatype: "UINT8".to_owned(), shape }])
    }
}

fn frame(request: &Request, body: &[u8]) -> Vec<u8> {
    [&frames::encode(request, body.len()).unwrap(), body].concat()
}

type Answered = (Reply, Vec<u8>);

/// Replies with their bodies from the pipe, and how it ended.
fn ask(requests: &[Vec<u8>]) -> (Vec<Answered>, Result<(), ServeError>) {
    ask_with(None, requests)
}

fn ask_with(
    memory: Option<Memory>,
    requests: &[Vec<u8>],
) -> (Vec<Answered>, Result<(), ServeError>) {
    let (mut bytes, shared) = (Vec::new(), memory.is_some());
    let ended = serve("fake", &Fake, requests.concat().as_slice(), &mut bytes, memory);
    let (mut rest, mut replies) = (bytes.as_slice(), Vec::new());
    while let Some((prefix, after)) = rest.split_first_chunk() {
        let lengths = frames::lengths(*prefix).unwrap();
        let (header, after) = after.split_at(lengths.header);
        let (body, after) = after.split_at(if lengths.shared { 0 } else { lengths.body });
        replies.push((frames::decode(header).unwrap(), body.to_vec()));
        rest = after;
    }
    let engine = "fake".to_owned();
    assert_eq!(replies[0].0, Reply::Hello { protocol: PROTOCOL, engine, memory: shared });
    replies.remove(0);
    (replies, ended)
}

fn load(session: u64, onnx: &[u8]) -> Vec<u8> {
    frame(&Request::Load { session }, onnx)
}

fn run(session: u64, bytes: &[u8]) -> Vec<u8> {
    let header = Header { datatype: "UINT8".to_owned(), shape: vec![bytes.len() / 2, 2] };
    frame(&Request::Run { session, inputs: vec![header] }, bytes)
}

fn refusal(reply: &Answered) -> &str {
    match reply {
        (Reply::Refused { reason, .. }, body) if body.is_empty() => reason,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_panic_is_a_refusal_and_nothing_of_it_is_answered() {
    let (replies, ended) = ask(&[
        load(1, b"panic"),
        load(1, b""),
        load(1, b"model"),
        run(1, &[13, 1]),
        run(1, &[12, 4, 2, 1]),
    ]);
    assert!(ended.is_ok());
    assert_eq!(refusal(&replies[0]), "the engine panicked: no node 7");
    assert_eq!(refusal(&replies[1]), "it is empty");
    assert!(matches!(replies[2].0, Reply::Loaded { .. }));
    assert_eq!(refusal(&replies[3]), "the engine panicked: an unlucky number");
    assert!(matches!(replies[4].0, Reply::Answered { .. }));
    assert_eq!(replies[4].1, [6, 2, 1, 0]);
}

#[test]
fn a_failed_load_leaves_nothing_of_the_model_before() {
    let (replies, _) = ask(&[load(1, b"model"), load(1, b""), run(1, &[2, 2])]);
    assert!(refusal(&replies[2]).contains("session 1 is not loaded"));
}

#[test]
fn so_many_models_and_no_more_are_loaded() {
    let most = u64::try_from(SESSIONS_MAX).unwrap();
    let mut requests: Vec<Vec<u8>> = (0..=most).map(|session| load(session, b"model")).collect();
    requests.push(frame(&Request::Unload { session: 3 }, b""));
    requests.push(load(most, b"model"));
    let (replies, ended) = ask(&requests);
    assert!(ended.is_ok());
    assert!(refusal(&replies[SESSIONS_MAX]).contains("unload one first"));
    assert!(matches!(replies[SESSIONS_MAX + 2].0, Reply::Loaded { .. }));
}

#[test]
fn a_pipe_that_closes_within_a_frame_is_an_error() {
    let whole = run(1, &[2, 2]);
    for length in [1, PREFIX - 1, PREFIX, PREFIX + 5, whole.len() - 1] {
        let (replies, ended) = ask(&[whole[..length].to_vec()]);
        assert!(replies.is_empty() && matches!(ended, Err(ServeError::Pipe(_))), "{length}");
    }
    // A body that is announced and does not come takes no memory to speak of.
    let mut announced = whole;
    announced[4..PREFIX].copy_from_slice(&(1_u64 << 31).to_le_bytes());
    assert!(matches!(ask(&[announced]).1, Err(ServeError::Pipe(_))));
}

/// A request to run a model on so many bytes, which are where the last of it says.
fn run_shared(len: usize, place: &[u8]) -> Vec<u8> {
    let header = Header { datatype: "UINT8".to_owned(), shape: vec![len / 2, 2] };
    let request = Request::Run { session: 1, inputs: vec![header] };
    [&*frames::encode_shared(&request, len).unwrap(), place].concat()
}

#[test]
fn long_bodies_lie_in_the_memory_and_short_ones_follow() {
    let len = PIPED_MAX + 2;
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![8; len], 0).unwrap();
    let memory = Memory::of(file.try_clone().unwrap()).unwrap();
    let in_place = run_shared(len, &[frames::IN_PLACE]);
    let (replies, ended) = ask_with(Some(memory), &[load(1, b"model"), in_place, run(1, &[12, 4])]);
    assert!(ended.is_ok());
    assert!(matches!(replies[1].0, Reply::Answered { .. }));
    assert!(replies[1].1.is_empty());
    assert_eq!(replies[2].1, [6, 2]);
    let mut found = vec![0; len];
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == vec![4; len]);
    // There was no memory left for it.
    let follows = run_shared(len, &[&[frames::FOLLOWS][..], &vec![6; len]].concat());
    let memory = Memory::of(file.try_clone().unwrap()).unwrap();
    let (replies, ended) = ask_with(Some(memory), &[load(1, b"model"), follows]);
    assert!(ended.is_ok());
    assert!(matches!(replies[1].0, Reply::Answered { .. }));
    file.read_exact_at(&mut found, 0).unwrap();
    assert!(found == vec![3; len]);
}

#[test]
fn bodies_that_are_not_in_the_memory_end_it() {
    let requests = [load(1, b"model"), run_shared(PIPED_MAX + 2, &[frames::IN_PLACE])];
    let ended = ask(&requests).1;
    assert!(matches!(ended, Err(ServeError::Frame(FrameError::NotShared))), "{ended:?}");
    let ended = ask(&[load(1, b"model"), run_shared(PIPED_MAX + 2, &[2])]).1;
    assert!(matches!(ended, Err(ServeError::Frame(FrameError::Place(2)))), "{ended:?}");
    let short = tempfile::tempfile().unwrap();
    short.set_len(PIPED_MAX as u64).unwrap();
    let ended = ask_with(Some(Memory::of(short).unwrap()), &requests).1;
    assert!(matches!(ended, Err(ServeError::Pipe(_))), "{ended:?}");
}
