//! Blocks that leave the chain, and transfers that come back in others: by the same transaction or by another one that
//! carries out the same signed payment. Each is booked where it is, once, as what it was.

use std::time::Duration;

use serde_json::{Value, json};

use crate::chain::Options;
use crate::shop::Shop;
use crate::support::poll::until_true;
use crate::support::{Store, on_each_store};

on_each_store!(
    what_is_mined_again_in_another_block_stays_what_it_was,
    what_moved_without_a_sale_is_taken_back_and_booked_again_as_what_it_was,
    what_came_by_another_transaction_while_the_server_was_away_is_the_same_payment,
    what_is_owed_back_is_owed_once_whichever_transaction_brings_it,
);

const LONG: Duration = Duration::from_secs(60);

/// A chain that takes long to be final.
async fn open(store: Store) -> Shop {
    Shop::open_over(store, Options { slots: 40, ..Options::default() }).await
}

fn transaction(shop: &Shop, hash: &str) -> Value {
    shop.chain.rpc("eth_getTransactionByHash", json!([hash]))
}

/// Waits until a transfer is booked in the block in which it is now.
async fn booked_at(shop: &Shop, hash: &str) {
    let block = shop.chain.mined(hash)["blockNumber"].as_str().expect("a number").to_owned();
    let block = u64::from_str_radix(&block[2..], 16).expect("hex");
    let there =
        format!("UPDATE receipts SET amount = amount WHERE block_number = {block} AND status <> 'reversed'");
    until_true("it is booked where it is", LONG, async || shop.server.sql(&there).await == 1).await;
    let missing = "UPDATE receipts SET amount = amount WHERE missing_since IS NOT NULL";
    until_true("nothing is missing", LONG, async || shop.server.sql(missing).await == 0).await;
}

/// Everything that is old enough is booked; what was found is as it should be.
async fn all_booked(shop: &Shop, kinds: &[&str]) {
    shop.pass_time();
    until_true("everything is booked", LONG, async || shop.audited().1.contains("waiting 0 USDC")).await;
    let (ended_well, said) = shop.audited();
    assert!(ended_well, "{said}");
    for kind in kinds {
        assert!(said.contains(kind), "{kind}: {said}");
    }
    assert_eq!(said.matches(" transfers").count(), kinds.len() + 1, "those, and what waits: {said}");
}

async fn what_is_mined_again_in_another_block_stays_what_it_was(store: Store) {
    let shop = open(store).await;
    let agent = shop.server.agent("a").await;
    let before = shop.chain.snapshot();
    let quote = shop.quote(&agent, "5").await;
    let order = shop.pay_order(&shop.thief, &quote, 5_000_000);
    let proof = quote.proof(&order, &shop.thief.address, None);
    shop.topup(&agent, "5").header("x-payment", &proof).await.ok(201);
    let payment = shop.quote(&agent, "2").await.pay_v2(&shop.customer);
    let paid = shop.topup(&agent, "2").header("payment-signature", &payment).await;
    let exact = paid.ok(201)["receipt"]["txHash"].as_str().expect("a hash").to_owned();
    let sent = transaction(&shop, &order);
    shop.chain.revert(&before);
    shop.chain.mine(3);
    shop.send_again(&sent);
    booked_at(&shop, &order).await;
    // What the server has sent it sends again by itself.
    until_true("it is in a block again", LONG, async || shop.chain.receipt(&exact).is_some()).await;
    booked_at(&shop, &exact).await;
    let again = shop.topup(&agent, "2").header("payment-signature", &payment).await;
    assert_eq!((again.status, &again.body), (201, &paid.body));
    all_booked(&shop, &["order 5 USDC in 1 transfers", "exact 2 USDC in 1 transfers"]).await;
    assert_eq!((shop.credits(&agent).await.as_str(), shop.till()), ("7", 7_000_000));
    let orders = shop.server.get("/api/orders").key(&agent.key).await.list();
    assert!(orders.len() == 2 && orders.iter().all(|order| order["status"] == "delivered"), "{orders:?}");
}

