//! What is bought at vendors: domains, servers, more time for servers; and how purchases end.

use std::sync::Arc;

use http::StatusCode;
use otonix_sdk::api::purchases::{ExtendServer, ResolvePurchase};

use crate::error::Error;
use crate::rest::answer::{Filters, list_query, page, stored, written};
use crate::rest::call::Call;
use crate::rest::{Answered, id_at};
use crate::service::payments::Sale;
use crate::service::purchases::{lists, offers, resolve};

pub async fn offer_domain(call: Arc<Call>) -> Result<Sale, Error> {
    offers::domain(&call.app, &call.caller, call.json()?).await
}

pub async fn offer_server(call: Arc<Call>) -> Result<Sale, Error> {
    let project = id_at(&call, 3, "project")?;
    offers::server(&call.app, &call.caller, project, call.json()?).await
}

pub async fn offer_period(call: Arc<Call>) -> Result<Sale, Error> {
    let server = id_at(&call, 3, "server")?;
    let body = if call.body.is_empty() { ExtendServer::default() } else { call.json()? };
    offers::period(&call.app, &call.caller, server, body).await
}

pub async fn purchases(call: Call) -> Answered {
    let statuses = &["paid", "executing", "unknown", "delivered", "failed", "needs_operator"];
    let filters = Filters { agent: Some("agent_id = "), status: statuses, category: false, time: true };
    let query = list_query(&call, &filters)?;
    let found = lists::purchases(&call.app, &call.caller, query).await?;
    Ok(page(&call, &found.rows, found.next))
}

pub async fn resolve_purchase(call: Call) -> Answered {
    call.caller.operator()?;
    let id = id_at(&call, 2, "purchase")?;
    let body: ResolvePurchase = call.json()?;
    let keep = call.keep(|done| stored(StatusCode::OK, done));
    let done = resolve::resolve(&call.app, &call.caller, id, body, keep).await?;
    Ok(written(&call, StatusCode::OK, done))
}
