//! The session: events up exactly once, standing and commands down, by a client that is nobody's friend.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::BodyExt as _;
use otonix_proto::v1::{
    Action, CommandResult, Event, Hello, Lost, Payment, TierEffect, Up, Usage, down, event, up,
};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::support::link::{Link, action, channel, event_id, event_of, hello, usage};
use crate::support::poll::until_true;
use crate::support::{Agent, Key, Server, Store, on_each_store};

on_each_store!(
    a_hello_is_welcomed,
    without_a_good_key_there_is_no_session,
    the_first_frame_must_be_a_good_hello,
    events_are_acked_after_they_are_stored,
    a_resend_after_a_lost_ack_changes_nothing,
    a_gap_is_asked_for,
    every_kind_of_event_is_taken,
    a_bad_event_is_rejected_and_the_rest_goes_on,
    a_fork_must_open_a_new_epoch,
    an_event_id_counts_once_whatever_brought_it,
    the_newest_session_wins,
    a_stranger_cannot_end_a_session,
    a_revocation_ends_the_session_within_a_second,
    a_kill_ends_the_session,
    commands_go_down_and_their_results_up,
    queued_commands_wait_for_the_session,
    standing_follows_every_change,
    the_last_of_many_changes_is_told,
    a_heartbeat_on_the_session_counts,
    acked_events_survive_a_crash,
    a_clean_stop_says_goodbye,
    a_message_too_large_does_no_harm,
    garbage_on_the_stream_does_no_harm,
    pings_are_sent_or_silence_is_fine,
    health_and_reflection_answer,
    many_streams_share_a_connection,
);

async fn rows(server: &Server, agent: &Agent) -> Vec<Value> {
    server.all(&agent.key, &agent.path("actions?limit=1000")).await
}

async fn a_hello_is_welcomed(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (_link, welcome) = Link::open(&server, &agent, hello(&agent)).await;
    assert!(!welcome.session.is_empty());
    assert_eq!((welcome.acked_seq, welcome.acked_event_id.as_str()), (0, ""));
    let now = chrono::Utc::now().timestamp();
    let server_time = welcome.server_time.expect("the server's time").seconds;
    assert!((now - server_time).abs() <= 5, "{server_time}");
    let standing = welcome.standing.expect("a standing");
    assert_eq!((standing.tier.as_str(), standing.credits_micro, standing.funded), ("critical", 0, false));
    assert_eq!((standing.interval, standing.status.as_str(), standing.killed), (60, "active", false));
    assert!(standing.grace_until.is_some());
    let thresholds = welcome.thresholds.expect("thresholds");
    assert_eq!(thresholds.full_above_micro, 50_000_000);
    assert_eq!((thresholds.conservation_from_micro, thresholds.critical_from_micro), (10_000_000, 1_000_000));
    assert!(!welcome.price_table_version.is_empty());
    assert!(welcome.first_beat_after_ms <= 60_000);
}

/// How a session that must be refused ends.
async fn refusal(server: &Server, key: Option<&str>, hello: Hello) -> Vec<String> {
    match Link::try_open(server, key, hello).await {
        Err(status) if status.code() == Code::Unauthenticated => vec!["unauthenticated".to_owned()],
        Err(status) => vec![format!("{:?}", status.code())],
        Ok(mut link) => {
            let mut reasons = Vec::new();
            loop {
                match link.next().await {
                    Some(Ok(down::Msg::GoAway(away))) => reasons.push(away.reason),
                    Some(Ok(other)) => panic!("let in: {other:?}"),
                    Some(Err(status)) if status.code() == Code::Unauthenticated => {
                        reasons.push("unauthenticated".to_owned());
                        return reasons;
                    }
                    Some(Err(status)) => {
                        reasons.push(format!("{:?}", status.code()));
                        return reasons;
                    }
                    None => return reasons,
                }
            }
        }
    }
}

