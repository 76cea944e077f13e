//! Orders: the payer carries the transfer out itself. One number of the account per order, so that of all the forms
//! of its transaction (raised fees, and the void one that ends an order in vain) at most one is ever carried out.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::client::{Inner, Told};
use super::drive::{self, Tries, View};
use super::record::{Intent, Raw, Record, Signature, State};
use super::{PayError, sign};
use crate::chain::{At, ChainError, EvmAddress, Hash, Receipt, usdc};
use crate::wallet::{Gas, parse_address};
use crate::x402::OrderOffer;
use crate::x402::eip3009::order_tag;

/// Units of gas at most: a transfer of USDC takes about 60,000.
const MAX_GAS: u64 = 200_000;
/// What one transaction may cost at most, wei: 0.001 of the chain's coin.
const MAX_COST: u128 = 1_000_000_000_000_000;
/// So many times the first cost must be there, for raised fees.
const RESERVE: u128 = 3;

/// Gas for an order's transfer: `None` when the wallet cannot pay for it, or it would cost too much.
pub(super) async fn gas_for(inner: &Inner, offer: &OrderOffer) -> Result<Option<Gas>, ChainError> {
    let Ok(to) = parse_address(&offer.treasury) else { return Ok(None) };
    let payer = inner.wallet.address();
    let coins = inner.rpc.balance(payer).await?;
    if coins == 0 {
        return Ok(None);
    }
    let data = usdc::transfer(to, offer.amount, Some(order_tag(&offer.order_id)));
    let estimate = match inner.rpc.estimate_gas(payer, inner.config.rules.asset, &data).await {
        Ok(estimate) => estimate,
        Err(error) if error.is_revert() => return Ok(None),
        Err(error) => return Err(error),
    };
    let fees = inner.rpc.fees().await?;
    let limit = estimate.saturating_add(estimate / 4).min(MAX_GAS);
    let max_fee = fees.base_fee.saturating_mul(2).saturating_add(fees.priority_fee);
    let cost = u128::from(limit).saturating_mul(max_fee);
    if estimate > MAX_GAS || cost > MAX_COST || coins < cost.saturating_mul(RESERVE) {
        return Ok(None);
    }
    let nonce = inner.rpc.transaction_count(payer, At::Pending).await?;
    let chain_id = inner.config.rules.chain_id;
    Ok(Some(Gas { chain_id, nonce, limit, max_fee, priority_fee: fees.priority_fee }))
}

/// Where an order's transaction is.
enum Mined {
    /// In a block, carried out.
    Done(Receipt),
    /// In a block, and it moved nothing.
    InVain(Receipt),
    /// In none.
    Waiting,
    /// Another transaction has used the number.
    Replaced,
}

pub(super) async fn run(
    inner: &Arc<Inner>,
    intent: &Intent,
    tell: &watch::Sender<Told>,
) -> Result<(), PayError> {
    let Signature::Order { order_id, expires, nonce, .. } = &intent.way else { return Ok(()) };
    let mut tries = Tries::new();
    let mut sent: Option<Instant> = None;
    loop {
        let forms = forms_of(inner, intent);
        let mined = mined(inner, &forms, intent.payer, *nonce).await;
        let mut view = View::Unknown;
        match &mined {
            Ok(Mined::Done(receipt)) => {
                view = View::Used(Some(receipt.tx_hash));
                drive::paid(inner, intent, Some(receipt.tx_hash)).await?;
                if Instant::now() >= tries.next {
                    let chain_id = inner.config.rules.chain_id;
                    let header =
                        sign::proof(&inner.wallet, intent.payer, order_id, receipt.tx_hash, chain_id);
                    if tries.send(inner, intent, header, tell).await? {
                        return Ok(());
                    }
                }
                let old = drive::age(inner, intent) >= inner.config.tuning.undelivered;
                if old && is_final(inner, receipt.block_number).await {
                    return drive::undelivered(inner, intent, Some(receipt.tx_hash), &tries).await;
                }
            }
            Ok(Mined::InVain(receipt)) if is_final(inner, receipt.block_number).await => {
                let detail = format!("the transaction {} moved no money", receipt.tx_hash);
                return drive::end(inner, intent, State::ExpiredUnspent, None, Some(detail)).await;
            }
            Ok(Mined::Replaced) => {
                let detail = "another transaction of the wallet has used the number".to_owned();
                return drive::end(inner, intent, State::ExpiredUnspent, None, Some(detail)).await;
            }
            Ok(Mined::InVain(_)) => view = View::Unused,
            Ok(Mined::Waiting) => {
                view = View::Unused;
                push(inner, intent, &forms, *expires, &mut sent).await?;
            }
            Err(error) => tracing::debug!(payment.id = %intent.id, %error, "the chain does not say"),
        }
        if tries.count >= 6 && view != View::Unknown && !tries.pending {
            tell.send_modify(|told| told.enough = true);
        }
        drive::rest(inner, &tries, tell, matches!(mined, Ok(Mined::Done(_) | Mined::Waiting))).await;
    }
}

