//! Answers: JSON bodies, pages with their `Link`, and answers kept for repeats.

use std::sync::Arc;

use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::DateTime;
use http::header::{CONTENT_TYPE, LINK};
use http::{HeaderValue, StatusCode};
use otonix_sdk::error::{ErrorCode, Problem};
use otonix_sdk::x402::headers;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::rest::call::{Call, bad_query, form_pairs};
use crate::rest::problem;
use crate::service::payments;
use crate::store::idempotency::{self, Idem, StoredAnswer};
use crate::store::list::{Cursor, Page, Param, Query};
use crate::store::writer::{Target, Written};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A JSON answer.
pub fn json<T: Serialize>(status: StatusCode, body: &T) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => raw(status, Body::from(bytes)),
        Err(why) => Error::internal(format!("an answer cannot be written: {why}")).into_response(),
    }
}

fn raw(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// An answer as it is kept.
pub fn stored<T: Serialize>(status: StatusCode, body: &T) -> StoredAnswer {
    let body = serde_json::to_string(body).unwrap_or_else(|_| "{}".to_owned());
    StoredAnswer { status: status.as_u16(), body, fingerprint: [0; 32] }
}

/// What a write answers: what it did now, or what it answered before.
pub fn written<T: Serialize>(call: &Call, status: StatusCode, done: Written<T>) -> Response {
    match done {
        Written::Fresh(done) => json(status, &done),
        Written::Replayed(answer) => replay(call.idem(), answer),
    }
}

/// A body that was kept, with the status that it had.
pub fn kept(status: u16, body: String) -> Response {
    kept_as(status, Body::from(body))
}

/// The same for a body in another form.
pub fn kept_as(status: u16, body: Body) -> Response {
    raw(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body)
}

/// An answer that was kept, unless it was to another request.
pub fn replay(idem: Option<Idem>, answer: StoredAnswer) -> Response {
    if idem.is_some_and(|idem| idem.fingerprint != answer.fingerprint) {
        return Error::conflict(
            ErrorCode::IdempotencyKeyReused,
            "this Idempotency-Key was used with another request",
        )
        .into_response();
    }
    let mut response = kept(answer.status, answer.body.clone());
    if !response.status().is_success()
        && let Ok(problem) = serde_json::from_str::<Problem>(&answer.body)
    {
        let code = ErrorCode::parse(&problem.code).unwrap_or(ErrorCode::Conflict);
        response.extensions_mut().insert(problem::Pending {
            code,
            detail: problem.detail,
            more: serde_json::Map::new(),
            first_id: Some(problem.request_id).filter(|id| !id.is_empty()),
        });
    }
    response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    response
}

/// The turn of a request with an idempotency key; ends when dropped.
struct Turn {
    app: Arc<App>,
    scope: [u8; 32],
}

impl Turn {
    fn take(app: &Arc<App>, scope: [u8; 32]) -> Option<Self> {
        app.shared.running.lock().insert(scope).then(|| Self { app: Arc::clone(app), scope })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.app.shared.running.lock().remove(&self.scope);
    }
}

/// Runs a POST once per idempotency key: a repeat gets the stored answer, a parallel one is told to wait.
/// The key is taken in the transaction that does the work; what is refused for good before any work is kept too.
pub async fn once<F, H>(call: Call, handler: H) -> Response
where
    H: FnOnce(Call) -> F,
    F: Future<Output = Result<Response, Error>>,
{
    let Some(idem) = call.idem() else {
        return handler(call).await.unwrap_or_else(Error::into_response);
    };
    let app = Arc::clone(&call.app);
    let id = call.request_id();
    let Some(_turn) = Turn::take(&app, idem.scope) else {
        return beside(&app, &call, idem).await.unwrap_or_else(Error::into_response);
    };
    match handler(call).await {
        Ok(response) => response,
        Err(error) if problem::is_final(&error) => {
            let status = problem::status(&error);
            let body = problem::body(status, error.code(), problem::detail(&error), id.clone());
            let answer = StoredAnswer { fingerprint: idem.fingerprint, ..stored(status, &body) };
            let kept = app.writer.apply(Target::Shared, move |tx| {
                Box::pin(async move {
                    match idempotency::claim(tx, &idem).await? {
                        idempotency::Claim::New => {
                            idempotency::store(tx, &idem, &answer).await?;
                            Ok(None)
                        }
                        idempotency::Claim::Taken(before) => Ok(Some(before)),
                    }
                })
            });
            match kept.await {
                Ok(None) => {
                    let mut response = error.into_response();
                    if let Some(pending) = response.extensions_mut().get_mut::<problem::Pending>() {
                        pending.first_id = Some(id);
                    }
                    response
                }
                Ok(Some(before)) => replay(Some(idem), before),
                Err(failed) => failed.into_response(),
            }
        }
        Err(error) => error.into_response(),
    }
}

/// The answer to a request beside another one with its key: that one may be a repeat too, and then there is a stored
/// answer for both. A stored refusal says nothing of a payment that comes now.
async fn beside(app: &App, call: &Call, idem: Idem) -> Result<Response, Error> {
    let pays =
        [headers::PAYMENT_SIGNATURE, headers::X_PAYMENT].iter().any(|name| call.headers.contains_key(*name));
    match payments::kept(app, idem).await? {
        Some(before) if before.status < 400 || !pays => Ok(replay(Some(idem), before)),
        Some(_) | None => Err(Error::conflict(
            ErrorCode::IdempotencyInProgress,
            "a request with this Idempotency-Key is still running",
        )),
    }
}

/// The most rows of a page.
const MAX_LIMIT: i64 = 1000;
const DEFAULT_LIMIT: i64 = 100;

/// The filters that a list knows, by their names in the query.
pub struct Filters {
    /// `agentId`, as a condition.
    pub agent: Option<&'static str>,
    /// `status` with its values.
    pub status: &'static [&'static str],
    /// Whether rows have a category.
    pub category: bool,
    /// Whether `since` and `until` apply.
    pub time: bool,
}

