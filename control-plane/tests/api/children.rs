//! Children: born of their parent's credits, with its laws, within the operator's bounds.

use alloy::signers::local::PrivateKeySigner;
use serde_json::{Value, json};

use crate::enrolment::{URL, enrolled, enrolment, text};
use crate::support::{Agent, Server, Store, on_each_store};

on_each_store!(
    a_child_is_born_of_its_parent_s_credits,
    a_repeat_shows_no_token_and_bears_no_second_child,
    lineages_have_bounds,
    many_births_race_for_one_balance,
    births_and_deaths_race_and_the_lineage_keeps_its_sum,
    who_is_dead_or_poor_bears_nobody,
    a_child_that_never_lives_gives_its_budget_back,
    a_kill_with_subtree_ends_the_line,
    an_agent_bears_its_own_children_alone,
    bad_fields_are_named,
);

async fn started(store: Store) -> Server {
    Server::with(store).await.guarded().arg("--public-url", URL).start().await
}

async fn bear(server: &Server, parent: &Agent, name: &str, budget: &str) -> Value {
    let body = json!({"name": name, "budget": budget});
    server.post(&parent.path("children")).key(&parent.key).json(body).await.ok(201)
}

/// The child's machine enrols.
async fn bring_to_life(server: &Server, born: &Value) -> Agent {
    let token = text(&born["enrolmentToken"]);
    let body = enrolment(&token, &PrivateKeySigner::random(), &token);
    enrolled(&server.post("/api/enrol").json(body).await.ok(201))
}

async fn a_child_is_born_of_its_parent_s_credits(store: Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("laws.txt");
    std::fs::write(&file, "Never harm.\n").expect("our directory");
    let server = Server::with(store)
        .await
        .guarded()
        .arg("--public-url", URL)
        .arg("--laws-file", file.to_str().expect("a text"))
        .start()
        .await;
    let parent = server.agent("parent").await;
    server.grant(&parent, "100").await;
    let body = json!({"name": "child", "budget": 30.5, "genesisPrompt": "earn your keep"});
    let born = server.post(&parent.path("children")).key(&parent.key).json(body).await.ok(201);
    assert_eq!((&born["budget"], &born["purchaseId"]), (&json!(30.5), &Value::Null));
    let child = &born["agent"];
    assert_eq!((&child["parentId"], &child["credits"]), (&json!(parent.id), &json!(30.5)));
    assert_eq!((&child["funded"], &child["status"]), (&json!(true), &json!("inactive")));
    assert_eq!(child["survivalTier"], "conservation");
    assert_eq!(child["genesisPrompt"], "earn your keep");
    let shown = server.look(&parent).await;
    assert_eq!((&shown["credits"], &shown["childrenCount"]), (&json!(69.5), &json!(1)));
    assert_eq!(shown["lawsSha256"], child["lawsSha256"]);
    assert!(shown["lawsSha256"].is_string());
    let lived = bring_to_life(&server, &born).await;
    assert_eq!(json!(lived.id), child["id"]);
    server.beat(&lived).await;
    assert_eq!(server.look(&lived).await["status"], "active");
    // A row of the record of money for each of the two, and a line of the ledger.
    for (agent, kind, amount) in [(&parent, "debit", json!(-30.5)), (&lived, "credit", json!(30.5))] {
        let rows =
            server.get(&format!("/api/transactions?agentId={}", agent.id)).key(&agent.key).await.list();
        assert!(rows.iter().any(|row| row["type"] == kind && row["amount"] == json!(30.5)), "{rows:?}");
        let lines = server.get(&agent.path("ledger")).key(&agent.key).await.list();
        assert!(
            lines.iter().any(|line| line["kind"] == "child_grant" && line["amount"] == amount),
            "{lines:?}"
        );
    }
    server.audit();
}

