//! REST load at the least cost of its own: prepared bytes over keep-alive connections, and answers read just as far
//! as needed.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use otonix_sdk::clock::new_id;
use otonix_sdk::ids::AgentId;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use crate::stats::Stats;
use crate::stream;

const RETRY: Duration = Duration::from_millis(200);
/// Largest answer: a full page of a list.
const MAX_ANSWER: usize = 8 * 1024 * 1024;

/// What to ask for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// A heartbeat, one agent after the other.
    Heartbeat,
    /// An action, one agent after the other.
    Action,
    /// A page of 100 agents.
    List,
    /// A top-up without a payment, one agent after the other: what counts is the whole 402.
    Unpaid,
}

/// What all connections share.
pub struct Load {
    pub stats: Arc<Stats>,
    pub address: SocketAddr,
    pub host: String,
    /// A whole header line, or nothing.
    pub credential: String,
    pub agents: Vec<AgentId>,
    pub work: Work,
    /// Body of a heartbeat, in place of none.
    pub body: String,
    pub details: String,
    /// Send an idempotency key with each action, as the SDK does.
    pub keyed: bool,
    /// Time between two requests of a connection; none: the next follows the answer.
    pub every: Option<Duration>,
    pub gate: Semaphore,
    pub sending: AtomicBool,
    next: AtomicUsize,
}

impl Load {
    #[expect(clippy::too_many_arguments, reason = "the flags of the command line")]
    pub fn new(
        stats: Arc<Stats>,
        address: SocketAddr,
        host: String,
        credential: String,
        agents: Vec<AgentId>,
        work: Work,
        every: Option<Duration>,
        concurrency: usize,
    ) -> Self {
        Self {
            stats,
            address,
            host,
            credential,
            agents,
            work,
            body: String::new(),
            details: String::new(),
            keyed: true,
            every,
            gate: Semaphore::new(concurrency),
            sending: AtomicBool::new(false),
            next: AtomicUsize::new(0),
        }
    }

    fn wanted(&self, status: u16) -> bool {
        if self.work == Work::Unpaid { status == 402 } else { (200..300).contains(&status) }
    }

    fn request(&self, out: &mut Vec<u8>) {
        let turn = self.next.fetch_add(1, Relaxed);
        let Some(agent) = self.agents.get(turn % self.agents.len().max(1)) else { return };
        let (line, body) = match self.work {
            Work::Heartbeat => (format!("POST /api/agents/{agent}/heartbeat"), self.body.clone()),
            Work::Action => (
                format!("POST /api/agents/{agent}/actions"),
                format!(r#"{{"action":"simulated step","category":"system","details":"{}"}}"#, self.details),
            ),
            Work::List => ("GET /api/agents?limit=100".to_owned(), String::new()),
            Work::Unpaid => (format!("POST /api/agents/{agent}/topup"), r#"{"amount":1}"#.to_owned()),
        };
        let key = if self.keyed && self.work == Work::Action {
            format!("Idempotency-Key: {}\r\n", new_id())
        } else {
            String::new()
        };
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        out.clear();
        out.extend_from_slice(
            format!(
                "{line} HTTP/1.1\r\nHost: {}\r\n{}{key}{kind}Content-Length: {}\r\n\r\n{body}",
                self.host,
                self.credential,
                body.len()
            )
            .as_bytes(),
        );
    }
}

/// One connection that keeps asking.
pub async fn ask(load: Arc<Load>, index: usize) {
    let (mut out, mut answer) = (Vec::new(), Vec::new());
    loop {
        let Ok(mut stream) = open(&load, index).await else {
            load.stats.broken.fetch_add(1, Relaxed);
            sleep(RETRY.mul_f64(rand::random())).await;
            continue;
        };
        load.stats.welcomed();
        let mut due = Instant::now() + load.every.unwrap_or_default().mul_f64(rand::random());
        loop {
            if !load.sending.load(Relaxed) {
                sleep(Duration::from_millis(5)).await;
                continue;
            }
            if let Some(every) = load.every {
                sleep_until(due).await;
                due = (due + every).max(Instant::now());
            }
            load.request(&mut out);
            let sent_at = Instant::now();
            load.stats.sent.fetch_add(1, Relaxed);
            match exchange(&mut stream, &out, &mut answer).await {
                Ok(status) if load.wanted(status) => {
                    load.stats.latency.add(sent_at.elapsed());
                    load.stats.acked.fetch_add(1, Relaxed);
                }
                Ok(_) => load.stats.refuse(|| String::from_utf8_lossy(&answer).into_owned()),
                Err(_) => break,
            }
        }
        load.stats.lost();
        load.stats.broken.fetch_add(1, Relaxed);
    }
}

/// One connection that asks once and stays open.
pub async fn idle(load: Arc<Load>, index: usize) {
    let (mut out, mut answer) = (Vec::new(), Vec::new());
    let Ok(mut stream) = open(&load, index).await else {
        load.stats.broken.fetch_add(1, Relaxed);
        return;
    };
    load.request(&mut out);
    load.stats.sent.fetch_add(1, Relaxed);
    match exchange(&mut stream, &out, &mut answer).await {
        Ok(status) if (200..300).contains(&status) => load.stats.acked.fetch_add(1, Relaxed),
        Ok(_) | Err(_) => return load.stats.refuse(|| String::from_utf8_lossy(&answer).into_owned()),
    };
    load.stats.welcomed();
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest).await, Ok(1..)) {}
    load.stats.lost();
}

async fn open(load: &Load, index: usize) -> io::Result<TcpStream> {
    let _admitted = load.gate.acquire().await.map_err(io::Error::other)?;
    stream::connect(load.address, stream::source(load.address, index)).await
}

/// Sends a request and reads its whole answer into `answer`; returns the status.
async fn exchange(stream: &mut TcpStream, request: &[u8], answer: &mut Vec<u8>) -> io::Result<u16> {
    stream.write_all(request).await?;
    answer.clear();
    let mut expected = None;
    loop {
        if stream.read_buf(answer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if expected.is_none() {
            expected = head(answer)?;
        }
        match expected {
            Some((status, length)) if answer.len() >= length => return Ok(status),
            _ if answer.len() > MAX_ANSWER => return Err(io::ErrorKind::InvalidData.into()),
            _ => {}
        }
    }
}

/// The status and the length of the whole answer, once the head is there.
fn head(answer: &[u8]) -> io::Result<Option<(u16, usize)>> {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let head = answer.get(..end).and_then(|head| std::str::from_utf8(head).ok()).ok_or_else(bad)?;
    let status = head.get(9..12).and_then(|status| status.parse().ok()).ok_or_else(bad)?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    Ok(Some((status, end + 4 + length.ok_or_else(bad)?)))
}
