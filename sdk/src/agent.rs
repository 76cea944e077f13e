//! The whole agent in one type: what the daemon runs and what Rust agents embed.

use std::path::PathBuf;

use tokio::sync::{mpsc, watch};

use crate::api::actions::LogAction;
use crate::api::commands::Command;
use crate::api::events::EventBody;
use crate::api::usage::LogUsage;
use crate::ids::{AgentId, EventId};
use crate::limits::{self, Invalid};
use crate::money::MicroUsd;

pub use crate::link::{LinkStatus, LocalStanding, Secret, Transport, Vitals};

/// What an agent needs to start.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The control plane's address, e.g. `https://otonix.example`; plain http only for loopback.
    pub server: String,
    /// The key sent with every call.
    pub api_key: Secret,
    /// As registered.
    pub agent_id: AgentId,
    /// As registered.
    pub name: String,
    /// Where spool, standing and journals are kept; one agent per directory.
    pub state_dir: PathBuf,
    /// Shown to the server.
    pub wallet_address: Option<String>,
    /// Bound of the spool, bytes.
    pub spool_max_bytes: u64,
    /// How the server is reached.
    pub transport: Transport,
    /// The model in use.
    pub model: String,
    /// Seconds between heartbeats until the server says otherwise.
    pub heartbeat_interval: u32,
    /// The machine's public address, when known.
    pub vps_ip: Option<String>,
    /// The version of the program, for the server's records.
    pub version: String,
}

impl AgentConfig {
    /// The needed parts; everything else at its default.
    pub fn new(
        server: impl Into<String>,
        api_key: Secret,
        agent_id: AgentId,
        state_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            server: server.into(),
            api_key,
            agent_id,
            name: String::new(),
            state_dir: state_dir.into(),
            wallet_address: None,
            spool_max_bytes: 256 * 1024 * 1024,
            transport: Transport::Auto,
            model: limits::DEFAULT_MODEL.to_owned(),
            heartbeat_interval: limits::DEFAULT_HEARTBEAT_INTERVAL,
            vps_ip: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration is wrong.
    #[error("configuration: {0}")]
    Config(String),
    /// The state directory cannot be used.
    #[error("state directory: {0}")]
    Io(#[from] std::io::Error),
    /// Another process has the state directory.
    #[error("the state directory is in use by another process")]
    Locked,
}

/// Why something was not recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// A field breaks a bound of the contract.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The idempotency key came with other content before.
    #[error("the idempotency key was used with another request")]
    IdempotencyKeyReused,
    /// The spool is at its bound.
    #[error("the spool is full")]
    SpoolFull,
    /// The disk refused the write.
    #[error("the disk is full")]
    DiskFull,
    /// The agent is shutting down, or its disk fails.
    #[error("the spool is closed")]
    Closed,
}

/// A live agent; a cheap handle.
#[derive(Clone, Debug)]
pub struct Agent {
    standing: watch::Receiver<LocalStanding>,
}

impl Agent {
    /// Opens the state directory and starts the link. Works offline.
    ///
    /// # Errors
    /// [`AgentError`] when the configuration is wrong or the directory cannot be used.
    #[expect(clippy::unused_async, reason = "the spool is opened off the runtime")]
    pub async fn start(config: AgentConfig) -> Result<Self, AgentError> {
        Err(AgentError::Config(format!("not yet: {}", config.name)))
    }

    /// Records what the agent did; returns once it is on disk. The same key and content get the same id.
    ///
    /// # Errors
    /// [`RecordError`]; nothing was recorded.
    #[expect(clippy::unused_async, reason = "waits for the disk")]
    pub async fn log_action(
        &self,
        _action: LogAction,
        _idempotency_key: Option<&str>,
    ) -> Result<EventId, RecordError> {
        Err(RecordError::Closed)
    }

    /// Records a model call; returns once it is on disk. Without a cost the price table's is spent locally.
    ///
    /// # Errors
    /// [`RecordError`]; nothing was recorded.
    #[expect(clippy::unused_async, reason = "waits for the disk")]
    pub async fn log_usage(
        &self,
        _usage: LogUsage,
        _idempotency_key: Option<&str>,
    ) -> Result<EventId, RecordError> {
        Err(RecordError::Closed)
    }

    /// Records any event: tier effects, command results, payments.
    ///
    /// # Errors
    /// [`RecordError`]; nothing was recorded.
    #[expect(clippy::unused_async, reason = "waits for the disk")]
    pub async fn record(&self, _body: EventBody) -> Result<EventId, RecordError> {
        Err(RecordError::Closed)
    }

    /// Where the agent stands: the last known standing less what was spent since.
    pub fn standing(&self) -> LocalStanding {
        *self.standing.borrow()
    }

    /// Changes of the standing.
    pub fn standing_changes(&self) -> watch::Receiver<LocalStanding> {
        self.standing.clone()
    }

    /// The commands for this machine, each once and none expired. `None` when taken before.
    pub fn take_commands(&self) -> Option<mpsc::Receiver<Command>> {
        None
    }

    /// Sets what the next heartbeats say of the machine.
    pub fn set_vitals(&self, _vitals: Vitals) {}

    /// How the link is.
    pub fn status(&self) -> LinkStatus {
        LinkStatus::default()
    }

    /// The list cost of a call by the last known price table; `None` for an unknown model.
    pub fn price_cost(
        &self,
        _model: &str,
        _tokens_in: i64,
        _tokens_out: i64,
        _tokens_cached: i64,
    ) -> Option<MicroUsd> {
        None
    }

    /// The agent's id.
    pub fn id(&self) -> AgentId {
        AgentId::new(uuid::Uuid::nil())
    }

    /// Sends what is waiting, says goodbye and stops; at most 5 s. Later records are refused.
    pub async fn shutdown(&self) {}
}
