//! The access matrix: who gets what on every route, in both modes, directly and through a proxy.
//! A route of the server without a line here fails.

use std::time::Duration;

use otonix_proto::v1::down;
use serde_json::{Value, json};

use crate::support::http::raw_exchange;
use crate::support::link::{Link, hello};
use crate::support::{Agent, Call, Key, Server, Store, on_each_store};

on_each_store!(
    every_caller_gets_what_the_matrix_says,
    open_mode_serves_direct_local_callers_only,
    guarded_mode_serves_any_host_and_origin,
    a_session_in_open_mode_is_direct_too,
    one_foreign_host_among_two_is_foreign,
);

/// A caller of the matrix, in the order of a line's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Anonymous,
    /// A key that nobody has.
    Unknown,
    Revoked,
    /// Another owner's key.
    Other,
    /// The key of the thing's owner.
    Own,
    Operator,
}

const CALLERS: [Caller; 6] =
    [Caller::Anonymous, Caller::Unknown, Caller::Revoked, Caller::Other, Caller::Own, Caller::Operator];

/// Statuses by caller.
type Row = [u16; 6];

/// One route: its statuses in open and in guarded mode.
struct Line {
    method: &'static str,
    path: &'static str,
    body: fn() -> Value,
    open: Row,
    guarded: Row,
}

const fn line(
    method: &'static str,
    path: &'static str,
    body: fn() -> Value,
    open: Row,
    guarded: Row,
) -> Line {
    Line { method, path, body, open, guarded }
}

const fn none() -> Value {
    Value::Null
}

/// Anyone, whatever key they show.
const fn public(status: u16) -> Row {
    [status; 6]
}

/// Anyone; a key that is shown must be a good one.
const fn anyone(status: u16) -> Row {
    [status, 401, 401, status, status, status]
}

/// Any key, not the operator's token.
const fn key_only(status: u16) -> Row {
    [401, 401, 401, status, status, 401]
}

/// Any key, and the operator.
const fn any_key(status: u16) -> Row {
    [401, 401, 401, status, status, status]
}

/// The owner's key and the operator; for others it is not there.
const fn owner(status: u16) -> Row {
    [401, 401, 401, 404, status, status]
}

/// The owner's key alone: what an agent says of itself.
const fn own_key(status: u16) -> Row {
    [401, 401, 401, 404, status, 401]
}

const fn operator(status: u16) -> Row {
    [401, 401, 401, 403, 403, status]
}

