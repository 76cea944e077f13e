//! Actions: what agents say they did.

use serde_json::json;

use crate::support::{Server, Store, on_each_store};

on_each_store!(
    an_action_is_answered_in_both_shapes,
    what_is_sent_is_what_is_stored,
    actions_are_counted_and_listed,
    bad_fields_are_named,
    only_the_owner_can_log,
    acknowledged_actions_survive_a_crash,
);

async fn an_action_is_answered_in_both_shapes(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let body = json!({"action": "Deployed the site", "category": "deploy"});
    let logged = server.post(&agent.path("actions")).key(&agent.key).json(body).await.ok(201);
    assert_eq!(logged["success"], true);
    assert_eq!(logged["id"], logged["action_id"]);
    assert_eq!(logged["createdAt"], logged["timestamp"]);
    assert!(logged["id"].is_string() && logged["createdAt"].is_string());
    for (field, value) in [
        ("agentId", json!(agent.id)),
        ("action", json!("Deployed the site")),
        ("category", json!("deploy")),
        ("status", json!("completed")),
        ("autonomous", json!(true)),
    ] {
        assert_eq!(logged[field], value, "{field}: {logged}");
    }
    assert!(logged.get("details").is_some());
}

async fn what_is_sent_is_what_is_stored(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for (action, details) in [
        ("naïve 日本語 🦀", "a \"quoted\" \\ line\nand\ttabs \u{1}\u{7f} \u{2028}"),
        ("'; DROP TABLE agents; --", "$1 %s {} \\u0000"),
        (" spaces kept ", ""),
    ] {
        let body = json!({
            "action": action, "category": "research", "details": details, "status": "failed", "autonomous": false,
        });
        let logged = server.post(&agent.path("actions")).key(&agent.key).json(body).await.ok(201);
        let rows = server.get(&agent.path("actions")).key(&agent.key).await.list();
        let row = &rows[0];
        assert_eq!(row["id"], logged["id"], "newest first");
        assert_eq!(row["action"], action);
        assert_eq!(row["details"].as_str().unwrap_or_default(), details);
        assert_eq!((&row["status"], &row["autonomous"]), (&json!("failed"), &json!(false)));
        assert_eq!(row["createdAt"], logged["createdAt"], "what was answered is what is stored");
    }
}

async fn actions_are_counted_and_listed(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let other = server.agent("b").await;
    for category in
        ["system", "compute", "domain", "payment", "infra", "trade", "survival", "my-own_slug.2:x"]
    {
        let body = json!({"action": category, "category": category});
        server.post(&agent.path("actions")).key(&agent.key).json(body).await.ok(201);
    }
    server.act(&other, "elsewhere").await;
    let shown = server.look(&agent).await;
    assert_eq!((&shown["totalActions"], &shown["actionsCount"]), (&json!(8), &json!(8)));
    let rows = server.get(&agent.path("actions")).key(&agent.key).await.list();
    assert_eq!(rows.len(), 8);
    assert!(rows.iter().all(|row| row["agentId"] == agent.id.as_str()));

    let feed = server.get("/api/agent-actions").await.list();
    assert_eq!(feed.len(), 9);
    for row in &feed {
        assert_eq!(row["message"], row["action"]);
        assert_eq!(row["timestamp"], row["createdAt"]);
        assert!(row["id"].is_string() && row["agentId"].is_string() && row["category"].is_string());
    }
    assert_eq!(feed[0]["action"], "elsewhere");
}

async fn bad_fields_are_named(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for (body, field) in [
        (json!({"category": "system"}), "action"),
        (json!({"action": "", "category": "system"}), "action"),
        (json!({"action": 5, "category": "system"}), "action"),
        (json!({"action": "a\u{0}", "category": "system"}), "action"),
        (json!({"action": "a"}), "category"),
        (json!({"action": "a", "category": ""}), "category"),
        (json!({"action": "a", "category": "two words"}), "category"),
        (json!({"action": "a", "category": "x".repeat(65)}), "category"),
        (json!({"action": "a", "category": null}), "category"),
        (json!({"action": "a", "category": "system", "status": "done"}), "status"),
        (json!({"action": "a", "category": "system", "autonomous": "yes"}), "autonomous"),
        (json!({"action": "a", "category": "system", "details": {"a": "\u{0}"}}), "details"),
    ] {
        server.post(&agent.path("actions")).key(&agent.key).json(body).await.bad_field(field);
    }
    assert_eq!(server.look(&agent).await["totalActions"], 0);
    let longest = json!({"action": "a", "category": "x".repeat(64), "details": null});
    server.post(&agent.path("actions")).key(&agent.key).json(longest).await.ok(201);
}

async fn only_the_owner_can_log(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stranger = server.key("s").await;
    let log = || server.post(&agent.path("actions")).json(json!({"action": "a", "category": "system"}));
    log().await.refused(401, "missing_key");
    log().key(&stranger).await.refused(404, "not_found");
    server.end(&agent).await;
    log().key(&agent.key).await.refused(409, "agent_killed");
}

async fn acknowledged_actions_survive_a_crash(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    let mut ids = Vec::new();
    for n in 0..20 {
        ids.push(server.act(&agent, &format!("step {n}")).await["id"].clone());
    }
    server.crash().await;
    ids.reverse();
    let rows = server.get(&agent.path("actions")).key(&agent.key).await.list();
    assert_eq!(rows.iter().map(|row| row["id"].clone()).collect::<Vec<_>>(), ids);
    assert_eq!(server.look(&agent).await["totalActions"], 20);
}
