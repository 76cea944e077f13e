//! Sandboxes, domains, transactions and usage records.

use http::StatusCode;
use otonix_sdk::api::records::{NewDomain, NewSandbox, NewTransaction};
use otonix_sdk::api::usage::{ComputeLog, LogUsage};

use crate::auth::Scope;
use crate::rest::agents::keep_record;
use crate::rest::answer::{Filters, json, list_query, page, page_of, stored, written};
use crate::rest::call::Call;
use crate::rest::{Answered, id_at, sanitise};
use crate::service::activity::Keep;
use crate::service::domains::ChangeDomain;
use crate::service::{activity, domains, may_record, sandboxes, transactions};

fn filters(status: &'static [&'static str]) -> Filters {
    Filters { agent: Some("agent_id = "), status, category: false, time: true }
}

pub async fn sandboxes(call: Call) -> Answered {
    let query = list_query(&call, &filters(&["running", "stopped", "deploying", "error"]))?;
    let found = sandboxes::list(&call.app, &call.caller, query).await?;
    if call.caller.public_scope() == Scope::Sanitised {
        return Ok(page_of(&call, found, sanitise::sandbox));
    }
    Ok(page(&call, &found.rows, found.next))
}

pub async fn create_sandbox(call: Call) -> Answered {
    may_record(&call.caller)?;
    let body: NewSandbox = call.json()?;
    let keep = call.keep(|done| stored(StatusCode::CREATED, done));
    let done = sandboxes::create(&call.app, &call.caller, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn sandbox(call: Call) -> Answered {
    let sandbox = sandboxes::sandbox(&call.app, &call.caller, id_at(&call, 2, "sandbox")?).await?;
    Ok(json(StatusCode::OK, &sandbox))
}

pub async fn domains(call: Call) -> Answered {
    let query = list_query(&call, &filters(&["active", "expired", "pending"]))?;
    let found = domains::list(&call.app, &call.caller, query).await?;
    if call.caller.public_scope() == Scope::Sanitised {
        return Ok(page_of(&call, found, sanitise::domain));
    }
    Ok(page(&call, &found.rows, found.next))
}

pub async fn create_domain(call: Call) -> Answered {
    may_record(&call.caller)?;
    let body: NewDomain = call.json()?;
    let keep = call.keep(|done| stored(StatusCode::CREATED, done));
    let done = domains::create(&call.app, &call.caller, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn domain(call: Call) -> Answered {
    let domain = domains::domain(&call.app, &call.caller, id_at(&call, 2, "domain")?).await?;
    Ok(json(StatusCode::OK, &domain))
}

pub async fn update_domain(call: Call) -> Answered {
    may_record(&call.caller)?;
    let id = id_at(&call, 2, "domain")?;
    let body: ChangeDomain = call.json()?;
    let domain = domains::update(&call.app, &call.caller, id, body).await?;
    Ok(json(StatusCode::OK, &domain))
}

pub async fn usage(call: Call) -> Answered {
    let query = list_query(&call, &filters(&[]))?;
    let found = activity::usage(&call.app, &call.caller, query).await?;
    Ok(page(&call, &found.rows, found.next))
}

pub async fn log_usage(call: Call) -> Answered {
    may_record(&call.caller)?;
    let body: LogUsage = call.json()?;
    let keep: Keep<ComputeLog> = keep_record(&call, StatusCode::CREATED);
    let done = activity::log_usage(&call.app, &call.caller, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn transactions(call: Call) -> Answered {
    let query = list_query(&call, &filters(&["pending", "completed", "failed"]))?;
    let found = transactions::list(&call.app, &call.caller, query).await?;
    if call.caller.public_scope() == Scope::Sanitised {
        return Ok(page_of(&call, found, sanitise::transaction));
    }
    Ok(page(&call, &found.rows, found.next))
}

pub async fn create_transaction(call: Call) -> Answered {
    may_record(&call.caller)?;
    let body: NewTransaction = call.json()?;
    let keep = call.keep(|done| stored(StatusCode::CREATED, done));
    let done = transactions::create(&call.app, &call.caller, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}
