//! Signed payments of both versions, settled by the server's own key.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::shop::{Shop, decoded, encoded, with_high_s};
use crate::support::poll::until_true;
use crate::support::{Answer, Store, on_each_store};

on_each_store!(
    both_versions_pay,
    ten_identical_payments_at_once_are_one,
    a_payment_buys_only_what_it_was_made_for,
    what_does_not_hold_is_refused_before_anything_is_sent,
    a_second_form_of_a_signature_is_refused,
    an_order_that_has_ended_is_paid_no_more,
    who_asks_the_chain_for_nothing_is_slowed_down_and_nobody_else,
    a_crash_at_any_moment_charges_once_and_grants_once,
    what_the_chain_takes_is_counted,
);

async fn both_versions_pay(store: Store) {
    let mut shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let quote = shop.quote(&agent, "3").await;
    let payment = quote.pay_v2(&shop.customer);
    let paid = shop.topup(&agent, "3").header("payment-signature", &payment).await;
    let body = paid.ok(201);
    assert_eq!(
        (&body["receipt"]["scheme"], &body["receipt"]["orderId"]),
        (&json!("exact"), &json!(quote.order_id))
    );
    let settled = decoded(paid.header("payment-response").expect("a receipt"));
    assert_eq!((&settled["success"], &settled["network"]), (&json!(true), &json!("eip155:8453")));
    assert_eq!(settled["transaction"], body["receipt"]["txHash"]);
    assert_eq!(paid.header("cache-control"), Some("private"));
    let quote = shop.quote(&agent, "4").await;
    let old = quote.pay_v1(&shop.customer);
    let paid_v1 = shop.topup(&agent, "4").header("x-payment", &old).await;
    assert_eq!((paid_v1.ok(201)["credits"].to_string().as_str(), shop.till()), ("7", 7_000_000));
    let settled = decoded(paid_v1.header("x-payment-response").expect("a receipt"));
    assert_eq!((&settled["success"], &settled["network"]), (&json!(true), &json!("base")));
    shop.server.crash().await;
    let again = shop.topup(&agent, "3").header("payment-signature", &payment).await;
    assert_eq!((again.status, &again.body), (201, &paid.body));
    assert_eq!(again.header("payment-response"), paid.header("payment-response"));
    let again = shop.topup(&agent, "4").header("x-payment", &old).await;
    assert_eq!((again.status, &again.body), (201, &paid_v1.body));
    assert_eq!((shop.credits(&agent).await.as_str(), shop.till()), ("7", 7_000_000));
    let transfers = shop.chain.transfers(Some(&shop.customer.address), Some(&shop.treasury.address));
    assert_eq!(transfers.len(), 2);
    shop.audit();
}

async fn ten_identical_payments_at_once_are_one(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let replica = if store == Store::Postgres { Some(shop.server.replica().await) } else { None };
    for round in 1..=3_u64 {
        let quote = shop.quote(&agent, "2").await;
        let payment = quote.pay_v2(&shop.customer);
        let calls = (0..10).map(|at| {
            let server = replica.as_ref().filter(|_| at % 2 == 1).unwrap_or(&shop.server);
            shop.topup_at(server, &agent, "2").header("payment-signature", &payment).into_future()
        });
        let answers: Vec<Answer> = join_all(calls).await;
        for answer in &answers {
            assert_eq!((answer.status, &answer.body), (201, &answers[0].body), "{}", answer.text());
        }
        assert_eq!(shop.till(), round * 2_000_000);
        assert_eq!(shop.credits(&agent).await, (round * 2).to_string());
    }
    shop.audit();
}

async fn a_payment_buys_only_what_it_was_made_for(store: Store) {
    let shop = Shop::open(store).await;
    let (one, two) = (shop.server.agent("one").await, shop.server.agent("two").await);
    let quote = shop.quote(&one, "2").await;
    let payment = quote.pay_v2(&shop.customer);
    // Never used before, and for another agent or body: not taken.
    shop.topup(&two, "2").header("payment-signature", &payment).await.refused(402, "payment_mismatch");
    shop.topup(&one, "2.0").header("payment-signature", &payment).await.refused(402, "payment_mismatch");
    assert_eq!(shop.till(), 0);
    shop.topup(&one, "2").header("payment-signature", &payment).await.ok(201);
    shop.topup(&two, "2").header("payment-signature", &payment).await.refused(409, "payment_already_used");
    let old = shop.quote(&one, "2").await.pay_v1(&shop.customer);
    shop.topup(&one, "2").header("x-payment", &old).await.ok(201);
    shop.topup(&two, "2").header("x-payment", &old).await.refused(409, "payment_already_used");
    assert_eq!((shop.credits(&one).await, shop.credits(&two).await), ("4".to_owned(), "0".to_owned()));
    assert_eq!(shop.till(), 4_000_000);
    shop.audit();
}