async fn a_repeat_shows_no_token_and_bears_no_second_child(store: Store) {
    let mut server = started(store).await;
    let parent = server.agent("parent").await;
    server.grant(&parent, "100").await;
    let body = json!({"name": "child", "budget": 10});
    let ask = |server: &Server| {
        server.post(&parent.path("children")).key(&parent.key).once("birth").json(body.clone())
    };
    let first = ask(&server).await.ok(201);
    server.crash().await;
    let repeat = ask(&server).await.ok(201);
    assert_eq!(first["agent"]["id"], repeat["agent"]["id"]);
    assert_eq!((&repeat["enrolmentToken"], &repeat["secretShown"]), (&Value::Null, &json!(true)));
    // The same name again is another child, and refused.
    let again = server.post(&parent.path("children")).key(&parent.key).json(body.clone());
    again.await.refused(409, "name_taken");
    let shown = server.look(&parent).await;
    assert_eq!((&shown["credits"], &shown["childrenCount"]), (&json!(90), &json!(1)));
    // Whoever lost the token asks for another one for the child.
    let body = json!({"agentId": first["agent"]["id"]});
    let token = server.post("/api/enrolment-tokens").key(&parent.key).json(body).await.ok(201);
    let body = enrolment(&text(&token["token"]), &PrivateKeySigner::random(), "child");
    server.post("/api/enrol").json(body).await.ok(201);
    server.audit();
}

async fn lineages_have_bounds(store: Store) {
    let options = Server::with(store).await.guarded().arg("--public-url", URL);
    let server = options.arg("--max-children", "2").arg("--max-depth", "2").start().await;
    let root = server.agent("root").await;
    server.grant(&root, "500").await;
    let one = bring_to_life(&server, &bear(&server, &root, "one", "100").await).await;
    let two = bear(&server, &root, "two", "10").await;
    let third = json!({"name": "three", "budget": 10});
    let refused = server.post(&root.path("children")).key(&root.key).json(third.clone()).await;
    refused.refused(409, "lineage_limit_reached");
    // A child that was killed makes room.
    let id = text(&two["agent"]["id"]);
    server.as_operator("POST", &format!("/api/agents/{id}/kill")).json(json!({"reason": "x"})).await.ok(200);
    server.post(&root.path("children")).key(&root.key).json(third).await.ok(201);
    assert_eq!(server.look(&root).await["childrenCount"], 3);
    let grandchild = bring_to_life(&server, &bear(&server, &one, "grandchild", "50").await).await;
    let body = json!({"name": "great-grandchild", "budget": 10});
    let refused = server.post(&grandchild.path("children")).key(&grandchild.key).json(body).await;
    refused.refused(409, "lineage_limit_reached");
    // 500 = 380 + 50 + 50 + 10 + 10: what a lineage holds is the same as before.
    let mut sum = 0.0;
    for agent in server.get("/api/agents").operator(&server.operator).await.list() {
        sum += agent["credits"].as_f64().expect("a number");
    }
    assert!((sum - 500.0).abs() < 1e-9, "{sum}");
    server.audit();
}

async fn many_births_race_for_one_balance(store: Store) {
    let options = Server::with(store).await.guarded().arg("--max-children", "100");
    let server = options.start().await;
    let parent = server.agent("parent").await;
    server.grant(&parent, "55").await;
    let calls = (0..20).map(|n| {
        let body = json!({"name": format!("c{n}"), "budget": 10});
        server.post(&parent.path("children")).key(&parent.key).json(body).attempt()
    });
    let answers = futures_util::future::join_all(calls).await;
    let statuses: Vec<u16> = answers.iter().flatten().map(|answer| answer.status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 5, "{statuses:?}");
    let shown = server.look(&parent).await;
    assert_eq!((&shown["credits"], &shown["childrenCount"]), (&json!(5), &json!(5)));
    server.audit();
}

