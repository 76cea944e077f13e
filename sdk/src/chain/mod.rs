//! What is asked of an EVM chain, and what it answers: a small typed JSON-RPC client and the calls of USDC.
//!
//! [`Rpc`] speaks to one or several nodes of one chain; it follows no redirects, bounds time and size of every answer,
//! and tells apart a node that cannot be reached, one that refuses, and one that talks nonsense. It holds no key and
//! decides nothing: what an answer means for a payment is its caller's business.

mod answers;
pub mod http;
mod rpc;
pub mod token;
pub mod usdc;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use crate::wallet::EvmAddress;
pub use answers::{Block, Log, Receipt, Transaction};
pub use rpc::{At, Fees, LogFilter, Rpc, Usage};

/// Why the chain did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No node could be reached, or none answered in time. What was sent may have arrived.
    #[error("no node of the chain answers: {0}")]
    Unreachable(String),
    /// A node refused the call.
    #[error("the node refused ({code}): {message}")]
    Rpc {
        /// As the node numbers it.
        code: i64,
        /// In its words.
        message: String,
        /// Data of a revert, hex.
        data: Option<String>,
    },
    /// A node answered what cannot be.
    #[error("the node's answer makes no sense: {0}")]
    Garbage(String),
}

impl ChainError {
    fn says(&self, words: &[&str]) -> bool {
        let Self::Rpc { message, .. } = self else { return false };
        let message = message.to_ascii_lowercase();
        words.iter().any(|word| message.contains(word))
    }

    /// The node has this very transaction already: it was sent before, and that is as good.
    pub fn is_already_known(&self) -> bool {
        self.says(&["already known", "already imported", "already in mempool", "known transaction"])
    }

    /// The account's number was used: by this transaction or by another.
    pub fn is_nonce_too_low(&self) -> bool {
        self.says(&["nonce too low", "nonce is too low", "old nonce"])
    }

    /// Another transaction with this number waits, and this one does not pay enough to replace it.
    pub fn is_underpriced(&self) -> bool {
        self.says(&["underpriced", "fee too low", "max fee per gas less than block base fee"])
    }

    /// The account cannot pay for the gas.
    pub fn is_out_of_gas_money(&self) -> bool {
        self.says(&["insufficient funds"])
    }

    /// The call itself would fail on chain: an answer about the call, not about the node.
    pub fn is_revert(&self) -> bool {
        match self {
            Self::Rpc { code: 3, .. } | Self::Rpc { data: Some(_), .. } => true,
            _ => self.says(&["execution reverted", "revert", "out of gas", "invalid opcode", "outofgas"]),
        }
    }
}

/// A hash of 32 bytes: of a transaction or a block. Printed and sent in lower case with `0x`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hash(pub [u8; 32]);

/// The text is not a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be 0x and 64 hex digits")]
pub struct BadHash;

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0x{}", hex::encode(self.0))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Hash {
    type Err = BadHash;

    fn from_str(text: &str) -> Result<Self, BadHash> {
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).ok_or(BadHash)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(digits, &mut bytes).map_err(|_| BadHash)?;
        Ok(Self(bytes))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// How long one node may take for one answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
