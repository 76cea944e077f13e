//! Domains: records of names, one row per name whatever its spelling.

use serde_json::{Value, json};

use crate::support::{Server, Store, on_each_store};

on_each_store!(
    a_domain_is_kept_as_it_was_posted,
    names_are_normalised_and_unique,
    bad_names_are_refused,
    a_patch_changes_what_it_names,
    bad_fields_are_named,
    links_must_be_the_callers,
    in_guarded_mode_rows_belong_to_their_owner,
    one_of_many_at_once_gets_the_name,
);

const FIELDS: [&str; 10] = [
    "id",
    "name",
    "status",
    "registeredAt",
    "expiresAt",
    "dnsRecords",
    "sandboxId",
    "agentId",
    "autoRenew",
    "managed",
];

fn path(domain: &Value) -> String {
    format!("/api/domains/{}", domain["id"].as_str().expect("an id"))
}

async fn a_domain_is_kept_as_it_was_posted(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let sandbox = server.post("/api/sandboxes").key(&agent.key).json(json!({"name": "s"})).await.ok(201);
    let body = json!({
        "name": "example.com", "status": "pending", "registeredAt": "2026-01-02T03:04:05Z",
        "expiresAt": "2027-01-02T03:04:05Z", "autoRenew": true, "agentId": agent.id, "sandboxId": sandbox["id"],
        "dnsRecords": [{"type": "A", "name": "@", "value": "10.0.0.1", "ttl": 300}],
    });
    let made = server.post("/api/domains").key(&agent.key).json(body.clone()).await.ok(201);
    for field in FIELDS {
        assert!(made.get(field).is_some(), "{field}: {made}");
    }
    for (field, value) in body.as_object().expect("an object") {
        if !field.ends_with("At") {
            assert_eq!(&made[field], value, "{field}");
        }
    }
    assert!(made["expiresAt"].as_str().expect("a time").starts_with("2027-01-02T03:04:05"));
    assert_eq!(made["managed"], false);
    assert_eq!(server.get(&path(&made)).await.ok(200), made);
    assert_eq!(server.get("/api/domains").await.list(), [made]);

    let bare =
        server.post("/api/domains").json(json!({"name": "bare.example", "managed": true})).await.ok(201);
    assert_eq!((&bare["status"], &bare["managed"]), (&json!("active"), &json!(false)));
    assert_eq!((&bare["dnsRecords"], &bare["agentId"]), (&json!([]), &Value::Null));
    server.get("/api/domains/0190aaaa-0000-7000-8000-000000000000").await.refused(404, "not_found");
}

