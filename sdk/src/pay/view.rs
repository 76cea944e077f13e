//! Payments as they are shown, and told to the link.

use super::Payment;
use super::book::{Content, Entry};
use super::record::{Refusal, State};
use crate::api::events::PaymentEvent;
use crate::money::MicroUsd;

/// Every payment of a journal, newest first.
pub(super) fn listed(content: &Content) -> Vec<Payment> {
    let refused = content.refusals.values().map(|declined| of_refusal(&declined.refusal));
    let mut all: Vec<Payment> = content.entries.values().map(of_entry).chain(refused).collect();
    all.sort_by_key(|payment| std::cmp::Reverse(payment.intent_id));
    all
}

pub(super) fn of_entry(entry: &Entry) -> Payment {
    let intent = &entry.intent;
    let end = entry.end.as_ref();
    Payment {
        intent_id: intent.id,
        state: entry.state,
        amount: intent.amount,
        asker: intent.asker,
        url: intent.request.url.clone(),
        pay_to: Some(intent.pay_to.to_string()),
        tx_hash: entry.tx_hash.clone(),
        receipt: end.and_then(|end| end.receipt.clone()),
        detail: end.and_then(|end| end.detail.clone()),
        created_at: intent.at,
        ended_at: end.map(|end| end.at),
        moved: entry.moved,
    }
}

pub(super) fn of_refusal(refusal: &Refusal) -> Payment {
    Payment {
        intent_id: refusal.id,
        state: State::Refused,
        amount: MicroUsd::ZERO,
        asker: refusal.asker,
        url: refusal.url.clone(),
        pay_to: None,
        tx_hash: None,
        receipt: None,
        detail: Some(format!("{}: {}", refusal.code, refusal.detail)),
        created_at: refusal.at,
        ended_at: Some(refusal.at),
        moved: Some(false),
    }
}

pub(super) fn event_of(payment: Payment) -> PaymentEvent {
    PaymentEvent {
        intent_id: payment.intent_id.to_string(),
        state: payment.state.as_str().to_owned(),
        amount: payment.amount,
        pay_to: payment.pay_to,
        tx_hash: payment.tx_hash,
        url: Some(payment.url),
        detail: payment.detail,
    }
}
