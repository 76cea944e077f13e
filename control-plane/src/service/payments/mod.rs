//! Being paid: what is asked, which proofs are taken, and how a payment becomes goods exactly once.
//!
//! [`sell`] is the one way for a route to be paid. A payment that was seen before gets its stored answer; a transfer
//! on the chain is proved by [`proof`], a signed payment is checked and claimed by [`exact`] and carried out by
//! [`settlement`]; [`book`] does what a payment does to the books, in one transaction.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use dashmap::DashMap;
use otonix_sdk::chain::Hash;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::x402::{Presented, eip3009};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Caller;
use crate::demand::{Demand, ExactTerms};
use crate::error::Error;
use crate::service::payments::goods::{Answer, Goods};
use crate::service::payments::order_id::Order;
use crate::service::payments::wait::{arrived, outcome};
use crate::store::idempotency::{self, Idem, StoredAnswer};
use crate::store::orders::Sold;
use crate::store::settlements::Settlement;
use crate::store::{orders, payments, purchases};
use crate::treasury::{PaymentSettings, Settler};
use crate::upstream::chain::{Chain, Ready, Trouble};
use crate::upstream::facilitator::Facilitator;

pub mod book;
pub mod budget;
mod carried;
pub mod desk;
pub mod exact;
pub mod goods;
pub mod lists;
pub mod movements;
pub mod order_id;
pub mod proof;
pub mod settlement;
pub mod topup;
mod wait;

/// How long a signed payment may be valid, seconds.
pub const MAX_TIMEOUT_SECS: u64 = 120;
/// How long a request waits for the outcome of its payment.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Requests that may wait for an outcome at once.
const SEATS: usize = 4_096;
/// How often another replica's outcome is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Everything that being paid needs.
pub struct Payments {
    pub settings: Arc<PaymentSettings>,
    /// Who carries out signed payments.
    pub settler: Settler,
    pub chain: Arc<Chain>,
    pub facilitator: Option<Facilitator>,
    pub budgets: budget::Budgets,
    order_key: [u8; 32],
    /// There is a new claim.
    pub claimed: Notify,
    /// What settling with the server's own key knows in memory.
    pub desk: desk::Desk,
    /// Claims made here that the settler has not seen, with what was signed for them; a shortcut, the database has them
    /// all.
    fresh: Mutex<Vec<(payments::Payment, Option<Settlement>)>>,
    /// Requests that wait for the end of a claim.
    waiting: DashMap<Uuid, Arc<Waiting>>,
    seats: Semaphore,
}

/// The end of a claim, for those who wait for it here.
#[derive(Default)]
struct Waiting {
    notify: Notify,
    /// What was sold, when it was this server that booked it.
    sold: Mutex<Option<Sold>>,
}

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

impl Payments {
    /// The parts, with the key that authenticates orders.
    ///
    /// # Errors
    /// When an address is none, or the settling key cannot be read.
    pub fn new(settings: PaymentSettings, order_key: [u8; 32]) -> anyhow::Result<Self> {
        let settler = settings.settler()?;
        let facilitator = match &settler {
            Settler::Facilitator(url) => Some(Facilitator::new(url.expose())?),
            Settler::None | Settler::Key(_) => None,
        };
        Ok(Self {
            chain: Arc::new(Chain::new(&settings)?),
            settings: Arc::new(settings),
            settler,
            facilitator,
            budgets: budget::Budgets::default(),
            order_key,
            claimed: Notify::new(),
            desk: desk::Desk::default(),
            fresh: Mutex::default(),
            waiting: DashMap::new(),
            seats: Semaphore::new(SEATS),
        })
    }

    /// Reads an order's id; `None` when it was not given out here.
    pub fn order(&self, id: &str) -> Option<Order> {
        Order::read(&self.order_key, id)
    }

