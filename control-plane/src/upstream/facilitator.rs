//! An x402 facilitator: told to settle, never believed. Whether money moved is asked of the chain.

use std::time::Duration;

use otonix_sdk::chain::http::{BadUrl, JsonPost, PostError};
use otonix_sdk::x402::SettlementResponse;

/// How long one settlement may take.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer read.
const MAX_ANSWER: usize = 256 * 1024;

/// What a facilitator said.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// Settled, by its word; the transaction that it names.
    Settled(String),
    /// Refused, and why.
    Refused(String),
    /// Nothing usable: it may have settled or not.
    Unknown(String),
}

/// A facilitator.
#[derive(Debug, Clone)]
pub struct Facilitator {
    settle: JsonPost,
}

impl Facilitator {
    /// The facilitator at an address.
    ///
    /// # Errors
    /// [`BadUrl`] when it is none.
    pub fn new(url: &str) -> Result<Self, BadUrl> {
        let settle = format!("{}/settle", url.trim_end_matches('/'));
        Ok(Self { settle: JsonPost::new(&settle, SETTLE_TIMEOUT, MAX_ANSWER)? })
    }

    /// Asks it to settle.
    pub async fn settle(&self, body: &str) -> Said {
        let posted = match self.settle.post(body.as_bytes().to_vec()).await {
            Ok(posted) => posted,
            Err(PostError::NotSent) => return Said::Unknown("it cannot be reached".to_owned()),
            Err(error) => return Said::Unknown(error.to_string()),
        };
        match serde_json::from_slice::<SettlementResponse>(&posted.body) {
            Ok(answer) if answer.success => Said::Settled(answer.transaction),
            Ok(answer) => {
                let reason = answer.error_reason.unwrap_or_else(|| format!("HTTP {}", posted.status));
                Said::Refused(reason.chars().take(100).collect())
            }
            Err(_) => Said::Unknown(format!("HTTP {}", posted.status)),
        }
    }
}
