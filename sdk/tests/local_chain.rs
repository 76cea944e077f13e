//! The local chain that tests of payments stand on is what it says: the real token, steered as described.

use serde_json::json;

#[path = "../../tests/interop/chain.rs"]
mod chain;

use chain::{Chain, Options};

/// `DOMAIN_SEPARATOR()` of USDC on Base: name, version, chain id and address in one hash.
const BASE_USDC_DOMAIN: &str = "0x02fa7265e7c5d81118673727957699e4d68f74cd74b7db77da710fe8a2c7834f";

#[test]
fn the_token_is_usdc_of_base() {
    let chain = Chain::start();
    let ask =
        |selector: &str| chain.rpc("eth_call", json!([{"to": chain.asset, "data": selector}, "latest"]));
    assert_eq!(chain.rpc("eth_chainId", json!([])), "0x2105");
    assert_eq!(ask("0x3644e515"), BASE_USDC_DOMAIN);
    assert_eq!(ask("0x313ce567"), format!("0x{:064x}", 6), "decimals");
}

#[test]
fn money_moves_and_a_reorg_takes_it_back() {
    let chain = Chain::with(Options { slots: 1, ..Options::default() });
    let [_, payer, payee, ..] = &chain.accounts[..] else { panic!("ten accounts") };
    chain.mint(&payer.address, 5_000_000);
    assert_eq!(chain.balance(&payer.address), 5_000_000);

    let hash = chain.transfer(&payer.address, &payee.address, 1_250_000, &"ab".repeat(32));
    chain.mined(&hash);
    assert_eq!(chain.balance(&payee.address), 1_250_000);
    assert_eq!(chain.transfers(Some(&payer.address), None), [(hash.clone(), 1_250_000)]);

    let head = chain.head();
    chain.reorg(1);
    assert_eq!(chain.head(), head);
    assert_eq!(chain.balance(&payee.address), 0);
    assert!(chain.receipt(&hash).is_none());
    assert!(chain.call("eth_getBlockByNumber", json!(["no such block", false])).is_err());
}

#[test]
fn blocks_can_be_held_and_its_clock_moved() {
    let chain = Chain::start();
    let [_, payer, payee, ..] = &chain.accounts[..] else { panic!("ten accounts") };
    chain.mint(&payer.address, 1_000_000);
    let before = chain.snapshot();
    chain.hold();
    let hash = chain.transfer(&payer.address, &payee.address, 1_000_000, "");
    assert!(chain.receipt(&hash).is_none());
    chain.mine(1);
    chain.mined(&hash);
    let then = chain.time();
    chain.advance(3600);
    assert!(chain.time() >= then + 3600);
    chain.revert(&before);
    assert_eq!(chain.balance(&payer.address), 1_000_000);

    chain.set_block_time(1);
    let hash = chain.transfer(&payer.address, &payee.address, 400_000, "");
    chain.mined(&hash);
    assert_eq!(chain.balance(&payee.address), 400_000);
}
