//! `[chain]`, `[pay]` and `[topup]`: where the wallet's money is, and what it may be used for.

use anyhow::{Context as _, bail};
use otonix_sdk::ids::AgentId;
use otonix_sdk::pay::topup::TopupRules;
use otonix_sdk::pay::{Rules, origin_of};
use otonix_sdk::wallet::{EvmAddress, parse_address};
use otonix_sdk::x402::network;
use serde::Deserialize;

use super::{Config, Usdc, values::List};

/// `[chain]`: where the wallet's money is.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChainSection {
    /// Addresses of nodes, tried one after the other: a list, or a text with commas. None: nothing is paid.
    pub rpc: List,
    /// The chain's id.
    pub id: u64,
    /// The token's contract; USDC on Base when absent.
    pub asset: Option<String>,
}

impl Default for ChainSection {
    fn default() -> Self {
        Self { rpc: List::default(), id: network::BASE, asset: None }
    }
}

impl ChainSection {
    /// The token.
    ///
    /// # Errors
    /// When it is no address, or is not said for another chain than Base.
    pub fn token(&self) -> anyhow::Result<EvmAddress> {
        let text = match &self.asset {
            Some(text) => text,
            None if self.id == network::BASE => network::USDC_ON_BASE,
            None => bail!("`chain.asset` must be said for the chain {}", self.id),
        };
        parse_address(text).with_context(|| format!("`chain.asset` {text}"))
    }
}

impl Config {
    /// What the wallet may be used for.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn pay_rules(&self) -> anyhow::Result<Rules> {
        let server = super::check_server(&self.link.server)?;
        let url = server.as_str().parse().context("`link.server`")?;
        let agent = self.agent.id.map_or_else(String::new, |id: AgentId| id.to_string());
        Ok(Rules {
            max_payment: self.pay.max_payment.get(),
            max_hour: self.pay.max_hour.get(),
            max_day: self.pay.max_day.get(),
            reserve: self.pay.reserve.get(),
            hosts: self.pay.hosts.0.clone(),
            essential: self.pay.essential.0.clone(),
            topup_max_day: self.topup.max_day.get(),
            server: origin_of(&url),
            topup_path: format!("/api/agents/{agent}/topup"),
            chain_id: self.chain.id,
            asset: self.chain.token()?,
        })
    }

    /// When credits are bought.
    pub const fn topup_rules(&self) -> TopupRules {
        TopupRules { below: self.topup.below.get(), amount: self.topup.amount.get() }
    }
}

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
    /// Hosts that may be paid: a list, or a text with commas; `*`: any. The configured control plane always may.
    pub hosts: List,
    /// Hosts that may be paid in the tier `critical`.
    pub essential: List,
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
            hosts: List::default(),
            essential: List::default(),
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
