//! One request, read and checked: who is asking, what body, which idempotency key.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::response::Response;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, Method, Uri};
use otonix_sdk::error::ErrorCode;
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::auth::{Caller, Principal, hash_secret, same_hash};
use crate::error::Error;
use crate::net::{BodyError, Peer, collect};
use crate::store::idempotency::{Idem, StoredAnswer};
use crate::store::writer::IdemFor;

/// Bytes of an ordinary body.
const MAX_BODY: usize = 1024 * 1024;
/// Bytes of a body of events.
const MAX_EVENTS_BODY: usize = 4 * 1024 * 1024;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(15);

/// One request.
pub struct Call {
    pub app: Arc<App>,
    pub caller: Caller,
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// The other end of the connection.
    pub peer: Peer,
    idem_key: Option<String>,
}

impl FromRequest<Arc<App>> for Call {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Response> {
        use axum::response::IntoResponse as _;
        read(request, app).await.map_err(Error::into_response)
    }
}

async fn read(request: Request, app: &Arc<App>) -> Result<Call, Error> {
    let (parts, body) = request.into_parts();
    let peer = *parts.extensions.get::<Peer>().ok_or_else(|| Error::internal("a request without a peer"))?;
    let ip = client_ip(app, &parts.headers, peer.addr.ip());
    let caller = identify(app, &parts.headers, parts.uri.path(), ip).await?;
    let idem_key = if parts.method == Method::POST { idem_key(&parts.headers)? } else { None };
    let body = if parts.method == Method::GET || parts.method == Method::HEAD {
        Bytes::new()
    } else {
        let most = if parts.uri.path().ends_with("/events") { MAX_EVENTS_BODY } else { MAX_BODY };
        collect(body, most, BODY_TIME).await.map_err(|error| unreadable(error, most))?
    };
    Ok(Call {
        app: Arc::clone(app),
        caller,
        method: parts.method,
        uri: parts.uri,
        headers: parts.headers,
        body,
        peer,
        idem_key,
    })
}

fn unreadable(error: BodyError, most: usize) -> Error {
    let (code, detail) = match error {
        BodyError::TooLarge => (ErrorCode::PayloadTooLarge, format!("the body has more than {most} bytes")),
        BodyError::TooSlow => (ErrorCode::RequestTimeout, "the body did not arrive in time".to_owned()),
        BodyError::Broken => (ErrorCode::BadRequest, "the body ended before its end".to_owned()),
    };
    Error::Malformed { code, detail }
}

/// The address of the caller: the connection's, or what a trusted proxy says.
fn client_ip(app: &App, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
    let trusted = &app.settings.trusted_proxies;
    if !trusted.contains(&peer) {
        return peer;
    }
    // The last address that is not a trusted proxy's own is the client's.
    let named = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let chain: Vec<IpAddr> =
        named.flat_map(|value| value.split(',')).filter_map(|part| part.trim().parse().ok()).collect();
    chain.into_iter().rev().find(|ip| !trusted.contains(ip)).unwrap_or(peer)
}

/// Routes that everyone may ask, whatever they present.
fn is_public(path: &str) -> bool {
    matches!(
        path,
        "/healthz"
            | "/readyz"
            | "/api/x402/config"
            | "/api/vercel/status"
            | "/api/vercel/payment-config"
            | "/api/cherry/status"
            | "/api/autonomic/status"
    )
}

