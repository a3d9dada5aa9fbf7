//! Blobs that a device holds.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use async_nats::Message;
use async_nats::header::HeaderMap;
use futures::StreamExt as _;
use jobs::held::{HeldRequest, OFFSET_HEADER};

use super::*;

const SIZE: usize = 9 * 1024 * 1024 + 5;

fn device() -> DeviceId {
    "pi".parse().unwrap()
}

fn blob_of(bytes: &Bytes) -> BlobRef {
    let (digest, size) = (crate::digest::of(bytes), Size(bytes.len() as u64));
    BlobRef { name: Some("update/a/1/pi/1".to_owned()), ..BlobRef::by_digest(digest, size) }
}

/// Asked for the n-th time for a part of what a device holds.
type Answer = Box<dyn Fn(usize, &Message, HeldRequest) -> Vec<(u64, Bytes)> + Send + Sync>;

/// A device that answers requests so, until it is dropped.
struct Holder {
    asked: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Holder {
    async fn start(server: &Server, answer: Answer) -> Self {
        let blobs = Blobs::new(server.client().await);
        let mut requests = blobs.client.subscribe(jobs::subject::held(&device())).await.unwrap();
        blobs.client.flush().await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let task = tokio::spawn(async move {
            while let Some(message) = requests.next().await {
                let number = count.fetch_add(1, Ordering::Relaxed);
                let request: HeldRequest = serde_json::from_slice(&message.payload).unwrap();
                assert_eq!(request.name, "update/a/1/pi/1");
                let reply = message.reply.clone().unwrap();
                let parts = answer(number, &message, request);
                if parts.is_empty() {
                    blobs.refuse(&reply, "it has none").await.unwrap();
                }
                for (offset, part) in parts {
                    blobs.give(&reply, offset, part).await.unwrap();
                }
            }
        });
        Self { asked, task }
    }
}

fn part(bytes: &Bytes, request: &HeldRequest) -> (u64, Bytes) {
    let from = usize::try_from(request.from).unwrap();
    let length = usize::try_from(request.bytes.0).unwrap();
    (request.from, bytes.slice(from..from + length))
}

async fn read(blobs: &Blobs, blob: &BlobRef) -> Result<Vec<u8>, BlobError> {
    read_as(blobs, blob, None).await
}

async fn read_as(blobs: &Blobs, blob: &BlobRef, crc32: Option<u32>) -> Result<Vec<u8>, BlobError> {
    let mut reader = blobs.open_held(&device(), blob, crc32);
    let mut whole = Vec::new();
    while let Some(chunk) = reader.next().await? {
        whole.extend_from_slice(&chunk);
    }
    Ok(whole)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_is_read_from_the_device_that_holds_it() {
    let server = Server::start();
    let blobs = Blobs::new(server.client().await);
    let bytes = pattern(SIZE, 1);
    let held = bytes.clone();
    let holder =
        Holder::start(&server, Box::new(move |_, _, request| vec![part(&held, &request)])).await;
    let blob = blob_of(&bytes);
    assert!(read(&blobs, &blob).await.unwrap() == bytes);
    // It is asked for no more at once than comes in a short time.
    assert!(holder.asked.load(Ordering::Relaxed) > 2);
    let other = BlobRef { digest: crate::digest::of(b"other"), ..blob };
    let error = read(&blobs, &other).await.unwrap_err();
    assert!(matches!(error, BlobError::Damaged { .. }), "{error}");
    // A checksum is compared in place of the digest.
    let crc32 = crate::digest::crc32(&bytes);
    assert!(read_as(&blobs, &other, Some(crc32)).await.unwrap() == bytes);
    let error = read_as(&blobs, &other, Some(crc32 ^ 1)).await.unwrap_err();
    assert!(matches!(error, BlobError::Damaged { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_that_are_lost_or_come_twice_harm_nothing() {
    let server = Server::start();
    let blobs = Blobs::new(server.client().await);
    let bytes = pattern(SIZE, 2);
    let held = bytes.clone();
    let answer = move |number: usize, _: &Message, request: HeldRequest| {
        let (from, mut all) = part(&held, &request);
        let first = all.split_to(all.len() / 3);
        let behind = from + first.len() as u64;
        match number % 3 {
            // The middle is lost.
            0 => vec![(from, first), (behind + 1000, all.split_off(1000))],
            1 => vec![(from, first.clone()), (from, first), (behind, all)],
            _ => vec![(from, first), (behind, all)],
        }
    };
    let _holder = Holder::start(&server, Box::new(answer)).await;
    assert!(read(&blobs, &blob_of(&bytes)).await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_that_is_away_is_waited_for_a_while() {
    let server = Server::start();
    let blobs = Blobs::new(server.client().await);
    let bytes = pattern(1000, 3);
    let blob = blob_of(&bytes);
    let later = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let held = bytes.clone();
        Holder::start(&server, Box::new(move |_, _, request| vec![part(&held, &request)])).await
    };
    let (whole, holder) = futures::join!(read(&blobs, &blob), later);
    assert_eq!(whole.unwrap(), bytes);
    drop(holder);
    // The server may deliver to its subscription for a moment.
    let error = read(&blobs, &blob).await.unwrap_err();
    assert!(matches!(error, BlobError::Absent { .. }), "{error}");
    assert_eq!(error.code(), FailureCode::BlobUnavailable);
}

/// Whoever reads it may be busy meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_reader_takes_is_not_the_time_of_the_device() {
    let server = Server::start();
    let blobs = Blobs::new(server.client().await);
    let bytes = pattern(SIZE, 6);
    let held = bytes.clone();
    let _holder =
        Holder::start(&server, Box::new(move |_, _, request| vec![part(&held, &request)])).await;
    let within = Duration::from_secs(2);
    let reader = blobs.open_held(&device(), &blob_of(&bytes), None);
    let mut reader = reader.in_batches_of(256 * 1024).given_within(within);
    let mut whole = Vec::new();
    let mut rested = Duration::ZERO;
    while let Some(chunk) = reader.next().await.unwrap() {
        whole.extend_from_slice(&chunk);
        if rested < 2 * within {
            let rest = within / 2;
            tokio::time::sleep(rest).await;
            rested += rest;
        }
    }
    assert!(whole == bytes);
    assert!(rested >= 2 * within, "{rested:?}");

    let mut late = blobs.open_held(&device(), &blob_of(&bytes), None);
    late = late.given_within(Duration::ZERO);
    let error = late.next().await.unwrap_err();
    assert!(error.to_string().contains("bytes in time"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_says_that_it_has_nothing() {
    let server = Server::start();
    let blobs = Blobs::new(server.client().await);
    let _holder = Holder::start(&server, Box::new(|_, _, _| Vec::new())).await;
    let blob = blob_of(&pattern(1000, 4));
    let began = std::time::Instant::now();
    let error = read(&blobs, &blob).await.unwrap_err();
    assert!(error.to_string().contains("it has none"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_that_are_no_part_end_the_reading() {
    let server = Server::start();
    let blobs = Blobs::new(server.client().await);
    let speaker = server.client().await;
    let answer = move |_: usize, message: &Message, _: HeldRequest| {
        let (speaker, reply) = (speaker.clone(), message.reply.clone().unwrap());
        tokio::spawn(async move {
            let mut headers = HeaderMap::new();
            headers.insert(OFFSET_HEADER, "no number");
            speaker.publish_with_headers(reply, headers, "x".into()).await.unwrap();
        });
        vec![(u64::MAX, Bytes::new())]
    };
    let _holder = Holder::start(&server, Box::new(answer)).await;
    let error = read(&blobs, &blob_of(&pattern(1000, 5))).await.unwrap_err();
    assert!(error.to_string().contains("where it begins"), "{error}");
}

/// What else comes over the connection is not taken for a part that is on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_is_missed_beside_other_traffic() {
    let server = Server::start();
    let blobs = Blobs::new(server.client().await);
    let chatter = chatter(&server, &blobs).await;
    // More than comes of the chatter.
    let bytes = pattern(900_000, 4);
    let held = bytes.clone();
    let answer = move |number: usize, _: &Message, request: HeldRequest| match number {
        // Nothing is said.
        0 => vec![(0, Bytes::new())],
        _ => vec![part(&held, &request)],
    };
    let holder = Holder::start(&server, Box::new(answer)).await;
    let began = std::time::Instant::now();
    assert!(read(&blobs, &blob_of(&bytes)).await.unwrap() == bytes);
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    assert_eq!(holder.asked.load(Ordering::Relaxed), 3);
    chatter.abort();
}
