//! Being paid: top-ups, receipts, paid orders, refunds.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::ids::{AgentId, RefundId, SaleId};
use crate::money::{Amount, MicroUsd};
use crate::standing::SurvivalTier;

/// Buys credits for an agent: the price is the amount.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopUp {
    /// USDC, 0.01 to 10,000.
    pub amount: Amount,
}

/// Proof that a payment was settled and used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentReceipt {
    /// The order.
    pub order_id: String,
    /// Method and path of what was sold.
    pub resource: String,
    /// What arrived on chain.
    pub amount: MicroUsd,
    /// `USDC`.
    pub currency: String,
    /// CAIP-2.
    pub network: String,
    /// Who paid.
    pub payer: String,
    /// Who was paid.
    pub pay_to: String,
    /// The transaction.
    pub tx_hash: String,
    /// `exact` or `otonix-order`.
    pub scheme: String,
    /// When it was used.
    pub settled_at: DateTime<Utc>,
}

/// Credits were bought.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToppedUp {
    /// Whose.
    pub agent_id: AgentId,
    /// What arrived.
    pub credited: MicroUsd,
    /// The balance after.
    pub credits: MicroUsd,
    /// The tier after.
    pub survival_tier: SurvivalTier,
    /// The proof.
    pub receipt: PaymentReceipt,
}

/// A sale that was paid.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Order {
    /// The sale.
    pub id: SaleId,
    /// The order's id as it was given out.
    pub order_id: String,
    /// delivered, refund_due, reversed.
    pub status: String,
    /// `exact` or `otonix-order`.
    pub scheme: String,
    /// Method and path of what was sold.
    pub resource: String,
    /// What it cost.
    pub price: MicroUsd,
    /// What arrived.
    pub amount: MicroUsd,
    /// `USDC`.
    pub currency: String,
    /// CAIP-2.
    pub network: String,
    /// Who paid.
    pub payer: String,
    /// Who was paid.
    pub pay_to: String,
    /// The transaction.
    pub tx_hash: String,
    /// Whom it is for.
    pub agent_id: Option<AgentId>,
    /// When it was paid.
    pub settled_at: DateTime<Utc>,
    /// The same.
    pub created_at: DateTime<Utc>,
}

/// Money that arrived, bought nothing, and is owed back.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refund {
    /// The refund.
    pub id: RefundId,
    /// due, paid, credited, dismissed.
    pub status: String,
    /// Why.
    pub reason: String,
    /// How much.
    pub amount: MicroUsd,
    /// `USDC`.
    pub currency: String,
    /// Who paid.
    pub payer: String,
    /// The payment.
    pub tx_hash: String,
    /// Whom it was meant for.
    pub agent_id: Option<AgentId>,
    /// What the operator noted.
    pub note: Option<String>,
    /// The transfer that paid it back.
    pub refund_tx_hash: Option<String>,
    /// When it became due.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub resolved_at: Option<DateTime<Utc>>,
}

/// How the operator ends a refund.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResolveRefund {
    /// `paid` (sent back on chain), `credited` (given to `agentId` as credits), `dismissed` (kept).
    pub resolution: String,
    /// For `paid`: the transfer.
    #[serde(default)]
    pub tx_hash: Option<String>,
    /// For `credited`.
    #[serde(default)]
    pub agent_id: Option<AgentId>,
    /// For people.
    #[serde(default)]
    pub note: Option<String>,
}

/// From which amount on how many blocks are waited for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Confirmations {
    /// Amounts below this; `null` for all the rest.
    pub below: Option<MicroUsd>,
    /// Blocks with the payment's own; `null` for the chain's own finality.
    pub blocks: Option<u64>,
}

/// What is needed to pay here.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct X402Config {
    pub enabled: bool,
    pub configured: bool,
    pub x402_version: u8,
    pub versions: Vec<u8>,
    pub network: String,
    pub chain_id: u64,
    pub asset: String,
    pub asset_name: String,
    pub decimals: u8,
    pub treasury: Option<String>,
    pub order_ttl_seconds: u64,
    pub schemes: Vec<String>,
    pub confirmations: Vec<Confirmations>,
    pub min_exact: Option<MicroUsd>,
}