/// Every route. What the API asks a key for, the operator's token does not open.
const MATRIX: &[Line] = &[
    line("GET", "/healthz", none, public(200), public(200)),
    line("GET", "/readyz", none, public(200), public(200)),
    line("GET", "/metrics", none, public(200), public(200)),
    line("POST", "/api/keys/generate", named, anyone(201), [401, 401, 401, 201, 201, 201]),
    line("GET", "/api/keys", none, anyone(200), any_key(200)),
    line("DELETE", "/api/keys/{key}", none, anyone(200), owner(200)),
    line("POST", "/api/agents/register", agent, REGISTER, REGISTER),
    line("GET", "/api/agents", none, anyone(200), anyone(200)),
    line("GET", "/api/agents/{agent}", none, anyone(200), owner(200)),
    line("POST", "/api/agents/{agent}/heartbeat", none, own_key(200), own_key(200)),
    line("POST", "/api/agents/{agent}/actions", action, own_key(201), own_key(201)),
    line("GET", "/api/agents/{agent}/actions", none, anyone(200), owner(200)),
    line("GET", "/api/agent-actions", none, anyone(200), any_key(200)),
    line("GET", "/api/sandboxes", none, anyone(200), anyone(200)),
    line("POST", "/api/sandboxes", named, anyone(201), any_key(201)),
    line("GET", "/api/sandboxes/{sandbox}", none, anyone(200), owner(200)),
    line("GET", "/api/domains", none, anyone(200), anyone(200)),
    line("POST", "/api/domains", domain, anyone(201), any_key(201)),
    line("GET", "/api/domains/{domain}", none, anyone(200), owner(200)),
    line("PATCH", "/api/domains/{domain}", patch, anyone(200), owner(200)),
    line("GET", "/api/compute-logs", none, anyone(200), any_key(200)),
    line("POST", "/api/compute-logs", usage, anyone(201), any_key(201)),
    line("GET", "/api/transactions", none, anyone(200), anyone(200)),
    line("POST", "/api/transactions", transaction, anyone(201), any_key(201)),
    line("POST", "/api/agents/{agent}/topup", topup, anyone(503), anyone(503)),
    line("GET", "/api/orders", none, any_key(200), any_key(200)),
    line("GET", "/api/refunds", none, any_key(200), any_key(200)),
    line("POST", "/api/refunds/{number}/resolve", resolve, operator(404), operator(404)),
    line("GET", "/api/purchases", none, any_key(200), any_key(200)),
    line("POST", "/api/purchases/{number}/resolve", resolve, operator(404), operator(404)),
    line("GET", "/api/x402/config", none, public(200), public(200)),
    line("GET", "/api/vercel/status", none, public(200), public(200)),
    line("GET", "/api/vercel/payment-config", none, public(200), public(200)),
    line("POST", "/api/vercel/check", check, anyone(503), any_key(503)),
    line("POST", "/api/vercel/register", check, anyone(503), anyone(503)),
    line("GET", "/api/vercel/domains", none, anyone(503), any_key(503)),
    line("GET", "/api/vercel/dns/{name}", none, anyone(503), any_key(503)),
    line("POST", "/api/vercel/dns/{name}", record, anyone(503), any_key(503)),
    line("DELETE", "/api/vercel/dns/{name}/rec_1", none, anyone(503), any_key(503)),
    line("GET", "/api/cherry/status", none, public(200), public(200)),
    line("GET", "/api/cherry/plans", none, anyone(503), anyone(503)),
    line("GET", "/api/cherry/regions", none, anyone(503), anyone(503)),
    line("GET", "/api/cherry/images", none, anyone(503), anyone(503)),
    line("GET", "/api/cherry/teams", none, anyone(503), operator(503)),
    line("GET", "/api/cherry/projects/{number}", none, anyone(503), operator(503)),
    line("GET", "/api/cherry/servers/{number}", none, anyone(503), any_key(503)),
    line("POST", "/api/cherry/servers/{number}", server_order, key_only(503), key_only(503)),
    line("POST", "/api/cherry/servers/{number}/extend", none, key_only(503), key_only(503)),
    line("POST", "/api/cherry/servers/{number}/actions", reboot, key_only(503), key_only(503)),
    line("DELETE", "/api/cherry/servers/{number}", none, key_only(503), key_only(503)),
    line("POST", "/api/agents/{agent}/grant", grant, operator(201), operator(201)),
    line("POST", "/api/agents/{agent}/kill", reason, owner(200), owner(200)),
    line("POST", "/api/agents/{agent}/commands", command, owner(201), owner(201)),
    line("GET", "/api/agents/{agent}/commands", none, owner(200), owner(200)),
    line("GET", "/api/agents/{agent}/ledger", none, owner(200), owner(200)),
    line("POST", "/api/agents/{agent}/events", events, own_key(200), own_key(200)),
    line("POST", "/api/agents/{agent}/children", child, owner(409), owner(409)),
    line("GET", "/api/enrolment-tokens", none, any_key(200), any_key(200)),
    line("POST", "/api/enrolment-tokens", none, any_key(201), any_key(201)),
    line("DELETE", "/api/enrolment-tokens/{token}", none, owner(200), owner(200)),
    line("POST", "/api/enrol", enrolment, ENROL, ENROL),
    line("GET", "/api/laws/{number}", none, any_key(404), any_key(404)),
    line("GET", "/api/price-table", none, any_key(200), any_key(200)),
    line("GET", "/api/auth/status", none, anyone(200), anyone(200)),
    line("GET", "/api/autonomic/status", none, public(200), public(200)),
];

