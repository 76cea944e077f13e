//! Everything that being paid needs, built once: what is configured, the chain, who settles, and who waits.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use dashmap::DashMap;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use uuid::Uuid;

use crate::app::App;
use crate::demand::{Demand, ExactTerms};
use crate::error::Error;
use crate::service::payments::order_id::Order;
use crate::service::payments::{Asked, MAX_TIMEOUT_SECS, Sale, budget, desk};
use crate::store::orders::Sold;
use crate::store::payments;
use crate::store::settlements::Settlement;
use crate::treasury::{PaymentSettings, Settler};
use crate::upstream::chain::{Chain, Ready};
use crate::upstream::facilitator::Facilitator;

/// Requests that may wait for an outcome at once.
const SEATS: usize = 4_096;

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
    pub(super) seats: Semaphore,
}

/// The end of a claim, for those who wait for it here.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) notify: Notify,
    /// What was sold, when it was this server that booked it.
    pub(super) sold: Mutex<Option<Sold>>,
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
    pub(super) fn demand(
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

    pub(super) fn until_ended(&self, id: Uuid) -> Arc<Waiting> {
        Arc::clone(&self.waiting.entry(id).or_default())
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
