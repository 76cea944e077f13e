//! Several servers on one PostgreSQL are one service.

use std::time::{Duration, Instant};

use otonix_proto::v1::Hello;
use serde_json::{Value, json};

use crate::support::link::{Link, action, hello, usage};
use crate::support::poll::until_true;
use crate::support::{Server, Store};

/// How soon a revocation must hold everywhere.
/// The promise is one second, which `tests/faults/replicas.rs` measures; the rest is for a machine under load.
const REVOKED_WITHIN: Duration = Duration::from_secs(4);

async fn pair() -> (Server, Server) {
    let one = Server::start(Store::Postgres).await;
    let two = one.replica().await;
    (one, two)
}

#[tokio::test]
async fn what_one_knows_the_other_knows() {
    let (one, two) = pair().await;
    let agent = one.agent("a").await;
    two.grant(&agent, "20").await;
    two.spend(&agent, "0.5").await;
    two.act(&agent, "on two").await;
    assert_eq!(one.look(&agent).await["credits"], 19.5);
    assert_eq!(two.look(&agent).await["credits"], 19.5);
    assert_eq!(one.beat(&agent).await["credits"], 19.5);
    let again = two.register(&agent.key, "a").await;
    assert_eq!(again.id, agent.id);
    one.end(&agent).await;
    until_true("the kill holds on the other", REVOKED_WITHIN, async || {
        two.post(&agent.path("heartbeat")).key(&agent.key).await.status == 409
    })
    .await;
    one.audit();
}

#[tokio::test]
async fn a_heartbeat_answers_with_the_balance_the_other_made() {
    let (one, two) = pair().await;
    let agent = one.agent("a").await;
    one.beat(&agent).await;
    two.beat(&agent).await;
    one.grant(&agent, "60").await;
    until_true("the standing is known on the other", Duration::from_secs(10), async || {
        let beat = two.beat(&agent).await;
        beat["survivalTier"] == "full" && beat["credits"] == 60
    })
    .await;
}

#[tokio::test]
async fn a_revocation_holds_on_the_other_within_a_second() {
    let (one, two) = pair().await;
    let agent = one.agent("a").await;
    two.beat(&agent).await;
    let (mut link, _) = Link::open(&two, &agent, hello(&agent)).await;
    one.revoke(&agent.key).await;
    one.post(&agent.path("heartbeat")).key(&agent.key).await.refused(401, "revoked_key");
    let since = Instant::now();
    let reasons = link.ended().await;
    assert!(since.elapsed() < REVOKED_WITHIN, "{:?}", since.elapsed());
    assert!(reasons.iter().any(|reason| reason == "revoked" || reason == "unauthenticated"), "{reasons:?}");
    until_true("REST refuses it too", REVOKED_WITHIN, async || {
        two.post(&agent.path("heartbeat")).key(&agent.key).await.status == 401
    })
    .await;
    let again = Link::try_open(&two, Some(&agent.key.secret), hello(&agent)).await;
    let refused = match again {
        Err(status) => status.code() == tonic::Code::Unauthenticated,
        Ok(mut link) => {
            link.ended().await.iter().any(|reason| reason == "unauthenticated" || reason == "revoked")
        }
    };
    assert!(refused);
}

#[tokio::test]
async fn commands_and_standing_reach_the_stream_on_the_other() {
    let (one, two) = pair().await;
    let agent = one.agent("a").await;
    let (mut link, _) = Link::open(&two, &agent, hello(&agent)).await;
    let body = json!({"kind": "set_model", "args": {"model": "gpt-5"}});
    let made = one.post(&agent.path("commands")).key(&agent.key).json(body).await.ok(201);
    let since = Instant::now();
    let command = link.command().await;
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    assert_eq!(command.id, made["id"].as_str().expect("an id"));
    one.grant(&agent, "60").await;
    let standing = link.standing(|standing| standing.tier == "full").await;
    assert_eq!(standing.credits_micro, 60_000_000);
    one.spend(&agent, "100").await;
    let standing = link.standing(|standing| standing.tier == "terminated").await;
    assert_eq!(standing.credits_micro, -40_000_000);
    one.end(&agent).await;
    let reasons = link.ended().await;
    assert!(reasons.iter().any(|reason| reason == "killed"), "{reasons:?}");
}

#[tokio::test]
async fn the_newest_session_wins_wherever_it_is() {
    let (one, two) = pair().await;
    let agent = one.agent("a").await;
    let (mut old, _) = Link::open(&one, &agent, hello(&agent)).await;
    old.event(action(1)).await;
    old.acked(1).await;
    let next = Hello { next_seq: 2, machine_id: "machine-2".to_owned(), ..hello(&agent) };
    let (mut new, welcome) = Link::open(&two, &agent, next).await;
    assert_eq!(welcome.acked_seq, 1);
    let reasons = old.ended().await;
    assert!(reasons.iter().any(|reason| reason == "superseded"), "{reasons:?}");
    new.event(action(2)).await;
    assert_eq!(new.acked(2).await.seq, 2);
}

