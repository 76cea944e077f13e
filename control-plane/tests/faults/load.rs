//! REST clients that write, remember what they were told, and afterwards hold the server to it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use otonix_sdk::money::MicroUsd;
use rand::Rng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::support::{Agent, Answer, Call, Server};

/// How often an unanswered write is asked for again.
const SETTLE_TRIES: usize = 200;
/// A pause after a refusal.
const PAUSE: Duration = Duration::from_millis(50);

/// What kind of write it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Action,
    Usage,
    Grant,
}

/// One write, and what its client knows of it.
#[derive(Debug, Clone)]
pub struct Write {
    pub kind: Kind,
    /// Unique: it is looked for afterwards.
    pub name: String,
    pub micros: i64,
    pub idempotency_key: Option<String>,
    /// Answered with success; otherwise perhaps done.
    pub acknowledged: bool,
}

/// A client that writes for one agent.
#[derive(Debug, Clone)]
pub struct Client {
    pub agent: Agent,
    pub writes: Vec<Write>,
    name: String,
    addr: SocketAddr,
    operator: String,
    chance: StdRng,
    /// Refusals with 503.
    pub refused: usize,
}

/// What came of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// 503: perhaps done.
    Refused,
    /// No answer: perhaps done.
    Lost,
}

impl Client {
    /// A client of a server, with a name that no other has.
    pub fn new(server: &Server, agent: &Agent, name: &str, chance: StdRng) -> Self {
        Self {
            agent: agent.clone(),
            writes: Vec::new(),
            name: name.to_owned(),
            addr: server.addr,
            operator: server.operator.clone(),
            chance,
            refused: 0,
        }
    }

    /// A write of a random kind, with or without an idempotency key.
    pub fn next(&mut self) -> Write {
        let kind = match self.chance.random_range(0..10) {
            0..4 => Kind::Action,
            4..8 => Kind::Usage,
            _ => Kind::Grant,
        };
        let name = format!("{}-{}", self.name, self.writes.len());
        let micros = match kind {
            Kind::Action => 0,
            Kind::Usage | Kind::Grant => self.chance.random_range(1..3_000_000),
        };
        let idempotency_key = self.chance.random_bool(0.5).then(|| format!("key-{name}"));
        Write { kind, name, micros, idempotency_key, acknowledged: false }
    }

    /// The request of a write.
    pub fn call(&self, write: &Write) -> Call {
        let amount = MicroUsd::from_micros(write.micros).to_string();
        let call = match write.kind {
            Kind::Action => Call::new(self.addr, "POST", &self.agent.path("actions"))
                .key(&self.agent.key)
                .json(json!({"action": write.name, "category": "system"})),
            Kind::Usage => {
                let body =
                    json!({"model": write.name, "tokensIn": 1, "cost": amount, "agentId": self.agent.id});
                Call::new(self.addr, "POST", "/api/compute-logs").key(&self.agent.key).json(body)
            }
            Kind::Grant => Call::new(self.addr, "POST", &self.agent.path("grant"))
                .operator(&self.operator)
                .json(json!({"amount": amount, "reason": write.name})),
        };
        match &write.idempotency_key {
            Some(key) => call.once(key),
            None => call,
        }
    }

    /// Sends one write and notes what was told.
    pub async fn write(&mut self) -> Outcome {
        let write = self.next();
        let outcome = outcome(&write, self.call(&write).attempt().await);
        self.refused += usize::from(outcome == Outcome::Refused);
        self.writes.push(Write { acknowledged: outcome == Outcome::Done, ..write });
        outcome
    }

    /// Writes until the server is gone.
    pub async fn until_lost(mut self) -> Self {
        while self.write().await != Outcome::Lost {}
        self
    }

    /// Writes until told to stop, whatever happens.
    pub async fn until_stopped(mut self, stop: CancellationToken) -> Self {
        while !stop.is_cancelled() {
            if self.write().await != Outcome::Done {
                tokio::time::sleep(PAUSE).await;
            }
        }
        self
    }

    /// Asks again, with the same keys, for what was not answered: now it must be.
    pub async fn settle(&mut self) {
        for at in 0..self.writes.len() {
            let write = self.writes[at].clone();
            if write.acknowledged || write.idempotency_key.is_none() {
                continue;
            }
            let mut tries = 0;
            while outcome(&write, self.call(&write).attempt().await) != Outcome::Done {
                tries += 1;
                assert!(tries < SETTLE_TRIES, "never answered: {write:?}");
                tokio::time::sleep(PAUSE).await;
            }
            self.writes[at].acknowledged = true;
        }
    }

