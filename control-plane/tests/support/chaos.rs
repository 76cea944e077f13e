//! A bad network between two programs: a TCP proxy that delays, stalls, cuts, resets or refuses.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// Chunks on their way in one direction.
const IN_FLIGHT: usize = 256;

/// What the network is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Weather {
    /// Everything passes, answers later by this.
    Delayed(Duration),
    /// Connections open and stay; nothing passes.
    Stalled,
    /// New connections are closed at once.
    Refusing,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    weather: watch::Sender<Weather>,
    /// Fired to end the connections that are open.
    open: Mutex<CancellationToken>,
    /// Whether they end by a reset.
    reset: watch::Sender<bool>,
    accepted: AtomicU64,
}

/// A proxy in front of one address.
#[derive(Debug)]
pub struct Proxy {
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Starts one on a free port; everything passes.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            upstream,
            weather: watch::Sender::new(Weather::Delayed(Duration::ZERO)),
            open: Mutex::default(),
            reset: watch::Sender::new(false),
            accepted: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { addr, shared, accepting }
    }

    /// Answers come later by this.
    pub fn delay(&self, by: Duration) {
        self.shared.weather.send_replace(Weather::Delayed(by));
    }

    /// Everything passes at once.
    pub fn clear(&self) {
        self.delay(Duration::ZERO);
    }

    /// Nothing passes, nothing breaks.
    pub fn stall(&self) {
        self.shared.weather.send_replace(Weather::Stalled);
    }

    /// What is open is cut; new connections are closed at once.
    pub fn refuse(&self) {
        self.shared.weather.send_replace(Weather::Refusing);
        self.cut();
    }

    /// Closes what is open, in the middle of whatever it was saying.
    pub fn cut(&self) {
        self.end(false);
    }

    /// The same with a reset instead of an end.
    pub fn reset(&self) {
        self.end(true);
    }

    fn end(&self, reset: bool) {
        self.shared.reset.send_replace(reset);
        std::mem::take(&mut *self.shared.open.lock().expect("no panic while held")).cancel();
    }

    /// Connections so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        if *shared.weather.borrow() == Weather::Refusing {
            continue;
        }
        tokio::spawn(connection(client, Arc::clone(&shared)));
    }
}

async fn connection(client: TcpStream, shared: Arc<Shared>) {
    let ended = shared.open.lock().expect("no panic while held").clone();
    let Ok(server) = TcpStream::connect(shared.upstream).await else { return };
    let _best_effort = (client.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    tokio::select! {
        () = ended.cancelled() => {
            if *shared.reset.borrow() {
                let _best_effort = (to_client.as_ref().set_zero_linger(), to_server.as_ref().set_zero_linger());
            }
        }
        () = pipe(&mut from_client, &mut to_server, shared.weather.subscribe(), false) => {}
        () = pipe(&mut from_server, &mut to_client, shared.weather.subscribe(), true) => {}
    }
}

/// Carries bytes one way, each chunk at its time.
async fn pipe(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut weather: watch::Receiver<Weather>,
    answers: bool,
) {
    let (send, mut chunks) = mpsc::channel::<(Instant, Bytes)>(IN_FLIGHT);
    let seen = weather.clone();
    let reading = async move {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let delay = match *seen.borrow() {
                Weather::Delayed(by) if answers => by,
                Weather::Delayed(_) | Weather::Stalled | Weather::Refusing => Duration::ZERO,
            };
            let chunk = Bytes::copy_from_slice(&buffer[..read]);
            if send.send((Instant::now() + delay, chunk)).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, chunk)) = chunks.recv().await {
            sleep_until(at).await;
            if weather.wait_for(|weather| *weather != Weather::Stalled).await.is_err() {
                return;
            }
            if to.write_all(&chunk).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}
