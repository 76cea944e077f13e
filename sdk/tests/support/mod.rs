//! A control plane in memory that follows the session's rules and fails in every way it is told to.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use axum::{Json, Router};
use otonix_proto::v1 as pb;
use otonix_proto::v1::agent_link_server::{AgentLink, AgentLinkServer};
use otonix_sdk::agent::{Agent, AgentConfig, Secret, Transport, Tuning};
use otonix_sdk::api::actions::LogAction;
use otonix_sdk::api::events::EventBody;
use otonix_sdk::convert;
use otonix_sdk::ids::{AgentId, EventId};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use uuid::Uuid;

/// How often things go wrong, in percent.
#[derive(Debug, Default, Clone, Copy)]
pub struct Chaos {
    /// The acknowledgement of a frame is lost.
    pub drop_ack: u32,
    /// The connection ends before a frame is stored.
    pub cut_before: u32,
    /// The connection ends after a frame is stored.
    pub cut_after: u32,
    /// A frame is lost on the way, so that the next leaves a gap.
    pub lose: u32,
}

#[derive(Debug, Default)]
struct Epoch {
    acked: u64,
    ids: BTreeMap<u64, String>,
}

#[derive(Debug, Default)]
pub struct Memory {
    epochs: HashMap<String, Epoch>,
    /// What is stored, by event id.
    pub events: HashMap<String, EventBody>,
    /// How often each event was stored anew; more than once is a fault of this server.
    pub order: Vec<String>,
    pub beats: Vec<Instant>,
    pub beat: Option<pb::Heartbeat>,
    pub hellos: Vec<pb::Hello>,
    pub standing: pb::Standing,
    pub commands: Vec<pb::Command>,
    current: Option<(u64, mpsc::Sender<Result<pb::Down, Status>>)>,
}

pub struct Server {
    pub memory: Mutex<Memory>,
    pub chaos: Mutex<Chaos>,
    /// Answers nothing but errors.
    pub down: AtomicBool,
    /// gRPC does not get through.
    pub no_grpc: AtomicBool,
    /// The key is refused.
    pub refuse: AtomicBool,
    /// Milliseconds that storing a frame takes.
    pub slow: AtomicU64,
    sessions: AtomicU64,
    pub address: SocketAddr,
}

#[derive(Clone)]
struct Link(Arc<Server>);

fn goaway(reason: &str) -> pb::Down {
    let away = pb::GoAway { reason: reason.to_owned(), ..Default::default() };
    pb::Down { msg: Some(pb::down::Msg::GoAway(away)) }
}

pub fn now() -> chrono::DateTime<chrono::Utc> {
    otonix_sdk::clock::Clock::now(&otonix_sdk::clock::SystemClock)
}

fn percent(chance: u32) -> bool {
    rand::random_range(0..100) < chance
}

impl Memory {
    /// Stores what fits; says where to go on when something is missing.
    fn store(&mut self, epoch: &str, events: Vec<pb::Event>) -> Result<(u64, u64, Vec<pb::Rejected>), ()> {
        let mut rejected = Vec::new();
        let mut resend = 0;
        for event in events {
            let known = self.events.contains_key(&event.id);
            let entry = self.epochs.entry(epoch.to_owned()).or_default();
            if event.seq <= entry.acked {
                if entry.ids.get(&event.seq) != Some(&event.id) && !known {
                    return Err(());
                }
                continue;
            }
            if event.seq > entry.acked + 1 {
                resend = entry.acked + 1;
                break;
            }
            entry.acked += 1;
            entry.ids.insert(event.seq, event.id.clone());
            let body = convert::body_from_pb(event.body).expect("a body");
            if matches!(&body, EventBody::Action(action) if action.action.contains("reject me")) {
                rejected.push(pb::Rejected {
                    seq: event.seq,
                    id: event.id,
                    code: "invalid_field".to_owned(),
                    detail: "not liked".to_owned(),
                });
            } else if !known {
                self.order.push(event.id.clone());
                self.events.insert(event.id, body);
            }
        }
        Ok((self.acked(epoch).0, resend, rejected))
    }

    /// How often a daemon said that it is not the only one.
    pub fn copies_reported(&self) -> usize {
        let reports = |body: &&EventBody| matches!(body, EventBody::Action(action) if action.action.contains("another copy"));
        self.events.values().filter(reports).count()
    }

