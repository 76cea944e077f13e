//! The server killed (SIGKILL) at each boundary between it and the world while it is paid: while a node or a facilitator
//! has its request in hand, before and after that is carried out, and at each commit, which the database then carries
//! out or not. What the chain does to it at its next start is a fault, another one each time. Afterwards money has moved
//! once, was granted once, and everything has ended.
//!
//! Each boundary comes with one of the faults here, another one for each flow and store. With `OTONIX_TEST_POINTS=all`
//! it comes with each.

mod points;

use std::time::Duration;

use futures_util::future::OptionFuture;
use otonix_sdk::wallet::{Gas, Wallet};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinHandle;

use crate::chain::Account;
use crate::gate::Gate;
use crate::peer::{Does, Peer};
use crate::shop::{Quote, Shop};
use crate::support::poll::{until, until_true};
use crate::support::{Agent, Answer, Call, Store, on_each_store};
use points::{Fault, Point, Stop, points};

on_each_store!(
    an_order_by_hash,
    a_signed_payment_of_version_1_with_the_own_key,
    a_signed_payment_of_version_2_with_the_own_key,
    a_signed_payment_of_version_1_with_a_facilitator,
    a_signed_payment_of_version_2_with_a_facilitator,
);

async fn an_order_by_hash(store: Store) {
    matrix(Flow::Order, store).await;
}

async fn a_signed_payment_of_version_1_with_the_own_key(store: Store) {
    matrix(Flow::V1Key, store).await;
}

async fn a_signed_payment_of_version_2_with_the_own_key(store: Store) {
    matrix(Flow::V2Key, store).await;
}

async fn a_signed_payment_of_version_1_with_a_facilitator(store: Store) {
    matrix(Flow::V1Facilitator, store).await;
}

async fn a_signed_payment_of_version_2_with_a_facilitator(store: Store) {
    matrix(Flow::V2Facilitator, store).await;
}

/// Longer than anything takes here.
const LONG: Duration = Duration::from_secs(90);
const PRICE: &str = "1";
const MICROS: u64 = 1_000_000;

/// How the server is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Order,
    V1Key,
    V2Key,
    V1Facilitator,
    V2Facilitator,
}

impl Flow {
    const fn has_facilitator(self) -> bool {
        matches!(self, Self::V1Facilitator | Self::V2Facilitator)
    }
}

async fn matrix(flow: Flow, store: Store) {
    let shop = Shop::open_among_peers(store, flow.has_facilitator()).await;
    let mut bench = Bench { shop, flow, cases: 0 };
    let all = std::env::var("OTONIX_TEST_POINTS").is_ok_and(|points| points == "all");
    let (points, faults) = (points(flow, store), Fault::of(flow));
    let shift = flow as usize * 2 + store as usize;
    for (at, point) in points.iter().enumerate() {
        for (number, fault) in faults.into_iter().enumerate() {
            if all || number == (at + shift) % faults.len() {
                bench.killed(point, fault).await;
            }
        }
    }
}

struct Bench {
    shop: Shop,
    flow: Flow,
    cases: u32,
}

/// One payment of one payer for one agent.
struct Payment {
    agent: Agent,
    payer: Account,
    header: (&'static str, String),
    /// The transaction that pays an order: itself, and its hash.
    transfer: Option<(String, String)>,
}

impl Payment {
    fn hash(&self) -> &str {
        self.transfer.as_ref().map_or("", |(_, hash)| hash)
    }
}

/// What the one who asked heard, if anything.
type Asking = JoinHandle<Result<Answer, String>>;

impl Bench {
    async fn killed(&mut self, point: &Point, fault: Fault) {
        let what = format!("{:?}: {}, then {fault:?}", self.flow, point.name);
        self.node().mend();
        let payment = self.payment().await;
        let mut heard = None;
        for (number, stop) in point.stops.iter().enumerate() {
            heard = self.reach(*stop, &payment, number > 0, &what).await;
        }
        fault.befall(&self.shop.chain, self.node());
        self.start().await;
        self.ends_well(&payment, heard, fault, &what).await;
    }

    fn node(&self) -> &Peer {
        self.shop.node.as_ref().expect("it is among peers")
    }

    /// Up again; nobody waits for the leases of the dead.
    async fn start(&mut self) {
        self.shop.server.sql("UPDATE leases SET expires_at = '1970-01-01 00:00:00+00:00'").await;
        self.shop.server.crash().await;
    }

