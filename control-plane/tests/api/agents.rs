//! Agents: registered as often as they start, one and the same each time.

use std::time::Duration;

use alloy::signers::SignerSync as _;
use alloy::signers::local::PrivateKeySigner;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::support::poll::until_true;
use crate::support::server::is_written_under;
use crate::support::{Server, Store, on_each_store};

on_each_store!(
    a_registration_answers_with_the_whole_agent,
    defaults_are_the_contracts,
    registering_again_gives_the_same_agent,
    two_machines_of_one_name_are_two_agents,
    a_wallet_made_here_is_shown_once,
    a_wallet_sent_is_a_label_until_proven,
    a_wallet_proof_must_hold,
    one_agent_per_proven_address,
    bad_fields_are_named,
    one_agent_is_shown_flat,
    an_agent_that_is_not_there_is_a_404,
    an_unfunded_agent_lives_through_its_grace,
    the_key_that_registered_counts_its_agents,
);

const AGENT: [&str; 20] = [
    "id",
    "name",
    "status",
    "survivalTier",
    "credits",
    "walletAddress",
    "walletProven",
    "genesisPrompt",
    "model",
    "heartbeatInterval",
    "lastHeartbeat",
    "apiKeyId",
    "ownerId",
    "vpsIp",
    "totalActions",
    "actionsCount",
    "childrenCount",
    "funded",
    "createdAt",
    "graceUntil",
];
const WALLET: &str = "0x2a18000000000000000000000000000000000461";

async fn a_registration_answers_with_the_whole_agent(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let body = json!({
        "name": "Alpha-Prime", "model": "claude-opus-4-6", "vpsIp": "185.150.0.42", "walletAddress": WALLET,
        "genesisPrompt": "Live.", "heartbeatInterval": 30, "unknownField": {"is": "ignored"},
    });
    let answer = server.post("/api/agents/register").key(&key).json(body).await.ok(201);

    assert_eq!(answer["success"], true);
    assert!(answer["message"].is_string());
    let agent = &answer["agent"];
    let id = agent["id"].as_str().expect("an id");
    assert_eq!(
        answer["monitoring"],
        json!({
            "heartbeatEndpoint": format!("POST /api/agents/{id}/heartbeat"),
            "actionsEndpoint": format!("POST /api/agents/{id}/actions"),
            "statusEndpoint": format!("GET /api/agents/{id}"),
        })
    );
    for field in AGENT {
        assert!(agent.get(field).is_some(), "{field}: {agent}");
    }
    for (field, value) in [
        ("name", json!("Alpha-Prime")),
        ("status", json!("active")),
        ("survivalTier", json!("critical")),
        ("credits", json!(0)),
        ("model", json!("claude-opus-4-6")),
        ("vpsIp", json!("185.150.0.42")),
        ("genesisPrompt", json!("Live.")),
        ("heartbeatInterval", json!(30)),
        ("walletProven", json!(false)),
        ("funded", json!(false)),
        ("lastHeartbeat", Value::Null),
        ("apiKeyId", json!(key.id)),
        ("ownerId", json!(key.owner)),
        ("totalActions", json!(0)),
        ("actionsCount", json!(0)),
        ("childrenCount", json!(0)),
    ] {
        assert_eq!(agent[field], value, "{field}: {agent}");
    }
    assert_eq!(agent["walletAddress"].as_str().map(str::to_lowercase).as_deref(), Some(WALLET));
    let time =
        |field: &str| -> DateTime<Utc> { agent[field].as_str().expect("a time").parse().expect("a time") };
    assert_eq!(time("graceUntil") - time("createdAt"), TimeDelta::hours(24));
}

