use std::time::Duration;

use futures::StreamExt as _;
use jobs::id::JobId;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::record::StoredKey;
use crate::server::Server;
use crate::store::Store;
use crate::testing::PATIENCE;

/// Keys in three servers, through one of them.
async fn keys(server: &Server) -> Bucket<StoredKey> {
    let begun = Instant::now();
    loop {
        match Box::pin(Store::open(server.client().await, 3)).await {
            Ok(store) => return store.idempotency,
            // A cluster takes a while until it has elected whom it follows.
            Err(error) => assert!(begun.elapsed() < 2 * PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn value(number: u64) -> StoredKey {
    let job = JobId::parse(&format!("job-{number}")).unwrap();
    StoredKey { job, asked: link::digest::of(&number.to_le_bytes()) }
}

/// One of them was stored, and the other one learned of it.
fn one_conflicts(results: [Result<u64, StoreError>; 2]) -> u64 {
    match results {
        [Ok(revision), Err(StoreError::Conflict { .. })]
        | [Err(StoreError::Conflict { .. }), Ok(revision)] => revision,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_write_at_once_one_is_told_of_a_conflict() {
    let servers = Server::cluster();
    let (first, second) = (keys(&servers[0]).await, keys(&servers[1]).await);
    for number in 0..50 {
        let (key, values) = (format!("key-{number}"), [value(2 * number), value(2 * number + 1)]);
        let created = tokio::join!(first.create(&key, &values[0]), second.create(&key, &values[1]));
        let revision = one_conflicts(created.into());
        let updated = tokio::join!(
            first.update(&key, &values[0], revision),
            second.update(&key, &values[1], revision)
        );
        let revision = one_conflicts(updated.into());
        let stored = first.get_at_leader(&key).await.unwrap().unwrap();
        assert_eq!(stored.revision, revision, "{number}");
    }
}

/// Asking a majority removes nothing, and whoever follows the bucket is told of nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_no_server_knows_is_none_and_all_else_stays() {
    let servers = Server::cluster();
    let keys = keys(&servers[0]).await;
    let mut revisions = Vec::new();
    for number in 0..10 {
        revisions.push(keys.create(&format!("key-{number}"), &value(number)).await.unwrap());
    }
    let token = CancellationToken::new();
    let mut changes = keys.follow(token.clone());
    for _ in 0..10 {
        assert!(keys.get("another").await.unwrap().is_none());
    }
    for (number, revision) in (0..10).zip(revisions) {
        let stored = keys.get(&format!("key-{number}")).await.unwrap();
        assert_eq!(stored, Some(Versioned { value: value(number), revision }));
        let told = changes.recv().await;
        assert!(matches!(told, Some(Change::Put(_, told, _)) if told.revision == revision));
    }
    assert!(matches!(changes.recv().await, Some(Change::Current)));
    let last = keys.create("last", &value(10)).await.unwrap();
    let told = changes.recv().await;
    assert!(matches!(&told, Some(Change::Put(_, told, _)) if told.revision == last), "{told:?}");
    token.cancel();
}

/// The server forgets a watch without a word, and nobody asks for what it should have told.
#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_is_silent_is_begun_again() {
    let servers = Server::cluster();
    let keys = keys(&servers[0]).await;
    let token = CancellationToken::new();
    let mut changes = keys.follow(token.clone());
    assert!(matches!(changes.recv().await, Some(Change::Current)));
    let names: Vec<String> = keys.store.stream.consumer_names().map(Result::unwrap).collect().await;
    for name in &names {
        keys.store.stream.delete_consumer(name).await.unwrap();
    }
    let revision = keys.create("key", &value(1)).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(9), changes.recv()).await;
    let told = told.expect("it is told before the client misses a heartbeat, after ten seconds");
    assert!(
        matches!(&told, Some(Change::Put(_, told, _)) if told.revision == revision),
        "{told:?}"
    );
    token.cancel();
}

/// Jobs, trainings and devices come and go for years.
#[tokio::test]
async fn nothing_is_left_of_a_key_that_is_no_more() {
    let server = Server::start();
    let keys = Box::pin(Store::open(server.client().await, 1)).await.unwrap().idempotency;
    let token = CancellationToken::new();
    let mut changes = keys.follow(token.clone());
    assert!(matches!(changes.recv().await, Some(Change::Current)));
    keys.create("key", &value(1)).await.unwrap();
    assert!(matches!(changes.recv().await, Some(Change::Put(..))));
    keys.remove_and_tell("key", Duration::from_secs(1)).await.unwrap();
    assert!(matches!(changes.recv().await, Some(Change::Gone(..))));
    let left = async || keys.store.stream.get_info().await.unwrap().state.messages;
    let begun = Instant::now();
    while left().await > 0 {
        assert!(begun.elapsed() < PATIENCE, "{} messages", left().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    keys.create("key", &value(2)).await.unwrap();
    assert!(matches!(changes.recv().await, Some(Change::Put(..))));
    token.cancel();
}

#[tokio::test]
async fn keys_are_removed_from_a_bucket_without_room() {
    let server = Server::start();
    let keys = Box::pin(Store::open(server.client().await, 1)).await.unwrap().idempotency;
    keys.create("key", &value(1)).await.unwrap();
    let info = keys.store.stream.get_info().await.unwrap();
    let max_bytes = i64::try_from(info.state.bytes).unwrap();
    let context = async_nats::jetstream::new(server.client().await);
    let full = async_nats::jetstream::stream::Config { max_bytes, ..info.config };
    context.update_stream(full).await.unwrap();
    let refused = keys.create("other", &value(2)).await.unwrap_err();
    assert!(refused.to_string().contains("maximum bytes"), "{refused}");
    keys.remove("key").await.unwrap();
    assert_eq!(keys.get("key").await.unwrap(), None);
}