async fn what_does_not_hold_is_refused_before_anything_is_sent(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let quote = shop.quote(&agent, "2").await;
    let pay = |header: String| shop.topup(&agent, "2").header("payment-signature", header);
    pay(quote.pay_v2_with(&shop.customer, |t| t.value += 1)).await.refused(402, "payment_insufficient");
    pay(quote.pay_v2_with(&shop.customer, |t| t.value -= 1)).await.refused(402, "payment_insufficient");
    let elsewhere = shop.thief.address.parse().expect("an address");
    pay(quote.pay_v2_with(&shop.customer, |t| t.to = elsewhere)).await.refused(402, "payment_invalid");
    pay(quote.pay_v2_with(&shop.customer, |t| t.valid_before = 5)).await.refused(402, "payment_expired");
    pay(quote.pay_v2_with(&shop.customer, |t| t.valid_after = u64::from(u32::MAX)))
        .await
        .refused(402, "payment_invalid");
    // Signed by another than who is to pay.
    let victim = shop.customer.address.parse().expect("an address");
    pay(quote.pay_v2_with(&shop.thief, |t| t.from = victim)).await.refused(402, "payment_invalid");
    // Nobody's money.
    let poor = shop.chain.accounts[9].clone();
    pay(quote.pay_v2(&poor)).await.refused(402, "payment_insufficient");
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (0, "0"));
    let sent = shop.chain.rpc("eth_getTransactionCount", json!([shop.settler.address, "latest"]));
    assert_eq!(sent, json!("0x0"), "the settling key sent nothing");
    pay(quote.pay_v2(&shop.customer)).await.ok(201);
}

async fn a_second_form_of_a_signature_is_refused(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let quote = shop.quote(&agent, "2").await;
    let payment = quote.pay_v2(&shop.customer);
    let mut twisted = decoded(&payment);
    let signature = twisted["payload"]["signature"].as_str().expect("a text").to_owned();
    twisted["payload"]["signature"] = json!(with_high_s(&signature));
    let refused = shop.topup(&agent, "2").header("payment-signature", encoded(&twisted)).await;
    assert!(refused.refused(402, "payment_invalid")["detail"].to_string().contains("low s"));
    shop.topup(&agent, "2").header("payment-signature", &payment).await.ok(201);
    assert_eq!(shop.till(), 2_000_000);
    shop.audit();
}

async fn an_order_that_has_ended_is_paid_no_more(store: Store) {
    let shop = Shop::open_with(store, &[("--order-ttl", "1")]).await;
    let agent = shop.server.agent("a").await;
    let quote = shop.quote(&agent, "2").await;
    let payment = quote.pay_v2(&shop.customer);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    let late = shop.topup(&agent, "2").header("payment-signature", &payment).await;
    assert!(late.refused(402, "payment_expired")["detail"].to_string().contains("order"));
    // Nor for more than an hour: nobody could say for so long that it was not paid.
    let long = quote.pay_v2_with(&shop.customer, |transfer| transfer.valid_before += 86_400);
    let long = shop.topup(&agent, "2").header("payment-signature", &long).await;
    assert_eq!((long.status, shop.till()), (402, 0));
    assert_eq!(shop.credits(&agent).await, "0");
    shop.audit();
}

async fn who_asks_the_chain_for_nothing_is_slowed_down_and_nobody_else(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    // Signed well, and there is no money behind it.
    let poor = shop.chain.accounts[9].clone();
    for _ in 0..20 {
        let payment = shop.quote(&agent, "1").await.pay_v2(&poor);
        shop.topup(&agent, "1")
            .header("payment-signature", payment)
            .await
            .refused(402, "payment_insufficient");
    }
    let payment = shop.quote(&agent, "1").await.pay_v2(&poor);
    let slowed = shop.topup(&agent, "1").header("payment-signature", payment).await;
    slowed.refused(429, "rate_limited");
    assert!(slowed.header("retry-after").is_some());
    let payment = shop.quote(&agent, "1").await.pay_v2(&shop.customer);
    shop.topup(&agent, "1").header("payment-signature", payment).await.ok(201);
    shop.audit();
}

async fn a_crash_at_any_moment_charges_once_and_grants_once(store: Store) {
    let mut shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let mut payments = Vec::new();
    for step in 0..8_u64 {
        let quote = shop.quote(&agent, "1").await;
        let payment = quote.pay_v2(&shop.customer);
        let call = shop.topup(&agent, "1").header("payment-signature", &payment);
        let asking = tokio::spawn(call.attempt());
        tokio::time::sleep(Duration::from_millis(step * 12)).await;
        shop.server.crash().await;
        let _lost = asking.await;
        payments.push(payment);
    }
    for payment in &payments {
        until_true("the payment is served", Duration::from_secs(30), async || {
            let answer = shop.topup(&agent, "1").header("payment-signature", payment).await;
            assert!(matches!(answer.status, 201 | 503), "{}", answer.text());
            answer.status == 201
        })
        .await;
    }
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (8_000_000, "8"));
    let transfers = shop.chain.transfers(Some(&shop.customer.address), Some(&shop.treasury.address));
    assert_eq!(transfers.len(), 8);
    shop.audit();
}

async fn what_the_chain_takes_is_counted(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let payment = shop.quote(&agent, "2").await.pay_v2(&shop.customer);
    let counted = async || {
        let answer = shop.server.as_operator("GET", "/metrics").await;
        let of = |name: &str| -> f64 {
            let line = answer.text().lines().find_map(|line| line.strip_prefix(name)).expect("it is told");
            line.trim().parse().expect("a number")
        };
        (of("otonix_chain_requests_total "), of("otonix_chain_request_seconds_total "))
    };
    let (began, before) = (std::time::Instant::now(), counted().await);
    shop.topup(&agent, "2").header("payment-signature", &payment).await.ok(201);
    let (after, took) = (counted().await, began.elapsed().as_secs_f64());
    assert!(after.0 >= before.0 + 3.0, "looked, sent, looked again: {before:?} {after:?}");
    assert!(after.1 > before.1 && after.1 - before.1 < took * 4.0, "{before:?} {after:?} in {took}");
}
