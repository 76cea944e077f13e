//! Authorizations that the chain had carried out before anybody claimed them here.
//!
//! What carried it out is public, signature and all, so that whoever shows it need not be its payer. The payer's own
//! key serves at once. Without it the order must be older than the transfer, and is served only when for a while
//! nobody shows the same authorization for another request: then neither of them is.

use std::time::Duration;

use chrono::TimeDelta;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::x402::eip3009::Transfer;

use crate::app::App;
use crate::error::Error;
use crate::service::payments::book::{Arrived, already_used, signed};
use crate::service::payments::proof::key_of_payer;
use crate::service::payments::{Asked, Payments, Refused, Stop};
use crate::store::presentations::{self, Presentation};
use crate::store::receipts;
use crate::store::writer::Target;

/// So long a request waits for another that shows the same authorization.
const HOLD: Duration = Duration::from_secs(5);

/// An order as far as it says who may show such a payment.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// Its id.
    pub id: &'a str,
    /// The head of the chain when it was made; `None` when the payment names no order.
    pub head: Option<u64>,
}

/// Whether a request may be served with such a payment.
///
/// # Errors
/// [`Stop`].
pub async fn check(
    app: &App,
    parts: &Payments,
    asked: &Asked,
    transfer: &Transfer,
    order: Named<'_>,
    arrived: &Arrived,
) -> Result<(), Stop> {
    let (chain, hash, index) = (signed(arrived.chain), arrived.tx_hash, signed(arrived.log_index));
    let booked =
        app.db.read(move |conn| Box::pin(async move { receipts::of_transaction(conn, chain, hash).await }));
    let booked = booked.await?;
    if let Some(other) = booked.iter().find(|row| row.log_index == index && row.kind != "unmatched") {
        return Err(already_used(&other.kind).into());
    }
    if key_of_payer(app, asked, &transfer.from.to_string()).await?.is_some() {
        return Ok(());
    }
    let not_proven = |detail: &str| Err(Refused::new(ErrorCode::PayerNotProven, detail).into());
    if order.head.is_none_or(|head| arrived.block_number <= head) {
        return not_proven(
            "the chain had carried this payment out before this order was made: ask with a key of the owner of the \
             payer's proven wallet",
        );
    }
    let shown = Presentation {
        chain,
        asset: parts.settings.asset.to_string(),
        from: transfer.from.to_string(),
        nonce: transfer.nonce,
        binding: asked.binding,
    };
    let hold = TimeDelta::from_std(HOLD).unwrap_or(TimeDelta::MAX);
    let mut seat = None;
    loop {
        let noted = shown.clone();
        let noted = app.writer.apply(Target::Shared, move |tx| {
            Box::pin(async move { Ok((presentations::note(tx, &noted).await?, tx.at)) })
        });
        let ((since, contested), now) = noted.await?;
        if contested {
            return not_proven(
                "this payment is public and was shown for several requests: ask with a key of the owner of the \
                 payer's proven wallet",
            );
        }
        let Ok(left) = (hold - (now - since)).to_std() else { return Ok(()) };
        if left.is_zero() {
            return Ok(());
        }
        let pending = || Error::PaymentPending {
            order_id: order.id.to_owned(),
            retry_after: Duration::from_secs(2),
            detail: "the chain has this payment already; present the same payment again",
        };
        if seat.is_none() {
            seat = Some(parts.seats.try_acquire().map_err(|_| pending())?);
        }
        if app.shared.is_draining() {
            return Err(pending().into());
        }
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }
}