    /// A new order for a request.
    pub fn new_order(&self, asked: &Asked, price: MicroUsd, ready: &Ready, now: DateTime<Utc>) -> Order {
        let mut salt = [0; 12];
        rand::RngCore::fill_bytes(&mut rand::rng(), &mut salt);
        Order {
            created: u64::try_from(now.timestamp()).unwrap_or(0),
            ttl: u32::try_from(self.settings.order_ttl).unwrap_or(u32::MAX),
            head: ready.head.number,
            head_time: ready.head.timestamp,
            salt,
            price: u64::try_from(price.micros()).unwrap_or(0),
            chain: self.settings.chain_id,
            asset: self.settings.asset,
            treasury: self.settings.treasury,
            binding: asked.binding,
        }
    }

    /// The id of an order.
    pub fn id_of(&self, order: &Order) -> String {
        order.id(&self.order_key)
    }

    /// Whether signed payments of a price are taken now.
    pub fn takes_exact(&self, price: MicroUsd) -> bool {
        let settles = match &self.settler {
            Settler::None => false,
            Settler::Key(_) => self.chain.has_gas(),
            Settler::Facilitator(_) => true,
        };
        settles && price >= self.settings.min_exact
    }

    /// What is asked for a request: a new order, and how to pay it.
    fn demand(
        &self,
        asked: &Asked,
        sale: &Sale,
        ready: &Ready,
        now: DateTime<Utc>,
        (code, detail): (ErrorCode, String),
    ) -> Box<Demand> {
        let order = self.new_order(asked, sale.price, ready, now);
        let ttl = TimeDelta::seconds(i64::from(order.ttl));
        Box::new(Demand {
            code,
            detail,
            order_id: self.id_of(&order),
            price: sale.price,
            treasury: self.settings.treasury.to_string(),
            asset: self.settings.asset.to_string(),
            chain_id: self.settings.chain_id,
            expires_at: now + ttl,
            exact: self.takes_exact(sale.price).then(|| ExactTerms {
                name: ready.facts.name.clone(),
                version: ready.facts.version.clone(),
                max_timeout_secs: MAX_TIMEOUT_SECS,
            }),
            url: asked.url.clone(),
            description: sale.description.clone(),
        })
    }

    /// A claim was committed: the settler need not look for it.
    pub fn hand_over(&self, claim: payments::Payment, signed: Option<Settlement>) {
        let mut fresh = self.fresh.lock();
        if fresh.len() < SEATS {
            fresh.push((claim, signed));
        }
        drop(fresh);
        self.claimed.notify_one();
    }

    /// Claims made here since the last time.
    pub fn fresh(&self) -> Vec<(payments::Payment, Option<Settlement>)> {
        std::mem::take(&mut *self.fresh.lock())
    }

    /// The end of a claim is known, and what was sold if it was booked here.
    pub fn ended(&self, id: Uuid, sold: Option<Sold>) {
        if let Some((_, waiting)) = self.waiting.remove(&id) {
            *waiting.sold.lock() = sold;
            waiting.notify.notify_waiters();
        }
    }

    /// A payment of this payer cost gas, or a facilitator's patience, for nothing.
    pub fn failed_by(&self, claim: &payments::Payment) {
        if let Ok(payer) = claim.from.parse::<otonix_sdk::chain::EvmAddress>() {
            self.budgets.failed_by(payer.bytes());
        }
    }

