use async_nats::header;
use futures::StreamExt as _;

use super::*;
use crate::layout::{Layout, ensure};
use crate::server::Server;

mod cluster;
mod cuts;
mod held;
mod listening;
mod unfinished;
mod unreferenced;

async fn store(server: &Server) -> Blobs {
    let client = server.client().await;
    ensure(&async_nats::jetstream::new(client.clone()), Layout::default()).await.unwrap();
    Blobs::new(client)
}

fn pattern(size: usize, seed: u8) -> Bytes {
    let mut state = u32::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..size).map(|_| next()).collect()
}

/// Says something else over the connection of `blobs`, 10 kB/s, until it is aborted.
async fn chatter(server: &Server, blobs: &Blobs) -> tokio::task::JoinHandle<()> {
    let mut noise = blobs.client.subscribe("noise").await.unwrap();
    blobs.client.flush().await.unwrap();
    let speaker = server.client().await;
    tokio::spawn(async move {
        loop {
            speaker.publish("noise", pattern(5_000, 3)).await.unwrap();
            let _ = noise.next().await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
}

async fn messages(blobs: &Blobs) -> u64 {
    let stream = blobs.context.get_stream("OBJ_blobs").await.unwrap();
    stream.cached_info().state.messages
}

#[tokio::test]
async fn blobs_of_every_size_come_back() {
    let server = Server::start();
    let blobs = store(&server).await;
    for size in [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 20 * 1024 * 1024 + 7] {
        let bytes = pattern(size, 1);
        let blob = blobs.put(bytes.clone()).await.unwrap();
        assert_eq!(blob.digest, crate::digest::of(&bytes));
        assert_eq!(blobs.size(&blob).await.unwrap(), Some(blob.size));
        assert!(blobs.get(&blob).await.unwrap() == bytes, "{size} bytes");
    }
}

#[tokio::test]
async fn other_clients_can_read_and_write_blobs() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(3 * CHUNK_BYTES, 2);
    let blob = blobs.put(bytes.clone()).await.unwrap();
    let bucket = blobs.context.get_object_store("blobs").await.unwrap();
    let mut read = Vec::new();
    let mut object = bucket.get(blob.digest.hex()).await.unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut object, &mut read).await.unwrap();
    assert!(read == bytes);

    let other = pattern(1000, 3);
    let digest = crate::digest::of(&other);
    bucket.put(digest.hex(), &mut other.as_ref()).await.unwrap();
    assert!(blobs.get_by_digest(&digest).await.unwrap() == other);
}

/// Puts a description of a blob in the place of the store's.
async fn describe(blobs: &Blobs, blob: &BlobRef, change: impl FnOnce(&mut serde_json::Value)) {
    let info = blobs.describe(blob.object_name()).await.unwrap().info.unwrap();
    let mut description = serde_json::to_value(info).unwrap();
    change(&mut description);
    let mut headers = header::HeaderMap::new();
    headers.insert(header::NATS_ROLLUP, "sub");
    let subject = meta_subject(blob.object_name());
    let payload = description.to_string().into();
    blobs.context.publish_with_headers(subject, headers, payload).await.unwrap().await.unwrap();
}

#[tokio::test]
async fn a_false_length_is_neither_believed_nor_allocated() {
    let server = Server::start();
    let blobs = store(&server).await;
    for size in [usize::MAX, 1 << 60, 200, 50] {
        let blob = blobs.put(pattern(100, 7)).await.unwrap();
        describe(&blobs, &blob, |info| info["size"] = size.into()).await;
        let error = blobs.get(&blob).await.unwrap_err();
        let BlobError::Damaged { problem, .. } = error else { panic!("{size}: {error}") };
        assert_eq!(problem, format!("it has {} bytes", Size(size as u64)));
        let error = blobs.get_by_digest(&blob.digest).await.unwrap_err();
        assert!(matches!(error, BlobError::Damaged { .. }), "{size}: {error}");
    }
}

#[tokio::test]
async fn a_blob_is_read_where_it_is_known_to_be_or_where_its_name_says() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(2 * CHUNK_BYTES + 9, 5);
    let first = blobs.put_named("parameters/a/1/1".to_owned(), bytes.clone()).await.unwrap();
    assert!(first.object.is_some());
    // Its description is not asked for.
    describe(&blobs, &first, |info| *info = "nonsense".into()).await;
    assert!(blobs.get(&first).await.unwrap() == bytes);
    assert!(blobs.get(&BlobRef { object: None, ..first.clone() }).await.is_err());
    // It was stored again meanwhile, somewhere else.
    let name = first.object_name().to_owned();
    let second = blobs.put_named(name.clone(), bytes.clone()).await.unwrap();
    assert_ne!(second.object, first.object);
    blobs.purge(first.object.as_ref().unwrap().as_str()).await;
    for blob in [&first, &second] {
        assert!(blobs.get(blob).await.unwrap() == bytes, "{blob:?}");
    }
    // Other bytes are not taken for it, wherever they are.
    let other = blobs.put_named("parameters/a/2/1".to_owned(), pattern(bytes.len(), 6)).await;
    let false_place = BlobRef { object: other.unwrap().object, ..second.clone() };
    let error = blobs.get(&false_place).await.unwrap_err();
    assert!(matches!(error, BlobError::Damaged { .. }), "{error}");
    blobs.delete(&second).await.unwrap();
    for blob in [&first, &second] {
        let error = blobs.get(blob).await.unwrap_err();
        assert!(matches!(error, BlobError::NotFound { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_unreadable_description_is_replaced_and_removed() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(100, 8);
    let blob = blobs.put(bytes.clone()).await.unwrap();
    describe(&blobs, &blob, |info| *info = "nonsense".into()).await;
    assert!(matches!(blobs.get(&blob).await, Err(BlobError::NotFound { .. })));
    blobs.put(bytes.clone()).await.unwrap();
    assert!(blobs.get(&blob).await.unwrap() == bytes);
    describe(&blobs, &blob, |info| *info = "nonsense".into()).await;
    blobs.delete(&blob).await.unwrap();
    assert_eq!(blobs.describe(blob.object_name()).await.unwrap().sequence, 0);
}

#[tokio::test]
async fn keeping_sends_no_bytes_and_replacing_leaves_no_chunks_behind() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(2 * CHUNK_BYTES, 4);
    let blob = blobs.put(bytes.clone()).await.unwrap();
    let sequence = blobs.describe(blob.object_name()).await.unwrap().sequence;
    blobs.put(bytes.clone()).await.unwrap();
    assert_eq!(blobs.describe(blob.object_name()).await.unwrap().sequence, sequence + 1);
    assert_eq!(messages(&blobs).await, 3);
    blobs.put_as(&blob, bytes.clone(), Existing::Replace).await.unwrap();
    assert_eq!(messages(&blobs).await, 3);
    blobs.put_as(&blob, bytes.clone(), Existing::Replace).await.unwrap();
    assert_eq!(messages(&blobs).await, 3);
    assert!(blobs.get(&blob).await.unwrap() == bytes);
}

#[tokio::test]
async fn many_at_once_store_one_copy() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(2 * CHUNK_BYTES, 5);
    let blob = BlobRef::by_digest(crate::digest::of(&bytes), Size(bytes.len() as u64));
    let puts = (0..4).map(|_| blobs.put_as(&blob, bytes.clone(), Existing::Replace));
    for outcome in futures::future::join_all(puts).await {
        outcome.unwrap();
    }
    assert_eq!(messages(&blobs).await, 3);
    assert!(blobs.get(&blob).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_missing_blob_is_named() {
    let server = Server::start();
    let blobs = store(&server).await;
    let digest = crate::digest::of(b"nothing");
    let error = blobs.get_by_digest(&digest).await.unwrap_err();
    assert_eq!(error, BlobError::NotFound { digest: digest.clone() });
    blobs.delete(&BlobRef::by_digest(digest, Size(7))).await.unwrap();
}

#[tokio::test]
async fn a_deleted_blob_is_gone() {
    let server = Server::start();
    let blobs = store(&server).await;
    let blob = blobs.put(pattern(10, 6)).await.unwrap();
    blobs.delete(&blob).await.unwrap();
    assert_eq!(blobs.size(&blob).await.unwrap(), None);
    assert_eq!(messages(&blobs).await, 0);
}

#[tokio::test]
async fn bytes_that_do_not_match_are_refused() {
    let server = Server::start();
    let blobs = store(&server).await;
    let wrong = BlobRef::by_digest(crate::digest::of(b"right"), Size(5));
    blobs.put_as(&wrong, "wrong".into(), Existing::Keep).await.unwrap();
    let error = blobs.get(&wrong).await.unwrap_err();
    assert!(matches!(error, BlobError::Damaged { .. }), "{error}");
    let mut reader = blobs.open(&wrong).await.unwrap().unchecked();
    assert_eq!(reader.next().await.unwrap().unwrap(), "wrong");
    assert_eq!(reader.next().await.unwrap(), None);
}

#[tokio::test]
async fn a_full_store_says_so_and_keeps_what_it_has() {
    let server = Server::start();
    let client = server.client().await;
    let context = async_nats::jetstream::new(client.clone());
    ensure(&context, Layout { blob_bytes: 5 * 1024 * 1024, ..Layout::default() }).await.unwrap();
    let blobs = Blobs::new(client);
    let first = blobs.put(pattern(1024 * 1024, 7)).await.unwrap();
    let error = blobs.put(pattern(8 * 1024 * 1024, 8)).await.unwrap_err();
    assert!(matches!(error, BlobError::Full { .. }), "{error}");
    assert!(blobs.get(&first).await.is_ok());
    assert_eq!(messages(&blobs).await, 9);
}

#[tokio::test]
async fn equal_bytes_under_names_of_their_own_live_and_die_apart() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(CHUNK_BYTES + 1, 9);
    let one = blobs.put_named("job.1.device-1".to_owned(), bytes.clone()).await.unwrap();
    let two = blobs.put_named("job.1.device-2".to_owned(), bytes.clone()).await.unwrap();
    assert_eq!(one.digest, two.digest);
    blobs.delete(&one).await.unwrap();
    assert_eq!(blobs.size(&one).await.unwrap(), None);
    assert!(blobs.get(&two).await.unwrap() == bytes);
}

/// Pieces of a blob that cannot be made to its end, if `fails`.
struct Made {
    bytes: Bytes,
    fails: bool,
}

impl Pieces for Made {
    type Error = BlobError;

    async fn next(&mut self, max: usize) -> Result<Bytes, BlobError> {
        if self.fails && self.bytes.len() <= CHUNK_BYTES {
            return Err(BlobError::unavailable("making a piece", "it was planned so"));
        }
        Ok(self.bytes.split_to(max.min(self.bytes.len())))
    }
}

#[tokio::test]
async fn what_is_made_while_it_is_sent_is_whole_or_not_there() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(3 * CHUNK_BYTES + 5, 6);
    let size = Size(bytes.len() as u64);
    let made = |fails| Made { bytes: bytes.clone(), fails };
    let failed = blobs.put_pieces("mean".to_owned(), size, made(true)).await;
    assert!(failed.unwrap_err().to_string().contains("planned"));
    assert_eq!(messages(&blobs).await, 0);
    let blob = blobs.put_pieces("mean".to_owned(), size, made(false)).await.unwrap();
    assert_eq!(blob.digest, crate::digest::of(&bytes));
    assert!(blobs.get(&blob).await.unwrap() == bytes);
}