async fn births_and_deaths_race_and_the_lineage_keeps_its_sum(store: Store) {
    let server = Server::with(store).await.guarded().arg("--max-children", "4").start().await;
    // Another replica on the same database, where there can be one.
    let other = if store == Store::Postgres { Some(server.replica().await) } else { None };
    let parent = server.agent("parent").await;
    server.grant(&parent, "100").await;
    let at = |n: usize| if n.is_multiple_of(2) { &server } else { other.as_ref().unwrap_or(&server) };
    let birth = |name: String, n: usize| {
        let body = json!({"name": name, "budget": 7});
        at(n).post(&parent.path("children")).key(&parent.key).json(body).attempt()
    };
    let born = futures_util::future::join_all((0..12).map(|n| birth(format!("a{n}"), n))).await;
    let born: Vec<_> = born.into_iter().flatten().filter(|answer| answer.status == 201).collect();
    assert_eq!(born.len(), 4, "no more than are allowed");
    // Two of them die while more are born: each death makes room for one.
    let deaths = born.iter().take(2).enumerate().map(|(n, answer)| {
        let path = format!("/api/agents/{}/kill", text(&answer.json()["agent"]["id"]));
        at(n).post(&path).key(&parent.key).json(json!({"reason": "x"})).attempt()
    });
    let births = (0..12).map(|n| birth(format!("b{n}"), n + 1));
    let (deaths, births) = futures_util::future::join(
        futures_util::future::join_all(deaths),
        futures_util::future::join_all(births),
    )
    .await;
    assert!(deaths.iter().flatten().all(|answer| answer.status == 200), "{deaths:?}");
    let more = births.into_iter().flatten().filter(|answer| answer.status == 201).count();
    assert!(more <= 2, "{more}");
    let family = server.get("/api/agents").key(&parent.key).await.list();
    let living =
        family.iter().filter(|agent| agent["parentId"] == json!(parent.id) && agent["killedAt"].is_null());
    assert_eq!(living.count(), 2 + more);
    let sum: f64 = family.iter().filter_map(|agent| agent["credits"].as_f64()).sum();
    assert!((sum - 100.0).abs() < 1e-9, "{sum}");
    let shown = server.look(&parent).await;
    assert_eq!(shown["childrenCount"], json!(4 + more));
    server.audit();
}

async fn who_is_dead_or_poor_bears_nobody(store: Store) {
    let server = started(store).await;
    let parent = server.agent("parent").await;
    let ask = |budget: u32| {
        let body = json!({"name": "c", "budget": budget});
        server.post(&parent.path("children")).key(&parent.key).json(body)
    };
    ask(10).await.refused(409, "insufficient_credits");
    server.grant(&parent, "20").await;
    ask(21).await.refused(409, "insufficient_credits");
    server.spend(&parent, "19.5").await;
    ask(1).await.refused(409, "agent_terminated");
    server.grant(&parent, "20").await;
    server.end(&parent).await;
    ask(10).await.refused(409, "agent_killed");
    server.audit();
}

