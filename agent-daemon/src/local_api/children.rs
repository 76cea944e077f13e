//! `POST /v1/children`: a child of the agent, paid from its credits by the control plane.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use http::{Request, StatusCode};
use otonix_sdk::api::enrolment::NewChild;
use otonix_sdk::client::ClientError;
use otonix_sdk::error::ErrorCode;

use super::problem::Refusal;
use super::records::{idempotency_key, read_json};
use super::routes::json;
use crate::shared::Shared;

/// Largest body, bytes.
const MAX_BODY: usize = 512 * 1024;

/// `POST /v1/children`.
pub(super) async fn create(
    State(shared): State<Shared>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let key = idempotency_key(request.headers())?;
    let child: NewChild = read_json(request, MAX_BODY).await?;
    if shared.payments_paused() {
        let detail = "nothing is spent while payments are paused";
        return Err(Refusal::new(StatusCode::FORBIDDEN, ErrorCode::PaymentsPaused, detail));
    }
    let client = match &key {
        // A repeat is the same request to the server, also after a restart of the daemon.
        Some(key) => shared.control_plane.once(key),
        None => shared.control_plane.clone(),
    };
    let parent = shared.agent.id();
    match client.create_child(parent, &child).await {
        Ok(born) => Ok((StatusCode::CREATED, json(&born)).into_response()),
        Err(error) => Err(refusal(&error)),
    }
}

/// What the server said, or that it said nothing.
fn refusal(error: &ClientError) -> Refusal {
    if let ClientError::Problem { problem, .. } = error {
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::BAD_GATEWAY);
        let code = ErrorCode::parse(&problem.code).unwrap_or(ErrorCode::Conflict);
        return Refusal::new(status, code, problem.detail.clone());
    }
    let detail =
        "the control plane gave no answer; the same Idempotency-Key tells whether the child was born";
    Refusal::new(StatusCode::BAD_GATEWAY, ErrorCode::NoAnswer, detail)
}