async fn without_a_good_key_there_is_no_session(store: Store) {
    for guarded in [false, true] {
        let options = Server::with(store).await;
        let server = if guarded { options.guarded() } else { options }.start().await;
        let agent = server.agent("a").await;
        let stranger = server.key("s").await;
        let revoked = server.key_of(&agent.key, "r").await;
        server.revoke(&revoked).await;
        for key in
            [None, Some(""), Some("nonsense"), Some(Key::unknown().secret.as_str()), Some(&revoked.secret)]
        {
            let reasons = refusal(&server, key, hello(&agent)).await;
            assert_eq!(reasons, ["unauthenticated"], "{key:?}");
        }
        let reasons = refusal(&server, Some(&stranger.secret), hello(&agent)).await;
        let fine = reasons.iter().any(|reason| reason == "not_found" || reason == "NotFound");
        assert!(fine, "another owner's agent: {reasons:?}");
        let nobody = Hello { agent_id: event_id(9), ..hello(&agent) };
        assert_eq!(
            refusal(&server, Some(&agent.key.secret), nobody).await,
            reasons,
            "as if it did not exist"
        );
    }
}

async fn the_first_frame_must_be_a_good_hello(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for bad in [
        Hello { agent_id: "nonsense".to_owned(), ..hello(&agent) },
        Hello { agent_id: String::new(), ..hello(&agent) },
        Hello { epoch: String::new(), ..hello(&agent) },
        Hello { epoch: "x".repeat(65), ..hello(&agent) },
        Hello { epoch: "a\u{0}".to_owned(), ..hello(&agent) },
    ] {
        let shown = format!("{bad:?}");
        let reasons = refusal(&server, Some(&agent.key.secret), bad).await;
        assert!(!reasons.is_empty() && !reasons.contains(&"Internal".to_owned()), "{shown}: {reasons:?}");
    }
    // Odd, but fit to live with.
    for odd in [
        Hello { boot_id: "x".repeat(4000), machine_id: "a\u{0}b".to_owned(), ..hello(&agent) },
        Hello { vps_ip: "nonsense".to_owned(), wallet_address: "nonsense".to_owned(), ..hello(&agent) },
        Hello { next_seq: 0, ..hello(&agent) },
        Hello { next_seq: u64::MAX, epoch: "wild".to_owned(), ..hello(&agent) },
    ] {
        if let Ok(mut link) = Link::try_open(&server, Some(&agent.key.secret), odd).await {
            let _any_answer = link.next().await;
        }
    }
    let (_link, welcome) = Link::open(&server, &agent, hello(&agent)).await;
    assert_eq!(welcome.acked_seq, 0);
}

async fn events_are_acked_after_they_are_stored(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    for seq in 1..=3 {
        link.event(action(seq)).await;
        let ack = link.acked(seq).await;
        assert_eq!((ack.seq, ack.resend_from, ack.rejected.len()), (seq, 0, 0));
        let rows = rows(&server, &agent).await;
        assert_eq!(rows.len() as u64, seq);
        assert_eq!(
            (&rows[0]["id"], &rows[0]["action"]),
            (&json!(event_id(seq)), &json!(format!("did {seq}")))
        );
    }
    for seq in 4..=50 {
        link.event(action(seq)).await;
    }
    link.events((51..=500).map(action).collect()).await;
    assert_eq!(link.acked(500).await.seq, 500);
    assert_eq!(rows(&server, &agent).await.len(), 500);
    assert_eq!(server.look(&agent).await["totalActions"], 500);
}

async fn a_resend_after_a_lost_ack_changes_nothing(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    link.events((1..=10).map(|seq| usage(seq, 100_000)).collect()).await;
    link.acked(10).await;
    drop(link);
    for round in 0..3 {
        let next = Hello { next_seq: 11, last_event_id: event_id(10), ..hello(&agent) };
        let (mut link, welcome) = Link::open(&server, &agent, next).await;
        assert_eq!((welcome.acked_seq, welcome.acked_event_id), (10, event_id(10)), "round {round}");
        link.events((1..=10).map(|seq| usage(seq, 100_000)).collect()).await;
        assert_eq!(link.ack().await.seq, 10);
        link.events((6..=10).map(|seq| usage(seq, 100_000)).collect()).await;
        assert_eq!(link.ack().await.seq, 10);
    }
    assert_eq!(server.get("/api/compute-logs").key(&agent.key).await.list().len(), 10);
    assert_eq!(server.look(&agent).await["credits"], -1);
    server.audit();
}

