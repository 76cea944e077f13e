//! Machines that enrol by a one-time token, children of agents, and the operator's laws.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::api::agents::{Agent, WalletProof};
use crate::ids::{AgentId, EnrolmentTokenId, KeyId, OwnerId};
use crate::money::{Amount, MicroUsd};

/// Asks for an enrolment token.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewEnrolmentToken {
    /// How long it may be used, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
    /// How many machines may enrol by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uses: Option<u32>,
    /// A word that every agent made by it carries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Credits for every agent made by it; the operator's to give.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Amount>,
    /// The agent that enrols, when it is there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<AgentId>,
    /// With `agentId`: the machine may bring another wallet than the agent has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_wallet: Option<bool>,
    /// The name of the agent made by it; without one the machine names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis_prompt: Option<String>,
    /// Whose agents they will be; only the operator may name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<OwnerId>,
}

/// An enrolment token; the token itself is shown only when it is made.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnrolmentToken {
    pub id: EnrolmentTokenId,
    /// `null` when this is a repeated answer.
    pub token: Option<String>,
    pub owner_id: OwnerId,
    pub agent_id: Option<AgentId>,
    pub name: Option<String>,
    pub tag: Option<String>,
    pub grant: MicroUsd,
    pub uses: u32,
    pub uses_left: u32,
    pub expires_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
    /// Set in a repeated answer: the token was shown before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_shown: Option<bool>,
}

/// Enrols a machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrol {
    pub token: String,
    pub wallet_address: String,
    /// Over the agent's name where the machine knows it, else over the token in the name's place.
    pub wallet_proof: WalletProof,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vps_ip: Option<String>,
    /// Seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat_interval: Option<u32>,
}

/// A machine has enrolled.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrolled {
    pub agent: Agent,
    /// The agent's own key; `null` when this is a repeated answer.
    pub key: Option<String>,
    pub key_id: KeyId,
    /// Set in a repeated answer: the key was shown before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_shown: Option<bool>,
}

/// Asks for a child.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewChild {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub genesis_prompt: Option<String>,
    /// Credits that the parent gives it.
    pub budget: Amount,
    /// The parent's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A server to buy for it, as in an order for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Value>,
}

/// A child was born.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChildBorn {
    pub agent: Agent,
    pub budget: MicroUsd,
    /// By which its machine enrols; `null` when this is a repeated answer.
    pub enrolment_token: Option<String>,
    pub expires_at: DateTime<Utc>,
    pub purchase_id: Option<Uuid>,
    /// Set in a repeated answer: the token was shown before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_shown: Option<bool>,
}

/// The operator's laws.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Laws {
    /// Of the text's bytes, hex.
    pub sha256: String,
    pub text: String,
}

impl Laws {
    /// A text as laws.
    pub fn new(text: String) -> Self {
        Self { sha256: hex::encode(Sha256::digest(text.as_bytes())), text }
    }
}
