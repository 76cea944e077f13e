//! Keys: made once, shown once, masked ever after, revoked for good.

use serde_json::{Value, json};

use crate::support::server::is_written_under;
use crate::support::{Key, Server, Store, on_each_store};

on_each_store!(
    a_key_is_shown_once_and_masked_ever_after,
    a_key_made_with_a_key_joins_its_owner,
    the_operator_may_name_the_owner_to_join,
    an_owner_has_at_most_twenty_active_keys,
    a_revoked_key_opens_nothing,
    revoking_can_take_the_keys_it_made_along,
    bad_fields_are_named,
    an_owner_sees_its_own_keys_in_guarded_mode,
    an_unknown_key_cannot_be_revoked,
);

const FIELDS: [&str; 9] =
    ["id", "key", "keyPrefix", "name", "kind", "ownerId", "ownerWallet", "status", "createdAt"];

async fn a_key_is_shown_once_and_masked_ever_after(store: Store) {
    let server = Server::start(store).await;
    let body = json!({"name": "My Agent Key", "ownerWallet": "0x2a18000000000000000000000000000000000461"});
    let made = server.post("/api/keys/generate").json(body).await.ok(201);

    for field in FIELDS {
        assert!(made.get(field).is_some(), "{field}: {made}");
    }
    let secret = made["key"].as_str().expect("a text");
    let digits = secret.strip_prefix("otonix_").expect("the prefix");
    assert_eq!(digits.len(), 48);
    assert!(digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)), "{secret}");
    assert!(secret.starts_with(made["keyPrefix"].as_str().expect("a text")), "{made}");
    assert_eq!(made["name"], "My Agent Key");
    assert_eq!(made["kind"], "owner");
    assert_eq!(made["status"], "active");

    let answer = server.get("/api/keys").operator(&server.operator).await;
    let listed = row(&answer.list(), &made["id"]);
    let masked = format!("otonix_{}****{}", &digits[..4], &digits[44..]);
    assert_eq!(listed["key"], masked.as_str());
    assert_eq!(listed["agentCount"], 0);
    for field in ["keyPrefix", "name", "kind", "ownerId", "ownerWallet", "status", "createdAt"] {
        assert_eq!(listed[field], made[field], "{field}");
    }
    assert!(!answer.text().contains(secret));
    assert!(!is_written_under(&server.data_dir(), secret), "only the hash is kept");
    assert!(!server.log().contains(secret));
}

fn row(rows: &[Value], id: &Value) -> Value {
    rows.iter().find(|row| row["id"] == *id).unwrap_or_else(|| panic!("no {id} in {rows:?}")).clone()
}

async fn a_key_made_with_a_key_joins_its_owner(store: Store) {
    let server = Server::start(store).await;
    let first = server.key("first").await;
    let second = server.key_of(&first, "second").await;
    let stranger = server.key("stranger").await;
    let anonymous = server.post("/api/keys/generate").json(json!({"name": "anyone"})).await.ok(201);
    assert_eq!(first.owner, second.owner);
    assert_ne!(first.owner, stranger.owner);
    assert_ne!(anonymous["ownerId"], first.owner.as_str());

    let agent = server.register(&first, "shared").await;
    server.get(&agent.path("ledger")).key(&second).await.ok(200);
    server.get(&agent.path("ledger")).key(&stranger).await.refused(404, "not_found");
}

async fn the_operator_may_name_the_owner_to_join(store: Store) {
    let server = Server::start(store).await;
    let first = server.key("first").await;
    let other = server.key("other").await;
    let body = json!({"name": "second", "ownerId": first.owner});
    let second = server.as_operator("POST", "/api/keys/generate").json(body.clone()).await.ok(201);
    assert_eq!(second["ownerId"], first.owner.as_str());

    let answer = server.post("/api/keys/generate").key(&other).json(body.clone()).await;
    assert_ne!(answer.json()["ownerId"], first.owner.as_str(), "a key never joins another owner");
    let answer = server.post("/api/keys/generate").json(body).await;
    assert_ne!(answer.json()["ownerId"], first.owner.as_str(), "nobody joins an owner unasked");
    let nobody = json!({"name": "third", "ownerId": "0190aaaa-0000-7000-8000-000000000000"});
    let answer = server.as_operator("POST", "/api/keys/generate").json(nobody).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
}

