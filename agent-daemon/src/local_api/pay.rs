//! `POST /v1/pay` and what belongs to it: the agent's process asks, the daemon decides and pays.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, Request, StatusCode, Uri};
use otonix_sdk::error::ErrorCode;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::pay::{self, Asker, Client, Fetch, Fetched, HttpAnswer, HttpError, PayError};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use uuid::Uuid;

use super::Peer;
use super::problem::Refusal;
use super::records::{idempotency_key, read_json};
use super::routes::json as answer;
use crate::payments::Payments;
use crate::shared::Shared;
use crate::{files, process_tree};

/// Shown by who may read the state directory, and by that is the machine's owner.
pub const OWNER_TOKEN: &str = "owner-token";
/// The header that shows it.
pub const OWNER_HEADER: &str = "x-otonix-owner";
/// Largest body: 4 MiB in base64, and what belongs to it.
const MAX_BODY: usize = 6 * 1024 * 1024;
/// How long unlocking the wallet is waited for.
const UNLOCK: Duration = Duration::from_secs(20);

/// `POST /v1/pay`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PayRequest {
    /// Any http or https URL.
    pub url: String,
    /// GET, or POST when there is a body.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// By name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// A text as it is; any other JSON value is sent as JSON, as it is written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Box<RawValue>>,
    /// In place of `body`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// Most that it may cost.
    pub max_amount: MicroUsd,
    /// The same key is never paid twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// Writes a new owner's token. Without room on the disk the last one stays; without one nobody is the owner, and the
/// daemon starts all the same.
pub fn write_owner_token(state_dir: &Path) -> String {
    let token = otonix_sdk::wallet::random_passphrase().expose().to_owned();
    let path = state_dir.join(OWNER_TOKEN);
    match files::write_private(&path, token.as_bytes()) {
        Ok(()) => token,
        Err(error) => {
            tracing::warn!(%error, path = %path.display(), "failed to write a new owner's token");
            std::fs::read_to_string(&path).unwrap_or_default()
        }
    }
}

fn bad(detail: impl Into<String>) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, ErrorCode::InvalidField, detail)
}

/// Whether a peer is the machine's owner: it can read the owner's token, and the agent's process did not start it.
fn is_owner(shared: &Shared, peer: Peer, headers: &HeaderMap) -> bool {
    let shown = headers.get(OWNER_HEADER).and_then(|value| value.to_str().ok());
    let known = shown.is_some_and(|shown| same(shown, &shared.owner_token));
    let below = || {
        let me = i32::try_from(std::process::id()).unwrap_or(-1);
        let started = process_tree::descendants(me, &process_tree::all());
        started.iter().any(|process| Some(process.pid) == peer.pid)
    };
    known && !below()
}

fn same(one: &str, other: &str) -> bool {
    let differs = one.bytes().zip(other.bytes()).fold(0, |diff, (a, b)| diff | (a ^ b));
    !other.is_empty() && one.len() == other.len() && differs == 0
}

/// For whom a peer pays, if it may.
fn asker(shared: &Shared, peer: Peer, headers: &HeaderMap) -> Result<Asker, Refusal> {
    if is_owner(shared, peer, headers) {
        return Ok(Asker::Owner);
    }
    if shared.config.pay.allow_shared_uid || peer.is_agent {
        return Ok(Asker::Agent);
    }
    let detail = "shared_uid_not_allowed: the agent's process has the daemon's user id and could read the wallet; \
                  set `[agent] user`, or `[pay] allow_shared_uid = true`";
    Err(Refusal::new(StatusCode::FORBIDDEN, ErrorCode::PaymentRefused, detail))
}

fn only_owner(shared: &Shared, peer: Peer, headers: &HeaderMap) -> Result<(), Refusal> {
    if is_owner(shared, peer, headers) {
        return Ok(());
    }
    let detail = "only the machine's owner may do this, by the command line";
    Err(Refusal::new(StatusCode::FORBIDDEN, ErrorCode::Forbidden, detail))
}

/// The paying client, once the wallet is unlocked.
async fn client(shared: &Shared) -> Result<Client, Refusal> {
    let mut payments = shared.payments.subscribe();
    let ready = payments.wait_for(|payments| !matches!(payments, Payments::Starting));
    let off =
        |why: String| Refusal::new(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::PaymentsNotConfigured, why);
    match tokio::time::timeout(UNLOCK, ready).await {
        Ok(Ok(state)) => match &*state {
            Payments::On(client) => Ok(client.clone()),
            Payments::Off(why) => Err(off(why.clone())),
            Payments::Starting => Err(off("the wallet is being unlocked".to_owned())),
        },
        _ => Err(off("the wallet is being unlocked".to_owned())),
    }
}