async fn a_gap_is_asked_for(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let next = Hello { next_seq: 10, ..hello(&agent) };
    let (mut link, _) = Link::open(&server, &agent, next).await;
    link.event(action(1)).await;
    link.acked(1).await;
    link.event(action(4)).await;
    let ack = link
        .wait_for("what to send again", |msg| match msg {
            down::Msg::Ack(ack) if ack.resend_from != 0 => Some(ack),
            _ => None,
        })
        .await;
    assert_eq!((ack.seq, ack.resend_from), (1, 2));
    for seq in 2..=5 {
        link.event(action(seq)).await;
    }
    assert_eq!(link.acked(5).await.seq, 5);
    assert_eq!(rows(&server, &agent).await.len(), 5);
}

async fn every_kind_of_event_is_taken(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    let bodies = [
        event::Body::Action(Action {
            action: "naïve 🦀".to_owned(),
            category: "trade".to_owned(),
            details: "d".to_owned(),
            status: "failed".to_owned(),
            autonomous: Some(false),
        }),
        event::Body::Usage(Usage {
            model: "claude-opus-4-6".to_owned(),
            tokens_in: 1000,
            tokens_out: 10,
            tokens_cached: 0,
            cost_micro: None,
        }),
        event::Body::Payment(Payment {
            intent_id: "i".to_owned(),
            state: "settled".to_owned(),
            amount_micro: 1_250_000,
            tx_hash: format!("0x{}", "ab".repeat(32)),
            ..Payment::default()
        }),
        event::Body::TierEffect(TierEffect {
            tier: "critical".to_owned(),
            effect: "stopped".to_owned(),
            ..Default::default()
        }),
        event::Body::CommandResult(CommandResult {
            command_id: event_id(77),
            ok: true,
            ..Default::default()
        }),
        event::Body::Lost(Lost { reason: "checksum".to_owned() }),
    ];
    for (seq, body) in (1..).zip(bodies) {
        link.event(event_of(seq, body)).await;
    }
    let ack = link.acked(6).await;
    assert_eq!(ack.rejected, [], "{ack:?}");
    let found = rows(&server, &agent).await;
    let row = found.iter().find(|row| row["id"] == event_id(1).as_str()).expect("the action");
    assert_eq!(
        (&row["action"], &row["status"], &row["autonomous"]),
        (&json!("naïve 🦀"), &json!("failed"), &json!(false))
    );
    let logs = server.get("/api/compute-logs").key(&agent.key).await;
    assert_eq!(logs.list()[0]["cost"], 0.00525);
    server.audit();
}

