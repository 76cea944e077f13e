//! Honest sellers, and the bounds.

use otonix_sdk::pay::{Denied, PayError, State};

use crate::seller::{Manner, Seller, offer, offer_v1};
use crate::world::{World, post, state};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_are_paid_and_the_receipt_is_kept() {
    let world = World::with(1_000_000).await;
    let client = world.client().await;
    for version in [2, 1] {
        let offers = match version {
            2 => vec![offer(&world.chain, world.payee(), "10000")],
            _ => vec![offer_v1(&world.chain, world.payee(), "10000")],
        };
        let seller = Seller::start(&world.chain, version, offers, Manner::Honest).await;
        let before = (world.balance(&world.address), world.balance(world.payee()));
        let fetched = client.fetch(post(&seller.url(), "{\"q\":1}")).await.expect("paid");
        let answer = fetched.answer.clone().expect("an answer");
        assert_eq!((answer.status, state(&fetched)), (200, State::Settled), "{fetched:?}");
        assert!(String::from_utf8_lossy(&answer.body).contains("{\\\"q\\\":1}"));
        let after = (world.balance(&world.address), world.balance(world.payee()));
        assert_eq!((before.0 - after.0, after.1 - before.1), (10_000, 10_000), "version {version}");
        let payment = fetched.payment.expect("a payment");
        let hash = payment.tx_hash.expect("a transaction");
        assert!(world.moved().contains(&(hash, 10_000)));
        assert!(payment.receipt.is_some_and(|receipt| receipt["success"] == true));
        assert_eq!((seller.settled(), seller.authorizations(), seller.payments().len()), (1, 1, 1));
        let (_, kept) = client.payment(fetched.id).expect("it is known");
        assert_eq!(kept.map(|kept| kept.body), Some(answer.body));
    }
    assert_eq!(client.pins().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_free_costs_nothing() {
    let world = World::with(0).await;
    let client = world.client().await;
    let app = axum::Router::new().fallback(|| async { "free" });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let url = format!("http://{}/", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, app).await.expect("serves") });
    let fetched = client.fetch(post(&url, "")).await.expect("an answer");
    assert!(fetched.payment.is_none());
    assert_eq!(fetched.answer.map(|answer| answer.body), Some(b"free".to_vec()));
    assert!(client.payments().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_is_paid_once_and_its_answer_comes_again() {
    let world = World::with(1_000_000).await;
    let client = world.client().await;
    let offers = vec![offer(&world.chain, world.payee(), "10000")];
    let seller = Seller::start(&world.chain, 2, offers, Manner::Honest).await;
    let mut keyed = post(&seller.url(), "{}");
    keyed.key = Some("order-1".to_owned());
    let first = client.fetch(keyed.clone()).await.expect("paid");
    drop(client);
    let client = world.client().await;
    let second = client.fetch(keyed.clone()).await.expect("the same");
    assert_eq!((first.id, state(&second)), (second.id, State::Settled));
    assert_eq!(first.answer.map(|answer| answer.body), second.answer.map(|answer| answer.body));
    keyed.request.body = b"{\"other\":1}".to_vec();
    assert!(matches!(client.fetch(keyed).await, Err(PayError::KeyReused)));
    assert_eq!((seller.settled(), world.moved().len()), (1, 1));
    let again = client.fetch(post(&seller.url(), "{}")).await.expect("paid");
    assert_ne!(again.id, first.id);
    assert_eq!(world.moved().len(), 2, "without a key it is another purchase");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identical_requests_at_once_are_one_payment() {
    let world = World::with(1_000_000).await;
    let client = world.client().await;
    let offers = vec![offer(&world.chain, world.payee(), "10000")];
    let seller = Seller::start(&world.chain, 2, offers, Manner::Refuses(500)).await;
    let one = client.fetch(post(&seller.url(), "{}")).await.expect("signed");
    assert_eq!(state(&one), State::Signed);
    let others: Vec<_> = (0..5).map(|_| client.fetch(post(&seller.url(), "{}"))).collect();
    for other in others {
        assert_eq!(other.await.expect("joined").id, one.id);
    }
    assert_eq!(seller.authorizations(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_payers_never_exceed_a_cap() {
    let world = World::with(100_000_000).await;
    let client = world.client().await;
    let offers = vec![offer(&world.chain, world.payee(), "700001")];
    let seller = Seller::start(&world.chain, 2, offers, Manner::Honest).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..20 {
        let (client, url) = (client.clone(), seller.url());
        tasks.spawn(async move { client.fetch(post(&url, &n.to_string())).await });
    }
    let (mut paid, mut refused) = (0_u64, 0);
    while let Some(outcome) = tasks.join_next().await {
        match outcome.expect("runs") {
            Ok(fetched) => {
                assert_eq!(state(&fetched), State::Settled);
                paid += 1;
            }
            Err(PayError::Denied(Denied::Above { .. })) => refused += 1,
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!((paid, refused), (7, 13), "5 USDC an hour is seven times 0.700001");
    let moved: u64 = world.moved().iter().map(|(_, micros)| micros).sum();
    assert_eq!(moved, paid * 700_001);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wallet_without_enough_signs_nothing() {
    let world = World::with(9_999).await;
    let client = world.client().await;
    let offers = vec![offer(&world.chain, world.payee(), "10000")];
    let seller = Seller::start(&world.chain, 2, offers, Manner::Honest).await;
    let refused = client.fetch(post(&seller.url(), "{}")).await;
    assert!(matches!(refused, Err(PayError::Denied(Denied::Above { .. }))), "{refused:?}");
    assert!(seller.payments().is_empty());
    let listed = client.payments();
    assert_eq!(listed.iter().map(|payment| payment.state).collect::<Vec<_>>(), [State::Refused]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_another_chain_nothing_is_paid() {
    let mut world = World::with(1_000_000).await;
    let offers = vec![offer(&world.chain, world.payee(), "10000")];
    let seller = Seller::start(&world.chain, 2, offers, Manner::Honest).await;
    world.rules.chain_id = 1;
    let client = world.client().await;
    assert!(matches!(client.fetch(post(&seller.url(), "{}")).await, Err(PayError::WrongChain(_))));
    assert!(seller.payments().is_empty());
}
