//! Agents: registration, heartbeat, grants, kills.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, KeyId, OwnerId};
use crate::money::{Amount, MicroUsd};
use crate::standing::{AgentStatus, SurvivalTier};

/// Asks for an agent; the same owner and name get the same agent.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegisterAgent {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vps_ip: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wallet_address: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wallet_proof: Option<WalletProof>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis_prompt: Option<String>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval: Option<u32>,
}

/// Shows that the sender holds the wallet: EIP-191 over [`WalletProof::message`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WalletProof {
    /// 0x and 65 bytes in hex.
    pub signature: String,
    /// When it was signed.
    pub unix_time: i64,
}

impl WalletProof {
    /// The text that is signed.
    pub fn message(address: &str, name: &str, public_url: &str, unix_time: i64) -> String {
        format!("Otonix wallet {address} for {name} at {public_url} {unix_time}")
    }
}

/// An agent, whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    pub id: AgentId,
    pub name: String,
    pub status: AgentStatus,
    pub survival_tier: SurvivalTier,
    pub credits: MicroUsd,
    pub wallet_address: Option<String>,
    pub wallet_proven: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis_prompt: Option<Option<String>>,
    pub model: String,
    /// Seconds, as registered.
    pub heartbeat_interval: u32,
    pub last_heartbeat: Option<DateTime<Utc>>,
    pub api_key_id: Option<KeyId>,
    pub owner_id: OwnerId,
    pub vps_ip: Option<String>,
    pub total_actions: i64,
    /// The same number as `total_actions`.
    pub actions_count: i64,
    pub children_count: i64,
    pub parent_id: Option<AgentId>,
    /// SHA-256 (hex) of the laws it was born with.
    #[serde(default)]
    pub laws_sha256: Option<String>,
    /// What its enrolment token said of it.
    #[serde(default)]
    pub tag: Option<String>,
    pub funded: bool,
    pub grace_until: Option<DateTime<Utc>>,
    pub killed_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

/// The answer to a registration.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registered {
    pub success: bool,
    pub agent: Agent,
    pub monitoring: Monitoring,
    pub message: String,
    /// The private key of a wallet made by the server; shown once, never stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wallet_private_key: Option<Option<String>>,
    /// Set in a repeated answer that once held a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_shown: Option<bool>,
}

/// Where an agent reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Monitoring {
    pub heartbeat_endpoint: String,
    pub actions_endpoint: String,
    pub status_endpoint: String,
}

/// The answer to a heartbeat.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HeartbeatAck {
    pub received: bool,
    pub agent_id: AgentId,
    pub next_expected: DateTime<Utc>,
    pub survival_tier: SurvivalTier,
    pub credits: MicroUsd,
    pub funded: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_until: Option<DateTime<Utc>>,
    /// Effective, seconds.
    pub heartbeat_interval: u32,
}

/// Gives credits.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Grant {
    pub amount: Amount,
    pub reason: String,
}

/// Credits were given.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Granted {
    pub agent_id: AgentId,
    pub credited: MicroUsd,
    pub credits: MicroUsd,
    pub survival_tier: SurvivalTier,
}

/// Ends an agent for good.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kill {
    /// Also all its descendants.
    #[serde(default)]
    pub subtree: Option<bool>,
    pub reason: String,
}

/// Agents were killed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Killed {
    pub killed: u64,
}