    fn until_ended(&self, id: Uuid) -> Arc<Waiting> {
        Arc::clone(&self.waiting.entry(id).or_default())
    }
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

/// Payments are not configured.
pub fn not_configured() -> Error {
    Error::NotConfigured {
        code: ErrorCode::PaymentsNotConfigured,
        detail: "payments are not configured on this server",
    }
}

/// The parts of being paid.
///
/// # Errors
/// 503 when no chain is configured.
pub fn parts(app: &App) -> Result<&Arc<Payments>, Error> {
    app.payments.as_ref().ok_or_else(not_configured)
}

/// The answer of a payment that was seen before, whatever has become of what it bought.
///
/// # Errors
/// 409 when it was for another request; 503 while its outcome is not known; 402 when it failed.
pub async fn repeat(app: &App, asked: &Asked, presented: &Presented) -> Result<Option<Paid>, Error> {
    match seen(app, asked, presented).await? {
        Some(paid) => arrived(app, asked, paid).await.map(Some),
        None => Ok(None),
    }
}

async fn seen(app: &App, asked: &Asked, presented: &Presented) -> Result<Option<Paid>, Error> {
    let parts = parts(app)?;
    match presented {
        Presented::Order(proof) => {
            let Some(sold) = sold(app, order_id::hash_of(&proof.order_id)).await? else { return Ok(None) };
            let hash = proof::hash_of(proof)?;
            if sold.binding != asked.binding {
                return Err(used_elsewhere());
            }
            if hash.0 != sold.tx_hash {
                let detail = "this order was paid by another payment";
                return Err(Error::conflict(ErrorCode::OrderAlreadyPaid, detail));
            }
            Ok(Some(paid(sold, None, parts.settings.chain_id)))
        }
        Presented::V1(payment) => exact::repeat(app, asked, &payment.payload, 1).await,
        Presented::V2(payment) => exact::repeat(app, asked, &payment.payload, 2).await,
    }
}

fn used_elsewhere() -> Error {
    Error::conflict(ErrorCode::PaymentAlreadyUsed, "this payment was made for another request")
}

async fn sold(app: &App, order_hash: [u8; 32]) -> Result<Option<Sold>, Error> {
    Ok(app.db.read(move |conn| Box::pin(async move { orders::sold(conn, order_hash).await })).await?)
}

fn paid(sold: Sold, version: Option<u8>, chain_id: u64) -> Paid {
    Paid {
        sale: sold.id,
        order_id: sold.order_id,
        answer: Answer { status: sold.status, body: sold.answer },
        payer: sold.payer,
        tx_hash: Hash(sold.tx_hash).to_string(),
        version,
        chain_id,
    }
}

/// The answer kept for a request's idempotency key.
///
/// # Errors
/// 503 without database.
pub async fn kept(app: &App, idem: Idem) -> Result<Option<StoredAnswer>, Error> {
    let scope = idem.scope;
    Ok(app.db.read(move |conn| Box::pin(async move { idempotency::answer(conn, scope).await })).await?)
}

/// The outcome of a payment or a purchase that a request with this idempotency key has begun: never a second demand.
///
/// # Errors
/// 409 when the key was used with another request; 503 while the outcome is not known.
pub async fn under_way(app: &App, asked: &Asked, idem: Idem) -> Result<Option<Paid>, Error> {
    let reused = || {
        let detail = "this Idempotency-Key was used with another request";
        Error::conflict(ErrorCode::IdempotencyKeyReused, detail)
    };
    let scope = idem.scope;
    let claim = app.db.read(move |conn| Box::pin(async move { payments::open_of_idem(conn, scope).await }));
    if let Some(claim) = claim.await? {
        if claim.idem.is_none_or(|known| known.fingerprint != idem.fingerprint) {
            return Err(reused());
        }
        match outcome(app, parts(app)?, claim).await {
            Ok(paid) => return arrived(app, asked, paid).await.map(Some),
            Err(Stop::Error(error)) => return Err(error),
            // It came to nothing: the way is free.
            Err(Stop::Refused(_)) => {}
        }
    }
    let found = app.db.read(move |conn| {
        Box::pin(async move {
            let Some(purchase) = purchases::live_of_idem(conn, scope).await? else { return Ok(None) };
            let Some(sale) = purchase.sale else { return Ok(None) };
            Ok(orders::sold_by_id(conn, sale).await?.map(|sold| (purchase.idem, sold)))
        })
    });
    let Some((known, sold)) = found.await? else { return Ok(None) };
    if known.is_none_or(|known| known.fingerprint != idem.fingerprint) {
        return Err(reused());
    }
    let chain_id = parts(app)?.settings.chain_id;
    arrived(app, asked, paid(sold, None, chain_id)).await.map(Some)
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
