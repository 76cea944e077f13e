//! Heartbeats: short, frequent, without a body, heard in every standing but a kill.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::poll::until_true;
use crate::support::{Server, Store, on_each_store};

on_each_store!(
    a_heartbeat_says_where_the_agent_stands,
    any_or_no_body_will_do,
    a_heartbeat_is_seen_on_the_agent,
    only_the_owner_can_beat,
    heartbeats_go_on_through_every_balance,
    a_noted_heartbeat_survives_a_clean_stop,
);

async fn a_heartbeat_says_where_the_agent_stands(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let before = Utc::now();
    let answer = server.post(&agent.path("heartbeat")).key(&agent.key).await;
    let beat = answer.ok(200);
    assert_eq!(beat["received"], true);
    assert_eq!(beat["agentId"], agent.id.as_str());
    assert_eq!(beat["survivalTier"], "critical");
    assert_eq!(beat["funded"], false);
    assert_eq!(beat["heartbeatInterval"], 60);
    assert_eq!(answer.source("credits"), "0");
    assert!(beat["graceUntil"].is_string());
    let next: DateTime<Utc> = beat["nextExpected"].as_str().expect("a time").parse().expect("a time");
    let late = next - before;
    assert!(late >= TimeDelta::seconds(59) && late <= TimeDelta::seconds(75), "{late}");

    server.grant(&agent, "60.000001").await;
    let answer = server.post(&agent.path("heartbeat")).key(&agent.key).await;
    let beat = answer.ok(200);
    assert_eq!((&beat["survivalTier"], &beat["funded"]), (&json!("full"), &json!(true)));
    assert_eq!(answer.source("credits"), "60.000001");
}

async fn any_or_no_body_will_do(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let beat = || server.post(&agent.path("heartbeat")).key(&agent.key);
    beat().await.ok(200);
    beat().json(json!({})).await.ok(200);
    beat().raw("").await.ok(200);
    beat().json(json!({"status": "running", "cpu": 12.5, "anything": [1, {}]})).await.ok(200);
    beat().header("content-type", "text/plain").await.ok(200);
    beat().header("content-type", "application/x-www-form-urlencoded").await.ok(200);
    beat().header("content-length", "0").await.ok(200);
}

async fn a_heartbeat_is_seen_on_the_agent(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    assert_eq!(server.look(&agent).await["lastHeartbeat"], Value::Null);
    let before = Utc::now() - TimeDelta::seconds(1);
    server.beat(&agent).await;
    until_true("the heartbeat is written", Duration::from_secs(5), async || {
        let shown = server.look(&agent).await;
        let last = shown["lastHeartbeat"].as_str().and_then(|text| text.parse::<DateTime<Utc>>().ok());
        shown["status"] == "active" && last.is_some_and(|at| at >= before && at <= Utc::now())
    })
    .await;
}

async fn only_the_owner_can_beat(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let sister = server.key_of(&agent.key, "sister").await;
    let stranger = server.key("s").await;
    server.post(&agent.path("heartbeat")).key(&sister).await.ok(200);
    server.post(&agent.path("heartbeat")).key(&stranger).await.refused(404, "not_found");
    server.post(&agent.path("heartbeat")).await.refused(401, "missing_key");
    server.end(&agent).await;
    server.post(&agent.path("heartbeat")).key(&agent.key).await.refused(409, "agent_killed");
    server.post(&agent.path("heartbeat")).key(&stranger).await.refused(404, "not_found");
}

async fn heartbeats_go_on_through_every_balance(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "50.000001").await;
    for (spend, tier) in [
        ("0", "full"),
        ("0.000001", "conservation"),
        ("40", "conservation"),
        ("0.000001", "critical"),
        ("8.999999", "critical"),
        ("0.000001", "terminated"),
        ("100", "terminated"),
    ] {
        server.spend(&agent, spend).await;
        assert_eq!(server.beat(&agent).await["survivalTier"], tier, "after {spend}");
    }
    assert_eq!(server.look(&agent).await["status"], "terminated");
    server.grant(&agent, "200").await;
    assert_eq!(server.beat(&agent).await["survivalTier"], "full");
    until_true("it is active again", Duration::from_secs(5), async || {
        server.look(&agent).await["status"] == "active"
    })
    .await;
}

async fn a_noted_heartbeat_survives_a_clean_stop(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.beat(&agent).await;
    server.restart_with(&[]).await;
    assert!(server.look(&agent).await["lastHeartbeat"].is_string());
}