#[tokio::test]
async fn events_count_once_over_both() {
    let (one, two) = pair().await;
    let agent = one.agent("a").await;
    one.grant(&agent, "100").await;
    for round in 0..6 {
        let server = if round % 2 == 0 { &one } else { &two };
        let first = round * 10 + 1;
        let (mut link, welcome) =
            Link::open(server, &agent, Hello { next_seq: first, ..hello(&agent) }).await;
        assert_eq!(welcome.acked_seq, first - 1, "round {round}");
        // The last of the round before is sent again.
        let from = first.saturating_sub(5).max(1);
        link.events((from..first + 10).map(|seq| usage(seq, 10_000)).collect()).await;
        link.acked(first + 9).await;
    }
    assert_eq!(one.all(&agent.key, "/api/compute-logs").await.len(), 60);
    let answer = two.get(&agent.path("")).key(&agent.key).await;
    assert_eq!(answer.source("credits"), "99.4");
    one.audit();
}

#[tokio::test]
async fn an_idempotency_key_counts_once_over_both() {
    let (one, two) = pair().await;
    let agent = one.agent("a").await;
    let body = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 1, "agentId": agent.id});
    let posts: Vec<_> = (0..20)
        .map(|n| {
            let server = if n % 2 == 0 { &one } else { &two };
            let call = server.post("/api/compute-logs").key(&agent.key).once("shared").json(body.clone());
            tokio::spawn(call.attempt())
        })
        .collect();
    for post in posts {
        let answer = post.await.expect("no panic").expect("an answer");
        assert!(matches!(answer.status, 201 | 409), "{}", answer.text());
    }
    assert_eq!(one.look(&agent).await["credits"], -1);
    let replay = two.post("/api/compute-logs").key(&agent.key).once("shared").json(body).await;
    replay.ok(201);
    assert_eq!(one.look(&agent).await["credits"], -1);
}

#[tokio::test]
async fn workers_run_once() {
    let (one, two) = pair().await;
    let key = one.key("k").await;
    let mut agents = Vec::new();
    for n in 0..5 {
        let body = json!({"name": format!("q{n}"), "heartbeatInterval": 5,
                          "walletAddress": "0x2a18000000000000000000000000000000000461"});
        let agent = one.register_with(&key, body).await;
        if n % 2 == 0 {
            one.beat(&agent).await
        } else {
            two.beat(&agent).await
        };
        agents.push(agent);
    }
    until_true("all are inactive", Duration::from_secs(45), async || {
        let rows = one.get("/api/agents?status=inactive").key(&key).await.list();
        rows.len() == 5
    })
    .await;
    for agent in &agents {
        let actions = two.get(&agent.path("actions")).key(&key).await.list();
        let told = actions.iter().filter(|row| row.to_string().contains("inactive")).count();
        assert_eq!(told, 1, "{actions:?}");
    }
}

#[tokio::test]
async fn one_going_down_leaves_the_other_serving() {
    let (mut one, two) = pair().await;
    let agent = one.agent("a").await;
    for n in 0..10 {
        one.act(&agent, &format!("{n}")).await;
    }
    one.kill();
    two.act(&agent, "after").await;
    let ids: Vec<Value> = two.get(&agent.path("actions")).key(&agent.key).await.list();
    assert_eq!(ids.len(), 11);
    one.restart_with(&[]).await;
    assert_eq!(one.look(&agent).await["totalActions"], 11);
    one.as_operator("GET", "/api/keys").await.ok(200);
    two.as_operator("GET", "/api/keys").await.ok(200);
}

#[tokio::test]
async fn a_storm_over_both_adds_up() {
    let (one, two) = pair().await;
    super::races::storm(&[&one, &two]).await;
}

#[tokio::test]
async fn two_patches_at_once_both_hold() {
    let (one, two) = pair().await;
    let key = one.key("k").await;
    let made = one.post("/api/domains").key(&key).json(json!({"name": "a.example"})).await.ok(201);
    let path = format!("/api/domains/{}", made["id"].as_str().expect("an id"));
    for round in 0..30 {
        let renew = json!({"autoRenew": round % 2 == 0});
        let records = json!([{"type": "TXT", "name": "@", "value": round.to_string(), "ttl": 60}]);
        let patches = [
            one.patch(&path).key(&key).json(renew.clone()),
            two.patch(&path).key(&key).json(json!({"dnsRecords": records})),
        ];
        for patch in patches.map(|patch| tokio::spawn(patch.attempt())) {
            patch.await.expect("no panic").expect("an answer").ok(200);
        }
        let shown = one.get(&path).key(&key).await.ok(200);
        assert_eq!(
            (&shown["autoRenew"], &shown["dnsRecords"]),
            (&renew["autoRenew"], &records),
            "round {round}"
        );
    }
}