fn forms_of(inner: &Inner, intent: &Intent) -> Vec<Raw> {
    match inner.entry(intent.id).map(|entry| entry.intent.way) {
        Some(Signature::Order { transactions, .. }) => transactions,
        _ => Vec::new(),
    }
}

async fn mined(inner: &Inner, forms: &[Raw], payer: EvmAddress, nonce: u64) -> Result<Mined, ChainError> {
    let mut vain = None;
    for form in forms {
        match inner.rpc.receipt(form.hash).await? {
            Some(receipt) if receipt.success && !form.void => return Ok(Mined::Done(receipt)),
            Some(receipt) => vain = Some(receipt),
            None => {}
        }
    }
    if let Some(receipt) = vain {
        return Ok(Mined::InVain(receipt));
    }
    // Asked at a final block: a receipt that is only late would be there by then.
    let used = inner.rpc.transaction_count(payer, At::Finalized).await?;
    Ok(if used > nonce { Mined::Replaced } else { Mined::Waiting })
}

async fn is_final(inner: &Inner, block: u64) -> bool {
    matches!(inner.rpc.block(At::Finalized).await, Ok(Some(last)) if last.number >= block)
}

/// Sends what is signed, with a raised fee when it waits too long, void when its order is about to end.
async fn push(
    inner: &Arc<Inner>,
    intent: &Intent,
    forms: &[Raw],
    expires: u64,
    sent: &mut Option<Instant>,
) -> Result<(), PayError> {
    let Some(last) = forms.last() else { return Ok(()) };
    let own = intent.payer == inner.wallet.address();
    let late = sent.is_some_and(|since| since.elapsed() >= inner.config.tuning.bump);
    let ending = drive::now(inner).saturating_add(inner.config.tuning.void_before.as_secs()) >= expires;
    let form = if own && ((ending && !last.void) || (late && affordable(last))) {
        *sent = Some(Instant::now());
        raise(inner, intent, last, ending || last.void).await?
    } else {
        sent.get_or_insert_with(Instant::now);
        last.clone()
    };
    let Ok(raw) = hex::decode(&form.raw) else { return Ok(()) };
    match inner.rpc.send_raw(&raw).await {
        Ok(()) => {}
        // The receipt tells which form it was.
        Err(error) if error.is_nonce_too_low() => {}
        Err(error) => tracing::debug!(payment.id = %intent.id, %error, "the transaction was not taken"),
    }
    Ok(())
}

/// A raised fee still within what a transaction may cost.
fn affordable(last: &Raw) -> bool {
    u128::from(last.gas_limit).saturating_mul(raised(last.max_fee)) <= MAX_COST.saturating_mul(2)
}

/// An eighth and one wei more: the least by which nodes let a transaction be replaced is a tenth.
const fn raised(fee: u128) -> u128 {
    fee.saturating_add(fee / 8).saturating_add(1)
}

/// Signs another form with the same number; on disk before it is sent.
async fn raise(inner: &Arc<Inner>, intent: &Intent, last: &Raw, void: bool) -> Result<Raw, PayError> {
    let Signature::Order { order_id, nonce, .. } = &intent.way else { return Ok(last.clone()) };
    let fees = inner.rpc.fees().await.ok();
    let current = fees.map_or(0, |fees| fees.base_fee.saturating_mul(2).saturating_add(fees.priority_fee));
    let most = MAX_COST.saturating_mul(2) / u128::from(last.gas_limit.max(1));
    let gas = Gas {
        chain_id: inner.config.rules.chain_id,
        nonce: *nonce,
        limit: last.gas_limit,
        max_fee: raised(last.max_fee).max(current.min(most)),
        priority_fee: raised(last.priority_fee),
    };
    let asset = inner.config.rules.asset;
    let (to, value, tag): (EvmAddress, u128, Option<[u8; 32]>) = if void {
        (inner.wallet.address(), 0, None)
    } else {
        let value = u128::try_from(intent.amount.micros()).unwrap_or_default();
        (intent.pay_to, value, Some(order_tag(order_id)))
    };
    let signed = inner.wallet.sign_transfer(&gas, asset, to, value, tag);
    let raw = sign::raw_of(&signed.raw, signed.hash, &gas, void);
    let (id, transaction) = (intent.id, raw.clone());
    let hash: Hash = raw.hash;
    inner.book(move |book| book.commit(vec![Record::Bumped { id, transaction }])).await??;
    tracing::info!(payment.id = %id, tx.hash = %hash, void, "an order's transaction was signed again");
    Ok(raw)
}