    fn acked(&self, epoch: &str) -> (u64, String) {
        let Some(entry) = self.epochs.get(epoch) else { return (0, String::new()) };
        (entry.acked, entry.ids.get(&entry.acked).cloned().unwrap_or_default())
    }

    fn fits(&self, hello: &pb::Hello) -> bool {
        let (acked, id) = self.acked(&hello.epoch);
        let other = acked + 1 == hello.next_seq
            && !hello.last_event_id.is_empty()
            && acked > 0
            && id != hello.last_event_id;
        hello.next_seq > acked && !other
    }
}

impl Server {
    /// Starts on a free port, with a standing of 60 USDC and an interval of one second.
    pub async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let memory = Memory { standing: standing(60_000_000, "full"), ..Default::default() };
        let server = Arc::new(Self {
            memory: Mutex::new(memory),
            chaos: Mutex::default(),
            down: AtomicBool::new(false),
            no_grpc: AtomicBool::new(false),
            refuse: AtomicBool::new(false),
            slow: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            address: listener.local_addr().expect("an address"),
        });
        let rest = Router::new()
            .route("/api/agents/{id}/events", post(events))
            .route("/api/agents/{id}/heartbeat", post(heartbeat))
            .route("/api/price-table", get(price_table))
            .with_state(Arc::clone(&server));
        let grpc = Routes::new(AgentLinkServer::new(Link(Arc::clone(&server)))).into_axum_router();
        tokio::spawn(async move { axum::serve(listener, grpc.merge(rest)).await });
        server
    }

    pub fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("not poisoned")
    }

    pub fn set_chaos(&self, chaos: Chaos) {
        *self.chaos.lock().expect("not poisoned") = chaos;
    }

    fn chaos(&self) -> Chaos {
        *self.chaos.lock().expect("not poisoned")
    }

    /// Sends something on the newest session.
    pub async fn push(&self, message: pb::down::Msg) {
        let current = self.lock().current.as_ref().map(|(_, down)| down.clone());
        if let Some(down) = current {
            let _ = down.send(Ok(pb::Down { msg: Some(message) })).await;
        }
    }

    /// Ends the newest session.
    pub fn cut(&self) {
        self.lock().current = None;
        self.sessions.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether somebody has the session.
    pub fn has_session(&self) -> bool {
        self.lock().current.is_some()
    }

    /// Takes the session away, as if another one of the agent had begun.
    pub async fn supersede(&self) {
        let current = self.lock().current.take();
        let (_, down) = current.expect("a session");
        let _ = down.send(Ok(goaway("superseded"))).await;
    }

    pub fn sessions(&self) -> u64 {
        self.sessions.load(Ordering::SeqCst)
    }

    /// Waits until every one of these events is stored.
    pub async fn holds(&self, ids: &HashSet<EventId>) {
        let mut missing = 0;
        for _ in 0..3000 {
            missing = {
                let memory = self.lock();
                ids.iter().filter(|id| !memory.events.contains_key(&id.to_string())).count()
            };
            if missing == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{missing} of {} events are missing", ids.len());
    }
}

pub fn standing(credits_micro: i64, tier: &str) -> pb::Standing {
    pb::Standing {
        tier: tier.to_owned(),
        credits_micro,
        funded: true,
        interval: 1,
        status: "active".to_owned(),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl AgentLink for Link {
    type SessionStream = ReceiverStream<Result<pb::Down, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<pb::Up>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let server = Arc::clone(&self.0);
        if server.down.load(Ordering::SeqCst) {
            return Err(Status::unavailable("down"));
        }
        if server.no_grpc.load(Ordering::SeqCst) {
            return Err(Status::unimplemented("no such thing here"));
        }
        if server.refuse.load(Ordering::SeqCst) || !request.metadata().contains_key("x-api-key") {
            return Err(Status::unauthenticated("no"));
        }
        let (down, stream) = mpsc::channel(64);
        tokio::spawn(async move {
            let _ = serve(server, request.into_inner(), down).await;
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn serve(
    server: Arc<Server>,
    mut up: Streaming<pb::Up>,
    down: mpsc::Sender<Result<pb::Down, Status>>,
) -> Option<()> {
    let Some(pb::up::Msg::Hello(hello)) = up.message().await.ok()??.msg else { return None };
    let epoch = hello.epoch.clone();
    let session = server.sessions.fetch_add(1, Ordering::SeqCst) + 1;
    let (answer, older) = {
        let mut memory = server.lock();
        memory.hellos.push(hello.clone());
        if memory.fits(&hello) {
            let (acked_seq, acked_event_id) = memory.acked(&epoch);
            let welcome = pb::Welcome {
                session: session.to_string(),
                server_time: Some(convert::timestamp(now())),
                standing: Some(memory.standing.clone()),
                acked_seq,
                acked_event_id,
                first_beat_after_ms: 1,
                ..Default::default()
            };
            let older = memory.current.replace((session, down.clone()));
            (pb::Down { msg: Some(pb::down::Msg::Welcome(welcome)) }, older)
        } else {
            (goaway("new_epoch_required"), None)
        }
    };
    if let Some((_, older)) = older {
        let _ = older.send(Ok(goaway("superseded"))).await;
    }
    let welcomed = matches!(answer.msg, Some(pb::down::Msg::Welcome(_)));
    down.send(Ok(answer)).await.ok()?;
    if !welcomed {
        return None;
    }
    let commands = server.lock().commands.clone();
    for command in commands {
        down.send(Ok(pb::Down { msg: Some(pb::down::Msg::Command(command)) })).await.ok()?;
    }
    loop {
        let message = tokio::select! {
            message = up.message() => message.ok()??.msg?,
            () = tokio::time::sleep(Duration::from_millis(5)) => {
                if server.sessions.load(Ordering::SeqCst) != session { return None; }
                continue;
            }
        };
        if server.sessions.load(Ordering::SeqCst) != session || server.down.load(Ordering::SeqCst) {
            return None;
        }
        let events = match message {
            pb::up::Msg::Heartbeat(beat) => {
                let mut memory = server.lock();
                memory.beats.push(Instant::now());
                memory.beat = Some(beat);
                continue;
            }
            pb::up::Msg::Event(event) => vec![event],
            pb::up::Msg::Events(events) => events.events,
            pb::up::Msg::Hello(_) | pb::up::Msg::Pong(_) => continue,
        };
        assert!(events.len() <= 200, "a frame of {}", events.len());
        let chaos = server.chaos();
        if percent(chaos.cut_before) {
            return None;
        }
        if percent(chaos.lose) {
            continue;
        }
        tokio::time::sleep(Duration::from_millis(server.slow.load(Ordering::SeqCst))).await;
        let stored = server.lock().store(&epoch, events);
        let Ok((seq, resend_from, rejected)) = stored else {
            let _ = down.send(Ok(goaway("new_epoch_required"))).await;
            return None;
        };
        if percent(chaos.cut_after) {
            return None;
        }
        if !percent(chaos.drop_ack) {
            let ack = pb::Ack { seq, rejected, resend_from };
            down.send(Ok(pb::Down { msg: Some(pb::down::Msg::Ack(ack)) })).await.ok()?;
        }
    }
}

type Answer = Result<Json<Value>, axum::response::Response>;

fn problem(status: u16, code: &str) -> axum::response::Response {
    let status = StatusCode::from_u16(status).expect("a status");
    (status, Json(json!({"code": code, "detail": code}))).into_response()
}

fn standing_json(standing: &pb::Standing) -> Value {
    serde_json::to_value(convert::standing_from_pb(standing)).expect("a standing")
}

#[expect(clippy::result_large_err, reason = "an answer is an answer")]
fn gate(server: &Server) -> Result<(), axum::response::Response> {
    if server.down.load(Ordering::SeqCst) {
        return Err(problem(503, "overloaded"));
    }
    if server.refuse.load(Ordering::SeqCst) {
        return Err(problem(401, "revoked_key"));
    }
    Ok(())
}

async fn events(State(server): State<Arc<Server>>, Json(body): Json<Value>) -> Answer {
    gate(&server)?;
    let body: otonix_sdk::api::events::PostEvents = serde_json::from_value(body).expect("events");
    assert!(body.events.len() <= 200);
    let chaos = server.chaos();
    let some = !body.events.is_empty();
    if some && (percent(chaos.cut_before) || percent(chaos.lose)) {
        return Err(problem(500, "internal"));
    }
    let events: Vec<pb::Event> = body
        .events
        .into_iter()
        .map(|event| {
            let (seq, id, at) = (event.seq, event.id, event.at.expect("a time"));
            convert::event_to_pb(seq, id, at, event.into_body().expect("one body"))
        })
        .collect();
    let (stored, standing, id, commands) = {
        let mut memory = server.lock();
        let (acked, _) = memory.acked(&body.epoch);
        if body.next_seq <= acked {
            return Err(problem(409, "new_epoch_required"));
        }
        let stored = memory.store(&body.epoch, events);
        let id = memory.acked(&body.epoch).1;
        (stored, standing_json(&memory.standing), id, memory.commands.clone())
    };
    let Ok((seq, resend, rejected)) = stored else { return Err(problem(409, "new_epoch_required")) };
    if some && (percent(chaos.cut_after) || percent(chaos.drop_ack)) {
        return Err(problem(502, ""));
    }
    let rejected: Vec<Value> = rejected
        .iter()
        .map(|r| json!({"seq": r.seq, "id": r.id, "code": r.code, "detail": r.detail}))
        .collect();
    let commands: Vec<Value> = commands
        .into_iter()
        .map(|c| serde_json::to_value(convert::command_from_pb(c, now())).expect("a command"))
        .collect();
    let mut answer =
        json!({"ackedSeq": seq, "rejected": rejected, "standing": standing, "commands": commands});
    if !id.is_empty() {
        answer["ackedEventId"] = json!(id);
    }
    if resend > 0 {
        answer["resendFrom"] = json!(resend);
    }
    Ok(Json(answer))
}

async fn heartbeat(State(server): State<Arc<Server>>, headers: HeaderMap, Json(_): Json<Value>) -> Answer {
    gate(&server)?;
    assert!(headers.contains_key("idempotency-key"), "every POST has one");
    let mut memory = server.lock();
    memory.beats.push(Instant::now());
    let standing = standing_json(&memory.standing);
    Ok(Json(json!({
        "received": true, "agentId": Uuid::nil(), "nextExpected": now(),
        "survivalTier": standing["survivalTier"], "credits": standing["credits"],
        "funded": standing["funded"], "heartbeatInterval": standing["heartbeatInterval"],
    })))
}

async fn price_table(State(server): State<Arc<Server>>) -> Answer {
    gate(&server)?;
    Ok(Json(json!({"version": "x", "prices": {"own-model": {"input": 2, "output": 4}}})))
}

/// Waiting times fit for tests.
pub fn tuning() -> Tuning {
    Tuning {
        backoff_base: Duration::from_millis(2),
        backoff_cap: Duration::from_millis(50),
        ack_timeout: Duration::from_millis(300),
        hello_timeout: Duration::from_secs(5),
        superseded_pause: Duration::from_millis(100),
        refused_pause: Duration::from_millis(30),
        grpc_probe: Duration::from_millis(300),
        grpc_failures: 3,
        ..Tuning::default()
    }
}

pub fn agent_id() -> AgentId {
    AgentId::new(Uuid::from_u128(7))
}

pub fn config(server: &Server, dir: &Path, transport: Transport) -> AgentConfig {
    let address = format!("http://{}", server.address);
    let mut config = AgentConfig::new(address, Secret::new("otonix_test"), agent_id(), dir);
    config.transport = transport;
    config
}

pub async fn start(server: &Server, dir: &Path, transport: Transport) -> Agent {
    for _ in 0..500 {
        match Agent::start_tuned(config(server, dir, transport), tuning()).await {
            Ok(agent) => return agent,
            Err(otonix_sdk::agent::AgentError::Locked) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(other) => panic!("failed to start: {other}"),
        }
    }
    panic!("the directory stays locked");
}

pub fn action(text: impl Into<String>) -> LogAction {
    LogAction {
        action: text.into(),
        category: "system".to_owned(),
        details: None,
        status: None,
        autonomous: None,
    }
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("never came true: {what}");
}

/// Copies a state directory as a snapshot of the machine would.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("listed") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("a type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            match std::fs::copy(entry.path(), target) {
                // A draft has just got its name.
                Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => {}
                copied => drop(copied.expect("copied")),
            }
        }
    }
}
