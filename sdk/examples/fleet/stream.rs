//! One simulated daemon over a real gRPC stream on a connection of its own.
//!
//! It keeps the ids of what is not acknowledged, so that it resumes exactly where the server stands after any break.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use otonix_proto::v1::agent_link_client::AgentLinkClient;
use otonix_proto::v1::{self as pb, down, event, up};
use otonix_sdk::clock::{Clock as _, SystemClock, new_id};
use otonix_sdk::{client::Backoff, convert, ids::AgentId};

use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::{Service, http};
use tonic::metadata::{Ascii, MetadataValue};
use uuid::Uuid;

use crate::stats::Stats;

/// Agents per source address; the kernel has about 28,000 ports for each.
const PER_SOURCE: usize = 2500;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Longest wait for a connection and its welcome.
const PATIENCE: Duration = Duration::from_secs(15);

/// What all agents share.
pub struct Fleet {
    pub stats: Arc<Stats>,
    pub address: SocketAddr,
    pub origin: http::Uri,
    pub api_key: MetadataValue<Ascii>,
    pub beat: Duration,
    /// Events in one frame, and the time between two frames; no time: no events.
    pub batch: usize,
    pub frame_every: Option<Duration>,
    /// Frames of an agent that may wait for their ack.
    pub window: usize,
    /// How long a connection lives on average; none: until it breaks.
    pub churn_every: Option<Duration>,
    pub details: String,
    /// Bounds how many connect at the same moment, so that the listener's queue does not overflow.
    pub gate: Semaphore,
    /// No events are made before or after.
    pub sending: std::sync::atomic::AtomicBool,
}

/// One simulated daemon.
pub struct Agent {
    fleet: Arc<Fleet>,
    id: AgentId,
    source: Option<Ipv4Addr>,
    epoch: Uuid,
    next_seq: u64,
    last_id: Option<Uuid>,
    /// Ids of the events from `next_seq - unacked.len()` on.
    unacked: VecDeque<Uuid>,
    /// Last number of each frame, and when it was sent.
    frames: VecDeque<(u64, Instant)>,
}

enum End {
    Broken,
    Wait(Duration),
    Churn,
    Gone,
}

/// The source address of the agent numbered `index`.
pub fn source(address: SocketAddr, index: usize) -> Option<Ipv4Addr> {
    let host = u8::try_from(index / PER_SOURCE + 1).ok()?;
    address.ip().is_loopback().then(|| Ipv4Addr::new(127, 0, 0, host)).filter(|_| address.is_ipv4())
}

