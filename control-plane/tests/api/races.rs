//! Many at once: no credit is lost, invented or spent twice, and a standing is what its balance says.

use chrono::Utc;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::standing::{Thresholds, standing};
use serde_json::{Value, json};

use crate::support::{Agent, Call, Server, Store, on_each_store};

on_each_store!(
    fifty_logs_of_one_dollar_on_ten,
    grants_and_logs_at_once_add_up,
    after_any_history_standing_is_its_function,
    one_name_registered_by_many_at_once_is_one_agent,
    of_many_same_hashes_at_once_one_is_kept,
    twenty_keys_are_the_limit_under_race_too,
    events_of_two_senders_at_once_count_once,
    a_storm_of_everything_adds_up,
);

/// Sends all at the same time; the statuses.
async fn together(calls: Vec<Call>) -> Vec<u16> {
    let running: Vec<_> = calls.into_iter().map(|call| tokio::spawn(call.attempt())).collect();
    let mut statuses = Vec::new();
    for call in running {
        statuses.push(call.await.expect("no panic").expect("an answer").status);
    }
    statuses
}

fn spend(server: &Server, agent: &Agent, cost: &str) -> Call {
    let body = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": cost, "agentId": agent.id});
    server.post("/api/compute-logs").key(&agent.key).json(body)
}

fn grant(server: &Server, agent: &Agent, amount: &str) -> Call {
    server.as_operator("POST", &agent.path("grant")).json(json!({"amount": amount, "reason": "race"}))
}

async fn fifty_logs_of_one_dollar_on_ten(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "10").await;
    let statuses = together((0..50).map(|_| spend(&server, &agent, "1")).collect()).await;
    assert_eq!(statuses, [201; 50]);
    assert_eq!(server.all(&agent.key, "/api/compute-logs").await.len(), 50);
    let answer = server.get(&agent.path("")).key(&agent.key).await;
    assert_eq!(answer.source("credits"), "-40");
    assert_eq!(answer.json()["survivalTier"], "terminated");
    assert_eq!(answer.json()["status"], "terminated");
    let ledger = server.all(&agent.key, &agent.path("ledger")).await;
    assert_eq!(ledger.len(), 51);
    // Each line goes on from the one before.
    for pair in ledger.windows(2) {
        let (later, earlier) = (money(&pair[0]["balanceAfter"]), money(&pair[1]["balanceAfter"]));
        assert_eq!(later, earlier + money(&pair[0]["amount"]), "{pair:?}");
    }
    crate::support::poll::until_true("one action tells it", std::time::Duration::from_secs(5), async || {
        let actions = server.all(&agent.key, &agent.path("actions")).await;
        let told = |row: &&Value| row["action"].as_str().is_some_and(|text| text.contains("terminated"));
        let count = actions.iter().filter(told).count();
        assert!(count <= 1, "terminated once: {actions:?}");
        count == 1
    })
    .await;
    server.audit();
}

fn money(value: &Value) -> i64 {
    MicroUsd::from_json_text(&value.to_string()).expect("an amount").micros()
}

async fn grants_and_logs_at_once_add_up(store: Store) {
    let server = Server::start(store).await;
    let agents = [server.agent("a").await, server.agent("b").await];
    let calls = (0..60).map(|n| {
        let agent = &agents[n % 2];
        if n % 3 == 0 { grant(&server, agent, "2.5") } else { spend(&server, agent, "0.1") }
    });
    let statuses = together(calls.collect()).await;
    assert_eq!(statuses, [201; 60]);
    for agent in &agents {
        let answer = server.get(&agent.path("")).key(&agent.key).await;
        assert_eq!(answer.source("credits"), "23");
        let newest = server.get(&agent.path("ledger?limit=1")).key(&agent.key).await;
        assert_eq!(newest.list()[0]["balanceAfter"], 23);
    }
    server.audit();
}

async fn after_any_history_standing_is_its_function(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    let mut balance = 0_i64;
    let mut funded = false;
    // A fixed walk around the boundaries.
    let mut seed = 0x2545_F491_4F6C_DD1D_u64;
    for step in 0..60 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let micros = [1, 1_000_000, 999_999, 9_000_000, 40_000_000, 50_000_001][(seed % 6) as usize];
        let text = MicroUsd::from_micros(micros).to_string();
        if seed & 64 == 0 {
            server.grant(&agent, &text).await;
            balance += micros;
            funded = true;
        } else {
            server.spend(&agent, &text).await;
            balance -= micros;
        }
        if step == 30 {
            server.crash().await;
        }
        let shown = server.look(&agent).await;
        assert_eq!(money(&shown["credits"]), balance);
        let grace = shown["graceUntil"].as_str().and_then(|text| text.parse().ok());
        let tier =
            standing(MicroUsd::from_micros(balance), funded, grace, Utc::now(), &Thresholds::default());
        assert_eq!(shown["survivalTier"], tier.as_str(), "step {step}: {shown}");
        assert_eq!(shown["status"] == "terminated", tier.as_str() == "terminated", "step {step}: {shown}");
        assert_eq!(shown["funded"], funded);
        let beat = server.beat(&agent).await;
        assert_eq!((&beat["survivalTier"], &beat["credits"]), (&shown["survivalTier"], &shown["credits"]));
    }
    server.audit();
}

