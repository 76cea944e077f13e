//! Two replicas on one PostgreSQL are one service, also when both are busy and when one of them dies.

use std::time::{Duration, Instant};

use otonix_proto::v1::{Hello, down};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::chance;
use super::load::{self, Client};
use super::postgres::{beside, own_cluster};
use super::streams::Streamer;
use crate::support::database::Database;
use crate::support::link::{Link, action, event_id, hello, usage};
use crate::support::poll::{until, until_true};
use crate::support::{Agent, Key, Server};

/// What must hold everywhere within a second; a busy machine may add to what the test itself needs to see it.
const SECOND: Duration = Duration::from_secs(1);
/// The shortest interval.
const INTERVAL: u64 = 5;

async fn pair() -> (Server, Server, Database) {
    let database = own_cluster().await.database().await;
    let one = Server::on(database.clone()).start().await;
    let two = one.replica().await;
    (one, two, database)
}

async fn quick(server: &Server, key: &Key, name: &str) -> Agent {
    let wallet = "0x2a18000000000000000000000000000000000461";
    let body = json!({"name": name, "heartbeatInterval": INTERVAL, "walletAddress": wallet});
    server.register_with(key, body).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_on_one_ends_streams_and_calls_on_the_other_within_a_second() {
    let (one, two, _) = pair().await;
    let (mut streams, mut calls) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let key = one.key(&format!("k{round}")).await;
        let mut links = Vec::new();
        for n in 0..5 {
            let agent = two.register(&key, &format!("a{n}")).await;
            two.beat(&agent).await;
            links.push((Link::open(&two, &agent, hello(&agent)).await.0, agent));
        }
        one.revoke(&key).await;
        let since = Instant::now();
        let agent = links[0].1.clone();
        let ends: Vec<_> = links
            .into_iter()
            .map(|(mut link, _)| {
                tokio::spawn(async move {
                    let reasons = link.ended().await;
                    (since.elapsed(), reasons)
                })
            })
            .collect();
        until_true("the other refuses calls", 5 * SECOND, async || {
            let answer = two.post(&agent.path("heartbeat")).key(&key).await;
            assert!(matches!(answer.status, 200 | 401), "{}", answer.text());
            answer.status == 401
        })
        .await;
        calls.push(since.elapsed());
        for end in ends {
            let (after, reasons) = end.await.expect("no panic");
            assert!(
                reasons.iter().any(|reason| reason == "revoked" || reason == "unauthenticated"),
                "{reasons:?}"
            );
            assert!(after < 5 * SECOND, "{after:?}");
            streams.push(after);
        }
        // It stays so, for writes too.
        for _ in 0..20 {
            let action = json!({"action": "late", "category": "system"});
            let answer = two.post(&agent.path("actions")).key(&key).json(action).await;
            answer.refused(401, "revoked_key");
        }
    }
    // Most are held to the promise, so that a moment of a busy machine does not count.
    for mut times in [streams, calls] {
        times.sort_unstable();
        eprintln!("a revocation was known on the other after {times:?}");
        assert!(times[times.len() / 2] < SECOND, "{times:?}");
    }
}

