//! `POST /api/agents/:id/events`: the session's events without a session, exactly once by epoch and number.

use serde_json::{Value, json};

use crate::support::{Agent, Answer, Server, Store, on_each_store};

on_each_store!(
    events_are_stored_and_acked,
    a_resend_changes_nothing,
    a_gap_is_answered_with_what_to_send_again,
    an_event_id_counts_once_whatever_brought_it,
    a_bad_event_never_fails_its_batch,
    a_fork_must_open_a_new_epoch,
    a_new_epoch_starts_at_one,
    acked_events_survive_a_crash,
    every_kind_of_event_is_taken,
    times_far_away_break_nothing,
    bad_batches_are_refused,
    the_terminated_are_still_heard,
    only_the_owner_sends_events,
    usage_with_events_debits,
);

pub fn id(n: u64) -> String {
    format!("0190aaaa-0000-7000-8000-{n:012x}")
}

pub fn action(seq: u64) -> Value {
    json!({"seq": seq, "id": id(seq), "at": "2026-01-02T03:04:05Z",
           "action": {"action": format!("did {seq}"), "category": "system"}})
}

async fn post(server: &Server, agent: &Agent, epoch: &str, next: u64, events: Vec<Value>) -> Answer {
    let body = json!({"epoch": epoch, "nextSeq": next, "events": events});
    server.post(&agent.path("events")).key(&agent.key).json(body).await
}

async fn count(server: &Server, agent: &Agent) -> usize {
    server.all(&agent.key, &agent.path("actions?limit=1000")).await.len()
}

async fn events_are_stored_and_acked(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let ack = post(&server, &agent, "e", 4, (1..=3).map(action).collect()).await.ok(200);
    assert_eq!((&ack["ackedSeq"], &ack["rejected"], &ack["commands"]), (&json!(3), &json!([]), &json!([])));
    let standing = &ack["standing"];
    assert_eq!((&standing["survivalTier"], &standing["credits"]), (&json!("critical"), &json!(0)));
    assert_eq!((&standing["funded"], &standing["heartbeatInterval"]), (&json!(false), &json!(60)));
    let rows = server.get(&agent.path("actions")).key(&agent.key).await.list();
    let told: Vec<&str> = rows.iter().map(|row| row["action"].as_str().expect("a text")).collect();
    assert_eq!(told.len(), 3);
    assert!(rows.iter().any(|row| row["id"] == id(2).as_str()), "an event's id is the row's: {rows:?}");
    assert_eq!(server.look(&agent).await["totalActions"], 3);
    let ack = post(&server, &agent, "e", 6, vec![action(4), action(5)]).await.ok(200);
    assert_eq!(ack["ackedSeq"], 5);
}

async fn a_resend_changes_nothing(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for _ in 0..3 {
        let ack = post(&server, &agent, "e", 6, (1..=5).map(action).collect()).await.ok(200);
        assert_eq!(ack["ackedSeq"], 5);
    }
    let ack = post(&server, &agent, "e", 8, (3..=7).map(action).collect()).await.ok(200);
    assert_eq!(ack["ackedSeq"], 7);
    assert_eq!(count(&server, &agent).await, 7);
    let answer = post(&server, &agent, "e", 9, vec![action(8), action(8), action(8)]).await;
    assert!(matches!(answer.status, 200 | 409), "{}", answer.text());
    assert!(count(&server, &agent).await <= 8);
}

async fn a_gap_is_answered_with_what_to_send_again(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    post(&server, &agent, "e", 3, vec![action(1), action(2)]).await.ok(200);
    // A hole inside a batch: what is before it may count, what is behind it never does.
    let answer = post(&server, &agent, "e", 6, vec![action(3), action(5)]).await;
    if answer.status == 200 {
        assert_eq!((&answer.json()["ackedSeq"], &answer.json()["resendFrom"]), (&json!(3), &json!(4)));
    } else {
        answer.refused(409, "sequence_gap");
        post(&server, &agent, "e", 6, vec![action(3)]).await.ok(200);
    }
    let ack = post(&server, &agent, "e", 11, vec![action(10)]).await.ok(200);
    assert_eq!((&ack["ackedSeq"], &ack["resendFrom"]), (&json!(3), &json!(4)));
    assert_eq!(count(&server, &agent).await, 3, "nothing beyond the gap is kept");
    let ack = post(&server, &agent, "e", 11, (4..=10).map(action).collect()).await.ok(200);
    assert_eq!(ack["ackedSeq"], 10);
    assert!(ack.get("resendFrom").is_none_or(Value::is_null));
    assert_eq!(count(&server, &agent).await, 10);
}

