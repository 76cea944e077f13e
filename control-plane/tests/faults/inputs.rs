//! Hostile input: refused in the contract's form, or passed over; the server's memory stays flat.

use std::fmt::Write as _;
use std::time::Duration;

use otonix_proto::v1::{Action, Event, Usage, event};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::floods::rss_kb;
use super::setting;
use crate::support::http::raw_exchange;
use crate::support::link::{Link, action, event_id, hello};
use crate::support::{Agent, Call, Server, Store, on_each_store};

on_each_store!(hostile_bodies_are_refused_and_cost_no_memory, a_hostile_event_spoils_no_other);

/// What all hostile input together may leave behind.
const MOST_GROWTH_KB: u64 = 48 * 1024;

fn nested(open: &str, inner: &str, close: &str, depth: usize) -> String {
    format!("{}{inner}{}", open.repeat(depth), close.repeat(depth))
}

/// Values that no field takes.
fn hostile_values() -> Vec<(&'static str, String)> {
    vec![
        ("NUL", r#""a\u0000b""#.to_owned()),
        ("lone surrogate", r#""\ud800""#.to_owned()),
        ("1e400", "1e400".to_owned()),
        ("-1e400", "-1e400".to_owned()),
        ("10^400", format!("1{}", "0".repeat(400))),
        ("10^100000", format!("1{}", "0".repeat(100_000))),
        ("deep array", nested("[", "", "]", 50_000)),
        ("deep object", nested("{\"a\":", "1", "}", 30_000)),
        ("10^5 entries", format!("[{}1]", "1,".repeat(100_000))),
        ("10^5 texts", format!("[{}\"\"]", "\"\",".repeat(60_000))),
        ("long text", format!("\"{}\"", "x".repeat(200_000))),
        ("object", "{}".to_owned()),
    ]
}

fn words(text: &'static str) -> Vec<&'static str> {
    text.split(' ').collect()
}

/// Routes and their fields, with a body that is fine but for the field.
fn fields(agent: &Agent) -> Vec<(String, &'static str, Value, Vec<&'static str>)> {
    let id = &agent.id;
    vec![
        (
            agent.path("actions"),
            "actions",
            json!({"action": "a", "category": "system"}),
            vec!["action", "category", "details", "status", "autonomous"],
        ),
        (
            "/api/compute-logs".to_owned(),
            "usage",
            json!({"model": "m", "tokensIn": 1, "cost": 1, "agentId": id}),
            vec!["model", "tokensIn", "tokensOut", "cost", "agentId"],
        ),
        (
            "/api/agents/register".to_owned(),
            "register",
            json!({"name": "n"}),
            vec!["name", "model", "vpsIp", "walletAddress", "walletProof", "heartbeatInterval"],
        ),
        (agent.path("grant"), "grant", json!({"amount": 1, "reason": "r"}), vec!["amount", "reason"]),
        (agent.path("commands"), "command", json!({"kind": "restart_agent"}), vec!["kind", "ttlSeconds"]),
        (
            "/api/sandboxes".to_owned(),
            "sandbox",
            json!({"name": "s"}),
            vec!["name", "status", "os", "cpu", "memory", "disk", "region", "ipAddress", "ports", "agentId"],
        ),
        (
            "/api/domains".to_owned(),
            "domain",
            json!({"name": "example.com"}),
            words("name status registeredAt expiresAt dnsRecords sandboxId agentId autoRenew"),
        ),
        (
            "/api/transactions".to_owned(),
            "transaction",
            json!({"type": "debit", "amount": 1}),
            words("type amount currency description status fromAddress txHash metadata agentId"),
        ),
        ("/api/keys/generate".to_owned(), "key", json!({"name": "k"}), vec!["name", "ownerWallet"]),
        (
            agent.path("events"),
            "events",
            json!({"epoch": "e", "nextSeq": 1, "events": []}),
            vec!["epoch", "nextSeq", "events"],
        ),
    ]
}

fn call(server: &Server, agent: &Agent, path: &str, kind: &str) -> Call {
    let call = server.post(path);
    if matches!(kind, "grant" | "key") { call.operator(&server.operator) } else { call.key(&agent.key) }
}

/// What a value is in JSON at the end of an object.
fn with(body: &Value, field: &str, value: &str) -> String {
    let mut fields = body.as_object().expect("an object").clone();
    fields.remove(field);
    let rest = serde_json::to_string(&fields).expect("JSON");
    let comma = if fields.is_empty() { "" } else { "," };
    format!("{}{comma}\"{field}\":{value}}}", &rest[..rest.len() - 1])
}

/// Every field of every route with every hostile value: refused, or (an unconstrained text, an ignored field) taken
/// without harm, and never a 5xx.
async fn every_field(server: &Server, agent: &Agent) -> (usize, usize) {
    let (mut refused, mut taken) = (0, 0);
    for (path, kind, body, names) in fields(agent) {
        for name in names {
            for (what, value) in hostile_values() {
                let answer = call(server, agent, &path, kind).raw(with(&body, name, &value)).await;
                match answer.status {
                    400..=499 => refused += 1,
                    // Free text of this length, a map: what fits the field is no harm.
                    200..=299 if !matches!(what, "NUL" | "1e400" | "-1e400" | "10^400" | "10^100000") => {
                        taken += 1
                    }
                    status => panic!("{status} for {what} in {name} of {kind}: {}", answer.text()),
                }
                assert_ne!(answer.status, 422, "{what} in {name} of {kind}");
            }
        }
    }
    (refused, taken)
}

/// Bodies that are wrong as a whole.
async fn whole_bodies(server: &Server, agent: &Agent) {
    let path = agent.path("actions");
    let post = |body: Vec<u8>| server.post(&path).key(&agent.key).raw(body);
    let fine = r#"{"action": "a", "category": "system"}"#;
    for (what, body) in [
        ("nothing", Vec::new()),
        ("NUL", vec![0]),
        ("many NULs", vec![0; 100_000]),
        ("not UTF-8", b"{\"action\": \"\xff\xfe\", \"category\": \"system\"}".to_vec()),
        ("overlong UTF-8", b"{\"action\": \"\xc0\xaf\", \"category\": \"system\"}".to_vec()),
        ("UTF-16", fine.encode_utf16().flat_map(u16::to_le_bytes).collect()),
        ("deep arrays", nested("[", "", "]", 120_000).into_bytes()),
        ("deep objects", nested("{\"action\":", "1", "}", 20_000).into_bytes()),
        ("unclosed", "[".repeat(250_000).into_bytes()),
        ("twice", format!("{fine}{fine}").into_bytes()),
        ("an array", format!("[{fine}]").into_bytes()),
        ("a number", b"1e999999999".to_vec()),
        ("15,000 unknown fields", {
            let mut body = String::from("{");
            for n in 0..15_000 {
                write!(body, "\"f{n}\":{n},").expect("a text grows");
            }
            body.push_str("\"action\": 1}");
            body.into_bytes()
        }),
    ] {
        let answer = post(body).await;
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
    }
    post(vec![b' '; (1 << 20) + 1]).await.refused(413, "payload_too_large");
    for megabytes in [3, 10, 30] {
        // Refused by what it announces, while the client is still sending it.
        post(vec![b'x'; megabytes << 20]).await.refused(413, "payload_too_large");
    }
    let events = vec![b' '; (4 << 20) + 1];
    server.post(&agent.path("events")).key(&agent.key).raw(events).await.refused(413, "payload_too_large");
    let numbered: Vec<Value> =
        (1..=20_000).map(|seq| json!({"seq": seq, "id": event_id(seq), "action": 1})).collect();
    let body = json!({"epoch": "e", "nextSeq": 20_001, "events": numbered});
    server.post(&agent.path("events")).key(&agent.key).json(body).await.bad_field("events");
    let kind = server.post(&path).key(&agent.key).header("content-type", "text/xml").bytes(fine);
    assert_eq!(kind.await.status, 415);
}

/// Heads that no HTTP client would send.
async fn heads(server: &Server, agent: &Agent) {
    let key = &agent.key.secret;
    let long = "x".repeat(64 * 1024);
    let many = (0..300).fold(String::new(), |all, n| format!("{all}x-{n}: 1\r\n"));
    for (what, head, statuses) in [
        ("a long header", format!("GET /healthz HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"), &[431][..]),
        ("many headers", format!("GET /healthz HTTP/1.1\r\nhost: a\r\n{many}\r\n"), &[431]),
        ("a long path", format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"), &[414, 431]),
        ("NUL in the path", "GET /api/\0 HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), &[400]),
        ("NUL in a header", "GET /api/agents HTTP/1.1\r\nhost: a\r\nx: \0\r\n\r\n".to_owned(), &[400]),
        ("no HTTP", "\u{16}\u{3}\u{1}\u{2}\0\r\n\r\n".to_owned(), &[400]),
        ("a length of 10^30", format!("POST /api/compute-logs HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-length: 1{}\r\n\r\n", "0".repeat(30)), &[400, 413]),
        ("a length of 10 GB", format!("POST /api/compute-logs HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ncontent-length: 10000000000\r\n\r\n"), &[413]),
        ("a negative length", "POST /api/compute-logs HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n".to_owned(), &[400]),
        ("two lengths", "POST /api/compute-logs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n{}".to_owned(), &[400]),
        ("a chunk of 2^63", format!("POST /api/compute-logs HTTP/1.1\r\nhost: localhost\r\nx-api-key: {key}\r\ntransfer-encoding: chunked\r\n\r\n7fffffffffffffff\r\n{{"), &[400, 408, 413]),
    ] {
        let answer = raw_exchange(server.addr, head.as_bytes(), Duration::from_secs(20)).await;
        let text = String::from_utf8_lossy(&answer);
        let status: u16 = text.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
        assert!(statuses.contains(&status), "{what}: {text}");
        assert!(text.contains("application/problem+json"), "{what}: {text}");
        assert!(text.contains("\"code\":"), "{what}: {text}");
    }
    for path in [
        "/api/agents/%00",
        "/api/agents/%ff%fe",
        "/api/agents?limit=99999999999999999999",
        "/api/agents?limit=-1",
        "/api/agents?limit=%00",
        "/api/agents?cursor=%00%ff",
        "/api/agents?cursor=AAAA",
        "/api/agents?status=%00",
        "/api/compute-logs?agentId=%00",
        "/api/compute-logs?since=99999999999999",
        "/api/compute-logs?since=%ff",
        "/api/agent-actions?category=a%00b",
    ] {
        let answer = server.get(path).key(&agent.key).await;
        // What filters for something that cannot be finds nothing.
        let empty = answer.status == 200 && path.contains("category") && answer.list().is_empty();
        assert!(empty || (400..500).contains(&answer.status), "{path}: {} {}", answer.status, answer.text());
    }
    let fine = json!({"action": "a", "category": "system"});
    for bad in [&b"\xff"[..], b"", &[b'k'; 129], "é".as_bytes()] {
        let answer = server.post(&agent.path("actions")).key(&agent.key).header("idempotency-key", bad);
        answer.json(fine.clone()).await.bad_field("Idempotency-Key");
    }
    let answer = server.get("/api/agents").header("x-api-key", b"otonix_\xff").await;
    assert_eq!(answer.status, 401, "{}", answer.text());
}

async fn hostile_bodies_are_refused_and_cost_no_memory(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    // Once before counting: buffers, caches and connections reach their size.
    let (refused, taken) = every_field(&server, &agent).await;
    whole_bodies(&server, &agent).await;
    heads(&server, &agent).await;
    let before = rss_kb(server.pid());
    let mut height = before;
    for _ in 0..setting("OTONIX_FAULT_INPUTS", 4) {
        every_field(&server, &agent).await;
        whole_bodies(&server, &agent).await;
        height = height.max(rss_kb(server.pid()));
    }
    eprintln!(
        "{store:?}: {refused} refused, {taken} taken each time; RSS {before} kB, at its height {height} kB"
    );
    assert!(height.saturating_sub(before) < MOST_GROWTH_KB, "RSS grew from {before} kB to {height} kB");
    server.act(&agent, "still here").await;
    assert!(!server.log().contains("a request failed"), "no 5xx");
    server.audit();
}

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

async fn a_hostile_event_spoils_no_other(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let bad_action = |seq, text: &str, category: &str| Event {
        body: Some(event::Body::Action(Action {
            action: text.to_owned(),
            category: category.to_owned(),
            ..Action::default()
        })),
        ..action(seq)
    };
    let bad_usage = |seq, tokens: i64, cost: i64| Event {
        body: Some(event::Body::Usage(Usage {
            model: "m".to_owned(),
            tokens_in: tokens,
            cost_micro: Some(cost),
            ..Usage::default()
        })),
        ..action(seq)
    };
    let bad: Vec<Event> = vec![
        bad_action(2, "a\0b", "system"),
        bad_action(4, "a", "not a slug \0"),
        bad_action(6, &"x".repeat(60_000), "system"),
        bad_usage(8, i64::MAX, 0),
        bad_usage(10, -1, 0),
        bad_usage(12, 1, i64::MAX),
        bad_usage(14, 1, i64::MIN),
        Event { body: None, ..action(16) },
        Event { id: "no id \0".to_owned(), ..action(18) },
    ];
    let rejected: Vec<u64> = bad.iter().map(|event| event.seq).collect();
    let mut events: Vec<Event> = (1..=24).map(action).collect();
    for event in bad {
        let at = usize::try_from(event.seq - 1).expect("small");
        events[at] = event;
    }
    // Strange times are no reason to refuse.
    for (seq, time) in [(20, at(i64::MAX)), (21, at(i64::MIN)), (22, at(253_402_300_800)), (23, None)] {
        events[seq - 1].at = time;
    }
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    link.events(events.clone()).await;
    let ack = link.acked(24).await;
    let told: Vec<u64> = ack.rejected.iter().map(|rejected| rejected.seq).collect();
    assert_eq!(told, rejected, "{ack:?}");
    // A resend changes nothing.
    link.events(events).await;
    link.acked(24).await;
    let actions = server.all(&agent.key, &agent.path("actions?limit=1000")).await;
    let good =
        actions.iter().filter(|row| row["action"].as_str().is_some_and(|text| text.starts_with("did ")));
    assert_eq!(good.count(), 24 - rejected.len(), "{actions:?}");
    assert_eq!(server.look(&agent).await["credits"], 0);
    server.audit();
}
