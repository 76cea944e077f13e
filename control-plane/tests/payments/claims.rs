//! Claims whose end is long in coming: the chain alone decides it, and none is forgotten behind others.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;

use crate::chain::Options;
use crate::peer::Does;
use crate::shop::Shop;
use crate::support::poll::until_true;
use crate::support::{Store, on_each_store};

on_each_store!(
    a_claim_ends_by_no_clock_but_the_chains,
    what_was_given_up_is_kept_until_the_chain_can_turn_it_no_more,
    what_was_given_up_and_carried_out_after_all_is_served,
    what_its_payer_cancelled_fails,
    no_claim_waits_for_ever_behind_others,
    no_transaction_waits_for_ever_behind_others,
    a_wrong_number_of_the_account_stops_nothing,
    what_is_remembered_of_the_account_is_asked_about,
);

async fn a_claim_ends_by_no_clock_but_the_chains(store: Store) {
    let mut shop = Shop::open_over(store, Options { behind_secs: 1_000, ..Options::default() }).await;
    let agent = shop.server.agent("a").await;
    let quote = shop.quote(&agent, "1").await;
    let payment = quote.pay_v2(&shop.customer);
    shop.chain.hold();
    let pending = shop.topup(&agent, "1").header("payment-signature", &payment).await;
    pending.refused(503, "payment_pending");
    shop.server.kill();
    // By this machine's clock it is over for minutes now; by the chain's it is not.
    assert_eq!(shop.server.sql("UPDATE payments SET valid_before = valid_before - 400").await, 1);
    // What was sent waits in the node, and is not signed anew meanwhile.
    shop.server.sql("UPDATE settlements SET created_at = '2100-01-01T00:00:00+00:00'").await;
    shop.server.crash().await;
    for _ in 0..3 {
        let answer = shop.topup(&agent, "1").header("payment-signature", &payment).await;
        assert_eq!(answer.refused(503, "payment_pending")["orderId"], quote.order_id.as_str());
    }
    shop.chain.mine(1);
    until_true("it is served", Duration::from_secs(30), async || {
        shop.topup(&agent, "1").header("payment-signature", &payment).await.status == 201
    })
    .await;
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (1_000_000, "1"));
    shop.audit();
}

async fn what_was_given_up_is_kept_until_the_chain_can_turn_it_no_more(store: Store) {
    let shop = Shop::open_over(store, Options { slots: 20, ..Options::default() }).await;
    let agent = shop.server.agent("a").await;
    let payment = shop.quote(&agent, "1").await.pay_v2(&shop.customer);
    let call = || shop.topup(&agent, "1").header("payment-signature", &payment);
    shop.chain.hold();
    call().await.refused(503, "payment_pending");
    assert_eq!(shop.server.sql("UPDATE payments SET private = 'kept'").await, 1);
    shop.chain.advance(400);
    until_true("it failed", Duration::from_secs(30), async || call().await.status == 402).await;
    call().await.refused(402, "payment_failed");
    let is = async |what: &str| {
        shop.server
            .sql(&format!("UPDATE payments SET price = price WHERE status = 'failed' AND {what}"))
            .await
            == 1
    };
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(is("private = 'kept' AND closed_at IS NULL").await);
    shop.chain.mine(50);
    until_true("it is forgotten", Duration::from_secs(20), async || {
        is("private IS NULL AND closed_at IS NOT NULL").await
    })
    .await;
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (0, "0"));
    shop.audit();
}

async fn what_was_given_up_and_carried_out_after_all_is_served(store: Store) {
    let shop = Shop::open_over(store, Options { slots: 20, ..Options::default() }).await;
    let agent = shop.server.agent("a").await;
    let payment = shop.quote(&agent, "1").await.pay_v2(&shop.customer);
    let call = || shop.topup(&agent, "1").header("payment-signature", &payment);
    shop.chain.hold();
    let before = shop.chain.snapshot();
    call().await.refused(503, "payment_pending");
    shop.chain.advance(400);
    until_true("it failed", Duration::from_secs(30), async || call().await.status == 402).await;
    // The block that was past its end leaves the chain, and another one carries it out.
    shop.chain.revert(&before);
    shop.chain.hold();
    let hash = shop.carry_out(&shop.thief, &payment);
    shop.chain.mine(1);
    shop.chain.mined(&hash);
    until_true("it is served", Duration::from_secs(30), async || call().await.status == 201).await;
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (1_000_000, "1"));
    shop.audit();
}

async fn what_its_payer_cancelled_fails(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let payment = shop.quote(&agent, "1").await.pay_v2(&shop.customer);
    let call = || shop.topup(&agent, "1").header("payment-signature", &payment);
    shop.chain.hold();
    call().await.refused(503, "payment_pending");
    let hash = shop.cancel(&shop.customer, &payment);
    shop.chain.mine(1);
    shop.chain.mined(&hash);
    until_true("it failed", Duration::from_secs(30), async || call().await.status == 402).await;
    let refused = call().await.refused(402, "payment_failed");
    assert!(refused["detail"].to_string().contains("cancelled"), "{refused}");
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (0, "0"));
    shop.audit();
}

/// Counts to 300 in SQL.
const COUNT: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300)";

