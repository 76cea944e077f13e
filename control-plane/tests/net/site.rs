//! A front with a few routes, and a client that controls every byte.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Request};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use otonix_control_plane::net::{self, BodyError, Front, Limits, Peer, Stats, Tls};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub const MAX_BODY: usize = 64 * 1024;
pub const BODY_TIME: Duration = Duration::from_millis(400);
/// What nothing here should need.
pub const LONG: Duration = Duration::from_secs(10);

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

async fn echo(request: Request) -> axum::response::Response {
    match net::collect(request.into_body(), MAX_BODY, BODY_TIME).await {
        Ok(bytes) => bytes.into_response(),
        Err(BodyError::TooLarge) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Err(BodyError::TooSlow) => StatusCode::REQUEST_TIMEOUT.into_response(),
        Err(BodyError::Broken) => StatusCode::BAD_REQUEST.into_response(),
    }
}

/// Answers at once and reads the body behind the answer's back.
async fn forget(request: Request) -> &'static str {
    tokio::spawn(net::collect(request.into_body(), MAX_BODY, LONG));
    "forgotten"
}

fn routes() -> Router {
    Router::new()
        .route("/hello", get(async || "hello"))
        .route("/echo", post(echo))
        .route("/forget", post(forget))
        .route("/refuse", post(async || StatusCode::UNAUTHORIZED))
        .route(
            "/peer",
            get(async |Extension(peer): Extension<Peer>| {
                serde_json::to_string(&(peer.addr, peer.listener, peer.tls)).expect("JSON")
            }),
        )
        .route(
            "/slow",
            get(async || {
                sleep(ms(400)).await;
                "slow"
            }),
        )
        .route(
            "/never",
            get(async || {
                std::future::pending::<()>().await;
                "never"
            }),
        )
        .route("/big", get(async || vec![b'x'; 64 << 20]))
}

pub struct Site {
    pub addr: SocketAddr,
    pub stats: Arc<Stats>,
    pub stop: CancellationToken,
    pub serving: JoinHandle<std::io::Result<()>>,
}

pub fn site(limits: Limits) -> Site {
    site_with(limits, None)
}

pub fn site_with(limits: Limits, tls: Option<Arc<Tls>>) -> Site {
    let listener = net::bind(([127, 0, 0, 1], 0).into()).expect("a free port");
    let addr = listener.local_addr().expect("an address");
    let stop = CancellationToken::new();
    let front = Front { tls, ..Front::new(listener, limits, stop.clone(), TaskTracker::new()) };
    let stats = Arc::clone(&front.stats);
    Site { addr, stats, stop, serving: tokio::spawn(front.serve(routes())) }
}

impl Site {
    pub async fn connect(&self) -> Client {
        Client { tcp: TcpStream::connect(self.addr).await.expect("a connection"), read: Vec::new() }
    }

    /// A request on a connection of its own, within a second.
    pub async fn is_healthy(&self) -> bool {
        let mut client = self.connect().await;
        client.send(GET_HELLO).await;
        matches!(timeout(ms(1000), client.answer()).await, Ok(Some(answer)) if answer.body == b"hello")
    }

    pub async fn all_closed(&self) -> bool {
        self.reaches(&self.stats.open, |open| open == 0).await
    }

    /// Waits for a counter.
    pub async fn reaches(&self, counter: &AtomicU64, enough: impl Fn(u64) -> bool) -> bool {
        let began = Instant::now();
        while !enough(counter.load(Ordering::SeqCst)) {
            if began.elapsed() > LONG {
                return false;
            }
            sleep(ms(5)).await;
        }
        true
    }
}

pub const GET_HELLO: &[u8] = b"GET /hello HTTP/1.1\r\nhost: a\r\n\r\n";

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn problem(&self) -> serde_json::Value {
        assert!(self.head.contains("content-type: application/problem+json"), "{}", self.head);
        serde_json::from_slice(&self.body).expect("a problem")
    }
}

pub struct Client {
    pub tcp: TcpStream,
    read: Vec<u8>,
}

impl Client {
    pub async fn send(&mut self, bytes: &[u8]) {
        self.tcp.write_all(bytes).await.expect("written");
    }

    /// The next answer; `None` when the server closed instead.
    pub async fn answer(&mut self) -> Option<Answer> {
        timeout(LONG, self.next()).await.expect("an answer or an end in time")
    }

    async fn next(&mut self) -> Option<Answer> {
        loop {
            if let Some(end) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                let head = String::from_utf8(self.read[..end].to_vec()).expect("text").to_lowercase();
                let length = head
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: "))
                    .map_or(0, |length| length.parse().expect("a number"));
                let status = head[9..12].parse().expect("a status");
                let length = if status == 100 { 0 } else { length };
                if self.read.len() >= end + 4 + length {
                    let body = self.read[end + 4..end + 4 + length].to_vec();
                    self.read.drain(..end + 4 + length);
                    return Some(Answer { status, head, body });
                }
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn more(&mut self) -> bool {
        let mut buf = [0; 4096];
        let Ok(n @ 1..) = self.tcp.read(&mut buf).await else { return false };
        self.read.extend_from_slice(&buf[..n]);
        true
    }

    /// Waits for the server's end of the connection; tells how long it took.
    pub async fn closed(&mut self) -> Duration {
        let began = Instant::now();
        let end = async { while self.more().await {} };
        timeout(LONG, end).await.expect("the connection ends");
        began.elapsed()
    }
}

/// A client for whole requests.
pub fn http() -> reqwest::ClientBuilder {
    // Another test may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
}
