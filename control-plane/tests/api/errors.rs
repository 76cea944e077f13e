//! Refusals: one form for all of them, whatever was thrown at the server. (The form itself is checked by the
//! client at every answer.)

use std::time::Duration;

use serde_json::json;

use crate::support::http::raw_exchange;
use crate::support::{Server, Store, on_each_store};

on_each_store!(
    unknown_routes_and_methods_are_problems,
    malformed_json_is_refused,
    hostile_texts_are_refused,
    other_content_types_are_refused,
    errors_name_no_type,
    headers_that_contradict_themselves_are_refused,
    a_body_too_large_is_refused,
    malformed_requests_do_no_harm,
    every_request_has_its_own_id,
);

/// Routes that take a body, with a body that would do.
const POSTS: [(&str, &str); 7] = [
    ("/api/keys/generate", r#"{"name":"x"}"#),
    ("/api/agents/register", r#"{"name":"x","walletAddress":"0x2a18000000000000000000000000000000000461"}"#),
    ("/api/sandboxes", r#"{"name":"x"}"#),
    ("/api/domains", r#"{"name":"x.example"}"#),
    ("/api/compute-logs", r#"{"model":"m","tokensIn":1,"tokensOut":1,"cost":1}"#),
    ("/api/transactions", r#"{"type":"debit","amount":1}"#),
    ("/api/agents/{id}/actions", r#"{"action":"x","category":"system"}"#),
];

async fn unknown_routes_and_methods_are_problems(store: Store) {
    let server = Server::start(store).await;
    for path in
        ["/api", "/api/", "/api/nothing", "/api/agents/a/b/c/d", "/api/%2e%2e/etc/passwd", "/api//agents"]
    {
        for method in ["GET", "POST", "DELETE"] {
            let answer = server.call(method, path).await;
            assert!(matches!(answer.status, 404 | 405), "{method} {path}: {}", answer.text());
        }
    }
    server.get("/api/nothing").await.refused(404, "no_route");
    for (method, path, allowed) in [
        ("DELETE", "/api/agents", "GET"),
        ("PUT", "/api/keys/generate", "POST"),
        ("PATCH", "/api/sandboxes", "POST"),
        ("POST", "/api/x402/config", "GET"),
        ("BREW", "/api/domains", "GET"),
    ] {
        let answer = server.call(method, path).await;
        answer.refused(405, "method_not_allowed");
        let allow = answer.header("allow").expect("Allow is named");
        assert!(allow.contains(allowed), "{method} {path}: {allow}");
    }
    // HEAD is a GET without a body; OPTIONS never fails the server.
    assert_eq!(server.call("HEAD", "/api/agents").await.status, 200);
    assert!(server.call("OPTIONS", "/healthz").await.status < 500);
}

async fn malformed_json_is_refused(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let deep_arrays = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep_objects = format!("{}1{}", r#"{"a":"#.repeat(30_000), "}".repeat(30_000));
    let deep_inside = format!(r#"{{"name":"x","extra":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
    for (path, _) in POSTS {
        let path = path.replace("{id}", &agent.id);
        for body in [
            "",
            " ",
            "{",
            "nonsense",
            "[]",
            "null",
            "5",
            "\"text\"",
            "{\"name\":}",
            "{\"name\":\"x\",}",
            "{\"name\":\"x\"} trailing",
            "{'name':'x'}",
            "{\"name\":\"\\ud800\"}",
            "{\"name\":\"\\x00\"}",
            "{\"name\":\"raw\ncontrol\"}",
            "\u{feff}{}",
            deep_arrays.as_str(),
            deep_objects.as_str(),
            deep_inside.as_str(),
        ] {
            let answer = server.post(&path).key(&agent.key).raw(body.to_owned()).await;
            let shown: String = body.chars().take(60).collect();
            let too_large = answer.status == 413 && body.len() > 200_000;
            assert!(answer.status == 400 || too_large, "{path} {shown}: {}", answer.text());
        }
        for body in
            [&b"{\"name\":\"\xff\xfe\"}"[..], b"\xff\xfe{\x00}\x00", b"{\"name\":\"\xc3\x28\"}", b"\x00"]
        {
            let answer = server.post(&path).key(&agent.key).raw(body.to_vec()).await;
            assert_eq!(answer.status, 400, "{path} {body:?}: {}", answer.text());
        }
    }
    server.post("/api/sandboxes").key(&agent.key).raw("{").await.refused(400, "invalid_json");
}

async fn hostile_texts_are_refused(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for (path, _) in POSTS {
        let path = path.replace("{id}", &agent.id);
        for body in [
            json!({"name": "a\u{0}b", "action": "a\u{0}b", "model": "a\u{0}b", "type": "a\u{0}b", "category": "x"}),
            json!({"name": "x".repeat(50_000), "action": "x".repeat(50_000), "model": "x".repeat(50_000),
                   "type": "x".repeat(50_000), "category": "x", "amount": 1, "cost": 1}),
            json!({"name": {"a": 1}, "action": [1], "model": true, "type": 1.5, "category": "x"}),
        ] {
            let too_large = body.to_string().len() > 200_000;
            let answer = server.post(&path).key(&agent.key).json(body).await;
            let fine = answer.status == 400 || (too_large && answer.status == 413);
            assert!(fine, "{path}: {}", answer.text());
        }
        let huge = format!(
            r#"{{"name":1e999999,"action":1e999999,"model":1e999999,"type":1e999999,"category":{}}}"#,
            "9".repeat(50_000)
        );
        let answer = server.post(&path).key(&agent.key).raw(huge).await;
        assert_eq!(answer.status, 400, "{path}: {}", answer.text());
    }
}

async fn errors_name_no_type(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    for (path, body, detail) in [
        (
            "/api/agents/register",
            json!({"name": "a", "walletProof": "x"}),
            "`walletProof` must be an object, not a text",
        ),
        ("/api/sandboxes", json!({"name": {}}), "`name` must be a text, not an object"),
        (
            "/api/domains",
            json!({"name": "x.example", "dnsRecords": [5]}),
            "`dnsRecords[0]` must be an object",
        ),
        (
            "/api/transactions",
            json!({"type": "debit", "amount": 1, "metadata": []}),
            "`metadata` must be an object",
        ),
    ] {
        let problem = server.post(path).key(&key).json(body).await.refused(400, "invalid_field");
        assert_eq!(problem["detail"], detail, "{path}");
    }
}

async fn headers_that_contradict_themselves_are_refused(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let twice = server.get("/api/agents").key(&key).key(&key).await.refused(400, "bad_request");
    assert!(twice["detail"].as_str().is_some_and(|detail| detail.contains("X-API-Key")), "{twice}");
    let body = json!({"name": "x"});
    let call = || server.post("/api/sandboxes").key(&key).json(body.clone());
    call().once("a").once("b").await.refused(400, "bad_request");
    for coding in ["gzip", "identity, br"] {
        call().header("content-encoding", coding).await.refused(415, "unsupported_media_type");
    }
    call().header("content-encoding", "identity").await.ok(201);
}

async fn other_content_types_are_refused(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for (path, body) in POSTS {
        let path = path.replace("{id}", &agent.id);
        for kind in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "image/png",
        ] {
            let answer = server.post(&path).key(&agent.key).header("content-type", kind).bytes(body).await;
            answer.refused(415, "unsupported_media_type");
        }
    }
    // Who may not ask at all hears that first.
    let guarded = Server::with(store).await.guarded().start().await;
    for path in ["/api/agents/register", "/api/keys/generate", "/api/sandboxes"] {
        let answer = guarded.post(path).header("content-type", "text/plain").bytes("nonsense").await;
        assert_eq!(answer.status, 401, "{path}: {}", answer.text());
    }
    for kind in ["application/json; charset=utf-8", "Application/JSON", "application/json;charset=\"UTF-8\""]
    {
        let call = server.post("/api/sandboxes").key(&agent.key).header("content-type", kind);
        call.bytes(r#"{"name":"x"}"#).await.ok(201);
    }
}

async fn a_body_too_large_is_refused(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for path in ["/api/sandboxes".to_owned(), agent.path("actions"), agent.path("heartbeat")] {
        let body = format!(r#"{{"name":"{}"}}"#, "x".repeat(32 << 20));
        // The server need not read it all: it may answer and close while we still write.
        match server.post(&path).key(&agent.key).raw(body).attempt().await {
            Ok(answer) => _ = answer.refused(413, "payload_too_large"),
            Err(broken) => assert!(!broken.is_empty()),
        }
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nX-API-Key: {}\r\nContent-Type: application/json\r\n\
             Content-Length: 99999999999\r\nConnection: close\r\n\r\n",
            server.addr, agent.key.secret
        );
        let answer = raw_exchange(server.addr, head.as_bytes(), Duration::from_secs(5)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 413"), "{path}: {answer}");
        assert!(answer.contains("payload_too_large"), "{path}: {answer}");
    }
    server.act(&agent, "still here").await;
}

async fn malformed_requests_do_no_harm(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let host = server.addr;
    let long_header =
        format!("GET /api/agents HTTP/1.1\r\nHost: {host}\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20));
    let many_headers =
        format!("GET /api/agents HTTP/1.1\r\nHost: {host}\r\n{}\r\n", "X-A: b\r\n".repeat(20_000));
    let long_path = format!("GET /api/{} HTTP/1.1\r\nHost: {host}\r\n\r\n", "x".repeat(1 << 20));
    for bytes in [
        b"nonsense\r\n\r\n".to_vec(),
        b"\x00\x01\x02\x03\xff\xff\xff\xff".to_vec(),
        b"GET /api/agents HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /api/agents HTTP/1.1\r\n\r\n".to_vec(),
        format!("GET /api/agents HTTP/1.1\r\nHost: {host}\r\nContent-Length: -5\r\n\r\n").into_bytes(),
        format!("POST /api/keys/generate HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n{{}}")
            .into_bytes(),
        format!("POST /api/keys/generate HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n").into_bytes(),
        format!("GET /api/agents\x00 HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes(),
        format!("GET /api/agents?cursor=\u{ff} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").into_bytes(),
        long_header.into_bytes(),
        many_headers.into_bytes(),
        long_path.into_bytes(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\ngarbage after the preface, which is no frame".to_vec(),
    ] {
        let answer = raw_exchange(server.addr, &bytes, Duration::from_secs(1)).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.get(9..12).unwrap_or_default();
        let refused = !answer.starts_with("HTTP/1") || status.starts_with('4') || status.starts_with("50");
        let served = status == "200" && bytes.starts_with(b"GET /api/agents?cursor");
        assert!(refused || served, "{}: {answer}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
        assert!(!answer.starts_with("HTTP/1.1 500"), "{answer}");
    }
    for value in [&b"\xff\xfe"[..], b"otonix_", b"", b"otonix_zz", b"' OR 1=1 --"] {
        let answer = server.get("/api/price-table").header("x-api-key", value).await;
        assert_eq!(answer.status, 401, "{value:?}: {}", answer.text());
    }
    let answer = server.get("/api/price-table").header("x-api-key", "x".repeat(4000)).await;
    assert_eq!(answer.status, 401, "{}", answer.text());
    server.act(&agent, "still here").await;
}

async fn every_request_has_its_own_id(store: Store) {
    let server = Server::start(store).await;
    let one = server.get("/api/nothing").await.json()["requestId"].clone();
    let two = server.get("/api/nothing").await.json()["requestId"].clone();
    assert_ne!(one, two);
}
