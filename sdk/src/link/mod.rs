//! The durable link between an agent's machine and the control plane.
//!
//! What is recorded is on disk before the caller hears of it, and reaches the server exactly once, whatever
//! happens to the machine, the network or the server in between. This module never decides what an agent may do.

mod backoff;
mod commands;
pub(crate) mod core;
mod cursor;
pub mod faults;
mod files;
mod heartbeat;
mod keys;
mod outbox;
mod prices;
pub mod reader;
mod recovery;
mod rejects;
mod rest;
pub(crate) mod run;
mod segment;
mod session;
pub mod spool;
pub mod standing;
mod writer;

use serde::{Deserialize, Serialize};

use crate::api::local::SpoolStatus;

use crate::error::ErrorCode;
use crate::limits::Invalid;

pub use self::core::Tuning;
pub use self::standing::LocalStanding;
pub use crate::secret::Secret;

/// How the server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// The gRPC session; REST while that fails.
    #[default]
    Auto,
    /// Only the gRPC session.
    Grpc,
    /// Only REST.
    Rest,
}

/// How the machine is, for the next heartbeats.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Vitals {
    /// Load average over one minute.
    pub load: f64,
    /// Bytes.
    pub memory_used: u64,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes.
    pub disk_used: u64,
    /// Bytes.
    pub disk_total: u64,
    /// State of the supervised process: none, starting, running, backoff, stopped, stalled.
    pub agent_process: String,
}

/// How the link is.
#[derive(Debug, Clone, Default)]
pub struct LinkStatus {
    /// The server answered and nothing has failed since.
    pub connected: bool,
    /// `Grpc` or `Rest` while connected.
    pub transport: Option<Transport>,
    /// What waits to be sent.
    pub spool: SpoolStatus,
    /// Why the link is down, or was last.
    pub last_error: Option<String>,
    /// Why the server takes nothing from this agent: `AgentKilled` for good, `RevokedKey` or `UnknownKey` until there
    /// is another key.
    pub refused: Option<ErrorCode>,
    /// The life of the spool that the numbers belong to.
    pub epoch: String,
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
    /// The server's price table has no cost for this model, and none was given.
    #[error("`cost` is needed: the price table has no cost for model {0}")]
    UnknownModel(String),
    /// The agent was killed: the server stores nothing of it any more.
    #[error("the agent was killed; nothing of it is stored any more")]
    Killed,
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
