//! Compute logs: every model call debits its agent, exactly, from the text that was sent.

use serde_json::{Value, json};

use crate::support::{Agent, Answer, Server, Store, on_each_store};

on_each_store!(
    a_cost_is_read_from_its_text,
    what_is_no_cost_is_refused,
    a_missing_cost_comes_from_the_price_table,
    a_reported_cost_stands_beside_the_list_price,
    a_log_debits_its_agent_in_the_same_breath,
    an_agent_must_be_the_callers,
    without_a_key_nothing_is_linked,
    bad_fields_are_named,
    a_killed_agent_spends_nothing,
    a_price_table_can_be_configured,
);

async fn log(server: &Server, agent: &Agent, cost: &str) -> Answer {
    let body =
        format!(r#"{{"model":"m","tokensIn":1,"tokensOut":2,"cost":{cost},"agentId":"{}"}}"#, agent.id);
    server.post("/api/compute-logs").key(&agent.key).raw(body).await
}

async fn a_cost_is_read_from_its_text(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for (sent, stored) in [
        ("0", "0"),
        ("0.000001", "0.000001"),
        ("1e-06", "0.000001"),
        ("1E-6", "0.000001"),
        ("2.5e-1", "0.25"),
        ("1e1", "10"),
        ("\"0.1\"", "0.1"),
        ("\"12.340000\"", "12.34"),
        ("0.1", "0.1"),
        ("0.30000000000000004", "0.300001"),
        ("0.0000001", "0.000001"),
        ("1e-9", "0.000001"),
        ("0.00010499999999999999", "0.000105"),
        ("9999.999999", "9999.999999"),
        ("10000", "10000"),
        ("1.0000000", "1"),
        ("-0", "0"),
        ("-0.0", "0"),
    ] {
        let answer = log(&server, &agent, sent).await;
        let row = answer.ok(201);
        assert_eq!(answer.source("cost"), stored, "{sent}");
        assert_eq!((&row["tokensIn"], &row["tokensOut"]), (&json!(1), &json!(2)));
        assert_eq!(row["agentId"], agent.id.as_str());
        assert!(row["id"].is_string() && row["createdAt"].is_string());
    }
    let rows = server.get("/api/compute-logs").key(&agent.key).await;
    assert_eq!(rows.list()[0]["model"], "m");
    server.audit();
}

async fn what_is_no_cost_is_refused(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for cost in [
        "-1",
        "-0.000001",
        "-1e-9",
        "10000.000001",
        "10000.0000000001",
        "1e5",
        "1e400",
        "1e99999999999",
        "99999999999999999999999999",
        "\"0.0000001\"",
        "\"1e-6\"",
        "\"\"",
        "\" 1\"",
        "\"+1\"",
        "\"-1\"",
        "\"NaN\"",
        "\"Infinity\"",
        "\"0x10\"",
        "\"1,5\"",
        "true",
        "[]",
        "{}",
    ] {
        log(&server, &agent, cost).await.bad_field("cost");
    }
    for cost in ["NaN", "Infinity", "-Infinity", ".5", "5.", "+1", "0x10", "01", ""] {
        log(&server, &agent, cost).await.refused(400, "invalid_json");
    }
    assert_eq!(server.look(&agent).await["credits"], 0);
    assert!(server.get("/api/compute-logs").key(&agent.key).await.list().is_empty());
}

async fn a_missing_cost_comes_from_the_price_table(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let log = async |body: Value| {
        let mut body = body;
        body["agentId"] = json!(agent.id);
        server.post("/api/compute-logs").key(&agent.key).json(body).await
    };
    for (body, cost) in [
        (json!({"model": "claude-opus-4-6", "tokensIn": 1_000_000, "tokensOut": 0}), "5"),
        (json!({"model": "claude-opus-4-6", "tokensIn": 0, "tokensOut": 1_000_000}), "25"),
        (json!({"model": "claude-opus-4-6", "tokensIn": 1200, "tokensOut": 350}), "0.01475"),
        (json!({"model": "claude-opus-4-6", "tokensIn": 1, "tokensOut": 0}), "0.000005"),
        (json!({"model": "gpt-5-mini", "tokensIn": 1, "tokensOut": 0}), "0.000001"),
        (
            json!({"model": "claude-opus-4-6", "tokensIn": 1000, "tokensOut": 0, "tokensCached": 1000}),
            "0.0005",
        ),
        (json!({"model": "claude-opus-4-6", "tokensIn": 0, "tokensOut": 0, "cost": null}), "0"),
    ] {
        let answer = log(body.clone()).await;
        answer.ok(201);
        assert_eq!(answer.source("cost"), cost, "{body}");
    }
    log(json!({"model": "nobody's", "tokensIn": 1, "tokensOut": 1})).await.refused(400, "unknown_model");
    log(json!({"model": "nobody's", "tokensIn": 1, "tokensOut": 1, "cost": 0})).await.ok(201);
}

async fn a_reported_cost_stands_beside_the_list_price(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let body = json!({
        "model": "claude-opus-4-6", "tokensIn": 1_000_000, "tokensOut": 0, "cost": 4.25, "agentId": agent.id,
    });
    let answer = server.post("/api/compute-logs").key(&agent.key).json(body).await;
    answer.ok(201);
    assert_eq!((answer.source("cost").as_str(), answer.source("listCost").as_str()), ("4.25", "5"));
    let unknown = log(&server, &agent, "1").await.ok(201);
    assert!(unknown.get("listCost").is_none_or(Value::is_null), "{unknown}");
}

async fn a_log_debits_its_agent_in_the_same_breath(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "10").await;
    log(&server, &agent, "0.1").await.ok(201);
    log(&server, &agent, "0.2").await.ok(201);
    let answer = server.get(&agent.path("")).key(&agent.key).await;
    assert_eq!(answer.source("credits"), "9.7");
    server.crash().await;
    let answer = server.get(&agent.path("")).key(&agent.key).await;
    assert_eq!(answer.source("credits"), "9.7");
    assert_eq!(server.get("/api/compute-logs").key(&agent.key).await.list().len(), 2);
    // Usage that has already happened may take a balance below zero.
    log(&server, &agent, "10").await.ok(201);
    let answer = server.get(&agent.path("")).key(&agent.key).await;
    assert_eq!(answer.source("credits"), "-0.3");
    assert_eq!(answer.json()["survivalTier"], "terminated");
    server.audit();
}