/// `POST /v1/pay`.
pub(super) async fn pay(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    let asker = asker(&shared, peer, request.headers())?;
    let key = idempotency_key(request.headers())?;
    let wanted: PayRequest = read_json(request, MAX_BODY).await?;
    let fetch = fetch_of(wanted, key, asker, shared.agent.tier())?;
    let client = client(&shared).await?;
    match client.fetch(fetch).await {
        Ok(fetched) => Ok(answer(&fetched_json(&fetched))),
        Err(error) => Err(refusal(&error)),
    }
}

/// What is asked for, in the payer's words.
pub fn fetch_of(
    wanted: PayRequest,
    key: Option<String>,
    asker: Asker,
    tier: otonix_sdk::standing::SurvivalTier,
) -> Result<Fetch, Refusal> {
    if wanted.max_amount.is_negative() {
        return Err(bad("`maxAmount` must not be negative"));
    }
    let key = wanted.idempotency_key.or(key);
    if key.as_ref().is_some_and(|key| key.is_empty() || key.len() > 128) {
        return Err(bad("`idempotencyKey` must have 1 to 128 characters"));
    }
    let mut headers: Vec<(String, String)> = wanted.headers.into_iter().collect();
    let typed = headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type"));
    let (body, kind) = match (wanted.body, wanted.body_base64) {
        (Some(_), Some(_)) => return Err(bad("`body` and `bodyBase64` exclude each other")),
        (None, None) => (Vec::new(), None),
        (None, Some(text)) => {
            let body = STANDARD.decode(text).map_err(|_| bad("`bodyBase64` must be base64"))?;
            (body, Some("application/octet-stream"))
        }
        (Some(value), None) if value.get().starts_with('"') => {
            let text: String = serde_json::from_str(value.get()).map_err(|_| bad("`body` must be a text"))?;
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            (text.into_bytes(), Some(if is_json { "application/json" } else { "text/plain" }))
        }
        (Some(value), None) => (value.get().as_bytes().to_vec(), Some("application/json")),
    };
    if let Some(kind) = kind.filter(|_| !typed) {
        headers.push(("content-type".to_owned(), kind.to_owned()));
    }
    let method = wanted.method.unwrap_or_else(|| if body.is_empty() { "GET" } else { "POST" }.to_owned());
    let request = pay::Request { method, url: wanted.url, headers, body };
    Ok(Fetch { request, max_amount: wanted.max_amount, key, asker, tier })
}

/// The answer of `POST /v1/pay`.
pub fn fetched_json(fetched: &Fetched) -> Value {
    let payment = match &fetched.payment {
        Some(payment) => json!(payment),
        None => json!({ "state": "none", "amount": 0 }),
    };
    let mut all = json!({ "intentId": fetched.id, "payment": payment });
    add_answer(&mut all, fetched.answer.as_ref());
    all
}

fn add_answer(all: &mut Value, answer: Option<&HttpAnswer>) {
    all["status"] = json!(answer.map(|answer| answer.status));
    let mut headers: BTreeMap<&str, String> = BTreeMap::new();
    let Some(answer) = answer else {
        all["headers"] = json!(headers);
        return;
    };
    for (name, value) in &answer.headers {
        headers
            .entry(name)
            .and_modify(|known| {
                known.push_str(", ");
                known.push_str(value);
            })
            .or_insert_with(|| value.clone());
    }
    all["headers"] = json!(headers);
    match std::str::from_utf8(&answer.body) {
        Ok(text) => all["body"] = json!(text),
        Err(_) => all["bodyBase64"] = json!(STANDARD.encode(&answer.body)),
    }
}

