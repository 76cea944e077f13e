//! Keys.

use http::StatusCode;
use otonix_sdk::api::keys::{GenerateKey, NewKey};

use crate::rest::answer::{Filters, json, list_query, page, stored, written};
use crate::rest::call::{Call, bad_query};
use crate::rest::{Answered, id_at};
use crate::service::keys;

pub async fn generate(call: Call) -> Answered {
    keys::may_generate(&call.caller)?;
    let body: GenerateKey = call.json()?;
    let keep = call.keep(|key: &NewKey| {
        let shown = NewKey { key: None, secret_shown: Some(true), ..key.clone() };
        stored(StatusCode::CREATED, &shown)
    });
    let done = keys::generate(&call.app, &call.caller, body, keep).await?;
    Ok(written(&call, StatusCode::CREATED, done))
}

pub async fn list(call: Call) -> Answered {
    let filters = Filters { agent: None, status: &["active", "revoked"], category: false, time: true };
    let keys = keys::list(&call.app, &call.caller, list_query(&call, &filters)?).await?;
    Ok(page(&call, &keys.rows, keys.next))
}

pub async fn revoke(call: Call) -> Answered {
    let descendants = match call.query("descendants")?.as_deref() {
        None | Some("false" | "0") => false,
        Some("true" | "1") => true,
        Some(_) => return Err(bad_query("descendants", "must be true or false")),
    };
    let done = keys::revoke(&call.app, &call.caller, id_at(&call, 2, "key")?, descendants).await?;
    Ok(json(StatusCode::OK, &done))
}
