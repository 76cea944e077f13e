//! Signed payments (`exact`, versions 1 and 2): checked without the chain first, then by it, then claimed.
//!
//! A claim is a row that is unique by payer and nonce. It is written after the signature is verified and before
//! anything is done; whoever presents the same payment again waits for the same claim.

use std::sync::Arc;

use otonix_sdk::chain::EvmAddress;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::x402::eip3009::{self, BadSignature, SIGNATURE_BYTES, Transfer};
use otonix_sdk::x402::network::{caip2, chain_id, v1_name};
use otonix_sdk::x402::{EXACT, ExactPayload, PaymentV1, PaymentV2, Presented, Requirements, RequirementsV1};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::payments::book::signed;
use crate::service::payments::desk::Pen;
use crate::service::payments::order_id::{self, Order};
use crate::service::payments::settlement::arrived_in;
use crate::service::payments::{
    Asked, MAX_TIMEOUT_SECS, Paid, Payments, Refused, Sale, Stop, carried, outcome, paid, parts, sold,
    used_elsewhere,
};
use crate::store::payments::{self, Payment};
use crate::store::purchases;
use crate::store::settlements::Settlement;
use crate::store::writer::{Target, Tx};
use crate::treasury::Settler;
use crate::upstream::chain::Ready;

/// A payment must be valid for so much longer, seconds: it has to reach a block.
const LEAST_VALID_SECS: u64 = 6;
/// Longest signature of a contract, bytes.
const MAX_SIGNATURE: usize = 4_096;
/// What a signature of a contract that does not exist yet ends with (ERC-6492).
const ERC_6492: [u8; 32] = [
    0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64,
    0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92, 0x64, 0x92,
];
/// Nor for longer than this, seconds: until its end nobody can say that it was not carried out.
const MOST_VALID_SECS: u64 = 3_600;
/// How far back the use of a nonce is looked for, blocks.
const LOOK_BACK: u64 = 4_000;

fn malformed(detail: &str) -> Error {
    Error::Malformed { code: ErrorCode::InvalidPayment, detail: detail.to_owned() }
}

fn refuse<T>(code: ErrorCode, detail: impl Into<String>) -> Result<T, Stop> {
    Err(Refused::new(code, detail).into())
}

fn read_transfer(payload: &ExactPayload) -> Result<Transfer, Error> {
    Transfer::read(&payload.authorization)
        .ok_or_else(|| malformed("the payment's `authorization` cannot be read"))
}

fn read_signature(payload: &ExactPayload) -> Result<Vec<u8>, Error> {
    let bytes = payload.signature.strip_prefix("0x").and_then(|digits| hex::decode(digits).ok());
    bytes
        .filter(|bytes| !bytes.is_empty() && bytes.len() <= MAX_SIGNATURE)
        .ok_or_else(|| malformed("the payment's `signature` must be 0x and hex"))
}