async fn a_child_that_never_lives_gives_its_budget_back(store: Store) {
    let server = started(store).await;
    let parent = server.agent("parent").await;
    server.grant(&parent, "100").await;
    let still = bear(&server, &parent, "stillborn", "30").await;
    let alive = bring_to_life(&server, &bear(&server, &parent, "alive", "20").await).await;
    assert_eq!(server.look(&parent).await["credits"], json!(50));
    server.sql("UPDATE births SET expires_at = created_at").await;
    server.sql("UPDATE enrolment_tokens SET expires_at = created_at").await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while server.look(&parent).await["credits"] != json!(80) {
        assert!(std::time::Instant::now() < deadline, "{}", server.look(&parent).await);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let id = text(&still["agent"]["id"]);
    let shown = server.get(&format!("/api/agents/{id}")).key(&parent.key).await.ok(200);
    assert_eq!((&shown["status"], &shown["credits"]), (&json!("terminated"), &json!(0)));
    let token = text(&still["enrolmentToken"]);
    let body = enrolment(&token, &PrivateKeySigner::random(), &token);
    assert_eq!(server.post("/api/enrol").json(body).await.status, 401);
    assert_eq!(server.look(&alive).await["credits"], json!(20));
    server.audit();
}

async fn a_kill_with_subtree_ends_the_line(store: Store) {
    let server = started(store).await;
    let root = server.agent("root").await;
    server.grant(&root, "100").await;
    let one = bring_to_life(&server, &bear(&server, &root, "one", "50").await).await;
    let two = bring_to_life(&server, &bear(&server, &one, "two", "20").await).await;
    let kill = json!({"reason": "enough", "subtree": true});
    // Births race with the kill: whatever was born of the line is ended with it.
    let births = (0..6).map(|n| {
        let body = json!({"name": format!("late{n}"), "budget": 1});
        server.post(&two.path("children")).key(&two.key).json(body).attempt()
    });
    let call = server.post(&root.path("kill")).key(&root.key).json(kill).attempt();
    let (_, killed) = futures_util::future::join(futures_util::future::join_all(births), call).await;
    assert_eq!(killed.expect("an answer").status, 200);
    for agent in server.get("/api/agents").key(&root.key).await.list() {
        assert_eq!(agent["status"], "terminated", "{agent}");
        assert!(agent["killedAt"].is_string(), "{agent}");
    }
    server.audit();
}

async fn an_agent_bears_its_own_children_alone(store: Store) {
    let server = started(store).await;
    let root = server.agent("root").await;
    server.grant(&root, "100").await;
    let one = bring_to_life(&server, &bear(&server, &root, "one", "40").await).await;
    // With its own key it acts neither for its parent nor for its child.
    let body = json!({"name": "x", "budget": 5});
    server.post(&root.path("children")).key(&one.key).json(body.clone()).await.refused(404, "not_found");
    let child = bear(&server, &one, "child of one", "10").await;
    let path = format!("/api/agents/{}", text(&child["agent"]["id"]));
    server.get(&path).key(&one.key).await.refused(404, "not_found");
    let stranger = server.key("stranger").await;
    server.post(&root.path("children")).key(&stranger).json(body.clone()).await.refused(404, "not_found");
    assert_eq!(server.post(&root.path("children")).json(body.clone()).await.status, 401);
    server.as_operator("POST", &root.path("children")).json(body).await.ok(201);
}

async fn bad_fields_are_named(store: Store) {
    let server = started(store).await;
    let parent = server.agent("parent").await;
    server.grant(&parent, "100").await;
    for (body, field) in [
        (json!({"budget": 5}), "name"),
        (json!({"name": "", "budget": 5}), "name"),
        (json!({"name": "c"}), "budget"),
        (json!({"name": "c", "budget": 0}), "budget"),
        (json!({"name": "c", "budget": -5}), "budget"),
        (json!({"name": "c", "budget": "0.999999"}), "budget"),
        (json!({"name": "c", "budget": 5, "model": ""}), "model"),
        (json!({"name": "c", "budget": 5, "genesisPrompt": 5}), "genesisPrompt"),
    ] {
        server.post(&parent.path("children")).key(&parent.key).json(body).await.bad_field(field);
    }
    for (order, field) in [(json!("x"), "server"), (json!({"plan": "p"}), "server.region")] {
        let body = json!({"name": "c", "budget": 5, "server": order});
        server.post(&parent.path("children")).key(&parent.key).json(body).await.bad_field(field);
    }
    let order = json!({"plan": "p", "region": "r", "image": "i", "hostname": "h", "cycle": "hourly"});
    let body = json!({"name": "c", "budget": 5, "server": order});
    server
        .post(&parent.path("children"))
        .key(&parent.key)
        .json(body)
        .await
        .refused(503, "upstream_not_configured");
    assert_eq!(server.look(&parent).await["credits"], json!(100));
}
