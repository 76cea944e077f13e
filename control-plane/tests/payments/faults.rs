//! What a chain, a node and a crash can do to payments.

use std::time::Duration;

use serde_json::json;

use crate::shop::{Shop, encoded};
use crate::support::poll::until_true;
use crate::support::{Store, on_each_store};

on_each_store!(
    trouble_with_the_chain_closes_paid_routes_and_they_recover,
    a_node_that_goes_away_in_the_middle_charges_once_and_grants_once,
    a_payment_that_waits_for_its_block_is_bumped_and_paid_once,
    without_gas_signed_payments_are_not_offered,
    an_idempotency_key_pays_once,
    a_key_whose_payment_is_under_way_is_not_asked_to_pay_again,
    a_refusal_that_was_kept_for_a_key_hides_no_payment,
    a_node_that_knows_no_finality_still_ends_large_payments,
    a_contract_pays_with_its_own_signature,
    another_replica_finishes_what_a_dead_one_began,
);

async fn trouble_with_the_chain_closes_paid_routes_and_they_recover(store: Store) {
    let shop = Shop::open_behind_proxy(store).await;
    let proxy = shop.proxy.as_ref().expect("a proxy");
    let agent = shop.server.agent("a").await;
    shop.topup(&agent, "1").await.ok(402);
    let closed = async || shop.topup(&agent, "1").await.status == 503;
    let open = async || shop.topup(&agent, "1").await.status == 402;
    for trouble in ["refused", "stalled", "another chain"] {
        match trouble {
            "refused" => proxy.refuse(),
            "stalled" => proxy.stall(),
            _ => _ = shop.chain.rpc("anvil_setChainId", json!([1])),
        }
        until_true(trouble, Duration::from_secs(30), closed).await;
        let refused = shop.topup(&agent, "1").await;
        refused.refused(503, "chain_unavailable");
        assert!(refused.header("retry-after").is_some());
        // Only what is paid is closed.
        shop.server.beat(&agent).await;
        shop.server.get("/readyz").await.refused(503, "chain_unavailable");
        proxy.clear();
        shop.chain.rpc("anvil_setChainId", json!([8453]));
        until_true("it recovers", Duration::from_secs(30), open).await;
    }
    let quote = shop.quote(&agent, "1").await;
    shop.topup(&agent, "1").header("payment-signature", quote.pay_v2(&shop.customer)).await.ok(201);
    shop.audit();
}

async fn a_node_that_goes_away_in_the_middle_charges_once_and_grants_once(store: Store) {
    let shop = Shop::open_behind_proxy(store).await;
    let proxy = shop.proxy.as_ref().expect("a proxy");
    let agent = shop.server.agent("a").await;
    let mut payments = Vec::new();
    for step in 0..10_u64 {
        let quote = shop.quote(&agent, "1").await;
        let payment = quote.pay_v2(&shop.customer);
        let asking = tokio::spawn(shop.topup(&agent, "1").header("payment-signature", &payment).attempt());
        tokio::time::sleep(Duration::from_millis(step * 4)).await;
        if step % 2 == 0 {
            proxy.refuse()
        } else {
            proxy.stall()
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        proxy.cut();
        proxy.clear();
        let _whatever = asking.await;
        payments.push(payment);
        until_true("it recovers", Duration::from_secs(30), async || {
            shop.topup(&agent, "1").await.status == 402
        })
        .await;
    }
    for payment in &payments {
        until_true("the payment is served", Duration::from_secs(40), async || {
            let answer = shop.topup(&agent, "1").header("payment-signature", payment).await;
            assert!(matches!(answer.status, 201 | 503), "{}", answer.text());
            answer.status == 201
        })
        .await;
    }
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (10_000_000, "10"));
    shop.audit();
}

