//! How the operator ends a purchase whose outcome the server could not find out, and agrees to one that is dearer than
//! was thought.

use otonix_sdk::api::purchases::{self as api, ResolvePurchase};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::PurchaseId;
use otonix_sdk::limits;

use crate::app::App;
use crate::auth::Caller;
use crate::error::Error;
use crate::service::pricing;
use crate::service::purchases::act::Report;
use crate::service::purchases::bring::Brought;
use crate::service::purchases::item::Item;
use crate::service::purchases::lists::shown;
use crate::service::purchases::machine::{News, Status};
use crate::service::purchases::{book, find, open};
use crate::store::purchases::{self, Purchase};
use crate::store::writer::{IdemFor, Target, Tx, Written};
use crate::upstream::providers::Purpose;

/// What the operator has found out.
enum Found {
    Delivered(Brought),
    Failed,
    Retry,
}

/// Ends a purchase that waits for the operator, or sends it on its way again.
///
/// # Errors
/// 401, 403, 404, 400, 409 when it does not wait for the operator, or is not there at the vendor; 503.
pub async fn resolve(
    app: &App,
    caller: &Caller,
    id: PurchaseId,
    body: ResolvePurchase,
    idem: Option<IdemFor<api::Purchase>>,
) -> Result<Written<api::Purchase>, Error> {
    caller.operator()?;
    if let Some(note) = &body.note {
        limits::check_text("note", note, 0..=1024)?;
    }
    let found = app.db.read(move |conn| Box::pin(async move { purchases::by_id(conn, id.uuid()).await }));
    let purchase = found.await?.ok_or_else(|| Error::not_found("purchase", id))?;
    if purchase.status != Status::NeedsOperator.as_str() {
        let detail = format!("this purchase is {}, and waits for no operator", purchase.status);
        return Err(Error::conflict(ErrorCode::Conflict, detail));
    }
    let found = match body.resolution.as_str() {
        "delivered" if purchase.is_unpaid() => {
            let detail = "nothing is set aside for it: retry agrees to its price, failed refuses it";
            return Err(Error::conflict(ErrorCode::Conflict, detail));
        }
        "delivered" => Found::Delivered(brought(app, &purchase, body.vendor_id.as_deref()).await?),
        "failed" => Found::Failed,
        "retry" if purchase.result.is_none() => Found::Retry,
        "retry" => {
            let detail = "what it brought is there; it can be delivered or failed";
            return Err(Error::conflict(ErrorCode::Conflict, detail));
        }
        _ => return Err(Error::invalid("resolution", "must be delivered, failed or retry")),
    };
    let note = body.note;
    let done = app
        .writer
        .run(Target::Alone, idem, move |tx| {
            Box::pin(async move { resolve_in(tx, purchase, found, note).await })
        })
        .await?;
    app.shared.purchases.notify_one();
    Ok(done)
}

/// What is there at the vendor: the operator's word alone delivers nothing.
async fn brought(app: &App, purchase: &Purchase, vendor_id: Option<&str>) -> Result<Brought, Error> {
    let item = Item::of(purchase)?;
    if let (Item::Server(_), Some(text)) = (&item, vendor_id) {
        let id = text.parse().map_err(|_| Error::invalid("vendorId", "must be the server's number"))?;
        let compute = app.vendors.servers_for(Purpose::Purchase);
        let compute = compute.ok_or_else(|| Error::invalid("vendorId", "cannot be looked up here"))?;
        let server = compute.server(id).await.map_err(pricing::vendor_error)?;
        let server = server.ok_or_else(|| Error::not_found("server", id))?;
        return Ok(Brought::Server(Box::new(server)));
    }
    match find::look(app, purchase, &item).await {
        Report { news: News::Present, brought: Some(brought), .. } => Ok(brought),
        report => Err(Error::conflict(
            ErrorCode::Conflict,
            format!("the vendor does not show it: {}", report.detail),
        )),
    }
}

async fn resolve_in(
    tx: &mut Tx,
    mut before: Purchase,
    found: Found,
    note: Option<String>,
) -> Result<api::Purchase, Error> {
    before.note = note.or(before.note);
    let id = before.id;
    let done = match found {
        Found::Delivered(brought) => book::deliver_in(tx, &before, &brought).await?,
        Found::Failed => {
            let detail = before.note.clone().unwrap_or_else(|| "it could not be bought".to_owned());
            book::fail_in(tx, &before, ErrorCode::PurchaseFailed, &detail).await?.is_some()
        }
        Found::Retry => {
            let mut after =
                if before.is_unpaid() { open::agreed_in(tx, &before).await? } else { before.clone() };
            Status::Paid.as_str().clone_into(&mut after.status);
            // One that was begun counts, so that the vendor is looked at before the next.
            after.attempts = before.attempts.min(1);
            after.deadline = None;
            after.vendor_ref = None;
            after.absent_since = None;
            after.next_at = tx.at;
            after.since = tx.at;
            purchases::change(tx, &before, &after).await?
        }
    };
    if !done {
        return Err(Error::conflict(ErrorCode::Conflict, "this purchase was resolved meanwhile"));
    }
    let after = purchases::by_id(&mut tx.conn, id).await?;
    after.map(shown).ok_or_else(|| Error::not_found("purchase", id))
}