async fn an_owner_has_at_most_twenty_active_keys(store: Store) {
    let server = Server::start(store).await;
    let first = server.key("0").await;
    let mut last = first.clone();
    for n in 1..20 {
        last = server.key_of(&first, &n.to_string()).await;
    }
    let one_more = || server.post("/api/keys/generate").key(&first).json(json!({"name": "21"}));
    one_more().await.refused(409, "key_limit_reached");
    server.revoke(&last).await;
    one_more().await.ok(201);
    one_more().await.refused(409, "key_limit_reached");
}

async fn a_revoked_key_opens_nothing(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    server.beat(&agent).await;
    let revoked = server.delete(&format!("/api/keys/{}", agent.key.id)).key(&agent.key).await.ok(200);
    assert_eq!(revoked, json!({"id": agent.key.id, "status": "revoked", "agentsDeactivated": 1}));

    for answer in [
        server.post(&agent.path("heartbeat")).key(&agent.key).await,
        server.post("/api/agents/register").key(&agent.key).json(json!({"name": "b"})).await,
        server.get(&agent.path("ledger")).key(&agent.key).await,
        server.get("/api/agents").key(&agent.key).await,
    ] {
        answer.refused(401, "revoked_key");
    }
    let shown = server.as_operator("GET", &agent.path("")).await.ok(200);
    assert_eq!(shown["status"], "inactive");
    let keys = server.as_operator("GET", "/api/keys").await.list();
    assert_eq!(row(&keys, &json!(agent.key.id))["status"], "revoked");
}

async fn revoking_can_take_the_keys_it_made_along(store: Store) {
    let server = Server::start(store).await;
    for (query, after) in [("", 200), ("?descendants=true", 401)] {
        let first = server.key("first").await;
        let child = server.key_of(&first, "child").await;
        let grandchild = server.key_of(&child, "grandchild").await;
        server.as_operator("DELETE", &format!("/api/keys/{}{query}", first.id)).await.ok(200);
        for (key, status) in [(&first, 401), (&child, after), (&grandchild, after)] {
            let answer = server.get("/api/price-table").key(key).await;
            assert_eq!(answer.status, status, "{query}: {}", answer.text());
        }
    }
}

async fn bad_fields_are_named(store: Store) {
    let server = Server::start(store).await;
    for (body, field) in [
        (json!({}), "name"),
        (json!({"name": 5}), "name"),
        (json!({"name": null}), "name"),
        (json!({"name": ""}), "name"),
        (json!({"name": "x".repeat(129)}), "name"),
        (json!({"name": "a\u{0}b"}), "name"),
        (json!({"name": ["x"]}), "name"),
        (json!({"name": "x", "ownerWallet": 5}), "ownerWallet"),
    ] {
        server.as_operator("POST", "/api/keys/generate").json(body).await.bad_field(field);
    }
    let fine = json!({"name": "é".repeat(128), "ownerWallet": null, "of": "no interest"});
    server.as_operator("POST", "/api/keys/generate").json(fine).await.ok(201);
}

async fn an_owner_sees_its_own_keys_in_guarded_mode(store: Store) {
    let server = Server::with(store).await.guarded().start().await;
    let mine = server.key("mine").await;
    let theirs = server.key("theirs").await;
    let ids = |rows: Vec<Value>| -> Vec<String> {
        rows.iter().map(|row| row["id"].as_str().expect("an id").to_owned()).collect()
    };
    assert_eq!(ids(server.get("/api/keys").key(&mine).await.list()), [mine.id.as_str()]);
    let all = ids(server.as_operator("GET", "/api/keys").await.list());
    assert!(all.contains(&mine.id) && all.contains(&theirs.id));
    server.get("/api/keys").await.refused(401, "missing_key");
    server.delete(&format!("/api/keys/{}", theirs.id)).key(&mine).await.refused(404, "not_found");
    server.delete(&format!("/api/keys/{}", mine.id)).key(&mine).await.ok(200);
}

async fn an_unknown_key_cannot_be_revoked(store: Store) {
    let server = Server::start(store).await;
    let nobody = "/api/keys/0190aaaa-0000-7000-8000-000000000000";
    server.as_operator("DELETE", nobody).await.refused(404, "not_found");
    let answer = server.as_operator("DELETE", "/api/keys/nonsense").await;
    assert!(matches!(answer.status, 400 | 404), "{}", answer.text());
    server.get("/api/price-table").key(&Key::unknown()).await.refused(401, "unknown_key");
}
