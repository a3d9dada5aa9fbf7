//! A way to a server that is cut when it was told: what is under way then is lost.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Counts and cuts in one direction.
#[derive(Debug, Default)]
struct Direction {
    passed: AtomicU64,
    /// Bytes after which the connection is cut, once.
    cut_at: AtomicU64,
}

/// A proxy on loopback; gone when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    up: Arc<Direction>,
    down: Arc<Direction>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Leads to a port of this machine.
    pub(crate) async fn to(port: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (up, down) = (Arc::new(Direction::default()), Arc::new(Direction::default()));
        let (to_server, to_client) = (up.clone(), down.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
                let (to_server, to_client) = (to_server.clone(), to_client.clone());
                tokio::spawn(async move {
                    let (client_read, client_write) = client.into_split();
                    let (server_read, server_write) = server.into_split();
                    // The first to end takes the other along.
                    tokio::select! {
                        () = copy(client_read, server_write, &to_server) => {}
                        () = copy(server_read, client_write, &to_client) => {}
                    }
                });
            }
        });
        Self { address, up, down, accepting }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://{}", self.address)
    }

    /// Cuts the connection once after so many more bytes to the server.
    pub(crate) fn cut_after_sending(&self, bytes: u64) {
        self.up.cut_after(bytes);
    }

    /// Cuts the connection once after so many more bytes from the server.
    pub(crate) fn cut_after_receiving(&self, bytes: u64) {
        self.down.cut_after(bytes);
    }

    /// Bytes to the server, and from it, of all connections.
    pub(crate) fn passed(&self) -> (u64, u64) {
        let of = |direction: &Direction| direction.passed.load(Ordering::SeqCst);
        (of(&self.up), of(&self.down))
    }

    /// Whether a cut is still to come.
    pub(crate) fn is_armed(&self) -> bool {
        let of = |direction: &Direction| direction.cut_at.load(Ordering::SeqCst) > 0;
        of(&self.up) || of(&self.down)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Direction {
    fn cut_after(&self, bytes: u64) {
        self.cut_at.store(self.passed.load(Ordering::SeqCst) + bytes.max(1), Ordering::SeqCst);
    }
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
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}
