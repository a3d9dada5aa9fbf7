use std::time::Duration;

use async_nats::header::{self, HeaderMap};

use super::*;
use crate::digest;

const SOON: Duration = Duration::from_secs(10);
const SHORTLY: Duration = Duration::from_millis(100);

fn made(bytes: &Bytes) -> Made {
    Made { bytes: bytes.clone(), fails: false }
}

#[tokio::test]
async fn an_upload_is_heard_while_it_is_made() {
    let server = Server::start();
    let blobs = store(&server).await;
    let listener = Blobs::new(server.client().await);
    let bytes = pattern(3 * CHUNK_BYTES + 5, 6);
    let size = Size(bytes.len() as u64);
    let object = blobs.new_object();
    let memory = Vec::with_capacity(bytes.len());
    let place = memory.as_ptr();
    let listening = listener.listen(&object, size, memory).await.unwrap();
    // What is answered was sent after the subscription: the server has that as well.
    listener.size(&BlobRef::by_digest(digest::of(b""), Size(0))).await.unwrap();
    let blob = blobs.put_pieces_at(&object, "mean".to_owned(), size, made(&bytes)).await.unwrap();
    assert_eq!(blob.object.as_ref(), Some(&object));
    let heard = listening.whole(SOON).await.unwrap();
    assert!(heard.bytes == bytes);
    assert_eq!(heard.bytes.as_ptr(), place);
    assert!(blob.blake3.is_some());
    assert!(heard.is(&blob));
    let others = digest::of(b"others");
    let other = digest::Blake3Hasher::new().finish();
    assert!(!heard.is(&BlobRef { blake3: Some(Box::new(other)), ..blob.clone() }));
    // Who stored it may not have said so.
    assert!(heard.is(&BlobRef { blake3: None, ..blob.clone() }));
    assert!(!heard.is(&BlobRef { blake3: None, digest: others, ..blob }));
}

/// What is sent under an upload's name, each with its message id, and what is heard of it.
async fn heard_of(sent: &[(&str, &str)], size: u64) -> Option<Bytes> {
    let server = Server::start();
    let blobs = store(&server).await;
    let listening = blobs.listen(&"abc".parse().unwrap(), Size(size), Vec::new()).await.unwrap();
    for (id, chunk) in sent {
        let mut headers = HeaderMap::new();
        headers.insert(header::NATS_MESSAGE_ID, *id);
        let chunk = Bytes::copy_from_slice(chunk.as_bytes());
        blobs.client.publish_with_headers(chunk_subject("abc"), headers, chunk).await.unwrap();
    }
    listening.whole(SHORTLY).await.map(|heard| heard.bytes)
}

#[tokio::test]
async fn what_comes_twice_is_taken_once_and_what_does_not_fit_ends_it() {
    let twice = [("abc.0.0", "one "), ("abc.0.1", "one "), ("abc.1.1", "two")];
    assert_eq!(heard_of(&twice, 7).await.unwrap(), "one two");
    assert_eq!(heard_of(&twice[..1], 7).await, None, "the rest is missing");
    assert_eq!(heard_of(&[], 7).await, None);
    assert_eq!(heard_of(&[("abc.1.0", "one two")], 7).await, None, "the first is missing");
    assert_eq!(heard_of(&[("abc.0.0", "one two three")], 7).await, None, "it is too long");
    for id in ["", "abc", "abc.", "abc.0", "abc.x.0"] {
        assert_eq!(heard_of(&[(id, "one two")], 7).await, None, "{id:?} has no place");
    }
}