    async fn payment(&mut self) -> Payment {
        self.cases += 1;
        let shop = &self.shop;
        let agent = shop.server.agent(&format!("a{}", self.cases)).await;
        let wallet = Wallet::generate();
        let payer =
            Account { address: wallet.address().to_string(), key: wallet.private_key_hex().to_string() };
        shop.chain.mint(&payer.address, 5 * MICROS);
        let quote = shop.quote(&agent, PRICE).await;
        // What is taken out of the chain later is this block, unless there is a newer one.
        shop.chain.mine(1);
        let (header, transfer) = match self.flow {
            Flow::Order => {
                let (raw, hash) = self.pay(&wallet, &payer, &quote);
                (("x-payment", quote.proof(&hash, &payer.address, None)), Some((raw, hash)))
            }
            Flow::V1Key | Flow::V1Facilitator => (("x-payment", quote.pay_v1(&payer)), None),
            Flow::V2Key | Flow::V2Facilitator => (("payment-signature", quote.pay_v2(&payer)), None),
        };
        Payment { agent, payer, header, transfer }
    }

    /// Pays an order by a transaction that is the same one whenever it is sent.
    fn pay(&self, wallet: &Wallet, payer: &Account, quote: &Quote) -> (String, String) {
        let chain = &self.shop.chain;
        chain.set_ether(&payer.address, 1_000_000_000_000_000_000);
        let gas = Gas {
            chain_id: 8453,
            nonce: 0,
            limit: 200_000,
            max_fee: 50_000_000_000,
            priority_fee: 1_000_000,
        };
        let parse = |address: &str| address.parse().expect("an address");
        let tag = Sha256::digest(quote.order_id.as_bytes()).into();
        let (asset, to) = (parse(&chain.asset), parse(&self.shop.treasury.address));
        let signed = wallet.sign_transfer(&gas, asset, to, u128::from(MICROS), Some(tag));
        let (raw, hash) = (format!("0x{}", hex::encode(&signed.raw)), signed.hash.to_string());
        assert_eq!(chain.rpc("eth_sendRawTransaction", json!([raw])), json!(hash));
        chain.mined(&hash);
        (raw, hash)
    }

    fn call(&self, payment: &Payment) -> Call {
        let (name, value) = &payment.header;
        self.shop.topup(&payment.agent, PRICE).header(name, value)
    }

    /// Lets the payment come to a stop and kills the server there.
    async fn reach(&mut self, stop: Stop, payment: &Payment, again: bool, what: &str) -> Option<Answer> {
        if stop == Stop::Unsigned {
            self.forget_what_was_signed().await;
            return None;
        }
        let gate = match stop {
            Stop::Commit(table, _) => {
                let when = match table {
                    "settlements" => "true".to_owned(),
                    _ => format!("NEW.agent_id = '{}'", payment.agent.id),
                };
                Some(Gate::close(&self.shop.server.database_url(), table, &when).await)
            }
            _ => None,
        };
        self.hold(stop, payment);
        if again {
            self.start().await;
        }
        let asking: Asking = tokio::spawn(self.call(payment).attempt());
        let gate = self.arrived(stop, payment, gate, &asking, what).await;
        self.shop.server.kill();
        if let Some(gate) = gate {
            gate.open(matches!(stop, Stop::Commit(_, true))).await;
        }
        self.node().mend();
        if let Some(facilitator) = &self.shop.facilitator {
            facilitator.mend();
        }
        asking.await.expect("it asks").ok()
    }

    /// The node, or the facilitator, does as the stop wants.
    fn hold(&self, stop: Stop, payment: &Payment) {
        match stop {
            Stop::Call(method, word, does) => {
                let word = word.replace("{hash}", payment.hash());
                self.node().obey(move |called, params| {
                    if called == method && params.contains(&word) { does } else { Does::Passes }
                });
            }
            Stop::CallAfter(first, method, word, does) => {
                let mut seen = false;
                self.node().obey(move |called, params| {
                    seen |= called == first;
                    if seen && called == method && params.contains(word) { does } else { Does::Passes }
                });
            }
            Stop::Settle(does) => {
                self.shop.facilitator.as_ref().expect("one settles").obey(move |_, _| does);
            }
            Stop::Commit(..) | Stop::Stored | Stop::Answered | Stop::Unsigned => {}
        }
    }

    async fn arrived(
        &self,
        stop: Stop,
        payment: &Payment,
        mut gate: Option<Gate>,
        asking: &Asking,
        what: &str,
    ) -> Option<Gate> {
        match stop {
            Stop::Commit(..) => {
                let gate = gate.as_mut().expect("there is one");
                until_true(what, LONG, async || gate.is_waited_at().await).await;
            }
            Stop::Stored => until_true(what, LONG, async || self.is_sold(payment).await).await,
            Stop::Answered => until_true(what, LONG, async || asking.is_finished()).await,
            Stop::Settle(_) => {
                let facilitator = self.shop.facilitator.as_ref().expect("one settles");
                until_true(what, LONG, async || facilitator.is_holding()).await;
            }
            Stop::Call(..) | Stop::CallAfter(..) => {
                until_true(what, LONG, async || self.node().is_holding()).await;
            }
            Stop::Unsigned => {}
        }
        gate
    }

