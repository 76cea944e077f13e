//! A server's library with both vendors in memory and a clock that the test moves.

use std::sync::atomic::{AtomicU64, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use otonix_control_plane::app::Outside;
use otonix_control_plane::auth::Caller;
use otonix_control_plane::error::Error;
use otonix_control_plane::service::payments::book::{self, Arrived, SoldFor};
use otonix_control_plane::service::payments::goods::Goods;
use otonix_control_plane::service::payments::order_id::hash_of;
use otonix_control_plane::service::purchases::item::{DomainItem, Item, Private, ServerItem};
use otonix_control_plane::store::list::{self, Query};
use otonix_control_plane::store::orders::{self, Sold};
use otonix_control_plane::store::purchases::{self, Purchase};
use otonix_control_plane::worker::purchases as worker;
use otonix_sdk::api::purchases::Contact;
use otonix_sdk::chain::EvmAddress;
use otonix_sdk::clock::TestClock;
use otonix_sdk::ids::AgentId;
use otonix_sdk::money::MicroUsd;
use serde_json::Value;
use uuid::Uuid;

use super::shelf::Shelf;
use crate::seat::{Place, Seat};
use crate::support::Store;
use crate::support::database::execute;

/// A seat and its vendors.
pub struct Bench {
    seat: Seat,
    pub shelf: Shelf,
}

impl std::ops::Deref for Bench {
    type Target = Seat;

    fn deref(&self) -> &Seat {
        &self.seat
    }
}

pub fn contact() -> Contact {
    let text = str::to_owned;
    Contact {
        first_name: text("Ada"),
        last_name: text("Agent"),
        email: text("ada@example.org"),
        phone: text("+37060000000"),
        address1: text("1 Street"),
        address2: None,
        city: text("Vilnius"),
        state: text("Vilnius"),
        zip: text("01100"),
        country: text("LT"),
        company_name: None,
        additional: serde_json::Map::new(),
    }
}

/// A domain for a year.
pub fn domain(name: &str) -> Item {
    Item::Domain(DomainItem {
        domain: name.to_owned(),
        years: 1,
        auto_renew: true,
        sandbox: None,
        renewal_price_micro: Some(12_500_000),
        language_code: None,
    })
}

/// A server for a day.
pub fn server(hostname: &str) -> Item {
    Item::Server(ServerItem {
        project: 321,
        plan: "small".to_owned(),
        region: "lt".to_owned(),
        image: "debian_12".to_owned(),
        hostname: hostname.to_owned(),
        cycle: "hourly".to_owned(),
        periods: 24,
        ssh_keys: Vec::new(),
        bootstrap: false,
        cpu: Some(1),
        memory: Some(1024),
        disk: Some(20),
    })
}

/// What they cost.
pub const DOMAIN: i64 = 11_250_000;
pub const SERVER: i64 = 435_600;

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).expect("a time")
}

impl Bench {
    pub async fn open(store: Store) -> Self {
        let clock = TestClock::at(start());
        let shelf = Shelf::new(&clock);
        Self::on(Place::fresh(store).await, clock, shelf).await
    }

    /// The same server after it was killed, or a replica: on the same database, with the same vendors.
    pub async fn again(&self) -> Self {
        self.stop().await;
        self.lease_is_free().await;
        self.beside(self.clock.clone()).await
    }

    /// A replica with a clock of its own; the lease is where it was.
    pub async fn beside(&self, clock: TestClock) -> Self {
        Self::on(self.place.clone(), clock, self.shelf.clone()).await
    }

    /// The lease is anyone's.
    pub async fn lease_is_free(&self) {
        self.sql("UPDATE leases SET expires_at = '1970-01-01 00:00:00+00:00'").await;
    }

    /// Runs a statement beside the server.
    pub async fn sql(&self, statement: &str) -> u64 {
        execute(&self.place.url, statement).await
    }

    async fn on(place: Place, clock: TestClock, shelf: Shelf) -> Self {
        let outside = Outside { vendors: shelf.vendors(), registrant: Some(contact()), ..Outside::default() };
        let seat = Seat::open(place, clock, &[], Some(outside)).await;
        Self { seat, shelf }
    }

    pub fn pass(&self, secs: i64) {
        self.clock.advance(TimeDelta::seconds(secs));
    }

    pub fn operator() -> Caller {
        Seat::operator()
    }

    /// An agent of an owner, and the address of the wallet that was made for it.
    pub async fn agent(&self, owner: &Caller, name: &str) -> (AgentId, EvmAddress) {
        let agent = self.register(owner, name).await;
        let wallet = agent.wallet_address.expect("one was made").parse().expect("an address");
        (agent.id, wallet)
    }

    pub async fn grant(&self, agent: AgentId, micros: i64) {
        self.grant_micros(agent, micros).await;
    }

    pub async fn credits(&self, agent: AgentId) -> i64 {
        self.look(agent).await.credits.micros()
    }

