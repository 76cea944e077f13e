//! Guarded mode shows a stranger that rows are there, and nothing that would help to find their owners.

use serde_json::{Value, json};

use crate::support::{Server, Store, on_each_store};

on_each_store!(a_stranger_sees_sanitised_rows, an_owner_sees_its_rows_in_full);

const WALLET: &str = "0x2a18fedcba9876543210fedcba9876543210461d";
const SECRETS: [&str; 8] = [
    "fedcba9876543210",
    "FEDCBA9876543210",
    "45.67.89",
    "89.10",
    "2001:db8:7777",
    "8888",
    "the secret plan",
    "10.9.8.7",
];

async fn filled(store: Store) -> (Server, crate::support::Agent) {
    let server = Server::with(store).await.guarded().start().await;
    let key = server.key("k").await;
    let body = json!({
        "name": "a", "walletAddress": WALLET, "vpsIp": "45.67.89.10", "genesisPrompt": "the secret plan",
    });
    let agent = server.register_with(&key, body).await;
    for (name, ip) in [("v4", "45.67.89.10"), ("v6", "2001:db8:7777:8888::1")] {
        let body = json!({"name": name, "ipAddress": ip, "agentId": agent.id});
        server.post("/api/sandboxes").key(&key).json(body).await.ok(201);
    }
    let records = json!([{"type": "A", "name": "@", "value": "10.9.8.7", "ttl": 300}]);
    let body = json!({"name": "x.example", "dnsRecords": records});
    server.post("/api/domains").key(&key).json(body).await.ok(201);
    let body = json!({"type": "debit", "amount": 1, "fromAddress": WALLET, "toAddress": WALLET});
    server.post("/api/transactions").key(&key).json(body).await.ok(201);
    (server, agent)
}

fn lower(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_lowercase()
}

async fn a_stranger_sees_sanitised_rows(store: Store) {
    let (server, agent) = filled(store).await;
    for path in ["/api/agents", "/api/sandboxes", "/api/domains", "/api/transactions"] {
        let answer = server.get(path).await;
        assert!(!answer.list().is_empty(), "{path}");
        for secret in SECRETS {
            assert!(!answer.text().contains(secret), "{path} shows {secret}: {}", answer.text());
        }
        assert!(!answer.text().contains(&agent.key.secret));
    }
    let agents = server.get("/api/agents").await.list();
    assert_eq!(lower(&agents[0]["walletAddress"]), "0x2a18****461d");
    assert_eq!(agents[0]["vpsIp"], "45.67.*.*");
    assert!(agents[0].get("genesisPrompt").is_none(), "left out: {}", agents[0]);
    assert_eq!(agents[0]["name"], "a");
    let sandboxes = server.get("/api/sandboxes").await.list();
    assert_eq!(sandboxes[1]["ipAddress"], "45.67.*.*");
    assert!(lower(&sandboxes[0]["ipAddress"]).starts_with("2001:db8"), "{}", sandboxes[0]);
    assert_eq!(server.get("/api/domains").await.list()[0]["dnsRecords"], json!([]));
    let transactions = server.get("/api/transactions").await.list();
    assert_eq!(lower(&transactions[0]["fromAddress"]), "0x2a18****461d");
    assert_eq!(lower(&transactions[0]["toAddress"]), "0x2a18****461d");
    // Pages of a list are sanitised like the first.
    let first = server.get("/api/sandboxes?limit=1").await;
    let second = server.get(&first.next_page().expect("another")).await;
    assert!(!second.text().contains("45.67.89"));
}

async fn an_owner_sees_its_rows_in_full(store: Store) {
    let (server, agent) = filled(store).await;
    let stranger = server.key("s").await;
    for path in ["/api/agents", "/api/sandboxes", "/api/domains", "/api/transactions"] {
        let mine = server.get(path).key(&agent.key).await;
        assert!(!mine.text().contains("****") && !mine.text().contains("*.*"), "{}", mine.text());
        let all = server.as_operator("GET", path).await;
        assert_eq!(mine.list(), all.list(), "{path}");
        let theirs = server.get(path).key(&stranger).await;
        for secret in SECRETS {
            assert!(!theirs.text().contains(secret), "{path} shows {secret}: {}", theirs.text());
        }
    }
    let shown = server.look(&agent).await;
    assert_eq!((lower(&shown["walletAddress"]).as_str(), &shown["vpsIp"]), (WALLET, &json!("45.67.89.10")));
    assert_eq!(shown["genesisPrompt"], "the secret plan");
}
