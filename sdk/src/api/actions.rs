//! What agents did.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, EventId};

/// Logs an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogAction {
    pub action: String,
    /// A slug of 1-64 characters; the API's own are system, compute, domain, payment.
    pub category: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<String>,
    /// completed (the default), failed, pending
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autonomous: Option<bool>,
}

/// An action just logged.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ActionLogged {
    pub success: bool,
    pub action_id: EventId,
    #[serde(flatten)]
    pub action: Action,
    pub timestamp: DateTime<Utc>,
}

/// An action, whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Action {
    pub id: EventId,
    pub agent_id: AgentId,
    pub action: String,
    pub category: String,
    pub details: Option<String>,
    pub status: String,
    pub autonomous: bool,
    pub created_at: DateTime<Utc>,
}

/// An action in the list of all.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FeedAction {
    #[serde(flatten)]
    pub action: Action,
    /// The same as `action`.
    pub message: String,
    /// The same as `createdAt`.
    pub timestamp: DateTime<Utc>,
}