async fn an_event_id_counts_once_whatever_brought_it(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    post(&server, &agent, "one", 4, (1..=3).map(action).collect()).await.ok(200);
    // The same events with other numbers, in another epoch: they move on, they do not count again.
    let moved: Vec<Value> = (1..=3)
        .map(|n| {
            let mut event = action(n);
            event["seq"] = json!(4 - n);
            event
        })
        .rev()
        .collect();
    let ack = post(&server, &agent, "two", 4, moved).await.ok(200);
    assert_eq!((&ack["ackedSeq"], &ack["rejected"]), (&json!(3), &json!([])));
    assert_eq!(count(&server, &agent).await, 3);
    // Another agent's ids are its own.
    let other = server.agent("b").await;
    post(&server, &other, "one", 4, (1..=3).map(action).collect()).await.ok(200);
    assert_eq!(count(&server, &other).await, 3);
}

async fn a_bad_event_never_fails_its_batch(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let bad = [
        json!({"seq": 2, "id": id(2), "action": {"action": "a\u{0}b", "category": "system"}}),
        json!({"seq": 3, "id": id(3), "action": {"action": "x", "category": "two words"}}),
        json!({"seq": 4, "id": id(4), "usage": {"model": "nobody's", "tokensIn": 1, "tokensOut": 1}}),
        json!({"seq": 5, "id": id(5), "usage": {"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": -1}}),
        json!({"seq": 6, "id": id(6)}),
        json!({"seq": 7, "id": id(7), "action": {"action": "x", "category": "system"},
               "usage": {"model": "m", "cost": 1}}),
        json!({"seq": 8, "id": id(8), "action": {"action": 5, "category": "system"}}),
        json!({"seq": 9, "id": "nonsense", "action": {"action": "x", "category": "system"}}),
        json!({"seq": 10, "id": id(10), "teleport": {}}),
    ];
    let mut events = vec![action(1)];
    events.extend(bad);
    events.push(action(11));
    let ack = post(&server, &agent, "e", 12, events.clone()).await.ok(200);
    assert_eq!(ack["ackedSeq"], 11, "{ack}");
    let rejected = ack["rejected"].as_array().expect("a list");
    assert_eq!(
        rejected.iter().map(|row| row["seq"].as_u64()).collect::<Vec<_>>(),
        (2..=10).map(Some).collect::<Vec<_>>()
    );
    for row in rejected {
        assert!(row["code"].is_string() && row["detail"].is_string(), "{row}");
    }
    let detail = |seq: usize| rejected[seq - 2]["detail"].as_str().expect("a detail");
    assert_eq!(detail(8), "`action.action` must be a text");
    for seq in 2..=10 {
        assert!(!detail(seq).contains("struct") && !detail(seq).contains(" at line "), "{}", detail(seq));
    }
    assert_eq!(count(&server, &agent).await, 2);
    assert_eq!(server.look(&agent).await["credits"], 0);
    let ack = post(&server, &agent, "e", 12, events).await.ok(200);
    assert_eq!(ack["ackedSeq"], 11);
    assert_eq!(count(&server, &agent).await, 2);
    server.audit();
}

