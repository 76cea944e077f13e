//! Agents and what they report.

use axum::response::Response;
use http::StatusCode;
use otonix_sdk::api::actions::{ActionLogged, FeedAction, LogAction};
use otonix_sdk::api::agents::{Grant, HeartbeatAck, Kill, RegisterAgent, Registered};
use otonix_sdk::api::commands::NewCommand;
use otonix_sdk::api::events::{EventsAck, PostEvents};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::auth::Scope;
use crate::rest::answer::{Filters, json, list_query, page, page_of, stored, written};
use crate::rest::call::Call;
use crate::rest::{Answered, id_at, sanitise};
use crate::service::activity::Keep;
use crate::service::{activity, agents, commands, events, ledger};
use crate::store::idempotency::StoredAnswer;

const ACTION_STATUSES: &[&str] = &["completed", "failed", "pending"];

/// How the answer to a single record is kept.
pub(super) fn keep_record<T: Serialize + 'static>(call: &Call, status: StatusCode) -> Keep<T> {
    call.idem().map(|idem| {
        let encode = move |done: &T| StoredAnswer { fingerprint: idem.fingerprint, ..stored(status, done) };
        (idem, Box::new(encode) as Box<dyn FnOnce(&T) -> StoredAnswer + Send>)
    })
}

pub async fn register(call: Call) -> Answered {
    call.caller.owner_key()?;
    let body: RegisterAgent = call.json()?;
    let keep = call.keep(|done: &Registered| {
        let mut shown = done.clone();
        if shown.wallet_private_key.is_some() {
            shown.wallet_private_key = Some(None);
            shown.secret_shown = Some(true);
        }
        stored(StatusCode::CREATED, &shown)
    });
    let done = agents::register(&call.app, &call.caller, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn list(call: Call) -> Answered {
    let filters = Filters {
        agent: Some("id = "),
        status: &["active", "inactive", "terminated"],
        category: false,
        time: true,
    };
    let found = agents::list(&call.app, &call.caller, list_query(&call, &filters)?).await?;
    if call.caller.public_scope() == Scope::Sanitised {
        return Ok(page_of(&call, found, sanitise::agent));
    }
    Ok(page(&call, &found.rows, found.next))
}

pub async fn agent(call: Call) -> Answered {
    let agent = agents::agent(&call.app, &call.caller, id_at(&call, 2, "agent")?).await?;
    Ok(json(StatusCode::OK, &agent))
}

pub async fn heartbeat(call: Call) -> Answered {
    let id = id_at(&call, 2, "agent")?;
    match call.keep(|ack: &HeartbeatAck| stored(StatusCode::OK, ack)) {
        None => Ok(json(StatusCode::OK, &agents::heartbeat(&call.app, &call.caller, id).await?)),
        Some(keep) => {
            let done = agents::heartbeat_once(&call.app, &call.caller, id, keep).await?;
            Ok(written(&call, StatusCode::OK, done))
        }
    }
}

pub async fn log_action(call: Call) -> Answered {
    call.caller.key()?;
    let id = id_at(&call, 2, "agent")?;
    let body: LogAction = call.json()?;
    let keep: Keep<ActionLogged> = keep_record(&call, StatusCode::CREATED);
    let done = activity::log_action(&call.app, &call.caller, id, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

fn action_filters(agent: Option<&'static str>) -> Filters {
    Filters { agent, status: ACTION_STATUSES, category: true, time: true }
}

pub async fn actions(call: Call) -> Answered {
    let query = list_query(&call, &action_filters(None))?;
    let found = activity::actions_of(&call.app, &call.caller, id_at(&call, 2, "agent")?, query).await?;
    Ok(feed_page(&call, found))
}

pub async fn feed(call: Call) -> Answered {
    let query = list_query(&call, &action_filters(Some("agent_id = ")))?;
    let found = activity::actions(&call.app, &call.caller, query).await?;
    Ok(feed_page(&call, found))
}

fn feed_page(call: &Call, found: crate::store::list::Page<otonix_sdk::api::actions::Action>) -> Response {
    page_of(call, found, |action| FeedAction {
        message: action.action.clone(),
        timestamp: action.created_at,
        action,
    })
}

pub async fn grant(call: Call) -> Answered {
    call.caller.operator()?;
    let id = id_at(&call, 2, "agent")?;
    let body: Grant = call.json()?;
    let keep = call.keep(|done| stored(StatusCode::CREATED, done));
    let done = agents::grant(&call.app, &call.caller, id, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn kill(call: Call) -> Answered {
    if call.caller.operator().is_err() {
        call.caller.owner_key()?;
    }
    let id = id_at(&call, 2, "agent")?;
    let body: Kill = call.json()?;
    let keep = call.keep(|done| stored(StatusCode::OK, done));
    let done = agents::kill(&call.app, &call.caller, id, body, keep).await?;
    Ok(written(&call, StatusCode::OK, done))
}

pub async fn command(call: Call) -> Answered {
    if call.caller.operator().is_err() {
        call.caller.owner_key()?;
    }
    let id = id_at(&call, 2, "agent")?;
    let body: NewCommand = call.json()?;
    let keep = call.keep(|done| stored(StatusCode::CREATED, done));
    let done = commands::create(&call.app, &call.caller, id, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn commands(call: Call) -> Answered {
    let statuses = &["queued", "delivered", "done", "failed", "expired"];
    let filters = Filters { agent: None, status: statuses, category: false, time: true };
    let query = list_query(&call, &filters)?;
    let found = commands::list(&call.app, &call.caller, id_at(&call, 2, "agent")?, query).await?;
    Ok(page(&call, &found.rows, found.next))
}

pub async fn ledger(call: Call) -> Answered {
    let filters = Filters { agent: None, status: &[], category: false, time: true };
    let query = list_query(&call, &filters)?;
    let found = ledger::entries(&call.app, &call.caller, id_at(&call, 2, "agent")?, query).await?;
    Ok(page(&call, &found.rows, found.next))
}

pub async fn events(call: Call) -> Answered {
    call.caller.key()?;
    let id = id_at(&call, 2, "agent")?;
    let body: PostEvents<Box<RawValue>> = call.json()?;
    let keep = call.keep(|done: &EventsAck| stored(StatusCode::OK, done));
    let done = events::post(&call.app, &call.caller, id, body, keep).await?;
    Ok(written(&call, StatusCode::OK, done))
}