async fn a_payment_that_waits_for_its_block_is_bumped_and_paid_once(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let quote = shop.quote(&agent, "1").await;
    let payment = quote.pay_v2(&shop.customer);
    shop.chain.hold();
    let call = || shop.topup(&agent, "1").header("payment-signature", &payment);
    let pending = call().await;
    assert_eq!(pending.refused(503, "payment_pending")["orderId"], quote.order_id.as_str());
    let fee = || {
        let pool = shop.chain.rpc("txpool_content", json!([]));
        let of = pool["pending"].as_object().expect("a map").values().next().cloned().unwrap_or_default();
        let all: Vec<_> =
            of.as_object().into_iter().flatten().map(|(_, tx)| tx["maxFeePerGas"].clone()).collect();
        all
    };
    let first = fee();
    assert_eq!(first.len(), 1);
    until_true("it is bumped", Duration::from_secs(60), async || fee() != first).await;
    assert_eq!(fee().len(), 1, "the dearer one has the place of the first");
    shop.chain.mine(1);
    until_true("it is served", Duration::from_secs(30), async || call().await.status == 201).await;
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (1_000_000, "1"));
    let sent = shop.chain.rpc("eth_getTransactionCount", json!([shop.settler.address, "latest"]));
    assert_eq!(sent, json!("0x1"));
    shop.audit();
}

async fn without_gas_signed_payments_are_not_offered(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let offered = async || shop.topup(&agent, "1").await.header("payment-required").is_some();
    assert!(offered().await);
    shop.chain.set_ether(&shop.settler.address, 1_000);
    until_true("it is noticed", Duration::from_secs(20), async || !offered().await).await;
    let answer = shop.topup(&agent, "1").await;
    assert_eq!(answer.ok(402)["accepts"], json!([]));
    // Orders need no gas of the server's.
    let quote = shop.quote(&agent, "1").await;
    let hash = shop.pay_order(&shop.customer, &quote, 1_000_000);
    let proof = quote.proof(&hash, &shop.customer.address, None);
    shop.topup(&agent, "1").header("x-payment", proof).await.ok(201);
    shop.chain.set_ether(&shop.settler.address, 1_000_000_000_000_000_000);
    until_true("it is offered again", Duration::from_secs(20), offered).await;
}

async fn an_idempotency_key_pays_once(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let (one, two) = (shop.quote(&agent, "1").await, shop.quote(&agent, "1").await);
    let pay = |payment: String| shop.topup(&agent, "1").once("k").header("payment-signature", payment);
    let first = pay(one.pay_v2(&shop.customer)).await;
    first.ok(201);
    // The client has lost the answer, and signs anew: it is not charged again.
    let again = pay(two.pay_v2(&shop.customer)).await;
    assert_eq!((again.status, &again.body), (201, &first.body));
    let unpaid = shop.topup(&agent, "1").once("k").await;
    assert_eq!((unpaid.status, &unpaid.body), (201, &first.body));
    let other = shop.server.post(&agent.path("topup")).once("k").json(json!({"amount": "2"})).await;
    other.refused(409, "idempotency_key_reused");
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (1_000_000, "1"));
    shop.audit();
}

async fn a_key_whose_payment_is_under_way_is_not_asked_to_pay_again(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let (one, two) = (shop.quote(&agent, "1").await, shop.quote(&agent, "1").await);
    let pay = |payment: String| shop.topup(&agent, "1").once("k").header("payment-signature", payment);
    shop.chain.hold();
    pay(one.pay_v2(&shop.customer)).await.refused(503, "payment_pending");
    // The client has lost it all but its key: neither is it asked to pay, nor is what it signs anew taken.
    let unpaid = shop.topup(&agent, "1").once("k").await;
    assert_eq!(unpaid.refused(503, "payment_pending")["orderId"], one.order_id.as_str());
    let again = pay(two.pay_v2(&shop.customer)).await;
    assert_eq!(again.refused(503, "payment_pending")["orderId"], one.order_id.as_str());
    shop.server.post(&agent.path("topup")).once("k").json(json!({"amount": "2"})).await.ok(409);
    shop.chain.mine(1);
    until_true("it is served", Duration::from_secs(30), async || {
        shop.topup(&agent, "1").once("k").await.status == 201
    })
    .await;
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (1_000_000, "1"));
    shop.audit();
}