async fn defaults_are_the_contracts(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    for (name, vps_ip) in [("none", None), ("zero", Some("0.0.0.0")), ("null", Some(""))] {
        let mut body = json!({"name": name, "walletAddress": WALLET});
        match vps_ip {
            Some("") => body["vpsIp"] = Value::Null,
            Some(text) => body["vpsIp"] = json!(text),
            None => {}
        }
        let agent = &server.post("/api/agents/register").key(&key).json(body).await.ok(201)["agent"];
        assert_eq!(agent["model"], "claude-opus-4-6");
        assert_eq!(agent["heartbeatInterval"], 60);
        assert_eq!(agent["vpsIp"], "127.0.0.1", "{name}: the peer's address");
        assert_eq!(agent["genesisPrompt"], Value::Null);
        assert!(agent.get("parentId").is_none_or(Value::is_null));
        assert!(agent.get("killedAt").is_none_or(Value::is_null));
    }
    let body = json!({"name": "free", "model": "any text/at:all 7b", "walletAddress": WALLET});
    let agent = &server.post("/api/agents/register").key(&key).json(body).await.ok(201)["agent"];
    assert_eq!(agent["model"], "any text/at:all 7b");
}

async fn registering_again_gives_the_same_agent(store: Store) {
    let mut server = Server::start(store).await;
    let key = server.key("k").await;
    let sister = server.key_of(&key, "sister").await;
    let stranger = server.key("s").await;
    let agent = server.register(&key, "alice").await;
    server.grant(&agent, "12.5").await;

    let another = "0x9900000000000000000000000000000000000099";
    for (by, body) in [
        (&key, json!({"name": "alice"})),
        (&key, json!({"name": "alice", "walletAddress": another})),
        (&key, json!({"name": "alice", "vpsIp": "0.0.0.0", "model": "gpt-5"})),
        (&sister, json!({"name": "alice"})),
    ] {
        let again = server.post("/api/agents/register").key(by).json(body).await.ok(201);
        assert_eq!(again["agent"]["id"], agent.id.as_str());
        assert_eq!(again["agent"]["credits"], 12.5);
        assert_eq!(again["agent"]["walletAddress"].as_str().map(str::to_lowercase).as_deref(), Some(WALLET));
        assert!(again.get("walletPrivateKey").is_none_or(Value::is_null), "{again}");
    }
    server.crash().await;
    let again = server.register(&key, "alice").await;
    assert_eq!(again.id, agent.id);
    let other = server.register(&stranger, "alice").await;
    assert_ne!(other.id, agent.id);
    let mine = server.all(&key, "/api/agents").await;
    assert_eq!(mine.iter().filter(|row| row["ownerId"] == key.owner.as_str()).count(), 1);
}

async fn two_machines_of_one_name_are_two_agents(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let on = async |ip: Value| {
        let body = json!({"name": "twin", "vpsIp": ip, "walletAddress": WALLET});
        server.register_with(&key, body).await.id
    };
    let first = on(json!("185.150.0.1")).await;
    let second = on(json!("185.150.0.2")).await;
    assert_ne!(first, second);
    assert_eq!(on(json!("185.150.0.1")).await, first);
    assert_eq!(on(json!("185.150.0.2")).await, second);
    let without = on(Value::Null).await;
    assert!(without == first || without == second, "without an address the name alone decides");
}

async fn a_wallet_made_here_is_shown_once(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let made = server.post("/api/agents/register").key(&key).json(json!({"name": "w"})).await.ok(201);
    let secret = made["walletPrivateKey"].as_str().expect("shown");
    let signer: PrivateKeySigner = secret.parse().expect("a private key");
    let address = made["agent"]["walletAddress"].as_str().expect("an address");
    assert_eq!(address.to_lowercase(), signer.address().to_string().to_lowercase());
    assert_eq!(made["agent"]["walletProven"], true);

    let again = server.post("/api/agents/register").key(&key).json(json!({"name": "w"})).await;
    assert_eq!(again.ok(201)["agent"]["walletAddress"], address);
    let digits = secret.trim_start_matches("0x");
    assert!(!again.text().contains(digits));
    let id = made["agent"]["id"].as_str().expect("an id");
    assert!(!server.get(&format!("/api/agents/{id}")).key(&key).await.text().contains(digits));
    assert!(!is_written_under(&server.data_dir(), digits), "never stored");
}

