//! A signed payment as it is presented, in version 1 or 2: read, and checked as far as that needs no chain.

use otonix_sdk::chain::EvmAddress;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::x402::eip3009::{self, BadSignature, SIGNATURE_BYTES, Transfer};
use otonix_sdk::x402::network::{caip2, chain_id, v1_name};
use otonix_sdk::x402::{EXACT, ExactPayload, PaymentV1, PaymentV2, Requirements, RequirementsV1};
use serde_json::{Value, json};

use super::refuse;
use crate::app::App;
use crate::error::Error;
use crate::service::payments::order_id::Order;
use crate::service::payments::{Asked, MAX_TIMEOUT_SECS, Payments, Refused, Sale, Stop};
use crate::treasury::Settler;
use crate::upstream::chain::Ready;

/// A payment must be valid for so much longer, seconds: it has to reach a block.
const LEAST_VALID_SECS: u64 = 6;
/// Longest signature of a contract, bytes.
const MAX_SIGNATURE: usize = 4_096;

/// A payment after everything that needs no chain was checked.
pub(super) struct Checked {
    pub(super) transfer: Transfer,
    pub(super) signature: Vec<u8>,
    /// The order that it names, or a new one.
    pub(super) order_id: String,
    /// Seconds since 1970 until which the order holds.
    pub(super) until: u64,
    /// The head of the chain when the order that it names was made.
    pub(super) head: Option<u64>,
    pub(super) price: u64,
    pub(super) version: u8,
    pub(super) facilitator_body: Option<String>,
}

fn malformed(detail: &str) -> Error {
    Error::Malformed { code: ErrorCode::InvalidPayment, detail: detail.to_owned() }
}

pub(super) fn read_transfer(payload: &ExactPayload) -> Result<Transfer, Error> {
    Transfer::read(&payload.authorization)
        .ok_or_else(|| malformed("the payment's `authorization` cannot be read"))
}

pub(super) fn read_signature(payload: &ExactPayload) -> Result<Vec<u8>, Error> {
    let bytes = payload.signature.strip_prefix("0x").and_then(|digits| hex::decode(digits).ok());
    bytes
        .filter(|bytes| !bytes.is_empty() && bytes.len() <= MAX_SIGNATURE)
        .ok_or_else(|| malformed("the payment's `signature` must be 0x and hex"))
}

/// What is asked of a signed payment in version 2.
pub(super) fn requirements(
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

/// What is wrong with a payment that nobody has claimed. (One that was claimed needs none of it any more: that is
/// looked for only here, and when the claim is written.)
pub(super) fn wanting(
    parts: &Payments,
    sale: &Sale,
    checked: &Checked,
    ready: &Ready,
    now: u64,
) -> Option<Refused> {
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

pub(super) fn signer(digest: &[u8; 32], signature: &[u8]) -> Result<EvmAddress, BadSignature> {
    let signature: &[u8; SIGNATURE_BYTES] = signature.try_into().map_err(|_| BadSignature::Malformed)?;
    eip3009::recover(digest, signature)
}

pub(super) fn version_1(
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

pub(super) fn version_2(
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
