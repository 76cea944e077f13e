//! The daemon's local API, for the agent's own process.

use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, EventId};
use crate::money::MicroUsd;
use crate::standing::SurvivalTier;

/// `GET /v1/status`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalStatus {
    pub agent_id: AgentId,
    pub connected: bool,
    pub survival_tier: SurvivalTier,
    pub credits: MicroUsd,
    pub funded: bool,
    pub model: String,
    pub wallet_address: Option<String>,
    pub spool: SpoolStatus,
    pub payments_paused: bool,
    /// State of the supervised process: none, starting, running, backoff, stopped, stalled.
    pub agent_process: String,
    /// Why the server takes nothing from this agent, as an error code: `agent_killed` for good, `revoked_key` or
    /// `unknown_key` until there is another key.
    #[serde(default)]
    pub refused: Option<String>,
}

/// What waits to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SpoolStatus {
    /// Events not yet acknowledged.
    pub pending: u64,
    /// Bytes on disk.
    pub bytes: u64,
    /// Records that could not be read any more.
    pub damaged: u64,
    /// Events that the server will never store, kept in the reject file.
    #[serde(default)]
    pub rejected: u64,
}

/// The answer to an accepted action or usage record: it is on disk.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Accepted {
    pub id: EventId,
}

/// `GET /v1/model`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelChoice {
    pub model: String,
    pub reason: String,
}