async fn a_wallet_sent_is_a_label_until_proven(store: Store) {
    let server = Server::start(store).await;
    let (one, two) = (server.key("1").await, server.key("2").await);
    for key in [&one, &two] {
        let body = json!({"name": "same label", "walletAddress": WALLET});
        let answer = server.post("/api/agents/register").key(key).json(body).await.ok(201);
        assert_eq!(answer["agent"]["walletProven"], false);
        assert!(answer.get("walletPrivateKey").is_none_or(Value::is_null), "{answer}");
    }
}

/// A wallet, and how it proves itself.
fn proof(signer: &PrivateKeySigner, name: &str, url: &str, at: i64) -> Value {
    let address = signer.address();
    let text = format!("Otonix wallet {address} for {name} at {url} {at}");
    let signature = signer.sign_message_sync(text.as_bytes()).expect("a key signs");
    json!({"signature": signature.to_string(), "unixTime": at})
}

const URL: &str = "https://cp.example";

async fn a_wallet_proof_must_hold(store: Store) {
    let server = Server::with(store).await.arg("--public-url", URL).start().await;
    let key = server.key("k").await;
    let signer = PrivateKeySigner::random();
    let other = PrivateKeySigner::random();
    let now = Utc::now().timestamp();
    let register = |name: &str, proof: Value| {
        let body = json!({"name": name, "walletAddress": signer.address().to_string(), "walletProof": proof});
        server.post("/api/agents/register").key(&key).json(body)
    };
    for (case, wrong) in [
        ("other signer", proof(&other, "n", URL, now)),
        ("other name", proof(&signer, "m", URL, now)),
        ("other server", proof(&signer, "n", "https://else.example", now)),
        ("too old", proof(&signer, "n", URL, now - 700)),
        ("from tomorrow", proof(&signer, "n", URL, now + 86_400)),
        ("other time", json!({"signature": proof(&signer, "n", URL, now)["signature"], "unixTime": now - 1})),
        ("garbage", json!({"signature": "0x00", "unixTime": now})),
    ] {
        let answer = register("n", wrong).await;
        assert_eq!(answer.status, 400, "{case}: {}", answer.text());
    }
    let answer = register("n", proof(&signer, "n", URL, now)).await.ok(201);
    assert_eq!(answer["agent"]["walletProven"], true);
    assert!(answer.get("walletPrivateKey").is_none_or(Value::is_null), "{answer}");
}

async fn one_agent_per_proven_address(store: Store) {
    let server = Server::with(store).await.arg("--public-url", URL).start().await;
    let (one, two) = (server.key("1").await, server.key("2").await);
    let signer = PrivateKeySigner::random();
    let claim = |name: &str| {
        let proof = proof(&signer, name, URL, Utc::now().timestamp());
        json!({"name": name, "walletAddress": signer.address().to_string(), "walletProof": proof})
    };
    server.post("/api/agents/register").key(&one).json(claim("a")).await.ok(201);
    server.post("/api/agents/register").key(&one).json(claim("a")).await.ok(201);
    server.post("/api/agents/register").key(&one).json(claim("b")).await.refused(409, "wallet_taken");
    server.post("/api/agents/register").key(&two).json(claim("a")).await.refused(409, "wallet_taken");
}

