//! Signed payments that somebody carried out before they were shown here: their signatures are public.

use std::time::Duration;

use serde_json::json;

use crate::shop::{Shop, decoded, encoded};
use crate::support::poll::until_true;
use crate::support::{Store, on_each_store};

on_each_store!(
    whoever_carried_it_out_its_payer_is_served_once,
    a_public_payment_serves_no_thief,
    a_public_payment_that_was_credited_as_a_deposit_buys_nothing_more,
    who_is_faster_than_the_server_pays_for_the_payers_request,
);

async fn whoever_carried_it_out_its_payer_is_served_once(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let payment = shop.quote(&agent, "2").await.pay_v2(&shop.customer);
    let hash = shop.carry_out(&shop.thief, &payment);
    shop.chain.mined(&hash);
    let call = || shop.topup(&agent, "2").header("payment-signature", &payment);
    let paid = call().await;
    assert_eq!(paid.ok(201)["receipt"]["txHash"], json!(hash));
    assert_eq!(call().await.body, paid.body);
    let sent = shop.chain.rpc("eth_getTransactionCount", json!([shop.settler.address, "latest"]));
    assert_eq!(sent, json!("0x0"), "nothing was sent for it");
    // The same transfer proves no order, and is no deposit.
    let quote = shop.quote(&agent, "2").await;
    let signature = quote.signature(&shop.customer, &hash);
    let proof = quote.proof(&hash, &shop.customer.address, Some(&signature));
    assert_eq!(shop.topup(&agent, "2").header("x-payment", proof).await.status, 402);
    shop.pass_time();
    until_true("everything is booked", Duration::from_secs(20), async || {
        shop.audited().1.contains("waiting 0 USDC")
    })
    .await;
    assert_eq!((shop.credits(&agent).await.as_str(), shop.till()), ("2", 2_000_000));
    shop.audit();
}

async fn a_public_payment_serves_no_thief(store: Store) {
    let shop = Shop::open(store).await;
    let (victims, thiefs) = (shop.own_wallet().await, shop.server.agent("thief").await);
    let older = shop.quote(&thiefs, "2").await;
    let quote = shop.quote(&victims, "2").await;
    let payment = quote.pay_v2(&shop.customer);
    let hash = shop.carry_out(&shop.settler, &payment);
    shop.chain.mined(&hash);
    shop.chain.mine(1);
    let younger = shop.quote(&thiefs, "2").await;
    // The victim's signature under an order of the thief's.
    let stolen = |order: &crate::shop::Quote| {
        let mut stolen = decoded(&payment);
        let required = order.v2.as_ref().expect("signed payments are taken");
        stolen["resource"] = required["resource"].clone();
        stolen["accepted"] = required["accepts"][0].clone();
        shop.topup(&thiefs, "2").header("payment-signature", encoded(&stolen)).key(&thiefs.key)
    };
    stolen(&younger).await.refused(402, "payer_not_proven");
    let payload = decoded(&payment)["payload"].clone();
    let old = json!({"x402Version": 1, "scheme": "exact", "network": "base", "payload": payload});
    let old = shop.topup(&thiefs, "2").header("x-payment", encoded(&old));
    old.await.refused(402, "payer_not_proven");
    // An order that is old enough, shown beside the victim's own: nobody is served who does not prove to be the payer.
    let bare = shop.topup(&victims, "2").header("payment-signature", &payment);
    let (theirs, ours) = tokio::join!(stolen(&older).into_future(), bare.clone().into_future());
    theirs.refused(402, "payer_not_proven");
    ours.refused(402, "payer_not_proven");
    bare.key(&victims.key).await.ok(201);
    stolen(&older).await.refused(409, "payment_already_used");
    assert_eq!((shop.credits(&victims).await, shop.credits(&thiefs).await), ("2".to_owned(), "0".to_owned()));
    assert_eq!(shop.till(), 2_000_000);
    shop.audit();
}

async fn a_public_payment_that_was_credited_as_a_deposit_buys_nothing_more(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.own_wallet().await;
    // Wait for the cursor's start.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let payment = shop.quote(&agent, "2").await.pay_v2(&shop.customer);
    let hash = shop.carry_out(&shop.settler, &payment);
    shop.chain.mined(&hash);
    shop.pass_time();
    let credited = async || shop.credits(&agent).await == "2";
    until_true("it is credited", Duration::from_secs(20), credited).await;
    let late = shop.topup(&agent, "2").header("payment-signature", &payment).key(&agent.key);
    late.await.refused(409, "payment_already_credited");
    assert_eq!((shop.credits(&agent).await.as_str(), shop.till()), ("2", 2_000_000));
    shop.audit();
}

async fn who_is_faster_than_the_server_pays_for_the_payers_request(store: Store) {
    let shop = Shop::open(store).await;
    let (victims, thiefs) = (shop.server.agent("victim").await, shop.server.agent("thief").await);
    let older = shop.quote(&thiefs, "2").await;
    let payment = shop.quote(&victims, "2").await.pay_v2(&shop.customer);
    shop.chain.hold();
    let call = || shop.topup(&victims, "2").header("payment-signature", &payment);
    call().await.refused(503, "payment_pending");
    let hash = shop.carry_out(&shop.thief, &payment);
    shop.chain.mine(1);
    shop.chain.mined(&hash);
    let mut stolen = decoded(&payment);
    let required = older.v2.as_ref().expect("signed payments are taken");
    stolen["resource"] = required["resource"].clone();
    stolen["accepted"] = required["accepts"][0].clone();
    let stolen = shop.topup(&thiefs, "2").header("payment-signature", encoded(&stolen));
    stolen.await.refused(409, "payment_already_used");
    until_true("the victim is served", Duration::from_secs(30), async || call().await.status == 201).await;
    assert_eq!((shop.credits(&victims).await.as_str(), shop.till()), ("2", 2_000_000));
    shop.audit();
}
