//! Orders proved by a transfer's hash. Hashes are public, so the hash alone proves nothing about who presents it.

use std::net::IpAddr;
use std::time::Duration;

use otonix_sdk::chain::usdc::{self, TransferCall};
use otonix_sdk::chain::{EvmAddress, Hash, Transaction};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::x402::OrderProof;
use tokio::time::Instant;
use uuid::Uuid;

use crate::app::App;
use crate::auth::Principal;
use crate::error::Error;
use crate::service::payments::book::{self, Arrived, SoldFor};
use crate::service::payments::order_id::{self, Order};
use crate::service::payments::{Asked, PATIENCE, Paid, Payments, Refused, Sale, Stop, paid, signed_by};
use crate::store::agents;
use crate::upstream::chain::{Mined, Seen};

/// The share of the price that must arrive, and how much the operator bears of what is missing (micro-USDC).
const LEAST_PERCENT: i128 = 99;
const MOST_SHORTFALL: i64 = 50_000;
/// A transfer that no node knows is waited for until so long after the order ended, seconds.
const UNKNOWN_AFTER_SECS: u64 = 60;
/// Between two looks at the chain.
const LOOK_FIRST: Duration = Duration::from_millis(100);
const LOOK_MOST: Duration = Duration::from_millis(1_000);

/// How a transfer is tied to its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tie {
    /// Its calldata names the order, or the payer signed for it.
    Payer,
    /// The payer is a proven wallet of the owner of this key.
    Wallet(Uuid),
}

fn malformed(field: &str, why: &str) -> Error {
    Error::Malformed { code: ErrorCode::InvalidPayment, detail: format!("X-PAYMENT: `{field}` {why}") }
}

/// The transfer that a proof names.
///
/// # Errors
/// 400 when it is no hash.
pub fn hash_of(proof: &OrderProof) -> Result<Hash, Error> {
    proof.tx_hash.parse().map_err(|_| malformed("txHash", "must be 0x and 64 hex digits"))
}

/// Takes the proof of an order.
///
/// # Errors
/// [`Stop`].
pub async fn take(
    app: &App,
    parts: &Payments,
    asked: &Asked,
    sale: &Sale,
    proof: &OrderProof,
) -> Result<Paid, Stop> {
    let hash = hash_of(proof)?;
    let payer: EvmAddress = proof.payer.parse().map_err(|_| malformed("payer", "must be an address"))?;
    let Some(order) = parts.order(&proof.order_id) else {
        return Err(Refused::new(ErrorCode::PaymentMismatch, "this order is not known here").into());
    };
    if order.binding != asked.binding {
        return Err(Refused::new(ErrorCode::PaymentMismatch, "this order is for another request").into());
    }
    if order.chain != parts.settings.chain_id || order.asset != parts.settings.asset {
        return Err(
            Refused::new(ErrorCode::PaymentMismatch, "this order is for another chain or token").into()
        );
    }
    parts.budgets.check(None, asked.ip())?;
    let found = find(app, parts, &order, hash, payer, proof, asked.ip()).await;
    if let Err(Stop::Refused(_)) = &found {
        parts.budgets.failed(None, asked.ip());
    }
    let (tx, mined) = found?;
    let (arrived, call) = check_transfer(&order, &tx, &mined, payer)?;
    let tie = tie(app, parts, asked, proof, payer, &call).await;
    if let Err(Stop::Refused(_)) = &tie {
        parts.budgets.failed(None, asked.ip());
    }
    let tie = tie?;
    let sold = SoldFor {
        order_id: proof.order_id.clone(),
        order_hash: order_id::hash_of(&proof.order_id),
        scheme: "otonix-order",
        resource: asked.resource.clone(),
        binding: asked.binding,
        goods: sale.goods.clone(),
        private: sale.private.clone(),
        price: MicroUsd::from_micros(book::signed(order.price)),
        idem: asked.idem,
        key: match tie {
            Tie::Wallet(key) => Some(key),
            Tie::Payer => None,
        },
    };
    let target = sold.goods.target();
    let sold = app
        .writer
        .apply(target, move |tx| Box::pin(async move { book::sell_in(tx, &sold, &arrived).await }))
        .await?;
    app.shared.metrics.payments_settled.inc();
    app.shared.purchases.notify_one();
    Ok(paid(sold, None, parts.settings.chain_id))
}

/// Waits until the transfer is as deep in the chain as its amount needs.
async fn find(
    app: &App,
    parts: &Payments,
    order: &Order,
    hash: Hash,
    payer: EvmAddress,
    proof: &OrderProof,
    asked_from: IpAddr,
) -> Result<(Transaction, Mined), Stop> {
    let until = Instant::now() + PATIENCE;
    let mut wait = LOOK_FIRST;
    let mut seat = None;
    loop {
        let trouble = match look(parts, order, hash, payer).await {
            Ok(Some(found)) => return Ok(found),
            Ok(None) => None,
            Err(Stop::Error(error @ Error::Busy { .. })) => Some(error),
            Err(other) => return Err(other),
        };
        let pending = || Error::PaymentPending {
            order_id: proof.order_id.clone(),
            retry_after: Duration::from_secs(2),
            detail: "the transfer is not deep enough in the chain yet; present the same proof again",
        };
        if Instant::now() + wait >= until || app.shared.is_draining() {
            if trouble.is_none() {
                // Whoever asks for transactions that never come is told to go away in the end.
                parts.budgets.failed(None, asked_from);
            }
            return Err(trouble.unwrap_or_else(pending).into());
        }
        if seat.is_none() {
            seat = Some(parts.seats.try_acquire().map_err(|_| pending())?);
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LOOK_MOST);
    }
}

