//! Orders: paid by a transfer on the chain, proved by its hash, used once, by nobody else.

use serde_json::json;

use crate::shop::{Shop, decoded};
use crate::support::{Store, on_each_store};

on_each_store!(
    an_unpaid_request_is_asked_for_payment_in_every_way,
    a_transfer_that_names_its_order_buys_it_once,
    a_thief_gets_nothing_and_the_victim_is_served,
    a_proof_must_be_for_this_very_request,
    what_arrives_is_what_is_credited,
);

async fn an_unpaid_request_is_asked_for_payment_in_every_way(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let answer = shop.topup(&agent, "1.5").await;
    let body = answer.refused(402, "payment_required");
    assert_eq!(body["x402Version"], 1);
    assert_eq!((&body["amountUSDC"], &body["maxAmountRequired"]), (&json!("1.5"), &json!("1500000")));
    assert_eq!((&body["network"], &body["chainId"]), (&json!("eip155:8453"), &json!(8453)));
    assert_eq!(body["treasury"], shop.treasury.address.as_str());
    assert!(body["orderId"].as_str().is_some_and(|id| !id.is_empty() && id.len() <= 512));
    assert!(body["expiresAt"].as_str().is_some_and(|at| at.ends_with('Z')));
    assert!(body["requestId"].as_str().is_some_and(|id| !id.is_empty()));
    let offer = &body["accepts"][0];
    assert_eq!((&offer["scheme"], &offer["network"]), (&json!("exact"), &json!("base")));
    assert_eq!((&offer["maxAmountRequired"], &offer["payTo"]), (&json!("1500000"), &body["treasury"]));
    assert_eq!(offer["extra"], json!({"name": "USD Coin", "version": "2"}));
    assert!(offer["resource"].as_str().is_some_and(|url| url.ends_with(&agent.path("topup"))));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let v2 = decoded(answer.header("payment-required").expect("version 2"));
    assert_eq!((&v2["x402Version"], &v2["accepts"][0]["amount"]), (&json!(2), &json!("1500000")));
    assert_eq!(v2["accepts"][0]["extra"]["orderId"], body["orderId"]);
    let order = decoded(answer.header("x-payment-required").expect("the order"));
    assert_eq!((&order["orderId"], &order["treasury"]), (&body["orderId"], &body["treasury"]));
    // A signed payment of a cent costs more gas than it is worth.
    let small = shop.topup(&agent, "0.01").await;
    assert_eq!(small.ok(402)["accepts"], json!([]));
    assert_eq!(small.header("payment-required"), None);
    // What is wrong with the request itself comes before the price.
    for (amount, field) in [("0.001", "amount"), ("10000.01", "amount"), ("x", "amount")] {
        shop.topup(&agent, amount).await.bad_field(field);
    }
    let nobody = format!("/api/agents/{}/topup", uuid::Uuid::nil());
    shop.server.post(&nobody).json(json!({"amount": 1})).await.refused(404, "not_found");
}

async fn a_transfer_that_names_its_order_buys_it_once(store: Store) {
    let mut shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let quote = shop.quote(&agent, "5").await;
    let hash = shop.pay_order(&shop.customer, &quote, 5_000_000);
    let proof = quote.proof(&hash, &shop.customer.address, None);
    let paid = shop.topup(&agent, "5").header("x-payment", &proof).await;
    let body = paid.ok(201);
    assert_eq!((paid.source("credited").as_str(), paid.source("credits").as_str()), ("5", "5"));
    assert_eq!(
        (&body["receipt"]["txHash"], &body["receipt"]["scheme"]),
        (&json!(hash), &json!("otonix-order"))
    );
    assert_eq!(
        (&body["receipt"]["payer"], &body["receipt"]["orderId"]),
        (&json!(shop.customer.address), &json!(quote.order_id))
    );
    let settled = decoded(paid.header("x-payment-response").expect("a receipt"));
    assert_eq!((&settled["success"], &settled["transaction"]), (&json!(true), &json!(hash)));
    let again = shop.topup(&agent, "5").header("x-payment", &proof).await;
    assert_eq!((again.status, &again.body), (201, &paid.body), "a repeat has the same bytes");
    let no_hash = quote.proof(&hash[2..], &shop.customer.address, None);
    shop.topup(&agent, "5").header("x-payment", &no_hash).await.refused(400, "invalid_payment");
    shop.server.crash().await;
    let later = shop.topup(&agent, "5").header("x-payment", &proof).await;
    assert_eq!((later.status, &later.body), (201, &paid.body), "after a crash too");
    assert_eq!(shop.credits(&agent).await, "5");
    // The same money proves no other order, whoever asks.
    let other = shop.quote(&agent, "5").await;
    let signature = other.signature(&shop.customer, &hash);
    let proof = other.proof(&hash, &shop.customer.address, Some(&signature));
    let refused = shop.topup(&agent, "5").header("x-payment", &proof).await;
    assert!((400..500).contains(&refused.status), "{}", refused.text());
    assert_eq!(shop.credits(&agent).await, "5");
    let orders = shop.server.get("/api/orders").key(&agent.key).await.list();
    assert_eq!((orders.len(), &orders[0]["txHash"]), (1, &json!(hash)));
    shop.server.get("/api/orders").await.refused(401, "missing_key");
    shop.audit();
}

