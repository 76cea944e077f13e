//! What the server says about itself, and the vendors' routes before any vendor is configured.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use serde_json::json;

use crate::support::poll::until_true;
use crate::support::{Server, Store, on_each_store};

on_each_store!(
    health_and_readiness_are_for_anyone,
    metrics_are_for_the_operator_and_direct_local_callers,
    the_price_table_is_for_any_key,
    auth_and_autonomic_status_are_for_anyone,
    what_was_done_is_counted_across_restarts_and_replicas,
    payments_say_that_they_are_not_configured,
    vendors_say_that_they_are_not_configured,
    the_server_stops_cleanly_and_loses_nothing,
    rest_is_served_over_http_2_too,
);

async fn health_and_readiness_are_for_anyone(store: Store) {
    for mode in ["open", "guarded"] {
        let server = Server::with(store).await.arg("--mode", mode).start().await;
        for path in ["/healthz", "/readyz"] {
            assert_eq!(server.get(path).await.status, 200, "{mode} {path}");
            let proxied =
                server.get(path).header("x-forwarded-for", "203.0.113.9").header("x-api-key", "wrong");
            assert_eq!(proxied.await.status, 200, "{mode} {path}");
        }
    }
}

async fn metrics_are_for_the_operator_and_direct_local_callers(store: Store) {
    let server = Server::with(store).await.guarded().start().await;
    let answer = server.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.text().lines().any(|line| line.starts_with("# TYPE ")), "{}", answer.text());
    let answer = server.as_operator("GET", "/metrics").header("x-forwarded-for", "203.0.113.9").await;
    assert_eq!(answer.status, 200);
    let answer = server.get("/metrics").header("x-forwarded-for", "203.0.113.9").await;
    assert!(matches!(answer.status, 401 | 403), "{}", answer.status);
    let key = server.key("k").await;
    let answer = server.get("/metrics").key(&key).header("forwarded", "for=203.0.113.9").await;
    assert!(matches!(answer.status, 401 | 403), "{}", answer.status);
}

async fn the_price_table_is_for_any_key(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    server.get("/api/price-table").await.refused(401, "missing_key");
    let answer = server.get("/api/price-table").key(&key).await;
    answer.ok(200);
    assert!(answer.text().contains("claude-opus-4-6"), "{}", answer.text());
    server.as_operator("GET", "/api/price-table").await.ok(200);
}

async fn auth_and_autonomic_status_are_for_anyone(store: Store) {
    let server = Server::with(store).await.guarded().start().await;
    assert!(server.get("/api/auth/status").await.ok(200).is_object());
    let answer = server.get("/api/autonomic/status").await;
    let status = answer.ok(200);
    for (field, value) in [
        ("totalRenewalAttempts", json!(0)),
        ("totalRenewalSuccesses", json!(0)),
        ("vercelDomainsConfigured", json!(false)),
        ("cherryConfigured", json!(false)),
        ("renewalWindowDays", json!(30)),
        ("healingAttempts", json!(0)),
        ("healingSuccesses", json!(0)),
    ] {
        assert_eq!(status[field], value, "{field}: {status}");
    }
    assert!(status["enabled"].is_boolean() && status["tierChanges"].is_number(), "{status}");
    assert!(status.get("lastCycleAt").is_some() && !status["tierThresholds"].is_null(), "{status}");
}

async fn what_was_done_is_counted_across_restarts_and_replicas(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    let changes = async |server: &Server| {
        let status = server.get("/api/autonomic/status").await.ok(200);
        status["tierChanges"].as_u64().expect("a number")
    };
    assert_eq!(changes(&server).await, 0);
    server.grant(&agent, "100").await;
    server.spend(&agent, "60").await;
    server.spend(&agent, "1").await;
    // From critical to full, and to conservation.
    assert_eq!(changes(&server).await, 2);
    server.crash().await;
    assert_eq!(changes(&server).await, 2);
    if store == Store::Postgres {
        let other = server.replica().await;
        other.spend(&agent, "38.5").await;
        assert_eq!((changes(&other).await, changes(&server).await), (3, 3));
    }
    // What was refused is not counted.
    let wrong = json!({"amount": 0, "reason": "x"});
    server.as_operator("POST", &agent.path("grant")).json(wrong).await.bad_field("amount");
    assert_eq!(changes(&server).await, if store == Store::Postgres { 3 } else { 2 });
}

