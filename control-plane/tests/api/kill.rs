//! Kills: an agent, or all its line, ended for good by the operator or its owner.

use serde_json::json;

use crate::support::{Agent, Server, Store, on_each_store};

on_each_store!(
    a_killed_agent_stays_dead,
    an_owner_ends_its_own,
    a_subtree_ends_with_its_root,
    registering_does_not_revive,
    bad_fields_are_named,
);

async fn a_killed_agent_stays_dead(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.grant(&agent, "100").await;
    let killed =
        server.as_operator("POST", &agent.path("kill")).json(json!({"reason": "test"})).await.ok(200);
    assert_eq!(killed, json!({"killed": 1}));
    for _ in 0..2 {
        let shown = server.look(&agent).await;
        assert_eq!((&shown["status"], &shown["credits"]), (&json!("terminated"), &json!(100)));
        assert!(shown["killedAt"].is_string());
        let action = json!({"action": "x", "category": "system"});
        for call in [
            server.post(&agent.path("heartbeat")),
            server.post(&agent.path("actions")).json(action.clone()),
            server.post(&agent.path("commands")).json(json!({"kind": "restart_agent"})),
            server.post(&agent.path("events")).json(json!({"epoch": "e", "nextSeq": 1, "events": []})),
        ] {
            call.key(&agent.key).await.refused(409, "agent_killed");
        }
        server.crash().await;
    }
    let again = server.as_operator("POST", &agent.path("kill")).json(json!({"reason": "test"})).await;
    assert!(matches!(again.status, 200 | 409), "{}", again.text());
}

async fn an_owner_ends_its_own(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stranger = server.key("s").await;
    let kill = || server.post(&agent.path("kill")).json(json!({"reason": "enough"}));
    assert_eq!(kill().await.status, 401);
    kill().key(&stranger).await.refused(404, "not_found");
    assert_eq!(server.look(&agent).await["status"], "active");
    assert_eq!(kill().key(&agent.key).await.ok(200), json!({"killed": 1}));
}

async fn a_subtree_ends_with_its_root(store: Store) {
    let mut server = Server::start(store).await;
    let key = server.key("k").await;
    let mut line: Vec<Agent> = Vec::new();
    for name in ["root", "child", "grandchild", "bystander"] {
        line.push(server.register(&key, name).await);
    }
    // Children come with a later release; their rows are as they will be.
    for (child, parent) in [(1, 0), (2, 1)] {
        let literal = |id: &str| match store {
            Store::Sqlite => format!("x'{}'", id.replace('-', "")),
            Store::Postgres => format!("'{id}'"),
        };
        let (child, parent) = (literal(&line[child].id), literal(&line[parent].id));
        let changed = server.sql(&format!("UPDATE agents SET parent_id = {parent} WHERE id = {child}")).await;
        assert_eq!(changed, 1);
    }
    server.restart_with(&[]).await;
    let body = json!({"reason": "all of them", "subtree": true});
    assert_eq!(server.post(&line[0].path("kill")).key(&key).json(body).await.ok(200), json!({"killed": 3}));
    for agent in &line[..3] {
        assert_eq!(server.look(agent).await["status"], "terminated");
        server.post(&agent.path("heartbeat")).key(&key).await.refused(409, "agent_killed");
    }
    server.beat(&line[3]).await;
}

async fn registering_does_not_revive(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.end(&agent).await;
    let answer = server.post("/api/agents/register").key(&agent.key).json(json!({"name": "a"})).await;
    answer.refused(409, "agent_killed");
}

async fn bad_fields_are_named(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for (body, field) in [
        (json!({"subtree": true}), "reason"),
        (json!({"reason": 5}), "reason"),
        (json!({"reason": "x", "subtree": "yes"}), "subtree"),
    ] {
        server.post(&agent.path("kill")).key(&agent.key).json(body).await.bad_field(field);
    }
    assert_eq!(server.look(&agent).await["status"], "active");
    let nobody = "/api/agents/0190aaaa-0000-7000-8000-000000000000/kill";
    server.as_operator("POST", nobody).json(json!({"reason": "x"})).await.refused(404, "not_found");
}
