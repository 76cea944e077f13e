//! `[pay]` and `[topup]`: what the wallet may be used for.

use serde::Deserialize;

use super::Usdc;

/// `[pay]`: what may be paid.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PaySection {
    /// Most for one payment.
    pub max_payment: Usdc,
    /// Most in any hour.
    pub max_hour: Usdc,
    /// Most in any day.
    pub max_day: Usdc,
    /// Never spent.
    pub reserve: Usdc,
    /// Hosts that may be paid; `*`: any. The configured control plane always may.
    pub hosts: Vec<String>,
    /// Hosts that may be paid in the tier `critical`.
    pub essential: Vec<String>,
    /// Private and link-local addresses may be paid.
    pub allow_private_addresses: bool,
    /// The agent's process may pay while it has the daemon's own user id.
    pub allow_shared_uid: bool,
    /// No payments at all, until the machine's owner says otherwise. No command lifts it.
    pub paused: bool,
}

impl Default for PaySection {
    fn default() -> Self {
        Self {
            max_payment: Usdc::whole(1),
            max_hour: Usdc::whole(5),
            max_day: Usdc::whole(20),
            reserve: Usdc::whole(0),
            hosts: Vec::new(),
            essential: Vec::new(),
            allow_private_addresses: false,
            allow_shared_uid: false,
            paused: false,
        }
    }
}

/// `[topup]`: when credits are bought.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TopupSection {
    /// When credits fall below this.
    pub below: Usdc,
    /// How much.
    pub amount: Usdc,
    /// Most in any day.
    pub max_day: Usdc,
}

impl Default for TopupSection {
    fn default() -> Self {
        Self { below: Usdc::whole(12), amount: Usdc::whole(10), max_day: Usdc::whole(20) }
    }
}