/// A key looked up while it is being revoked must not stay in memory as a good one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_first_used_while_it_is_revoked_is_refused_afterwards() {
    let (one, two, _) = pair().await;
    for round in 0..15 {
        let key = one.key(&format!("k{round}")).await;
        let agent = one.register(&key, "a").await;
        let stop = CancellationToken::new();
        let calls: Vec<_> = [&one, &two]
            .into_iter()
            .flat_map(|server| (0..4).map(move |_| server))
            .map(|server| {
                let (call, stop) = (server.post(&agent.path("heartbeat")).key(&key), stop.clone());
                tokio::spawn(async move {
                    while !stop.is_cancelled() {
                        call.clone().await;
                    }
                })
            })
            .collect();
        one.revoke(&key).await;
        tokio::time::sleep(SECOND).await;
        stop.cancel();
        for call in calls {
            call.await.expect("answered");
        }
        for server in [&one, &two] {
            let answer = server.post(&agent.path("heartbeat")).key(&key).await;
            assert_eq!(answer.status, 401, "round {round}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_and_grants_made_at_one_reach_the_stream_on_the_other() {
    let (one, two, _) = pair().await;
    let agent = one.agent("a").await;
    let (mut link, _) = Link::open(&two, &agent, hello(&agent)).await;
    let (mut slowest_command, mut slowest_standing) = (Duration::ZERO, Duration::ZERO);
    for round in 1..=10_i64 {
        let body = json!({"kind": "restart_agent"});
        let made = one.post(&agent.path("commands")).key(&agent.key).json(body).await.ok(201);
        let since = Instant::now();
        assert_eq!(json!(link.command().await.id), made["id"]);
        slowest_command = slowest_command.max(since.elapsed());
        one.grant(&agent, "7").await;
        let since = Instant::now();
        let standing = link.standing(|standing| standing.credits_micro == round * 7_000_000).await;
        slowest_standing = slowest_standing.max(since.elapsed());
        let tier = if round * 7 > 50 {
            "full"
        } else if round * 7 >= 10 {
            "conservation"
        } else {
            "critical"
        };
        assert_eq!((standing.tier.as_str(), standing.funded), (tier, true));
    }
    eprintln!("commands within {slowest_command:?}, standings within {slowest_standing:?}");
    assert!(slowest_command < 6 * SECOND && slowest_standing < 6 * SECOND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_idempotency_key_at_both_at_once_executes_once() {
    let (one, two, _) = pair().await;
    let agent = one.agent("a").await;
    let key = &agent.key;
    let usage = json!({"model": "m", "tokensIn": 1, "cost": 1, "agentId": agent.id});
    let act = json!({"action": "once", "category": "system"});
    for round in 0..20 {
        let name = format!("round-{round}");
        let calls = |server: &Server| {
            let grant = server.as_operator("POST", &agent.path("grant"));
            vec![
                server.post("/api/compute-logs").key(key).once(&name).json(usage.clone()),
                server.post(&agent.path("actions")).key(key).once(&name).json(act.clone()),
                grant.once(&name).json(json!({"amount": 2, "reason": "once"})),
                server
                    .post(&agent.path("commands"))
                    .key(key)
                    .once(&name)
                    .json(json!({"kind": "restart_agent"})),
                server.as_operator("POST", "/api/keys/generate").once(&name).json(json!({"name": name})),
            ]
        };
        let running: Vec<_> = calls(&one)
            .into_iter()
            .zip(calls(&two))
            .map(|(here, there)| (tokio::spawn(here.attempt()), tokio::spawn(there.attempt())))
            .collect();
        for (kind, (here, there)) in running.into_iter().enumerate() {
            let here = here.await.expect("no panic").expect("an answer");
            let there = there.await.expect("no panic").expect("an answer");
            let mut statuses = [here.status, there.status];
            statuses.sort_unstable();
            assert!(statuses == [201, 201] || statuses == [201, 409], "kind {kind}: {statuses:?}");
            if statuses == [201, 201] {
                assert_eq!(here.json()["id"], there.json()["id"], "kind {kind}: the same answer");
            }
        }
    }
    let stored = load::Stored::read(&two, &agent).await;
    assert_eq!(stored.usage.len(), 20);
    assert_eq!(stored.grants.len(), 20);
    assert_eq!(stored.actions.iter().filter(|row| row["action"] == "once").count(), 20);
    assert_eq!(stored.shown["credits"], 20);
    stored.check_books();
    assert_eq!(two.all(key, &agent.path("commands")).await.len(), 20);
    let keys = two.as_operator("GET", "/api/keys?limit=1000").await.list();
    assert_eq!(
        keys.iter().filter(|row| row["name"].as_str().is_some_and(|name| name.starts_with("round-"))).count(),
        20
    );
    one.audit();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_sessions_the_newest_wins_and_the_older_writes_no_more() {
    let (one, two, _) = pair().await;
    let agent = one.agent("a").await;
    one.grant(&agent, "100").await;
    let mut acked = 0;
    for round in 0..6 {
        let (older, newer) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let first = Hello { next_seq: acked + 1, machine_id: "machine-1".to_owned(), ..hello(&agent) };
        let (mut old, welcome) = Link::open(older, &agent, first).await;
        assert_eq!(welcome.acked_seq, acked);
        old.events((acked + 1..=acked + 10).map(|seq| usage(seq, 1000)).collect()).await;
        old.acked(acked + 10).await;
        acked += 10;
        let clone = Hello { next_seq: acked + 1, machine_id: "machine-2".to_owned(), ..hello(&agent) };
        let (mut new, welcome) = Link::open(newer, &agent, clone).await;
        assert_eq!(welcome.acked_seq, acked);
        // The older does not know yet; its events after the newer's welcome are not taken.
        old.events((acked + 1..=acked + 5).map(|seq| usage(seq, 2_000_000)).collect()).await;
        let reasons = old.ended().await;
        assert_eq!(reasons, ["superseded"], "round {round}");
        new.events((acked + 1..=acked + 5).map(|seq| usage(seq, 1000)).collect()).await;
        new.acked(acked + 5).await;
        acked += 5;
    }
    let stored = load::Stored::read(&one, &agent).await;
    assert_eq!(stored.usage.len() as u64, acked);
    assert_eq!(one.get(&agent.path("")).key(&agent.key).await.source("credits"), "99.91");
    let told = stored.actions.iter().filter(|row| row.to_string().contains("another machine")).count();
    assert!(told >= 6, "two live machines are reported: {told}");
    stored.check_books();
    one.audit();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_batches_from_both_at_once_are_stored_once() {
    let (one, two, _) = pair().await;
    let key = one.key("k").await;
    let mut agents = Vec::new();
    for n in 0..4 {
        agents.push(one.register(&key, &format!("a{n}")).await);
    }
    const EVENTS: u64 = 300;
    let racing: Vec<_> = agents
        .iter()
        .flat_map(|agent| [(&one, agent), (&two, agent), (&one, agent), (&two, agent)])
        .enumerate()
        .map(|(n, (server, agent))| {
            let (call, agent) = (server.post(&agent.path("events")).key(&key), agent.clone());
            let mut chance = StdRng::seed_from_u64(n as u64);
            tokio::spawn(async move {
                let mut acked = 0;
                let since = Instant::now();
                while acked < EVENTS {
                    assert!(since.elapsed() < Duration::from_secs(60), "{acked} of {}", agent.id);
                    let last = EVENTS.min(acked + chance.random_range(1..40));
                    let event = |seq| match seq % 2 {
                        0 => json!({"seq": seq, "id": event_id(seq), "action": {"action": "a", "category": "system"}}),
                        _ => json!({"seq": seq, "id": event_id(seq), "usage": {"model": "m", "cost": "0.01"}}),
                    };
                    let events: Vec<Value> = (acked + 1..=last).map(event).collect();
                    let body = json!({"epoch": "e", "nextSeq": last + 1, "events": events});
                    let answer = call.clone().json(body).await;
                    match answer.status {
                        200 => acked = answer.json()["ackedSeq"].as_u64().expect("a number"),
                        // Another sender is further than this one has given out numbers: it asks anew.
                        409 => {
                            answer.refused(409, "new_epoch_required");
                            acked += 1;
                        }
                        status => panic!("{status}: {}", answer.text()),
                    }
                }
            })
        })
        .collect();
    for race in racing {
        race.await.expect("no wrong answer");
    }
    for agent in &agents {
        let stored = load::Stored::read(&two, agent).await;
        assert_eq!(stored.usage.len() as u64, EVENTS / 2);
        assert_eq!(stored.actions.iter().filter(|row| row["action"] == "a").count() as u64, EVENTS / 2);
        assert_eq!(stored.shown["totalActions"], EVENTS / 2);
        assert_eq!(stored.shown["credits"], -1.5);
        stored.check_books();
    }
    one.audit();
}

/// Every kind of write for the same agents at both: nobody waits for each other in a ring.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_kinds_of_writes_at_both_meet_without_a_failure() {
    let mut chance = chance();
    let (one, two, database) = pair().await;
    let key = one.key("k").await;
    let stop = CancellationToken::new();
    let mut agents = Vec::new();
    for n in 0..6 {
        agents.push(one.register(&key, &format!("a{n}")).await);
    }
    let mut clients = Vec::new();
    let mut beats = Vec::new();
    for (n, agent) in agents.iter().enumerate() {
        for (m, server) in [&one, &two].into_iter().enumerate() {
            let own = StdRng::seed_from_u64(chance.random());
            let client = Client::new(server, agent, &format!("c{n}{m}"), own);
            clients.push(tokio::spawn(client.until_stopped(stop.clone())));
            let (call, stop) = (server.post(&agent.path("heartbeat")).key(&key), stop.clone());
            beats.push(tokio::spawn(async move {
                while !stop.is_cancelled() {
                    call.clone().await.ok(200);
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }));
        }
    }
    let mut sending = Vec::new();
    for (n, server) in [&one, &two].into_iter().enumerate() {
        let agent = one.register(&key, &format!("s{n}")).await;
        let streamer = Streamer::new(server, &agent, StdRng::seed_from_u64(chance.random()));
        sending.push(tokio::spawn(streamer.until_stopped(stop.clone())));
    }
    // What locks many rows: kills of families, registrations, revocations that make agents inactive.
    let until = Instant::now() + Duration::from_secs(8);
    let mut round = 0;
    while Instant::now() < until {
        round += 1;
        let (here, there) = if round % 2 == 0 { (&one, &two) } else { (&two, &one) };
        let passing = here.key(&format!("p{round}")).await;
        let victim = there.register(&passing, "victim").await;
        let again = tokio::join!(here.register(&passing, "victim"), there.register(&passing, "victim"));
        assert_eq!((&again.0.id, &again.1.id), (&victim.id, &victim.id));
        tokio::join!(here.end(&victim), there.end(&victim));
        let orphan = here.register(&passing, "orphan").await;
        here.beat(&orphan).await;
        tokio::join!(
            there.revoke(&passing),
            here.sql("UPDATE agents SET status = 'inactive' WHERE status = 'active'")
        );
    }
    stop.cancel();
    let mut done = Vec::new();
    for client in clients {
        done.push(client.await.expect("no wrong answer"));
    }
    for beat in beats {
        beat.await.expect("beats are answered");
    }
    for client in &mut done {
        client.settle().await;
    }
    let there = load::verify(&two, &done).await;
    let mut events = 0;
    for streamer in sending {
        let mut streamer = streamer.await.expect("no wrong answer");
        streamer.settle().await;
        streamer.verify(&two).await;
        events += streamer.acked;
    }
    let refused: usize = done.iter().map(|client| client.refused).sum();
    let deadlocks: i64 =
        sqlx::query_scalar("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
            .fetch_one(&mut beside(&database).await)
            .await
            .expect("it counts");
    eprintln!(
        "{round} rounds beside {there} writes and {events} events; {refused} refused, {deadlocks} deadlocks"
    );
    assert_eq!(refused, 0, "no 503 while the database is there");
    assert_eq!(deadlocks, 0);
}

async fn holder(connection: &mut PgConnection) -> Option<Uuid> {
    let sql = "SELECT holder FROM leases WHERE name = 'liveness'";
    sqlx::query_scalar(sql).fetch_optional(connection).await.expect("the statement runs")
}

async fn marked(server: &Server, agent: &Agent) -> usize {
    let actions = server.get(&agent.path("actions")).key(&agent.key).await.list();
    actions.iter().filter(|row| row["action"] == "agent is inactive").count()
}

async fn until_inactive(server: &Server, agent: &Agent, within: Duration) {
    until_true("it is inactive", within, async || server.look(agent).await["status"] == "inactive").await;
}

#[tokio::test]
async fn the_lease_of_a_killed_replica_is_taken_over() {
    let database = own_cluster().await.database().await;
    let mut watch = beside(&database).await;
    let mut one = Server::on(database).start().await;
    let first = until("it has the lease", Duration::from_secs(10), async || holder(&mut watch).await).await;
    let two = one.replica().await;
    let key = one.key("k").await;
    let silent = quick(&two, &key, "silent").await;
    let beating = quick(&two, &key, "beating").await;
    let stop = CancellationToken::new();
    let beats = {
        let (call, stop) = (two.post(&beating.path("heartbeat")).key(&key), stop.clone());
        tokio::spawn(async move {
            while !stop.is_cancelled() {
                call.clone().await.ok(200);
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        })
    };
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(holder(&mut watch).await, Some(first), "it keeps it");
    one.kill();
    let since = Instant::now();
    until_true("the other takes it", Duration::from_secs(25), async || {
        holder(&mut watch).await != Some(first)
    })
    .await;
    let taken = since.elapsed();
    until_inactive(&two, &silent, Duration::from_secs(40)).await;
    eprintln!("taken over after {taken:?}, marked after {:?}", since.elapsed());
    one.restart_with(&[]).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(marked(&two, &silent).await, 1, "once");
    assert_eq!(marked(&two, &beating).await, 0);
    stop.cancel();
    beats.await.expect("beats are answered");
}

/// A replica that is stopped keeps believing in its lease; awake again it must not act on it, nor count its own
/// sleep as silence of the agents that beat there.
#[tokio::test]
async fn a_replica_that_slept_through_its_lease_marks_nobody() {
    let database = own_cluster().await.database().await;
    let mut watch = beside(&database).await;
    let one = Server::on(database).start().await;
    let first = until("it has the lease", Duration::from_secs(10), async || holder(&mut watch).await).await;
    let two = one.replica().await;
    let key = one.key("k").await;
    let silent = quick(&one, &key, "silent").await;
    let (mut link, _) = {
        let faithful = quick(&one, &key, "faithful").await;
        Link::open(&one, &faithful, hello(&faithful)).await
    };
    one.signal(Signal::STOP);
    let since = Instant::now();
    until_true("the other takes it", Duration::from_secs(25), async || {
        holder(&mut watch).await != Some(first)
    })
    .await;
    until_inactive(&two, &silent, Duration::from_secs(40)).await;
    eprintln!("marked after {:?}", since.elapsed());
    one.signal(Signal::CONT);
    // The session lives on, or ends cleanly.
    link.beat().await;
    link.event(action(1)).await;
    let next = link.next().await;
    assert!(
        matches!(next, Some(Ok(down::Msg::Ack(_) | down::Msg::GoAway(_) | down::Msg::Standing(_))) | None),
        "{next:?}"
    );
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(marked(&two, &silent).await, 1, "once");
    assert_ne!(holder(&mut watch).await, Some(first));
}
