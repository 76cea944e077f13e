//! The real program, paid on a real chain, killed (SIGKILL) while the vendor has its request in hand: at each boundary
//! of a purchase, with a vendor that answers late, acts late, loses the answer, or never hears it. What is left is
//! finished by the same workers under a moved clock, and whoever paid gets the one answer.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use otonix_control_plane::worker::purchases as worker;
use otonix_sdk::clock::TestClock;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::fake::switches::How;
use crate::seat::{Place, Seat};
use crate::shop::{Quote, Shop};
use crate::support::poll::until_true;
use crate::support::{Agent, Call, Store, on_each_store};

on_each_store!(
    killed_anywhere_a_paid_domain_is_bought_once,
    killed_anywhere_a_paid_server_is_bought_once,
    an_answer_that_was_lost_is_the_same_when_it_is_asked_for_again,
    fifty_buyers_of_one_domain_pay_once,
);

/// Needs a second program on the same database.
#[tokio::test]
async fn a_program_that_was_stopped_and_has_lost_the_lease_writes_nothing_when_it_goes_on() {
    let market = Market::open(Store::Postgres).await;
    // The vendor acts, and answers while the program is stopped.
    let stops = [
        ("createServer", How::Late(Duration::from_secs(1))),
        ("createServer", How::ActThen(500)),
        ("listServers", How::Instead(500)),
    ];
    for (n, (operation, how)) in stops.into_iter().enumerate() {
        let name = format!("agent-{n}");
        let quote = Quote::of(&market.server(&name).await);
        let payment = quote.pay_v2(&market.shop.customer);
        let before = market.fake.count("createServer");
        market.fake.fail(operation, how);
        let call = market.server(&name).header("payment-signature", &payment);
        let asking = tokio::spawn(call.attempt());
        until_true("the vendor is asked", LONG, async || market.fake.count("createServer") > before).await;
        market.shop.server.signal(Signal::STOP);
        market.fake.mend();
        market.finish().await;
        market.shop.server.signal(Signal::CONT);
        let lost = || market.shop.server.log().matches("a lease was lost").count();
        let ends = async || lost() > n || asking.is_finished();
        until_true("it goes on", LONG, ends).await;
        let _answer_or_not = asking.await;
        let ask = || market.server(&name);
        assert_eq!(market.served(ask, &payment).await["sandbox"]["name"], name);
        let rows = market.purchases(&name).await;
        assert_eq!((rows.len(), &rows[0]["attempts"]), (1, &json!(1)), "{operation} {how:?}: {rows:?}");
        let machines = market
            .fake
            .with(|world| world.cherry.machines.values().filter(|machine| machine.hostname == name).count());
        assert_eq!((machines, market.fake.count("createServer")), (1, before + 1), "{operation} {how:?}");
        market.checked();
    }
}

const LONG: Duration = Duration::from_secs(60);

/// A shop that sells what a vendor has.
pub struct Market {
    pub shop: Shop,
    pub fake: Fake,
    options: Vec<(&'static str, String)>,
    pub agent: Agent,
}

impl Market {
    pub async fn open(store: Store) -> Self {
        let fake = Fake::start();
        let options = fake.options();
        let mut args: Vec<_> = options.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
        // The chain makes a block when there is something for it.
        args.push(("--confirmations", "1"));
        let shop = Shop::open_with(store, &args).await;
        let agent = shop.server.agent("buyer").await;
        Self { shop, fake, options, agent }
    }

    pub fn domain(&self, name: &str) -> Call {
        let contact = json!({
            "firstName": "Ada", "lastName": "Agent", "email": "ada@example.org", "phone": "+37060000000",
            "address1": "1 Street", "city": "Vilnius", "state": "Vilnius", "zip": "01100", "country": "LT",
        });
        let body = json!({ "domain": name, "contact": contact, "agentId": self.agent.id });
        self.shop.server.post("/api/vercel/register").key(&self.agent.key).json(body)
    }

    pub fn server(&self, hostname: &str) -> Call {
        self.server_for(&self.agent, hostname)
    }

    pub fn server_for(&self, agent: &Agent, hostname: &str) -> Call {
        let body = json!({
            "plan": "B1-1-1gb-20s-shared", "region": "LT-Siauliai", "image": "debian_12_64bit",
            "hostname": hostname, "cycle": "hourly", "periods": 24,
        });
        self.shop.server.post("/api/cherry/servers/321").key(&agent.key).json(body)
    }

