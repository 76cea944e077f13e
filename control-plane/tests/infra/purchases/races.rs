//! Many at once for what only one can have.

use std::sync::Arc;

use otonix_control_plane::service::payments::order_id::hash_of;

use super::bench::{Bench, DOMAIN, For, domain, payment, stranger};
use super::shelf::How;
use crate::support::{Store, on_each_store};

on_each_store!(
    of_fifty_payments_for_a_domain_one_buys_it_and_the_others_get_their_money_back,
    one_payment_presented_by_many_is_one_purchase,
);

async fn of_fifty_payments_for_a_domain_one_buys_it_and_the_others_get_their_money_back(store: Store) {
    let bench = Arc::new(Bench::open(store).await);
    let running: Vec<_> = (0..50)
        .map(|n| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                bench.try_pay(domain("a.com"), &For::default(), DOMAIN, DOMAIN, stranger(n + 1)).await
            })
        })
        .collect();
    let mut waiting = 0;
    for one in running {
        let sold = one.await.expect("no panic").expect("each is booked");
        if sold.status == 0 {
            waiting += 1;
        } else {
            assert_eq!(sold.status, 409, "{}", sold.answer);
            assert!(sold.answer.contains("purchase_under_way"), "{}", sold.answer);
        }
    }
    assert_eq!(waiting, 1);
    assert_eq!(bench.account("refunds").await, 49 * DOMAIN);
    bench.live(30, 2).await;
    assert_eq!(bench.shelf.bought("a.com"), 1);
    assert_eq!(bench.account("purchases").await, DOMAIN);
}

async fn one_payment_presented_by_many_is_one_purchase(store: Store) {
    let bench = Arc::new(Bench::open(store).await);
    let (sold, arrived) = payment(domain("a.com"), &For::default(), DOMAIN, DOMAIN, stranger(1));
    let running: Vec<_> = (0..20)
        .map(|_| {
            let (bench, sold, arrived) = (Arc::clone(&bench), sold.clone(), arrived.clone());
            tokio::spawn(async move { bench.book(sold, arrived).await })
        })
        .collect();
    let mut sales = Vec::new();
    for one in running {
        sales.push(one.await.expect("no panic").expect("it is booked").id);
    }
    sales.dedup();
    assert_eq!(sales.len(), 1);
    // The same transfer for another order buys nothing.
    let mut other = sold.clone();
    "another".clone_into(&mut other.order_id);
    other.order_hash = hash_of("another");
    other.binding = [9; 32];
    assert!(bench.book(other, arrived).await.is_err());
    bench.live(30, 2).await;
    assert_eq!(bench.shelf.bought("a.com"), 1);
    bench.audit().await;
}

/// An embedded database has one server.
#[tokio::test]
async fn two_replicas_carry_out_one_purchase_once() {
    let one = Bench::open(Store::Postgres).await;
    let two = one.again().await;
    one.shelf.next(&[How::LostAfter, How::LostBefore]);
    let mut sales = Vec::new();
    for n in 0..10_u8 {
        let name = format!("a{n}.com");
        sales.push(one.pay(domain(&name), &For::default(), DOMAIN, DOMAIN, stranger(n + 1)).await.id);
    }
    for _ in 0..60 {
        one.pass(20);
        let (_, _) = tokio::join!(one.work(), two.work());
    }
    for (n, sale) in sales.into_iter().enumerate() {
        assert_eq!(one.purchase(sale).await.status, "delivered", "{n}");
        assert_eq!(one.shelf.bought(&format!("a{n}.com")), 1);
    }
    one.audit().await;
}
