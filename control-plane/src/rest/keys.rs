//! Keys.

use http::StatusCode;
use otonix_sdk::api::keys::{GenerateKey, NewKey};

use crate::rest::answer::{Filters, json, list_query, page, stored, written};
use crate::rest::call::Call;
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
    let descendants = call.query("descendants").is_some_and(|value| value == "true" || value == "1");
    let done = keys::revoke(&call.app, &call.caller, id_at(&call, 2, "key")?, descendants).await?;
    Ok(json(StatusCode::OK, &done))
}