async fn a_thief_gets_nothing_and_the_victim_is_served(store: Store) {
    let shop = Shop::open(store).await;
    let (victims, thiefs) = (shop.server.agent("victim").await, shop.server.agent("thief").await);
    let older = shop.quote(&thiefs, "5").await;
    let quote = shop.quote(&victims, "5").await;
    // A plain transfer: nothing in it says for what.
    let hash = shop.transfer(&shop.customer, 5_000_000, "");
    let younger = shop.quote(&thiefs, "5").await;
    for (order, payer) in
        [(&older, &shop.customer), (&younger, &shop.customer), (&older, &shop.thief), (&younger, &shop.thief)]
    {
        let own = order.signature(&shop.thief, &hash);
        for signature in [None, Some(own.as_str())] {
            let proof = order.proof(&hash, &payer.address, signature);
            let call = shop.topup(&thiefs, "5").header("x-payment", proof);
            assert_eq!(call.clone().await.status, 402);
            assert_eq!(call.key(&thiefs.key).await.status, 402);
        }
    }
    // The younger order is asked for after the transfer: even its owner's signature does not make it older.
    let signature = younger.signature(&shop.customer, &hash);
    let late = younger.proof(&hash, &shop.customer.address, Some(&signature));
    shop.topup(&thiefs, "5").header("x-payment", late).await.refused(402, "payment_mismatch");
    assert_eq!(shop.credits(&thiefs).await, "0");
    // Without a tie the victim's own proof is not taken either; with one it is.
    let bare = quote.proof(&hash, &shop.customer.address, None);
    shop.topup(&victims, "5").header("x-payment", bare).await.refused(402, "payer_not_proven");
    let signature = quote.signature(&shop.customer, &hash);
    let proof = quote.proof(&hash, &shop.customer.address, Some(&signature));
    shop.topup(&victims, "5").header("x-payment", proof).await.ok(201);
    assert_eq!((shop.credits(&victims).await, shop.credits(&thiefs).await), ("5".to_owned(), "0".to_owned()));
    // A transfer that names one order proves no other, not even with its payer's signature.
    let (named, other) = (shop.quote(&victims, "1").await, shop.quote(&victims, "1").await);
    let hash = shop.pay_order(&shop.customer, &named, 1_000_000);
    let signature = other.signature(&shop.customer, &hash);
    let proof = other.proof(&hash, &shop.customer.address, Some(&signature));
    shop.topup(&victims, "1").header("x-payment", proof).await.refused(402, "payer_not_proven");
    let proof = named.proof(&hash, &shop.customer.address, None);
    shop.topup(&victims, "1").header("x-payment", proof).await.ok(201);
    shop.audit();
}

async fn a_proof_must_be_for_this_very_request(store: Store) {
    let shop = Shop::open(store).await;
    let (one, two) = (shop.server.agent("one").await, shop.server.agent("two").await);
    let quote = shop.quote(&one, "2").await;
    let hash = shop.pay_order(&shop.customer, &quote, 2_000_000);
    let proof = quote.proof(&hash, &shop.customer.address, None);
    shop.topup(&two, "2").header("x-payment", &proof).await.refused(402, "payment_mismatch");
    shop.topup(&one, "2.0").header("x-payment", &proof).await.refused(402, "payment_mismatch");
    let forged = format!("{}A", &quote.order_id[..quote.order_id.len() - 1]);
    let forged = crate::shop::Quote { order_id: forged, ..quote.clone() };
    let bad = forged.proof(&hash, &shop.customer.address, None);
    if forged.order_id != quote.order_id {
        shop.topup(&one, "2").header("x-payment", bad).await.refused(402, "payment_mismatch");
    }
    for broken in ["!", "e30=", "bnVsbA=="] {
        shop.topup(&one, "2").header("x-payment", broken).await.refused(400, "invalid_payment");
    }
    let both = shop.topup(&one, "2").header("x-payment", &proof).header("payment-signature", "e30=");
    both.await.refused(400, "invalid_payment");
    shop.topup(&one, "2").header("x-payment", &proof).await.ok(201);
    shop.topup(&two, "2").header("x-payment", &proof).await.refused(409, "payment_already_used");
    shop.audit();
}

async fn what_arrives_is_what_is_credited(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    for (price, arrives, credits) in
        [("1", 1_500_000, Some("1.5")), ("1", 995_000, Some("2.495")), ("1", 980_000, None)]
    {
        let quote = shop.quote(&agent, price).await;
        let hash = shop.pay_order(&shop.customer, &quote, arrives);
        let proof = quote.proof(&hash, &shop.customer.address, None);
        let answer = shop.topup(&agent, price).header("x-payment", proof).await;
        match credits {
            Some(credits) => assert_eq!((answer.status, shop.credits(&agent).await.as_str()), (201, credits)),
            None => _ = answer.refused(402, "payment_insufficient"),
        }
    }
    // A transaction that failed, one that never was, another token's transfer.
    let quote = shop.quote(&agent, "1").await;
    let other = shop.chain.send(&shop.customer.address, &shop.thief.address, "0x");
    let proof = quote.proof(&other, &shop.customer.address, None);
    shop.topup(&agent, "1").header("x-payment", proof).await.refused(402, "payment_invalid");
    let unknown = format!("0x{}", "ab".repeat(32));
    let proof = quote.proof(&unknown, &shop.customer.address, None);
    let pending = shop.topup(&agent, "1").header("x-payment", proof).await;
    assert_eq!(pending.refused(503, "payment_pending")["orderId"], quote.order_id.as_str());
    assert!(pending.header("retry-after").is_some());
    assert_eq!(shop.credits(&agent).await, "2.495");
}
