//! Commands for an agent's daemon.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::api::attached::Attached;
use crate::ids::CommandId;

/// The closed list of commands. There is no remote shell; none can raise a spending limit.
pub const KINDS: [&str; 9] = [
    "restart_agent",
    "stop_agent",
    "start_agent",
    "set_interval",
    "set_model",
    "pause_payments",
    "resume_payments",
    "sweep",
    "collect_diagnostics",
];

/// Asks for a command.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewCommand {
    /// One of [`KINDS`].
    pub kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<Attached>,
    /// How long it may wait to be delivered, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u32>,
}

/// A command, whole.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Command {
    pub id: CommandId,
    pub kind: String,
    pub args: Attached,
    /// queued, delivered, done, failed, expired. An expired command stays expired, also when its daemon reports
    /// later how it ended; `result` then says so.
    pub status: String,
    pub created_at: DateTime<Utc>,
    pub expires_at: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
}
