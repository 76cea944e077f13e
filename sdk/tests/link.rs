//! The link's promises against a control plane that loses acknowledgements, frames and connections.
#![expect(clippy::expect_used, reason = "tests")]

mod support;

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use otonix_proto::v1 as pb;
use otonix_sdk::agent::{Agent, RecordError, Transport};
use otonix_sdk::api::events::{CommandResult, EventBody};
use otonix_sdk::api::usage::LogUsage;
use otonix_sdk::convert;
use otonix_sdk::ids::{CommandId, EventId};
use otonix_sdk::money::{Cost, MicroUsd};
use otonix_sdk::standing::SurvivalTier;
use support::{Chaos, Server, action, copy, now, standing, start, until};
use uuid::Uuid;

const ALL: Chaos = Chaos { drop_ack: 15, cut_before: 5, cut_after: 5, lose: 5 };

async fn log(agent: &Agent, text: impl Into<String>) -> EventId {
    agent.log_action(action(text), None).await.expect("recorded")
}

fn usage(usdc: i32) -> LogUsage {
    LogUsage {
        model: "own-model".to_owned(),
        tokens_in: 1,
        tokens_out: 1,
        tokens_cached: None,
        cost: Some(Cost::new(MicroUsd::from_usdc(usdc)).expect("a cost")),
        agent_id: None,
    }
}

