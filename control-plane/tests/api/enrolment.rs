//! Enrolment: one-time tokens, and the keys they bring, which are good for one agent and nothing else.

use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use chrono::Utc;
use serde_json::{Value, json};

use crate::access::{nameless, routes};
use crate::support::{Agent, Answer, Call, Key, Server, Store, on_each_store};

on_each_store!(
    a_machine_enrols_once_and_lives,
    a_lost_answer_is_asked_for_again,
    a_token_has_its_uses_and_its_time,
    a_proof_must_hold,
    only_the_operator_grants,
    an_agent_s_machine_is_replaced,
    tokens_are_listed_and_revoked,
    machines_race_for_a_token,
    fifty_machines_race_over_all_replicas,
    one_machine_asks_fifty_times_at_once,
    an_agent_s_key_is_good_for_its_agent_alone,
    the_laws_are_kept_and_handed_out,
    bad_fields_are_named,
);

pub const URL: &str = "https://cp.example";

/// A body that enrols a wallet, proven over a name.
pub fn enrolment(token: &str, signer: &PrivateKeySigner, name: &str) -> Value {
    let (address, at) = (signer.address(), Utc::now().timestamp());
    let text = format!("Otonix wallet {address} for {name} at {URL} {at}");
    let signature = signer.sign_message_sync(text.as_bytes()).expect("a key signs").to_string();
    json!({"token": token, "walletAddress": address.to_string(),
        "walletProof": {"signature": signature, "unixTime": at}})
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

async fn started(store: Store) -> Server {
    Server::with(store).await.guarded().arg("--public-url", URL).start().await
}

async fn token(server: &Server, key: &Key, body: Value) -> String {
    text(&server.post("/api/enrolment-tokens").key(key).json(body).await.ok(201)["token"])
}

async fn enrol(server: &Server, token: &str, signer: &PrivateKeySigner) -> Answer {
    server.post("/api/enrol").json(enrolment(token, signer, token)).await
}

/// The agent of an enrolment, with its own key.
pub fn enrolled(answer: &Value) -> Agent {
    let key = Key {
        id: text(&answer["keyId"]),
        secret: text(&answer["key"]),
        owner: text(&answer["agent"]["ownerId"]),
    };
    Agent { id: text(&answer["agent"]["id"]), key }
}

async fn a_machine_enrols_once_and_lives(store: Store) {
    let server = started(store).await;
    let owner = server.key("owner").await;
    let body = json!({"name": "scout", "tag": "fleet-1", "model": "m-1", "genesisPrompt": "look around"});
    let token = token(&server, &owner, body).await;
    assert!(token.starts_with("otonix_enrol_"), "{token}");
    let signer = PrivateKeySigner::random();
    let answer = enrol(&server, &token, &signer).await.ok(201);
    let shown = &answer["agent"];
    assert_eq!(
        (&shown["name"], &shown["tag"], &shown["model"]),
        (&json!("scout"), &json!("fleet-1"), &json!("m-1"))
    );
    assert_eq!((&shown["walletProven"], &shown["ownerId"]), (&json!(true), &json!(owner.owner)));
    assert_eq!((&shown["genesisPrompt"], &shown["apiKeyId"]), (&json!("look around"), &answer["keyId"]));
    assert!(text(&answer["key"]).starts_with("otonix_"), "{answer}");
    let agent = enrolled(&answer);
    server.beat(&agent).await;
    assert_eq!(server.look(&agent).await["status"], "active");
    // The token itself is kept nowhere, and another machine does not get in by it.
    assert!(!crate::support::server::is_written_under(&server.data_dir(), &token));
    enrol(&server, &token, &PrivateKeySigner::random()).await.refused(409, "enrolment_token_used");
    let keys = server.get("/api/keys").key(&owner).await.list();
    let kinds: Vec<&Value> = keys.iter().map(|key| &key["kind"]).collect();
    assert_eq!(kinds, [&json!("agent"), &json!("owner")]);
}

async fn a_lost_answer_is_asked_for_again(store: Store) {
    let mut server = started(store).await;
    let owner = server.key("owner").await;
    let token = token(&server, &owner, json!({"name": "scout"})).await;
    let signer = PrivateKeySigner::random();
    let body = enrolment(&token, &signer, "scout");
    let first = server.post("/api/enrol").once("one").json(body.clone()).await.ok(201);
    // The repeat of the same request shows no secret …
    let repeat = server.post("/api/enrol").once("one").json(body.clone()).await.ok(201);
    assert_eq!((&repeat["key"], &repeat["secretShown"]), (&Value::Null, &json!(true)));
    server.crash().await;
    // … a new request of the same machine gets another key, and the one before it is void.
    let second = server.post("/api/enrol").once("two").json(body).await.ok(201);
    assert_eq!(first["agent"]["id"], second["agent"]["id"]);
    assert_ne!(first["key"], second["key"]);
    let (old, new) = (enrolled(&first), enrolled(&second));
    server.post(&old.path("heartbeat")).key(&old.key).await.refused(401, "revoked_key");
    server.beat(&new).await;
    assert_eq!(server.look(&new).await["status"], "active");
}

async fn a_token_has_its_uses_and_its_time(store: Store) {
    let server = started(store).await;
    let owner = server.key("owner").await;
    let three = token(&server, &owner, json!({"uses": 3, "tag": "herd"})).await;
    let mut names = Vec::new();
    for _ in 0..3 {
        let answer = enrol(&server, &three, &PrivateKeySigner::random()).await.ok(201);
        names.push(text(&answer["agent"]["name"]));
    }
    names.sort();
    names.dedup();
    assert!(names.len() == 3 && names.iter().all(|name| name.starts_with("herd-")), "{names:?}");
    enrol(&server, &three, &PrivateKeySigner::random()).await.refused(409, "enrolment_token_used");
    let short = token(&server, &owner, json!({"ttlSeconds": 60})).await;
    server.sql("UPDATE enrolment_tokens SET expires_at = created_at").await;
    enrol(&server, &short, &PrivateKeySigner::random()).await.refused(401, "enrolment_token_expired");
    let nobody = format!("otonix_enrol_{}", "0123456789abcdef".repeat(3));
    enrol(&server, &nobody, &PrivateKeySigner::random()).await.refused(401, "unknown_enrolment_token");
}

async fn a_proof_must_hold(store: Store) {
    let server = started(store).await;
    let owner = server.key("owner").await;
    let token = token(&server, &owner, json!({"name": "scout"})).await;
    let (signer, other) = (PrivateKeySigner::random(), PrivateKeySigner::random());
    let mut stolen = enrolment(&token, &other, &token);
    stolen["walletAddress"] = json!(signer.address().to_string());
    for wrong in [stolen, enrolment(&token, &signer, "another name")] {
        server.post("/api/enrol").json(wrong).await.refused(400, "invalid_wallet_proof");
    }
    // Over its name, over the token, or over the name that the machine gives itself.
    let named = json!({"name": "mine"});
    let free = text(&server.post("/api/enrolment-tokens").key(&owner).json(json!({})).await.ok(201)["token"]);
    let mut body = enrolment(&free, &other, "mine");
    body["name"] = named["name"].clone();
    assert_eq!(server.post("/api/enrol").json(body).await.ok(201)["agent"]["name"], "mine");
    server.post("/api/enrol").json(enrolment(&token, &signer, "scout")).await.ok(201);
    // A wallet that is another owner's agent's does not enrol here.
    let stranger = server.key("stranger").await;
    let theirs =
        text(&server.post("/api/enrolment-tokens").key(&stranger).json(json!({})).await.ok(201)["token"]);
    enrol(&server, &theirs, &signer).await.refused(409, "wallet_taken");
}

async fn only_the_operator_grants(store: Store) {
    let server = started(store).await;
    let owner = server.key("owner").await;
    let asked = server.post("/api/enrolment-tokens").key(&owner).json(json!({"grant": 5}));
    asked.await.refused(403, "operator_required");
    let body = json!({"grant": "12.5", "uses": 2, "ownerId": owner.owner});
    let made = server.as_operator("POST", "/api/enrolment-tokens").json(body).await.ok(201);
    assert_eq!(made["grant"], json!(12.5));
    for _ in 0..2 {
        let agent =
            enrolled(&enrol(&server, &text(&made["token"]), &PrivateKeySigner::random()).await.ok(201));
        let shown = server.look(&agent).await;
        assert_eq!((&shown["credits"], &shown["funded"]), (&json!(12.5), &json!(true)));
    }
    // Without an owner, the operator's token makes one.
    let made = server.as_operator("POST", "/api/enrolment-tokens").json(json!({})).await.ok(201);
    let alone = enrolled(&enrol(&server, &text(&made["token"]), &PrivateKeySigner::random()).await.ok(201));
    assert_ne!(alone.key.owner, owner.owner);
    server.audit();
}

async fn an_agent_s_machine_is_replaced(store: Store) {
    let server = started(store).await;
    let owner = server.key("owner").await;
    let signer = PrivateKeySigner::random();
    let first = token(&server, &owner, json!({"name": "scout"})).await;
    let old = enrolled(&enrol(&server, &first, &signer).await.ok(201));
    let again = token(&server, &owner, json!({"agentId": old.id})).await;
    enrol(&server, &again, &PrivateKeySigner::random()).await.refused(409, "wallet_taken");
    let new = enrolled(&enrol(&server, &again, &signer).await.ok(201));
    assert_eq!(old.id, new.id);
    server.post(&old.path("heartbeat")).key(&old.key).await.refused(401, "revoked_key");
    server.beat(&new).await;
    // A machine with a wallet of its own takes the agent over when its owner says so.
    let body = json!({"agentId": old.id, "replaceWallet": true});
    let moving = token(&server, &owner, body).await;
    let other = PrivateKeySigner::random();
    let moved = enrolled(&enrol(&server, &moving, &other).await.ok(201));
    assert_eq!(moved.id, old.id);
    assert_eq!(server.look(&moved).await["walletAddress"], json!(other.address().to_string()));
    server.post(&new.path("heartbeat")).key(&new.key).await.refused(401, "revoked_key");
    let (new, signer) = (moved, other);
    // A token of no agent in particular finds the agent by the machine's wallet.
    let third = token(&server, &owner, json!({})).await;
    assert_eq!(enrolled(&enrol(&server, &third, &signer).await.ok(201)).id, old.id);
    server.end(&new).await;
    let dead = server.post("/api/enrolment-tokens").key(&owner).json(json!({"agentId": new.id}));
    dead.await.refused(409, "agent_killed");
    enrol(&server, &third, &signer).await.refused(409, "agent_killed");
}

async fn tokens_are_listed_and_revoked(store: Store) {
    let server = started(store).await;
    let (owner, stranger) = (server.key("owner").await, server.key("stranger").await);
    let made = server.post("/api/enrolment-tokens").key(&owner).json(json!({"tag": "t"})).await.ok(201);
    let rows = server.get("/api/enrolment-tokens").key(&owner).await.list();
    assert_eq!((rows.len(), &rows[0]["token"], &rows[0]["usesLeft"]), (1, &Value::Null, &json!(1)));
    assert!(server.get("/api/enrolment-tokens").key(&stranger).await.list().is_empty());
    let path = format!("/api/enrolment-tokens/{}", text(&made["id"]));
    server.delete(&path).key(&stranger).await.refused(404, "not_found");
    server.delete(&path).key(&owner).await.ok(200);
    let secret = text(&made["token"]);
    enrol(&server, &secret, &PrivateKeySigner::random()).await.refused(401, "unknown_enrolment_token");
    // A token dies with the key that made it.
    let second = server.key_of(&owner, "second").await;
    let orphan = token(&server, &second, json!({})).await;
    server.revoke(&second).await;
    enrol(&server, &orphan, &PrivateKeySigner::random()).await.refused(401, "unknown_enrolment_token");
}

async fn machines_race_for_a_token(store: Store) {
    let server = started(store).await;
    let owner = server.key("owner").await;
    let token = token(&server, &owner, json!({"uses": 3, "tag": "race"})).await;
    let calls = (0..12).map(|_| async { enrol(&server, &token, &PrivateKeySigner::random()).await.status });
    let statuses = futures_util::future::join_all(calls).await;
    let won = statuses.iter().filter(|status| **status == 201).count();
    assert_eq!(won, 3, "{statuses:?}");
    assert!(statuses.iter().all(|status| matches!(status, 201 | 409)), "{statuses:?}");
}

/// Sends all at once, to each server in turn; the answers.
async fn at_once(servers: &[&Server], bodies: Vec<Value>) -> Vec<Answer> {
    let ask = |(index, body): (usize, Value)| {
        tokio::spawn(servers[index % servers.len()].post("/api/enrol").json(body).attempt())
    };
    let asking: Vec<_> = bodies.into_iter().enumerate().map(ask).collect();
    let mut answers = Vec::new();
    for one in asking {
        answers.push(one.await.expect("no panic").expect("an answer"));
    }
    answers
}

async fn fifty_machines_race_over_all_replicas(store: Store) {
    let one = started(store).await;
    let other = if store == Store::Postgres { Some(one.replica().await) } else { None };
    let servers: Vec<&Server> = [&one].into_iter().chain(&other).collect();
    let owner = one.key("owner").await;
    let body = json!({"uses": 7, "tag": "herd", "grant": 5, "ownerId": owner.owner});
    let made = one.as_operator("POST", "/api/enrolment-tokens").json(body).await.ok(201);
    let token = text(&made["token"]);
    let bodies = (0..50).map(|_| enrolment(&token, &PrivateKeySigner::random(), &token)).collect();
    let answers = at_once(&servers, bodies).await;
    let mut won = Vec::new();
    for answer in &answers {
        match answer.status {
            201 => won.push(enrolled(&answer.json())),
            _ => _ = answer.refused(409, "enrolment_token_used"),
        }
    }
    assert_eq!(won.len(), 7);
    let rows = one.get("/api/agents?limit=1000").key(&owner).await.list();
    assert_eq!(rows.len(), 7, "those that were refused left nothing");
    for (index, agent) in won.iter().enumerate() {
        let server = servers[index % servers.len()];
        server.beat(agent).await;
        assert_eq!(server.look(agent).await["credits"], json!(5));
    }
    let left = one.get("/api/enrolment-tokens").key(&owner).await.list();
    assert_eq!(left[0]["usesLeft"], 0);
    one.audit();
}

async fn one_machine_asks_fifty_times_at_once(store: Store) {
    let one = started(store).await;
    let other = if store == Store::Postgres { Some(one.replica().await) } else { None };
    let servers: Vec<&Server> = [&one].into_iter().chain(&other).collect();
    let owner = one.key("owner").await;
    let body = json!({"grant": 5, "ownerId": owner.owner});
    let made = one.as_operator("POST", "/api/enrolment-tokens").json(body).await.ok(201);
    let body = enrolment(&text(&made["token"]), &PrivateKeySigner::random(), &text(&made["token"]));
    let answers = at_once(&servers, vec![body; 50]).await;
    let machines: Vec<Agent> = answers.iter().map(|answer| enrolled(&answer.ok(201))).collect();
    assert!(machines.iter().all(|machine| machine.id == machines[0].id), "it is one agent");
    // Each answer has its own key; the last one that was made is good, and all others are void.
    let keys = one.get("/api/keys?limit=1000").key(&owner).await.list();
    let good: Vec<String> = keys
        .iter()
        .filter(|key| key["kind"] == "agent" && key["status"] == "active")
        .map(|key| text(&key["id"]))
        .collect();
    let [good] = good.as_slice() else { panic!("not one key is good: {good:?}") };
    let machine = machines.iter().find(|machine| machine.key.id == *good).expect("its answer was given");
    for server in &servers {
        server.beat(machine).await;
    }
    let shown = one.look(machine).await;
    assert_eq!((&shown["credits"], &shown["apiKeyId"]), (&json!(5), &json!(good)));
    assert_eq!(one.get("/api/agents").key(&owner).await.list().len(), 1);
    one.audit();
}

/// Every route, by an agent's own key: (method, path, for its own agent, for its owner's other agent).
const WITH_AGENT_KEY: &[(&str, &str, u16, u16)] = &[
    ("POST", "/api/agents/{agent}/heartbeat", 200, 404),
    ("POST", "/api/agents/{agent}/actions", 201, 404),
    ("POST", "/api/agents/{agent}/events", 200, 404),
    ("GET", "/api/agents/{agent}", 200, 404),
    ("GET", "/api/agents/{agent}/actions", 200, 404),
    ("GET", "/api/agents/{agent}/ledger", 200, 404),
    ("POST", "/api/agents/{agent}/grant", 403, 403),
    ("POST", "/api/agents/{agent}/kill", 403, 403),
    ("POST", "/api/agents/{agent}/commands", 403, 403),
    ("GET", "/api/agents/{agent}/commands", 403, 403),
    ("POST", "/api/agents/{agent}/children", 400, 404),
    ("GET", "/api/sandboxes/{sandbox}", 200, 404),
    ("GET", "/api/domains/{domain}", 200, 404),
    ("PATCH", "/api/domains/{domain}", 200, 404),
];

/// The routes that name no agent.
const WITHOUT_AGENT: &[(&str, &str, u16)] = &[
    ("POST", "/api/keys/generate", 403),
    ("GET", "/api/keys", 403),
    ("DELETE", "/api/keys/{key}", 403),
    ("POST", "/api/agents/register", 403),
    ("GET", "/api/enrolment-tokens", 403),
    ("POST", "/api/enrolment-tokens", 403),
    ("DELETE", "/api/enrolment-tokens/{key}", 403),
    ("POST", "/api/refunds/{key}/resolve", 403),
    ("POST", "/api/purchases/{key}/resolve", 403),
    ("GET", "/api/cherry/teams", 403),
    ("GET", "/api/cherry/projects/1", 403),
];

/// What an agent's key records is its agent's, and nobody else's.
const RECORDS: &[&str] = &["/api/sandboxes", "/api/domains", "/api/compute-logs", "/api/transactions"];

/// The lists in which an agent's key sees its agent's rows alone.
const LISTS: &[&str] = &[
    "/api/agents",
    "/api/agent-actions",
    "/api/sandboxes",
    "/api/domains",
    "/api/compute-logs",
    "/api/transactions",
];

/// Routes that give anyone the same, or ask for a payment; and those about what is bought, whose owners are looked at by
/// the tests of vendors and of money.
const OTHERS: &[(&str, &str)] = &[
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/api/x402/config"),
    ("GET", "/api/vercel/status"),
    ("GET", "/api/vercel/payment-config"),
    ("POST", "/api/vercel/check"),
    ("GET", "/api/cherry/status"),
    ("GET", "/api/cherry/plans"),
    ("GET", "/api/cherry/regions"),
    ("GET", "/api/cherry/images"),
    ("POST", "/api/enrol"),
    ("GET", "/api/laws/{}"),
    ("GET", "/api/price-table"),
    ("GET", "/api/auth/status"),
    ("GET", "/api/autonomic/status"),
    ("POST", "/api/agents/{}/topup"),
    ("GET", "/api/orders"),
    ("GET", "/api/refunds"),
    ("GET", "/api/purchases"),
    ("POST", "/api/vercel/register"),
    ("GET", "/api/vercel/domains"),
    ("GET", "/api/vercel/dns/{}"),
    ("POST", "/api/vercel/dns/{}"),
    ("DELETE", "/api/vercel/dns/{}/{}"),
    ("GET", "/api/cherry/servers/{}"),
    ("POST", "/api/cherry/servers/{}"),
    ("POST", "/api/cherry/servers/{}/extend"),
    ("POST", "/api/cherry/servers/{}/actions"),
    ("DELETE", "/api/cherry/servers/{}"),
];

#[test]
fn every_route_is_tried_with_an_agent_s_key() {
    let with = WITH_AGENT_KEY.iter().map(|(method, path, ..)| (*method, *path));
    let without = WITHOUT_AGENT.iter().map(|(method, path, _)| (*method, *path));
    let lists = LISTS.iter().map(|path| ("GET", *path));
    let posts = RECORDS.iter().map(|path| ("POST", *path));
    let tried: Vec<_> = with
        .chain(without)
        .chain(lists)
        .chain(posts)
        .chain(OTHERS.iter().copied())
        .map(|(method, path)| (method, nameless(path)))
        .collect();
    let missing: Vec<_> = routes().filter(|route| !tried.contains(route)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

async fn an_agent_s_key_is_good_for_its_agent_alone(store: Store) {
    let server = started(store).await;
    let owner = server.key("owner").await;
    let token = token(&server, &owner, json!({"uses": 2, "tag": "pair"})).await;
    let one = enrolled(&enrol(&server, &token, &PrivateKeySigner::random()).await.ok(201));
    let two = enrolled(&enrol(&server, &token, &PrivateKeySigner::random()).await.ok(201));
    let body = |path: &str| match path.rsplit('/').next() {
        Some("actions") => json!({"action": "x", "category": "system"}),
        Some("events") => json!({"epoch": "e", "nextSeq": 1, "events": []}),
        Some("grant") => json!({"amount": 1, "reason": "x"}),
        Some("kill") => json!({"reason": "x"}),
        Some("commands") => json!({"kind": "restart_agent"}),
        // Too little to live on: refused for what it asks, not for who asks.
        Some("children") => json!({"name": "c", "budget": "0.000001"}),
        Some("resolve") => json!({"resolution": "dismissed"}),
        _ => json!({"name": "x"}),
    };
    let things = |agent: &Agent| {
        let agent = agent.clone();
        let server = &server;
        async move {
            let sandbox =
                server.post("/api/sandboxes").key(&agent.key).json(json!({"name": "s"})).await.ok(201);
            let name = format!("{}.example", &agent.id[24..]);
            let domain =
                server.post("/api/domains").key(&agent.key).json(json!({"name": name})).await.ok(201);
            // What an agent's key records is its agent's.
            assert_eq!((&sandbox["agentId"], &domain["agentId"]), (&json!(agent.id), &json!(agent.id)));
            (text(&sandbox["id"]), text(&domain["id"]))
        }
    };
    let mut wrong = Vec::new();
    for agent in [&one, &two] {
        let (sandbox, domain) = things(agent).await;
        server.spend(agent, "0").await;
        let paid = json!({"type": "debit", "amount": 1});
        server.post("/api/transactions").key(&agent.key).json(paid).await.ok(201);
        for (method, path, own, others) in WITH_AGENT_KEY {
            let path = path
                .replace("{agent}", &agent.id)
                .replace("{sandbox}", &sandbox)
                .replace("{domain}", &domain);
            for (key, wanted) in [(&one.key, own), (&two.key, others)] {
                // The agent's own key, then the other's.
                let (key, wanted) = if agent.id == one.id { (key, wanted) } else { (&agent.key, own) };
                let call: Call = server.call(method, &path).key(key);
                let call = if *method == "GET" { call } else { call.json(body(&path)) };
                let status = call.await.status;
                if status != *wanted {
                    wrong.push(format!("{method} {path}: {status}, not {wanted}"));
                }
            }
        }
        for path in RECORDS {
            let other = if agent.id == one.id { &two } else { &one };
            let record = json!({"name": "stolen.example", "agentId": other.id, "model": "m", "tokensIn": 1,
                "tokensOut": 1, "cost": 1, "type": "debit", "amount": 1});
            server.post(path).key(&agent.key).json(record).await.refused(400, "unknown_link");
        }
    }
    for (method, path, wanted) in WITHOUT_AGENT {
        let call = server.call(method, &path.replace("{key}", &owner.id)).key(&one.key);
        let call = if *method == "GET" { call } else { call.json(body(path)) };
        let status = call.await.status;
        if status != *wanted {
            wrong.push(format!("{method} {path}: {status}, not {wanted}"));
        }
    }
    for path in LISTS {
        for row in server.get(path).key(&one.key).await.list() {
            let of = if *path == "/api/agents" { &row["id"] } else { &row["agentId"] };
            if *of != json!(one.id) {
                wrong.push(format!("{path} shows {row}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    server.beat(&two).await;
}

async fn the_laws_are_kept_and_handed_out(store: Store) {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("laws.txt");
    std::fs::write(&file, "Never harm.\nEarn your existence.\n").expect("our directory");
    let mut server = Server::with(store).await.guarded().arg("--public-url", URL).start().await;
    let early = server.agent("early").await;
    assert_eq!(server.look(&early).await["lawsSha256"], Value::Null);
    server.restart_with(&["--laws-file", file.to_str().expect("a text")]).await;
    let owner = server.key("owner").await;
    let token = token(&server, &owner, json!({})).await;
    let agent = enrolled(&enrol(&server, &token, &PrivateKeySigner::random()).await.ok(201));
    let sha = text(&server.look(&agent).await["lawsSha256"]);
    assert_eq!(sha.len(), 64);
    let path = format!("/api/laws/{sha}");
    let laws = server.get(&path).key(&agent.key).await.ok(200);
    assert_eq!(laws, json!({"sha256": sha, "text": "Never harm.\nEarn your existence.\n"}));
    assert_eq!(server.get(&path).await.status, 401);
    server.get("/api/laws/00").key(&owner).await.refused(404, "not_found");
    // An agent without laws gets them when it registers again; one that has some keeps them.
    let again = server.register(&early.key, "early").await;
    assert_eq!(server.look(&again).await["lawsSha256"], json!(sha));
    std::fs::write(&file, "Other laws.\n").expect("our directory");
    server.restart_with(&[]).await;
    let again = server.register(&early.key, "early").await;
    assert_eq!(server.look(&again).await["lawsSha256"], json!(sha));
    let later = server.register(&early.key, "later").await;
    assert_ne!(server.look(&later).await["lawsSha256"], json!(sha));
    server.get(&path).key(&agent.key).await.ok(200);
}

async fn bad_fields_are_named(store: Store) {
    let server = started(store).await;
    let owner = server.key("owner").await;
    let agent = server.register(&owner, "a").await;
    for (body, field) in [
        (json!({"ttlSeconds": 59}), "ttlSeconds"),
        (json!({"uses": 0}), "uses"),
        (json!({"uses": 1001}), "uses"),
        (json!({"uses": 2, "agentId": agent.id}), "uses"),
        (json!({"tag": ""}), "tag"),
        (json!({"tag": "x".repeat(65)}), "tag"),
        (json!({"name": "\n"}), "name"),
        (json!({"grant": -1}), "grant"),
        (json!({"agentId": "0190aaaa-0000-7000-8000-000000000000"}), "agentId"),
    ] {
        server.post("/api/enrolment-tokens").key(&owner).json(body).await.bad_field(field);
    }
    let token = token(&server, &owner, json!({})).await;
    let signer = PrivateKeySigner::random();
    for (field, value) in [
        ("token", Value::Null),
        ("walletAddress", json!("0x12")),
        ("walletProof", json!("x")),
        ("vpsIp", json!("nowhere")),
        ("heartbeatInterval", json!(1)),
        ("name", json!("")),
    ] {
        let mut body = enrolment(&token, &signer, &token);
        body[field] = value;
        server.post("/api/enrol").json(body).await.bad_field(field);
    }
}
