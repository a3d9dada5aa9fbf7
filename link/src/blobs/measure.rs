use super::*;
use crate::layout::{Layout, ensure};
use crate::server::Server;
use std::time::Instant;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measure() {
    let server = Server::start();
    let client = server.client().await;
    ensure(&async_nats::jetstream::new(client.clone()), Layout::default()).await.unwrap();
    for (size, n) in [(1usize << 20, 30), (25 << 20, 8)] {
        let make = |seed: u64| -> Bytes {
            let mut s = seed;
            (0..size / 8)
                .flat_map(|_| {
                    s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    s.to_le_bytes()
                })
                .collect::<Vec<u8>>()
                .into()
        };
        let blobs = Blobs::new(client.clone());
        let (mut puts, mut gets, mut hashes) = (vec![], vec![], vec![]);
        for i in 0..n {
            let b = make(i);
            let t = Instant::now();
            let d = crate::digest::of(&b);
            hashes.push(t.elapsed());
            let t = Instant::now();
            blobs.put(b.clone(), Existing::Replace).await.unwrap();
            puts.push(t.elapsed());
            let t = Instant::now();
            let g = blobs.get(&d).await.unwrap();
            gets.push(t.elapsed());
            assert!(g == b);
        }
        puts.sort();
        gets.sort();
        hashes.sort();
        println!(
            "{size}: hash {:?} put {:?} get {:?}",
            hashes[n as usize / 2],
            puts[n as usize / 2],
            gets[n as usize / 2]
        );
        // four devices up and down at once
        let devices: Vec<Blobs> =
            futures::future::join_all((0..4).map(|_| async { Blobs::new(server.client().await) }))
                .await;
        let mut rounds = vec![];
        for r in 0..n {
            let global = make(1000 + r);
            let ups: Vec<Bytes> = (0..4).map(|d| make(5000 + r * 4 + d)).collect();
            let t = Instant::now();
            let g = blobs.put(global, Existing::Replace).await.unwrap();
            let digest = g.digest;
            let t1 = t.elapsed();
            let tasks: Vec<_> = devices
                .iter()
                .cloned()
                .zip(ups)
                .map(|(b, up)| {
                    let digest = digest.clone();
                    tokio::spawn(async move {
                        b.get(&digest).await.unwrap();
                        b.put(up, Existing::Replace).await.unwrap().digest
                    })
                })
                .collect();
            let mut sums = vec![0f64; size / 4];
            let mut t2 = t.elapsed();
            for x in tasks {
                let d = x.await.unwrap();
                t2 = t.elapsed();
                let mut rd = blobs.open(&d).await.unwrap();
                let mut at = 0;
                while let Some(c) = rd.next().await.unwrap() {
                    for (s, v) in sums[at..].iter_mut().zip(c.chunks_exact(4)) {
                        *s += f64::from(f32::from_le_bytes(v.try_into().unwrap()));
                    }
                    at += c.len() / 4;
                }
            }
            rounds.push((t.elapsed(), t1, t2));
        }
        rounds.sort();
        println!("{size}: round {:?}", rounds[n as usize / 2]);
    }
}
