//! What is paid and what was paid: top-ups, paid orders, refunds, how to pay here.

use std::sync::Arc;

use http::StatusCode;
use otonix_sdk::api::payments::{ResolveRefund, TopUp, X402Config};
use serde::Serialize;

use crate::error::Error;
use crate::rest::answer::{Filters, json, list_query, page, stored, written};
use crate::rest::call::Call;
use crate::rest::{Answered, id_at};
use crate::service::payments::{Sale, lists, topup};

pub async fn offer_topup(call: Arc<Call>) -> Result<Sale, Error> {
    let body: TopUp = call.json()?;
    topup::offer(&call.app, id_at(&call, 2, "agent")?, body).await
}

pub async fn config(call: Call) -> Answered {
    Ok(json(StatusCode::OK, &lists::config(&call.app)))
}

/// The same, and what the domain routes charge for.
pub async fn domain_config(call: Call) -> Answered {
    #[derive(Serialize)]
    struct Shown {
        #[serde(flatten)]
        config: X402Config,
        charges: [Charge; 1],
    }
    #[derive(Serialize)]
    struct Charge {
        route: &'static str,
        what: &'static str,
        price: &'static str,
    }
    let charges = [Charge {
        route: "POST /api/vercel/register",
        what: "a domain for so many years",
        price: "the registrar's, as POST /api/vercel/check tells it",
    }];
    Ok(json(StatusCode::OK, &Shown { config: lists::config(&call.app), charges }))
}

pub async fn orders(call: Call) -> Answered {
    let statuses = &["pending", "delivered", "credited", "refund_due", "reversed"];
    let filters = Filters { agent: Some("agent_id = "), status: statuses, category: false, time: true };
    let query = list_query(&call, &filters)?;
    let found = lists::orders(&call.app, &call.caller, query).await?;
    Ok(page(&call, &found.rows, found.next))
}

pub async fn refunds(call: Call) -> Answered {
    let statuses = &["due", "paid", "credited", "dismissed"];
    let filters = Filters { agent: Some("agent_id = "), status: statuses, category: false, time: true };
    let query = list_query(&call, &filters)?;
    let found = lists::refunds(&call.app, &call.caller, query).await?;
    Ok(page(&call, &found.rows, found.next))
}

pub async fn resolve_refund(call: Call) -> Answered {
    call.caller.operator()?;
    let id = id_at(&call, 2, "refund")?;
    let body: ResolveRefund = call.json()?;
    let keep = call.keep(|done| stored(StatusCode::OK, done));
    let done = lists::resolve(&call.app, &call.caller, id, body, keep).await?;
    Ok(written(&call, StatusCode::OK, done))
}