async fn no_claim_waits_for_ever_behind_others(store: Store) {
    let mut shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let payment = shop.quote(&agent, "1").await.pay_v2(&shop.customer);
    shop.chain.hold();
    let pending = shop.topup(&agent, "1").header("payment-signature", &payment).await;
    pending.refused(503, "payment_pending");
    shop.server.kill();
    let (id, word) = match store {
        Store::Sqlite => ("randomblob(16)", "randomblob(32)"),
        Store::Postgres => ("gen_random_uuid()", "sha256((random()::text || i::text)::bytea)"),
    };
    // Three hundred older ones that will not end for days.
    let flood = format!(
        "{COUNT} INSERT INTO payments (id, chain, asset, from_address, nonce, status, x402_version, order_hash, \
         order_id, binding, resource, goods, agent_id, price, amount, pay_to, valid_after, valid_before, signature, \
         by_contract, from_block, created_at) SELECT {id}, chain, asset, from_address, {word}, 'sent', x402_version, \
         {word}, order_id, binding, resource, goods, agent_id, price, amount, pay_to, valid_after, \
         valid_before + 1000000, signature, by_contract, from_block, '2020-01-01T00:00:00+00:00' FROM payments, n"
    );
    assert_eq!(shop.server.sql(&flood).await, 300);
    shop.server.crash().await;
    shop.chain.mine(1);
    until_true("it is served", Duration::from_secs(90), async || {
        shop.topup(&agent, "1").header("payment-signature", &payment).await.status == 201
    })
    .await;
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (1_000_000, "1"));
    shop.audit();
}

async fn no_transaction_waits_for_ever_behind_others(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let mut payments = Vec::new();
    for _ in 0..2 {
        payments.push(shop.quote(&agent, "1").await.pay_v2(&shop.customer));
    }
    shop.chain.hold();
    let call = |payment: &String| shop.topup(&agent, "1").header("payment-signature", payment).into_future();
    for answer in join_all(payments.iter().map(call)).await {
        answer.refused(503, "payment_pending");
    }
    // The first was made dearer hundreds of times, and the node has lost both.
    let flood = format!(
        "{COUNT} INSERT INTO settlements (chain, signer, account_nonce, attempt, payment_id, tx_hash, raw, max_fee, \
         priority_fee, created_at) SELECT chain, signer, account_nonce, i, payment_id, tx_hash, raw, max_fee, \
         priority_fee, created_at FROM settlements, n WHERE account_nonce = 0 AND attempt = 0"
    );
    assert_eq!(shop.server.sql(&flood).await, 300);
    shop.chain.rpc("anvil_dropAllTransactions", json!([]));
    until_true("both are sent again", Duration::from_secs(60), async || {
        shop.chain.rpc("eth_getTransactionCount", json!([shop.settler.address, "pending"])) == json!("0x2")
    })
    .await;
    shop.chain.mine(1);
    for payment in &payments {
        until_true("it is served", Duration::from_secs(30), async || call(payment).await.status == 201).await;
    }
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (2_000_000, "2"));
    shop.audit();
}

async fn a_wrong_number_of_the_account_stops_nothing(store: Store) {
    let shop = Shop::open_among_peers(store, false).await;
    let node = shop.node.as_ref().expect("it is among peers");
    let agent = shop.server.agent("a").await;
    // A node that is of another chain for a moment: nobody ever signs with the numbers before this one.
    let asked = Arc::new(AtomicUsize::default());
    let count = Arc::clone(&asked);
    node.obey(move |method, _| {
        if method != "eth_getTransactionCount" {
            return Does::Passes;
        }
        count.fetch_add(1, Ordering::SeqCst);
        Does::Says("0x3")
    });
    let told = async || asked.load(Ordering::SeqCst) >= 2;
    until_true("it was told a wrong number", Duration::from_secs(30), told).await;
    let first = shop.quote(&agent, "1").await.pay_v2(&shop.customer);
    let call = |payment: &String| shop.topup(&agent, "1").header("payment-signature", payment);
    call(&first).await.refused(503, "payment_pending");
    node.mend();
    until_true("it is served", Duration::from_secs(60), async || call(&first).await.status == 201).await;
    let second = shop.quote(&agent, "1").await.pay_v2(&shop.customer);
    until_true("so is the next", Duration::from_secs(60), async || call(&second).await.status == 201).await;
    assert_eq!((shop.till(), shop.credits(&agent).await.as_str()), (2_000_000, "2"));
    shop.audit();
}

async fn what_is_remembered_of_the_account_is_asked_about(store: Store) {
    let shop = Shop::open(store).await;
    let agent = shop.server.agent("a").await;
    let pay = async || {
        let payment = shop.quote(&agent, "1").await.pay_v2(&shop.customer);
        shop.topup(&agent, "1").header("payment-signature", payment).await.ok(201);
    };
    pay().await;
    pay().await;
    // The last number is another one than this server has given out: 3 is signed for nothing yet, and comes next.
    assert_eq!(shop.server.sql("UPDATE settlements SET account_nonce = 2 WHERE account_nonce = 1").await, 1);
    let paid = pay();
    let forward = async {
        // What has the number 3 waits for the number 2, which is not signed: the chain goes past it.
        until_true("it is signed", Duration::from_secs(20), async || {
            shop.server
                .sql("UPDATE settlements SET priority_fee = priority_fee WHERE account_nonce = 3")
                .await
                == 1
        })
        .await;
        shop.server.sql("UPDATE settlements SET account_nonce = 1 WHERE account_nonce = 2").await;
    };
    tokio::join!(paid, forward);
    // The lease has changed hands and come back: nothing is given out under the old one.
    assert_eq!(shop.server.sql("UPDATE leases SET epoch = epoch + 1 WHERE name = 'settler'").await, 1);
    pay().await;
    if store == Store::Postgres {
        // The connections that write died unused.
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() \
            AND state = 'idle' AND (query = 'COMMIT' OR query LIKE 'WITH held%')";
        assert_ne!(shop.server.sql(end).await, 0);
        pay().await;
    }
    assert_eq!(shop.server.sql("UPDATE settlements SET attempt = 0 WHERE attempt <> 0").await, 0);
    shop.audit();
}