    /// How many writes were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.writes.iter().filter(|write| write.acknowledged).count()
    }
}

/// What an answer means. Anything but success, and a 503 as the contract has it, is wrong.
fn outcome(write: &Write, answer: Result<Answer, String>) -> Outcome {
    let Ok(answer) = answer else { return Outcome::Lost };
    match answer.status {
        201 => Outcome::Done,
        409 if write.idempotency_key.is_some() => {
            answer.refused(409, "idempotency_in_progress");
            Outcome::Refused
        }
        503 => {
            let wait: Option<u64> = answer.header("retry-after").and_then(|text| text.parse().ok());
            assert!(
                wait.is_some_and(|secs| secs >= 1),
                "a 503 tells when to come back: {:?}",
                answer.headers
            );
            Outcome::Refused
        }
        status => panic!("{status} for {write:?}: {}", answer.text()),
    }
}

fn micros(value: &Value) -> i64 {
    MicroUsd::from_json_text(&value.to_string()).expect("an amount").micros()
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_else(|| panic!("no {field}: {row}"))
}

fn counts<'a>(rows: &'a [Value], field: &str) -> HashMap<&'a str, usize> {
    let mut counts = HashMap::new();
    for row in rows {
        *counts.entry(text(row, field)).or_insert(0) += 1;
    }
    counts
}

/// Everything that the server has of one agent.
pub struct Stored {
    pub actions: Vec<Value>,
    pub usage: Vec<Value>,
    pub ledger: Vec<Value>,
    pub grants: Vec<Value>,
    pub shown: Value,
}

impl Stored {
    /// Reads it.
    pub async fn read(server: &Server, agent: &Agent) -> Self {
        let list = async |path: &str| server.all(&agent.key, path).await;
        let of_agent = |route: &str| format!("{route}?limit=1000&agentId={}", agent.id);
        Self {
            actions: list(&agent.path("actions?limit=1000")).await,
            usage: list(&of_agent("/api/compute-logs")).await,
            ledger: list(&agent.path("ledger?limit=1000")).await,
            grants: list(&of_agent("/api/transactions")).await,
            shown: server.look(agent).await,
        }
    }

    /// The books of this agent: each usage record and each grant is one transfer, and the balance is their sum.
    pub fn check_books(&self) {
        let spent: i64 = self.usage.iter().map(|row| micros(&row["cost"])).sum();
        let given: i64 = self.grants.iter().map(|row| micros(&row["amount"])).sum();
        assert_eq!(micros(&self.shown["credits"]), given - spent, "balance = grants - usage: {}", self.shown);
        let by_ledger: i64 = self.ledger.iter().map(|row| micros(&row["amount"])).sum();
        assert_eq!(by_ledger, given - spent, "the ledger says the same");
        let references = counts(&self.ledger, "ref");
        let costly = self.usage.iter().filter(|row| micros(&row["cost"]) > 0);
        let rows: Vec<&Value> = costly.chain(&self.grants).collect();
        for row in &rows {
            assert_eq!(references.get(text(row, "id")), Some(&1), "one transfer of {row}");
        }
        assert_eq!(self.ledger.len(), rows.len(), "and no other transfer");
    }
}

/// Holds the server to what it told these clients: what was acknowledged is there once, what was not at most once,
/// nothing else is, and the books balance. Gives back how many writes are there.
pub async fn verify(server: &Server, clients: &[Client]) -> usize {
    let mut agents: Vec<&Agent> = clients.iter().map(|client| &client.agent).collect();
    agents.sort_by(|a, b| a.id.cmp(&b.id));
    agents.dedup_by(|a, b| a.id == b.id);
    let mut found = 0;
    for agent in agents {
        let stored = Stored::read(server, agent).await;
        let actions = counts(&stored.actions, "action");
        let usage = counts(&stored.usage, "model");
        let grants = counts(&stored.grants, "description");
        for client in clients.iter().filter(|client| client.agent.id == agent.id) {
            for write in &client.writes {
                let there = match write.kind {
                    Kind::Action => &actions,
                    Kind::Usage => &usage,
                    Kind::Grant => &grants,
                };
                let count = there.get(write.name.as_str()).copied().unwrap_or(0);
                let right = if write.acknowledged { count == 1 } else { count <= 1 };
                assert!(right, "{count} times there: {write:?}");
                found += count;
            }
        }
        stored.check_books();
    }
    server.audit();
    found
}
