//! `Idempotency-Key`: a repeated POST gets the stored answer and does nothing again.

use serde_json::{Value, json};

use crate::support::{Answer, Server, Store, on_each_store};

on_each_store!(
    a_repeat_gets_the_stored_answer,
    another_body_is_a_conflict,
    secrets_are_left_out_of_a_repeat,
    keys_are_scoped_by_principal_method_path_and_query,
    a_stored_answer_survives_a_crash,
    of_many_at_once_one_is_done,
    final_refusals_are_stored_and_passing_ones_are_not,
    the_key_itself_is_checked,
    every_post_takes_one,
);

async fn a_repeat_gets_the_stored_answer(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let body = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 0.1, "agentId": agent.id});
    let post = || server.post("/api/compute-logs").key(&agent.key).once("k-1").json(body.clone());
    let first = post().await;
    first.ok(201);
    for _ in 0..3 {
        let again = post().await;
        again.ok(201);
        assert_eq!(again.body, first.body, "byte for byte");
        assert_eq!(again.header("content-type"), first.header("content-type"));
    }
    let answer = server.get(&agent.path("")).key(&agent.key).await;
    assert_eq!(answer.source("credits"), "-0.1");
    server.post("/api/compute-logs").key(&agent.key).once("k-2").json(body.clone()).await.ok(201);
    server.post("/api/compute-logs").key(&agent.key).json(body.clone()).await.ok(201);
    let answer = server.get(&agent.path("")).key(&agent.key).await;
    assert_eq!(answer.source("credits"), "-0.3");
}

