//! Errors of the local API in the contract's form.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use otonix_sdk::agent::RecordError;
use otonix_sdk::error::{ErrorCode, Problem};

/// An error as it is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    status: StatusCode,
    code: ErrorCode,
    detail: String,
}

impl Refusal {
    /// An error of a status, a code and a sentence for people.
    pub fn new(status: StatusCode, code: ErrorCode, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    /// The stable slug.
    pub const fn code(&self) -> ErrorCode {
        self.code
    }

    /// The sentence for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }
}

impl From<RecordError> for Refusal {
    fn from(error: RecordError) -> Self {
        let (status, code) = match &error {
            RecordError::Invalid(_) => (StatusCode::BAD_REQUEST, ErrorCode::InvalidField),
            RecordError::IdempotencyKeyReused => (StatusCode::CONFLICT, ErrorCode::IdempotencyKeyReused),
            RecordError::UnknownModel(_) => (StatusCode::BAD_REQUEST, ErrorCode::UnknownModel),
            RecordError::Killed => (StatusCode::CONFLICT, ErrorCode::AgentKilled),
            RecordError::SpoolFull => (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::SpoolFull),
            RecordError::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::DiskFull),
            RecordError::Closed => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Overloaded),
        };
        Self::new(status, code, error.to_string())
    }
}

impl Refusal {
    /// The problem as it is sent.
    pub(super) fn body(&self) -> Vec<u8> {
        let problem = Problem {
            kind: "about:blank".into(),
            title: self.status.canonical_reason().unwrap_or("Error").into(),
            status: self.status.as_u16(),
            detail: self.detail.clone(),
            code: self.code.as_str().into(),
            error: self.detail.clone(),
            request_id: otonix_sdk::clock::new_id().to_string(),
        };
        serde_json::to_vec(&problem).unwrap_or_default()
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = self.body();
        let mut response = (self.status, body).into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
