//! The ledger: every movement of an agent's account in order, and sums that are always right.

use std::process::ExitStatus;

use serde_json::{Value, json};

use crate::support::{Server, Store, on_each_store};

on_each_store!(an_account_is_explained_line_by_line, the_ledger_is_the_owners, the_audit_finds_a_wrong_sum);

async fn an_account_is_explained_line_by_line(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "10").await;
    let log = server.spend(&agent, "0.25").await;
    server.spend(&agent, "0").await;
    server.spend(&agent, "12.000001").await;
    server.grant(&agent, "5").await;
    let answer = server.get(&agent.path("ledger")).key(&agent.key).await;
    let rows: Vec<Value> = answer.list().into_iter().filter(|row| row["amount"] != 0).collect();
    let told: Vec<(Value, Value)> =
        rows.iter().map(|row| (row["amount"].clone(), row["balanceAfter"].clone())).collect();
    assert_eq!(
        told,
        [
            (json!(5), json!(2.749_999)),
            (json!(-12.000_001), json!(-2.250_001)),
            (json!(-0.25), json!(9.75)),
            (json!(10), json!(10)),
        ]
    );
    for text in ["-12.000001", "-2.250001", "2.749999"] {
        assert!(answer.text().contains(text), "{text} is written exactly: {}", answer.text());
    }
    for row in &rows {
        assert!(row["id"].is_string() && row["kind"].is_string() && row["createdAt"].is_string(), "{row}");
        assert!(row.get("ref").is_some(), "{row}");
    }
    assert_eq!(rows[2]["ref"], log["id"], "a debit names its usage record");
    assert_eq!(rows[0]["kind"], rows[3]["kind"]);
    assert_ne!(rows[0]["kind"], rows[1]["kind"]);
    assert_eq!(server.look(&agent).await["credits"], 2.749_999);
    server.audit();
}

async fn the_ledger_is_the_owners(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stranger = server.key("s").await;
    server.get(&agent.path("ledger")).await.refused(401, "missing_key");
    server.get(&agent.path("ledger")).key(&stranger).await.refused(404, "not_found");
    server.as_operator("GET", &agent.path("ledger")).await.ok(200);
}

async fn the_audit_finds_a_wrong_sum(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "10").await;
    server.spend(&agent, "1").await;
    server.audit();
    server.stop().await;
    server.audit();
    server.sql("UPDATE agents SET credits = credits + 1 WHERE credits = 9000000").await;
    let status: ExitStatus = server.subcommand("audit").status;
    assert!(!status.success(), "one micro-USDC out of nothing is found");
}