async fn another_body_is_a_conflict(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let post =
        |body: &str| server.post(&agent.path("actions")).key(&agent.key).once("k").raw(body.to_owned());
    post(r#"{"action":"one","category":"system"}"#).await.ok(201);
    post(r#"{"action":"two","category":"system"}"#).await.refused(409, "idempotency_key_reused");
    post(r#"{"action":"one","category":"trade"}"#).await.refused(409, "idempotency_key_reused");
    post(r#"{"action":"one","category":"system"}"#).await.ok(201);
    assert_eq!(server.look(&agent).await["totalActions"], 1);
}

async fn secrets_are_left_out_of_a_repeat(store: Store) {
    let server = Server::start(store).await;
    let generate =
        || server.as_operator("POST", "/api/keys/generate").once("new key").json(json!({"name": "x"}));
    let first = generate().await.ok(201);
    let again = generate().await;
    let repeat = again.ok(201);
    assert_eq!((&repeat["key"], &repeat["secretShown"]), (&Value::Null, &json!(true)));
    assert_eq!(repeat["id"], first["id"]);
    let secret = first["key"].as_str().expect("shown once");
    assert!(!again.text().contains(secret));
    assert!(first.get("secretShown").is_none_or(|shown| shown != true), "{first}");

    let register = || {
        server
            .post("/api/agents/register")
            .header("x-api-key", secret)
            .once("new agent")
            .json(json!({"name": "w"}))
    };
    let first = register().await.ok(201);
    let private = first["walletPrivateKey"].as_str().expect("shown once").trim_start_matches("0x").to_owned();
    let again = register().await;
    let repeat = again.ok(201);
    assert_eq!((&repeat["walletPrivateKey"], &repeat["secretShown"]), (&Value::Null, &json!(true)));
    assert_eq!(repeat["agent"]["id"], first["agent"]["id"]);
    assert!(!again.text().contains(&private));
    assert!(!crate::support::server::is_written_under(&server.data_dir(), secret));
    assert!(!crate::support::server::is_written_under(&server.data_dir(), &private));
}

async fn keys_are_scoped_by_principal_method_path_and_query(store: Store) {
    let server = Server::start(store).await;
    let (a, b) = (server.agent("a").await, server.agent("b").await);
    let body = json!({"action": "x", "category": "system"});
    let mut ids = vec![];
    for call in [
        server.post(&a.path("actions")).key(&a.key),
        server.post(&a.path("actions?other=query")).key(&a.key),
        server.post(&b.path("actions")).key(&b.key),
    ] {
        ids.push(
            call.once("same").json(body.clone()).await.ok(201)["id"].as_str().expect("an id").to_owned(),
        );
    }
    let body = json!({"name": "x"});
    for call in [
        server.post("/api/sandboxes"),
        server.post("/api/sandboxes").key(&a.key),
        server.post("/api/sandboxes").key(&b.key),
        server.as_operator("POST", "/api/sandboxes"),
    ] {
        ids.push(
            call.once("same").json(body.clone()).await.ok(201)["id"].as_str().expect("an id").to_owned(),
        );
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 7, "each is a request of its own");
}

async fn a_stored_answer_survives_a_crash(store: Store) {
    let mut server = Server::start(store).await;
    let agent = server.agent("a").await;
    let body = json!({"amount": 5, "reason": "once"});
    let first = server.as_operator("POST", &agent.path("grant")).once("grant 1").json(body.clone()).await;
    first.ok(201);
    server.crash().await;
    let again = server.as_operator("POST", &agent.path("grant")).once("grant 1").json(body).await;
    again.ok(201);
    assert_eq!(again.body, first.body);
    assert_eq!(server.look(&agent).await["credits"], 5);
    server.audit();
}

async fn of_many_at_once_one_is_done(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    for round in 0..5 {
        let body = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 1, "agentId": agent.id});
        let posts: Vec<_> = (0..20)
            .map(|_| {
                let call = server.post("/api/compute-logs").key(&agent.key);
                tokio::spawn(call.once(&format!("race {round}")).json(body.clone()).attempt())
            })
            .collect();
        let mut done: Vec<Answer> = Vec::new();
        for post in posts {
            let answer = post.await.expect("no panic").expect("an answer");
            if answer.status == 201 {
                done.push(answer);
            } else {
                answer.refused(409, "idempotency_in_progress");
                assert!(answer.header("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()));
            }
        }
        assert!(!done.is_empty());
        assert!(done.iter().all(|answer| answer.body == done[0].body));
        // Once it is done, all of many repeats at once have the answer.
        let repeats: Vec<_> = (0..20)
            .map(|_| {
                let call = server.post("/api/compute-logs").key(&agent.key);
                tokio::spawn(call.once(&format!("race {round}")).json(body.clone()).attempt())
            })
            .collect();
        for repeat in repeats {
            let answer = repeat.await.expect("no panic").expect("an answer");
            assert_eq!((answer.status, &answer.body), (201, &done[0].body));
        }
        assert_eq!(server.look(&agent).await["credits"], -1 - round);
    }
    assert_eq!(server.get("/api/compute-logs").key(&agent.key).await.list().len(), 5);
    server.audit();
}

async fn final_refusals_are_stored_and_passing_ones_are_not(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let other = server.key("o").await;
    // A name that is taken stays the answer for that request.
    let body = json!({"name": "taken.example"});
    server.post("/api/domains").key(&other).json(body.clone()).await.ok(201);
    let first = server.post("/api/domains").key(&key).once("d").json(body.clone()).await;
    first.refused(409, "name_taken");
    let again = server.post("/api/domains").key(&key).once("d").json(body).await;
    again.refused(409, "name_taken");
    assert_eq!(again.body, first.body, "the stored answer, under the first request's id");
    // What is not configured may be tomorrow: the same key must be free then.
    let body = json!({"domain": "a.example"});
    let first = server.post("/api/vercel/register").key(&key).once("v").json(body.clone()).await;
    assert_eq!(first.status, 503, "{}", first.text());
    let again =
        server.post("/api/vercel/register").key(&key).once("v").json(json!({"domain": "b.example"})).await;
    assert_eq!(again.status, 503, "nothing was stored: {}", again.text());
}

async fn the_key_itself_is_checked(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let post = |once: &str| server.post("/api/sandboxes").key(&key).once(once).json(json!({"name": "x"}));
    for bad in ["", &"x".repeat(129)] {
        let answer = post(bad).await;
        assert_eq!(answer.status, 400, "{bad}: {}", answer.text());
    }
    post(&"x".repeat(128)).await.ok(201);
    post("!").await.ok(201);
    let answer = server.post("/api/sandboxes").key(&key).header("idempotency-key", b"\xff\xfe");
    let answer = answer.json(json!({"name": "x"})).await;
    assert!(matches!(answer.status, 201 | 400), "{}", answer.text());
}

async fn every_post_takes_one(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let posts = [
        ("/api/keys/generate".to_owned(), json!({"name": "x"})),
        (
            "/api/agents/register".to_owned(),
            json!({"name": "x", "walletAddress": format!("0x{}", "1".repeat(40))}),
        ),
        (agent.path("heartbeat"), json!({})),
        (agent.path("actions"), json!({"action": "x", "category": "system"})),
        ("/api/sandboxes".to_owned(), json!({"name": "x"})),
        ("/api/domains".to_owned(), json!({"name": "x.example"})),
        ("/api/compute-logs".to_owned(), json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": 1})),
        ("/api/transactions".to_owned(), json!({"type": "debit", "amount": 1})),
        (agent.path("commands"), json!({"kind": "restart_agent"})),
        (
            agent.path("events"),
            json!({"epoch": "e", "nextSeq": 2, "events": [
                {"seq": 1, "id": "0190aaaa-0000-7000-8000-000000000001", "action": {"action": "x", "category": "system"}},
            ]}),
        ),
    ];
    for (path, body) in &posts {
        let post = || server.post(path).key(&agent.key).once("the same").json(body.clone());
        let (first, again) = (post().await, post().await);
        assert!(matches!(first.status, 200 | 201), "{path}: {}", first.text());
        assert_eq!(again.status, first.status, "{path}: {}", again.text());
        let (first, again) = (first.json(), again.json());
        if path.ends_with("generate") {
            assert_eq!(again["id"], first["id"], "{path}");
        } else {
            assert_eq!(again, first, "{path}");
        }
    }
    let body = json!({"amount": 1, "reason": "x"});
    let grant = || server.as_operator("POST", &agent.path("grant")).once("g").json(body.clone());
    assert_eq!(grant().await.ok(201), grant().await.ok(201));
    let kill = || server.as_operator("POST", &agent.path("kill")).once("k").json(json!({"reason": "x"}));
    assert_eq!(kill().await.ok(200), kill().await.ok(200));
}