async fn claim_of(app: &App, parts: &Payments, transfer: &Transfer) -> Result<Option<Payment>, Error> {
    let chain = signed(parts.settings.chain_id);
    let (asset, from) = (parts.settings.asset.to_string(), transfer.from.to_string());
    let nonce = transfer.nonce;
    let found = app.db.read(move |conn| {
        Box::pin(async move { payments::by_nonce(conn, chain, &asset, &from, nonce).await })
    });
    Ok(found.await?)
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

/// What is asked of a signed payment in version 2.
pub fn requirements(
    parts: &Payments,
    price: u128,
    name: &str,
    version: &str,
    order: Option<&str>,
) -> Requirements {
    let mut extra = json!({ "name": name, "version": version });
    if let Some(order) = order {
        extra["orderId"] = Value::from(order);
    }
    Requirements {
        scheme: EXACT.to_owned(),
        network: caip2(parts.settings.chain_id),
        amount: price.to_string(),
        asset: parts.settings.asset.to_string(),
        pay_to: parts.settings.treasury.to_string(),
        max_timeout_seconds: MAX_TIMEOUT_SECS,
        extra: Some(extra),
    }
}

/// A payment after everything that needs no chain was checked.
struct Checked {
    transfer: Transfer,
    signature: Vec<u8>,
    /// The order that it names, or a new one.
    order_id: String,
    /// Seconds since 1970 until which the order holds.
    until: u64,
    /// The head of the chain when the order that it names was made.
    head: Option<u64>,
    price: u64,
    version: u8,
    facilitator_body: Option<String>,
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

/// What is wrong with a payment that nobody has claimed. (One that was claimed needs none of it any more: that is
/// looked for only here, and when the claim is written.)
fn wanting(parts: &Payments, sale: &Sale, checked: &Checked, ready: &Ready, now: u64) -> Option<Refused> {
    let transfer = &checked.transfer;
    let (code, detail) = if now > checked.until {
        (
            ErrorCode::PaymentExpired,
            "the order that the payment names has ended; ask for a new one".to_owned(),
        )
    } else if transfer.value != u128::from(checked.price) {
        let detail = format!("the payment must be {} base units, not {}", checked.price, transfer.value);
        (ErrorCode::PaymentInsufficient, detail)
    } else if !parts.takes_exact(sale.price) {
        (ErrorCode::PaymentInvalid, "signed payments are not taken for this now; pay the order".to_owned())
    } else if transfer.valid_after > now.max(ready.head.timestamp) {
        (ErrorCode::PaymentInvalid, "the payment is not valid yet".to_owned())
    } else if transfer.valid_before < now.saturating_add(LEAST_VALID_SECS) {
        (ErrorCode::PaymentExpired, "the payment is not valid any more".to_owned())
    } else {
        return None;
    };
    Some(Refused::new(code, detail))
}

/// Commits a claim; with it what settles it, where this replica gives the account's numbers out and need ask nobody
/// anything. `None` when its nonce, its order or its idempotency key was taken before.
async fn claim_and_sign(
    app: &App,
    parts: &Arc<Payments>,
    claim: &Payment,
) -> Result<Option<Option<Settlement>>, Error> {
    let pen = if claim.status == "claimed" { Pen::at_hand(app, parts) } else { None };
    let mut claim = claim.clone();
    app.writer
        .apply(Target::Shared, move |tx| {
            Box::pin(async move {
                let mut settlement = None;
                if let Some(pen) = pen
                    && let Some(number) = pen.next_number(tx).await?
                {
                    "sent".clone_into(&mut claim.status);
                    settlement = pen.sign(tx, number, std::slice::from_ref(&claim))?.pop();
                }
                Ok(claim_in(tx, &claim, settlement.as_ref()).await?.then_some(settlement))
            })
        })
        .await
}

/// Takes a payment, unless what it is for is being bought already: nobody is charged for what only one can have.
async fn claim_in(tx: &mut Tx, claim: &Payment, settlement: Option<&Settlement>) -> Result<bool, Error> {
    let name = claim.subject.as_deref().and_then(|subject| subject.strip_prefix("domain "));
    if let Some(name) = name
        && purchases::is_domain_live(&mut tx.conn, name).await?
    {
        return Ok(false);
    }
    Ok(match settlement {
        Some(settlement) => payments::claim_signed(tx, claim, settlement).await?,
        None => payments::claim(tx, claim).await?,
    })
}

fn under_way() -> Stop {
    let detail = "somebody is paying for the same thing; nothing was charged";
    Error::conflict(ErrorCode::PurchaseUnderWay, detail).into()
}

fn order_or_key_taken(asked: &Asked) -> Stop {
    let (code, detail) = if asked.idem.is_some() {
        (
            ErrorCode::IdempotencyInProgress,
            "another payment for this Idempotency-Key, or for this order, is under way",
        )
    } else {
        (ErrorCode::OrderAlreadyPaid, "this order is being paid by another payment")
    };
    Error::conflict(code, detail).into()
}

async fn join(app: &App, parts: &Payments, asked: &Asked, claim: Payment) -> Result<Paid, Stop> {
    if claim.binding != asked.binding {
        return Err(used_elsewhere().into());
    }
    outcome(app, parts, claim).await
}

fn signer(digest: &[u8; 32], signature: &[u8]) -> Result<EvmAddress, BadSignature> {
    let signature: &[u8; SIGNATURE_BYTES] = signature.try_into().map_err(|_| BadSignature::Malformed)?;
    eip3009::recover(digest, signature)
}

fn version_1(
    app: &App,
    parts: &Payments,
    asked: &Asked,
    sale: &Sale,
    payment: &PaymentV1,
    ready: &Ready,
) -> Result<Checked, Stop> {
    if payment.scheme != EXACT || chain_id(&payment.network) != Some(parts.settings.chain_id) {
        return refuse(ErrorCode::PaymentInvalid, "the payment is for another scheme or network");
    }
    let order = parts.new_order(asked, sale.price, ready, app.clock.now());
    let facts = &ready.facts;
    let requirements = RequirementsV1 {
        scheme: EXACT.to_owned(),
        network: v1_name(parts.settings.chain_id).unwrap_or("base").to_owned(),
        max_amount_required: order.price.to_string(),
        resource: asked.url.clone(),
        description: sale.description.clone(),
        mime_type: "application/json".to_owned(),
        output_schema: None,
        pay_to: parts.settings.treasury.to_string(),
        max_timeout_seconds: MAX_TIMEOUT_SECS,
        asset: parts.settings.asset.to_string(),
        extra: Some(json!({ "name": facts.name, "version": facts.version })),
    };
    checked(parts, &payment.payload, (parts.id_of(&order), order), false, 1, || {
        json!({ "x402Version": 1, "paymentPayload": payment, "paymentRequirements": requirements })
            .to_string()
    })
}

fn version_2(
    app: &App,
    parts: &Payments,
    asked: &Asked,
    sale: &Sale,
    payment: &PaymentV2,
    ready: &Ready,
) -> Result<Checked, Stop> {
    let named =
        payment.accepted.extra.as_ref().and_then(|extra| extra.get("orderId")).and_then(Value::as_str);
    let (id, order) = match named {
        Some(id) => {
            let known = parts.order(id).filter(|order| order.binding == asked.binding);
            let Some(order) = known else {
                return refuse(ErrorCode::PaymentMismatch, "the payment is for another request");
            };
            (id.to_owned(), order)
        }
        None => {
            let order = parts.new_order(asked, sale.price, ready, app.clock.now());
            (parts.id_of(&order), order)
        }
    };
    let path = |url: &str| {
        url.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| rest[at..].to_owned()))
    };
    if let Some(resource) = &payment.resource
        && path(&resource.url) != path(&asked.url)
    {
        return refuse(ErrorCode::PaymentMismatch, "the payment names another resource");
    }
    let facts = &ready.facts;
    let asked_for = requirements(parts, u128::from(order.price), &facts.name, &facts.version, named);
    if !asked_for.is_accepted_by(&payment.accepted) {
        return refuse(ErrorCode::PaymentMismatch, "`accepted` is not what is asked here");
    }
    checked(parts, &payment.payload, (id, order), named.is_some(), 2, || {
        json!({ "x402Version": 2, "paymentPayload": payment, "paymentRequirements": asked_for }).to_string()
    })
}

