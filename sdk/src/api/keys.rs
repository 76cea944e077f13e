//! API keys.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::{KeyId, OwnerId};

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// Everything of its owner.
    Owner,
    /// One agent's own records.
    Agent,
}

impl KeyKind {
    /// The word used everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Agent => "agent",
        }
    }
}

/// Asks for a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GenerateKey {
    /// Shown in lists.
    pub name: String,
    /// A label; grants nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_wallet: Option<String>,
    /// The owner to join; only the operator may name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_id: Option<OwnerId>,
}

/// A key just made; the only time it is shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewKey {
    pub id: KeyId,
    /// `otonix_` and 48 hex digits; `null` when this is a repeated answer.
    pub key: Option<String>,
    pub key_prefix: String,
    pub name: String,
    pub kind: KeyKind,
    pub owner_id: OwnerId,
    pub owner_wallet: Option<String>,
    pub status: String,
    pub created_at: DateTime<Utc>,
    /// Set in a repeated answer: the key was shown before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_shown: Option<bool>,
}

/// A key in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    pub id: KeyId,
    /// Masked.
    pub key: String,
    pub key_prefix: String,
    pub name: String,
    pub kind: KeyKind,
    pub owner_id: OwnerId,
    pub owner_wallet: Option<String>,
    pub agent_count: i64,
    pub status: String,
    pub created_at: DateTime<Utc>,
}

/// A key was revoked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyRevoked {
    pub id: KeyId,
    pub status: String,
    /// Agents left without an active key.
    pub agents_deactivated: u64,
}