async fn names_are_normalised_and_unique(store: Store) {
    let server = Server::start(store).await;
    let (one, two) = (server.key("1").await, server.key("2").await);
    for (first, kept, same) in [
        ("Example.COM", "example.com", "example.com"),
        ("Bücher.example", "xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("日本語.jp", "xn--wgv71a119e.jp", "日本語。jp"),
        ("straße.example", "xn--strae-oqa.example", "Straße.Example"),
        ("dot.example", "dot.example", "dot.example."),
    ] {
        let made = server.post("/api/domains").key(&one).json(json!({"name": first})).await.ok(201);
        assert_eq!(made["name"], kept);
        for key in [&one, &two] {
            for again in [first, same] {
                let answer = server.post("/api/domains").key(key).json(json!({"name": again})).await;
                answer.refused(409, "name_taken");
            }
        }
    }
}

async fn bad_names_are_refused(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let long_label = format!("{}.example", "x".repeat(64));
    let long_name = format!("{}example", "abcdefgh.".repeat(30));
    for name in [
        "",
        ".",
        "a..b",
        "exa mple.com",
        "-a.example",
        "a-.example",
        "under_score!.example",
        "http://a.example",
        "a.example/path",
        "a.example:80",
        "a\u{0}.example",
        "xn--\u{fffd}.example",
        "*.example",
        &long_label,
        &long_name,
    ] {
        server.post("/api/domains").key(&key).json(json!({"name": name})).await.bad_field("name");
    }
}

async fn a_patch_changes_what_it_names(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let body = json!({"name": "a.example", "agentId": agent.id, "autoRenew": false});
    let made = server.post("/api/domains").key(&agent.key).json(body).await.ok(201);
    let patch = async |body: Value| server.patch(&path(&made)).key(&agent.key).json(body).await;

    let changed = patch(json!({"autoRenew": true})).await.ok(200);
    assert_eq!((&changed["autoRenew"], &changed["agentId"]), (&json!(true), &json!(agent.id)));
    let records = json!([{"type": "TXT", "name": "@", "value": "v=1 \"q\"", "ttl": 60}]);
    let changed = patch(json!({"dnsRecords": records, "status": "expired"})).await.ok(200);
    assert_eq!((&changed["dnsRecords"], &changed["status"]), (&records, &json!("expired")));
    let changed = patch(json!({"agentId": null})).await.ok(200);
    assert_eq!((&changed["agentId"], &changed["autoRenew"]), (&Value::Null, &json!(true)));
    assert_eq!(patch(json!({"managed": true, "unknown": 1})).await.ok(200)["managed"], false);
    assert_eq!(server.get(&path(&made)).await.ok(200)["name"], "a.example");
    patch(json!({"status": "gone"})).await.bad_field("status");
    patch(json!({"autoRenew": "yes"})).await.bad_field("autoRenew");
    patch(json!({"agentId": "0190aaaa-0000-7000-8000-000000000000"})).await.bad_field("agentId");
    server
        .patch("/api/domains/0190aaaa-0000-7000-8000-000000000000")
        .key(&agent.key)
        .json(json!({"autoRenew": true}))
        .await
        .refused(404, "not_found");
}

async fn bad_fields_are_named(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    for (mut body, field) in [
        (json!({"status": "gone"}), "status"),
        (json!({"expiresAt": "tomorrow"}), "expiresAt"),
        (json!({"expiresAt": 5}), "expiresAt"),
        (json!({"registeredAt": "2026-02-30T00:00:00Z"}), "registeredAt"),
        (json!({"autoRenew": 1}), "autoRenew"),
        (json!({"dnsRecords": {}}), "dnsRecords"),
        (json!({"sandboxId": "nonsense"}), "sandboxId"),
        (json!({"sandboxId": "0190aaaa-0000-7000-8000-000000000000"}), "sandboxId"),
    ] {
        body["name"] = json!("fine.example");
        server.post("/api/domains").key(&key).json(body).await.bad_field(field);
    }
    server.post("/api/domains").key(&key).json(json!({"name": 5})).await.bad_field("name");
    server.post("/api/domains").key(&key).json(json!({})).await.bad_field("name");
    server.post("/api/domains").key(&key).json(json!({"name": "fine.example"})).await.ok(201);
}

async fn links_must_be_the_callers(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let stranger = server.key("s").await;
    let sandbox = server.post("/api/sandboxes").key(&agent.key).json(json!({"name": "s"})).await.ok(201);
    let body = json!({"name": "x.example", "agentId": agent.id});
    server.post("/api/domains").key(&stranger).json(body).await.bad_field("agentId");
    let body = json!({"name": "x.example", "sandboxId": sandbox["id"]});
    server.post("/api/domains").key(&stranger).json(body).await.bad_field("sandboxId");
    let body = json!({"name": "x.example", "sandboxId": sandbox["id"], "agentId": agent.id});
    let unlinked = server.post("/api/domains").json(body).await.ok(201);
    assert_eq!((&unlinked["agentId"], &unlinked["sandboxId"]), (&Value::Null, &Value::Null));
}

async fn in_guarded_mode_rows_belong_to_their_owner(store: Store) {
    let server = Server::with(store).await.guarded().start().await;
    let (mine, theirs) = (server.key("m").await, server.key("t").await);
    let made = server.post("/api/domains").key(&mine).json(json!({"name": "x.example"})).await.ok(201);
    let patch = || server.patch(&path(&made)).json(json!({"autoRenew": true}));
    patch().await.refused(401, "missing_key");
    patch().key(&theirs).await.refused(404, "not_found");
    patch().key(&mine).await.ok(200);
    patch().operator(&server.operator).await.ok(200);
    server.get(&path(&made)).key(&theirs).await.refused(404, "not_found");
    server.get(&path(&made)).await.refused(401, "missing_key");
}

async fn one_of_many_at_once_gets_the_name(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let posts = (0..20).map(|n| {
        let body = json!({"name": "Race.Example", "status": if n % 2 == 0 { "active" } else { "pending" }});
        tokio::spawn(server.post("/api/domains").key(&key).json(body).attempt())
    });
    let mut statuses = Vec::new();
    for post in posts.collect::<Vec<_>>() {
        statuses.push(post.await.expect("no panic").expect("an answer").status);
    }
    statuses.sort_unstable();
    let mut wanted = vec![201];
    wanted.extend([409; 19]);
    assert_eq!(statuses, wanted);
}