/// Reads `limit`, `cursor` and the filters of a list.
///
/// # Errors
/// 400 naming the parameter.
pub fn list_query(call: &Call, filters: &Filters) -> Result<Query, Error> {
    let mut query = Query { limit: DEFAULT_LIMIT, ..Query::default() };
    for (name, has) in [
        ("agentId", filters.agent.is_some()),
        ("status", !filters.status.is_empty()),
        ("category", filters.category),
        ("since", filters.time),
        ("until", filters.time),
    ] {
        if !has && call.query(name)?.is_some() {
            return Err(bad_query(name, "is no filter of this list"));
        }
    }
    if let Some(text) = call.query("limit")? {
        let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
        query.limit = limit.ok_or_else(|| bad_query("limit", "must be 1 to 1000"))?;
    }
    if let Some(text) = call.query("cursor")?.filter(|text| !text.is_empty()) {
        let cursor = read_cursor(call.uri.path(), &text);
        query.after = Some(cursor.ok_or_else(|| bad_query("cursor", "is none of this list"))?);
    }
    if let (Some(condition), Some(text)) = (filters.agent, call.query("agentId")?) {
        let id = Uuid::try_parse(&text).map_err(|_| bad_query("agentId", "must be a UUID"))?;
        query.filter(condition, Param::Id(id));
    }
    if let Some(text) = call.query("status")? {
        if !filters.status.contains(&text.as_str()) {
            return Err(bad_query("status", &format!("must be one of {}", filters.status.join(", "))));
        }
        query.filter("status = ", Param::Text(text));
    }
    if let Some(text) = call.query("category")? {
        otonix_sdk::limits::check_slug("category", &text).map_err(|why| bad_query("category", &why.why))?;
        query.filter("category = ", Param::Text(text));
    }
    for (name, condition) in [("since", "created_at >= "), ("until", "created_at <= ")] {
        if let Some(text) = call.query(name)? {
            let at = DateTime::parse_from_rfc3339(&text)
                .map_err(|_| bad_query(name, "must be an RFC 3339 time"))?
                .to_utc();
            query.filter(condition, Param::Time(otonix_sdk::clock::to_micros(at)));
        }
    }
    Ok(query)
}

/// A few bytes that tell the list at a path from others: a place in one says nothing about another.
fn mark(path: &str) -> [u8; 4] {
    let digest: [u8; 32] = Sha256::digest(path.as_bytes()).into();
    [digest[0], digest[1], digest[2], digest[3]]
}

fn write_cursor(path: &str, cursor: Cursor) -> String {
    let mut bytes = mark(path).to_vec();
    bytes.extend(cursor.created_at.timestamp_micros().to_be_bytes());
    bytes.extend(cursor.id.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

fn read_cursor(path: &str, text: &str) -> Option<Cursor> {
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let (micros, id) = bytes.strip_prefix(&mark(path))?.split_at_checked(8)?;
    let created_at = DateTime::from_timestamp_micros(i64::from_be_bytes(micros.try_into().ok()?))?;
    Some(Cursor { created_at, id: Uuid::from_slice(id).ok()? })
}

/// A page as a plain array; the next one is in `Link`.
pub fn page<T: Serialize>(call: &Call, rows: &[T], next: Option<Cursor>) -> Response {
    let mut response = json(StatusCode::OK, &rows);
    if let Some(next) = next {
        let others: Vec<String> = form_pairs(call.uri.query().unwrap_or(""))
            .filter(|(key, _)| key != "cursor")
            .map(|(key, value)| format!("{}={}", encode(&key), encode(&value)))
            .chain([format!("cursor={}", write_cursor(call.uri.path(), next))])
            .collect();
        let link = format!("<{}?{}>; rel=\"next\"", call.uri.path(), others.join("&"));
        if let Ok(value) = HeaderValue::from_str(&link) {
            response.headers_mut().insert(LINK, value);
        }
    }
    response
}

fn encode(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(byte);
    text.bytes().map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// A page of rows that need a last touch each.
pub fn page_of<T, U: Serialize>(call: &Call, page: Page<T>, show: impl Fn(T) -> U) -> Response {
    let rows: Vec<U> = page.rows.into_iter().map(show).collect();
    self::page(call, &rows, page.next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back_and_foreign_ones_do_not() {
        let cursor = Cursor {
            created_at: DateTime::from_timestamp_micros(1_234_567).expect("a time"),
            id: Uuid::max(),
        };
        let ours = write_cursor("/api/agents", cursor);
        assert_eq!(read_cursor("/api/agents", &ours), Some(cursor));
        assert_eq!(read_cursor("/api/keys", &ours), None);
        for bad in ["", "AAAA", "%%%", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
            assert_eq!(read_cursor("/api/agents", bad), None, "{bad}");
        }
    }
}