async fn a_bad_event_is_rejected_and_the_rest_goes_on(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    let act = |seq: u64, action: &str, category: &str| {
        let body = Action { action: action.to_owned(), category: category.to_owned(), ..Action::default() };
        event_of(seq, event::Body::Action(body))
    };
    let far = prost_types::Timestamp { seconds: i64::MAX, nanos: -1 };
    let bad = vec![
        act(2, "a\u{0}b", "system"),
        act(3, "x", "two words"),
        act(4, &"x".repeat(5000), "system"),
        usage(5, -1),
        usage(6, i64::MAX),
        event_of(
            7,
            event::Body::Usage(Usage { model: "nobody's".to_owned(), tokens_in: 1, ..Usage::default() }),
        ),
        Event { body: None, ..action(8) },
        Event { id: "nonsense".to_owned(), ..action(9) },
        event_of(10, event::Body::TierEffect(TierEffect { tier: "purple".to_owned(), ..Default::default() })),
    ];
    let mut batch = vec![action(1)];
    batch.extend(bad);
    batch.push(Event { at: Some(far), ..action(11) });
    batch.push(Event { at: None, ..action(12) });
    link.events(batch).await;
    let ack = link.acked(12).await;
    let mut rejected: Vec<u64> = ack.rejected.iter().map(|row| row.seq).collect();
    rejected.sort_unstable();
    rejected.retain(|seq| *seq != 11);
    assert_eq!(rejected, (2..=10).collect::<Vec<_>>(), "{ack:?}");
    assert!(ack.rejected.iter().all(|row| !row.code.is_empty() && !row.detail.is_empty()));
    link.event(action(13)).await;
    link.acked(13).await;
    assert_eq!(server.look(&agent).await["credits"], 0);
    let found = rows(&server, &agent).await;
    for seq in [1, 12, 13] {
        assert!(found.iter().any(|row| row["id"] == event_id(seq).as_str()), "{seq}: {found:?}");
    }
    server.audit();
}

async fn a_fork_must_open_a_new_epoch(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    link.events((1..=5).map(action).collect()).await;
    link.acked(5).await;
    drop(link);
    let secret = Some(agent.key.secret.as_str());
    for old in [
        // Put back from a snapshot: its next number is one that is stored.
        Hello { next_seq: 3, last_event_id: event_id(2), ..hello(&agent) },
        Hello { next_seq: 5, ..hello(&agent) },
        // A clone that gave number 5 to something else.
        Hello { next_seq: 6, last_event_id: event_id(99), ..hello(&agent) },
    ] {
        let shown = format!("{old:?}");
        let reasons = refusal(&server, secret, old).await;
        assert!(reasons.iter().any(|reason| reason == "new_epoch_required"), "{shown}: {reasons:?}");
    }
    // Found out only by what is sent.
    let (mut link, _) = Link::open(&server, &agent, Hello { next_seq: 8, ..hello(&agent) }).await;
    link.event(Event { id: event_id(98), ..action(5) }).await;
    assert_eq!(link.go_away().await.reason, "new_epoch_required");
    let fresh = Hello { epoch: "epoch-2".to_owned(), next_seq: 3, ..hello(&agent) };
    let (mut link, welcome) = Link::open(&server, &agent, fresh).await;
    assert_eq!(welcome.acked_seq, 0);
    link.event(Event { id: event_id(5), ..action(1) }).await;
    link.event(Event { id: event_id(6), ..action(2) }).await;
    link.acked(2).await;
    assert_eq!(rows(&server, &agent).await.len(), 6, "number 5 was known by its id");
}

