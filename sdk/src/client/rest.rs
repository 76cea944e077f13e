//! The routes of the contract, one method each.

use chrono::{DateTime, SecondsFormat, Utc};
use reqwest::Method;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ClientError;
use super::http::{Call, Client, encode};
use crate::api::actions::{Action, ActionLogged, FeedAction, LogAction};
use crate::api::agents::{Agent, Grant, Granted, HeartbeatAck, Kill, Killed, RegisterAgent, Registered};
use crate::api::commands::{Command, NewCommand};
use crate::api::enrolment::{ChildBorn, Enrol, Enrolled, EnrolmentToken, Laws, NewChild, NewEnrolmentToken};
use crate::api::events::{EventsAck, PostEvents};
use crate::api::keys::{GenerateKey, Key, KeyRevoked, NewKey};
use crate::api::ledger::LedgerEntry;
use crate::api::records::{Domain, NewDomain, NewSandbox, NewTransaction, Sandbox, Transaction};
use crate::api::usage::{ComputeLog, LogUsage};
use crate::ids::{AgentId, DomainId, KeyId, SandboxId};
use crate::prices::PriceTable;

/// Which rows of a list, newest first.
#[derive(Debug, Clone, Default)]
pub struct ListQuery {
    /// Rows in one page, at most 1000; the server's default is 100.
    pub limit: Option<u32>,
    /// [`Page::next`] of the page before.
    pub cursor: Option<String>,
    /// Only this agent's.
    pub agent_id: Option<AgentId>,
    /// Only of this status.
    pub status: Option<String>,
    /// Only of this category.
    pub category: Option<String>,
    /// Not older than this.
    pub since: Option<DateTime<Utc>>,
    /// Older than this.
    pub until: Option<DateTime<Utc>>,
}

impl ListQuery {
    /// The page after one.
    #[must_use]
    pub fn after(&self, cursor: &str) -> Self {
        Self { cursor: Some(cursor.to_owned()), ..self.clone() }
    }

    fn pairs(&self) -> Vec<(&'static str, String)> {
        let time = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Micros, true);
        let pairs = [
            ("limit", self.limit.map(|limit| limit.to_string())),
            ("cursor", self.cursor.clone()),
            ("agentId", self.agent_id.map(|id| id.to_string())),
            ("status", self.status.clone()),
            ("category", self.category.clone()),
            ("since", self.since.map(time)),
            ("until", self.until.map(time)),
        ];
        pairs.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Where the next page begins; `None` at the end.
    pub next: Option<String>,
}

#[derive(Deserialize)]
struct WrappedPrices {
    prices: PriceTable,
}

