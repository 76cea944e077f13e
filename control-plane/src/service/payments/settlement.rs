//! The end of a claim: found on the chain and booked, or known never to come.
//!
//! The token takes each nonce of a payer once, so settling again can never move money twice. A claim ends `done` only
//! by a transfer that the chain has, with the use of its nonce in the same transaction; it ends `failed` only when the
//! chain itself, as deep as the amount needs, can carry it out no more. No other clock has a say.

use std::time::Duration;

use otonix_sdk::chain::usdc::{self, TransferAuthorization};
use otonix_sdk::chain::{Block, EvmAddress, Hash};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::wallet::{Gas, Signed, Wallet};

use crate::app::App;
use crate::error::Error;
use crate::service::payments::book::{self, Arrived, SoldFor, signed};
use crate::service::payments::goods::{self, Goods};
use crate::service::payments::order_id::{self, Order};
use crate::service::payments::{Payments, chain_away};
use crate::store::agents;
use crate::store::orders::Sold;
use crate::store::payments::{self, Payment};
use crate::store::writer::{Target, Tx};
use crate::treasury::Depth;
use crate::upstream::chain::{MAX_FEE_CAP, Mined, SETTLE_GAS, Trouble};

/// What a look at the chain said of a claim.
#[derive(Debug)]
pub enum Found {
    /// It was carried out.
    Settled(Box<Arrived>),
    /// Not yet; it may be.
    Open,
    /// A transaction of ours failed on the chain; until its end the payment may still be carried out.
    Reverted,
    /// It never will be, for this reason.
    Dead(&'static str),
}

/// The payer's authorization of a claim.
///
/// # Errors
/// When the row cannot be read.
pub fn authorization(payment: &Payment) -> Result<TransferAuthorization, Error> {
    let address = |text: &str| text.parse().map_err(|_| Error::internal("a claim's address cannot be read"));
    let number = |n: i64| u64::try_from(n).map_err(|_| Error::internal("a claim's number cannot be read"));
    Ok(TransferAuthorization {
        from: address(&payment.from)?,
        to: address(&payment.pay_to)?,
        value: u128::from(number(payment.amount)?),
        valid_after: number(payment.valid_after)?,
        valid_before: number(payment.valid_before)?,
        nonce: payment.nonce,
    })
}

/// Signs the settlement of a claim with an account number.
///
/// # Errors
/// When the row cannot be read.
pub fn sign(
    parts: &Payments,
    key: &Wallet,
    payment: &Payment,
    nonce: u64,
    (max_fee, priority_fee): (u128, u128),
) -> Result<Signed, Error> {
    let gas = Gas {
        chain_id: parts.settings.chain_id,
        nonce,
        // What is not used is not paid for; what was simulated may be used.
        limit: SETTLE_GAS,
        max_fee: max_fee.min(MAX_FEE_CAP),
        priority_fee: priority_fee.min(max_fee).min(MAX_FEE_CAP),
    };
    let authorization = authorization(payment)?;
    let asset = parts.settings.asset;
    Ok(key.sign_settlement(&gas, asset, &authorization, &payment.signature, payment.by_contract))
}

/// Finds a claim's transfer in a transaction: the token notes the use of the payer's nonce and then moves the money, so
/// that of several alike in one transaction each belongs to its own nonce.
pub(super) fn arrived_in(
    chain: u64,
    asset: EvmAddress,
    payment: &TransferAuthorization,
    mined: &Mined,
) -> Option<Arrived> {
    let receipt = &mined.receipt;
    if !receipt.success {
        return None;
    }
    let mut logs = receipt.logs.iter().enumerate().filter(|(_, log)| log.address == asset);
    logs.find(|(_, log)| usdc::read_authorization_used(log) == Some((payment.from, payment.nonce)))?;
    let (index, log) = logs.find_map(|(index, log)| {
        let log = usdc::read_transfer_log(log)?;
        let is_it = log.from == payment.from && log.to == payment.to && log.value == payment.value;
        is_it.then_some((index, log))
    })?;
    Arrived::of(chain, index, &log, &mined.block)
}

/// Looks for the transaction that carried a claim out, among those that are known to have been sent.
///
/// # Errors
/// [`Trouble`].
pub async fn look(
    parts: &Payments,
    payment: &TransferAuthorization,
    sent: &[Hash],
) -> Result<Found, Trouble> {
    let mut reverted = false;
    for hash in sent.iter().rev() {
        let Some(mined) = parts.chain.mined(*hash).await? else { continue };
        if let Some(arrived) = arrived_in(parts.settings.chain_id, parts.settings.asset, payment, &mined) {
            return deep_enough(parts, arrived).await;
        }
        reverted |= !mined.receipt.success;
    }
    Ok(if reverted { Found::Reverted } else { Found::Open })
}

async fn deep_enough(parts: &Payments, arrived: Arrived) -> Result<Found, Trouble> {
    let depth = parts.settings.confirmations.depth(arrived.amount);
    let deep = parts.chain.is_deep(arrived.block_number, depth).await?;
    Ok(if deep { Found::Settled(Box::new(arrived)) } else { Found::Open })
}

fn depth_of(parts: &Payments, payment: &TransferAuthorization) -> Depth {
    let amount = goods::micros(payment.value).unwrap_or(MicroUsd::from_micros(i64::MAX));
    parts.settings.confirmations.depth(amount)
}

/// Asks the token whether a claim was carried out by anyone, and whether it still can be.
///
/// # Errors
/// [`Trouble`].
pub async fn search(
    parts: &Payments,
    payment: &TransferAuthorization,
    from_block: u64,
) -> Result<Found, Trouble> {
    search_at(parts, payment, from_block, depth_of(parts, payment)).await
}

/// The same, and a claim is dead only where the chain can never change its mind.
///
/// # Errors
/// [`Trouble`].
pub async fn search_for_good(
    parts: &Payments,
    payment: &TransferAuthorization,
    from_block: u64,
) -> Result<Found, Trouble> {
    search_at(parts, payment, from_block, Depth::Finalized).await
}

async fn search_at(
    parts: &Payments,
    payment: &TransferAuthorization,
    from_block: u64,
    depth: Depth,
) -> Result<Found, Trouble> {
    let head = parts.chain.head(Duration::ZERO).await?;
    if !parts.chain.is_used(payment.from, payment.nonce).await? {
        return unused(parts, payment, depth, head).await;
    }
    if let Some(mined) = parts.chain.use_of(payment.from, payment.nonce, from_block).await? {
        if let Some(arrived) = arrived_in(parts.settings.chain_id, parts.settings.asset, payment, &mined) {
            return deep_enough(parts, arrived).await;
        }
        let deep = parts.chain.is_deep(mined.block.number, depth).await?;
        return Ok(if deep { Found::Dead("its nonce was used for another transfer") } else { Found::Open });
    }
    // A node that shows neither has not shown all there is.
    match parts.chain.cancel_of(payment.from, payment.nonce, from_block).await? {
        Some(block) if parts.chain.is_deep(block, depth).await? => {
            Ok(Found::Dead("its nonce was cancelled by its payer"))
        }
        Some(_) | None => Ok(Found::Open),
    }
}

/// An authorization that is not used ends with the first block that is past its end. What is unused by the head is
/// unused by every block below it, and nodes forget the state of old blocks: so it is the head that is asked about.
async fn unused(
    parts: &Payments,
    payment: &TransferAuthorization,
    depth: Depth,
    head: Block,
) -> Result<Found, Trouble> {
    let Some(deep) = parts.chain.deep_block(depth, head).await? else { return Ok(Found::Open) };
    let ended = deep.timestamp >= payment.valid_before
        && !parts.chain.is_used_by(payment.from, payment.nonce, head.number).await?;
    Ok(if ended { Found::Dead("it was not carried out in time") } else { Found::Open })
}

/// Books a claim that was carried out. Safe to repeat.
///
/// # Errors
/// Store errors; a transfer that was used otherwise fails the claim.
pub async fn grant(app: &App, parts: &Payments, payment: &Payment, arrived: &Arrived) -> Result<(), Error> {
    let goods: Goods = serde_json::from_value(payment.goods.clone())
        .map_err(|_| Error::internal("a claim's goods cannot be read"))?;
    let target = goods.target();
    let buys = matches!(goods, Goods::Purchase { .. });
    let sold = SoldFor {
        order_id: payment.order_id.clone(),
        order_hash: payment.order_hash,
        scheme: "exact",
        resource: payment.resource.clone(),
        binding: payment.binding,
        goods,
        private: payment.private.clone(),
        price: MicroUsd::from_micros(payment.price),
        idem: payment.idem,
        key: None,
    };
    let spare = spare_order(parts, payment, app.clock.now().timestamp());
    let id = payment.id;
    let arrived = arrived.clone();
    let done = app
        .writer
        .apply(target, move |tx| Box::pin(async move { grant_in(tx, id, sold, spare, &arrived).await }));
    match done.await {
        Ok(sold) => {
            app.shared.metrics.payments_settled.inc();
            if buys {
                app.shared.purchases.notify_one();
            }
            parts.ended(payment.id, sold);
            Ok(())
        }
        Err(Error::Conflict {
            code: ErrorCode::PaymentAlreadyCredited | ErrorCode::PaymentAlreadyUsed,
            detail,
        }) => fail(app, parts, payment, &detail).await,
        Err(error) => Err(error),
    }
}

async fn grant_in(
    tx: &mut Tx,
    id: uuid::Uuid,
    mut sold: SoldFor,
    spare: String,
    arrived: &Arrived,
) -> Result<Option<Sold>, Error> {
    if let Some(agent) = sold.goods.agent().filter(|_| sold.goods.target() == Target::Alone) {
        agents::lock_state(tx, agent.uuid()).await?;
    }
    // Whoever was faster has booked it.
    let row = book::row_for(&sold, arrived);
    let Some(done) = payments::done(tx, id, &row).await? else { return Ok(None) };
    if done.other.is_some_and(|other| other != arrived.tx_hash) {
        // Somebody paid the same order otherwise. This payer has paid too, and gets what was paid for.
        sold.order_hash = order_id::hash_of(&spare);
        sold.order_id = spare;
        payments::rename_order(tx, id, &sold.order_id, sold.order_hash).await?;
    }
    book::sell_for(tx, &sold, arrived, &row, done.taken).await.map(Some)
}

/// An order of the same content, in case the claim's own was paid by someone else.
fn spare_order(parts: &Payments, payment: &Payment, now: i64) -> String {
    let mut salt = [0; 12];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut salt);
    let number = |n: i64| u64::try_from(n).unwrap_or(0);
    let order = Order {
        created: number(now),
        ttl: 0,
        head: 0,
        head_time: 0,
        salt,
        price: number(payment.price),
        chain: parts.settings.chain_id,
        asset: parts.settings.asset,
        treasury: parts.settings.treasury,
        binding: payment.binding,
    };
    parts.id_of(&order)
}

