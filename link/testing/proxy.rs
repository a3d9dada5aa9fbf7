//! A way to a server that is slow, or cut when it was told: what is under way then is lost.

#![allow(unreachable_pub, dead_code, reason = "each test program uses some of these")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Bytes that wait at a slow way, about; the system takes twice as many.
const BUFFER_BYTES: u32 = 32 * 1024;

/// Counts and cuts in one direction.
#[derive(Debug, Default)]
struct Direction {
    passed: AtomicU64,
    /// Bytes after which the connection is cut, once.
    cut_at: AtomicU64,
    /// Bytes a second of each connection.
    rate: Option<u32>,
}

/// A proxy on loopback; gone when dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    up: Arc<Direction>,
    down: Arc<Direction>,
    is_open: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Leads to a port of this machine.
    pub fn to(port: u16) -> Self {
        Self::with(port, None)
    }

    /// The same with so many bytes a second in each direction of each connection.
    pub fn slow(port: u16, bytes_per_second: u32) -> Self {
        Self::with(port, Some(bytes_per_second))
    }

    fn with(port: u16, rate: Option<u32>) -> Self {
        let listening = socket(rate);
        listening.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let listener = listening.listen(64).unwrap();
        let address = listener.local_addr().unwrap();
        let direction = || Arc::new(Direction { rate, ..Direction::default() });
        let (up, down) = (direction(), direction());
        let (to_server, to_client) = (up.clone(), down.clone());
        let (is_open, open) = watch::channel(true);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if !*open.borrow() {
                    continue;
                }
                let Ok(server) =
                    socket(rate).connect(SocketAddr::from(([127, 0, 0, 1], port))).await
                else {
                    continue;
                };
                let (to_server, to_client) = (to_server.clone(), to_client.clone());
                let mut open = open.clone();
                tokio::spawn(async move {
                    let (client_read, client_write) = client.into_split();
                    let (server_read, server_write) = server.into_split();
                    // The first to end takes the other along.
                    tokio::select! {
                        () = copy(client_read, server_write, &to_server) => {}
                        () = copy(server_read, client_write, &to_client) => {}
                        _ = open.wait_for(|open| !open) => {}
                    }
                });
            }
        });
        Self { address, up, down, is_open, accepting }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `nats://127.0.0.1:<port>`
    pub fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Cuts the connection once after so many more bytes to the server.
    pub fn cut_after_sending(&self, bytes: u64) {
        self.up.cut_after(bytes);
    }

    /// Cuts the connection once after so many more bytes from the server.
    pub fn cut_after_receiving(&self, bytes: u64) {
        self.down.cut_after(bytes);
    }

    /// Cuts every connection and lets none through.
    pub fn close(&self) {
        self.is_open.send_replace(false);
    }

    /// Lets connections through again.
    pub fn open(&self) {
        self.is_open.send_replace(true);
    }

    /// Bytes to the server, and from it, of all connections.
    pub fn passed(&self) -> (u64, u64) {
        let of = |direction: &Direction| direction.passed.load(Ordering::SeqCst);
        (of(&self.up), of(&self.down))
    }

    /// Whether a cut is still to come.
    pub fn is_armed(&self) -> bool {
        let of = |direction: &Direction| direction.cut_at.load(Ordering::SeqCst) > 0;
        of(&self.up) || of(&self.down)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.close();
    }
}

impl Direction {
    fn cut_after(&self, bytes: u64) {
        self.cut_at.store(self.passed.load(Ordering::SeqCst) + bytes.max(1), Ordering::SeqCst);
    }
}

/// A socket; a slow way takes few bytes in advance.
fn socket(rate: Option<u32>) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    if rate.is_some() {
        socket.set_recv_buffer_size(BUFFER_BYTES).unwrap();
    }
    socket
}

/// Copies until either end closes, or until the cut.
async fn copy(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: &Direction) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let passed = direction.passed.fetch_add(length as u64, Ordering::SeqCst) + length as u64;
        let cut_at = direction.cut_at.load(Ordering::SeqCst);
        if cut_at > 0 && passed >= cut_at {
            direction.cut_at.store(0, Ordering::SeqCst);
            // Whoever reconnects at once would find what was lost still on its way.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return;
        }
        if let Some(rate) = direction.rate {
            tokio::time::sleep(Duration::from_micros(length as u64 * 1_000_000 / u64::from(rate)))
                .await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
