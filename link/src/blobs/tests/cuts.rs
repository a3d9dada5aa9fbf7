//! Transfers whose connection is cut in the middle, or slow, or whose answers are lost.

use futures::StreamExt as _;

use super::*;
use crate::connect::{Options, connect};
use crate::proxy::Proxy;

const MIB: u64 = 1024 * 1024;
/// Chunks that may be under way.
const WINDOW: u64 = 8 * MIB;

/// The store as the device sees it: through a connection that can be cut and mends itself.
async fn through(proxy: &Proxy) -> Blobs {
    let options = Options { servers: proxy.url(), ..Options::default() };
    Blobs::new(connect(&options).await.unwrap().0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_after_cuts_and_sends_no_more_than_a_window_again() {
    let server = Server::start();
    let near = store(&server).await;
    let proxy = Proxy::to(server.port());
    let far = through(&proxy).await;
    let bytes = pattern(40 * 1024 * 1024 + 5, 1);
    let size = bytes.len() as u64;
    for (number, cuts) in
        [vec![20 * MIB], vec![1], vec![6 * MIB, 9 * MIB, 30 * MIB]].iter().enumerate()
    {
        let (before, _) = proxy.passed();
        proxy.cut_after_sending(cuts[0]);
        let name = format!("update/{number}");
        let (sending, cutting) = (far.put_named(name, bytes.clone()), async {
            for later in &cuts[1..] {
                while proxy.is_armed() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                proxy.cut_after_sending(*later - cuts[0]);
            }
        });
        let (blob, ()) = futures::join!(sending, cutting);
        let blob = blob.unwrap();
        assert!(!proxy.is_armed(), "the connection was cut");
        let sent = proxy.passed().0 - before;
        let most = size + cuts.len() as u64 * (WINDOW + MIB) + MIB;
        assert!(sent <= most, "{sent} bytes of {size} were sent, {most} at most");
        assert_eq!(blob.digest, crate::digest::of(&bytes));
        assert!(near.get(&blob).await.unwrap() == bytes, "cuts {cuts:?}");
        let found = near.describe(blob.object_name()).await.unwrap().info.unwrap();
        let chunks = near.context.get_stream("OBJ_blobs").await.unwrap();
        let chunks = chunks.info_with_subjects(chunk_subject(&found.nuid)).await.unwrap();
        let counted: Vec<(String, usize)> =
            chunks.map(|subject| subject.unwrap()).collect::<Vec<_>>().await;
        assert_eq!(counted.iter().map(|(_, count)| count).sum::<usize>(), found.chunks);
        near.delete(&blob).await.unwrap();
    }
    assert_eq!(messages(&near).await, 0, "no chunk is left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_download_goes_on_after_cuts_and_reads_no_more_than_a_batch_again() {
    let server = Server::start();
    let near = store(&server).await;
    let bytes = pattern(24 * 1024 * 1024 + 5, 2);
    let blob = near.put(bytes.clone()).await.unwrap();
    let proxy = Proxy::to(server.port());
    let far = through(&proxy).await;
    for cut in [1, 10 * MIB, 23 * MIB] {
        let (_, before) = proxy.passed();
        proxy.cut_after_receiving(cut);
        assert!(far.get(&blob).await.unwrap() == bytes);
        assert!(!proxy.is_armed(), "the connection was cut");
        let received = proxy.passed().1 - before;
        let most = blob.size.0 + 4 * MIB + 2 * MIB;
        assert!(received <= most, "{received} bytes of {} were read, {most} at most", blob.size);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_keep_to_a_limit() {
    let server = Server::start();
    let blobs = store(&server).await.limited_to(2 * MIB);
    let bytes = pattern(5 * 1024 * 1024, 3);
    let began = std::time::Instant::now();
    let blob = blobs.put(bytes.clone()).await.unwrap();
    assert!(blobs.get(&blob).await.unwrap() == bytes);
    // Of 10 MB the first two are there at once.
    let took = began.elapsed().as_secs_f64();
    assert!((3.9..8.0).contains(&took), "{took} s");
}

/// Slower than a server waits for who reads, and than an acknowledgement may take for a window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_over_a_slow_way_end_and_send_little_twice() {
    let server = Server::start();
    let near = store(&server).await;
    let bytes = pattern(720 * 1024, 4);
    let blob = near.put(bytes.clone()).await.unwrap();
    let proxy = Proxy::slow(server.port(), 60 * 1024);
    let (down, up) = (through(&proxy).await, through(&proxy).await);
    let began = std::time::Instant::now();
    let (read, stored) =
        futures::join!(down.get(&blob), up.put_named("update".to_owned(), bytes.clone()));
    let took = began.elapsed().as_secs_f64();
    assert!(read.unwrap() == bytes);
    assert!(near.get(&stored.unwrap()).await.unwrap() == bytes);
    let (sent, received) = proxy.passed();
    assert!(sent < 800 * 1024, "{sent} bytes were sent");
    assert!(received < 1500 * 1024, "{received} bytes were read");
    assert!(took < 25.0, "{took} s");
}

/// What else comes over the connection is not taken for a chunk that is on its way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_answer_of_the_store_is_missed_beside_other_traffic() {
    let (server, behind) = (Server::start(), Server::start());
    let (near, real) = (Blobs::new(server.client().await), store(&behind).await);
    let bytes = pattern(200_000, 6);
    let blob = real.put_named("parameters/a/1/1".to_owned(), bytes.clone()).await.unwrap();
    let mut requests = near.client.subscribe(direct_get()).await.unwrap();
    let speaker = near.client.clone();
    // Hands requests on to the store, but for the first, and its chunks back.
    let relay = tokio::spawn(async move {
        let _lost = requests.next().await;
        let request = requests.next().await.unwrap();
        let inbox = real.client.new_inbox();
        let mut chunks = real.client.subscribe(inbox.clone()).await.unwrap();
        real.client.publish_with_reply(direct_get(), inbox, request.payload).await.unwrap();
        while let Some(chunk) = chunks.next().await.filter(|chunk| chunk.status.is_none()) {
            let (reply, headers) = (request.reply.clone().unwrap(), chunk.headers.unwrap());
            speaker.publish_with_headers(reply, headers, chunk.payload).await.unwrap();
        }
    });
    let chatter = chatter(&server, &near).await;
    let began = std::time::Instant::now();
    assert!(near.get(&blob).await.unwrap() == bytes);
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    relay.await.unwrap();
    chatter.abort();
}

/// Who waits behind others over a slow way is not taken for lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn downloads_wait_for_each_other_over_a_slow_way() {
    let server = Server::start();
    let near = store(&server).await;
    let bytes = pattern(500 * 1024, 7);
    let blob = near.put(bytes.clone()).await.unwrap();
    let proxy = Proxy::slow(server.port(), 60 * 1024);
    let far = through(&proxy).await;
    let later = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        far.get(&blob).await
    };
    let (first, second) = futures::join!(far.get(&blob), later);
    assert!(first.unwrap() == bytes && second.unwrap() == bytes);
    let (_, received) = proxy.passed();
    assert!(received < 1060 * 1024, "{received} bytes were read");
}