/// Ends a claim that will never be carried out.
///
/// # Errors
/// Store errors.
pub async fn fail(app: &App, parts: &Payments, payment: &Payment, why: &str) -> Result<(), Error> {
    let (id, why) = (payment.id, why.to_owned());
    tracing::info!(payment.id = %id, reason = %why, "a signed payment failed");
    app.writer
        .apply(Target::Shared, move |tx| {
            Box::pin(async move {
                payments::fail(tx, id, &why).await?;
                Ok(())
            })
        })
        .await?;
    app.shared.metrics.payments_failed.inc();
    parts.failed_by(payment);
    parts.ended(payment.id, None);
    Ok(())
}

/// Carries what was found out; `true` when the claim has ended.
///
/// # Errors
/// Store errors.
pub async fn conclude(app: &App, parts: &Payments, payment: &Payment, found: Found) -> Result<bool, Error> {
    match found {
        Found::Open | Found::Reverted => Ok(false),
        Found::Settled(arrived) => grant(app, parts, payment, &arrived).await.map(|()| true),
        Found::Dead(why) => fail(app, parts, payment, why).await.map(|()| true),
    }
}

/// Trouble with the chain, as an error of a step.
pub fn away(trouble: Trouble) -> Error {
    chain_away(&trouble)
}

/// A row's number of blocks.
pub fn block_of(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The address that settles.
pub fn signer_text(address: EvmAddress) -> String {
    address.to_string()
}

/// The chain's id as rows have it.
pub fn chain_column(parts: &Payments) -> i64 {
    signed(parts.settings.chain_id)
}

#[cfg(test)]
mod tests {
    use otonix_sdk::chain::{Block, Log, Receipt};

    use super::*;

    const ASSET: EvmAddress = EvmAddress::from_bytes([9; 20]);
    const PAYER: EvmAddress = EvmAddress::from_bytes([1; 20]);
    const TREASURY: EvmAddress = EvmAddress::from_bytes([2; 20]);

    fn word(address: EvmAddress) -> Hash {
        let mut word = [0; 32];
        word[12..].copy_from_slice(&address.bytes());
        Hash(word)
    }

    fn log(topics: Vec<Hash>, data: Vec<u8>) -> Log {
        let (block_hash, tx_hash) = (Hash([5; 32]), Hash([6; 32]));
        Log { address: ASSET, topics, data, block_number: 7, block_hash, tx_hash, log_index: 40 }
    }

    fn used(nonce: u8) -> Log {
        log(vec![usdc::AUTHORIZATION_USED_TOPIC, word(PAYER), Hash([nonce; 32])], Vec::new())
    }

    fn moved(value: u8) -> Log {
        let mut data = vec![0; 32];
        data[31] = value;
        log(vec![usdc::TRANSFER_TOPIC, word(PAYER), word(TREASURY)], data)
    }

    fn mined(success: bool, logs: Vec<Log>) -> Mined {
        let (number, hash) = (7, Hash([5; 32]));
        let receipt = Receipt {
            tx_hash: Hash([6; 32]),
            success,
            from: PAYER,
            to: Some(ASSET),
            block_number: number,
            block_hash: hash,
            gas_used: 0,
            logs,
        };
        Mined { receipt, block: Block { number, hash, parent: Hash([4; 32]), timestamp: 100, base_fee: 0 } }
    }

    fn at(nonce: u8, mined: &Mined) -> Option<u64> {
        let payment = TransferAuthorization {
            from: PAYER,
            to: TREASURY,
            value: 3,
            valid_after: 0,
            valid_before: 1000,
            nonce: [nonce; 32],
        };
        arrived_in(8453, ASSET, &payment, mined).map(|arrived| arrived.log_index)
    }

    #[test]
    fn of_equal_payments_in_one_transaction_each_has_its_own_transfer() {
        let both = mined(true, vec![used(1), moved(3), used(2), moved(3)]);
        assert_eq!((at(1, &both), at(2, &both), at(3, &both)), (Some(1), Some(3), None));
        assert_eq!(at(1, &mined(false, both.receipt.logs.clone())), None);
        assert_eq!(at(1, &mined(true, vec![moved(3), used(1)])), None, "a transfer of its own before it");
        assert_eq!(at(1, &mined(true, vec![used(1), moved(4)])), None, "another amount");
    }
}