async fn identify(app: &App, headers: &HeaderMap, path: &str, ip: IpAddr) -> Result<Caller, Error> {
    let mode = app.settings.mode;
    let anonymous = Caller { principal: Principal::Anonymous, mode, ip };
    if is_public(path) {
        return Ok(anonymous);
    }
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer =
        bearer.and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
    let token = headers.get("x-dashboard-token").and_then(|value| value.to_str().ok()).or(bearer);
    if let Some(token) = token
        && same_hash(&hash_secret(token.trim()), &app.operator_hash)
    {
        return Ok(Caller { principal: Principal::Operator, mode, ip });
    }
    // No key opens the metrics, so a wrong one does not close them to a direct local caller.
    if path == "/metrics" {
        return Ok(anonymous);
    }
    if let Some(value) = headers.get("x-api-key") {
        let unknown =
            Error::Unauthenticated { code: ErrorCode::UnknownKey, detail: "this API key is not known" };
        let presented = value.to_str().map_err(|_| unknown)?;
        let key = app.shared.keys.lookup(&app.db, presented.trim(), ip).await?;
        return Ok(Caller { principal: Principal::Key(key), mode, ip });
    }
    if token.is_some() {
        app.rate_limits.anonymous(ip)?;
        return Err(Error::Unauthenticated {
            code: ErrorCode::OperatorRequired,
            detail: "this operator token is not valid",
        });
    }
    app.rate_limits.anonymous(ip)?;
    Ok(anonymous)
}

fn idem_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=128).contains(&key.len()));
    match key {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(Error::invalid("Idempotency-Key", "must have 1 to 128 printable ASCII characters")),
    }
}

impl Call {
    /// The JSON object in the body.
    ///
    /// # Errors
    /// 415, 400 naming the field.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        self.check_type()?;
        parse(&self.body)
    }

    /// The JSON object in the body, or none of its fields when there is no body.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn json_if_any<T: DeserializeOwned + Default>(&self) -> Result<T, Error> {
        if self.body.is_empty() { Ok(T::default()) } else { self.json() }
    }

    fn check_type(&self) -> Result<(), Error> {
        let Some(kind) = self.headers.get(CONTENT_TYPE) else { return Ok(()) };
        let essence = kind.to_str().unwrap_or("").split(';').next().unwrap_or("").trim().to_ascii_lowercase();
        let is_json = essence == "application/json"
            || (essence.starts_with("application/") && essence.ends_with("+json"));
        if is_json {
            return Ok(());
        }
        Err(Error::Malformed {
            code: ErrorCode::UnsupportedMediaType,
            detail: "the body must be application/json".to_owned(),
        })
    }

    /// The request's name for repeats of it, if it has a key.
    pub fn idem(&self) -> Option<Idem> {
        let key = self.idem_key.as_deref()?;
        let target = self.uri.path_and_query().map_or("", |target| target.as_str());
        Some(Idem::new(&self.caller.name(), self.method.as_str(), target, key, &self.body))
    }

    /// How the answer to this request is kept, if it has a key.
    pub fn keep<T: 'static>(
        &self,
        encode: impl FnOnce(&T) -> StoredAnswer + Send + 'static,
    ) -> Option<IdemFor<T>> {
        self.idem().map(|idem| IdemFor {
            idem,
            encode: Box::new(move |done| StoredAnswer { fingerprint: idem.fingerprint, ..encode(done) }),
        })
    }

    /// A parameter of the query, decoded.
    pub fn query(&self, name: &str) -> Option<String> {
        let query = self.uri.query()?;
        form_pairs(query).find(|(key, _)| key == name).map(|(_, value)| value)
    }

    /// Whether the request came straight from this machine, through no proxy.
    pub fn is_direct_local(&self) -> bool {
        self.peer.addr.ip().to_canonical().is_loopback() && !is_proxied(&self.headers)
    }
}

/// Whether a proxy has left its mark.
pub fn is_proxied(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| {
        let name = name.as_str();
        name == "forwarded" || name == "via" || name.starts_with("x-forwarded-")
    })
}