    async fn is_sold(&self, payment: &Payment) -> bool {
        let id = match self.shop.server.database_url().starts_with("sqlite") {
            true => format!("X'{}'", payment.agent.id.replace('-', "")),
            false => format!("'{}'", payment.agent.id),
        };
        let touch = format!("UPDATE orders SET price = price WHERE agent_id = {id}");
        self.shop.server.sql(&touch).await == 1
    }

    /// What a replica leaves that takes a payment and does not give the account's numbers out.
    async fn forget_what_was_signed(&self) {
        let open = "SELECT id FROM payments WHERE status = 'sent'";
        let signed = format!("DELETE FROM settlements WHERE payment_id IN ({open})");
        assert_eq!(self.shop.server.sql(&signed).await, 1);
        let claimed = "UPDATE payments SET status = 'claimed' WHERE status = 'sent'";
        assert_eq!(self.shop.server.sql(claimed).await, 1);
    }

    /// A transfer that has left the chain comes again, if its payer or somebody else sends it.
    async fn sent_again(&self, payment: &Payment) {
        let chain = &self.shop.chain;
        // The server has a moment to find that it is gone.
        tokio::time::sleep(Duration::from_secs(1)).await;
        if !self.moved(payment).is_empty() {
            return;
        }
        if let Some((raw, hash)) = &payment.transfer {
            assert_eq!(chain.rpc("eth_sendRawTransaction", json!([raw])), json!(hash));
            chain.mined(hash);
        } else if self.flow.has_facilitator() && self.is_sold(payment).await {
            chain.mined(&self.shop.carry_out(&self.shop.thief, &payment.header.1));
        }
    }

    fn moved(&self, payment: &Payment) -> Vec<(String, u64)> {
        self.shop.chain.transfers(Some(&payment.payer.address), None)
    }

    /// The payer gets what was paid for, once; the money has moved once; nothing is left open.
    async fn ends_well(&self, payment: &Payment, heard: Option<Answer>, fault: Fault, what: &str) {
        let server = &self.shop.server;
        let sent_again = OptionFuture::from((fault == Fault::Reorg).then(|| self.sent_again(payment)));
        let served = until(what, LONG, async || {
            let answer = self.call(payment).attempt().await.ok()?;
            assert!(matches!(answer.status, 201 | 503), "{what}: {} {}", answer.status, answer.text());
            (answer.status == 201).then_some(answer)
        });
        let (served, _) = tokio::join!(served, sent_again);
        if let Some(heard) = heard.filter(|heard| heard.status == 201) {
            assert_eq!(heard.body, served.body, "{what}: another answer than before");
        }
        until_true(&format!("{what}: one transfer"), LONG, async || self.moved(payment).len() == 1).await;
        let moved = self.moved(payment);
        assert_eq!(moved[0].1, MICROS, "{what}");
        let orders = async || server.get("/api/orders").key(&payment.agent.key).await.list();
        let booked = format!("{what}: booked where it is");
        until_true(&booked, LONG, async || orders().await[0]["txHash"] == json!(moved[0].0)).await;
        let sold = orders().await;
        assert_eq!((sold.len(), &sold[0]["status"]), (1, &json!("delivered")), "{what}");
        let bad = "kind NOT IN ('order', 'exact') OR status = 'reversed' OR missing_since IS NOT NULL";
        let bad = format!("UPDATE receipts SET amount = amount WHERE {bad}");
        until_true(&format!("{what}: receipts"), LONG, async || server.sql(&bad).await == 0).await;
        let open = "UPDATE payments SET price = price WHERE status <> 'done'";
        until_true(&format!("{what}: claims"), LONG, async || server.sql(open).await == 0).await;
        assert_eq!(self.shop.credits(&payment.agent).await, PRICE, "{what}");
        let refunds = server.as_operator("GET", "/api/refunds").await.list();
        assert_eq!(refunds, Vec::<Value>::new(), "{what}");
        let repeat = self.call(payment).await;
        assert_eq!((repeat.status, &repeat.body), (201, &served.body), "{what}: a repeat");
        let (ended_well, said) = self.shop.audited();
        assert!(ended_well && said.contains("sum 0 USDC"), "{what}: audit: {said}");
        assert!(!said.contains("unmatched") && said.contains("waiting 0 USDC"), "{what}: audit: {said}");
    }
}