async fn an_agent_must_be_the_callers(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stranger = server.key("s").await;
    for id in [agent.id.as_str(), "0190aaaa-0000-7000-8000-000000000000"] {
        let body = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 1, "agentId": id});
        server.post("/api/compute-logs").key(&stranger).json(body).await.bad_field("agentId");
    }
    for bad in [json!("nonsense"), json!(5), json!({})] {
        let body = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 1, "agentId": bad});
        server.post("/api/compute-logs").key(&agent.key).json(body).await.bad_field("agentId");
    }
    assert_eq!(server.look(&agent).await["credits"], 0);
    let body = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 1, "agentId": null});
    let row = server.post("/api/compute-logs").key(&agent.key).json(body).await.ok(201);
    assert_eq!(row["agentId"], Value::Null);
    let body = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 1, "agentId": agent.id});
    server.as_operator("POST", "/api/compute-logs").json(body).await.ok(201);
    assert_eq!(server.look(&agent).await["credits"], -1);
}

async fn without_a_key_nothing_is_linked(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let body = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 3, "agentId": agent.id});
    let row = server.post("/api/compute-logs").json(body).await.ok(201);
    assert_eq!(row["agentId"], Value::Null);
    assert_eq!(server.look(&agent).await["credits"], 0);
    server.audit();
}

async fn bad_fields_are_named(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for (body, field) in [
        (json!({"tokensIn": 1, "tokensOut": 1, "cost": 1}), "model"),
        (json!({"model": "", "tokensIn": 1, "tokensOut": 1, "cost": 1}), "model"),
        (json!({"model": 4, "tokensIn": 1, "tokensOut": 1, "cost": 1}), "model"),
        (json!({"model": "m", "tokensIn": -1, "tokensOut": 1, "cost": 1}), "tokensIn"),
        (json!({"model": "m", "tokensIn": "1", "tokensOut": 1, "cost": 1}), "tokensIn"),
        (json!({"model": "m", "tokensIn": 1, "tokensOut": 1.5, "cost": 1}), "tokensOut"),
        (json!({"model": "m", "tokensIn": 1, "tokensOut": 99_999_999_999_999_u64, "cost": 1}), "tokensOut"),
    ] {
        server.post("/api/compute-logs").key(&agent.key).json(body).await.bad_field(field);
    }
}

async fn a_killed_agent_spends_nothing(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "5").await;
    server.end(&agent).await;
    log(&server, &agent, "1").await.refused(409, "agent_killed");
    assert_eq!(server.look(&agent).await["credits"], 5);
}

async fn a_price_table_can_be_configured(store: Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("prices.json");
    let prices = json!({"house-model": {"input": 2, "output": "4.5", "cached": 0.5}});
    std::fs::write(&file, prices.to_string()).expect("our directory");
    let server = Server::with(store).await.arg("--price-table", file.to_str().expect("a path")).start().await;
    let agent = server.agent("a").await;
    let body = json!({
        "model": "house-model", "tokensIn": 1_000_000, "tokensOut": 1_000_000, "agentId": agent.id,
    });
    let answer = server.post("/api/compute-logs").key(&agent.key).json(body).await;
    answer.ok(201);
    assert_eq!(answer.source("cost"), "6.5");
    let table = server.get("/api/price-table").key(&agent.key).await;
    table.ok(200);
    assert!(table.text().contains("house-model"), "{}", table.text());
}
