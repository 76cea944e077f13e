//! Grants: the operator gives credits; tiers follow at the exact boundary.

use serde_json::{Value, json};

use crate::support::{Server, Store, on_each_store};

on_each_store!(
    a_grant_adds_credits,
    boundaries_are_exact,
    amounts_are_exact_and_in_bounds,
    only_the_operator_grants,
    a_killed_agent_gets_nothing,
);

async fn a_grant_adds_credits(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let grant = |amount: Value| {
        server.as_operator("POST", &agent.path("grant")).json(json!({"amount": amount, "reason": "welcome"}))
    };
    let answer = grant(json!(10.5)).await;
    let granted = answer.ok(201);
    assert_eq!(granted["agentId"], agent.id.as_str());
    assert_eq!((answer.source("credited").as_str(), answer.source("credits").as_str()), ("10.5", "10.5"));
    assert_eq!(granted["survivalTier"], "conservation");
    let answer = grant(json!("0.000001")).await;
    answer.ok(201);
    assert_eq!(
        (answer.source("credited").as_str(), answer.source("credits").as_str()),
        ("0.000001", "10.500001")
    );
    let shown = server.look(&agent).await;
    assert_eq!((&shown["funded"], &shown["survivalTier"]), (&json!(true), &json!("conservation")));
    assert!(shown.get("graceUntil").is_none_or(Value::is_null) || shown["funded"] == true);
    server.audit();
}

async fn boundaries_are_exact(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    for (amount, tier) in [
        ("0.999999", "terminated"),
        ("1", "critical"),
        ("9.999999", "critical"),
        ("10", "conservation"),
        ("50", "conservation"),
        ("50.000001", "full"),
        ("10000000", "full"),
    ] {
        let agent = server.register(&key, amount).await;
        let granted = server.grant(&agent, amount).await;
        // Once funded the grace is over: the balance alone decides.
        assert_eq!(granted["survivalTier"], tier, "{amount}");
        let shown = server.look(&agent).await;
        assert_eq!(shown["survivalTier"], tier, "{amount}");
        assert_eq!(shown["status"] == "terminated", tier == "terminated", "{amount}: {shown}");
    }
}

async fn amounts_are_exact_and_in_bounds(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let grant = async |amount: &str| {
        let body = format!(r#"{{"amount":{amount},"reason":"x"}}"#);
        server.as_operator("POST", &agent.path("grant")).raw(body).await
    };
    for bad in
        ["0", "-1", "0.0000001", "10000000.000001", "1e8", "1e400", "\"\"", "\"1e1\"", "null", "[1]", "true"]
    {
        grant(bad).await.bad_field("amount");
    }
    let without = server.as_operator("POST", &agent.path("grant")).json(json!({"reason": "x"})).await;
    without.bad_field("amount");
    for bad in
        [json!({"amount": 1}), json!({"amount": 1, "reason": 5}), json!({"amount": 1, "reason": "a\u{0}"})]
    {
        server.as_operator("POST", &agent.path("grant")).json(bad).await.bad_field("reason");
    }
    assert_eq!(server.look(&agent).await["credits"], 0);
    let answer = grant("0.1").await;
    answer.ok(201);
    let answer = grant("0.2").await;
    answer.ok(201);
    assert_eq!(answer.source("credits"), "0.3");
}

async fn only_the_operator_grants(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let grant = || server.post(&agent.path("grant")).json(json!({"amount": 1, "reason": "x"}));
    assert_eq!(grant().await.status, 401);
    grant().key(&agent.key).await.refused(403, "operator_required");
    assert_eq!(grant().operator("wrong").await.status, 401);
    grant().header("x-dashboard-token", &server.operator).await.ok(201);
    let nobody = "/api/agents/0190aaaa-0000-7000-8000-000000000000/grant";
    let call = server.as_operator("POST", nobody).json(json!({"amount": 1, "reason": "x"}));
    call.await.refused(404, "not_found");
}

async fn a_killed_agent_gets_nothing(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.end(&agent).await;
    let call = server.as_operator("POST", &agent.path("grant")).json(json!({"amount": 1, "reason": "x"}));
    call.await.refused(409, "agent_killed");
    assert_eq!(server.look(&agent).await["credits"], 0);
}
