//! Transactions: records of money; what is posted is a claim that moves nothing.

use serde_json::{Value, json};

use crate::support::{Server, Store, on_each_store};

on_each_store!(
    a_transaction_is_kept_as_it_was_posted,
    attached_numbers_keep_every_digit,
    a_claim_moves_nothing,
    a_hash_is_lower_case_and_unique_per_owner,
    a_grant_writes_its_row,
    amounts_are_exact_and_in_bounds,
    bad_fields_are_named,
    links_must_be_the_callers,
);

const FIELDS: [&str; 12] = [
    "id",
    "type",
    "amount",
    "currency",
    "description",
    "status",
    "fromAddress",
    "toAddress",
    "txHash",
    "metadata",
    "agentId",
    "createdAt",
];
const HASH: &str = "0xABCDEF0000000000000000000000000000000000000000000000000000000001";

async fn a_transaction_is_kept_as_it_was_posted(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let body = json!({
        "type": "debit", "amount": 12.34, "currency": "USDC", "description": "a server", "status": "pending",
        "fromAddress": "0x2a18000000000000000000000000000000000461",
        "toAddress": "0x9900000000000000000000000000000000000099",
        "txHash": HASH, "metadata": {"protocol": "x402", "nested": {"snake_case": [1, null, "two"]}, "n": 1.5},
        "agentId": agent.id,
    });
    let answer = server.post("/api/transactions").key(&agent.key).json(body.clone()).await;
    let made = answer.ok(201);
    for field in FIELDS {
        assert!(made.get(field).is_some(), "{field}: {made}");
    }
    assert_eq!(answer.source("amount"), "12.34");
    for field in ["type", "currency", "description", "status", "metadata", "agentId"] {
        assert_eq!(made[field], body[field], "{field}");
    }
    for field in ["fromAddress", "toAddress", "txHash"] {
        let sent = body[field].as_str().map(str::to_lowercase);
        assert_eq!(made[field].as_str().map(str::to_lowercase), sent, "{field}");
    }
    assert_eq!(server.get("/api/transactions").key(&agent.key).await.list(), [made]);

    let bare = json!({"type": "credit", "amount": "0.000001"});
    let answer = server.post("/api/transactions").key(&agent.key).json(bare).await;
    let made = answer.ok(201);
    assert_eq!((answer.source("amount").as_str(), &made["currency"]), ("0.000001", &json!("USDC")));
    assert_eq!(made["txHash"], Value::Null);
}

async fn attached_numbers_keep_every_digit(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let wei = "123456789012345678901234567890123.000000000000000001";
    let body = |metadata: &str| format!(r#"{{"type": "debit", "amount": 1, "metadata": {metadata}}}"#);
    let made = server.post("/api/transactions").key(&key).raw(body(&format!(r#"{{"wei": {wei}}}"#))).await;
    made.ok(201);
    let list = server.get("/api/transactions").key(&key).await;
    for answer in [&made, &list] {
        let text: String = answer.text().split_whitespace().collect();
        assert!(text.contains(&format!(r#""metadata":{{"wei":{wei}}}"#)), "{text}");
    }
    for bad in ["[]", "5", r#"{"a": 1e5000}"#, r#"{"a": "\u0000"}"#, r#"{"a": "\ud800"}"#] {
        server.post("/api/transactions").key(&key).raw(body(bad)).await.bad_field("metadata");
    }
}

async fn a_claim_moves_nothing(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for kind in ["credit", "debit"] {
        let body = json!({"type": kind, "amount": 500, "status": "completed", "agentId": agent.id});
        server.post("/api/transactions").key(&agent.key).json(body).await.ok(201);
    }
    let shown = server.look(&agent).await;
    assert_eq!((&shown["credits"], &shown["funded"]), (&json!(0), &json!(false)));
    assert!(server.get(&agent.path("ledger")).key(&agent.key).await.list().is_empty());
    server.audit();
}

async fn a_hash_is_lower_case_and_unique_per_owner(store: Store) {
    let server = Server::start(store).await;
    let (one, two) = (server.key("1").await, server.key("2").await);
    let sister = server.key_of(&one, "sister").await;
    let post = |hash: &str| {
        let body = json!({"type": "debit", "amount": 1, "txHash": hash});
        server.post("/api/transactions").json(body)
    };
    assert_eq!(post(HASH).key(&one).await.ok(201)["txHash"], HASH.to_lowercase().as_str());
    post(&HASH.to_lowercase()).key(&one).await.refused(409, "duplicate_tx_hash");
    post(HASH).key(&sister).await.refused(409, "duplicate_tx_hash");
    post(HASH).key(&two).await.ok(201);
}

async fn a_grant_writes_its_row(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "3.21").await;
    let path = format!("/api/transactions?agentId={}", agent.id);
    let rows = server.get(&path).key(&agent.key).await.list();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((&rows[0]["type"], &rows[0]["amount"]), (&json!("credit"), &json!(3.21)));
    assert_eq!((&rows[0]["status"], &rows[0]["currency"]), (&json!("completed"), &json!("USDC")));
}

async fn amounts_are_exact_and_in_bounds(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let post = async |amount: &str| {
        let body = format!(r#"{{"type":"debit","amount":{amount}}}"#);
        server.post("/api/transactions").key(&key).raw(body).await
    };
    for (sent, stored) in [
        ("10000000", "10000000"),
        ("1e7", "10000000"),
        ("1e-06", "0.000001"),
        ("\"7.10\"", "7.1"),
        ("0.1", "0.1"),
    ] {
        let answer = post(sent).await;
        answer.ok(201);
        assert_eq!(answer.source("amount"), stored, "{sent}");
    }
    for amount in [
        "0",
        "-1",
        "0.0000001",
        "0.30000000000000004",
        "10000000.000001",
        "1e8",
        "\"1e2\"",
        "\"\"",
        "null",
        "true",
    ] {
        post(amount).await.bad_field("amount");
    }
}

async fn bad_fields_are_named(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    for (body, field) in [
        (json!({"amount": 1}), "type"),
        (json!({"type": "gift", "amount": 1}), "type"),
        (json!({"type": "debit"}), "amount"),
        (json!({"type": "debit", "amount": 1, "status": "done"}), "status"),
        (json!({"type": "debit", "amount": 1, "metadata": [1]}), "metadata"),
        (json!({"type": "debit", "amount": 1, "metadata": "x"}), "metadata"),
        (json!({"type": "debit", "amount": 1, "metadata": {"a": "\u{0}"}}), "metadata"),
        (json!({"type": "debit", "amount": 1, "metadata": {"\u{0}": 1}}), "metadata"),
        (json!({"type": "debit", "amount": 1, "description": 5}), "description"),
        (json!({"type": "debit", "amount": 1, "txHash": 5}), "txHash"),
        (json!({"type": "debit", "amount": 1, "agentId": "nonsense"}), "agentId"),
    ] {
        server.post("/api/transactions").key(&key).json(body).await.bad_field(field);
    }
}

async fn links_must_be_the_callers(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stranger = server.key("s").await;
    let body = json!({"type": "debit", "amount": 1, "agentId": agent.id});
    server.post("/api/transactions").key(&stranger).json(body.clone()).await.bad_field("agentId");
    let unlinked = server.post("/api/transactions").json(body).await.ok(201);
    assert!(unlinked.get("agentId").is_none_or(Value::is_null));
}
