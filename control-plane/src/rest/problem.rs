//! Domain errors as HTTP: the only place that chooses a status.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use otonix_sdk::error::{ErrorCode, Problem};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::rest::paid;
use crate::store::StoreError;

/// An error on its way out; the front adds the request's id and writes the body.
#[derive(Debug, Clone)]
pub struct Pending {
    pub code: ErrorCode,
    pub detail: String,
    /// Fields beside those of every error.
    pub more: Map<String, Value>,
    /// The id of the request that it answered first, when it is told again.
    pub first_id: Option<String>,
}

/// The status of an error.
pub fn status(error: &Error) -> StatusCode {
    match error {
        Error::NotFound { .. } => StatusCode::NOT_FOUND,
        Error::Conflict { .. } | Error::NewEpochRequired | Error::Superseded => StatusCode::CONFLICT,
        Error::Invalid { .. } => StatusCode::BAD_REQUEST,
        Error::Malformed { code, .. } => match code {
            ErrorCode::NoRoute => StatusCode::NOT_FOUND,
            ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::PayloadTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorCode::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            _ => StatusCode::BAD_REQUEST,
        },
        Error::Unauthenticated { .. } => StatusCode::UNAUTHORIZED,
        Error::Forbidden { .. } => StatusCode::FORBIDDEN,
        Error::PaymentRequired(_) => StatusCode::PAYMENT_REQUIRED,
        Error::PaymentPending { .. } => StatusCode::SERVICE_UNAVAILABLE,
        Error::Busy { code: ErrorCode::RateLimited, .. } => StatusCode::TOO_MANY_REQUESTS,
        Error::Busy { .. } | Error::NotConfigured { .. } => StatusCode::SERVICE_UNAVAILABLE,
        Error::Store(StoreError::Unavailable(_) | StoreError::QueueFull | StoreError::LostRace) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Error::Store(StoreError::Taken(_)) => StatusCode::CONFLICT,
        Error::Store(StoreError::Corrupt { .. } | StoreError::Sql(_)) | Error::Internal(_) => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// Whether the same request with the same idempotency key would be refused for ever: its answer is kept then.
pub fn is_final(error: &Error) -> bool {
    let passing = matches!(
        error.code(),
        // What another request with the key, or another buyer, has under way says nothing of the next time.
        ErrorCode::IdempotencyInProgress
            | ErrorCode::IdempotencyKeyReused
            | ErrorCode::PurchaseUnderWay
            // Payments come in a header, which is no part of what a key stands for: the next may be a better one.
            | ErrorCode::InvalidPayment
            | ErrorCode::PaymentAlreadyUsed
            | ErrorCode::PaymentAlreadyCredited
            | ErrorCode::OrderAlreadyPaid
    );
    is_refusal(error) && !passing
}

/// Whether the request is refused as it is, by what is asked or by the state of things.
pub fn is_refusal(error: &Error) -> bool {
    let status = status(error);
    let passing = [
        StatusCode::UNAUTHORIZED,
        StatusCode::PAYMENT_REQUIRED,
        StatusCode::REQUEST_TIMEOUT,
        // Mended by a header, which is no part of what a key stands for.
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    status.is_client_error() && !passing.contains(&status)
}

fn retry_after(error: &Error) -> Option<Duration> {
    match error {
        Error::Busy { retry_after, .. } | Error::PaymentPending { retry_after, .. } => Some(*retry_after),
        Error::Store(StoreError::Unavailable(_) | StoreError::QueueFull | StoreError::LostRace) => {
            Some(Duration::from_secs(1))
        }
        Error::NotConfigured { .. } => Some(Duration::from_secs(3600)),
        Error::Conflict { code: ErrorCode::IdempotencyInProgress, .. } => Some(Duration::from_secs(1)),
        _ => None,
    }
}

/// What the caller is told; sources of faults stay here.
pub fn detail(error: &Error) -> String {
    match error {
        Error::Store(StoreError::Unavailable(_)) => {
            "the database is away; a write may have happened, the same Idempotency-Key tells".to_owned()
        }
        Error::Store(StoreError::QueueFull | StoreError::LostRace) => {
            "the server has more to write than it can; try again".to_owned()
        }
        Error::Store(StoreError::Taken(_)) => "a unique value is taken".to_owned(),
        Error::Store(StoreError::Corrupt { .. } | StoreError::Sql(_)) | Error::Internal(_) => {
            "an internal error; the server's log has it under this request id".to_owned()
        }
        _ => error.to_string(),
    }
}

/// The body of an error.
pub fn body(status: StatusCode, code: ErrorCode, detail: String, request_id: String) -> Problem {
    Problem {
        kind: "about:blank".into(),
        title: status.canonical_reason().unwrap_or("Error").into(),
        status: status.as_u16(),
        error: detail.clone(),
        detail,
        code: code.as_str().into(),
        request_id,
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let status = status(&self);
        if status.is_server_error() {
            match &self {
                Self::Store(StoreError::Sql(source)) => {
                    tracing::error!(error = %source, "a statement failed")
                }
                Self::Store(StoreError::Unavailable(source)) => {
                    tracing::debug!(error = %source, "no database")
                }
                Self::Internal(what) => tracing::error!(error = %what, "an internal error"),
                Self::Store(other) => tracing::error!(error = %other, "a store error"),
                _ => {}
            }
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        if let Some(wait) = retry_after(&self) {
            let secs = wait.as_secs_f64().ceil().max(1.0);
            if let Ok(value) = HeaderValue::from_str(&format!("{secs:.0}")) {
                response.headers_mut().insert(RETRY_AFTER, value);
            }
        }
        let more = match &self {
            Self::PaymentRequired(demand) => {
                paid::head(demand, response.headers_mut());
                paid::fields(demand)
            }
            Self::PaymentPending { order_id, .. } => {
                Map::from_iter([("orderId".to_owned(), Value::from(order_id.as_str()))])
            }
            _ => Map::new(),
        };
        let detail = detail(&self);
        response.extensions_mut().insert(Pending { code: self.code(), detail, more, first_id: None });
        response
    }
}

/// Writes the body of an error that a handler left pending.
pub fn finish(mut response: Response, request_id: &str) -> Response {
    let Some(pending) = response.extensions_mut().remove::<Pending>() else { return response };
    let status = response.status();
    let request_id = pending.first_id.unwrap_or_else(|| request_id.to_owned());
    let problem = body(status, pending.code, pending.detail, request_id);
    let headers = response.headers_mut();
    // The router has measured the empty body.
    headers.remove(CONTENT_LENGTH);
    let paid = status == StatusCode::PAYMENT_REQUIRED;
    let kind = if paid { "application/json" } else { "application/problem+json" };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    #[derive(Serialize)]
    struct Whole {
        #[serde(flatten)]
        problem: Problem,
        #[serde(flatten)]
        more: Map<String, Value>,
    }
    let whole = Whole { problem, more: pending.more };
    *response.body_mut() = Body::from(serde_json::to_vec(&whole).unwrap_or_default());
    response
}