/// Every method's error is a [`ClientError`]; see there which may be tried again.
#[expect(clippy::missing_errors_doc, reason = "said once, above")]
impl Client {
    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let call = Call { method: Method::GET, path, query: &[], body: None, keyed: false };
        self.send(call).await?.json()
    }

    async fn list<T: DeserializeOwned>(&self, path: &str, query: &ListQuery) -> Result<Page<T>, ClientError> {
        let query = query.pairs();
        let call = Call { method: Method::GET, path, query: &query, body: None, keyed: false };
        let answer = self.send(call).await?;
        Ok(Page { items: answer.json()?, next: answer.next })
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        let call = Call { method: Method::POST, path, query: &[], body: encode(body)?, keyed: true };
        self.send(call).await?.json()
    }

    /// Makes a key; the only time it is shown.
    pub async fn generate_key(&self, key: &GenerateKey) -> Result<NewKey, ClientError> {
        self.post("/api/keys/generate", key).await
    }

    /// Keys, masked.
    pub async fn keys(&self, query: &ListQuery) -> Result<Page<Key>, ClientError> {
        self.list("/api/keys", query).await
    }

    /// Revokes a key, and with `descendants` the keys it made. Never repeated by itself.
    pub async fn revoke_key(&self, id: KeyId, descendants: bool) -> Result<KeyRevoked, ClientError> {
        let query = [("descendants", "true".to_owned())];
        let query = if descendants { query.as_slice() } else { &[] };
        let path = format!("/api/keys/{id}");
        let call = Call { method: Method::DELETE, path: &path, query, body: None, keyed: false };
        self.send(call).await?.json()
    }

    /// Registers an agent; the same owner and name get the same agent.
    pub async fn register_agent(&self, agent: &RegisterAgent) -> Result<Registered, ClientError> {
        self.post("/api/agents/register", agent).await
    }

    /// One agent.
    pub async fn agent(&self, id: AgentId) -> Result<Agent, ClientError> {
        self.get(&format!("/api/agents/{id}")).await
    }

    /// Agents.
    pub async fn agents(&self, query: &ListQuery) -> Result<Page<Agent>, ClientError> {
        self.list("/api/agents", query).await
    }

    /// Tells that an agent is alive.
    pub async fn heartbeat(&self, id: AgentId) -> Result<HeartbeatAck, ClientError> {
        let path = format!("/api/agents/{id}/heartbeat");
        let call = Call { method: Method::POST, path: &path, query: &[], body: None, keyed: true };
        self.send(call).await?.json()
    }

    /// Logs an action.
    pub async fn log_action(&self, id: AgentId, action: &LogAction) -> Result<ActionLogged, ClientError> {
        self.post(&format!("/api/agents/{id}/actions"), action).await
    }

    /// One agent's actions.
    pub async fn actions(&self, id: AgentId, query: &ListQuery) -> Result<Page<Action>, ClientError> {
        self.list(&format!("/api/agents/{id}/actions"), query).await
    }

    /// The actions of all agents.
    pub async fn agent_actions(&self, query: &ListQuery) -> Result<Page<FeedAction>, ClientError> {
        self.list("/api/agent-actions", query).await
    }

    /// Records a model call.
    pub async fn log_usage(&self, usage: &LogUsage) -> Result<ComputeLog, ClientError> {
        self.post("/api/compute-logs", usage).await
    }

    /// Model calls.
    pub async fn compute_logs(&self, query: &ListQuery) -> Result<Page<ComputeLog>, ClientError> {
        self.list("/api/compute-logs", query).await
    }

    /// Records a server.
    pub async fn create_sandbox(&self, sandbox: &NewSandbox) -> Result<Sandbox, ClientError> {
        self.post("/api/sandboxes", sandbox).await
    }

    /// Servers.
    pub async fn sandboxes(&self, query: &ListQuery) -> Result<Page<Sandbox>, ClientError> {
        self.list("/api/sandboxes", query).await
    }

    /// One server.
    pub async fn sandbox(&self, id: SandboxId) -> Result<Sandbox, ClientError> {
        self.get(&format!("/api/sandboxes/{id}")).await
    }

    /// Records a domain.
    pub async fn create_domain(&self, domain: &NewDomain) -> Result<Domain, ClientError> {
        self.post("/api/domains", domain).await
    }

    /// Domains.
    pub async fn domains(&self, query: &ListQuery) -> Result<Page<Domain>, ClientError> {
        self.list("/api/domains", query).await
    }

    /// One domain.
    pub async fn domain(&self, id: DomainId) -> Result<Domain, ClientError> {
        self.get(&format!("/api/domains/{id}")).await
    }

    /// Records a movement of money: a claim that moves nothing.
    pub async fn create_transaction(&self, transaction: &NewTransaction) -> Result<Transaction, ClientError> {
        self.post("/api/transactions", transaction).await
    }

    /// Movements of money.
    pub async fn transactions(&self, query: &ListQuery) -> Result<Page<Transaction>, ClientError> {
        self.list("/api/transactions", query).await
    }

    /// Gives an agent credits (operator).
    pub async fn grant(&self, id: AgentId, grant: &Grant) -> Result<Granted, ClientError> {
        self.post(&format!("/api/agents/{id}/grant"), grant).await
    }

    /// Makes an enrolment token; the only time it is shown.
    pub async fn create_enrolment_token(
        &self,
        token: &NewEnrolmentToken,
    ) -> Result<EnrolmentToken, ClientError> {
        self.post("/api/enrolment-tokens", token).await
    }

    /// Enrols this machine. When the answer was lost and a repeat has no key, asking anew gives another one.
    pub async fn enrol(&self, enrol: &Enrol) -> Result<Enrolled, ClientError> {
        self.post("/api/enrol", enrol).await
    }

    /// Makes a child of an agent, paid from the agent's credits.
    pub async fn create_child(&self, parent: AgentId, child: &NewChild) -> Result<ChildBorn, ClientError> {
        self.post(&format!("/api/agents/{parent}/children"), child).await
    }

    /// The operator's laws of a SHA-256 in hex.
    pub async fn laws(&self, sha256: &str) -> Result<Laws, ClientError> {
        self.get(&format!("/api/laws/{sha256}")).await
    }

    /// Ends an agent for good.
    pub async fn kill(&self, id: AgentId, kill: &Kill) -> Result<Killed, ClientError> {
        self.post(&format!("/api/agents/{id}/kill"), kill).await
    }

    /// Queues a command for an agent's daemon.
    pub async fn send_command(&self, id: AgentId, command: &NewCommand) -> Result<Command, ClientError> {
        self.post(&format!("/api/agents/{id}/commands"), command).await
    }

    /// An agent's commands.
    pub async fn commands(&self, id: AgentId, query: &ListQuery) -> Result<Page<Command>, ClientError> {
        self.list(&format!("/api/agents/{id}/commands"), query).await
    }

    /// An agent's account, line by line.
    pub async fn ledger(&self, id: AgentId, query: &ListQuery) -> Result<Page<LedgerEntry>, ClientError> {
        self.list(&format!("/api/agents/{id}/ledger"), query).await
    }

    /// Sends a run of events, as the session does.
    pub async fn post_events<E: Serialize + Sync>(
        &self,
        id: AgentId,
        events: &PostEvents<E>,
    ) -> Result<EventsAck, ClientError> {
        self.post(&format!("/api/agents/{id}/events"), events).await
    }

    /// What model calls cost.
    pub async fn price_table(&self) -> Result<PriceTable, ClientError> {
        let call =
            Call { method: Method::GET, path: "/api/price-table", query: &[], body: None, keyed: false };
        let answer = self.send(call).await?;
        // With its version beside it, or the table alone.
        match answer.json::<WrappedPrices>() {
            Ok(wrapped) => Ok(wrapped.prices),
            Err(_) => answer.json(),
        }
    }

    /// Whether the server is ready to serve. Tried once.
    pub async fn readyz(&self) -> Result<(), ClientError> {
        let call = Call { method: Method::GET, path: "/readyz", query: &[], body: None, keyed: false };
        self.with_retry(super::RetryPolicy::NEVER).send(call).await.map(|_| ())
    }
}
