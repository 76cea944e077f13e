//! Commands: queued for an agent's daemon, delivered or expired, never anything outside the closed list.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::link::{Link, hello};
use crate::support::poll::until_true;
use crate::support::{Agent, Server, Store, on_each_store};

on_each_store!(
    a_command_is_queued,
    only_the_closed_list_is_taken,
    an_undelivered_command_expires,
    an_expired_command_stays_expired,
    a_command_goes_down_with_the_next_events_and_ends_with_its_result,
    only_the_owner_and_the_operator_command,
    queued_commands_survive_a_crash,
    arguments_keep_every_digit,
);

const KINDS: [&str; 9] = [
    "restart_agent",
    "stop_agent",
    "start_agent",
    "set_interval",
    "set_model",
    "pause_payments",
    "resume_payments",
    "sweep",
    "collect_diagnostics",
];

async fn order(server: &Server, agent: &Agent, body: Value) -> Value {
    server.post(&agent.path("commands")).key(&agent.key).json(body).await.ok(201)
}

async fn listed(server: &Server, agent: &Agent) -> Vec<Value> {
    server.get(&agent.path("commands")).key(&agent.key).await.list()
}

async fn a_command_is_queued(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let made = order(&server, &agent, json!({"kind": "set_model", "args": {"model": "gpt-5"}})).await;
    assert!(made["id"].is_string());
    assert_eq!((&made["kind"], &made["status"]), (&json!("set_model"), &json!("queued")));
    let time =
        |field: &str| -> DateTime<Utc> { made[field].as_str().expect("a time").parse().expect("a time") };
    assert_eq!(time("expiresAt") - time("createdAt"), TimeDelta::seconds(300));
    let made = order(&server, &agent, json!({"kind": "restart_agent", "ttlSeconds": 60})).await;
    let rows = listed(&server, &agent).await;
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["id"], made["id"], "newest first");
    assert_eq!(rows[1]["kind"], "set_model");
}

async fn only_the_closed_list_is_taken(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for kind in KINDS {
        let args = match kind {
            "set_interval" => json!({"seconds": 30, "interval": 30, "heartbeatInterval": 30}),
            "set_model" => json!({"model": "gpt-5"}),
            _ => json!({}),
        };
        order(&server, &agent, json!({"kind": kind, "args": args})).await;
    }
    for (body, field) in [
        (json!({}), "kind"),
        (json!({"kind": "shell"}), "kind"),
        (json!({"kind": "RESTART_AGENT"}), "kind"),
        (json!({"kind": "raise_limit"}), "kind"),
        (json!({"kind": 1}), "kind"),
        (json!({"kind": "restart_agent", "args": [1]}), "args"),
        (json!({"kind": "restart_agent", "args": "x"}), "args"),
        (json!({"kind": "restart_agent", "args": {"a": "\u{0}"}}), "args"),
        (json!({"kind": "restart_agent", "args": {"a": "x".repeat(1 << 20)}}), "args"),
        (json!({"kind": "restart_agent", "ttlSeconds": 0}), "ttlSeconds"),
        (json!({"kind": "restart_agent", "ttlSeconds": -1}), "ttlSeconds"),
        (json!({"kind": "restart_agent", "ttlSeconds": 1e12}), "ttlSeconds"),
        (json!({"kind": "restart_agent", "ttlSeconds": "60"}), "ttlSeconds"),
    ] {
        let answer = server.post(&agent.path("commands")).key(&agent.key).json(body).await;
        if answer.status != 413 {
            answer.bad_field(field);
        }
    }
    assert_eq!(listed(&server, &agent).await.len(), KINDS.len());
}

async fn an_undelivered_command_expires(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let made = order(&server, &agent, json!({"kind": "stop_agent", "ttlSeconds": 1})).await;
    until_true("it expires", Duration::from_secs(10), async || {
        listed(&server, &agent).await[0]["status"] == "expired"
    })
    .await;
    let body = json!({"epoch": "e", "nextSeq": 1, "events": []});
    let ack = server.post(&agent.path("events")).key(&agent.key).json(body).await.ok(200);
    assert_eq!(ack["commands"], json!([]), "an expired command goes nowhere: {made}");
}

