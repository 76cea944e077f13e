//! Liveness: silence for three intervals makes an agent inactive; the server's own silence never does.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::poll::until_true;
use crate::support::{Agent, Server, Store, on_each_store};

on_each_store!(
    a_silent_agent_becomes_inactive_once_and_active_by_its_next_beat,
    the_servers_own_silence_is_not_the_agents,
);

/// The shortest interval, and three of them.
const INTERVAL: u64 = 5;
const SILENCE: Duration = Duration::from_secs(3 * INTERVAL);

async fn quick(server: &Server) -> Agent {
    let key = server.key("k").await;
    let wallet = "0x2a18000000000000000000000000000000000461";
    let body = json!({"name": "q", "heartbeatInterval": INTERVAL, "walletAddress": wallet});
    let agent = server.register_with(&key, body).await;
    server.beat(&agent).await;
    agent
}

async fn status(server: &Server, agent: &Agent) -> String {
    server.look(agent).await["status"].as_str().expect("a text").to_owned()
}

async fn a_silent_agent_becomes_inactive_once_and_active_by_its_next_beat(store: Store) {
    let server = Server::start(store).await;
    let agent = quick(&server).await;
    let since = Instant::now();
    until_true("it is inactive", SILENCE + Duration::from_secs(20), async || {
        status(&server, &agent).await == "inactive"
    })
    .await;
    let after = since.elapsed();
    assert!(after >= SILENCE - Duration::from_millis(500), "too early: {after:?}");
    let actions = server.get(&agent.path("actions")).key(&agent.key).await.list();
    let told = actions.iter().filter(|row| row.to_string().contains("inactive")).count();
    assert_eq!(told, 1, "one action: {actions:?}");
    server.beat(&agent).await;
    until_true("it is active", Duration::from_secs(3), async || status(&server, &agent).await == "active")
        .await;
}

async fn the_servers_own_silence_is_not_the_agents(store: Store) {
    let mut server = Server::start(store).await;
    let agent = quick(&server).await;
    server.kill();
    tokio::time::sleep(SILENCE + Duration::from_secs(2)).await;
    server.restart_with(&[]).await;
    let up = Instant::now();
    while up.elapsed() < SILENCE - Duration::from_secs(3) {
        assert_eq!(status(&server, &agent).await, "active", "{:?} after the start", up.elapsed());
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    until_true("its own silence counts from here", Duration::from_secs(30), async || {
        status(&server, &agent).await == "inactive"
    })
    .await;
}
