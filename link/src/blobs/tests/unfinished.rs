//! Chunks of uploads that died.

use std::time::{Duration, Instant, SystemTime};

use jobs::id::Millis;

use super::super::unfinished::Pulse;
use super::*;

const AT_ONCE: Millis = Millis(0);

/// Sends the chunks of an upload, and dies.
async fn die(blobs: &Blobs, size: usize, seed: u8) {
    let upload = Upload::new(blobs, Size(size as u64));
    upload.send_chunks(pattern(size, seed), |_| ()).await.unwrap();
}

#[tokio::test]
async fn chunks_of_uploads_that_died_go_and_others_stay() {
    let server = Server::start();
    let blobs = store(&server).await;
    assert_eq!(blobs.remove_rested(AT_ONCE).await.unwrap(), 0);
    let bytes = pattern(3 * CHUNK_BYTES, 1);
    let blob = blobs.put(bytes.clone()).await.unwrap();
    let named = blobs.put_named("parameters/job/1".to_owned(), bytes.clone()).await.unwrap();
    let before = messages(&blobs).await;
    for seed in 2..4 {
        die(&blobs, 2 * CHUNK_BYTES + 1, seed).await;
    }
    assert_eq!(messages(&blobs).await, before + 6);
    assert_eq!(blobs.remove_unfinished().await.unwrap(), 0, "they may go on");
    assert_eq!(messages(&blobs).await, before + 6);
    assert_eq!(blobs.remove_rested(AT_ONCE).await.unwrap(), 2);
    assert_eq!(messages(&blobs).await, before);
    for blob in [&blob, &named] {
        assert!(blobs.get(blob).await.unwrap() == bytes);
    }
}

/// More of them than descriptions, and descriptions, come on a page.
#[tokio::test]
async fn many_are_told_apart() {
    let server = Server::start();
    let blobs = store(&server).await;
    let mut stored = Vec::new();
    for number in 0..300 {
        stored.push(blobs.put_named(format!("update/job/{number}"), pattern(9, 1)).await.unwrap());
        if number % 50 == 0 {
            die(&blobs, 9, 2).await;
        }
    }
    assert_eq!(blobs.remove_rested(AT_ONCE).await.unwrap(), 6);
    assert_eq!(blobs.remove_rested(AT_ONCE).await.unwrap(), 0);
    for blob in &stored {
        assert!(blobs.get(blob).await.is_ok());
    }
}

#[tokio::test]
async fn a_description_that_cannot_be_read_keeps_everything() {
    let server = Server::start();
    let blobs = store(&server).await;
    die(&blobs, 9, 1).await;
    let odd = blobs.context.publish(meta_subject("odd"), "of tomorrow".into()).await.unwrap();
    odd.await.unwrap();
    let error = blobs.remove_rested(AT_ONCE).await.unwrap_err();
    assert!(matches!(error, BlobError::Unavailable { .. }), "{error}");
    assert_eq!(messages(&blobs).await, 2);
}

#[tokio::test]
async fn an_upload_that_rested_for_long_is_given_up() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(2 * CHUNK_BYTES, 1);
    let upload = Upload::new(&blobs, Size(bytes.len() as u64));
    upload.send_chunks(bytes.clone(), |_| ()).await.unwrap();
    let ago = |minutes| {
        let now = SystemTime::now();
        (Instant::now(), now.checked_sub(Duration::from_mins(minutes)).unwrap())
    };
    upload.pulse().beat(ago(31));
    let digest = crate::digest::of(&bytes);
    let before = blobs.describe(digest.hex()).await;
    let error = upload.commit(digest.hex(), &digest, before).await.unwrap_err();
    assert!(error.to_string().contains("rested for"), "{error}");
    assert_eq!(messages(&blobs).await, 0);

    let pulse = Pulse::default();
    assert!(pulse.check().is_ok() && !pulse.is_weak(), "nothing was sent");
    for (minutes, is_weak, is_alive) in [(0, false, true), (20, true, true), (31, true, false)] {
        pulse.beat(ago(minutes));
        assert_eq!((pulse.is_weak(), pulse.check().is_ok()), (is_weak, is_alive), "{minutes}");
    }
}