/// Why nothing was paid, as an error of the local API.
pub fn refusal(error: &PayError) -> Refusal {
    let (status, code) = match error {
        PayError::Denied(_) => (StatusCode::FORBIDDEN, ErrorCode::PaymentRefused),
        PayError::Http(HttpError::Private(_) | HttpError::PlainHttp) => {
            (StatusCode::FORBIDDEN, ErrorCode::PaymentRefused)
        }
        PayError::Paused(_) => (StatusCode::FORBIDDEN, ErrorCode::PaymentsPaused),
        PayError::Http(HttpError::Invalid(_)) => (StatusCode::BAD_REQUEST, ErrorCode::InvalidField),
        PayError::Http(_) => (StatusCode::BAD_GATEWAY, ErrorCode::NoAnswer),
        PayError::Chain(_) | PayError::WrongChain(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::ChainUnavailable)
        }
        PayError::Journal(_) => (StatusCode::INSUFFICIENT_STORAGE, ErrorCode::DiskFull),
        PayError::KeyReused => (StatusCode::CONFLICT, ErrorCode::IdempotencyKeyReused),
        PayError::Busy | PayError::Closed => (StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Overloaded),
    };
    let detail = if error.is_refusal() { format!("{}: {error}", error.code()) } else { error.to_string() };
    Refusal::new(status, code, detail)
}

/// `GET /v1/payments/:intentId`.
pub(super) async fn payment(
    State(shared): State<Shared>,
    UrlPath(id): UrlPath<String>,
) -> Result<Response, Refusal> {
    let client = client(&shared).await?;
    let found = id.parse::<Uuid>().ok().and_then(|id| client.payment(id));
    let Some((payment, kept)) = found else {
        let detail = format!("there is no payment {}", id.chars().take(64).collect::<String>());
        return Err(Refusal::new(StatusCode::NOT_FOUND, ErrorCode::NotFound, detail));
    };
    let mut all = json!({ "intentId": payment.intent_id, "payment": payment });
    add_answer(&mut all, kept.as_ref());
    Ok(answer(&all))
}

/// `GET /v1/payments`: newest first.
pub(super) async fn payments(State(shared): State<Shared>) -> Result<Response, Refusal> {
    Ok(answer(&client(&shared).await?.payments()))
}

/// `POST /v1/payments/reconcile`.
pub(super) async fn reconcile(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    request: Request<Body>,
) -> Result<Response, Refusal> {
    only_owner(&shared, peer, request.headers())?;
    let client = client(&shared).await?;
    let found = client.reconcile().await.map_err(|error| refusal(&error))?;
    Ok(answer(&json!({ "reconciled": found, "standstill": client.standstill() })))
}

/// `GET /v1/pins`.
pub(super) async fn pins(State(shared): State<Shared>) -> Result<Response, Refusal> {
    let pins = client(&shared).await?.pins();
    let pins: Vec<Value> =
        pins.into_iter().map(|(origin, pay_to)| json!({ "origin": origin, "payTo": pay_to })).collect();
    Ok(answer(&pins))
}

/// `DELETE /v1/pins?<origin>`.
pub(super) async fn unpin(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    only_owner(&shared, peer, &headers)?;
    let origin = uri.query().unwrap_or_default().to_owned();
    let removed = client(&shared).await?.unpin(origin).await.map_err(|error| refusal(&error))?;
    Ok(answer(&json!({ "removed": removed })))
}

/// `GET /v1/wallet`: address, and what it holds.
pub(super) async fn wallet(State(shared): State<Shared>) -> Result<Response, Refusal> {
    let client = client(&shared).await?;
    let (usdc, wei) = client.balance().await.map_err(|error| refusal(&error))?;
    let address = client.address().to_string();
    Ok(answer(&json!({
        "address": address,
        "usdc": usdc,
        "outstanding": client.outstanding(),
        "wei": wei.to_string(),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use otonix_sdk::standing::SurvivalTier;

    #[test]
    fn what_is_sent_is_what_was_written() {
        let sent = |body: &str| {
            let text = format!(r#"{{"url":"https://shop.example/","maxAmount":1,"body":{body}}}"#);
            let wanted: PayRequest = serde_json::from_str(&text).expect("a request");
            let fetch = fetch_of(wanted, None, Asker::Agent, SurvivalTier::Full).expect("it can be sent");
            (String::from_utf8(fetch.request.body).expect("text"), fetch.request.headers[0].1.clone())
        };
        let exact = r#"{"wei":123456789012345678901234567890.10, "a":[1e2]}"#;
        for (body, content, kind) in [
            (exact, exact, "application/json"),
            (r#""plain \u00e9""#, "plain \u{e9}", "text/plain"),
            (r#""{\"a\":1}""#, r#"{"a":1}"#, "application/json"),
        ] {
            assert_eq!(sent(body), (content.to_owned(), kind.to_owned()));
        }
    }
}
