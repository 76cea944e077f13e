//! What the journal says: one JSON object per record. Fields are only ever added.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::policy::Asker;
use crate::chain::Hash;
use crate::money::MicroUsd;
use crate::wallet::EvmAddress;

/// Where a payment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Signed, and perhaps sent: it may move money.
    Signed,
    /// Money has moved; what it buys has not come yet.
    Paid,
    /// Paid and delivered.
    Settled,
    /// Nothing was signed.
    Refused,
    /// Signed, and it can never move money any more.
    ExpiredUnspent,
    /// Money has moved, and what it buys did not come.
    PaidUndelivered,
}

impl State {
    /// The word used everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Signed => "signed",
            Self::Paid => "paid",
            Self::Settled => "settled",
            Self::Refused => "refused",
            Self::ExpiredUnspent => "expired_unspent",
            Self::PaidUndelivered => "paid_undelivered",
        }
    }

    /// Whether it never changes any more.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Signed | Self::Paid => false,
            Self::Settled | Self::Refused | Self::ExpiredUnspent | Self::PaidUndelivered => true,
        }
    }
}

/// A request as it is sent, again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// `POST`.
    pub method: String,
    /// Whole.
    pub url: String,
    /// Without those of a payment.
    pub headers: Vec<(String, String)>,
    /// Bytes, base64 in the journal.
    #[serde(with = "base64_bytes")]
    pub body: Vec<u8>,
}

/// A signed payment: written down before anything of it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Names it.
    pub id: Uuid,
    /// When it was signed.
    pub at: DateTime<Utc>,
    /// For whom.
    pub asker: Asker,
    /// The caller's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Tells requests apart.
    pub digest: String,
    /// What is bought.
    pub request: Request,
    /// Of the seller.
    pub origin: String,
    /// Whose wallet signed it; another one may be in use when it ends.
    pub payer: EvmAddress,
    /// Who is paid.
    pub pay_to: EvmAddress,
    /// How much.
    pub amount: MicroUsd,
    /// The height when it was signed: it moves no money before.
    pub from_block: u64,
    /// How it is paid.
    pub way: Signature,
}

/// The signed part of an intent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Signature {
    /// An authorization that the seller carries out.
    Exact {
        /// The payment header's name.
        header: String,
        /// And its value, as it is sent.
        value: String,
        /// Of the authorization.
        nonce: Hash,
        /// Unix seconds.
        valid_before: u64,
    },
    /// A transfer that the payer carries out.
    Order {
        /// Of the 402.
        order_id: String,
        /// Unix seconds.
        expires: u64,
        /// The account's number of the transaction.
        nonce: u64,
        /// Every form of it; at most one is ever carried out.
        transactions: Vec<Raw>,
    },
}

/// A signed transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raw {
    /// How the chain knows it.
    pub hash: Hash,
    /// The bytes, hex.
    pub raw: String,
    /// Units.
    pub gas_limit: u64,
    /// Wei.
    pub max_fee: u128,
    /// Wei.
    pub priority_fee: u128,
    /// It pays nobody: it only uses up the number, so that the others never move money.
    #[serde(default)]
    pub void: bool,
}

/// How an intent ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Which.
    pub id: Uuid,
    /// When.
    pub at: DateTime<Utc>,
    /// A terminal state.
    pub state: State,
    /// The transaction, when money moved and it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_hash: Option<String>,
    /// The seller's receipt, as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<serde_json::Value>,
    /// The HTTP status that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// A payment that was not made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Names it.
    pub id: Uuid,
    /// When.
    pub at: DateTime<Utc>,
    /// For whom.
    pub asker: Asker,
    /// What was to be bought.
    pub url: String,
    /// A slug.
    pub code: String,
    /// For people.
    pub detail: String,
}

/// Money that left the wallet without an intent of this journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stray {
    /// The transaction.
    pub tx_hash: Hash,
    /// The log in its block.
    pub log_index: u64,
    /// How much.
    pub amount: MicroUsd,
    /// To whom.
    pub to: EvmAddress,
    /// When it was found.
    pub at: DateTime<Utc>,
}

/// The token as the chain describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The chain.
    pub chain_id: u64,
    /// The contract.
    pub asset: EvmAddress,
    /// EIP-712.
    pub name: String,
    /// EIP-712.
    pub version: String,
}

/// Up to where chain and journal were compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Height.
    pub block: u64,
    /// Transactions that the account had sent.
    pub account_nonce: u64,
    /// When.
    pub at: DateTime<Utc>,
    /// Whose.
    pub payer: EvmAddress,
}

/// One record. Tagged from outside: amounts are read from their source text, which serde's inner tags do not keep.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A payment was signed.
    Intent(Box<Intent>),
    /// Another form of an order's transaction was signed.
    Bumped {
        /// Which.
        id: Uuid,
        /// The new form.
        transaction: Raw,
    },
    /// Money has moved.
    Paid {
        /// Which.
        id: Uuid,
        /// When it was seen.
        at: DateTime<Utc>,
        /// The transaction, when it was found.
        tx_hash: Option<String>,
    },
    /// An intent ended.
    Ended(End),
    /// The chain's last word on a payment that was delivered.
    Checked {
        /// Which.
        id: Uuid,
        /// False: the seller delivered, and never took the money.
        moved: bool,
        /// The transaction, when it was found.
        tx_hash: Option<String>,
    },
    /// A payment was not made.
    Refused(Refusal),
    /// The link has the event of this state.
    Told {
        /// Which.
        id: Uuid,
        /// The state.
        state: State,
    },
    /// Who is paid at an origin.
    Pin {
        /// Of the seller.
        origin: String,
        /// Who.
        pay_to: EvmAddress,
    },
    /// The next payee at an origin is believed.
    Unpin {
        /// Of the seller.
        origin: String,
    },
    /// The token.
    Token(Token),
    /// Chain and journal agree up to here.
    Checkpoint(Checkpoint),
    /// Money moved that the journal does not know.
    Stray(Stray),
    /// The journal may have been put back, or is damaged: nothing is paid until it is reconciled.
    Suspect {
        /// Why, for people.
        why: String,
    },
    /// The owner has looked; payments go on at this time.
    Reconciled {
        /// When.
        at: DateTime<Utc>,
        /// Not before.
        wait_until: DateTime<Utc>,
    },
}

mod base64_bytes {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
