//! The route table of the local API and its small answers.

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{HeaderValue, Method, StatusCode, Uri, header};
use otonix_sdk::api::local::{LocalStatus, ModelChoice};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::routing::Criticality;
use serde::Serialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::problem::Refusal;
use super::seats::MAX_CONNECTIONS;
use super::{children, events, pay, records};
use crate::payments::PaymentsStatus;
use crate::shared::{Shared, tier_of};

/// The routes for those who are served.
pub(super) fn router(shared: Shared, cancel: CancellationToken) -> Router {
    let streams = events::Streams::new(cancel);
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/actions", post(records::log_action))
        .route("/v1/usage", post(records::log_usage))
        .route("/v1/model", get(model))
        .route("/v1/progress", post(progress))
        .route("/v1/pay", post(pay::pay))
        .route("/v1/children", post(children::create))
        .route("/v1/payments", get(pay::payments))
        .route("/v1/payments/reconcile", post(pay::reconcile))
        .route("/v1/payments/{id}", get(pay::payment))
        .route("/v1/pins", get(pay::pins).delete(pay::unpin))
        .route("/v1/wallet", get(pay::wallet))
        .route("/v1/events", get(async move |state| events::stream(state, &streams)))
        .method_not_allowed_fallback(method_not_allowed)
        .fallback(no_route)
        .with_state(shared)
}

/// What everybody else gets.
pub(super) fn stranger() -> Router {
    Router::new().fallback(async || {
        let detail = "this socket serves root, the daemon's user and the agent's user";
        Refusal::new(StatusCode::FORBIDDEN, ErrorCode::Forbidden, detail)
    })
}

/// What those get for whom there is no place.
pub(super) fn full() -> Router {
    Router::new().fallback(async || {
        let detail = format!("{MAX_CONNECTIONS} requests are being answered already");
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Overloaded, detail)
    })
}

/// A JSON answer.
pub(super) fn json<T: Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => {
            let kind = HeaderValue::from_static("application/json");
            ([(header::CONTENT_TYPE, kind)], body).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "failed to write an answer");
            let detail = "the answer could not be written";
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Internal, detail).into_response()
        }
    }
}

async fn no_route(uri: Uri) -> Refusal {
    Refusal::new(StatusCode::NOT_FOUND, ErrorCode::NoRoute, format!("there is no route {}", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Refusal {
    let detail = format!("{} does not take {method}", uri.path());
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::MethodNotAllowed, detail)
}

/// `GET /v1/status`, and what else is known here.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(flatten)]
    status: LocalStatus,
    name: String,
    optional_work: bool,
    heartbeat_interval: u32,
    /// False until the server was heard for the first time.
    standing_known: bool,
    server: String,
    transport: Option<otonix_sdk::agent::Transport>,
    last_error: Option<String>,
    process_starts: u64,
    last_exit: Option<String>,
    payments: PaymentsStatus,
}

async fn status(State(shared): State<Shared>) -> Response {
    let standing = shared.agent.standing();
    let link = shared.agent.status();
    let tier = tier_of(&standing);
    let process = shared.process.borrow().clone();
    let config = &shared.config;
    json(&Status {
        status: LocalStatus {
            agent_id: shared.agent.id(),
            connected: link.connected,
            survival_tier: tier,
            credits: standing.credits,
            funded: standing.funded,
            model: shared.usual_model(),
            wallet_address: config.agent.wallet_address.clone(),
            spool: link.spool,
            payments_paused: shared.payments_paused(),
            agent_process: process.state.as_str().to_owned(),
            refused: link.refused.map(|code| code.as_str().to_owned()),
        },
        name: config.agent.name.clone(),
        optional_work: config.tier.optional_work(tier),
        heartbeat_interval: standing.heartbeat_interval,
        standing_known: standing.known,
        server: config.link.server.clone(),
        transport: link.transport,
        last_error: link.last_error,
        process_starts: process.starts,
        last_exit: process.last_exit,
        payments: shared.payments.borrow().status(),
    })
}

async fn model(State(shared): State<Shared>, uri: Uri) -> Result<Response, Refusal> {
    let (mut criticality, mut max_latency_ms) = (Criticality::Normal, None);
    for pair in uri.query().unwrap_or_default().split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let bad = |why: &str| {
            Refusal::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidQuery, format!("`{name}` {why}"))
        };
        match name {
            "criticality" => {
                criticality = value.parse().map_err(|_| bad("must be low, normal or high"))?;
            }
            "maxLatencyMs" => {
                let latency = value.parse().map_err(|_| bad("must be a whole number of milliseconds"))?;
                max_latency_ms = Some(latency);
            }
            _ => {}
        }
    }
    let ModelChoice { model, reason } = shared.model(criticality, max_latency_ms);
    Ok(json(&ModelChoice { model, reason }))
}

async fn progress(State(shared): State<Shared>, _body: Request) -> Response {
    shared.progress.send_replace(Instant::now());
    json(&serde_json::json!({ "received": true }))
}
