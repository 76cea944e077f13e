//! One request, read and checked: who is asking, what body, which idempotency key.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::response::Response;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Uri};
use otonix_sdk::body::{self, Unreadable};
use otonix_sdk::error::ErrorCode;
use serde::de::DeserializeOwned;

use crate::app::App;
use crate::auth::{Caller, Principal, hash_secret, same_hash};
use crate::error::Error;
use crate::net::{BodyError, Peer, collect};
use crate::rest::front::Number;
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
    number: Number,
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
    let number =
        *parts.extensions.get::<Number>().ok_or_else(|| Error::internal("a request without a number"))?;
    let ip = client_ip(app, &parts.headers, peer.addr.ip());
    let caller = identify(app, &parts.headers, parts.uri.path(), ip).await?;
    let idem_key = if parts.method == Method::POST { idem_key(&parts.headers)? } else { None };
    let body = if parts.method == Method::GET || parts.method == Method::HEAD {
        Bytes::new()
    } else {
        check_encoding(&parts.headers)?;
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
        number,
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
    if let Some(value) = only(headers, "x-api-key", "X-API-Key")? {
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

/// A header that must not contradict itself.
fn only<'h>(headers: &'h HeaderMap, name: &str, shown: &str) -> Result<Option<&'h HeaderValue>, Error> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        let detail = format!("the header {shown} is there twice");
        return Err(Error::Malformed { code: ErrorCode::BadRequest, detail });
    }
    Ok(first)
}

/// Bodies are taken as they are, never unpacked.
fn check_encoding(headers: &HeaderMap) -> Result<(), Error> {
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if headers.get_all(CONTENT_ENCODING).iter().all(plain) {
        return Ok(());
    }
    let detail = "the body must come without Content-Encoding".to_owned();
    Err(Error::Malformed { code: ErrorCode::UnsupportedMediaType, detail })
}

fn idem_key(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let Some(value) = only(headers, "idempotency-key", "Idempotency-Key")? else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=128).contains(&key.len()));
    match key {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(Error::invalid("Idempotency-Key", "must have 1 to 128 printable ASCII characters")),
    }
}

impl Call {
    /// The id that an error of this request is shown under.
    pub fn request_id(&self) -> String {
        self.number.request_id(&self.headers)
    }

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
    ///
    /// # Errors
    /// 400 when it is there twice.
    pub fn query(&self, name: &str) -> Result<Option<String>, Error> {
        let mut found =
            form_pairs(self.uri.query().unwrap_or("")).filter(|(key, _)| key == name).map(|(_, value)| value);
        let first = found.next();
        if found.next().is_some() {
            return Err(bad_query(name, "is there twice"));
        }
        Ok(first)
    }

    /// Whether the request came straight from this machine, through no proxy.
    pub fn is_direct_local(&self) -> bool {
        self.peer.addr.ip().to_canonical().is_loopback() && !is_proxied(&self.headers)
    }
}

/// A parameter of the query is wrong.
pub fn bad_query(name: &str, why: &str) -> Error {
    Error::Invalid { code: ErrorCode::InvalidQuery, field: name.to_owned(), why: why.to_owned() }
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

/// Reads a JSON object, naming the field that is wrong.
///
/// # Errors
/// 400.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    body::read(body).map_err(|why| match why {
        Unreadable::NoObject(detail) => Error::Malformed { code: ErrorCode::InvalidJson, detail },
        Unreadable::Field { field, why } => Error::invalid(&field, why),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let pairs: Vec<_> = form_pairs("a=1&b=x%20y+z&c&d=%zz").collect();
        let expected = [("a", "1"), ("b", "x y z"), ("c", ""), ("d", "%zz")];
        assert_eq!(pairs, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
    }
}
