//! Being paid: what is asked, which proofs are taken, and how a payment becomes goods exactly once.
//!
//! [`sell`] is the one way for a route to be paid. A payment that was seen before gets its stored answer; a transfer
//! on the chain is proved by [`proof`], a signed payment is checked and claimed by [`exact`] and carried out by
//! [`settlement`]; [`book`] does what a payment does to the books, in one transaction.

use std::net::IpAddr;
use std::time::Duration;

use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::x402::{Presented, eip3009};
use tokio::time::Instant;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::error::Error;
use crate::service::payments::goods::{Answer, Goods};
use crate::service::payments::wait::{arrived, outcome};
use crate::store::idempotency::Idem;
use crate::upstream::chain::Trouble;

pub mod book;
pub mod budget;
mod carried;
pub mod desk;
pub mod exact;
pub mod goods;
pub mod lists;
pub mod movements;
pub mod order_id;
mod parts;
pub mod proof;
mod repeats;
pub mod settlement;
pub mod topup;
mod wait;

pub use parts::{Payments, not_configured, parts};
pub use repeats::{kept, repeat, under_way};
use repeats::{paid, sold, used_elsewhere};

/// How long a signed payment may be valid, seconds.
pub const MAX_TIMEOUT_SECS: u64 = 120;
/// How long a request waits for the outcome of its payment.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How often another replica's outcome is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What a route sells in one request, after everything but the payment was checked.
#[derive(Debug, Clone)]
pub struct Sale {
    /// What.
    pub goods: Goods,
    /// For how much.
    pub price: MicroUsd,
    /// For people.
    pub description: String,
    /// What must not be kept beyond its end, JSON.
    pub private: Option<String>,
}

/// One request, as far as a payment is tied to it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// See [`order_id::binding`].
    pub binding: [u8; 32],
    /// Method and path.
    pub resource: String,
    /// Its URL.
    pub url: String,
    /// Its idempotency key.
    pub idem: Option<Idem>,
    /// Who asks.
    pub caller: Caller,
    /// Since when.
    pub since: Instant,
}

impl Asked {
    /// Where it comes from.
    pub const fn ip(&self) -> IpAddr {
        self.caller.ip
    }
}

/// A sale that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Paid {
    /// The sale.
    pub sale: Uuid,
    /// The order's id.
    pub order_id: String,
    /// The answer.
    pub answer: Answer,
    /// Who paid.
    pub payer: String,
    /// By which transaction.
    pub tx_hash: String,
    /// Which version of x402 the payment speaks; `None` for an order.
    pub version: Option<u8>,
    /// The chain.
    pub chain_id: u64,
}

/// Why a payment is not taken, to be told with what would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Which fault.
    pub code: ErrorCode,
    /// In words.
    pub detail: String,
}

impl Refused {
    /// A fault in words.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

/// How a step of a payment ends when it does not go on.
#[derive(Debug)]
pub enum Stop {
    /// The payment does not do; a 402 says what would.
    Refused(Refused),
    /// Anything else.
    Error(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<crate::store::StoreError> for Stop {
    fn from(error: crate::store::StoreError) -> Self {
        Self::Error(error.into())
    }
}

impl From<Refused> for Stop {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<Trouble> for Stop {
    fn from(trouble: Trouble) -> Self {
        Self::Error(chain_away(&trouble))
    }
}

/// The chain cannot be relied on: nothing is decided.
pub fn chain_away(trouble: &Trouble) -> Error {
    tracing::debug!(error = %trouble, "a payment waits for the chain");
    Error::Busy {
        code: ErrorCode::ChainUnavailable,
        retry_after: Duration::from_secs(2),
        detail: "the chain cannot be relied on now; nothing was decided, the same payment may be presented again",
    }
}

/// Sells: asks for a payment, or takes the one presented.
///
/// # Errors
/// 402 with what is asked, 409, 429, 503.
pub async fn sell(
    app: &App,
    asked: &Asked,
    sale: &Sale,
    presented: Option<&Presented>,
) -> Result<Paid, Error> {
    let parts = parts(app)?;
    let ready = parts.chain.ready().await.map_err(|trouble| chain_away(&trouble))?;
    let now = app.clock.now();
    let demand =
        |code, detail: String| Error::PaymentRequired(parts.demand(asked, sale, &ready, now, (code, detail)));
    let Some(presented) = presented else {
        return Err(demand(ErrorCode::PaymentRequired, format!("{} USDC are needed for this", sale.price)));
    };
    let done = match presented {
        Presented::Order(proof) => proof::take(app, parts, asked, sale, proof).await,
        Presented::V1(_) | Presented::V2(_) => exact::take(app, parts, asked, sale, presented, &ready).await,
    };
    match done {
        Ok(paid) => arrived(app, asked, paid).await,
        Err(Stop::Error(error)) => Err(error),
        Err(Stop::Refused(refused)) => {
            app.shared.metrics.payments_refused.inc();
            Err(demand(refused.code, refused.detail))
        }
    }
}

/// Takes the proof of an order for something that cannot be sold any more, and gives the money back: what is on the
/// chain already must end somewhere. `None` when nothing was paid for this request.
///
/// # Errors
/// 503 while the chain cannot be asked or the transfer is not deep enough.
pub async fn give_back(
    app: &App,
    asked: &Asked,
    presented: &Presented,
    why: &Error,
) -> Result<Option<Paid>, Error> {
    let Presented::Order(proof) = presented else { return Ok(None) };
    let parts = parts(app)?;
    if parts.order(&proof.order_id).is_none_or(|order| order.binding != asked.binding) {
        return Ok(None);
    }
    let goods = Goods::Void { code: why.code().as_str().to_owned(), detail: why.to_string() };
    let sale = Sale { goods, price: MicroUsd::ZERO, description: String::new(), private: None };
    match proof::take(app, parts, asked, &sale, proof).await {
        Ok(paid) => arrived(app, asked, paid).await.map(Some),
        Err(Stop::Error(error)) => Err(error),
        Err(Stop::Refused(_)) => Ok(None),
    }
}

/// The text that ties a transfer to an order, and who signed it.
fn signed_by(order_id: &str, hash: &str, chain: u64, signature: &str) -> Option<[u8; 20]> {
    let text = otonix_sdk::x402::payload::order_message(order_id, hash, chain);
    eip3009::recover_text(&text, signature).ok().map(|address| address.bytes())
}