    /// A payment of `amount` micro-USDC for something that costs `price`.
    pub async fn pay(&self, item: Item, to: &For, price: i64, amount: i64, payer: EvmAddress) -> Sold {
        self.try_pay(item, to, price, amount, payer).await.expect("it is booked")
    }

    pub async fn try_pay(
        &self,
        item: Item,
        to: &For,
        price: i64,
        amount: i64,
        payer: EvmAddress,
    ) -> Result<Sold, Error> {
        let (sold, arrived) = payment(item, to, price, amount, payer);
        self.book(sold, arrived).await
    }

    pub async fn book(&self, sold: SoldFor, arrived: Arrived) -> Result<Sold, Error> {
        let target = sold.goods.target();
        self.app
            .writer
            .apply(target, move |tx| Box::pin(async move { book::sell_in(tx, &sold, &arrived).await }))
            .await
    }

    /// Everything that can be done now.
    pub async fn work(&self) {
        for _ in 0..100 {
            if worker::run_once(&self.app).await.expect("a pass") == 0 {
                return;
            }
        }
        panic!("there is always more to do");
    }

    /// Lets so much time pass, in steps, with work in each.
    pub async fn live(&self, secs: i64, step: i64) {
        for _ in 0..(secs / step) {
            self.pass(step);
            self.work().await;
        }
    }

    /// Lets time pass until a purchase has ended, at most so long, and then some more in longer steps.
    pub async fn live_out(&self, id: Uuid, secs: i64, step: i64) {
        for _ in 0..(secs / step) {
            self.live(step, step).await;
            if matches!(self.by_id(id).await.status.as_str(), "delivered" | "failed") {
                break;
            }
        }
        self.live(600, 120).await;
    }

    pub async fn purchase(&self, sale: Uuid) -> Purchase {
        let found =
            self.app.db.read(move |conn| Box::pin(async move { purchases::of_sale(conn, sale).await })).await;
        found.expect("it can be read").expect("there is one")
    }

    pub async fn by_id(&self, id: Uuid) -> Purchase {
        let found =
            self.app.db.read(move |conn| Box::pin(async move { purchases::by_id(conn, id).await })).await;
        found.expect("it can be read").expect("there is one")
    }

    /// The stored answer: status and body.
    pub async fn answer(&self, sale: Uuid) -> (u16, Value) {
        let found =
            self.app.db.read(move |conn| Box::pin(async move { orders::sold_by_id(conn, sale).await })).await;
        let sold = found.expect("it can be read").expect("there is one");
        (sold.status, serde_json::from_str(&sold.answer).unwrap_or(Value::Null))
    }

    /// What has become of a sale.
    pub async fn sale(&self, sale: Uuid) -> String {
        let found =
            self.app.db.read(move |conn| Box::pin(async move { orders::payer(conn, sale).await })).await;
        found.expect("it can be read").expect("there is one").status
    }

    /// What the refunds that are due come to.
    pub async fn due(&self) -> i64 {
        let query = Query { limit: 100, ..Query::default() };
        let page = self.app.db.read(move |conn| Box::pin(async move { list::refunds(conn, &query).await }));
        let rows = page.await.expect("they can be read").rows;
        rows.iter().filter(|refund| refund.status == "due").map(|refund| refund.amount.micros()).sum()
    }

    pub async fn account(&self, name: &str) -> i64 {
        let books = self.audit().await;
        let found = books.accounts.iter().find(|(known, _)| known == name);
        found.map_or(0, |(_, balance)| balance.micros())
    }
}

/// Whom goods are for.
#[derive(Debug, Clone, Copy, Default)]
pub struct For {
    pub agent: Option<AgentId>,
    pub owner: Uuid,
}

/// Who pays in tests: an address of nobody known.
pub fn stranger(n: u8) -> EvmAddress {
    EvmAddress::from_bytes([n; 20])
}

/// A payment that the chain has.
pub fn payment(item: Item, to: &For, price: i64, amount: i64, payer: EvmAddress) -> (SoldFor, Arrived) {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut tx_hash = [0; 32];
    tx_hash[..8].copy_from_slice(&n.to_be_bytes());
    let order_id = format!("order {n}");
    let private = Private { contact: Some(contact()), user_data: None };
    let sold = SoldFor {
        order_hash: hash_of(&order_id),
        order_id,
        scheme: "exact",
        resource: "POST /api/test".to_owned(),
        binding: tx_hash,
        goods: Goods::Purchase { item, agent: to.agent, owner: to.owner },
        private: private.to_text(),
        price: MicroUsd::from_micros(price),
        idem: None,
        key: None,
    };
    let arrived = Arrived {
        chain: 8453,
        tx_hash,
        log_index: 1,
        block_number: 10,
        block_hash: [7; 32],
        block_time: 1_800_000_000,
        from: payer,
        to: stranger(200),
        amount: MicroUsd::from_micros(amount),
    };
    (sold, arrived)
}
