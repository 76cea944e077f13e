//! x402, versions 1 and 2 (`exact` on EVM chains), and this platform's orders: what is asked, what is presented,
//! what is answered. Pure: no I/O, no time, no keys.
//!
//! Amounts are whole base units of a token. Texts of others are read tolerantly and bounded; what is sent is exact.

#[cfg(feature = "wallet")]
pub mod eip3009;
pub mod headers;
pub mod network;
pub mod offer;
pub mod payload;
pub mod requirement;

pub use headers::{BadHeader, Presented};
pub use offer::{Offer, OrderOffer, Protocol, Required};
pub use payload::{Authorization, ExactPayload, OrderProof, PaymentV1, PaymentV2, SettlementResponse};
pub use requirement::{PaymentRequired, RequiredV1, Requirements, RequirementsV1, Resource, TokenDomain};

/// The scheme in which the payer signs a transfer of exactly the price.
pub const EXACT: &str = "exact";

/// Reads an amount in base units: decimal digits and nothing else. `None` when it is none, or above `u128`.
pub fn base_units(text: &str) -> Option<u128> {
    let digits = !text.is_empty() && text.len() <= 80 && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok() } else { None }
}
