//! Where the agent stands as far as this machine knows: the server's last word less what was spent since.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::money::MicroUsd;
use crate::standing::{AgentStatus, SurvivalTier, Thresholds};

/// The last known standing less local spending since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalStanding {
    /// The tier by the balance below.
    pub survival_tier: SurvivalTier,
    /// As the server last said.
    pub status: AgentStatus,
    /// The server's last figure less what was spent here and is not yet in it.
    pub credits: MicroUsd,
    /// Credits were given at least once.
    pub funded: bool,
    /// Until when an agent that was never funded lives.
    pub grace_until: Option<DateTime<Utc>>,
    /// Effective, seconds.
    pub heartbeat_interval: u32,
    /// Ended for good by the operator or the owner.
    pub killed: bool,
    /// False until the server has been heard once in the life of the state directory.
    pub known: bool,
    /// When the server last said it.
    pub as_of: Option<DateTime<Utc>>,
    /// Where the tiers begin, as the server last said.
    pub thresholds: Thresholds,
}