/// Every route: method, and path with `{}` for what differs.
pub fn routes() -> impl Iterator<Item = (&'static str, String)> {
    MATRIX.iter().map(|line| (line.method, nameless(line.path)))
}

/// A path with `{}` for what differs.
pub fn nameless(path: &str) -> String {
    let differs = |part: &str| {
        part.starts_with('{') || part == "rec_1" || part.bytes().all(|byte| byte.is_ascii_digit())
    };
    let parts = path.split('/').map(|one| if !one.is_empty() && differs(one) { "{}" } else { one });
    parts.collect::<Vec<_>>().join("/")
}

const REGISTER: Row = [401, 401, 401, 201, 201, 401];

fn named() -> Value {
    json!({"name": "x"})
}

fn agent() -> Value {
    json!({"name": "x", "walletAddress": "0x2a18000000000000000000000000000000000461"})
}

fn action() -> Value {
    json!({"action": "x", "category": "system"})
}

fn domain() -> Value {
    json!({"name": format!("{}.example", unique())})
}

fn patch() -> Value {
    json!({"autoRenew": true})
}

fn usage() -> Value {
    json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 1})
}

fn transaction() -> Value {
    json!({"type": "debit", "amount": 1})
}

fn check() -> Value {
    json!({"domain": "a.example"})
}

fn topup() -> Value {
    json!({"amount": 1})
}

fn resolve() -> Value {
    json!({"resolution": "dismissed"})
}

fn record() -> Value {
    json!({"type": "A", "name": "@", "value": "10.0.0.1"})
}

fn server_order() -> Value {
    json!({"plan": "p", "region": "r", "image": "i", "hostname": "h", "cycle": "hourly"})
}

fn reboot() -> Value {
    json!({"type": "reboot"})
}

fn grant() -> Value {
    json!({"amount": 1, "reason": "x"})
}

/// A token that nobody has: whoever asks, that is what is wrong.
const ENROL: Row = [401; 6];

fn enrolment() -> Value {
    let proof = json!({"signature": "0x00", "unixTime": 0});
    json!({"token": "x", "walletAddress": "0x2a18000000000000000000000000000000000461", "walletProof": proof})
}

/// Nobody here has credits.
fn child() -> Value {
    json!({"name": unique(), "budget": 5})
}

fn reason() -> Value {
    json!({"reason": "x"})
}

fn command() -> Value {
    json!({"kind": "restart_agent"})
}

fn events() -> Value {
    json!({"epoch": "e", "nextSeq": 1, "events": []})
}

fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("n{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// What the calls are made with.
struct World {
    server: Server,
    own: Key,
    other: Key,
    revoked: Key,
}

impl World {
    async fn new(server: Server) -> Self {
        let own = server.key("own").await;
        let other = server.key("other").await;
        let revoked = server.key("revoked").await;
        server.revoke(&revoked).await;
        Self { server, own, other, revoked }
    }

    fn signed(&self, call: Call, caller: Caller) -> Call {
        match caller {
            Caller::Anonymous => call,
            Caller::Unknown => call.key(&Key::unknown()),
            Caller::Revoked => call.key(&self.revoked),
            Caller::Other => call.key(&self.other),
            Caller::Own => call.key(&self.own),
            Caller::Operator => call.operator(&self.server.operator),
        }
    }

    /// The path with fresh things of the owner in it.
    async fn fill(&self, path: &str, caller: Caller) -> String {
        let text = |value: &Value| value["id"].as_str().expect("an id").to_owned();
        let (name, id) = if path.contains("{agent}") {
            let Agent { id, .. } = self.server.register(&self.own, &unique()).await;
            ("{agent}", id)
        } else if path.contains("{key}") {
            // An owner has at most twenty keys, so its own is spent only where it matters.
            let key = match caller {
                Caller::Own | Caller::Other => self.server.key_of(&self.own, "to go").await,
                _ => self.server.key("to go").await,
            };
            ("{key}", key.id)
        } else if path.contains("{token}") {
            let made = self.server.post("/api/enrolment-tokens").key(&self.own).json(json!({})).await.ok(201);
            ("{token}", text(&made))
        } else if path.contains("{sandbox}") {
            let made = self.server.post("/api/sandboxes").key(&self.own).json(named()).await.ok(201);
            ("{sandbox}", text(&made))
        } else if path.contains("{domain}") {
            let made = self.server.post("/api/domains").key(&self.own).json(domain()).await.ok(201);
            ("{domain}", text(&made))
        } else {
            return path.replace("{name}", "a.example").replace("{number}", "12345");
        };
        path.replace(name, &id)
    }

    async fn call(&self, line: &Line, caller: Caller) -> Call {
        let path = self.fill(line.path, caller).await;
        let call = self.signed(self.server.call(line.method, &path), caller);
        match (line.body)() {
            Value::Null => call,
            body => call.json(body),
        }
    }
}

async fn every_caller_gets_what_the_matrix_says(store: Store) {
    let mut wrong = Vec::new();
    for mode in ["open", "guarded"] {
        let server = Server::with(store).await.arg("--mode", mode).start().await;
        let mut world = World::new(server).await;
        for line in MATRIX {
            for (caller, column) in CALLERS.into_iter().zip(0..) {
                let wanted = if mode == "open" { line.open[column] } else { line.guarded[column] };
                let answer = world.call(line, caller).await.await;
                if answer.status != wanted {
                    let said = answer.text().to_owned();
                    wrong.push(format!(
                        "{mode} {} {} {caller:?}: {wanted}, got {said}",
                        line.method, line.path
                    ));
                }
            }
            // At most twenty active keys to an owner: start afresh when the routes about keys are through.
            if line.path.starts_with("/api/keys") {
                world = World::new(world.server).await;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn open_mode_serves_direct_local_callers_only(store: Store) {
    let server = Server::with(store).await.arg("--mode", "open").start().await;
    let port = server.addr.port();
    let world = World::new(server).await;
    let foreign = [
        ("x-forwarded-for", "127.0.0.1".to_owned()),
        ("x-forwarded-host", "localhost".to_owned()),
        ("x-forwarded-proto", "https".to_owned()),
        ("forwarded", "for=127.0.0.1".to_owned()),
        ("via", "1.1 proxy".to_owned()),
        ("host", "cp.example".to_owned()),
        ("host", format!("evil.example:{port}")),
        ("host", "127.0.0.1.evil.example".to_owned()),
        ("host", "192.0.2.1".to_owned()),
        ("origin", "https://evil.example".to_owned()),
        ("origin", "null".to_owned()),
        ("origin", format!("http://localhost.evil.example:{port}")),
    ];
    let mut wrong = Vec::new();
    for line in MATRIX {
        let everyones = matches!(line.path, "/healthz" | "/readyz");
        for (name, value) in &foreign {
            for caller in [Caller::Anonymous, Caller::Operator] {
                let answer = world.call(line, caller).await.header(name, value).await;
                let fine = match line.path {
                    _ if everyones => answer.status == 200,
                    "/metrics" => {
                        matches!((caller, answer.status), (_, 401 | 403) | (Caller::Operator, 200))
                            || name == &"host"
                            || name == &"origin"
                    }
                    _ => answer.status == 403 && answer.json()["code"] == "open_mode_local_only",
                };
                if !fine {
                    let said = answer.text().to_owned();
                    wrong.push(format!(
                        "{} {} {caller:?} with {name}: {value}: {said}",
                        line.method, line.path
                    ));
                }
            }
        }
        if line.path.starts_with("/api/keys") {
            continue;
        }
        for (name, value) in [
            ("host", "localhost".to_owned()),
            ("host", format!("LOCALHOST:{port}")),
            ("host", format!("127.0.0.1:{port}")),
            ("host", format!("[::1]:{port}")),
            ("origin", format!("http://127.0.0.1:{port}")),
        ] {
            let answer = world.call(line, Caller::Own).await.header(name, &value).await;
            if answer.status != line.open[4] {
                let said = answer.text().to_owned();
                wrong.push(format!("{} {} at home with {name}: {value}: {said}", line.method, line.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn guarded_mode_serves_any_host_and_origin(store: Store) {
    let server = Server::with(store).await.guarded().start().await;
    let world = World::new(server).await;
    let mut wrong = Vec::new();
    for line in MATRIX {
        if line.path == "/metrics" || line.path.contains("{key}") || line.path == "/api/keys/generate" {
            continue;
        }
        for (name, value) in [
            ("x-forwarded-for", "203.0.113.9"),
            ("forwarded", "for=203.0.113.9;host=cp.example"),
            ("via", "1.1 proxy"),
            ("host", "cp.example"),
            ("origin", "https://elsewhere.example"),
        ] {
            for (caller, column) in [(Caller::Anonymous, 0), (Caller::Own, 4), (Caller::Operator, 5)] {
                let answer = world.call(line, caller).await.header(name, value).await;
                if answer.status != line.guarded[column] {
                    let said = answer.text().to_owned();
                    wrong.push(format!("{} {} {caller:?} with {name}: {said}", line.method, line.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

async fn a_session_in_open_mode_is_direct_too(store: Store) {
    for (mode, let_in) in [("open", false), ("guarded", true)] {
        let server = Server::with(store).await.arg("--mode", mode).start().await;
        let agent = server.agent("a").await;
        for (name, value) in
            [("x-forwarded-for", "203.0.113.9"), ("forwarded", "for=203.0.113.9"), ("via", "1.1 proxy")]
        {
            let key = Some(agent.key.secret.as_str());
            let opened = Link::try_open_with(&server, key, hello(&agent), &[(name, value)]).await;
            match opened {
                Ok(mut link) => {
                    let first = link.next().await;
                    let welcomed = matches!(first, Some(Ok(down::Msg::Welcome(_))));
                    assert_eq!(welcomed, let_in, "{mode} {name}: {first:?}");
                }
                Err(status) => assert!(!let_in, "{mode} {name}: {status}"),
            }
        }
    }
}

async fn one_foreign_host_among_two_is_foreign(store: Store) {
    let server = Server::with(store).await.arg("--mode", "open").start().await;
    for (name, home, foreign) in
        [("host", "localhost", "evil.example"), ("origin", "http://localhost", "http://evil.example")]
    {
        for (first, second, status) in [(home, foreign, 403), (foreign, home, 403), (home, home, 200)] {
            let more = if name == "host" { "" } else { "host: localhost\r\n" };
            let head = format!(
                "GET /api/keys HTTP/1.1\r\n{more}{name}: {first}\r\n{name}: {second}\r\nconnection: close\r\n\r\n"
            );
            let answer = raw_exchange(server.addr, head.as_bytes(), Duration::from_secs(20)).await;
            let answer = String::from_utf8_lossy(&answer).into_owned();
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head}{answer}");
        }
    }
}

/// The server's own table and the matrix name the same routes.
#[test]
fn every_route_has_a_line() {
    let shape = |method: &str, path: &str| {
        let parts: Vec<&str> = path
            .split('/')
            .map(|part| if part.starts_with(['{', ':']) || part == "rec_1" { "{}" } else { part })
            .collect();
        format!("{method} {}", parts.join("/"))
    };
    let mut lines: Vec<String> = MATRIX.iter().map(|line| shape(line.method, line.path)).collect();
    let exported = otonix_control_plane::rest::ROUTES;
    let mut routes: Vec<String> = exported.iter().map(|(method, path)| shape(method, path)).collect();
    lines.sort();
    routes.sort();
    let without: Vec<&String> = routes.iter().filter(|route| !lines.contains(route)).collect();
    assert!(without.is_empty(), "routes without a line: {without:?}");
    let gone: Vec<&String> = lines.iter().filter(|line| !routes.contains(line)).collect();
    assert!(gone.is_empty(), "lines without a route: {gone:?}");
}
