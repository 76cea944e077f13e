//! Sellers that fail or cheat: never a cent beyond the rules, never twice, and the outcome is told truthfully.

use std::sync::atomic::Ordering;

use otonix_sdk::pay::{Denied, PayError, State};
use serde_json::json;

use crate::seller::{Manner, Seller, offer};
use crate::world::{World, over, post, state};

async fn seller(world: &World, manner: Manner) -> Seller {
    Seller::start(&world.chain, 2, vec![offer(&world.chain, world.payee(), "10000")], manner).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_or_wrong_answer_after_settling_is_never_paid_again() {
    let world = World::with(1_000_000).await;
    let client = world.client().await;
    for (place, manner) in [
        Manner::Drops,
        Manner::SettlesThen(500),
        Manner::SettlesThen(402),
        Manner::SettlesThen(302),
        Manner::SettlesThen(404),
    ]
    .into_iter()
    .enumerate()
    {
        let seller = seller(&world, manner).await;
        let fetched = client.fetch(post(&seller.url(), "{}")).await.expect("signed");
        let end = over(&client, fetched.id).await;
        assert_eq!(end, State::PaidUndelivered, "{manner:?}");
        let (payment, _) = client.payment(fetched.id).expect("it is known");
        let hash = payment.tx_hash.expect("the evidence");
        assert_eq!(world.moved().len(), place + 1, "{manner:?}");
        assert!(world.moved().iter().any(|(moved, _)| *moved == hash), "{manner:?}");
        assert_eq!((seller.settled(), seller.authorizations()), (1, 1), "{manner:?}");
        assert!(seller.payments().len() > 1, "it was tried again: {manner:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seller_that_recovers_delivers_for_the_same_payment() {
    let world = World::with(1_000_000).await;
    let client = world.client().await;
    for manner in [Manner::SettlesThenOnce(500), Manner::SettlesThenOnce(503), Manner::DropsOnce] {
        let seller = seller(&world, manner).await;
        let before = world.moved().len();
        let fetched = client.fetch(post(&seller.url(), "{}")).await.expect("paid");
        assert_eq!(state(&fetched), State::Settled, "{manner:?}");
        let payments = seller.payments();
        assert!(payments.len() == 2 && payments[0] == payments[1], "the same bytes: {manner:?}");
        assert_eq!(world.moved().len(), before + 1, "{manner:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_is_never_taken_expires_and_gives_its_budget_back() {
    let mut world = World::with(1_000_000).await;
    world.rules.max_hour = crate::world::usdc("0.01");
    let client = world.client().await;
    let seller = seller(&world, Manner::Refuses(402)).await;
    let fetched = client.fetch(post(&seller.url(), "{}")).await.expect("signed");
    assert_eq!(state(&fetched), State::Signed);
    assert_eq!(fetched.answer.expect("an answer").status, 402);
    // While it can still move money, its budget is taken.
    let second = client.fetch(post(&seller.url(), "{\"n\":2}")).await;
    assert!(matches!(second, Err(PayError::Denied(Denied::Above { .. }))), "{second:?}");
    world.chain.advance(60 + 13);
    world.chain.mine(70);
    assert_eq!(over(&client, fetched.id).await, State::ExpiredUnspent);
    assert!(world.moved().is_empty());
    seller.be(Manner::Honest);
    let third = client.fetch(post(&seller.url(), "{\"n\":3}")).await.expect("paid");
    assert_eq!(state(&third), State::Settled);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offers_beyond_the_rules_are_not_signed() {
    let world = World::with(100_000_000).await;
    let client = world.client().await;
    let seller = seller(&world, Manner::Honest).await;
    let usual = offer(&world.chain, world.payee(), "10000");
    let with = |name: &str, value: serde_json::Value| {
        let mut changed = usual.clone();
        changed[name] = value;
        changed
    };
    let cheats = [
        with("amount", json!("1000001")),
        with("asset", json!(world.chain.accounts[1].address)),
        with("network", json!("eip155:1")),
        with("extra", json!({"name": "USDC", "version": "2"})),
        with("scheme", json!("upto")),
    ];
    for cheat in cheats {
        *seller.inner.offers.lock().expect("lock") = vec![cheat.clone()];
        let refused = client.fetch(post(&seller.url(), "{}")).await;
        assert!(matches!(refused, Err(PayError::Denied(_))), "{cheat}: {refused:?}");
    }
    assert!(seller.payments().is_empty());
    // A dearer offer first: the cheaper one is taken.
    let dear = with("amount", json!("500000"));
    *seller.inner.offers.lock().expect("lock") = vec![dear, usual.clone()];
    let paid = client.fetch(post(&seller.url(), "{}")).await.expect("paid");
    assert_eq!(paid.payment.expect("a payment").amount, crate::world::usdc("0.01"));
    // Another payee than before.
    *seller.inner.offers.lock().expect("lock") = vec![with("payTo", json!(world.chain.accounts[7].address))];
    let refused = client.fetch(post(&seller.url(), "{}")).await;
    assert!(matches!(refused, Err(PayError::Denied(Denied::Payee { .. }))), "{refused:?}");
    let origin = format!("http://{}", seller.address);
    assert!(client.unpin(origin).await.expect("the journal"));
    assert!(client.fetch(post(&seller.url(), "{}")).await.is_ok());
    assert_eq!(world.moved().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_redirect_is_followed_and_no_price_above_the_callers() {
    let world = World::with(1_000_000).await;
    let client = world.client().await;
    let seller = seller(&world, Manner::Honest).await;
    let there = seller.url();
    let app = axum::Router::new().fallback(move || {
        let there = there.clone();
        async move { axum::response::Redirect::temporary(&there) }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
    let fetched = client.fetch(post(&url, "{}")).await.expect("an answer");
    assert_eq!(fetched.answer.map(|answer| answer.status), Some(307));
    assert_eq!(seller.inner.asked.load(Ordering::SeqCst), 0);
    let mut careful = post(&seller.url(), "{}");
    careful.max_amount = crate::world::usdc("0.009999");
    assert!(matches!(client.fetch(careful).await, Err(PayError::Denied(Denied::Above { .. }))));
    let mut paused = post(&seller.url(), "{}");
    client.set_paused(Some("by the owner".to_owned()));
    paused.request.body = b"x".to_vec();
    assert!(matches!(client.fetch(paused).await, Err(PayError::Paused(_))));
    assert!(seller.payments().is_empty());
}