fn checked(
    parts: &Payments,
    payload: &ExactPayload,
    (order_id, order): (String, Order),
    named: bool,
    version: u8,
    body: impl FnOnce() -> String,
) -> Result<Checked, Stop> {
    let by_facilitator = matches!(parts.settler, Settler::Facilitator(_));
    Ok(Checked {
        transfer: read_transfer(payload)?,
        signature: read_signature(payload)?,
        order_id,
        until: order.until(),
        head: named.then_some(order.head),
        price: order.price,
        version,
        facilitator_body: by_facilitator.then(body),
    })
}

fn new_claim(
    app: &App,
    parts: &Payments,
    asked: &Asked,
    sale: &Sale,
    checked: &Checked,
    by_contract: bool,
    ready: &Ready,
) -> Result<Payment, Stop> {
    let goods = serde_json::to_value(&sale.goods).map_err(|why| Error::internal(why.to_string()))?;
    let Ok(amount) = i64::try_from(checked.transfer.value) else {
        return refuse(ErrorCode::PaymentInvalid, "the payment is larger than any price");
    };
    Ok(Payment {
        id: otonix_sdk::clock::new_id(),
        chain: signed(parts.settings.chain_id),
        asset: parts.settings.asset.to_string(),
        from: checked.transfer.from.to_string(),
        nonce: checked.transfer.nonce,
        status: "claimed".to_owned(),
        version: i64::from(checked.version),
        order_hash: order_id::hash_of(&checked.order_id),
        order_id: checked.order_id.clone(),
        binding: asked.binding,
        resource: asked.resource.clone(),
        idem: asked.idem,
        goods,
        private: sale.private.clone(),
        subject: sale.goods.exclusive(),
        agent: sale.goods.agent().map_or(Uuid::nil(), |agent| agent.uuid()),
        price: signed(checked.price),
        amount,
        pay_to: checked.transfer.to.to_string(),
        valid_after: signed(checked.transfer.valid_after),
        valid_before: signed(checked.transfer.valid_before),
        signature: checked.signature.clone(),
        by_contract,
        facilitator_body: checked.facilitator_body.clone(),
        from_block: signed(ready.head.number.saturating_sub(LOOK_BACK)),
        failure: None,
        created_at: app.clock.now(),
    })
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
