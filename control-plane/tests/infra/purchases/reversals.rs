//! Payments that leave the chain after they were booked.

use otonix_control_plane::error::Error;
use otonix_control_plane::service::agents;
use otonix_control_plane::service::payments::book::{Arrived, SoldFor};
use otonix_control_plane::service::payments::goods::Goods;
use otonix_control_plane::service::payments::movements::{deposit_in, turn_in};
use otonix_control_plane::service::purchases::offers;
use otonix_control_plane::store::receipts;
use otonix_control_plane::store::writer::Target;
use otonix_control_plane::upstream::providers::Refusal;
use otonix_sdk::error::ErrorCode;

use super::bench::{Bench, DOMAIN, For, SERVER, domain, payment, server, stranger};
use super::shelf::How;
use crate::support::{Store, on_each_store};

on_each_store!(
    what_was_not_sent_is_not_bought,
    what_was_bought_is_owed_by_its_agent_or_borne_by_the_operator,
    what_went_back_is_taken_back_once,
    what_an_agent_made_up_for_goes_back_to_that_agent,
    a_surplus_that_was_due_is_due_again,
    what_was_unmatched_and_is_gone_pays_nothing_until_it_is_back,
    nothing_is_sent_again_for_a_payment_that_is_gone,
    a_refund_of_a_payment_that_is_gone_is_due_no_more,
    an_agent_that_owes_buys_no_time_for_its_server,
);

/// The payment is gone, or there again.
async fn turn(bench: &Bench, arrived: &Arrived, back: bool) {
    let (chain, tx_hash) = (8453, arrived.tx_hash);
    let turned = bench.app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            let rows = receipts::of_transaction(&mut tx.conn, chain, tx_hash).await?;
            turn_in(tx, &rows[0], back).await
        })
    });
    assert!(turned.await.expect("it is turned"));
    bench.audit().await;
}

async fn booked(bench: &Bench, name: &str, to: &For) -> (SoldFor, Arrived, uuid::Uuid) {
    let (sold, arrived) = payment(domain(name), to, DOMAIN, DOMAIN, stranger(1));
    let sale = bench.book(sold.clone(), arrived.clone()).await.expect("it is booked").id;
    (sold, arrived, sale)
}

async fn what_was_not_sent_is_not_bought(store: Store) {
    let bench = Bench::open(store).await;
    let (_, arrived, sale) = booked(&bench, "a.com", &For::default()).await;
    turn(&bench, &arrived, true).await;
    bench.live(60, 10).await;
    assert_eq!(bench.purchase(sale).await.status, "failed");
    assert_eq!(bench.shelf.bought("a.com"), 0);
    assert_eq!(bench.sale(sale).await, "reversed");
    assert_eq!(bench.account("treasury").await, 0);
    // It is on the chain again: the money is owed back.
    turn(&bench, &arrived, false).await;
    assert_eq!(bench.account("refunds").await, DOMAIN);
    assert_eq!(bench.sale(sale).await, "refund_due");
    turn(&bench, &arrived, true).await;
    assert_eq!((bench.account("refunds").await, bench.account("treasury").await), (0, 0));
}

async fn what_was_bought_is_owed_by_its_agent_or_borne_by_the_operator(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (agent, _) = bench.agent(&owner, "a").await;
    let (_, for_agent, first) = booked(&bench, "a.com", &For { agent: Some(agent), ..For::default() }).await;
    let (_, for_nobody, second) = booked(&bench, "b.com", &For::default()).await;
    bench.live(60, 2).await;
    turn(&bench, &for_agent, true).await;
    turn(&bench, &for_nobody, true).await;
    assert_eq!(bench.credits(agent).await, -DOMAIN);
    assert_eq!(bench.account("reversals").await, -DOMAIN);
    for sale in [first, second] {
        assert_eq!((bench.sale(sale).await.as_str(), bench.answer(sale).await.0), ("reversed", 201));
        assert_eq!(bench.purchase(sale).await.status, "delivered");
    }
    turn(&bench, &for_agent, false).await;
    turn(&bench, &for_nobody, false).await;
    assert_eq!((bench.credits(agent).await, bench.account("reversals").await), (0, 0));
    assert_eq!(bench.sale(first).await, "delivered");
    // One that fails after its payment is gone.
    bench.shelf.next(&[How::LostBefore]);
    let (_, gone, third) = booked(&bench, "c.com", &For { agent: Some(agent), ..For::default() }).await;
    bench.work().await;
    bench.shelf.world.lock().taken.push("c.com".to_owned());
    turn(&bench, &gone, true).await;
    assert_eq!(bench.credits(agent).await, -DOMAIN);
    bench.live(90_000, 1000).await;
    let purchase = bench.purchase(third).await;
    assert_eq!(purchase.status, "needs_operator", "taken, by whom is not known");
    resolve(&bench, third, "failed").await;
    assert_eq!(bench.credits(agent).await, 0);
    assert_eq!(bench.sale(third).await, "reversed");
    bench.audit().await;
}

