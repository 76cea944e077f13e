//! Enrolment, children and laws.

use http::StatusCode;
use otonix_sdk::api::enrolment::{ChildBorn, Enrol, Enrolled, EnrolmentToken, NewChild, NewEnrolmentToken};
use serde_json::json as object;

use crate::rest::answer::{Filters, json, list_query, page, stored, written};
use crate::rest::call::Call;
use crate::rest::{Answered, id_at};
use crate::service::{children, enrolment};

pub async fn create_token(call: Call) -> Answered {
    enrolment::may_invite(&call.caller)?;
    let body: NewEnrolmentToken = call.json_if_any()?;
    let keep = call.keep(|token: &EnrolmentToken| {
        let shown = EnrolmentToken { token: None, secret_shown: Some(true), ..token.clone() };
        stored(StatusCode::CREATED, &shown)
    });
    let done = enrolment::create_token(&call.app, &call.caller, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn tokens(call: Call) -> Answered {
    let filters = Filters { agent: Some("agent_id = "), status: &[], category: false, time: true };
    let found = enrolment::tokens(&call.app, &call.caller, list_query(&call, &filters)?).await?;
    Ok(page(&call, &found.rows, found.next))
}

pub async fn revoke_token(call: Call) -> Answered {
    let id = id_at(&call, 2, "enrolment token")?;
    enrolment::revoke_token(&call.app, &call.caller, id).await?;
    Ok(json(StatusCode::OK, &object!({ "id": id, "status": "revoked" })))
}

pub async fn enrol(call: Call) -> Answered {
    let body: Enrol = call.json()?;
    let keep = call.keep(|done: &Enrolled| {
        let shown = Enrolled { key: None, secret_shown: Some(true), ..done.clone() };
        stored(StatusCode::CREATED, &shown)
    });
    let done = enrolment::enrol(&call.app, &call.caller, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn create_child(call: Call) -> Answered {
    if call.caller.operator().is_err() {
        call.caller.key()?;
    }
    let parent = id_at(&call, 2, "agent")?;
    let body: NewChild = call.json()?;
    let keep = call.keep(|done: &ChildBorn| {
        let shown = ChildBorn { enrolment_token: None, secret_shown: Some(true), ..done.clone() };
        stored(StatusCode::CREATED, &shown)
    });
    let done = children::create(&call.app, &call.caller, parent, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn laws(call: Call) -> Answered {
    let sha256 = call.uri.path().rsplit('/').next().unwrap_or_default().chars().take(64).collect();
    let laws = enrolment::laws_of(&call.app, &call.caller, sha256).await?;
    Ok(json(StatusCode::OK, &laws))
}
