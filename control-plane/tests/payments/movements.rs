//! Money that moves without a sale, and sales whose money leaves the chain again.

use std::time::Duration;

use serde_json::{Value, json};

use crate::peer::Does;
use crate::shop::Shop;
use crate::support::poll::until_true;
use crate::support::{Agent, Store, on_each_store};

on_each_store!(
    a_deposit_from_a_proven_wallet_is_credited_once_and_proves_nothing_later,
    one_transfer_left_to_the_watcher_or_proved_is_used_once,
    what_moves_without_a_sale_is_in_the_books,
    a_payment_that_leaves_the_chain_is_taken_back,
    a_signed_payment_that_comes_by_another_transaction_is_the_same_payment,
    what_was_taken_back_comes_back_by_another_transaction,
    a_killed_agents_payment_is_owed_back,
    a_node_that_answers_little_at_a_time_is_asked_for_less,
);

async fn becomes(shop: &Shop, agent: &Agent, credits: &str) {
    becomes_in(shop, agent, credits, 20).await;
}

async fn becomes_in(shop: &Shop, agent: &Agent, credits: &str, secs: u64) {
    let most = Duration::from_secs(secs);
    until_true("the credits are as they should", most, async || shop.credits(agent).await == credits).await;
}

async fn a_deposit_from_a_proven_wallet_is_credited_once_and_proves_nothing_later(store: Store) {
    let mut shop = Shop::open(store).await;
    let agent = shop.own_wallet().await;
    assert_eq!(shop.server.look(&agent).await["walletProven"], json!(true));
    let quote = shop.quote(&agent, "5").await;
    let hash = shop.transfer(&shop.customer, 5_000_000, "");
    shop.chain.mine(20);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(shop.credits(&agent).await, "0", "it may still be an order's");
    shop.pass_time();
    becomes(&shop, &agent, "5").await;
    let signature = quote.signature(&shop.customer, &hash);
    let proof = quote.proof(&hash, &shop.customer.address, Some(&signature));
    let late = shop.topup(&agent, "5").header("x-payment", proof).await;
    late.refused(409, "payment_already_credited");
    shop.server.crash().await;
    shop.pass_time();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(shop.credits(&agent).await, "5");
    let ledger = shop.server.get(&agent.path("ledger")).key(&agent.key).await.list();
    assert_eq!((ledger.len(), &ledger[0]["kind"]), (1, &json!("deposit")));
    shop.audit();
}

async fn one_transfer_left_to_the_watcher_or_proved_is_used_once(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.own_wallet().await;
    // Proved by the key of the wallet's owner, without a signature; then left to the watcher.
    let quote = shop.quote(&agent, "5").await;
    let hash = shop.transfer(&shop.customer, 5_000_000, "");
    let proof = quote.proof(&hash, &shop.customer.address, None);
    shop.topup(&agent, "5").header("x-payment", &proof).await.refused(402, "payer_not_proven");
    shop.topup(&agent, "5").header("x-payment", &proof).key(&agent.key).await.ok(201);
    // A signed payment, which moves money to the treasury too.
    let quote = shop.quote(&agent, "2").await;
    shop.topup(&agent, "2").header("payment-signature", quote.pay_v2(&shop.customer)).await.ok(201);
    shop.pass_time();
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(shop.credits(&agent).await, "7");
    assert_eq!(shop.till(), 7_000_000);
    shop.audit();
}

