//! Orders: the wallet carries the transfer out itself, once, whatever happens to its fee.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use otonix_sdk::pay::{PayError, State};
use otonix_sdk::x402::eip3009;
use serde_json::json;

use crate::seller::{Manner, Seller};
use crate::world::{World, over, post, state};

const ETHER: u128 = 1_000_000_000_000_000_000;

async fn seller(world: &World, secs: u64) -> Seller {
    let seller = Seller::start(&world.chain, 2, Vec::new(), Manner::Orders).await;
    #[expect(clippy::disallowed_methods, reason = "an order of the present")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let expires =
        chrono::DateTime::from_timestamp(i64::try_from(now + secs).expect("fits"), 0).expect("a time");
    *seller.inner.order.lock().expect("lock") = Some(json!({
        "orderId": "order-1", "amountUSDC": "0.01", "maxAmountRequired": "10000", "treasury": world.payee(),
        "asset": world.chain.asset, "network": "eip155:8453", "chainId": 8453, "expiresAt": expires.to_rfc3339(),
        "x402Version": 1, "accepts": [],
    }));
    seller
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_paid_by_a_transfer_that_names_it() {
    let world = World::with(1_000_000).await;
    let seller = seller(&world, 900).await;
    let client = world.client().await;
    let refused = client.fetch(post(&seller.url(), "{}")).await;
    assert!(matches!(refused, Err(PayError::Denied(_))), "no coins for gas: {refused:?}");
    world.chain.set_ether(&world.address, ETHER);
    let fetched = client.fetch(post(&seller.url(), "{}")).await.expect("paid");
    assert_eq!(state(&fetched), State::Settled, "{fetched:?}");
    let moved = world.moved();
    assert_eq!(moved.len(), 1);
    let sent = world.chain.rpc("eth_getTransactionByHash", json!([moved[0].0]));
    let input = sent["input"].as_str().expect("calldata");
    let tag = eip3009::write_hex(&eip3009::order_tag("order-1"));
    assert!(input.ends_with(tag.trim_start_matches("0x")), "{input}");
    assert_eq!(fetched.payment.and_then(|payment| payment.tx_hash), Some(moved[0].0.clone()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_that_waits_is_raised_with_the_same_number() {
    let world = World::with(1_000_000).await;
    world.chain.set_ether(&world.address, ETHER);
    let seller = seller(&world, 900).await;
    let client = world.client().await;
    world.chain.hold();
    let fetch = tokio::spawn({
        let (client, url) = (client.clone(), seller.url());
        async move { client.fetch(post(&url, "{}")).await }
    });
    tokio::time::sleep(Duration::from_millis(1500)).await;
    world.chain.mine(1);
    let fetched = fetch.await.expect("runs").expect("paid");
    assert_eq!(state(&fetched), State::Settled, "{fetched:?}");
    assert_eq!(world.moved().len(), 1);
    let count = world.chain.rpc("eth_getTransactionCount", json!([world.address, "latest"]));
    assert_eq!(count, "0x1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_that_ends_before_it_is_mined_is_made_void() {
    let mut world = World::with(1_000_000).await;
    // The order lives for 123 s; it is given up 118 s before its end.
    world.tuning.void_before = Duration::from_secs(118);
    world.chain.set_ether(&world.address, ETHER);
    let client = world.client().await;
    // Warm up: the first call compares chain and journal.
    client.reconcile().await.expect("the chain answers");
    world.chain.hold();
    let seller = seller(&world, 123).await;
    let fetch = tokio::spawn({
        let (client, url) = (client.clone(), seller.url());
        async move { client.fetch(post(&url, "{}")).await }
    });
    let began = std::time::Instant::now();
    let id = loop {
        if let Some(payment) = client.payments().first().map(|payment| payment.intent_id) {
            break payment;
        }
        assert!(began.elapsed() < Duration::from_secs(20));
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    tokio::time::sleep(Duration::from_secs(7)).await;
    world.chain.mine(70);
    assert_eq!(over(&client, id).await, State::ExpiredUnspent);
    assert!(world.moved().iter().all(|(_, micros)| *micros == 0));
    let fetched = fetch.await.expect("runs").expect("told");
    assert_ne!(state(&fetched), State::Settled);
}