    /// Sends a paid request, and kills the server once the vendor has a request of an operation in hand.
    async fn killed_at(&mut self, call: Call, operation: &str, how: How) {
        let before = self.fake.count(operation);
        self.fake.fail(operation, how);
        let asking = tokio::spawn(call.attempt());
        until_true(operation, LONG, async || self.fake.count(operation) > before).await;
        self.shop.server.kill();
        let _no_answer = asking.await;
        self.fake.mend();
    }

    /// The same workers on the same database, under a clock that goes on by itself.
    pub async fn finish(&self) {
        self.shop.server.sql("UPDATE leases SET expires_at = '1970-01-01 00:00:00+00:00'").await;
        let options: Vec<_> = self.options.iter().map(|(flag, value)| (*flag, value.as_str())).collect();
        let place = Place::of(self.shop.server.database_url());
        let Seat { app, clock, .. } = Seat::open(place, TestClock::at(Utc::now()), &options, None).await;
        for _ in 0..80 {
            while worker::run_once(&app).await.expect("a pass") > 0 {}
            clock.advance(TimeDelta::seconds(30));
        }
        self.shop.server.sql("UPDATE leases SET expires_at = '1970-01-01 00:00:00+00:00'").await;
    }

    /// Presents a payment until it is served.
    async fn served(&self, call: impl Fn() -> Call, payment: &str) -> Value {
        let ask = || call().header("payment-signature", payment);
        until_true("it is served", LONG, async || {
            let answer = ask().await;
            assert!(matches!(answer.status, 201 | 503), "{}", answer.text());
            answer.status == 201
        })
        .await;
        let one = ask().await;
        assert_eq!(one.text(), ask().await.text(), "a repeat gets the same bytes");
        one.ok(201)
    }

    /// The purchases of a thing, as the operator sees them.
    async fn purchases(&self, subject: &str) -> Vec<Value> {
        let all = self.shop.server.as_operator("GET", "/api/purchases").await.list();
        all.into_iter().filter(|row| row["subject"] == subject).collect()
    }