async fn what_moves_without_a_sale_is_in_the_books(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    // Wait for the cursor's start.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let hash = shop.transfer(&shop.thief, 3_000_000, "");
    let quote = shop.quote(&agent, "1").await;
    let unused = shop.pay_order(&shop.customer, &quote, 1_000_000);
    let out = shop.chain.transfer(&shop.treasury.address, &shop.thief.address, 500_000, "");
    shop.chain.mined(&out);
    shop.audit();
    let (_, said) = shop.audited();
    assert!(said.contains("waiting 4.5 USDC in 3 transfers"), "{said}");
    shop.pass_time();
    until_true("everything is booked", Duration::from_secs(20), async || {
        shop.audited().1.contains("waiting 0 USDC")
    })
    .await;
    let (_, said) = shop.audited();
    assert!(said.contains("unmatched 4 USDC in 2 transfers"), "{said}");
    assert!(said.contains("withdrawal 0.5 USDC in 1 transfers"), "{said}");
    shop.audit();
    assert_eq!(shop.credits(&agent).await, "0");
    // Unmatched money still proves the order that it was sent for, once.
    let proof = quote.proof(&unused, &shop.customer.address, None);
    shop.topup(&agent, "1").header("x-payment", &proof).await.ok(201);
    assert_eq!(shop.credits(&agent).await, "1");
    shop.audit();
    // A row that is gone is a difference, by name.
    let gone = format!(
        "DELETE FROM receipts WHERE kind = 'unmatched' AND amount = 3000000 AND log_index = 0 AND hex(tx_hash) = '{}'",
        hash[2..].to_uppercase()
    );
    let gone = if store == Store::Postgres {
        "DELETE FROM receipts WHERE kind = 'unmatched'".to_owned()
    } else {
        gone
    };
    assert_eq!(shop.server.sql(&gone).await, 1);
    let (ended_well, said) = shop.audited();
    assert!(!ended_well && said.contains("booked nowhere") && said.contains(&hash), "{said}");
}

async fn a_payment_that_leaves_the_chain_is_taken_back(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let before = shop.chain.snapshot();
    let quote = shop.quote(&agent, "5").await;
    let hash = shop.pay_order(&shop.customer, &quote, 5_000_000);
    let proof = quote.proof(&hash, &shop.customer.address, None);
    shop.topup(&agent, "5").header("x-payment", &proof).await.ok(201);
    shop.server.spend(&agent, "2").await;
    let sent = shop.chain.rpc("eth_getTransactionByHash", json!([hash]));
    shop.chain.revert(&before);
    until_true("it is taken back", Duration::from_secs(60), async || shop.credits(&agent).await == "-2")
        .await;
    let shown = shop.server.look(&agent).await;
    assert_eq!(shown["survivalTier"], json!("terminated"), "it buys nothing until it is square");
    let orders = shop.server.get("/api/orders").key(&agent.key).await.list();
    assert_eq!(orders[0]["status"], json!("reversed"));
    shop.audit();
    // The same transaction in a later block: what was taken back is given again, once.
    shop.send_again(&sent);
    until_true("it is given again", Duration::from_secs(60), async || shop.credits(&agent).await == "3")
        .await;
    let orders = shop.server.get("/api/orders").key(&agent.key).await.list();
    assert_eq!((orders.len(), &orders[0]["status"]), (1, &json!("delivered")));
    let answered = shop.topup(&agent, "5").header("x-payment", &proof).await.ok(201);
    assert_eq!(answered["receipt"]["txHash"], json!(hash));
    assert_eq!(shop.credits(&agent).await, "3");
    shop.audit();
}

async fn a_signed_payment_that_comes_by_another_transaction_is_the_same_payment(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let before = shop.chain.snapshot();
    let payment = shop.quote(&agent, "5").await.pay_v2(&shop.customer);
    let call = || shop.topup(&agent, "5").header("payment-signature", &payment);
    let paid = call().await;
    let first = paid.ok(201)["receipt"]["txHash"].clone();
    shop.chain.revert(&before);
    shop.chain.hold();
    let other = shop.carry_out(&shop.thief, &payment);
    shop.chain.mine(1);
    shop.chain.mined(&other);
    assert_ne!(first, json!(other));
    until_true("it is found where it is now", Duration::from_secs(60), async || {
        shop.server.get("/api/orders").key(&agent.key).await.list()[0]["txHash"] == json!(other)
    })
    .await;
    assert_eq!((shop.credits(&agent).await.as_str(), shop.till()), ("5", 5_000_000));
    let again = call().await;
    assert_eq!((again.status, &again.body), (201, &paid.body));
    shop.pass_time();
    until_true("everything is booked", Duration::from_secs(20), async || {
        shop.audited().1.contains("waiting 0 USDC")
    })
    .await;
    assert!(!shop.audited().1.contains("unmatched"), "{}", shop.audited().1);
    assert_eq!(shop.credits(&agent).await, "5");
    shop.audit();
}