async fn what_went_back_is_taken_back_once(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (payer, wallet) = bench.agent(&owner, "payer").await;
    bench.shelf.next(&[How::Refused(Refusal::Other), How::Refused(Refusal::Other)]);
    let (sold, arrived) = payment(domain("a.com"), &For::default(), DOMAIN, DOMAIN, wallet);
    bench.book(sold, arrived.clone()).await.expect("it is booked");
    let (_, nobodys, _) = booked(&bench, "b.com", &For::default()).await;
    bench.work().await;
    assert_eq!((bench.credits(payer).await, bench.account("refunds").await), (DOMAIN, DOMAIN));
    turn(&bench, &arrived, true).await;
    turn(&bench, &nobodys, true).await;
    assert_eq!((bench.credits(payer).await, bench.account("refunds").await), (0, 0));
    assert_eq!(bench.account("treasury").await, 0);
    turn(&bench, &arrived, false).await;
    turn(&bench, &nobodys, false).await;
    assert_eq!((bench.credits(payer).await, bench.account("refunds").await), (DOMAIN, DOMAIN));
}

async fn what_an_agent_made_up_for_goes_back_to_that_agent(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (payer, wallet) = bench.agent(&owner, "payer").await;
    let (other, _) = bench.agent(&owner, "other").await;
    // The payer's agent is given the surplus, and the domain is for another.
    let to = For { agent: Some(other), ..For::default() };
    bench.shelf.next(&[How::LostBefore]);
    let (sold, arrived) = payment(domain("a.com"), &to, DOMAIN, DOMAIN + 1_000_000, wallet);
    let sale = bench.book(sold, arrived.clone()).await.expect("it is booked").id;
    assert_eq!((bench.credits(payer).await, bench.credits(other).await), (1_000_000, 0));
    bench.work().await;
    bench.shelf.world.lock().taken.push("a.com".to_owned());
    turn(&bench, &arrived, true).await;
    let owes = (bench.credits(payer).await, bench.credits(other).await);
    bench.live(90_000, 1000).await;
    resolve(&bench, sale, "failed").await;
    let after = (bench.credits(payer).await, bench.credits(other).await);
    assert_eq!(owes.0 + owes.1, -DOMAIN);
    assert_eq!(after, (0, 0), "whoever made up for it has it back: {owes:?}");
    turn(&bench, &arrived, false).await;
    assert_eq!((bench.credits(payer).await, bench.credits(other).await), (DOMAIN + 1_000_000, 0));
}

async fn a_surplus_that_was_due_is_due_again(store: Store) {
    let bench = Bench::open(store).await;
    let (sold, arrived) = payment(domain("a.com"), &For::default(), DOMAIN, DOMAIN + 1_000_000, stranger(1));
    let sale = bench.book(sold, arrived.clone()).await.expect("it is booked").id;
    bench.live(60, 2).await;
    assert_eq!(
        (bench.purchase(sale).await.status.as_str(), bench.account("refunds").await),
        ("delivered", 1_000_000)
    );
    for _ in 0..2 {
        turn(&bench, &arrived, true).await;
        assert_eq!((bench.account("refunds").await, bench.account("reversals").await), (0, -DOMAIN));
        turn(&bench, &arrived, false).await;
        assert_eq!((bench.account("refunds").await, bench.account("reversals").await), (1_000_000, 0));
    }
    assert_eq!(bench.due().await, 1_000_000, "the refund itself is due again");
}