    pub fn checked(&self) {
        assert_eq!(self.fake.violations(), Vec::<String>::new());
        self.shop.audit();
    }
}

async fn killed_anywhere_a_paid_domain_is_bought_once(store: Store) {
    let mut market = Market::open(store).await;
    market.fake.with(|world| world.vercel.looks = 2);
    let boundaries = [
        // Paid, and nothing sent.
        ("getDomain", How::Late(LONG)),
        // Sent: done; done later; never heard.
        ("buySingleDomain", How::Late(LONG)),
        ("buySingleDomain", How::ActLater(Duration::from_secs(2))),
        ("buySingleDomain", How::Unheard),
        // The vendor has named its order.
        ("getOrder", How::Late(LONG)),
        ("getOrder", How::Instead(500)),
    ];
    for (n, (operation, how)) in boundaries.into_iter().enumerate() {
        let name = format!("agent-{n}.com");
        let quote = Quote::of(&market.domain(&name).await);
        let payment = quote.pay_v2(&market.shop.customer);
        let call = market.domain(&name).header("payment-signature", &payment);
        market.killed_at(call, operation, how).await;
        if let How::ActLater(wait) = how {
            // It is the vendor's clock that must come to it.
            tokio::time::sleep(wait).await;
        }
        market.finish().await;
        market.shop.server.crash().await;
        let body = market.served(|| market.domain(&name), &payment).await;
        assert_eq!(body["domain"]["name"], name, "{operation} {how:?}");
        let bought = market.fake.with(|world| world.vercel.bought.get(&name).copied());
        assert_eq!(bought, Some(1), "{operation} {how:?}");
        market.checked();
    }
    assert_eq!(market.shop.till(), 6 * 11_250_000, "each was paid once");
}

async fn killed_anywhere_a_paid_server_is_bought_once(store: Store) {
    let mut market = Market::open(store).await;
    let boundaries = [
        ("createServer", How::Late(LONG)),
        ("createServer", How::ActLater(Duration::from_secs(2))),
        ("createServer", How::Unheard),
        ("createServer", How::Half),
    ];
    for (n, (operation, how)) in boundaries.into_iter().enumerate() {
        let name = format!("agent-{n}");
        let quote = Quote::of(&market.server(&name).await);
        let payment = quote.pay_v2(&market.shop.customer);
        let call = market.server(&name).header("payment-signature", &payment);
        market.killed_at(call, operation, how).await;
        if let How::ActLater(wait) = how {
            tokio::time::sleep(wait).await;
        }
        market.finish().await;
        market.shop.server.crash().await;
        let ask = || market.server(&name).header("payment-signature", &payment);
        let mut shown = 0;
        let mut body = Value::Null;
        until_true("it is served", LONG, async || {
            let answer = ask().await;
            assert!(matches!(answer.status, 201 | 503), "{}", answer.text());
            if answer.status != 201 {
                return false;
            }
            body = answer.ok(201);
            shown += u32::from(body["server"]["password"].is_string());
            shown > 0 || body["secretShown"] == true
        })
        .await;
        let again = ask().await.ok(201);
        assert_eq!((shown, &again["server"]["password"]), (1, &Value::Null), "the password is shown once");
        assert_eq!(again["sandbox"], body["sandbox"]);
        let bought = market
            .fake
            .with(|world| world.cherry.machines.values().filter(|machine| machine.hostname == name).count());
        assert_eq!(bought, 1, "{operation} {how:?}");
        market.checked();
    }
}

async fn an_answer_that_was_lost_is_the_same_when_it_is_asked_for_again(store: Store) {
    let market = Market::open(store).await;
    // Two answers on one connection, noise, half an answer: each is one purchase.
    for (n, how) in [How::Twice, How::ActThen(500)].into_iter().enumerate() {
        let name = format!("lost-{n}.com");
        market.fake.fail("buySingleDomain", how);
        let quote = Quote::of(&market.domain(&name).await);
        let payment = quote.pay_v2(&market.shop.customer);
        let answer = market.domain(&name).header("payment-signature", &payment).await;
        if how == How::Twice {
            assert_eq!(answer.ok(201)["domain"]["name"], name);
        } else {
            // Not known yet: never a second demand, with or without the payment.
            assert_eq!(answer.refused(503, "payment_pending")["orderId"], quote.order_id.as_str());
            let other = market.domain(&name).await;
            other.refused(409, "purchase_under_way");
        }
        let bought = market.fake.with(|world| world.vercel.bought.get(&name).copied());
        assert_eq!(bought, Some(1));
    }
    // An order that is proved for what cannot be had any more is paid back.
    let quote = Quote::of(&market.domain("gone.com").await);
    let hash = market.shop.pay_order(&market.shop.customer, &quote, 11_250_000);
    market.fake.take_domain("gone.com");
    let proof = quote.proof(&hash, &market.shop.customer.address, None);
    for _ in 0..2 {
        let answer = market.domain("gone.com").header("x-payment", &proof).await;
        let body = answer.refused(409, "domain_not_available");
        assert!(body["detail"].as_str().is_some_and(|text| text.contains("refund that is due")), "{body}");
    }
    let due = market.shop.server.as_operator("GET", "/api/refunds?status=due").await.list();
    assert_eq!(due.len(), 1);
    let purchases = market.shop.server.get("/api/purchases").key(&market.agent.key).await.list();
    assert_eq!(purchases.len(), 2);
    market.checked();
}

async fn fifty_buyers_of_one_domain_pay_once(store: Store) {
    let market = Market::open(store).await;
    let quotes = (0..50).map(|_| async { Quote::of(&market.domain("one.com").await) });
    let quotes = futures_util::future::join_all(quotes).await;
    let asking = quotes.iter().map(|quote| {
        let payment = quote.pay_v2(&market.shop.customer);
        market.domain("one.com").header("payment-signature", payment).into_future()
    });
    let answers = futures_util::future::join_all(asking).await;
    let (mut served, mut refused) = (0, 0);
    for answer in &answers {
        match answer.status {
            201 => served += 1,
            409 => refused += 1,
            503 => {}
            other => panic!("{other}: {}", answer.text()),
        }
    }
    assert!(served <= 1 && refused >= 40, "{served} served, {refused} refused");
    until_true("it is bought", LONG, async || {
        market.fake.with(|world| world.vercel.bought.get("one.com").copied()) == Some(1)
            && market
                .shop
                .server
                .get("/api/purchases?status=delivered")
                .key(&market.agent.key)
                .await
                .list()
                .len()
                == 1
    })
    .await;
    assert_eq!(market.shop.till(), 11_250_000, "only who gets it is charged");
    market.checked();
}
