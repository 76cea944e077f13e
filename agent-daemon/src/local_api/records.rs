//! `POST /v1/actions` and `POST /v1/usage`: what the agent did and what its model calls cost.

use std::time::Duration;

use axum::body::{Body, HttpBody as _};
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use otonix_sdk::api::actions::LogAction;
use otonix_sdk::api::local::Accepted;
use otonix_sdk::api::usage::LogUsage;
use otonix_sdk::body::Unreadable;
use otonix_sdk::error::ErrorCode;
use otonix_sdk::ids::EventId;
use serde::de::DeserializeOwned;

use super::problem::Refusal;
use super::routes::json;
use crate::shared::Shared;

/// Largest body, bytes.
const MAX_BODY: usize = 256 * 1024;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest idempotency key.
const MAX_KEY: usize = 128;

/// `POST /v1/actions`.
pub(super) async fn log_action(
    State(shared): State<Shared>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let key = idempotency_key(request.headers())?;
    let action: LogAction = read_json(request, MAX_BODY).await?;
    let id = shared.agent.log_action(action, key.as_deref()).await?;
    Ok(accepted(id))
}

/// `POST /v1/usage`.
pub(super) async fn log_usage(
    State(shared): State<Shared>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let key = idempotency_key(request.headers())?;
    let mut usage: LogUsage = read_json(request, MAX_BODY).await?;
    if usage.agent_id.take().is_some_and(|id| id != shared.agent.id()) {
        let detail = "`agentId` is another agent's";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, ErrorCode::UnknownLink, detail));
    }
    let id = shared.agent.log_usage(usage, key.as_deref()).await?;
    Ok(accepted(id))
}

fn accepted(id: EventId) -> Response {
    (StatusCode::ACCEPTED, json(&Accepted { id })).into_response()
}

pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(None) };
    let key = key.to_str().unwrap_or_default();
    if key.is_empty() || key.len() > MAX_KEY || keys.next().is_some() {
        let detail = "`Idempotency-Key` must be there once, with 1 to 128 visible ASCII characters";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, detail));
    }
    Ok(Some(key.to_owned()))
}

pub(super) async fn read_json<T: DeserializeOwned>(
    request: Request<Body>,
    most: usize,
) -> Result<T, Refusal> {
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !request.headers().get_all(header::CONTENT_ENCODING).iter().all(plain) {
        let detail = "the body must come without Content-Encoding";
        return Err(Refusal::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorCode::UnsupportedMediaType,
            detail,
        ));
    }
    let too_large = || {
        let detail = format!("the body must have at most {most} bytes");
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, ErrorCode::PayloadTooLarge, detail)
    };
    // One that says so is not waited for.
    if request.body().size_hint().lower() > most as u64 {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), most).collect();
    let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
        Ok(Err(_)) => {
            let detail = "the body could not be read";
            return Err(Refusal::new(StatusCode::BAD_REQUEST, ErrorCode::BadRequest, detail));
        }
        Err(_) => {
            let detail = "the body did not arrive in time";
            return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, ErrorCode::RequestTimeout, detail));
        }
    };
    otonix_sdk::body::read(&body).map_err(|why| {
        let code = match why {
            Unreadable::NoObject(_) => ErrorCode::InvalidJson,
            Unreadable::Field { .. } => ErrorCode::InvalidField,
        };
        Refusal::new(StatusCode::BAD_REQUEST, code, why.to_string())
    })
}