async fn bad_fields_are_named(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    for (body, field) in [
        (json!({}), "name"),
        (json!({"name": ""}), "name"),
        (json!({"name": "x".repeat(129)}), "name"),
        (json!({"name": 1}), "name"),
        (json!({"name": "a", "model": 7}), "model"),
        (json!({"name": "a", "heartbeatInterval": 4}), "heartbeatInterval"),
        (json!({"name": "a", "heartbeatInterval": 86_401}), "heartbeatInterval"),
        (json!({"name": "a", "heartbeatInterval": -5}), "heartbeatInterval"),
        (json!({"name": "a", "heartbeatInterval": "60"}), "heartbeatInterval"),
        (json!({"name": "a", "heartbeatInterval": 7.5}), "heartbeatInterval"),
        (json!({"name": "a", "vpsIp": 5}), "vpsIp"),
        (json!({"name": "a", "walletAddress": "0x123"}), "walletAddress"),
        (json!({"name": "a", "walletAddress": 5}), "walletAddress"),
        (json!({"name": "a", "genesisPrompt": 5}), "genesisPrompt"),
        (json!({"name": "a", "genesisPrompt": "a\u{0}b"}), "genesisPrompt"),
    ] {
        server.post("/api/agents/register").key(&key).json(body).await.bad_field(field);
    }
    for (name, interval) in [("least", 5), ("most", 86_400)] {
        let body = json!({"name": name, "heartbeatInterval": interval, "walletAddress": WALLET});
        let answer = server.post("/api/agents/register").key(&key).json(body).await.ok(201);
        assert_eq!(answer["agent"]["heartbeatInterval"], interval);
    }
    server.post("/api/agents/register").json(json!({"name": "a"})).await.refused(401, "missing_key");
}

async fn one_agent_is_shown_flat(store: Store) {
    let server = Server::start(store).await;
    let agent = server.agent("a").await;
    let shown = server.get(&agent.path("")).await.ok(200);
    for field in AGENT {
        assert!(shown.get(field).is_some(), "{field}: {shown}");
    }
    assert_eq!(shown["id"], agent.id.as_str());
    let listed = server.get("/api/agents").await.list();
    assert_eq!(listed, [shown]);
}

async fn an_agent_that_is_not_there_is_a_404(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    let nobody = "0190aaaa-0000-7000-8000-000000000000";
    server.get(&format!("/api/agents/{nobody}")).await.refused(404, "not_found");
    server.post(&format!("/api/agents/{nobody}/heartbeat")).key(&key).await.refused(404, "not_found");
    for bad in ["nonsense", "%00", "%ff", "1", "0190aaaa-0000-7000-8000-00000000000g"] {
        let answer = server.get(&format!("/api/agents/{bad}")).await;
        assert!(matches!(answer.status, 400 | 404), "{bad}: {}", answer.text());
    }
}

async fn an_unfunded_agent_lives_through_its_grace(store: Store) {
    let server = Server::with(store).await.arg("--funding-grace", "2").start().await;
    let agent = server.agent("a").await;
    let beat = server.beat(&agent).await;
    assert_eq!((&beat["survivalTier"], &beat["funded"]), (&json!("critical"), &json!(false)));
    assert!(beat["graceUntil"].is_string());
    until_true("the grace ends", Duration::from_secs(10), async || {
        server.look(&agent).await["survivalTier"] == "terminated"
    })
    .await;
    until_true("the status follows", Duration::from_secs(10), async || {
        server.look(&agent).await["status"] == "terminated"
    })
    .await;
    // Still heard, and revived by credits.
    assert_eq!(server.beat(&agent).await["survivalTier"], "terminated");
    assert_eq!(server.grant(&agent, "1").await["survivalTier"], "critical");
    let beat = server.beat(&agent).await;
    assert_eq!((&beat["survivalTier"], &beat["funded"]), (&json!("critical"), &json!(true)));
    assert!(beat.get("graceUntil").is_none_or(Value::is_null), "{beat}");
    until_true("it is active again", Duration::from_secs(5), async || {
        server.look(&agent).await["status"] == "active"
    })
    .await;
}

async fn the_key_that_registered_counts_its_agents(store: Store) {
    let server = Server::start(store).await;
    let key = server.key("k").await;
    server.register(&key, "a").await;
    server.register(&key, "b").await;
    server.register(&key, "a").await;
    let keys = server.get("/api/keys").key(&key).await.list();
    let mine = keys.iter().find(|row| row["id"] == key.id.as_str()).expect("listed");
    assert_eq!(mine["agentCount"], 2);
}
