//! A request waits for a while for the end of its payment, and for what it bought.

use std::time::Duration;

use otonix_sdk::error::ErrorCode;
use tokio::time::Instant;

use crate::app::App;
use crate::error::Error;
use crate::service::payments::goods::Answer;
use crate::service::payments::{
    Asked, LOOK_EVERY, PATIENCE, Paid, Payments, Refused, Stop, paid, parts, sold,
};
use crate::store::{orders, payments};

/// Waits for what was paid for, for a while.
pub(super) async fn arrived(app: &App, asked: &Asked, paid: Paid) -> Result<Paid, Error> {
    if !paid.answer.is_pending() {
        return Ok(paid);
    }
    let pending = || Error::PaymentPending {
        order_id: paid.order_id.clone(),
        retry_after: Duration::from_secs(5),
        detail: "the payment was taken and what it bought is on its way; present the same payment again",
    };
    let parts = parts(app)?;
    let Ok(_seat) = parts.seats.try_acquire() else { return Err(pending()) };
    // Whoever waited long for the payment still gets a moment for the goods.
    let until = (asked.since + PATIENCE).max(Instant::now() + LOOK_EVERY * 5);
    let sale = paid.sale;
    loop {
        if Instant::now() >= until || app.shared.is_draining() {
            return Err(pending());
        }
        tokio::time::sleep(LOOK_EVERY / 2).await;
        let found =
            app.db.read(move |conn| Box::pin(async move { orders::sold_by_id(conn, sale).await })).await;
        match found {
            Ok(Some(sold)) if sold.status != 0 => {
                let answer = Answer { status: sold.status, body: sold.answer };
                return Ok(Paid { answer, ..paid });
            }
            Ok(Some(_)) => {}
            Ok(None) => return Err(Error::internal("a sale is gone")),
            // The database is away: the purchase goes on by itself.
            Err(_) => return Err(pending()),
        }
    }
}

/// Waits for the end of a claim, for a while.
///
/// # Errors
/// 503 `payment_pending` when it has not ended by then; 402 when it failed.
pub(super) async fn outcome(app: &App, parts: &Payments, claim: payments::Payment) -> Result<Paid, Stop> {
    let version = u8::try_from(claim.version).ok();
    let pending = |order_id: &str| Error::PaymentPending {
        order_id: order_id.to_owned(),
        retry_after: Duration::from_secs(2),
        detail: "the payment was taken and its outcome is not known yet; present the same payment again",
    };
    let Ok(_seat) = parts.seats.try_acquire() else { return Err(pending(&claim.order_id).into()) };
    let mut until = Instant::now() + PATIENCE;
    let id = claim.id;
    let mut claim = claim;
    loop {
        if app.shared.is_draining() {
            until = until.min(Instant::now() + LOOK_EVERY);
        }
        let waiting = parts.until_ended(id);
        let ended = waiting.notify.notified();
        tokio::pin!(ended);
        ended.as_mut().enable();
        match claim.status.as_str() {
            "done" => {
                parts.ended(id, None);
                let sold = sold(app, claim.order_hash).await?;
                let sold = sold.ok_or_else(|| Error::internal("a payment ended without a sale"))?;
                return Ok(paid(sold, version, parts.settings.chain_id));
            }
            "failed" => {
                parts.ended(id, None);
                let why = claim.failure.unwrap_or_default();
                return Err(
                    Refused::new(ErrorCode::PaymentFailed, format!("the payment failed: {why}")).into()
                );
            }
            _ => {}
        }
        if Instant::now() >= until {
            return Err(pending(&claim.order_id).into());
        }
        let next = Instant::now() + LOOK_EVERY;
        let _ = tokio::time::timeout_at(next.min(until), ended).await;
        if let Some(sold) = waiting.sold.lock().clone() {
            return Ok(paid(sold, version, parts.settings.chain_id));
        }
        let found = app.db.read(move |conn| Box::pin(async move { payments::by_id(conn, id).await })).await;
        claim = match found {
            Ok(Some(found)) => found,
            Ok(None) => return Err(Error::internal("a claim is gone").into()),
            // The database is away: the claim goes on by itself.
            Err(_) => return Err(pending(&claim.order_id).into()),
        };
    }
}
