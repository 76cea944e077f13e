//! Signed payments (`exact`, versions 1 and 2): checked without the chain first, then by it, then claimed.
//!
//! A claim is a row that is unique by payer and nonce. It is written after the signature is verified and before
//! anything is done; whoever presents the same payment again waits for the same claim.

use std::sync::Arc;

use otonix_sdk::error::ErrorCode;
use otonix_sdk::x402::eip3009::{BadSignature, Transfer};
use otonix_sdk::x402::{ExactPayload, Presented};

use crate::app::App;
use crate::error::Error;
use crate::service::payments::book::signed;
use crate::service::payments::settlement::arrived_in;
use crate::service::payments::{
    Asked, Paid, Payments, Refused, Sale, Stop, carried, outcome, paid, parts, sold, used_elsewhere,
};
use crate::store::payments::Payment;
use crate::upstream::chain::Ready;

mod claim;
mod presented;

use claim::{claim_and_sign, claim_of, join, new_claim, order_or_key_taken, under_way};
use presented::{Checked, read_signature, read_transfer, signer, version_1, version_2, wanting};

/// What a signature of a contract that does not exist yet ends with (ERC-6492).
const ERC_6492: [u8; 32] = [
    0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64,
    0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92,
];
/// Nor for longer than this, seconds: until its end nobody can say that it was not carried out.
const MOST_VALID_SECS: u64 = 3_600;
/// How far back the use of a nonce is looked for, blocks.
const LOOK_BACK: u64 = 4_000;

fn refuse<T>(code: ErrorCode, detail: impl Into<String>) -> Result<T, Stop> {
    Err(Refused::new(code, detail).into())
}

/// The outcome of a payment that was taken before, byte for byte the same payment.
///
/// # Errors
/// As [`super::repeat`].
pub async fn repeat(
    app: &App,
    asked: &Asked,
    payload: &ExactPayload,
    version: u8,
) -> Result<Option<Paid>, Error> {
    let parts = parts(app)?;
    let transfer = read_transfer(payload)?;
    let signature = read_signature(payload)?;
    let Some(claim) = claim_of(app, parts, &transfer).await? else { return Ok(None) };
    // Another signature is looked at as any new payment is.
    if claim.signature != signature || !is_same(&claim, &transfer) {
        return Ok(None);
    }
    if claim.binding != asked.binding {
        return Err(used_elsewhere());
    }
    match claim.status.as_str() {
        "done" => {
            let sold = sold(app, claim.order_hash).await?;
            let sold = sold.ok_or_else(|| Error::internal("a payment ended without a sale"))?;
            Ok(Some(paid(sold, Some(version), parts.settings.chain_id)))
        }
        // What failed is told with a new demand, which the route makes.
        "failed" => Ok(None),
        _ => match outcome(app, parts, claim).await {
            Ok(paid) => Ok(Some(paid)),
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Refused(_)) => Ok(None),
        },
    }
}

fn is_same(claim: &Payment, transfer: &Transfer) -> bool {
    u128::try_from(claim.amount) == Ok(transfer.value)
        && claim.pay_to == transfer.to.to_string()
        && claim.valid_after == signed(transfer.valid_after)
        && claim.valid_before == signed(transfer.valid_before)
}

