//! Clients that hold connections without using them: closed in time, and nobody else notices.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::{Agent, Server, Store};

/// Files that this process needs besides the flood's.
const OTHER_FILES: u64 = 600;
const DRIPS: u64 = 5000;
const SLOW_BODIES: u64 = 500;
const HALF_HTTP2: u64 = 200;
/// The server's times for a head and for a body, and what a busy machine may add.
const HEAD_TIME: Duration = Duration::from_secs(10);
const BODY_TIME: Duration = Duration::from_secs(15);
const SLACK: Duration = Duration::from_secs(10);
/// What the whole flood may cost the server at its height (a debug build), and what may be left of it.
const MOST_GROWTH_KB: u64 = 160 * 1024;

/// Resident memory of a process, kB.
pub fn rss_kb(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse().ok()).expect("a number")
}

/// How many files this process may open, after asking for as many as it can have.
fn open_files() -> u64 {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard }).expect("up to the hard limit");
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How a connection ended.
#[derive(Debug, Clone)]
struct Ended {
    after: Duration,
    said: String,
}

/// Connects, says something, then one more byte every so often until the server closes.
async fn drip(
    addr: SocketAddr,
    first: Vec<u8>,
    rest: &'static [u8],
    every: Duration,
) -> Result<Ended, String> {
    let stream = TcpStream::connect(addr).await.map_err(|why| format!("connect: {why}"))?;
    let since = Instant::now();
    let (mut from, mut to) = stream.into_split();
    to.write_all(&first).await.map_err(|why| format!("first bytes: {why}"))?;
    let mut answer = Vec::new();
    let reading = async {
        let _reset_is_an_end = from.read_to_end(&mut answer).await;
    };
    let dripping = async {
        for byte in rest.iter().cycle() {
            tokio::time::sleep(every).await;
            if to.write_all(&[*byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let most = BODY_TIME + HEAD_TIME + SLACK;
    let ended = tokio::time::timeout(most, async {
        tokio::select! {
            () = reading => {}
            () = dripping => {}
        }
    });
    ended.await.map_err(|_| format!("still open after {most:?}"))?;
    Ok(Ended { after: since.elapsed(), said: String::from_utf8_lossy(&answer).into_owned() })
}

/// An ordinary client: each of its requests must succeed. How many, and the slowest.
async fn healthy(server: (SocketAddr, Agent), stop: CancellationToken) -> (usize, Duration) {
    let (addr, agent) = server;
    let (mut requests, mut slowest) = (0, Duration::ZERO);
    while !stop.is_cancelled() {
        for (path, body) in
            [("heartbeat", json!({})), ("actions", json!({"action": "as ever", "category": "system"}))]
        {
            let since = Instant::now();
            let call = crate::support::Call::new(addr, "POST", &agent.path(path));
            let answer = call.key(&agent.key).json(body).await;
            assert!(matches!(answer.status, 200 | 201), "{path}: {}", answer.text());
            slowest = slowest.max(since.elapsed());
            requests += 1;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    (requests, slowest)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn header_drips_and_slow_bodies_are_closed_in_time_and_disturb_nobody() {
    let room = open_files().saturating_sub(OTHER_FILES);
    let wanted = DRIPS + SLOW_BODIES + HALF_HTTP2;
    let drips = DRIPS.min(room.saturating_sub(SLOW_BODIES + HALF_HTTP2));
    if drips < DRIPS {
        eprintln!(
            "SCALED DOWN: {drips} header drips of {DRIPS}: {room} files of {wanted} may be opened here"
        );
    }
    let server = Server::start(Store::Sqlite).await;
    let agent = server.agent("healthy").await;
    let stop = CancellationToken::new();
    let client = tokio::spawn(healthy((server.addr, agent.clone()), stop.clone()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = rss_kb(server.pid());

    let every = Duration::from_millis(1500);
    let mut heads = Vec::new();
    for n in 0..drips {
        let first = match n % 4 {
            0 => b"G".to_vec(),
            1 => b"POST /api/agents HTTP/1.1\r\nhost: localhost\r\nx-drip: ".to_vec(),
            2 => b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n".to_vec(),
            _ => b"PRI * HTTP/2".to_vec(),
        };
        heads.push(tokio::spawn(drip(server.addr, first, b"a", every)));
        if n % 250 == 249 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    let mut bodies = Vec::new();
    for n in 0..SLOW_BODIES {
        let length = if n % 2 == 0 { "content-length: 100000" } else { "transfer-encoding: chunked" };
        let path = if n % 3 == 0 { agent.path("events") } else { agent.path("actions") };
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\n{length}\r\n\r\n",
            agent.key.secret
        );
        // A chunked body that never gets past the size of its first chunk.
        bodies.push(tokio::spawn(drip(server.addr, head.into_bytes(), b"1", every)));
    }
    let mut http2 = Vec::new();
    for _ in 0..HALF_HTTP2 {
        // The preface, an empty SETTINGS, then the head of a HEADERS frame whose 16 kB never come.
        let mut first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        first.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        first.extend([0, 0x40, 0, 1, 4, 0, 0, 0, 1]);
        http2.push(tokio::spawn(drip(server.addr, first, b"\x00", every)));
    }
    let mut height = before;
    let watching = Instant::now();
    while watching.elapsed() < Duration::from_secs(9) {
        height = height.max(rss_kb(server.pid()));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut last_head = Duration::ZERO;
    for head in heads {
        let ended = head.await.expect("no panic").expect("it ends");
        assert!(ended.after <= HEAD_TIME + SLACK, "{ended:?}");
        assert!(ended.said.is_empty() || ended.said.starts_with("HTTP/1.1 408 "), "{ended:?}");
        last_head = last_head.max(ended.after);
    }
    let mut last_body = Duration::ZERO;
    for body in bodies {
        let ended = body.await.expect("no panic").expect("it ends");
        assert!(ended.after <= BODY_TIME + SLACK, "{ended:?}");
        assert!(ended.said.starts_with("HTTP/1.1 4"), "{ended:?}");
        assert!(ended.said.contains("application/problem+json"), "{ended:?}");
        last_body = last_body.max(ended.after);
    }
    let mut last_http2 = Duration::ZERO;
    for half in http2 {
        last_http2 = last_http2.max(half.await.expect("no panic").expect("it ends").after);
    }
    stop.cancel();
    let (requests, slowest) = client.await.expect("a healthy client is served");
    let after = rss_kb(server.pid());
    eprintln!(
        "{drips} drips closed by {last_head:?}, {SLOW_BODIES} slow bodies by {last_body:?}, {HALF_HTTP2} half HTTP/2 \
         requests by {last_http2:?}; {requests} healthy requests, slowest {slowest:?}; RSS {before} kB before, \
         {height} kB at its height, {after} kB after"
    );
    assert!(slowest < Duration::from_secs(5), "a healthy request took {slowest:?}");
    assert!(height - before < MOST_GROWTH_KB, "RSS grew from {before} kB to {height} kB");
    assert!(after.saturating_sub(before) < MOST_GROWTH_KB, "RSS is {after} kB, was {before} kB");
}
