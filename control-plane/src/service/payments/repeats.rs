//! Payments and idempotency keys that were seen before: their stored answers, and the outcomes that are waited for.

use otonix_sdk::chain::Hash;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::x402::Presented;

use crate::app::App;
use crate::error::Error;
use crate::service::payments::goods::Answer;
use crate::service::payments::wait::{arrived, outcome};
use crate::service::payments::{Asked, Paid, Stop, exact, order_id, parts, proof};
use crate::store::idempotency::{self, Idem, StoredAnswer};
use crate::store::orders::Sold;
use crate::store::{orders, payments, purchases};

/// The answer of a payment that was seen before, whatever has become of what it bought.
///
/// # Errors
/// 409 when it was for another request; 503 while its outcome is not known; 402 when it failed.
pub async fn repeat(app: &App, asked: &Asked, presented: &Presented) -> Result<Option<Paid>, Error> {
    match seen(app, asked, presented).await? {
        Some(paid) => arrived(app, asked, paid).await.map(Some),
        None => Ok(None),
    }
}

async fn seen(app: &App, asked: &Asked, presented: &Presented) -> Result<Option<Paid>, Error> {
    let parts = parts(app)?;
    match presented {
        Presented::Order(proof) => {
            let Some(sold) = sold(app, order_id::hash_of(&proof.order_id)).await? else { return Ok(None) };
            let hash = proof::hash_of(proof)?;
            if sold.binding != asked.binding {
                return Err(used_elsewhere());
            }
            if hash.0 != sold.tx_hash {
                let detail = "this order was paid by another payment";
                return Err(Error::conflict(ErrorCode::OrderAlreadyPaid, detail));
            }
            Ok(Some(paid(sold, None, parts.settings.chain_id)))
        }
        Presented::V1(payment) => exact::repeat(app, asked, &payment.payload, 1).await,
        Presented::V2(payment) => exact::repeat(app, asked, &payment.payload, 2).await,
    }
}

pub(super) fn used_elsewhere() -> Error {
    Error::conflict(ErrorCode::PaymentAlreadyUsed, "this payment was made for another request")
}

pub(super) async fn sold(app: &App, order_hash: [u8; 32]) -> Result<Option<Sold>, Error> {
    Ok(app.db.read(move |conn| Box::pin(async move { orders::sold(conn, order_hash).await })).await?)
}

pub(super) fn paid(sold: Sold, version: Option<u8>, chain_id: u64) -> Paid {
    Paid {
        sale: sold.id,
        order_id: sold.order_id,
        answer: Answer { status: sold.status, body: sold.answer },
        payer: sold.payer,
        tx_hash: Hash(sold.tx_hash).to_string(),
        version,
        chain_id,
    }
}

/// The answer kept for a request's idempotency key.
///
/// # Errors
/// 503 without database.
pub async fn kept(app: &App, idem: Idem) -> Result<Option<StoredAnswer>, Error> {
    let scope = idem.scope;
    Ok(app.db.read(move |conn| Box::pin(async move { idempotency::answer(conn, scope).await })).await?)
}

/// The outcome of a payment or a purchase that a request with this idempotency key has begun: never a second demand.
///
/// # Errors
/// 409 when the key was used with another request; 503 while the outcome is not known.
pub async fn under_way(app: &App, asked: &Asked, idem: Idem) -> Result<Option<Paid>, Error> {
    let reused = || {
        let detail = "this Idempotency-Key was used with another request";
        Error::conflict(ErrorCode::IdempotencyKeyReused, detail)
    };
    let scope = idem.scope;
    let claim = app.db.read(move |conn| Box::pin(async move { payments::open_of_idem(conn, scope).await }));
    if let Some(claim) = claim.await? {
        if claim.idem.is_none_or(|known| known.fingerprint != idem.fingerprint) {
            return Err(reused());
        }
        match outcome(app, parts(app)?, claim).await {
            Ok(paid) => return arrived(app, asked, paid).await.map(Some),
            Err(Stop::Error(error)) => return Err(error),
            // It came to nothing: the way is free.
            Err(Stop::Refused(_)) => {}
        }
    }
    let found = app.db.read(move |conn| {
        Box::pin(async move {
            let Some(purchase) = purchases::live_of_idem(conn, scope).await? else { return Ok(None) };
            let Some(sale) = purchase.sale else { return Ok(None) };
            Ok(orders::sold_by_id(conn, sale).await?.map(|sold| (purchase.idem, sold)))
        })
    });
    let Some((known, sold)) = found.await? else { return Ok(None) };
    if known.is_none_or(|known| known.fingerprint != idem.fingerprint) {
        return Err(reused());
    }
    let chain_id = parts(app)?.settings.chain_id;
    arrived(app, asked, paid(sold, None, chain_id)).await.map(Some)
}
