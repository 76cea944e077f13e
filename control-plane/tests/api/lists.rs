//! Lists: newest first, page by page without a gap, filtered where it makes sense.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Agent, Server, Store, on_each_store};

on_each_store!(
    every_list_is_paged_without_gap_or_repeat,
    a_page_keeps_its_place_while_rows_arrive,
    limits_and_cursors_are_checked,
    what_a_list_does_not_know_is_named,
    filters_narrow_a_list,
    time_filters_narrow_a_list,
    a_full_page_has_at_most_a_thousand_rows,
);

/// Makes `count` rows of every kind.
async fn fill(server: &Server, agent: &Agent, count: usize) {
    server.grant(agent, "1000").await;
    for n in 0..count {
        server.act(agent, &format!("action {n}")).await;
        server.spend(agent, "0.5").await;
        server.post("/api/sandboxes").key(&agent.key).json(json!({"name": format!("s{n}")})).await.ok(201);
        let body = json!({"name": format!("d{n}.example")});
        server.post("/api/domains").key(&agent.key).json(body).await.ok(201);
        let body = json!({"type": "debit", "amount": 1, "description": format!("t{n}")});
        server.post("/api/transactions").key(&agent.key).json(body).await.ok(201);
        let body = json!({"kind": "restart_agent"});
        server.post(&agent.path("commands")).key(&agent.key).json(body).await.ok(201);
        if n > 0 {
            server.register(&agent.key, &format!("agent {n}")).await;
            server.key_of(&agent.key, &format!("key {n}")).await;
        }
    }
}

fn ids(rows: &[Value]) -> Vec<String> {
    rows.iter().map(|row| row["id"].as_str().expect("an id").to_owned()).collect()
}

async fn every_list_is_paged_without_gap_or_repeat(store: Store) {
    let server = Server::with(store).await.guarded().start().await;
    let agent = server.agent("agent 0").await;
    fill(&server, &agent, 7).await;
    for path in [
        "/api/agents",
        "/api/keys",
        "/api/agent-actions",
        "/api/sandboxes",
        "/api/domains",
        "/api/compute-logs",
        "/api/transactions",
        &agent.path("actions"),
        &agent.path("ledger"),
        &agent.path("commands"),
    ] {
        let whole = server.get(path).key(&agent.key).await;
        let rows = whole.list();
        // The grant left rows of its own.
        assert!((7..=9).contains(&rows.len()), "{path}: {rows:?}");
        assert!(whole.next_page().is_none(), "{path}: one page is all");
        for limit in [1, 3, rows.len(), 1000] {
            let mut found = Vec::new();
            let mut next = Some(format!("{path}?limit={limit}"));
            while let Some(page) = next {
                let answer = server.get(&page).key(&agent.key).await;
                let rows = answer.list();
                assert!(rows.len() <= limit, "{page}");
                assert!(!rows.is_empty(), "{page}: an empty page was announced");
                found.extend(rows);
                next = answer.next_page();
            }
            assert_eq!(found, rows, "{path} by {limit}");
        }
        let times: Vec<&str> = rows.iter().filter_map(|row| row["createdAt"].as_str()).collect();
        assert!(times.is_sorted_by(|a, b| a >= b), "{path}: newest first: {times:?}");
        let unique: BTreeSet<String> = ids(&rows).into_iter().collect();
        assert_eq!(unique.len(), rows.len(), "{path}");
    }
}

async fn a_page_keeps_its_place_while_rows_arrive(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let mut wanted = Vec::new();
    for n in 0..6 {
        wanted.push(server.act(&agent, &format!("{n}")).await["id"].as_str().expect("an id").to_owned());
    }
    wanted.reverse();
    let mut found = Vec::new();
    let mut next = Some(agent.path("actions?limit=2"));
    while let Some(page) = next {
        let answer = server.get(&page).key(&agent.key).await;
        found.extend(ids(&answer.list()));
        next = answer.next_page();
        server.act(&agent, "meanwhile").await;
    }
    assert_eq!(found, wanted);
}

