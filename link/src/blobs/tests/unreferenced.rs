//! Blobs that are removed as they were listed, or not at all.

use jobs::id::Millis;

use super::super::unreferenced::deletion;
use super::*;

async fn all(blobs: &Blobs) -> Vec<Listed> {
    blobs.list(0, 100).await.unwrap().blobs
}

async fn only(blobs: &Blobs) -> Listed {
    let [listed] = <[Listed; 1]>::try_from(all(blobs).await).unwrap();
    listed
}

#[tokio::test]
async fn blobs_are_listed_by_age_page_by_page() {
    let server = Server::start();
    let blobs = store(&server).await;
    assert_eq!(blobs.list(0, 100).await.unwrap().last, None);
    let before = blobs.server_time().await.unwrap();
    let first = blobs.put(pattern(10, 1)).await.unwrap();
    let second = blobs.put(pattern(2 * CHUNK_BYTES, 2)).await.unwrap();
    let named = blobs.put_named("update/job/1/device".to_owned(), pattern(10, 3)).await.unwrap();
    let third = blobs.put(pattern(10, 4)).await.unwrap();
    blobs.put(pattern(10, 1)).await.unwrap();
    let after = blobs.server_time().await.unwrap();

    let (mut place, mut found) = (0, Vec::new());
    let mut pages = Vec::new();
    loop {
        let page = blobs.list(place, 2).await.unwrap();
        let Some((last, written_at)) = page.last else { break };
        assert!(last > place && (before..=after).contains(&written_at));
        place = last;
        pages.push(page.blobs.len());
        found.extend(page.blobs);
    }
    let digests: Vec<_> = found.iter().map(|listed| listed.digest.clone()).collect();
    assert_eq!(digests, [second.digest, third.digest, first.digest]);
    assert_eq!(pages, [1, 2], "{named:?} is not named by its digest");
    assert_eq!(found[0].size, second.size);
    assert!(found.iter().all(|listed| (before..=after).contains(&listed.written_at)));
}

#[tokio::test]
async fn what_nobody_renews_goes_with_its_chunks() {
    let server = Server::start();
    let blobs = store(&server).await;
    let blob = blobs.put(pattern(3 * CHUNK_BYTES, 1)).await.unwrap();
    let kept = blobs.put(pattern(3 * CHUNK_BYTES, 2)).await.unwrap();
    let listed = all(&blobs).await;
    assert!(blobs.remove_listed(&listed[0]).await.unwrap());
    assert_eq!(blobs.size(&blob).await.unwrap(), None);
    assert!(!blobs.is_stored(&blob.digest).await.unwrap());
    assert!(!blobs.renew(&blob.digest).await.unwrap());
    assert_eq!(messages(&blobs).await, 4);
    // A second remover comes too late, and takes nothing away.
    assert!(!blobs.remove_listed(&listed[0]).await.unwrap());
    blobs.put(pattern(3 * CHUNK_BYTES, 1)).await.unwrap();
    assert!(!blobs.remove_listed(&listed[0]).await.unwrap());
    assert!(blobs.get(&blob).await.is_ok() && blobs.get(&kept).await.is_ok());
}

#[tokio::test]
async fn what_somebody_stores_or_renews_stays() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(CHUNK_BYTES + 1, 1);
    let blob = blobs.put(bytes.clone()).await.unwrap();
    let listed = only(&blobs).await;
    blobs.put(bytes.clone()).await.unwrap();
    assert!(!blobs.remove_listed(&listed).await.unwrap());
    let listed = only(&blobs).await;
    assert!(blobs.renew(&blob.digest).await.unwrap());
    assert!(!blobs.remove_listed(&listed).await.unwrap());
    assert!(blobs.remove_without_room(&listed).await.is_ok_and(|removed| !removed));
    assert_eq!(messages(&blobs).await, 3);
    assert!(blobs.get(&blob).await.unwrap() == bytes);
}

/// Whoever looked the blob up before it was removed is told to store it, or stores it.
#[tokio::test]
async fn what_is_removed_while_somebody_finds_it_is_stored_anew() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(CHUNK_BYTES + 1, 1);
    let blob = blobs.put(bytes.clone()).await.unwrap();
    let name = blob.object_name();
    for finish in [true, false] {
        let found = blobs.describe(name).await.unwrap();
        let listed = only(&blobs).await;
        if finish {
            assert!(blobs.remove_listed(&listed).await.unwrap());
        } else {
            blobs.write(name, &deletion(&listed), listed.sequence).await.unwrap();
        }
        let instead = blobs.renew_found(name, Some(blob.size), found).await.unwrap();
        assert!(instead.unwrap().info.is_none());
        blobs.put(bytes.clone()).await.unwrap();
        assert!(blobs.get(&blob).await.unwrap() == bytes);
    }
}

/// Two upload what is not there; the second finds it there when it is done. In between the first is
/// old.
#[tokio::test]
async fn who_comes_second_renews_what_the_first_has_stored() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(CHUNK_BYTES + 1, 1);
    let second = Upload::new(&blobs, Size(bytes.len() as u64));
    let before = blobs.describe(crate::digest::of(&bytes).hex()).await.unwrap();
    second.send_chunks(bytes.clone(), |_| ()).await.unwrap();
    let blob = blobs.put(bytes.clone()).await.unwrap();
    let listed = only(&blobs).await;
    second.commit(blob.object_name(), &blob.digest, Ok(before)).await.unwrap();
    assert!(!blobs.remove_listed(&listed).await.unwrap());
    assert_eq!(messages(&blobs).await, 3);
    assert!(blobs.get(&blob).await.unwrap() == bytes);
}