async fn a_fork_must_open_a_new_epoch(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    post(&server, &agent, "e", 6, (1..=5).map(action).collect()).await.ok(200);
    // A machine put back from a snapshot gives number 3 again, to something else.
    let mut forked = action(3);
    forked["id"] = json!(id(99));
    post(&server, &agent, "e", 4, vec![forked.clone()]).await.refused(409, "new_epoch_required");
    post(&server, &agent, "e", 4, vec![]).await.refused(409, "new_epoch_required");
    post(&server, &agent, "e", 8, vec![forked, action(4), action(5), action(6), action(7)])
        .await
        .refused(409, "new_epoch_required");
    assert_eq!(count(&server, &agent).await, 5);
    let mut forked = action(1);
    forked["id"] = json!(id(99));
    let ack = post(&server, &agent, "e2", 2, vec![forked]).await.ok(200);
    assert_eq!(ack["ackedSeq"], 1);
    assert_eq!(count(&server, &agent).await, 6);
}

async fn a_new_epoch_starts_at_one(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let ack = post(&server, &agent, "late", 8, vec![action(7)]).await.ok(200);
    assert_eq!((&ack["ackedSeq"], &ack["resendFrom"]), (&json!(0), &json!(1)));
    // A number is taken as its text.
    let body = json!({"epoch": 7, "nextSeq": 2, "events": [action(1)]});
    let ack = server.post(&agent.path("events")).key(&agent.key).json(body).await.ok(200);
    assert_eq!(ack["ackedSeq"], 1);
    let mut second = action(2);
    second["id"] = json!(id(2));
    let ack = post(&server, &agent, "7", 3, vec![second]).await.ok(200);
    assert_eq!(ack["ackedSeq"], 2);
}

async fn acked_events_survive_a_crash(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    post(&server, &agent, "e", 21, (1..=20).map(action).collect()).await.ok(200);
    server.crash().await;
    let ack = post(&server, &agent, "e", 22, vec![action(21)]).await.ok(200);
    assert_eq!(ack["ackedSeq"], 21);
    assert_eq!(count(&server, &agent).await, 21);
    assert_eq!(server.look(&agent).await["totalActions"], 21);
}

async fn every_kind_of_event_is_taken(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let hash = format!("0x{}", "ab".repeat(32));
    let events = vec![
        json!({"seq": 1, "id": id(1), "at": "2026-01-02T03:04:05.678901Z", "action":
               {"action": "x", "category": "trade", "details": "d", "status": "failed", "autonomous": false}}),
        json!({"seq": 2, "id": id(2), "usage": {"model": "claude-opus-4-6", "tokensIn": 1000, "tokensOut": 10}}),
        json!({"seq": 3, "id": id(3), "payment": {"intentId": "i-1", "state": "settled", "amount": 1.25,
               "payTo": "0x2a18000000000000000000000000000000000461", "txHash": hash, "url": "https://x.example"}}),
        json!({"seq": 4, "id": id(4), "tierEffect": {"tier": "terminated", "effect": "stopped", "detail": "d"}}),
        json!({"seq": 5, "id": id(5), "commandResult": {"commandId": id(77), "ok": true}}),
        json!({"seq": 6, "id": id(6), "lost": {"reason": "checksum"}}),
        json!({"seq": 7, "id": id(7), "payment": {"intentId": "i-1", "state": "settled", "amount": 1.25,
               "txHash": hash}}),
    ];
    let ack = post(&server, &agent, "e", 8, events).await.ok(200);
    assert_eq!((&ack["ackedSeq"], &ack["rejected"]), (&json!(7), &json!([])), "{ack}");
    let rows = server.get("/api/compute-logs").key(&agent.key).await.list();
    assert_eq!((&rows[0]["id"], &rows[0]["cost"]), (&json!(id(2)), &json!(0.00525)));
    assert_eq!(ack["standing"]["credits"], -0.00525, "the answer knows what it stored");
    // What a wallet paid elsewhere is a record; it moves no credits.
    assert_eq!(server.look(&agent).await["credits"], -0.00525);
    server.audit();
}

