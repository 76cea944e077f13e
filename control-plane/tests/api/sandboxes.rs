//! Sandboxes: records of servers.

use serde_json::{Value, json};

use crate::support::{Server, Store, on_each_store};

on_each_store!(
    a_sandbox_is_kept_as_it_was_posted,
    a_posted_sandbox_is_never_managed,
    links_must_be_the_callers,
    bad_fields_are_named,
    in_guarded_mode_rows_belong_to_their_owner,
);

const FIELDS: [&str; 13] = [
    "id",
    "name",
    "status",
    "os",
    "cpu",
    "memory",
    "disk",
    "region",
    "ipAddress",
    "ports",
    "agentId",
    "managed",
    "createdAt",
];

async fn a_sandbox_is_kept_as_it_was_posted(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let body = json!({
        "name": "sbx-1", "status": "deploying", "os": "ubuntu-24.04", "cpu": 4, "memory": 8192, "disk": 160,
        "region": "eu-1", "ipAddress": "10.20.30.40", "ports": [22, 443], "agentId": agent.id,
    });
    let made = server.post("/api/sandboxes").key(&agent.key).json(body.clone()).await.ok(201);
    for field in FIELDS {
        assert!(made.get(field).is_some(), "{field}: {made}");
    }
    for (field, value) in body.as_object().expect("an object") {
        assert_eq!(&made[field], value, "{field}");
    }
    assert_eq!(made["managed"], false);
    let id = made["id"].as_str().expect("an id");
    assert_eq!(server.get(&format!("/api/sandboxes/{id}")).await.ok(200), made);
    assert_eq!(server.get("/api/sandboxes").await.list(), [made]);

    let bare = server.post("/api/sandboxes").json(json!({"name": "bare"})).await.ok(201);
    assert_eq!(bare["agentId"], Value::Null);
    assert_eq!(bare["ports"], json!([]));
    assert_eq!(bare["status"], "running");
    server.get("/api/sandboxes/0190aaaa-0000-7000-8000-000000000000").await.refused(404, "not_found");
}

async fn a_posted_sandbox_is_never_managed(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let body = json!({"name": "mine", "managed": true, "paidUntil": "2030-01-01T00:00:00Z"});
    let made = server.post("/api/sandboxes").key(&key).json(body).await.ok(201);
    assert_eq!(made["managed"], false);
    assert!(made.get("paidUntil").is_none_or(Value::is_null));
}

async fn links_must_be_the_callers(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stranger = server.key("s").await;
    let body = json!({"name": "x", "agentId": agent.id});
    server.post("/api/sandboxes").key(&stranger).json(body.clone()).await.bad_field("agentId");
    let unlinked = server.post("/api/sandboxes").json(body.clone()).await.ok(201);
    assert_eq!(unlinked["agentId"], Value::Null);
    let linked = server.as_operator("POST", "/api/sandboxes").json(body).await.ok(201);
    assert_eq!(linked["agentId"], agent.id.as_str());
}

async fn bad_fields_are_named(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    for (body, field) in [
        (json!({}), "name"),
        (json!({"name": ""}), "name"),
        (json!({"name": 1}), "name"),
        (json!({"name": "x", "status": "sleeping"}), "status"),
        (json!({"name": "x", "cpu": "four"}), "cpu"),
        (json!({"name": "x", "cpu": -1}), "cpu"),
        (json!({"name": "x", "memory": 1e30}), "memory"),
        (json!({"name": "x", "disk": 9_999_999_999_999_u64}), "disk"),
        (json!({"name": "x", "ports": 22}), "ports"),
        (json!({"name": "x", "ports": [70_000]}), "ports"),
        (json!({"name": "x", "os": "a\u{0}"}), "os"),
        (json!({"name": "x", "agentId": "nonsense"}), "agentId"),
    ] {
        server.post("/api/sandboxes").key(&key).json(body).await.bad_field(field);
    }
}

async fn in_guarded_mode_rows_belong_to_their_owner(store: Store) {
    let server = Server::with(store).await.guarded().start().await;
    let (mine, theirs) = (server.key("m").await, server.key("t").await);
    let made = server.post("/api/sandboxes").key(&mine).json(json!({"name": "x"})).await.ok(201);
    let path = format!("/api/sandboxes/{}", made["id"].as_str().expect("an id"));
    server.get(&path).key(&mine).await.ok(200);
    server.get(&path).key(&theirs).await.refused(404, "not_found");
    server.as_operator("GET", &path).await.ok(200);
    server.get(&path).await.refused(401, "missing_key");
    server.post("/api/sandboxes").json(json!({"name": "y"})).await.refused(401, "missing_key");
    assert_eq!(server.get("/api/sandboxes").key(&mine).await.list().len(), 1);
    assert_eq!(server.get("/api/sandboxes").key(&theirs).await.list().len(), 0);
}