async fn payments_say_that_they_are_not_configured(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    for path in ["/api/x402/config", "/api/vercel/payment-config"] {
        let config = server.get(path).await.ok(200);
        for (field, value) in [
            ("enabled", json!(false)),
            ("x402Version", json!(2)),
            ("versions", json!([1, 2])),
            ("network", json!("eip155:8453")),
            ("chainId", json!(8453)),
            ("assetName", json!("USDC")),
            ("decimals", json!(6)),
            ("orderTtlSeconds", json!(900)),
        ] {
            assert_eq!(config[field], value, "{path} {field}: {config}");
        }
        for field in ["asset", "treasury", "schemes", "confirmations", "minExact"] {
            assert!(config.get(field).is_some(), "{path} {field}: {config}");
        }
    }
    let charges = server.get("/api/vercel/payment-config").await.ok(200);
    assert_eq!(charges["charges"][0]["route"], json!("POST /api/vercel/register"));
    let body = json!({"domain": "a.example"});
    let server_order = json!({"plan": "p", "region": "r", "image": "i", "hostname": "h", "cycle": "hourly"});
    for call in [
        server.post("/api/vercel/register").json(body.clone()),
        server.post("/api/vercel/register").key(&key).json(body),
        server.post("/api/cherry/servers/1").key(&key).json(server_order),
    ] {
        let answer = call.await;
        assert_eq!(answer.status, 503, "{}", answer.text());
        let code = answer.json()["code"].clone();
        assert!(code == "payments_not_configured" || code == "upstream_not_configured", "{code}");
        assert!(answer.header("retry-after").is_some(), "a 503 says when to come back");
    }
}

async fn vendors_say_that_they_are_not_configured(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    for path in ["/api/vercel/status", "/api/cherry/status"] {
        assert_eq!(server.get(path).await.ok(200)["configured"], false, "{path}");
    }
    let record = json!({"type": "A", "name": "@", "value": "10.0.0.1"});
    for call in [
        server.get("/api/cherry/plans"),
        server.get("/api/cherry/regions"),
        server.get("/api/cherry/images"),
        server.get("/api/cherry/images?plan=x"),
        server.get("/api/cherry/teams"),
        server.get("/api/cherry/projects/1"),
        server.get("/api/cherry/servers/1"),
        server.post("/api/cherry/servers/1/actions").key(&key).json(json!({"type": "reboot"})),
        server.delete("/api/cherry/servers/1").key(&key),
        server.post("/api/vercel/check").json(json!({"domain": "a.example"})),
        server.get("/api/vercel/domains"),
        server.get("/api/vercel/dns/a.example"),
        server.post("/api/vercel/dns/a.example").json(record),
        server.delete("/api/vercel/dns/a.example/rec_1"),
    ] {
        call.await.refused(503, "upstream_not_configured");
    }
}

async fn the_server_stops_cleanly_and_loses_nothing(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    let begun = Arc::new(AtomicUsize::new(0));
    let writers: Vec<_> = (0..8)
        .map(|n| {
            let begun = Arc::clone(&begun);
            let call = server.post(&agent.path("actions")).key(&agent.key);
            let call = call.json(json!({"action": format!("w{n}"), "category": "system"}));
            tokio::spawn(async move {
                let mut done = 0;
                while call.clone().attempt().await.is_ok_and(|answer| answer.status == 201) {
                    done += 1;
                    begun.fetch_add(1, Ordering::Relaxed);
                }
                done
            })
        })
        .collect();
    until_true("they write", Duration::from_secs(30), async || begun.load(Ordering::Relaxed) > 20).await;
    server.stop().await;
    let mut done = 0;
    for writer in writers {
        done += writer.await.expect("no panic");
    }
    assert!(done > 0);
    server.restart_with(&[]).await;
    let kept = server.look(&agent).await["totalActions"].as_u64().expect("a count");
    assert!(kept >= done, "{kept} of {done} acknowledged");
    assert_eq!(server.all(&agent.key, &agent.path("actions?limit=1000")).await.len() as u64, kept);
}

async fn rest_is_served_over_http_2_too(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stream = tokio::net::TcpStream::connect(server.addr).await.expect("it listens");
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.expect("h2");
    let driver = tokio::spawn(connection);
    for n in 0..3 {
        let body = json!({"action": format!("{n}"), "category": "system"}).to_string();
        let request = http::Request::post(format!("http://{}{}", server.addr, agent.path("actions")))
            .header("content-type", "application/json")
            .header("x-api-key", &agent.key.secret)
            .body(Full::new(Bytes::from(body)))
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!(response.status(), 201);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let row: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(row["action"], n.to_string().as_str());
    }
    driver.abort();
    assert_eq!(server.look(&agent).await["totalActions"], 3);
}
