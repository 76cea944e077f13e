//! An agent's account, line by line.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::TransferId;
use crate::money::MicroUsd;

/// One movement of an agent's account.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerEntry {
    pub id: TransferId,
    /// usage, grant, reserve, release, settle, …
    pub kind: String,
    /// Signed: what the account gained or lost.
    pub amount: MicroUsd,
    pub balance_after: MicroUsd,
    /// What it was for, e.g. the id of the usage record.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
    pub created_at: DateTime<Utc>,
}