#[tokio::test]
async fn what_is_left_of_a_removal_goes() {
    let server = Server::start();
    let blobs = store(&server).await;
    let bytes = pattern(3 * CHUNK_BYTES, 1);
    let blob = blobs.put(bytes.clone()).await.unwrap();
    let listed = only(&blobs).await;
    blobs.write(blob.object_name(), &deletion(&listed), listed.sequence).await.unwrap();
    assert_eq!(messages(&blobs).await, 4);
    let left = only(&blobs).await;
    assert!(left.deleted);
    // It is stored once more meanwhile, by chunks of its own.
    blobs.put(bytes.clone()).await.unwrap();
    assert!(blobs.remove_listed(&left).await.unwrap());
    assert!(blobs.get(&blob).await.unwrap() == bytes);
    assert_eq!(messages(&blobs).await, 4);

    let listed = only(&blobs).await;
    blobs.write(blob.object_name(), &deletion(&listed), listed.sequence).await.unwrap();
    assert!(blobs.remove_listed(&only(&blobs).await).await.unwrap());
    assert_eq!(messages(&blobs).await, 0);
    // So does what another client has removed.
    let bucket = blobs.context.get_object_store("blobs").await.unwrap();
    blobs.put(bytes.clone()).await.unwrap();
    bucket.delete(blob.object_name()).await.unwrap();
    assert!(blobs.remove_listed(&only(&blobs).await).await.unwrap());
    assert_eq!(messages(&blobs).await, 0);
}

#[tokio::test]
async fn a_store_without_room_for_a_description_is_made_room_in() {
    let server = Server::start();
    let client = server.client().await;
    let context = async_nats::jetstream::new(client.clone());
    ensure(&context, Layout { blob_bytes: 100 * 1024, ..Layout::default() }).await.unwrap();
    let blobs = Blobs::new(client);
    let bytes = pattern(50 * 1024, 1);
    let old = blobs.put(bytes.clone()).await.unwrap();
    let mut seed = 2;
    let full = loop {
        match blobs.put(pattern(100, seed)).await {
            Ok(_) => seed += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, BlobError::Full { .. }), "{full:?}");
    // What is young has not to be written again to be found by who is to refer to it.
    let before = messages(&blobs).await;
    assert_eq!(blobs.put(bytes.clone()).await.unwrap(), old);
    assert!(blobs.renew(&old.digest).await.unwrap());
    assert_eq!(messages(&blobs).await, before);
    assert!(blobs.get(&old).await.unwrap() == bytes);
    let absent = crate::digest::of(b"nothing");
    assert!(!blobs.renew(&absent).await.unwrap());
    // What is older has.
    let name = old.object_name();
    let older = blobs.without_room(name, None, full.clone(), Millis(0)).await;
    assert_eq!(older.unwrap_err(), full);
    let other = blobs.without_room(name, Some(Size(7)), full.clone(), Millis(60_000)).await;
    assert_eq!(other.unwrap().unwrap().size(), Some(old.size));
    let unavailable = BlobError::unavailable("storing a blob", "no answer");
    let other = blobs.without_room(name, None, unavailable.clone(), Millis(60_000)).await;
    assert_eq!(other.unwrap_err(), unavailable);
    let listed = all(&blobs).await.remove(0);
    assert_eq!(listed.digest, old.digest);
    let before = messages(&blobs).await;
    assert!(blobs.remove_listed(&listed).await.unwrap());
    assert_eq!(messages(&blobs).await, before - 2);
    assert!(blobs.put(pattern(100, seed)).await.is_ok());
}

/// A reader that is in the middle of a blob is told that it is gone.
#[tokio::test]
async fn who_reads_what_is_removed_is_told() {
    let server = Server::start();
    let blobs = store(&server).await;
    let blob = blobs.put(pattern(20 * CHUNK_BYTES, 1)).await.unwrap();
    let mut reader = blobs.open(&blob).await.unwrap().in_batches_of(1);
    reader.next().await.unwrap().unwrap();
    assert!(blobs.remove_listed(&only(&blobs).await).await.unwrap());
    let error = loop {
        match reader.next().await {
            Ok(chunk) => assert!(chunk.is_some()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, BlobError::Damaged { .. }), "{error}");
    let error = blobs.get(&blob).await.unwrap_err();
    assert!(matches!(error, BlobError::NotFound { .. }), "{error}");
}

/// Descriptions that could purge what is not theirs.
#[tokio::test]
async fn a_description_with_a_wild_upload_is_not_listed() {
    let server = Server::start();
    let blobs = store(&server).await;
    let blob = blobs.put(pattern(10, 1)).await.unwrap();
    for wild in [">", "*", "a.b", ""] {
        describe(&blobs, &blob, |info| info["nuid"] = wild.into()).await;
        assert_eq!(all(&blobs).await, [], "{wild:?}");
    }
}