/// Every accepted event is stored once, through lost acknowledgements, frames, connections, a server that is
/// away for a while and a daemon that is dropped where it stands.
async fn exactly_once(transport: Transport) {
    let server = Server::start().await;
    server.set_chaos(ALL);
    let dir = tempfile::tempdir().expect("a directory");
    let mut accepted = HashSet::new();
    for life in 0..6 {
        let agent = start(&server, dir.path(), transport).await;
        let callers: Vec<_> = (0..8)
            .map(|caller| {
                let agent = agent.clone();
                tokio::spawn(async move {
                    let mut mine = Vec::new();
                    for turn in 0..40 {
                        mine.push(log(&agent, format!("{life} {caller} {turn}")).await);
                        if turn % 10 == 0 {
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                    mine
                })
            })
            .collect();
        if life % 2 == 1 {
            server.down.store(true, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(60)).await;
            server.down.store(false, Ordering::SeqCst);
        }
        for caller in callers {
            accepted.extend(caller.await.expect("finished"));
        }
    }
    assert_eq!(accepted.len(), 6 * 8 * 40);
    let agent = start(&server, dir.path(), transport).await;
    server.holds(&accepted).await;
    server.set_chaos(Chaos::default());
    until("nothing waits", || agent.status().spool.pending == 0).await;
    let memory = server.lock();
    assert_eq!(memory.order.len(), accepted.len(), "something was stored that nobody recorded");
    let epochs: HashSet<_> = memory.hellos.iter().map(|hello| hello.epoch.clone()).collect();
    assert!(epochs.len() <= 1, "a fork was seen where there was none");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_accepted_event_is_stored_once_over_grpc() {
    exactly_once(Transport::Grpc).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_accepted_event_is_stored_once_over_rest() {
    exactly_once(Transport::Rest).await;
}

async fn snapshot_put_back(transport: Transport) {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (live, kept) = (dir.path().join("live"), dir.path().join("kept"));
    let mut accepted = HashSet::new();
    let agent = start(&server, &live, transport).await;
    for turn in 0..20 {
        accepted.insert(log(&agent, format!("before {turn}")).await);
    }
    server.holds(&accepted).await;
    agent.shutdown().await;
    copy(&live, &kept);
    for (round, later) in [3_usize, 10, 11, 25].into_iter().enumerate() {
        let agent = start(&server, &live, transport).await;
        for turn in 0..10 {
            accepted.insert(log(&agent, format!("forgotten {round} {turn}")).await);
        }
        server.holds(&accepted).await;
        agent.shutdown().await;
        // The machine comes back as it was, goes on offline, then meets the server again.
        std::fs::remove_dir_all(&live).expect("removed");
        copy(&kept, &live);
        server.down.store(true, Ordering::SeqCst);
        let agent = start(&server, &live, transport).await;
        for turn in 0..later {
            accepted.insert(log(&agent, format!("after {round} {turn}")).await);
        }
        server.down.store(false, Ordering::SeqCst);
        server.holds(&accepted).await;
        until("nothing waits", || agent.status().spool.pending == 0).await;
        agent.shutdown().await;
    }
    until("the other copy is reported", || server.lock().copies_reported() > 0).await;
    let memory = server.lock();
    assert_eq!(memory.order.len() - memory.copies_reported(), accepted.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_put_back_loses_nothing_over_grpc() {
    snapshot_put_back(Transport::Grpc).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_put_back_loses_nothing_over_rest() {
    snapshot_put_back(Transport::Rest).await;
}

async fn two_live_clones(transport: Transport) {
    let server = Server::start().await;
    server.set_chaos(Chaos { drop_ack: 10, cut_after: 5, ..Chaos::default() });
    let dir = tempfile::tempdir().expect("a directory");
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let first = start(&server, &one, transport).await;
    let mut accepted = HashSet::new();
    for turn in 0..30 {
        accepted.insert(log(&first, format!("common {turn}")).await);
    }
    copy(&one, &two);
    let second = start(&server, &two, transport).await;
    for turn in 0..60 {
        accepted.insert(log(&first, format!("first {turn}")).await);
        accepted.insert(log(&second, format!("second {turn}")).await);
        if turn % 7 == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    server.holds(&accepted).await;
    until("the other copy is reported", || server.lock().copies_reported() > 0).await;
    let memory = server.lock();
    assert_eq!(memory.order.len() - memory.copies_reported(), accepted.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_live_clones_lose_nothing_over_grpc() {
    two_live_clones(Transport::Grpc).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_live_clones_lose_nothing_over_rest() {
    two_live_clones(Transport::Rest).await;
}

#[tokio::test]
async fn clones_do_not_throw_each_other_out_in_turns() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let first = start(&server, &one, Transport::Grpc).await;
    until("connected", || first.status().connected).await;
    copy(&one, &two);
    let _second = start(&server, &two, Transport::Grpc).await;
    until("superseded", || first.status().last_error.is_some_and(|why| why.contains("superseded"))).await;
    let (before, began) = (server.sessions(), Instant::now());
    tokio::time::sleep(Duration::from_millis(600)).await;
    // The pause is 100 to 200 ms here; in production it is a minute and more.
    let turns = u128::from(server.sessions() - before);
    assert!(turns <= 3 + began.elapsed().as_millis() / 100, "{turns} in {:?}", began.elapsed());
}

#[tokio::test]
async fn an_overtaking_connection_of_its_own_is_no_other_machine() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    for superseded in 1..=2 {
        until("connected", || server.has_session()).await;
        let before = server.sessions();
        server.supersede().await;
        until("connected again", || server.sessions() > before).await;
        let fine = log(&agent, "fine").await;
        server.holds(&[fine].into()).await;
        // Once may be a connection that was cut and arrives late; twice is somebody else.
        assert_eq!(server.lock().copies_reported(), superseded - 1);
    }
}

#[tokio::test]
async fn rejected_events_are_kept_aside_and_do_not_hold_up_others() {
    for transport in [Transport::Grpc, Transport::Rest] {
        let server = Server::start().await;
        let dir = tempfile::tempdir().expect("a directory");
        let agent = start(&server, dir.path(), transport).await;
        let fine = log(&agent, "fine").await;
        let bad = log(&agent, "please reject me").await;
        let also_fine = log(&agent, "also fine").await;
        server.holds(&[fine, also_fine].into()).await;
        until("nothing waits", || agent.status().spool.pending == 0).await;
        assert_eq!(agent.status().spool.rejected, 1);
        let kept = std::fs::read_to_string(dir.path().join("rejects.jsonl")).expect("kept");
        assert!(kept.contains(&bad.to_string()) && kept.contains("invalid_field"), "{kept}");
        assert!(kept.contains("please reject me"), "{kept}");
        agent.shutdown().await;
        let agent = start(&server, dir.path(), transport).await;
        assert_eq!(agent.status().spool.rejected, 1);
    }
}

fn command(id: CommandId, secs: i64) -> pb::Command {
    pb::Command {
        id: id.to_string(),
        kind: "restart_agent".to_owned(),
        args: "{}".to_owned(),
        expires_at: Some(convert::timestamp(now() + chrono::TimeDelta::seconds(secs))),
    }
}

fn results(server: &Server) -> Vec<CommandResult> {
    let memory = server.lock();
    let bodies = memory.events.values();
    bodies
        .filter_map(|body| match body {
            EventBody::CommandResult(result) => Some(result.clone()),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn a_command_is_handed_out_once_and_has_one_result() {
    for transport in [Transport::Grpc, Transport::Rest] {
        let server = Server::start().await;
        let dir = tempfile::tempdir().expect("a directory");
        let (done, cut_short, late) =
            (CommandId::new(Uuid::now_v7()), CommandId::new(Uuid::now_v7()), CommandId::new(Uuid::now_v7()));
        server.lock().commands =
            vec![command(done, 60), command(late, -5), command(done, 60), command(cut_short, 60)];
        let agent = start(&server, dir.path(), transport).await;
        let mut commands = agent.take_commands().expect("the first to ask");
        assert!(agent.take_commands().is_none());
        assert_eq!(commands.recv().await.map(|command| command.id), Some(done));
        assert_eq!(commands.recv().await.map(|command| command.id), Some(cut_short));
        for _ in 0..3 {
            let result = CommandResult { command_id: done, ok: true, detail: None };
            agent.record(EventBody::CommandResult(result)).await.expect("recorded");
        }
        server.cut();
        until("two results", || results(&server).len() == 2).await;
        drop((agent, commands));
        let agent = start(&server, dir.path(), transport).await;
        let mut commands = agent.take_commands().expect("the first to ask");
        until("three results", || results(&server).len() == 3).await;
        until("nothing waits", || agent.status().spool.pending == 0).await;
        assert!(commands.try_recv().is_err());
        let results = results(&server);
        assert_eq!(results.len(), 3);
        for result in results {
            assert_eq!(result.ok, result.command_id == done, "{result:?}");
        }
    }
}

#[tokio::test]
async fn the_standing_follows_the_server_less_what_is_spent_here() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    assert!(!agent.standing().known);
    until("heard", || agent.standing().known).await;
    assert_eq!(agent.standing().survival_tier, SurvivalTier::Full);
    server.down.store(true, Ordering::SeqCst);
    server.cut();
    until("cut", || !agent.status().connected).await;
    agent.log_usage(usage(15), None).await.expect("recorded");
    assert_eq!(agent.standing().credits, MicroUsd::from_usdc(45));
    assert_eq!(agent.standing().survival_tier, SurvivalTier::Conservation);
    agent.shutdown().await;
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    assert_eq!(agent.standing().credits, MicroUsd::from_usdc(45));
    agent.log_usage(usage(45), None).await.expect("recorded");
    assert_eq!(agent.standing().survival_tier, SurvivalTier::Terminated);
    server.down.store(false, Ordering::SeqCst);
    until("sent", || agent.status().spool.pending == 0).await;
    assert_eq!(agent.standing().credits, MicroUsd::ZERO);
    server.push(pb::down::Msg::Standing(standing(12_000_000, "conservation"))).await;
    until("heard", || agent.standing().credits == MicroUsd::from_usdc(12)).await;
    assert_eq!(agent.standing().survival_tier, SurvivalTier::Conservation);
}

#[tokio::test]
async fn rest_serves_while_grpc_does_not_get_through_and_prices_come_with_it() {
    let server = Server::start().await;
    server.no_grpc.store(true, Ordering::SeqCst);
    let dir = tempfile::tempdir().expect("a directory");
    let agent = start(&server, dir.path(), Transport::Auto).await;
    let first = log(&agent, "over REST").await;
    server.holds(&[first].into()).await;
    assert_eq!(agent.status().transport, Some(Transport::Rest));
    until("prices", || agent.price_cost("own-model", 1_000_000, 0, 0).is_some()).await;
    server.no_grpc.store(false, Ordering::SeqCst);
    until("gRPC again", || agent.status().transport == Some(Transport::Grpc)).await;
    let second = log(&agent, "over gRPC").await;
    server.holds(&[first, second].into()).await;
    assert_eq!(server.lock().order.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_a_backlog_does_not_delay_heartbeats() {
    for transport in [Transport::Grpc, Transport::Rest] {
        let server = Server::start().await;
        server.down.store(true, Ordering::SeqCst);
        let dir = tempfile::tempdir().expect("a directory");
        let agent = start(&server, dir.path(), transport).await;
        let mut waiting = Vec::new();
        for turn in 0..5000 {
            let agent = agent.clone();
            waiting
                .push(tokio::spawn(async move { log(&agent, format!("{turn} {}", "x".repeat(600))).await }));
        }
        for one in waiting {
            one.await.expect("recorded");
        }
        server.slow.store(70, Ordering::SeqCst);
        server.down.store(false, Ordering::SeqCst);
        until("three beats", || server.lock().beats.len() >= 3).await;
        if transport == Transport::Grpc {
            assert!(agent.status().spool.pending > 0, "the backlog was gone before the beats were watched");
        }
        let beats = server.lock().beats.clone();
        for pair in beats.windows(2) {
            let apart = pair[1].duration_since(pair[0]);
            assert!((300..1700).contains(&apart.as_millis()), "{apart:?} apart");
        }
    }
}

#[tokio::test]
async fn a_key_is_recorded_once_and_for_one_content() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    let first = agent.log_action(action("paid"), Some("order 1")).await.expect("recorded");
    assert_eq!(agent.log_action(action("paid"), Some("order 1")).await, Ok(first));
    let other = agent.log_action(action("other"), Some("order 1")).await;
    assert_eq!(other, Err(RecordError::IdempotencyKeyReused));
    agent.shutdown().await;
    assert_eq!(agent.log_action(action("late"), None).await, Err(RecordError::Closed));
    assert_eq!(server.lock().order.len(), 1);
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    assert_eq!(agent.log_action(action("paid"), Some("order 1")).await, Ok(first));
    let other = agent.log_action(action("other"), Some("order 1")).await;
    assert_eq!(other, Err(RecordError::IdempotencyKeyReused));
    std::fs::remove_file(dir.path().join("idempotency")).expect("removed");
    agent.shutdown().await;
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    assert_eq!(agent.log_action(action("paid"), Some("order 1")).await, Ok(first));
    until("nothing waits", || agent.status().spool.pending == 0).await;
    assert_eq!(server.lock().order.len(), 1);
}

#[tokio::test]
async fn what_breaks_a_bound_is_refused_where_it_is_made() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    for bad in ["", "a\0b", &"x".repeat(5000)] {
        assert!(matches!(agent.log_action(action(bad), None).await, Err(RecordError::Invalid(_))));
    }
    let wide =
        otonix_sdk::api::actions::LogAction { details: Some("\u{1f980}".repeat(16_384)), ..action("wide") };
    assert!(matches!(agent.log_action(wide, None).await, Err(RecordError::Invalid(_))));
    let odd = CommandResult {
        command_id: CommandId::new(Uuid::now_v7()),
        ok: false,
        detail: Some("a\0b".repeat(20_000)),
    };
    agent.record(EventBody::CommandResult(odd)).await.expect("recorded");
}

#[tokio::test]
async fn a_refused_key_keeps_the_records_and_is_tried_again() {
    for transport in [Transport::Auto, Transport::Rest] {
        let server = Server::start().await;
        server.refuse.store(true, Ordering::SeqCst);
        let dir = tempfile::tempdir().expect("a directory");
        let agent = start(&server, dir.path(), transport).await;
        let id = log(&agent, "kept").await;
        until("refused", || agent.status().last_error.is_some()).await;
        assert!(!agent.status().connected);
        until("it says so", || agent.status().refused.is_some()).await;
        server.refuse.store(false, Ordering::SeqCst);
        server.holds(&[id].into()).await;
        until("it is over", || agent.status().connected && agent.status().refused.is_none()).await;
    }
}

#[tokio::test]
async fn damaged_records_are_sent_as_lost_and_the_rest_arrives() {
    let server = Server::start().await;
    server.down.store(true, Ordering::SeqCst);
    let dir = tempfile::tempdir().expect("a directory");
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    let mut ids = Vec::new();
    for turn in 0..10 {
        ids.push(log(&agent, format!("event {turn}")).await);
    }
    agent.shutdown().await;
    drop(agent);
    let segment = dir.path().join("spool").join(format!("{:020}.seg", 1));
    let mut bytes = std::fs::read(&segment).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 8;
    std::fs::write(&segment, bytes).expect("written");
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    assert_eq!(agent.status().spool.damaged, 1);
    server.down.store(false, Ordering::SeqCst);
    until("nothing waits", || agent.status().spool.pending == 0).await;
    let memory = server.lock();
    let lost = memory.events.values().filter(|body| matches!(body, EventBody::Lost(_))).count();
    let found = ids.iter().filter(|id| memory.events.contains_key(&id.to_string())).count();
    assert_eq!((lost, found), (1, 9));
}

#[tokio::test]
async fn a_stop_sends_what_waits_and_without_a_server_does_not_take_long() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    let mut ids = HashSet::new();
    for turn in 0..50 {
        ids.insert(log(&agent, format!("event {turn}")).await);
    }
    agent.shutdown().await;
    assert_eq!(server.lock().order.len(), 50);
    server.down.store(true, Ordering::SeqCst);
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    log(&agent, "offline").await;
    let begun = Instant::now();
    agent.shutdown().await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn heartbeats_tell_of_the_machine() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a directory");
    let agent = start(&server, dir.path(), Transport::Grpc).await;
    let vitals = otonix_sdk::agent::Vitals {
        load: 0.5,
        memory_used: 7,
        agent_process: "running".to_owned(),
        ..Default::default()
    };
    agent.set_vitals(vitals);
    until("told", || server.lock().beat.as_ref().is_some_and(|beat| beat.memory_used == 7)).await;
    let hello = server.lock().hellos.first().cloned().expect("a hello");
    assert!(!hello.boot_id.is_empty() && hello.next_seq == 1 && hello.last_event_id.is_empty());
}
