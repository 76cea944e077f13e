//! Both vendors, small and with a memory: what is bought is there afterwards, orders take time, prices move, stock
//! runs out, and answers go astray when a test says so. Every request and every answer is held against the vendors'
//! documents, so that neither this fake nor the clients can drift from them.
//!
//! It lives in the test's process, which survives the server's being killed; `examples/vendors.rs` is the same as a
//! program of its own, with its switches under `/admin`.

mod admin;
pub mod cherry;
pub mod schema;
pub mod switches;
pub mod vercel;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use cherry::PROJECT;
use schema::Document;
use switches::{Fault, How};
use wire::{Delivery, Reply, Request};

/// One request as it was seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The operation's id in the documents.
    pub operation: String,
    pub request: Request,
    pub status: u16,
}

/// Everything that the vendors know.
pub struct World {
    token: String,
    ahead: TimeDelta,
    faults: Vec<Fault>,
    seen: Vec<Seen>,
    violations: Vec<String>,
    per_second: Option<usize>,
    recent: Vec<Instant>,
    counter: u64,
    pub vercel: vercel::Vercel,
    pub cherry: cherry::Cherry,
}

impl World {
    fn now(&self) -> DateTime<Utc> {
        Utc::now() + self.ahead
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn is_too_often(&mut self) -> bool {
        let now = Instant::now();
        self.recent.retain(|at| now.duration_since(*at) < Duration::from_secs(1));
        self.recent.push(now);
        self.per_second.is_some_and(|most| self.recent.len() > most)
    }
}

/// The running fake.
#[derive(Clone)]
pub struct Fake {
    addr: SocketAddr,
    token: String,
    world: Arc<Mutex<World>>,
}

impl Fake {
    /// Starts it on a free port of this machine, on a thread of its own.
    pub fn start() -> Self {
        Self::on(0)
    }