/// The pairs of a query, percent-decoded; what is not UTF-8 is replaced.
pub fn form_pairs(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(key), decode(value))
    })
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = bytes.get(at + 1..at + 3).and_then(|pair| hex::decode(pair).ok());
        match (byte, escaped) {
            (b'%', Some(decoded)) => {
                out.extend(decoded);
                at += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                at += 1;
            }
            (byte, _) => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Levels that a body may nest. Fields that nobody reads count too: they are skipped, but not for ever.
const MAX_DEPTH: usize = 128;

fn is_too_deep(body: &[u8]) -> bool {
    let mut depth = 0_usize;
    let mut in_text = false;
    let mut bytes = body.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => in_text = !in_text,
            b'\\' if in_text => _ = bytes.next(),
            b'[' | b'{' if !in_text => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return true;
                }
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

/// Reads a JSON object, naming the field that is wrong.
///
/// # Errors
/// 400.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    let invalid = |detail: String| Error::Malformed { code: ErrorCode::InvalidJson, detail };
    let first = body.iter().find(|byte| !byte.is_ascii_whitespace());
    match first {
        None => return Err(invalid("a JSON object is needed".to_owned())),
        Some(b'{') => {}
        Some(_) => {
            let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
            let what = if is_json { "the body must be a JSON object" } else { "the body is not JSON" };
            return Err(invalid(what.to_owned()));
        }
    }
    if is_too_deep(body) {
        return Err(invalid(format!("the body nests more than {MAX_DEPTH} levels")));
    }
    let mut reader = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let field = error.path().to_string();
        let why = error.into_inner();
        if why.is_data() {
            field_error(&field, &why.to_string())
        } else {
            invalid(format!("the body is not JSON: {why}"))
        }
    })?;
    reader.end().map_err(|why| invalid(format!("the body is not JSON: {why}")))?;
    Ok(value)
}

fn field_error(path: &str, why: &str) -> Error {
    // serde ends its messages with the position in the text.
    let why = why.split(" at line ").next().unwrap_or(why);
    let missing = why.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    if let Some(field) = why.strip_prefix("duplicate field `").and_then(|rest| rest.split('`').next()) {
        return Error::invalid(field, "is there twice");
    }
    match missing {
        Some(field) if path == "." => Error::invalid(field, "is needed"),
        Some(field) => Error::invalid(&format!("{path}.{field}"), "is needed"),
        None => Error::invalid(path, why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use otonix_sdk::api::agents::Grant;

    #[test]
    fn a_wrong_field_is_named() {
        for (body, field) in [
            (r#"{"reason": "x"}"#, "amount"),
            (r#"{"amount": 0, "reason": "x"}"#, "amount"),
            (r#"{"amount": 1e400, "reason": "x"}"#, "amount"),
            (r#"{"amount": 1, "reason": 5}"#, "reason"),
            (r#"{"amount": 1, "reason": "x", "amount": 2}"#, "amount"),
        ] {
            match parse::<Grant>(body.as_bytes()) {
                Err(Error::Invalid { field: named, .. }) => assert_eq!(named, field, "{body}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        let deep = format!("{{\"metadata\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
        for body in ["", "[]", "[1,\"x\"]", "nonsense", "{", "{}}", "\u{0}", &deep] {
            assert!(parse::<Grant>(body.as_bytes()).is_err(), "{body:.20}");
        }
        assert!(parse::<Grant>(b"{\"amount\": 1, \"reason\": \"\xff\"}").is_err());
    }

    #[test]
    fn depth_is_counted_outside_of_texts() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(!is_too_deep(nested(MAX_DEPTH).as_bytes()));
        assert!(is_too_deep(nested(MAX_DEPTH + 1).as_bytes()));
        let text = format!(r#"{{"a":"{}\"{}"}}"#, "[".repeat(500), "{".repeat(500));
        assert!(!is_too_deep(text.as_bytes()));
        assert!(!is_too_deep("[]".repeat(500).as_bytes()));
    }

    #[test]
    fn queries_are_decoded() {
        let pairs: Vec<_> = form_pairs("a=1&b=x%20y+z&c&d=%zz").collect();
        let expected = [("a", "1"), ("b", "x y z"), ("c", ""), ("d", "%zz")];
        assert_eq!(pairs, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}