/// Opens a TCP connection from a source address.
pub async fn connect(address: SocketAddr, source: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(source) = source {
        socket.bind(SocketAddr::from((source, 0)))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Agent {
    pub fn new(fleet: Arc<Fleet>, id: AgentId, index: usize) -> Self {
        let source = source(fleet.address, index);
        Self {
            fleet,
            id,
            source,
            epoch: new_id(),
            next_seq: 1,
            last_id: None,
            unacked: VecDeque::new(),
            frames: VecDeque::new(),
        }
    }

    /// Stays connected for ever, or until the server sends it away for good.
    pub async fn live(mut self) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let mut welcomed = false;
            let end = self.session(&mut welcomed).await;
            if welcomed {
                self.fleet.stats.lost();
                backoff.reset();
            }
            self.frames.clear();
            let least = match end {
                End::Gone => return,
                End::Churn => continue,
                End::Wait(least) => Some(least),
                End::Broken => {
                    self.fleet.stats.broken.fetch_add(1, Relaxed);
                    None
                }
            };
            sleep(backoff.wait(least)).await;
        }
    }

    async fn session(&mut self, welcomed: &mut bool) -> End {
        let fleet = Arc::clone(&self.fleet);
        let Ok(admitted) = fleet.gate.acquire().await else { return End::Gone };
        let opened = tokio::time::timeout(PATIENCE, self.open()).await;
        drop(admitted);
        let Ok(Some((mut down, up, welcome))) = opened else { return End::Broken };
        let down::Msg::Welcome(welcome) = welcome else { return self.sent_away(welcome) };
        fleet.stats.welcomed();
        *welcomed = true;
        self.acked(welcome.acked_seq, &[]);
        if !self.resend(&up).await {
            return End::Broken;
        }
        let now = Instant::now();
        let mut next_beat = now + Duration::from_millis(u64::from(welcome.first_beat_after_ms));
        let mut next_frame = fleet.frame_every.map(|every| now + every.mul_f64(rand::random()));
        // An exponential lifetime makes the churn even over time.
        let lifetime = |mean: Duration| mean.mul_f64(-(1.0 - rand::random::<f64>()).ln());
        let churn_at = fleet.churn_every.map(|mean| now + lifetime(mean));
        loop {
            let due = [next_frame, churn_at].into_iter().flatten().fold(next_beat, Instant::min);
            tokio::select! {
                message = down.message() => match message {
                    Ok(Some(pb::Down { msg: Some(msg) })) => {
                        if let Err(end) = self.heard(msg, &up).await {
                            return end;
                        }
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return End::Broken,
                },
                () = sleep_until(due) => {
                    let now = Instant::now();
                    if churn_at.is_some_and(|at| at <= now) {
                        return End::Churn;
                    }
                    if next_beat <= now {
                        next_beat = now + fleet.beat;
                        if up.try_send(Box::new(beat())).is_err_and(|why| !is_full(&why)) {
                            return End::Broken;
                        }
                    }
                    if let (Some(at), Some(every)) = (next_frame, fleet.frame_every) && at <= now {
                        // Behind: go on from now, rather than catch up in a burst.
                        next_frame = Some((at + every).max(now));
                        self.send_frame(&up);
                    }
                }
            }
        }
    }

    /// Connects, says hello, and waits for the answer.
    async fn open(&self) -> Option<(tonic::Streaming<pb::Down>, mpsc::Sender<Box<pb::Up>>, down::Msg)> {
        let stream = connect(self.fleet.address, self.source).await.ok()?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        let (up, outgoing) = mpsc::channel::<Box<pb::Up>>(self.fleet.window + 2);
        up.try_send(Box::new(self.hello())).ok()?;
        let mut request = tonic::Request::new(ReceiverStream::new(outgoing).map(|up| *up));
        request.metadata_mut().insert("x-api-key", self.fleet.api_key.clone());
        let mut client = AgentLinkClient::with_origin(Connection(sender), self.fleet.origin.clone());
        let response = client.session(request).await.map_err(|status| {
            self.fleet.stats.first_refusal.get_or_init(|| format!("session: {status}"));
        });
        let mut down = response.ok()?.into_inner();
        let first = down.message().await.ok()??.msg?;
        Some((down, up, first))
    }

    fn hello(&self) -> pb::Up {
        let hello = pb::Hello {
            agent_id: self.id.to_string(),
            boot_id: "fleet".to_owned(),
            machine_id: format!("fleet-{}", self.id),
            epoch: self.epoch.to_string(),
            next_seq: self.next_seq,
            last_event_id: self.last_id.map(|id| id.to_string()).unwrap_or_default(),
            versions: Some(pb::Versions { daemon: "fleet".to_owned(), protocol: "1".to_owned() }),
            wallet_address: String::new(),
            wallet_proof: None,
            vps_ip: String::new(),
        };
        pb::Up { msg: Some(up::Msg::Hello(hello)) }
    }

    async fn heard(&mut self, msg: down::Msg, up: &mpsc::Sender<Box<pb::Up>>) -> Result<(), End> {
        match msg {
            down::Msg::Ack(ack) => {
                self.acked(ack.seq, &ack.rejected);
                if ack.resend_from != 0 && !self.resend(up).await {
                    return Err(End::Broken);
                }
            }
            down::Msg::Ping(ping) => {
                let pong = pb::Up { msg: Some(up::Msg::Pong(pb::Pong { nonce: ping.nonce })) };
                up.send(Box::new(pong)).await.map_err(|_| End::Broken)?;
            }
            down::Msg::GoAway(_) => return Err(self.sent_away(msg)),
            down::Msg::Welcome(_) | down::Msg::Standing(_) | down::Msg::Command(_) => {}
        }
        Ok(())
    }

    fn sent_away(&mut self, msg: down::Msg) -> End {
        let down::Msg::GoAway(go_away) = msg else { return End::Broken };
        let stats = &self.fleet.stats;
        match go_away.reason.as_str() {
            "overloaded" | "shutting_down" => {}
            "new_epoch_required" => {
                self.epoch = new_id();
                self.next_seq = self.unacked.len() as u64 + 1;
            }
            reason => {
                stats.refuse(|| format!("go away: {reason}: {}", go_away.detail));
                return End::Gone;
            }
        }
        End::Wait(Duration::from_millis(u64::from(go_away.retry_after_ms)))
    }

    fn first_unacked(&self) -> u64 {
        self.next_seq - self.unacked.len() as u64
    }

    fn acked(&mut self, seq: u64, rejected: &[pb::Rejected]) {
        let count = (seq + 1).saturating_sub(self.first_unacked());
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(self.unacked.len());
        self.unacked.drain(..count);
        let stats = &self.fleet.stats;
        stats.acked.fetch_add((count - rejected.len().min(count)) as u64, Relaxed);
        for event in rejected {
            stats.refuse(|| format!("rejected: {}: {}", event.code, event.detail));
        }
        let now = Instant::now();
        while let Some((_, sent_at)) = self.frames.pop_front_if(|(last, _)| *last <= seq) {
            stats.latency.add(now - sent_at);
        }
    }

    fn send_frame(&mut self, up: &mpsc::Sender<Box<pb::Up>>) {
        let fleet = Arc::clone(&self.fleet);
        if self.frames.len() >= fleet.window || !fleet.sending.load(Relaxed) {
            return;
        }
        let Ok(permit) = up.try_reserve() else { return };
        let first = self.next_seq;
        let ids: Vec<Uuid> = (0..fleet.batch).map(|_| new_id()).collect();
        self.next_seq += ids.len() as u64;
        self.last_id = ids.last().copied().or(self.last_id);
        self.frames.push_back((self.next_seq - 1, Instant::now()));
        fleet.stats.sent.fetch_add(ids.len() as u64, Relaxed);
        permit.send(Box::new(frame(&fleet, first, ids.iter().copied())));
        self.unacked.extend(ids);
    }

    /// Sends everything again that is not acknowledged.
    async fn resend(&mut self, up: &mpsc::Sender<Box<pb::Up>>) -> bool {
        self.frames.clear();
        let mut first = self.first_unacked();
        let ids: Vec<Uuid> = self.unacked.iter().copied().collect();
        for ids in ids.chunks(self.fleet.batch) {
            if up.send(Box::new(frame(&self.fleet, first, ids.iter().copied()))).await.is_err() {
                return false;
            }
            first += ids.len() as u64;
            self.frames.push_back((first - 1, Instant::now()));
        }
        true
    }
}

fn is_full<T>(why: &mpsc::error::TrySendError<T>) -> bool {
    matches!(why, mpsc::error::TrySendError::Full(_))
}

fn beat() -> pb::Up {
    let beat = pb::Heartbeat {
        load: 0.1,
        memory_used: 1 << 28,
        memory_total: 1 << 31,
        disk_used: 1 << 32,
        disk_total: 1 << 35,
        agent_process: "running".to_owned(),
    };
    pb::Up { msg: Some(up::Msg::Heartbeat(beat)) }
}

fn frame(fleet: &Fleet, first: u64, ids: impl Iterator<Item = Uuid>) -> pb::Up {
    let at = convert::timestamp(SystemClock.now());
    let events = ids.zip(first..).map(|(id, seq)| pb::Event {
        seq,
        id: id.to_string(),
        at: Some(at),
        body: Some(event::Body::Action(pb::Action {
            action: "simulated step".to_owned(),
            category: "system".to_owned(),
            details: fleet.details.clone(),
            status: String::new(),
            autonomous: None,
        })),
    });
    pb::Up { msg: Some(up::Msg::Events(pb::Events { events: events.collect() })) }
}

/// One HTTP/2 connection as the service that tonic's client wants.
struct Connection(http2::SendRequest<tonic::body::Body>);

impl Service<http::Request<tonic::body::Body>> for Connection {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}