    /// Starts it on a port.
    pub fn on(port: u16) -> Self {
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("a port on this machine");
        listener.set_nonblocking(true).expect("a socket");
        let addr = listener.local_addr().expect("a socket");
        let token = format!("fake-{:x}-{:x}", std::process::id(), Utc::now().timestamp_micros());
        let world = World {
            token: token.clone(),
            ahead: TimeDelta::zero(),
            faults: Vec::new(),
            seen: Vec::new(),
            violations: Vec::new(),
            per_second: None,
            recent: Vec::new(),
            counter: 0,
            vercel: vercel::Vercel::default(),
            cherry: cherry::Cherry::default(),
        };
        let fake = Self { addr, token, world: Arc::new(Mutex::new(world)) };
        let serving = fake.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(serving.serve(listener));
        });
        fake
    }

    async fn serve(self, listener: std::net::TcpListener) {
        let listener = TcpListener::from_std(listener).expect("a socket");
        let documents = Arc::new((schema::vercel(), schema::cherry()));
        while let Ok((stream, _)) = listener.accept().await {
            let (world, documents) = (Arc::clone(&self.world), Arc::clone(&documents));
            tokio::spawn(wire::serve(stream, async move |request| answer(&world, &documents, request).await));
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address of both vendors.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What both vendors take as a token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The options that make a server use this fake: flag and value.
    pub fn options(&self) -> Vec<(&'static str, String)> {
        vec![
            ("--vercel-url", self.url()),
            ("--vercel-token", self.token.clone()),
            ("--cherry-url", self.url()),
            ("--cherry-token", self.token.clone()),
            ("--cherry-project", PROJECT.to_string()),
        ]
    }

    /// Looks at, or changes, what the vendors know.
    pub fn with<T>(&self, look: impl FnOnce(&mut World) -> T) -> T {
        look(&mut self.world.lock())
    }
}

async fn answer(
    world: &Mutex<World>,
    documents: &(Document, Document),
    request: Request,
) -> (Reply, Delivery) {
    if let Some(command) = request.path.strip_prefix("/admin/") {
        return (admin::answer(&mut world.lock(), command, request.body.as_ref()), Delivery::Whole);
    }
    let of_vercel = documents.0.operation(&request.method, &request.path);
    let is_vercel = of_vercel.is_some();
    let found = of_vercel.or_else(|| documents.1.operation(&request.method, &request.path));
    let Some(operation) = found else {
        let what = format!("{} {} is not documented", request.method, request.path);
        world.lock().violations.push(what.clone());
        return (Reply::json(404, &json!({ "code": 404, "message": what })), Delivery::Whole);
    };
    let fault = world.lock().fault(operation.id);
    if let Some(How::ActLater(wait)) = fault {
        tokio::time::sleep(wait).await;
    }
    let mut world = world.lock();
    let problem = |status, code: &str, message: &str| {
        let body = if !is_vercel {
            json!({ "code": status, "message": message })
        } else if request.path.starts_with("/v1/registrar") {
            json!({ "status": status, "code": code, "message": message })
        } else {
            json!({ "error": { "code": code, "message": message } })
        };
        Reply::json(status, &body)
    };
    let faults = operation.request_faults(&request.query, request.body.as_ref());
    let wanted = format!("Bearer {}", world.token);
    let reply = if request.header("authorization") != Some(wanted.as_str()) {
        problem(401, "unauthorized", "Unauthorized")
    } else if world.is_too_often() || fault == Some(How::TooOften) {
        too_often(is_vercel, &request, &world)
    } else if !faults.is_empty() {
        world.violations.extend(faults.iter().cloned());
        bad_request(is_vercel, &request, &faults)
    } else if let Some(How::Instead(status)) = fault {
        problem(status, code_of(status), "as the test wants it")
    } else if fault == Some(How::Unheard) {
        Reply::default()
    } else if is_vercel {
        vercel::act(&mut world, operation.id, &operation.path, &request)
    } else {
        cherry::act(&mut world, operation.id, &operation.path, &request)
    };
    let reply = match fault {
        Some(How::Instead(status @ 300..=399)) => {
            let headers = vec![("location", "/v1/user".to_owned())];
            Reply { status, headers, ..Reply::default() }
        }
        Some(How::ActThen(status)) => problem(status, code_of(status), "after it was done"),
        _ => reply,
    };
    // A fault's own answer, and the 429 that half of the registrar's document leaves out, are not documented.
    let own = !matches!(fault, Some(How::Instead(_) | How::ActThen(_) | How::Unheard)) && reply.status != 429;
    if own {
        let drift = operation.answer_faults(reply.status, &reply.body);
        world.violations.extend(drift);
    }
    let status = reply.status;
    world.seen.push(Seen { operation: operation.id.to_owned(), request, status });
    let delivery = match fault {
        Some(How::Late(wait)) => Delivery::Late(wait),
        Some(How::Lost | How::Unheard) => Delivery::Never,
        Some(How::Twice) => Delivery::Twice,
        Some(How::Half) => Delivery::Half,
        Some(How::Noise) => Delivery::Noise,
        Some(How::ActLater(_) | How::Instead(_) | How::ActThen(_) | How::TooOften) | None => Delivery::Whole,
    };
    (reply, delivery)
}

fn code_of(status: u16) -> &'static str {
    match status {
        400 => "bad_request",
        401 => "unauthorized",
        403 => "not_authorized_for_scope",
        404 => "not_found",
        409 => "conflict",
        _ => "internal_server_error",
    }
}

fn too_often(is_vercel: bool, request: &Request, world: &World) -> Reply {
    if !is_vercel {
        return Reply::json(429, &json!({ "code": 429, "message": "Too many requests" }));
    }
    if !request.path.starts_with("/v1/registrar") {
        let limit = json!({ "total": 60, "remaining": 0, "reset": world.now().timestamp() + 1 });
        let error = json!({ "code": "rate_limited", "message": "Too many requests", "limit": limit });
        return Reply::json(429, &json!({ "error": error }));
    }
    let body = json!({
        "status": 429,
        "code": "too_many_requests",
        "message": "Too many requests",
        "retryAfter": { "value": 1, "str": "1s" },
        "limit": { "total": 60, "remaining": 0, "reset": world.now().timestamp() + 1 },
    });
    Reply::json(429, &body)
}

fn bad_request(is_vercel: bool, request: &Request, faults: &[String]) -> Reply {
    let message = faults.join("; ");
    if !is_vercel {
        return Reply::json(400, &json!({ "code": 400, "message": message }));
    }
    if request.path.starts_with("/v1/registrar") {
        let issues: Vec<Value> = Vec::new();
        return Reply::json(400, &json!({ "issues": issues, "message": message }));
    }
    Reply::json(400, &json!({ "error": { "code": "bad_request", "message": message } }))
}