async fn times_far_away_break_nothing(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let mut events = Vec::new();
    for (seq, at) in [
        (1, json!("0001-01-01T00:00:00Z")),
        (2, json!("9999-12-31T23:59:59.999999Z")),
        (3, json!("1970-01-01T00:00:00Z")),
        (4, json!("2038-01-19T03:14:08+14:00")),
        (5, Value::Null),
        (6, json!("+262142-12-31T23:59:59Z")),
        (7, json!("-262143-01-01T00:00:00Z")),
    ] {
        let mut event = action(seq);
        event["at"] = at;
        events.push(event);
    }
    let ack = post(&server, &agent, "e", 8, events).await.ok(200);
    assert_eq!(ack["ackedSeq"], 7, "{ack}");
    assert!(count(&server, &agent).await >= 5);
    assert_eq!(
        server.all(&agent.key, &agent.path("actions?limit=1")).await.len(),
        count(&server, &agent).await
    );
}

async fn bad_batches_are_refused(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for body in [
        json!({"nextSeq": 2, "events": [action(1)]}),
        json!({"epoch": "", "nextSeq": 2, "events": [action(1)]}),
        json!({"epoch": "x".repeat(65), "nextSeq": 2, "events": [action(1)]}),
        json!({"epoch": "e", "nextSeq": "2", "events": [action(1)]}),
        json!({"epoch": "e", "nextSeq": -1, "events": [action(1)]}),
        json!({"epoch": "e", "nextSeq": 2, "events": {}}),
        json!({"epoch": "a\u{0}", "nextSeq": 2, "events": [action(1)]}),
        json!({"epoch": "e", "nextSeq": 1002, "events": (1..=1001).map(action).collect::<Vec<_>>()}),
    ] {
        let answer = server.post(&agent.path("events")).key(&agent.key).json(body).await;
        assert!(matches!(answer.status, 400 | 413), "{}", answer.text());
    }
    assert_eq!(count(&server, &agent).await, 0);
    let ack = post(&server, &agent, "e", 1001, (1..=1000).map(action).collect()).await.ok(200);
    assert_eq!(ack["ackedSeq"], 1000);
    for wild in [u64::MAX, i64::MAX.unsigned_abs(), 1 << 53] {
        let answer = post(&server, &agent, "wild", wild, vec![json!({"seq": wild, "id": id(1)})]).await;
        assert!(answer.status < 500, "{}", answer.text());
    }
}

async fn the_terminated_are_still_heard(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.spend(&agent, "5").await;
    let ack = post(&server, &agent, "e", 2, vec![action(1)]).await.ok(200);
    assert_eq!((&ack["standing"]["survivalTier"], &ack["ackedSeq"]), (&json!("terminated"), &json!(1)));
    assert_eq!(count(&server, &agent).await, 1 + changes(&server, &agent).await);
}

/// Actions that the server wrote by itself, about the standing.
async fn changes(server: &Server, agent: &Agent) -> usize {
    let rows = server.all(&agent.key, &agent.path("actions")).await;
    rows.iter().filter(|row| !row["action"].as_str().unwrap_or_default().starts_with("did ")).count()
}

async fn only_the_owner_sends_events(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stranger = server.key("s").await;
    let body = json!({"epoch": "e", "nextSeq": 2, "events": [action(1)]});
    server.post(&agent.path("events")).json(body.clone()).await.refused(401, "missing_key");
    server.post(&agent.path("events")).key(&stranger).json(body).await.refused(404, "not_found");
}

async fn usage_with_events_debits(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "51").await;
    let usage = |seq: u64, cost: Value| json!({"seq": seq, "id": id(seq), "usage": {"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": cost}});
    let events =
        vec![usage(1, json!(0.1)), usage(2, json!("0.2")), usage(3, json!(40)), usage(4, json!(0.3))];
    let ack = post(&server, &agent, "e", 5, events.clone()).await.ok(200);
    assert_eq!(
        (&ack["standing"]["credits"], &ack["standing"]["survivalTier"]),
        (&json!(10.4), &json!("conservation"))
    );
    post(&server, &agent, "e", 5, events).await.ok(200);
    let answer = server.get(&agent.path("")).key(&agent.key).await;
    assert_eq!(answer.source("credits"), "10.4");
    assert_eq!(server.get("/api/compute-logs").key(&agent.key).await.list().len(), 4);
    server.audit();
}
