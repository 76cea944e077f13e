//! The everyday calls, so that a test reads as what it is about.

use serde_json::{Value, json};

use super::http::Call;
use super::server::Server;

/// A key and its secret.
#[derive(Debug, Clone)]
pub struct Key {
    pub id: String,
    pub secret: String,
    pub owner: String,
}

impl Key {
    /// From the answer that shows it.
    pub fn from_answer(answer: &Value) -> Self {
        let text =
            |field: &str| answer[field].as_str().unwrap_or_else(|| panic!("no {field}: {answer}")).to_owned();
        Self { id: text("id"), secret: text("key"), owner: text("ownerId") }
    }

    /// One that nobody has.
    pub fn unknown() -> Self {
        Self {
            id: String::new(),
            secret: format!("otonix_{}", "0123456789abcdef".repeat(3)),
            owner: String::new(),
        }
    }
}

/// An agent, its key beside it.
#[derive(Debug, Clone)]
pub struct Agent {
    pub id: String,
    pub key: Key,
}

impl Agent {
    /// A path under this agent: `agent.path("heartbeat")`.
    pub fn path(&self, rest: &str) -> String {
        if rest.is_empty() {
            format!("/api/agents/{}", self.id)
        } else {
            format!("/api/agents/{}/{rest}", self.id)
        }
    }
}

impl Server {
    /// A request by the operator.
    pub fn as_operator(&self, method: &str, path: &str) -> Call {
        self.call(method, path).operator(&self.operator)
    }

    /// A key of a new owner.
    pub async fn key(&self, name: &str) -> Key {
        let answer = self.as_operator("POST", "/api/keys/generate").json(json!({"name": name})).await;
        Key::from_answer(&answer.ok(201))
    }

    /// Another key of the same owner.
    pub async fn key_of(&self, key: &Key, name: &str) -> Key {
        let answer = self.post("/api/keys/generate").key(key).json(json!({"name": name})).await;
        Key::from_answer(&answer.ok(201))
    }

    /// Revokes a key.
    pub async fn revoke(&self, key: &Key) {
        self.as_operator("DELETE", &format!("/api/keys/{}", key.id)).await.ok(200);
    }

    /// An agent of the key's owner.
    pub async fn register(&self, key: &Key, name: &str) -> Agent {
        let body = json!({"name": name, "walletAddress": "0x2a18000000000000000000000000000000000461"});
        self.register_with(key, body).await
    }

    /// An agent registered with a body.
    pub async fn register_with(&self, key: &Key, body: Value) -> Agent {
        let answer = self.post("/api/agents/register").key(key).json(body).await.ok(201);
        let id = answer["agent"]["id"].as_str().expect("an id").to_owned();
        Agent { id, key: key.clone() }
    }

    /// A new owner's key and an agent of it.
    pub async fn agent(&self, name: &str) -> Agent {
        let key = self.key(name).await;
        self.register(&key, name).await
    }

    /// The agent as it is shown to its owner.
    pub async fn look(&self, agent: &Agent) -> Value {
        self.get(&agent.path("")).key(&agent.key).await.ok(200)
    }

    /// Gives credits.
    pub async fn grant(&self, agent: &Agent, amount: &str) -> Value {
        let body = json!({"amount": amount, "reason": "test"});
        self.as_operator("POST", &agent.path("grant")).json(body).await.ok(201)
    }

    /// Sends a heartbeat.
    pub async fn beat(&self, agent: &Agent) -> Value {
        self.post(&agent.path("heartbeat")).key(&agent.key).await.ok(200)
    }

    /// Logs a model call of a cost.
    pub async fn spend(&self, agent: &Agent, cost: &str) -> Value {
        let body = json!({"model": "m", "tokensIn": 1, "tokensOut": 1, "cost": cost, "agentId": agent.id});
        self.post("/api/compute-logs").key(&agent.key).json(body).await.ok(201)
    }

    /// Logs an action.
    pub async fn act(&self, agent: &Agent, action: &str) -> Value {
        let body = json!({"action": action, "category": "system"});
        self.post(&agent.path("actions")).key(&agent.key).json(body).await.ok(201)
    }

    /// Ends an agent.
    pub async fn end(&self, agent: &Agent) {
        self.as_operator("POST", &agent.path("kill")).json(json!({"reason": "test"})).await.ok(200);
    }

    /// All rows of a list, page by page.
    pub async fn all(&self, key: &Key, path: &str) -> Vec<Value> {
        let mut rows = Vec::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next {
            let answer = self.get(&path).key(key).await;
            rows.extend(answer.list());
            next = answer.next_page();
        }
        rows
    }
}