async fn limits_and_cursors_are_checked(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.act(&agent, "one").await;
    for query in
        ["limit=abc", "limit=-1", "limit=1.5", "limit=", "limit=99999999999999999999", "cursor=nonsense"]
    {
        let answer = server.get(&format!("/api/agents?{query}")).key(&agent.key).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
    }
    for query in ["limit=0", "limit=1001", "cursor=", "unknown=1", "%ff=%00"] {
        let answer = server.get(&format!("/api/agents?{query}")).key(&agent.key).await;
        assert!(matches!(answer.status, 200 | 400), "{query}: {}", answer.text());
    }
    // A cursor is opaque, but it is not a way around the checks either.
    let cursor = "A".repeat(3000);
    let answer = server.get(&format!("/api/agent-actions?cursor={cursor}")).key(&agent.key).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    for query in ["agentId=nonsense", "since=yesterday", "until=5"] {
        let answer = server.get(&format!("/api/agent-actions?{query}")).key(&agent.key).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text());
    }
}

async fn what_a_list_does_not_know_is_named(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for n in 0..2 {
        server.act(&agent, &n.to_string()).await;
        server.spend(&agent, "0").await;
    }
    let feed = server.get("/api/agent-actions?limit=1").key(&agent.key).await.next_page().expect("a second");
    let cursor = feed.split("cursor=").nth(1).expect("a cursor").to_owned();
    server.get(&format!("/api/agent-actions?cursor={cursor}")).key(&agent.key).await.ok(200);
    for (path, parameter) in [
        ("/api/agents?limit=1&limit=2".to_owned(), "limit"),
        ("/api/agents?cursor=&cursor=".to_owned(), "cursor"),
        ("/api/agent-actions?status=failed&status=failed".to_owned(), "status"),
        (format!("/api/compute-logs?cursor={cursor}"), "cursor"),
        (agent.path(&format!("actions?cursor={cursor}")), "cursor"),
        ("/api/compute-logs?status=completed".to_owned(), "status"),
        (agent.path("ledger?status=completed"), "status"),
        ("/api/domains?category=system".to_owned(), "category"),
        (format!("/api/keys?agentId={}", agent.id), "agentId"),
    ] {
        let problem = server.get(&path).key(&agent.key).await.refused(400, "invalid_query");
        let detail = problem["detail"].as_str().expect("a detail").to_owned();
        assert!(detail.starts_with(&format!("`{parameter}` ")), "{path}: {detail}");
    }
    for value in ["maybe", "", "TRUE"] {
        let path = format!("/api/keys/{}?descendants={value}", agent.key.id);
        server.call("DELETE", &path).key(&agent.key).await.refused(400, "invalid_query");
    }
    server.beat(&agent).await;
}

