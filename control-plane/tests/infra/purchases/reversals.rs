//! Payments that leave the chain after they were booked.

use otonix_control_plane::service::payments::book::{Arrived, SoldFor};
use otonix_control_plane::service::payments::movements::turn_in;
use otonix_control_plane::store::receipts;
use otonix_control_plane::store::writer::Target;
use otonix_control_plane::upstream::providers::Refusal;

use super::bench::{Bench, DOMAIN, For, domain, payment, stranger};
use super::shelf::How;
use crate::support::{Store, on_each_store};

on_each_store!(
    what_was_not_sent_is_not_bought,
    what_was_bought_is_owed_by_its_agent_or_borne_by_the_operator,
    what_went_back_is_taken_back_once,
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
    let body = serde_json::from_value(serde_json::json!({ "resolution": "failed" })).expect("a resolution");
    let id = purchase.id.into();
    otonix_control_plane::service::purchases::resolve::resolve(
        &bench.app,
        &Bench::operator(),
        id,
        body,
        None,
    )
    .await
    .expect("it waits for it");
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
