//! The routes of payments and vendors while neither is configured: they exist, check who is asking, and say so.

use http::StatusCode;
use otonix_sdk::error::ErrorCode;
use serde_json::json as object;

use crate::error::Error;
use crate::rest::Answered;
use crate::rest::answer::json;
use crate::rest::call::Call;

fn no_vendor() -> Error {
    Error::NotConfigured {
        code: ErrorCode::UpstreamNotConfigured,
        detail: "this vendor is not configured on this server",
    }
}

pub async fn status(_: Call) -> Answered {
    Ok(json(StatusCode::OK, &object!({ "configured": false })))
}

/// Anyone in open mode; else any key, or the operator.
pub async fn check(call: Call) -> Answered {
    if !call.caller.is_unrestricted() {
        call.caller.key()?;
    }
    Err(no_vendor())
}

/// Managed things: a key its own, the operator all.
pub async fn own_things(call: Call) -> Answered {
    if !call.caller.is_unrestricted() {
        call.caller.key()?;
    }
    Err(no_vendor())
}

pub async fn catalogue(_: Call) -> Answered {
    Err(no_vendor())
}

pub async fn operators(call: Call) -> Answered {
    if !call.caller.is_unrestricted() {
        call.caller.operator()?;
    }
    Err(no_vendor())
}

pub async fn act_on_server(call: Call) -> Answered {
    call.caller.key()?;
    Err(no_vendor())
}
