//! Three servers that hold everything three times.

use super::*;

/// A connection to each of the servers.
async fn stores(servers: &[Server; 3]) -> [Blobs; 3] {
    let begun = std::time::Instant::now();
    let context = async_nats::jetstream::new(servers[0].client().await);
    let layout = Layout { replicas: 3, ..Layout::default() };
    // A cluster takes a while until it has elected whom it follows.
    while let Err(error) = ensure(&context, layout).await {
        assert!(begun.elapsed() < Duration::from_mins(1), "{error}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let [a, b, c] = servers;
    [a.client().await, b.client().await, c.client().await].map(Blobs::new)
}

async fn listed(blobs: &Blobs, after: u64, blob: &BlobRef) -> Listed {
    loop {
        let page = blobs.list(after, 100).await.unwrap();
        let found = page.blobs.into_iter().find(|listed| listed.digest == blob.digest);
        if let Some(found) = found {
            return found;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_while_it_is_removed_is_there() {
    let servers = Server::cluster();
    let [first, second, third] = &stores(&servers).await;
    let (mut after, mut removals) = (0, 0);
    for number in 0..200_u32 {
        let bytes = pattern(1000 + number as usize, 1);
        let blob = first.put(bytes.clone()).await.unwrap();
        let listed = listed(second, after, &blob).await;
        after = listed.sequence - 1;
        let removing = async {
            yield_often(number % 20 * 50).await;
            if number % 2 == 0 {
                second.remove_listed(&listed).await.unwrap()
            } else {
                second.remove_without_room(&listed).await.unwrap()
            }
        };
        let storing = async {
            yield_often(number % 7 * 100).await;
            first.put(bytes.clone()).await.unwrap()
        };
        let (removed, _) = tokio::join!(removing, storing);
        removals += u32::from(removed);
        assert!(third.is_stored(&blob.digest).await.unwrap(), "{number}: removed {removed}");
        assert!(third.get(&blob).await.unwrap() == bytes, "{number}: removed {removed}");
    }
    assert!((1..200).contains(&removals), "{removals} of 200 came before");
}

async fn yield_often(times: u32) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}