async fn one_name_registered_by_many_at_once_is_one_agent(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let wallet = "0x2a18000000000000000000000000000000000461";
    let register =
        || server.post("/api/agents/register").key(&key).json(json!({"name": "x", "walletAddress": wallet}));
    let statuses = together((0..30).map(|_| register()).collect()).await;
    assert_eq!(statuses, [201; 30]);
    let mine = server.get("/api/agents").key(&key).await.list();
    assert_eq!(mine.len(), 1, "{mine:?}");
}

async fn of_many_same_hashes_at_once_one_is_kept(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let hash = format!("0x{}", "ab".repeat(32));
    let body = json!({"type": "debit", "amount": 1, "txHash": hash});
    let post = || server.post("/api/transactions").key(&key).json(body.clone());
    let mut statuses = together((0..20).map(|_| post()).collect()).await;
    statuses.sort_unstable();
    assert_eq!((statuses[0], statuses[1], statuses[19]), (201, 409, 409));
}

async fn twenty_keys_are_the_limit_under_race_too(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let make = || server.post("/api/keys/generate").key(&key).json(json!({"name": "x"}));
    let statuses = together((0..30).map(|_| make()).collect()).await;
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 19, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 201 | 409 | 429)), "{statuses:?}");
}

async fn events_of_two_senders_at_once_count_once(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "100").await;
    let usage = |seq: u64| json!({"seq": seq, "id": super::events::id(seq), "usage": {"model": "m", "tokensIn": 1, "cost": 0.01}});
    let body = json!({"epoch": "e", "nextSeq": 201, "events": (1..=200).map(usage).collect::<Vec<_>>()});
    let post = || server.post(&agent.path("events")).key(&agent.key).json(body.clone());
    let statuses = together((0..10).map(|_| post()).collect()).await;
    assert!(statuses.contains(&200), "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 200 | 409 | 503)), "{statuses:?}");
    assert_eq!(post().await.ok(200)["ackedSeq"], 200);
    assert_eq!(server.all(&agent.key, "/api/compute-logs").await.len(), 200);
    let answer = server.get(&agent.path("")).key(&agent.key).await;
    assert_eq!(answer.source("credits"), "98");
    server.audit();
}

async fn a_storm_of_everything_adds_up(store: Store) {
    let server = Server::start(store).await;
    storm(&[&server]).await;
}

/// Everything at once on a few agents, over all servers: nothing fails, nothing is lost.
pub async fn storm(servers: &[&Server]) {
    const ROUNDS: usize = 60;
    let server = servers[0];
    let key = server.key("k").await;
    let mut agents = Vec::new();
    for n in 0..5 {
        let agent = server.register(&key, &format!("a{n}")).await;
        server.grant(&agent, "1000").await;
        agents.push(agent);
    }
    let mut calls = Vec::new();
    for round in 0..ROUNDS {
        for (n, agent) in agents.iter().enumerate() {
            let server = servers[(round + n) % servers.len()];
            let seq = u64::try_from(round * agents.len() + n).expect("small") + 1;
            let act = json!({"action": "did", "category": "system"});
            let events = json!({"epoch": format!("e{seq}"), "nextSeq": 3, "events": [
                {"seq": 1, "id": super::events::id(2 * seq), "action": {"action": "did", "category": "system"}},
                {"seq": 2, "id": super::events::id(2 * seq + 1), "usage": {"model": "m", "tokensIn": 1, "cost": 0.25}},
            ]});
            let command = json!({"kind": "restart_agent"});
            let again = json!({"name": format!("a{n}")});
            calls.push(server.post(&agent.path("actions")).key(&key).json(act));
            calls.push(server.post(&agent.path("events")).key(&key).json(events));
            calls.push(spend(server, agent, "0.5"));
            calls.push(match round % 4 {
                0 => grant(server, agent, "1"),
                1 => server.post(&agent.path("commands")).key(&key).json(command),
                2 => server.post("/api/agents/register").key(&key).json(again),
                _ => server.post(&agent.path("heartbeat")).key(&key),
            });
        }
    }
    let mut statuses = Vec::new();
    for part in calls.chunks(100) {
        statuses.extend(together(part.to_vec()).await);
    }
    let refused: Vec<&u16> = statuses.iter().filter(|status| !matches!(status, 200 | 201)).collect();
    assert!(refused.is_empty(), "{refused:?}");
    let rounds = i64::try_from(ROUNDS).expect("small");
    for agent in &agents {
        let answer = server.get(&agent.path("")).key(&key).await;
        let micros = 1_000_000_000 - rounds * 750_000 + rounds / 4 * 1_000_000;
        assert_eq!(answer.source("credits"), MicroUsd::from_micros(micros).to_string());
        let rows = server.all(&key, &agent.path("actions?limit=1000")).await;
        let did = rows.iter().filter(|row| row["action"] == "did").count();
        assert_eq!(did, 2 * ROUNDS);
        let usage = server.all(&key, &format!("/api/compute-logs?limit=1000&agentId={}", agent.id)).await;
        assert_eq!(usage.len(), 2 * ROUNDS);
    }
    server.audit();
}