async fn a_command_goes_down_with_the_next_events_and_ends_with_its_result(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let good = order(&server, &agent, json!({"kind": "set_model", "args": {"model": "gpt-5"}})).await;
    let bad = order(&server, &agent, json!({"kind": "sweep"})).await;
    let post = async |next: u64, events: Value| {
        let body = json!({"epoch": "e", "nextSeq": next, "events": events});
        server.post(&agent.path("events")).key(&agent.key).json(body).await.ok(200)
    };
    let ack = post(1, json!([])).await;
    let got = ack["commands"].as_array().expect("a list");
    assert_eq!(
        got.iter().map(|row| row["id"].clone()).collect::<Vec<_>>(),
        [good["id"].clone(), bad["id"].clone()]
    );
    assert_eq!(got[0]["args"], json!({"model": "gpt-5"}));
    assert!(got[0]["expiresAt"].is_string());

    post(
        3,
        json!([
            {"seq": 1, "id": "0190aaaa-0000-7000-8000-000000000001",
             "commandResult": {"commandId": good["id"], "ok": true, "detail": "model is gpt-5"}},
            {"seq": 2, "id": "0190aaaa-0000-7000-8000-000000000002",
             "commandResult": {"commandId": bad["id"], "ok": false, "detail": "no wallet"}},
        ]),
    )
    .await;
    let rows = listed(&server, &agent).await;
    assert_eq!((&rows[1]["status"], &rows[0]["status"]), (&json!("done"), &json!("failed")));
    assert_eq!(post(3, json!([])).await["commands"], json!([]), "what is done is not sent again");
}

async fn an_expired_command_stays_expired(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let body = json!({"kind": "set_model", "args": {"model": "gpt-5"}, "ttlSeconds": 1});
    let made = order(&server, &agent, body).await;
    let post = async |seq: u64, events: Value| {
        let body = json!({"epoch": "e", "nextSeq": seq, "events": events});
        server.post(&agent.path("events")).key(&agent.key).json(body).await.ok(200)
    };
    assert_eq!(post(1, json!([])).await["commands"][0]["id"], made["id"]);
    until_true("it expires", Duration::from_secs(10), async || {
        listed(&server, &agent).await[0]["status"] == "expired"
    })
    .await;
    for (seq, ok, says) in [(1, true, "model is gpt-5"), (2, false, "another word")] {
        let id = format!("0190aaaa-0000-7000-8000-00000000000{seq}");
        let result = json!({"commandId": made["id"], "ok": ok, "detail": says});
        let ack = post(seq + 1, json!([{"seq": seq, "id": id, "commandResult": result}])).await;
        assert_eq!((&ack["ackedSeq"], &ack["rejected"]), (&json!(seq), &json!([])));
    }
    let row = &listed(&server, &agent).await[0];
    assert_eq!((&row["status"], &row["result"]), (&json!("expired"), &json!("model is gpt-5")));
    assert_eq!(server.look(&agent).await["model"], "gpt-5", "what is true on the machine is true here");
}

async fn only_the_owner_and_the_operator_command(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stranger = server.key("s").await;
    let call = || server.post(&agent.path("commands")).json(json!({"kind": "restart_agent"}));
    call().await.refused(401, "missing_key");
    call().key(&stranger).await.refused(404, "not_found");
    call().operator(&server.operator).await.ok(201);
    server.get(&agent.path("commands")).await.refused(401, "missing_key");
    server.get(&agent.path("commands")).key(&stranger).await.refused(404, "not_found");
    assert_eq!(server.as_operator("GET", &agent.path("commands")).await.list().len(), 1);
}

async fn queued_commands_survive_a_crash(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    let made = order(&server, &agent, json!({"kind": "restart_agent"})).await;
    server.crash().await;
    let body = json!({"epoch": "e", "nextSeq": 1, "events": []});
    let ack = server.post(&agent.path("events")).key(&agent.key).json(body).await.ok(200);
    assert_eq!(ack["commands"][0]["id"], made["id"]);
}

async fn arguments_keep_every_digit(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let args = r#"{"wei":12345678901234567890123.000000000000000001,"a":[0.10,-1]}"#;
    let post = server.post(&agent.path("commands")).key(&agent.key);
    let made = post.raw(format!(r#"{{"kind":"restart_agent","args":{args}}}"#)).await;
    assert_eq!(made.status, 201, "{}", made.text());
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    let down = link.command().await.args;
    let shown = server.get(&agent.path("commands")).key(&agent.key).await;
    for text in [made.text(), shown.text(), &down] {
        assert!(text.contains(r#""wei":12345678901234567890123.000000000000000001"#), "{text}");
        assert!(text.contains(r#""a":[0.10,-1]"#), "{text}");
    }
    let nul = server.post(&agent.path("commands")).key(&agent.key);
    let nul = nul.json(json!({"kind": "restart_agent", "args": {"a": "\0"}})).await;
    nul.refused(400, "invalid_field");
}