/// Takes a signed payment: checks, claims, waits for its end.
///
/// # Errors
/// [`Stop`].
pub async fn take(
    app: &App,
    parts: &Arc<Payments>,
    asked: &Asked,
    sale: &Sale,
    presented: &Presented,
    ready: &Ready,
) -> Result<Paid, Stop> {
    let now = u64::try_from(app.clock.now().timestamp()).unwrap_or(0);
    let checked = match presented {
        Presented::V1(payment) => version_1(app, parts, asked, sale, payment, ready)?,
        Presented::V2(payment) => version_2(app, parts, asked, sale, payment, ready)?,
        Presented::Order(_) => return Err(Error::internal("an order is no signed payment").into()),
    };
    let transfer = &checked.transfer;
    if transfer.to != parts.settings.treasury {
        return refuse(ErrorCode::PaymentInvalid, "the payment is to another address than `payTo`");
    }
    let domain = parts.chain.domain().ok_or_else(|| Error::internal("a ready chain has its domain"))?;
    let digest = transfer.digest(&domain);
    let by_contract = match signer(&digest, &checked.signature) {
        Ok(signer) if signer == transfer.from => false,
        Err(BadSignature::HighS) => {
            return refuse(ErrorCode::PaymentInvalid, "the signature must have a low s");
        }
        Ok(_) | Err(BadSignature::Malformed) if checked.signature.ends_with(&ERC_6492) => {
            return refuse(ErrorCode::PaymentInvalid, "wallets that are not deployed yet cannot pay here");
        }
        // Whoever is not the signer may still be a contract that takes this signature for its own.
        Ok(_) | Err(BadSignature::Malformed) => true,
    };
    if by_contract {
        parts.budgets.check(None, asked.ip())?;
        let valid = parts.chain.is_contract(transfer.from).await?
            && parts
                .chain
                .rpc()
                .is_valid_signature(transfer.from, digest, &checked.signature)
                .await
                .map_err(crate::upstream::chain::Trouble::from)?;
        if !valid {
            parts.budgets.failed(None, asked.ip());
            return refuse(ErrorCode::PaymentInvalid, "the signature is not the payer's over this payment");
        }
    }
    // The payer is known from here on.
    if let Some(refused) = wanting(parts, sale, &checked, ready, now) {
        return match claim_of(app, parts, transfer).await? {
            Some(claim) => join(app, parts, asked, claim).await,
            None => Err(refused.into()),
        };
    }
    let ended = transfer.valid_before > now.max(ready.head.timestamp).saturating_add(MOST_VALID_SECS);
    if ended {
        return refuse(ErrorCode::PaymentInvalid, "the payment must not be valid for more than an hour");
    }
    let mut claim = new_claim(app, parts, asked, sale, &checked, by_contract, ready)?;
    if let Standing::CarriedOut = ask_chain(app, parts, asked, &checked, by_contract, ready).await? {
        // There is nothing to send: it only has to be found.
        "sent".clone_into(&mut claim.status);
    }
    match claim_and_sign(app, parts, &claim).await? {
        Some(signed) => {
            parts.hand_over(claim.clone(), signed);
            outcome(app, parts, claim).await
        }
        None => match claim_of(app, parts, transfer).await? {
            Some(other) => join(app, parts, asked, other).await,
            None if sale.goods.exclusive().is_some() => Err(under_way()),
            None => Err(order_or_key_taken(asked)),
        },
    }
}

/// What the chain says of a payment.
enum Standing {
    /// It would carry it out now.
    Possible,
    /// It has done so already.
    CarriedOut,
}

/// Whether the chain would carry the payment out now, or has done so already.
async fn ask_chain(
    app: &App,
    parts: &Payments,
    asked: &Asked,
    checked: &Checked,
    by_contract: bool,
    ready: &Ready,
) -> Result<Standing, Stop> {
    let transfer = &checked.transfer;
    let payer = Some(transfer.from.bytes());
    parts.budgets.check(payer, asked.ip())?;
    let Err(why) = parts.chain.simulate(transfer, &checked.signature, by_contract).await? else {
        return Ok(Standing::Possible);
    };
    // It may have been claimed before, or by a parallel request meanwhile: the claim tells.
    if claim_of(app, parts, transfer).await?.is_some() {
        return Ok(Standing::CarriedOut);
    }
    if parts.chain.is_used(transfer.from, transfer.nonce).await? {
        let from_block = ready.head.number.saturating_sub(LOOK_BACK);
        if let Some(mined) = parts.chain.use_of(transfer.from, transfer.nonce, from_block).await?
            && let Some(arrived) = arrived_in(parts.settings.chain_id, parts.settings.asset, transfer, &mined)
        {
            let order = carried::Named { id: &checked.order_id, head: checked.head };
            let allowed = carried::check(app, parts, asked, transfer, order, &arrived).await;
            if let Err(Stop::Refused(_)) = &allowed {
                parts.budgets.failed(None, asked.ip());
            }
            return allowed.map(|()| Standing::CarriedOut);
        }
        parts.budgets.failed(payer, asked.ip());
        return refuse(ErrorCode::PaymentInvalid, "the payment's nonce was used or cancelled before");
    }
    parts.budgets.failed(payer, asked.ip());
    let trouble = crate::upstream::chain::Trouble::from;
    let balance =
        parts.chain.rpc().token_balance(parts.settings.asset, transfer.from).await.map_err(trouble)?;
    if balance < transfer.value {
        return refuse(
            ErrorCode::PaymentInsufficient,
            "the payer has not enough of the token (insufficient_funds)",
        );
    }
    tracing::debug!(error = %why, "a signed payment would fail on chain");
    refuse(
        ErrorCode::PaymentInvalid,
        "the chain would not carry this payment out (invalid_transaction_state)",
    )
}