async fn an_event_id_counts_once_whatever_brought_it(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    link.events((1..=3).map(|seq| usage(seq, 1_000_000)).collect()).await;
    link.acked(3).await;
    drop(link);
    // The daemon falls back to REST and sends what it does not know to be acked.
    let events: Vec<Value> = (1..=5)
        .map(|seq| {
            json!({"seq": seq, "id": event_id(seq), "usage": {"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 1}})
        })
        .collect();
    for epoch in ["epoch-1", "another"] {
        let body = json!({"epoch": epoch, "nextSeq": 6, "events": events});
        let ack = server.post(&agent.path("events")).key(&agent.key).json(body).await.ok(200);
        assert_eq!(ack["ackedSeq"], 5, "{epoch}");
    }
    let next = Hello { next_seq: 6, last_event_id: event_id(5), ..hello(&agent) };
    let (_link, welcome) = Link::open(&server, &agent, next).await;
    assert_eq!(welcome.acked_seq, 5);
    assert_eq!(server.look(&agent).await["credits"], -5);
    server.audit();
}

async fn the_newest_session_wins(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut old, _) = Link::open(&server, &agent, hello(&agent)).await;
    let (mut new, _) = Link::open(&server, &agent, hello(&agent)).await;
    let reasons = old.ended().await;
    assert!(reasons.iter().any(|reason| reason == "superseded"), "{reasons:?}");
    new.event(action(1)).await;
    new.acked(1).await;
}

async fn a_stranger_cannot_end_a_session(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stranger = server.key("s").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    refusal(&server, Some(&stranger.secret), hello(&agent)).await;
    refusal(&server, Some(&agent.key.secret), Hello { epoch: String::new(), ..hello(&agent) }).await;
    link.event(action(1)).await;
    link.acked(1).await;
    refusal(&server, Some(&agent.key.secret), Hello { next_seq: 1, ..hello(&agent) }).await;
    link.event(action(2)).await;
    link.acked(2).await;
    let other = "otonix_000000000000000000000000000000000000000000000000";
    let second = [("x-api-key", other)];
    let two = Link::try_open_with(&server, Some(&agent.key.secret), hello(&agent), &second).await;
    let refused = two.expect_err("nobody knows which of two keys is meant");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
}

async fn a_revocation_ends_the_session_within_a_second(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let sister =
        Agent { key: server.key_of(&agent.key, "sister").await, ..server.register(&agent.key, "b").await };
    let (mut ends, _) = Link::open(&server, &agent, hello(&agent)).await;
    let (mut stays, _) = Link::open(&server, &sister, hello(&sister)).await;
    server.revoke(&agent.key).await;
    let since = Instant::now();
    let reasons = ends.ended().await;
    // One second is the promise, the rest is for a machine under load.
    assert!(since.elapsed() < Duration::from_secs(4), "{:?}", since.elapsed());
    assert!(reasons.iter().any(|reason| reason == "revoked" || reason == "unauthenticated"), "{reasons:?}");
    assert_eq!(refusal(&server, Some(&agent.key.secret), hello(&agent)).await, ["unauthenticated"]);
    stays.event(action(1)).await;
    stays.acked(1).await;
}

async fn a_kill_ends_the_session(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    server.end(&agent).await;
    let reasons = link.ended().await;
    assert!(reasons.iter().any(|reason| reason == "killed"), "{reasons:?}");
    let reasons = refusal(&server, Some(&agent.key.secret), hello(&agent)).await;
    assert!(reasons.iter().any(|reason| reason == "killed"), "{reasons:?}");
}

async fn commands_go_down_and_their_results_up(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    let body = json!({"kind": "set_model", "args": {"model": "gpt-5", "n": 1}, "ttlSeconds": 60});
    let made = server.post(&agent.path("commands")).key(&agent.key).json(body).await.ok(201);
    let command = link.command().await;
    assert_eq!(
        (command.id.as_str(), command.kind.as_str()),
        (made["id"].as_str().expect("an id"), "set_model")
    );
    let args: Value = serde_json::from_str(&command.args).expect("JSON");
    assert_eq!(args, json!({"model": "gpt-5", "n": 1}));
    assert!(command.expires_at.is_some_and(|at| at.seconds > chrono::Utc::now().timestamp()));
    let status = async || {
        let rows = server.get(&agent.path("commands")).key(&agent.key).await.list();
        rows[0]["status"].as_str().expect("a text").to_owned()
    };
    until_true("it is delivered", Duration::from_secs(5), async || status().await == "delivered").await;
    let result = CommandResult { command_id: command.id, ok: true, detail: "model is gpt-5".to_owned() };
    link.event(event_of(1, event::Body::CommandResult(result))).await;
    link.acked(1).await;
    assert_eq!(status().await, "done");
}

async fn queued_commands_wait_for_the_session(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    let order = async |kind: &str, ttl: u32| {
        let body = json!({"kind": kind, "ttlSeconds": ttl});
        server.post(&agent.path("commands")).key(&agent.key).json(body).await.ok(201)["id"].clone()
    };
    let expired = order("stop_agent", 1).await;
    let waiting = order("restart_agent", 300).await;
    until_true("the first expires", Duration::from_secs(10), async || {
        let rows = server.get(&agent.path("commands")).key(&agent.key).await.list();
        rows.iter().any(|row| row["id"] == expired && row["status"] == "expired")
    })
    .await;
    server.crash().await;
    for round in 0..2 {
        // Delivered at least once: without a result it comes again.
        let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
        assert_eq!(json!(link.command().await.id), waiting, "round {round}");
    }
}

async fn standing_follows_every_change(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    server.grant(&agent, "60").await;
    let standing = link.standing(|standing| standing.credits_micro == 60_000_000).await;
    assert_eq!((standing.tier.as_str(), standing.funded), ("full", true));
    link.event(usage(1, 20_000_000)).await;
    let standing = link.standing(|standing| standing.credits_micro == 40_000_000).await;
    assert_eq!(standing.tier, "conservation");
    server.spend(&agent, "35").await;
    let standing = link.standing(|standing| standing.credits_micro == 5_000_000).await;
    assert_eq!(standing.tier, "critical");
    link.event(usage(2, 4_000_001)).await;
    let standing = link.standing(|standing| standing.credits_micro == 999_999).await;
    assert_eq!((standing.tier.as_str(), standing.status.as_str()), ("terminated", "terminated"));
    // Still heard, and told of its revival.
    link.event(action(3)).await;
    link.acked(3).await;
    server.grant(&agent, "99.000001").await;
    let standing = link.standing(|standing| standing.credits_micro == 100_000_000).await;
    assert_eq!(standing.tier, "full");
}

async fn the_last_of_many_changes_is_told(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "60").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    for _ in 0..10 {
        server.spend(&agent, "0.1").await;
    }
    let standing = link.standing(|standing| standing.credits_micro == 59_000_000).await;
    assert_eq!(standing.tier, "full");
}

async fn a_heartbeat_on_the_session_counts(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (link, _) = Link::open(&server, &agent, hello(&agent)).await;
    link.beat().await;
    until_true("it is seen", Duration::from_secs(5), async || {
        server.look(&agent).await["lastHeartbeat"].is_string()
    })
    .await;
}

async fn acked_events_survive_a_crash(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    let mut acked = 0;
    let mut next = 1;
    for round in 0..4 {
        let hello = Hello { next_seq: next.max(acked + 1), ..hello(&agent) };
        let (mut link, welcome) = Link::open(&server, &agent, hello).await;
        assert!(
            welcome.acked_seq >= acked,
            "round {round}: acked {acked}, welcomed with {}",
            welcome.acked_seq
        );
        acked = welcome.acked_seq;
        next = acked + 401;
        for chunk in (acked + 1..next).collect::<Vec<_>>().chunks(20) {
            link.events(chunk.iter().map(|seq| usage(*seq, 1000)).collect()).await;
        }
        let seen = link.ack().await.seq;
        server.crash().await;
        acked = acked.max(seen);
        next = acked + 401;
    }
    let (mut link, welcome) = Link::open(&server, &agent, Hello { next_seq: next, ..hello(&agent) }).await;
    assert!(welcome.acked_seq >= acked);
    link.events((welcome.acked_seq + 1..next).map(|seq| usage(seq, 1000)).collect()).await;
    link.acked(next - 1).await;
    let logs = server.all(&agent.key, "/api/compute-logs?limit=1000").await;
    assert_eq!(logs.len() as u64, next - 1);
    let answer = server.get(&agent.path("")).key(&agent.key).await;
    let spent = i64::try_from(next - 1).expect("small") * 1000;
    let left = otonix_sdk::money::MicroUsd::from_micros(-spent).to_string();
    assert_eq!(answer.source("credits"), left);
    server.audit();
}

async fn a_clean_stop_says_goodbye(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    let since = Instant::now();
    server.terminate();
    let reasons = link.ended().await;
    assert!(reasons.iter().any(|reason| reason == "shutting_down"), "{reasons:?}");
    server.stop_already_asked().await;
    assert!(since.elapsed() < Duration::from_secs(11), "{:?}", since.elapsed());
}

async fn a_message_too_large_does_no_harm(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    let huge = Action { action: "x".repeat(40 << 20), category: "system".to_owned(), ..Action::default() };
    link.event(event_of(1, event::Body::Action(huge))).await;
    let reasons = link.ended().await;
    assert!(!reasons.is_empty());
    let (mut link, welcome) = Link::open(&server, &agent, hello(&agent)).await;
    assert_eq!(welcome.acked_seq, 0);
    link.event(action(1)).await;
    link.acked(1).await;
}

async fn garbage_on_the_stream_does_no_harm(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for frame in [
        &b"\x00\x00\x00\x00\x05\xff\xff\xff\xff\xff"[..],
        b"\x01\x00\x00\x00\x03\x1f\x8b\x08",
        b"\x00\xff\xff\xff\xff",
        b"not a frame at all",
        b"",
    ] {
        let stream = tokio::net::TcpStream::connect(server.addr).await.expect("it listens");
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.expect("h2");
        let driver = tokio::spawn(connection);
        let request = http::Request::post(format!("http://{}/otonix.v1.AgentLink/Session", server.addr))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("x-api-key", &agent.key.secret)
            .body(http_body_util::Full::new(Bytes::copy_from_slice(frame)))
            .expect("a request");
        let response = tokio::time::timeout(Duration::from_secs(10), sender.send_request(request)).await;
        let response = response.expect("an answer in time").expect("an answer");
        assert_eq!(response.status(), 200);
        let headers = response.headers().clone();
        let body = tokio::time::timeout(Duration::from_secs(10), response.into_body().collect()).await;
        let body = body.expect("it ends in time").expect("it ends well");
        let trailers = body.trailers().cloned().unwrap_or_default();
        let status = trailers.get("grpc-status").or(headers.get("grpc-status")).expect("a status");
        assert_ne!(status, "2", "not an unknown error");
        driver.abort();
    }
    // A second hello, a beat before the hello, an empty frame: said to be wrong, or passed over.
    for msg in [None, Some(up::Msg::Hello(hello(&agent))), Some(up::Msg::Pong(Default::default()))] {
        let (link, _) = Link::open(&server, &agent, hello(&agent)).await;
        link.frame(Up { msg }).await;
    }
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    link.event(action(1)).await;
    link.acked(1).await;
}

async fn pings_are_sent_or_silence_is_fine(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let (mut link, _) = Link::open(&server, &agent, hello(&agent)).await;
    let quiet = tokio::time::timeout(Duration::from_secs(2), link.next()).await;
    assert!(!matches!(quiet, Ok(None | Some(Err(_)))), "an idle session stays: {quiet:?}");
    link.event(action(1)).await;
    link.acked(1).await;
}

async fn health_and_reflection_answer(store: Store) {
    let server = Server::with(store).await.guarded().start().await;
    let channel = channel(&server).await;
    let mut health = HealthClient::new(channel.clone());
    for service in ["", "otonix.v1.AgentLink"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.expect("it answers").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let mut reflection = ServerReflectionClient::new(channel);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter([ask])).await.expect("it answers").into_inner();
    let answer = answers.next().await.expect("an answer").expect("a good one");
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    assert!(list.service.iter().any(|service| service.name == "otonix.v1.AgentLink"), "{list:?}");
}

async fn many_streams_share_a_connection(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let channel = channel(&server).await;
    let mut links = Vec::new();
    for n in 0..20 {
        let agent = server.register(&key, &format!("a{n}")).await;
        let link =
            Link::try_open_on(channel.clone(), Some(&key.secret), hello(&agent), &[]).await.expect("let in");
        links.push((agent, link));
    }
    for (_, link) in &links {
        link.event(usage(1, 1_000_000)).await;
    }
    for (agent, link) in &mut links {
        link.acked(1).await;
        assert_eq!(server.look(agent).await["credits"], -1);
    }
    server.audit();
}