async fn what_moved_without_a_sale_is_taken_back_and_booked_again_as_what_it_was(store: Store) {
    let shop = open(store).await;
    let agent = shop.own_wallet().await;
    // Wait for the cursor's start.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = shop.chain.snapshot();
    let deposit = shop.transfer(&shop.customer, 3_000_000, "");
    let unknown = shop.transfer(&shop.thief, 2_000_000, "");
    let out = shop.chain.transfer(&shop.treasury.address, &shop.thief.address, 500_000, "");
    shop.chain.mined(&out);
    let sent = [&deposit, &unknown, &out].map(|hash| transaction(&shop, hash));
    let kinds = [
        "deposit 3 USDC in 1 transfers",
        "unmatched 2 USDC in 1 transfers",
        "withdrawal 0.5 USDC in 1 transfers",
    ];
    all_booked(&shop, &kinds).await;
    assert_eq!(shop.credits(&agent).await, "3");
    shop.chain.revert(&before);
    let gone = "UPDATE receipts SET amount = amount WHERE status = 'reversed'";
    until_true("all of it is taken back", LONG, async || shop.server.sql(gone).await == 3).await;
    assert_eq!(shop.credits(&agent).await, "0");
    shop.chain.mine(2);
    for transaction in &sent {
        shop.send_again(transaction);
    }
    until_true("all of it is booked again", LONG, async || shop.server.sql(gone).await == 0).await;
    all_booked(&shop, &kinds).await;
    assert_eq!(shop.credits(&agent).await, "3");
}

async fn what_came_by_another_transaction_while_the_server_was_away_is_the_same_payment(store: Store) {
    let mut shop = open(store).await;
    let agent = shop.server.agent("a").await;
    // Wait for the cursor's start.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = shop.chain.snapshot();
    let payment = shop.quote(&agent, "5").await.pay_v2(&shop.customer);
    let paid = shop.topup(&agent, "5").header("payment-signature", &payment).await;
    paid.ok(201);
    shop.server.kill();
    shop.chain.revert(&before);
    let other = shop.carry_out(&shop.thief, &payment);
    shop.chain.mined(&other);
    // Whoever finds it first: what looks after booked payments, or what books all that has moved.
    shop.pass_time();
    shop.server.crash().await;
    booked_at(&shop, &other).await;
    all_booked(&shop, &["exact 5 USDC in 1 transfers"]).await;
    let orders = shop.server.get("/api/orders").key(&agent.key).await.list();
    let state = (orders.len(), &orders[0]["status"], &orders[0]["txHash"]);
    assert_eq!(state, (1, &json!("delivered"), &json!(other)));
    assert_eq!((shop.credits(&agent).await.as_str(), shop.till()), ("5", 5_000_000));
    let again = shop.topup(&agent, "5").header("payment-signature", &payment).await;
    assert_eq!((again.status, &again.body), (201, &paid.body));
}

async fn what_is_owed_back_is_owed_once_whichever_transaction_brings_it(store: Store) {
    let shop = open(store).await;
    let agent = shop.server.agent("a").await;
    let payment = shop.quote(&agent, "5").await.pay_v2(&shop.customer);
    let call = || shop.topup(&agent, "5").header("payment-signature", &payment);
    shop.chain.hold();
    let before = shop.chain.snapshot();
    call().await.refused(503, "payment_pending");
    shop.server.end(&agent).await;
    shop.chain.mine(1);
    until_true("it ends", LONG, async || call().await.status == 409).await;
    let due = async || {
        let refunds = shop.server.as_operator("GET", "/api/refunds").await.list();
        refunds.into_iter().filter(|refund| refund["status"] == "due").collect::<Vec<_>>()
    };
    assert_eq!(due().await.len(), 1);
    shop.chain.revert(&before);
    shop.chain.hold();
    until_true("nothing is owed for it", LONG, async || due().await.is_empty()).await;
    let other = shop.carry_out(&shop.thief, &payment);
    shop.chain.mine(1);
    shop.chain.mined(&other);
    until_true("it is owed again", LONG, async || due().await.len() == 1).await;
    booked_at(&shop, &other).await;
    all_booked(&shop, &["refund_due 5 USDC in 1 transfers"]).await;
    assert_eq!((due().await.len(), shop.credits(&agent).await.as_str(), shop.till()), (1, "0", 5_000_000));
}
