//! Purchases as their owners and the operator see them.

use otonix_sdk::api::purchases as api;
use otonix_sdk::ids::{AgentId, PurchaseId, SaleId};
use otonix_sdk::money::MicroUsd;

use crate::app::App;
use crate::auth::Caller;
use crate::error::Error;
use crate::service::payments::lists::{narrow, scope};
use crate::service::purchases::machine::Status;
use crate::store::list::{self, Page, Query};
use crate::store::purchases::{self, Purchase};

/// Purchases, newest first.
///
/// # Errors
/// 401.
pub async fn purchases(app: &App, caller: &Caller, mut query: Query) -> Result<Page<api::Purchase>, Error> {
    narrow(&mut query, scope(caller)?);
    let page = app.db.read(move |conn| Box::pin(async move { list::purchases(conn, &query).await })).await?;
    Ok(Page { rows: page.rows.into_iter().map(shown).collect(), next: page.next })
}

/// How many purchases go on, and how many wait for the operator.
///
/// # Errors
/// 503 without database.
pub async fn open(app: &App) -> Result<(u64, u64), Error> {
    let counts = app.db.read(move |conn| Box::pin(async move { purchases::open_counts(conn).await })).await?;
    let (mut going, mut waiting) = (0, 0);
    for (status, count) in counts {
        let count = u64::try_from(count).unwrap_or(0);
        if status == Status::NeedsOperator.as_str() {
            waiting += count;
        } else {
            going += count;
        }
    }
    Ok((going, waiting))
}

/// A purchase as it is shown.
pub fn shown(purchase: Purchase) -> api::Purchase {
    let paid_by = if purchase.sale.is_some() { "payment" } else { "credits" };
    api::Purchase {
        id: PurchaseId::from(purchase.id),
        kind: purchase.kind,
        status: purchase.status,
        subject: purchase.subject,
        price: MicroUsd::from_micros(purchase.price),
        currency: "USDC".to_owned(),
        paid_by: paid_by.to_owned(),
        sale_id: purchase.sale.map(SaleId::from),
        agent_id: Some(purchase.agent).filter(|id| !id.is_nil()).map(AgentId::from),
        vendor_id: purchase.vendor_ref,
        attempts: purchase.attempts,
        failure_code: purchase.failure_code,
        failure: purchase.failure,
        result_id: purchase.result,
        note: purchase.note,
        created_at: purchase.created_at,
        ended_at: purchase.ended_at,
    }
}