async fn what_was_taken_back_comes_back_by_another_transaction(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let before = shop.chain.snapshot();
    let payment = shop.quote(&agent, "5").await.pay_v2(&shop.customer);
    shop.topup(&agent, "5").header("payment-signature", &payment).await.ok(201);
    shop.chain.revert(&before);
    shop.chain.hold();
    becomes_in(&shop, &agent, "0", 60).await;
    let other = shop.carry_out(&shop.thief, &payment);
    shop.chain.mine(1);
    shop.chain.mined(&other);
    becomes_in(&shop, &agent, "5", 60).await;
    let orders = shop.server.get("/api/orders").key(&agent.key).await.list();
    let state = (orders.len(), &orders[0]["status"], &orders[0]["txHash"]);
    assert_eq!(state, (1, &json!("delivered"), &json!(other)));
    shop.pass_time();
    until_true("everything is booked", Duration::from_secs(20), async || {
        shop.audited().1.contains("waiting 0 USDC")
    })
    .await;
    let (_, said) = shop.audited();
    assert!(said.contains("exact 5 USDC in 1 transfers") && !said.contains("unmatched"), "{said}");
    assert_eq!((shop.credits(&agent).await.as_str(), shop.till()), ("5", 5_000_000));
    shop.audit();
}

async fn a_killed_agents_payment_is_owed_back(store: Store) {
    let shop = Shop::open_with(store, &[("--confirmations", "3")]).await;
    let agent = shop.server.agent("a").await;
    let quote = shop.quote(&agent, "5").await;
    let payment = quote.pay_v2(&shop.customer);
    let call = shop.topup(&agent, "5").header("payment-signature", &payment);
    let first = call.clone().await;
    first.refused(503, "payment_pending");
    shop.server.end(&agent).await;
    shop.chain.mine(3);
    until_true("it ends", Duration::from_secs(20), async || call.clone().await.status == 409).await;
    call.await.refused(409, "agent_killed");
    let refunds = shop.server.as_operator("GET", "/api/refunds").await.list();
    assert_eq!((refunds.len(), refunds[0]["amount"].to_string().as_str()), (1, "5"));
    assert_eq!((&refunds[0]["status"], &refunds[0]["payer"]), (&json!("due"), &json!(shop.customer.address)));
    shop.audit();
    let path = format!("/api/refunds/{}/resolve", refunds[0]["id"].as_str().expect("an id"));
    shop.server.post(&path).json(json!({"resolution": "dismissed"})).await.refused(401, "operator_required");
    let other = shop.server.agent("b").await;
    let resolve = |body: Value| shop.server.as_operator("POST", &path).json(body);
    resolve(json!({"resolution": "credited"})).await.bad_field("agentId");
    resolve(json!({"resolution": "credited", "agentId": other.id})).await.ok(200);
    resolve(json!({"resolution": "credited", "agentId": other.id})).await.refused(409, "conflict");
    assert_eq!(shop.credits(&other).await, "5");
    let lines = shop.server.get(&format!("/api/transactions?agentId={}", other.id)).await.list();
    assert_eq!((lines.len(), lines[0]["amount"].to_string().as_str()), (1, "5"));
    assert_eq!(lines[0]["metadata"]["refundId"], refunds[0]["id"]);
    shop.audit();
}

async fn a_node_that_answers_little_at_a_time_is_asked_for_less(store: Store) {
    let shop = Shop::open_among_peers(store, false).await;
    let node = shop.node.as_ref().expect("it is among peers");
    let agent = shop.own_wallet().await;
    // Wait for the cursor's start.
    tokio::time::sleep(Duration::from_secs(2)).await;
    // As nodes do when somebody has made ten thousand transfers of nothing.
    node.obey(|method, params| {
        let asked: Value = serde_json::from_str(params).expect("JSON");
        let number = |name: &str| {
            let text = asked[0][name].as_str().expect("a block");
            u64::from_str_radix(&text[2..], 16).expect("hex")
        };
        if method == "eth_getLogs" && number("toBlock") > number("fromBlock") + 1 {
            return Does::Fails(-32_005, "query returned more than 10000 results");
        }
        Does::Passes
    });
    shop.transfer(&shop.customer, 5_000_000, "");
    shop.chain.mine(20);
    shop.pass_time();
    becomes(&shop, &agent, "5").await;
    shop.audit();
}