async fn look(
    parts: &Payments,
    order: &Order,
    hash: Hash,
    payer: EvmAddress,
) -> Result<Option<(Transaction, Mined)>, Stop> {
    let (tx, mined) = match parts.chain.seen(hash).await? {
        Seen::Mined(found) => *found,
        Seen::Waiting => return Ok(None),
        Seen::Unknown => {
            let head = parts.chain.head(Duration::from_secs(1)).await?;
            if head.timestamp > order.until().saturating_add(UNKNOWN_AFTER_SECS) {
                let detail = "the chain has no such transaction, and the order has expired";
                return Err(Refused::new(ErrorCode::PaymentExpired, detail).into());
            }
            return Ok(None);
        }
    };
    let (arrived, _) = check_transfer(order, &tx, &mined, payer)?;
    let depth = parts.settings.confirmations.depth(arrived.amount);
    let deep = parts.chain.is_deep(mined.block.number, depth).await?;
    Ok(deep.then_some((tx, mined)))
}

/// Whether a transaction is the payment of an order: what can be said of it without knowing who presents it.
fn check_transfer(
    order: &Order,
    tx: &Transaction,
    mined: &Mined,
    payer: EvmAddress,
) -> Result<(Arrived, TransferCall), Refused> {
    let refuse = |code, detail: &str| Err(Refused::new(code, detail));
    let receipt = &mined.receipt;
    if !receipt.success {
        return refuse(ErrorCode::PaymentFailed, "the transaction failed on chain");
    }
    if tx.chain_id.is_some_and(|chain| chain != order.chain) {
        return refuse(ErrorCode::PaymentInvalid, "the transaction is for another chain");
    }
    let call = usdc::read_transfer(&tx.input).filter(|_| tx.to == Some(order.asset));
    let Some(call) = call else {
        return refuse(ErrorCode::PaymentInvalid, "the transaction is no plain transfer of the asked token");
    };
    if call.to != order.treasury {
        return refuse(ErrorCode::PaymentInvalid, "the transfer is to another address than the treasury");
    }
    if tx.from != payer || receipt.from != payer {
        return refuse(ErrorCode::PayerNotProven, "the transfer was sent by another than `payer`");
    }
    let found = receipt.logs.iter().enumerate().filter(|(_, log)| log.address == order.asset);
    let mut found = found.filter_map(|(index, log)| Some((index, usdc::read_transfer_log(log)?)));
    let found =
        found.find(|(_, log)| log.from == payer && log.to == order.treasury && log.value == call.value);
    let Some((index, log)) = found else {
        return refuse(ErrorCode::PaymentInvalid, "the transaction moved no money to the treasury");
    };
    if mined.block.number <= order.head {
        return refuse(ErrorCode::PaymentMismatch, "the transfer is older than the order");
    }
    if mined.block.timestamp > order.until() {
        return refuse(ErrorCode::PaymentExpired, "the order had expired when it was paid");
    }
    let arrived = Arrived::of(order.chain, index, &log, &mined.block);
    match arrived.filter(|arrived| is_enough(arrived.amount, order.price)) {
        Some(arrived) => Ok((arrived, call)),
        None => refuse(ErrorCode::PaymentInsufficient, "the transfer is smaller than the price"),
    }
}

fn is_enough(amount: MicroUsd, price: u64) -> bool {
    let (amount, price) = (i128::from(amount.micros()), i128::from(price));
    amount * 100 >= price * LEAST_PERCENT && amount + i128::from(MOST_SHORTFALL) >= price
}

/// What ties a transfer to this order, rather than to any other.
async fn tie(
    app: &App,
    parts: &Payments,
    asked: &Asked,
    proof: &OrderProof,
    payer: EvmAddress,
    call: &TransferCall,
) -> Result<Tie, Stop> {
    let not_proven = |detail: &str| Stop::from(Refused::new(ErrorCode::PayerNotProven, detail));
    if let Some(named) = call.order {
        if named == order_id::hash_of(&proof.order_id) {
            return Ok(Tie::Payer);
        }
        return Err(not_proven("the transfer names another order"));
    }
    if let Some(signature) = &proof.signature {
        let signer = signed_by(&proof.order_id, &proof.tx_hash, parts.settings.chain_id, signature);
        if signer == Some(payer.bytes()) {
            return Ok(Tie::Payer);
        }
        return Err(not_proven("the signature is not the payer's over this order and this transaction"));
    }
    if let Some(key) = key_of_payer(app, asked, &payer.to_string()).await? {
        return Ok(Tie::Wallet(key));
    }
    Err(not_proven(
        "nothing ties this transfer to this order: let its calldata end with the SHA-256 of the order id, or send \
         the payer's signature, or ask with a key of the owner of the payer's proven wallet",
    ))
}

/// The request's key when its owner has proven the payer's wallet.
pub(super) async fn key_of_payer(app: &App, asked: &Asked, payer: &str) -> Result<Option<Uuid>, Error> {
    let Principal::Key(key) = asked.caller.principal else { return Ok(None) };
    let address = payer.to_owned();
    let found =
        app.db.read(move |conn| Box::pin(async move { agents::by_proven_wallet(conn, &address).await }));
    let owns = found.await?.is_some_and(|(agent, owner)| asked.caller.owns(Some(owner), Some(agent)));
    Ok(owns.then(|| key.id.uuid()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cent_may_be_missing_and_no_more() {
        for (amount, price, enough) in [
            (1_000_000, 1_000_000, true),
            (990_000, 1_000_000, true),
            (989_999, 1_000_000, false),
            (99_950_000, 100_000_000, true),
            (99_949_999, 100_000_000, false),
            (2_000_000, 1_000_000, true),
            (0, 10_000, false),
            (9_900, 10_000, true),
        ] {
            assert_eq!(is_enough(MicroUsd::from_micros(amount), price), enough, "{amount} of {price}");
        }
    }
}
