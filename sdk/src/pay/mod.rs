//! Paying: a client that buys from any x402 server, and from this platform's orders, at most once per intent.
//!
//! [`Client::fetch`] asks; on a 402 it decides by rules ([`policy`], default deny), writes the signed payment to its
//! own journal, and only then sends it. What is unknown is decided by the chain: the same bytes are sent again, never
//! others while the old can still move money. Every intent ends settled, refused, expired unspent, or paid and
//! undelivered with its evidence. It never follows a redirect and never shows a payment to another origin.

mod address;
mod answers;
mod begin;
pub mod book;
mod budget;
mod check;
mod client;
mod drive;
pub mod http;
mod journal;
pub(crate) mod keep;
mod order;
pub mod policy;
pub mod record;
mod sign;
pub mod topup;
mod view;

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

use crate::chain::ChainError;
use crate::money::MicroUsd;
use crate::secret::Secret;
use crate::standing::SurvivalTier;

pub use address::origin_of;
pub use client::Client;
pub use http::{HttpAnswer, HttpError};
pub use journal::JournalError;
pub use policy::{Asker, Denied, Rules};
pub use record::{Request, State};

/// What a paying client needs.
#[derive(Debug, Clone)]
pub struct PayConfig {
    /// Where the journal is; one client per folder.
    pub dir: PathBuf,
    /// What may be paid.
    pub rules: Rules,
    /// Private and link-local addresses may be asked.
    pub allow_private: bool,
    /// The chain's nodes.
    pub rpc: Vec<String>,
    /// Sent with a top-up, to the control plane only.
    pub api_key: Option<Secret>,
    /// Waiting times.
    pub tuning: Tuning,
}

/// Waiting times; the defaults are those of the contract.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// How long a caller waits at most for what it pays for.
    pub patience: Duration,
    /// How long a paid request is repeated before it is given up.
    pub undelivered: Duration,
    /// Between two looks at the chain.
    pub poll: Duration,
    /// The first pause before a request is repeated; it doubles.
    pub backoff: Duration,
    /// How long nothing is paid after the journal was put back: what the lost one signed has expired then.
    pub after_rollback: Duration,
    /// How long an order's transaction may wait before its fee is raised.
    pub bump: Duration,
    /// An order that is not mined so long before its end is made void.
    pub void_before: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(120),
            undelivered: Duration::from_secs(15 * 60),
            poll: Duration::from_secs(5),
            backoff: Duration::from_millis(500),
            after_rollback: Duration::from_secs(300),
            bump: Duration::from_secs(30),
            void_before: Duration::from_secs(60),
        }
    }
}

/// A request, and what it may cost.
#[derive(Debug, Clone)]
pub struct Fetch {
    /// What is asked for.
    pub request: Request,
    /// Most that it may cost.
    pub max_amount: MicroUsd,
    /// The caller's name for it: the same name is never paid twice.
    pub key: Option<String>,
    /// For whom.
    pub asker: Asker,
    /// How the agent stands.
    pub tier: SurvivalTier,
}

/// What came of a request.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Names the intent, when there is one.
    pub id: Uuid,
    /// The answer; `None` while there is none.
    pub answer: Option<HttpAnswer>,
    /// The payment; `None` when none was asked for.
    pub payment: Option<Payment>,
}

/// A payment as it is shown.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Payment {
    /// Names it.
    pub intent_id: Uuid,
    /// Where it stands.
    pub state: State,
    /// How much.
    pub amount: MicroUsd,
    /// For whom.
    pub asker: Asker,
    /// What is bought.
    pub url: String,
    /// Who is paid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pay_to: Option<String>,
    /// The transaction, when it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_hash: Option<String>,
    /// The seller's receipt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub receipt: Option<serde_json::Value>,
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// When it was signed, or refused.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<DateTime<Utc>>,
    /// Whether money has moved, by the chain's last word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moved: Option<bool>,
}

/// The journal of a folder that no client has open: what was paid, and who, without wallet or chain.
#[derive(Debug)]
pub struct Records(book::Book);

impl Records {
    /// Opens a folder's journal.
    ///
    /// # Errors
    /// [`JournalError`], also when a client has it.
    pub fn open(dir: &std::path::Path) -> Result<Self, JournalError> {
        book::Book::open(dir).map(Self)
    }

    /// Bytes of a folder's journal that cannot be read any more. Nothing is changed by looking.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn damage(dir: &std::path::Path) -> Result<u64, JournalError> {
        journal::inspect(dir).map(|found| found.damaged)
    }

    /// Every payment that the journal still has, newest first.
    pub fn payments(&self) -> Vec<Payment> {
        view::listed(self.0.content())
    }

    /// Payees by origin.
    pub fn pins(&self) -> Vec<(String, String)> {
        let pins = self.0.content().pins.iter();
        pins.map(|(origin, payee)| (origin.clone(), payee.to_string())).collect()
    }

    /// Forgets the payee of an origin; false when there is none.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn unpin(&mut self, origin: String) -> Result<bool, JournalError> {
        let known = self.0.content().pins.contains_key(&origin);
        if known {
            self.0.commit(vec![record::Record::Unpin { origin }])?;
        }
        Ok(known)
    }
}

/// Why nothing was paid. Whatever it is, nothing was signed for this request.
#[derive(Debug, thiserror::Error)]
pub enum PayError {
    /// A rule refuses.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Payments are paused.
    #[error("payments are paused: {0}")]
    Paused(String),
    /// The request is none, or had no answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The chain cannot be asked what the wallet holds.
    #[error("the chain cannot be asked: {0}")]
    Chain(#[from] ChainError),
    /// Chain or token are not what is configured.
    #[error("{0}")]
    WrongChain(String),
    /// The journal cannot be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The key came with another request.
    #[error("the idempotency key was used with another request")]
    KeyReused,
    /// Too many payments are under way.
    #[error("too many payments are under way")]
    Busy,
    /// The client is shutting down.
    #[error("the payer is shutting down")]
    Closed,
}

impl PayError {
    /// Whether the rules or the owner say no, rather than the world.
    pub const fn is_refusal(&self) -> bool {
        match self {
            Self::Denied(_) | Self::Paused(_) => true,
            Self::Http(HttpError::Private(_) | HttpError::PlainHttp) => true,
            Self::Http(_)
            | Self::Chain(_)
            | Self::WrongChain(_)
            | Self::Journal(_)
            | Self::KeyReused
            | Self::Busy
            | Self::Closed => false,
        }
    }

    /// A stable slug.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Denied(denied) => denied.code(),
            Self::Paused(_) => "payments_paused",
            Self::Http(HttpError::Private(_)) => "private_address",
            Self::Http(HttpError::PlainHttp) => "plain_http",
            Self::Http(HttpError::Invalid(_)) => "invalid_field",
            Self::Http(HttpError::NotSent(_) | HttpError::NoAnswer(_) | HttpError::TooLong) => "no_answer",
            Self::Chain(_) => "chain_unavailable",
            Self::WrongChain(_) => "wrong_chain",
            Self::Journal(_) => "journal_unavailable",
            Self::KeyReused => "idempotency_key_reused",
            Self::Busy => "overloaded",
            Self::Closed => "overloaded",
        }
    }
}