async fn a_refusal_that_was_kept_for_a_key_hides_no_payment(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    // A payment that is no good, and then a good one.
    let quote = shop.quote(&agent, "1").await;
    let hash = shop.pay_order(&shop.customer, &quote, 1_000_000);
    let proof = quote.proof(&hash, &shop.customer.address, None);
    let pay = |proof: &str| shop.topup(&agent, "1").once("k").header("x-payment", proof);
    pay("!").await.refused(400, "invalid_payment");
    pay(&proof).await.ok(201);
    // A refusal of the request itself, kept for its key, and then the proof that it was paid.
    let quote = shop.quote(&agent, "1").await;
    let hash = shop.pay_order(&shop.customer, &quote, 1_000_000);
    let proof = quote.proof(&hash, &shop.customer.address, None);
    shop.server.end(&agent).await;
    shop.topup(&agent, "1").once("l").await.refused(409, "agent_killed");
    let paid = shop.topup(&agent, "1").once("l").header("x-payment", &proof).await;
    assert!(paid.refused(409, "agent_killed")["detail"].to_string().contains("refund"));
    let refunds = shop.server.as_operator("GET", "/api/refunds").await.list();
    assert_eq!((refunds.len(), &refunds[0]["txHash"]), (1, &json!(hash)));
    shop.audit();
}

async fn a_node_that_knows_no_finality_still_ends_large_payments(store: Store) {
    let shop = Shop::open_without_finality(store).await;
    let agent = shop.server.agent("a").await;
    shop.chain.mint(&shop.customer.address, 2_000_000_000);
    let payment = shop.quote(&agent, "1500").await.pay_v2(&shop.customer);
    let call = || shop.topup(&agent, "1500").header("payment-signature", &payment);
    call().await.refused(503, "payment_pending");
    shop.chain.mine(1_000);
    call().await.refused(503, "payment_pending");
    shop.chain.mine(1_100);
    until_true("it is deep enough", Duration::from_secs(60), async || call().await.status == 201).await;
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (1_500_000_000, "1500"));
    shop.audit();
}

async fn a_contract_pays_with_its_own_signature(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    // Says of every signature that it is its own.
    let contract = "0xc0ffee0000000000000000000000000000c0ffee";
    shop.chain.rpc("anvil_setCode", json!([contract, "0x631626ba7e60e01b60005260206000f3"]));
    shop.chain.mint(contract, 5_000_000);
    let quote = shop.quote(&agent, "2").await;
    let signed = |signature: String, from: &str| {
        let required = quote.v2.as_ref().expect("signed payments are taken");
        encoded(&json!({
            "x402Version": 2, "resource": required["resource"], "accepted": required["accepts"][0],
            "payload": { "signature": signature, "authorization": {
                "from": from, "to": shop.treasury.address, "value": "2000000", "validAfter": "0",
                "validBefore": (crate::shop::now() + 100).to_string(), "nonce": format!("0x{}", "77".repeat(32)),
            } },
        }))
    };
    let pay = |header: String| shop.topup(&agent, "2").header("payment-signature", header);
    let undeployed = format!("0x{}{}", "01".repeat(64), "6492".repeat(16));
    pay(signed(undeployed, contract)).await.refused(402, "payment_invalid");
    let nobody = "0xc0ffee0000000000000000000000000000c0ffef";
    pay(signed(format!("0x{}", "01".repeat(70)), nobody)).await.refused(402, "payment_invalid");
    pay(signed(format!("0x{}", "01".repeat(70)), contract)).await.ok(201);
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (2_000_000, "2"));
    shop.audit();
}

async fn another_replica_finishes_what_a_dead_one_began(store: Store) {
    if store == Store::Sqlite {
        return;
    }
    let mut shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let replica = shop.server.replica().await;
    shop.chain.hold();
    let quote = shop.quote(&agent, "3").await;
    let payment = quote.pay_v2(&shop.customer);
    shop.topup(&agent, "3").header("payment-signature", &payment).await.refused(503, "payment_pending");
    shop.server.kill();
    shop.chain.mine(1);
    let call = || shop.topup_at(&replica, &agent, "3").header("payment-signature", &payment);
    until_true("the other serves it", Duration::from_secs(60), async || call().await.status == 201).await;
    assert_eq!(shop.till(), 3_000_000);
    assert_eq!(replica.look(&agent).await["credits"].to_string(), "3");
    replica.audit();
}