async fn filters_narrow_a_list(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let (a, b) = (server.register(&key, "a").await, server.register(&key, "b").await);
    for (agent, category, status) in [
        (&a, "system", "completed"),
        (&a, "trade", "failed"),
        (&b, "trade", "completed"),
        (&b, "system", "pending"),
        (&b, "system", "completed"),
    ] {
        let body = json!({"action": "x", "category": category, "status": status});
        server.post(&agent.path("actions")).key(&key).json(body).await.ok(201);
    }
    server.spend(&a, "0").await;
    server.spend(&b, "0").await;
    for (agent, status) in [(&a, "running"), (&b, "stopped")] {
        let body = json!({"name": "s", "status": status, "agentId": agent.id});
        server.post("/api/sandboxes").key(&key).json(body).await.ok(201);
        let body = json!({"name": format!("{status}.example"), "status": "pending", "agentId": agent.id});
        server.post("/api/domains").key(&key).json(body).await.ok(201);
        let body = json!({"type": "debit", "amount": 1, "status": "failed", "agentId": agent.id});
        server.post("/api/transactions").key(&key).json(body).await.ok(201);
    }
    for (path, rows) in [
        (format!("/api/agent-actions?agentId={}", a.id), 2),
        ("/api/agent-actions?category=trade".to_owned(), 2),
        (format!("/api/agent-actions?category=system&agentId={}", b.id), 2),
        ("/api/agent-actions?status=completed".to_owned(), 3),
        ("/api/agent-actions?category=none".to_owned(), 0),
        (b.path("actions?category=system&status=pending"), 1),
        (format!("/api/compute-logs?agentId={}", a.id), 1),
        (format!("/api/sandboxes?agentId={}", a.id), 1),
        ("/api/sandboxes?status=stopped".to_owned(), 1),
        (format!("/api/domains?agentId={}", a.id), 1),
        ("/api/domains?status=active".to_owned(), 0),
        (format!("/api/transactions?agentId={}", b.id), 1),
        ("/api/transactions?status=failed".to_owned(), 2),
        ("/api/agents?status=active".to_owned(), 2),
        ("/api/agents?status=terminated".to_owned(), 0),
    ] {
        let found = server.get(&path).key(&key).await.list();
        assert_eq!(found.len(), rows, "{path}: {found:?}");
    }
    // The next page keeps the filter.
    let answer = server.get("/api/agent-actions?category=system&limit=2").key(&key).await;
    let next = answer.next_page().expect("a third");
    let rest = server.get(&next).key(&key).await;
    assert_eq!(rest.list().len(), 1);
    assert_eq!(rest.list()[0]["category"], "system");
    assert!(rest.next_page().is_none());
}

async fn time_filters_narrow_a_list(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let mut times = Vec::new();
    for n in 0..3 {
        let row = server.act(&agent, &n.to_string()).await;
        times.push(row["createdAt"].as_str().expect("a time").to_owned());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let count = async |query: String| {
        server.get(&agent.path(&format!("actions?{query}"))).key(&agent.key).await.list().len()
    };
    assert_eq!(count(format!("since={}", times[1])).await, 2, "since is inclusive");
    let before_last = count(format!("until={}", times[2])).await;
    assert!((2..=3).contains(&before_last), "{before_last}");
    assert_eq!(count("since=2100-01-01T00:00:00Z".to_owned()).await, 0);
    assert_eq!(count("until=2100-01-01T00:00:00%2B00:00".to_owned()).await, 3);
    assert_eq!(count("since=2000-01-01T00:00:00Z&until=2001-01-01T00:00:00Z".to_owned()).await, 0);
}

async fn a_full_page_has_at_most_a_thousand_rows(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let events: Vec<Value> = (1..=1000)
        .map(|seq| {
            let id = format!("0190aaaa-0000-7000-8000-{seq:012x}");
            json!({"seq": seq, "id": id, "action": {"action": format!("{seq}"), "category": "system"}})
        })
        .collect();
    let body = json!({"epoch": "e", "nextSeq": 1001, "events": events});
    let ack = server.post(&agent.path("events")).key(&agent.key).json(body).await.ok(200);
    assert_eq!(ack["ackedSeq"], 1000);
    for n in 0..5 {
        server.act(&agent, &format!("late {n}")).await;
    }
    let answer = server.get(&agent.path("actions")).key(&agent.key).await;
    assert_eq!(answer.list().len(), 100, "the default");
    let answer = server.get(&agent.path("actions?limit=1000")).key(&agent.key).await;
    assert_eq!(answer.list().len(), 1000);
    let rest = server.get(&answer.next_page().expect("five more")).key(&agent.key).await.list();
    assert_eq!(rest.len(), 5);
    assert_eq!(server.all(&agent.key, &agent.path("actions?limit=333")).await.len(), 1005);
    assert_eq!(server.look(&agent).await["totalActions"], 1005);
}
