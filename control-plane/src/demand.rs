//! What a 402 asks for, in plain values; `rest/paid.rs` writes it.

use chrono::{DateTime, Utc};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;

/// How a signed payment is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExactTerms {
    /// The token's EIP-712 name.
    pub name: String,
    /// The token's EIP-712 version.
    pub version: String,
    /// How long it may be valid, seconds.
    pub max_timeout_secs: u64,
}

/// What is asked for one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// `payment_required`, or what is wrong with the payment presented.
    pub code: ErrorCode,
    /// The same in words.
    pub detail: String,
    /// The order, with everything that it binds.
    pub order_id: String,
    /// What it costs.
    pub price: MicroUsd,
    /// Whom to pay.
    pub treasury: String,
    /// The token.
    pub asset: String,
    /// The chain.
    pub chain_id: u64,
    /// Until when it may be paid.
    pub expires_at: DateTime<Utc>,
    /// How a signed payment is taken; `None` when only orders are.
    pub exact: Option<ExactTerms>,
    /// What is sold: its URL.
    pub url: String,
    /// What is sold, for people.
    pub description: String,
}