async fn what_was_unmatched_and_is_gone_pays_nothing_until_it_is_back(store: Store) {
    let bench = Bench::open(store).await;
    let (sold, arrived) = payment(domain("a.com"), &For::default(), DOMAIN, DOMAIN, stranger(1));
    let moved = arrived.clone();
    let booked = bench
        .app
        .writer
        .apply(Target::Alone, move |tx| Box::pin(async move { deposit_in(tx, &moved).await }));
    assert!(!booked.await.expect("it is booked"), "nobody's");
    assert_eq!(bench.account("unmatched").await, DOMAIN);
    turn(&bench, &arrived, true).await;
    let refused = bench.book(sold.clone(), arrived.clone()).await.expect_err("it is not on the chain");
    assert!(matches!(refused, Error::Busy { .. }), "it may come back: {refused:?}");
    assert_eq!((bench.account("unmatched").await, bench.account("purchases_open").await), (0, 0));
    turn(&bench, &arrived, false).await;
    bench.book(sold, arrived).await.expect("it is there");
    assert_eq!((bench.account("unmatched").await, bench.account("purchases_open").await), (0, DOMAIN));
}

async fn resolve(bench: &Bench, sale: uuid::Uuid, resolution: &str) {
    let body = serde_json::from_value(serde_json::json!({ "resolution": resolution })).expect("a resolution");
    let id = bench.purchase(sale).await.id.into();
    otonix_control_plane::service::purchases::resolve::resolve(
        &bench.app,
        &Bench::operator(),
        id,
        body,
        None,
    )
    .await
    .expect("it waits for it");
    bench.audit().await;
}

async fn nothing_is_sent_again_for_a_payment_that_is_gone(store: Store) {
    let bench = Bench::open(store).await;
    bench.shelf.next(&[How::LostBefore]);
    let (_, arrived, sale) = booked(&bench, "a.com", &For::default()).await;
    bench.work().await;
    turn(&bench, &arrived, true).await;
    // The looks show that nothing was done: without its payment it is not tried again.
    bench.live(3_600, 60).await;
    assert_eq!((bench.shelf.bought("a.com"), bench.purchase(sale).await.status.as_str()), (0, "failed"));
    assert_eq!((bench.sale(sale).await.as_str(), bench.account("reversals").await), ("reversed", 0));
}

async fn a_refund_of_a_payment_that_is_gone_is_due_no_more(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (agent, _) = bench.agent(&owner, "a").await;
    let why = serde_json::from_value(serde_json::json!({ "reason": "test" })).expect("a reason");
    agents::kill(&bench.app, &Bench::operator(), agent, why, None).await.expect("it is killed");
    let (mut sold, arrived) = payment(domain("a.com"), &For::default(), DOMAIN, DOMAIN, stranger(1));
    sold.goods = Goods::Topup { agent };
    let sale = bench.book(sold, arrived.clone()).await.expect("it is booked").id;
    assert_eq!((bench.sale(sale).await.as_str(), bench.due().await), ("refund_due", DOMAIN));
    turn(&bench, &arrived, true).await;
    assert_eq!((bench.due().await, bench.account("refunds").await), (0, 0));
    assert_eq!((bench.sale(sale).await.as_str(), bench.account("treasury").await), ("reversed", 0));
    turn(&bench, &arrived, false).await;
    assert_eq!((bench.due().await, bench.account("refunds").await), (DOMAIN, DOMAIN));
    assert_eq!(bench.sale(sale).await, "refund_due");
}

async fn an_agent_that_owes_buys_no_time_for_its_server(store: Store) {
    let bench = Bench::open(store).await;
    let owner = bench.owner().await;
    let (agent, _) = bench.agent(&owner, "a").await;
    let to = For { agent: Some(agent), owner: owner.key().expect("a key").owner.uuid() };
    let (sold, arrived) = payment(server("s1"), &to, SERVER, SERVER, stranger(1));
    let sale = bench.book(sold, arrived.clone()).await.expect("it is booked").id;
    bench.work().await;
    let id: u64 = bench.purchase(sale).await.vendor_ref.expect("it is there").parse().expect("a number");
    let more = || serde_json::from_value(serde_json::json!({})).expect("the usual time");
    offers::period(&bench.app, &owner, id, more()).await.expect("it is for sale");
    turn(&bench, &arrived, true).await;
    let refused = offers::period(&bench.app, &owner, id, more()).await;
    assert!(
        matches!(refused, Err(Error::Conflict { code: ErrorCode::InsufficientCredits, .. })),
        "{refused:?}"
    );
}
