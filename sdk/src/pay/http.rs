//! Requests to sellers: bounded, never redirected, never to a private address unless that is allowed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Url, redirect};

use super::address::{is_public, literal, origin_of};
use super::record::Request;
use crate::x402::headers;

/// Largest request and answer, bytes.
pub const MAX_BODY: usize = 4 * 1024 * 1024;
/// Most headers of a request, and bytes of them.
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one request may take: what is bought may be slow work.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Set by the connection, by the payment, or for proxies: never by a caller.
const WITHHELD: &[&str] = &[
    "host",
    "content-length",
    "connection",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "keep-alive",
    "proxy-connection",
    "proxy-authorization",
    headers::PAYMENT_SIGNATURE,
    headers::X_PAYMENT,
];

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case; texts that are none are left out.
    pub headers: Vec<(String, String)>,
    /// At most [`MAX_BODY`].
    pub body: Vec<u8>,
}

impl HttpAnswer {
    /// The first header of a name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// How long the seller asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        self.header("retry-after")?.trim().parse().ok().map(Duration::from_secs)
    }
}

/// Why a request cannot be made, or has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The request itself is none.
    #[error("the request's {0}")]
    Invalid(String),
    /// The address is a private one.
    #[error("{0} is not on the public internet; `[pay] allow_private_addresses` allows it")]
    Private(String),
    /// Plain http across a network.
    #[error("payments need https")]
    PlainHttp,
    /// Nothing was sent.
    #[error("no connection: {0}")]
    NotSent(String),
    /// It may have been sent; no answer came.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The answer is too long.
    #[error("the answer is longer than {MAX_BODY} bytes")]
    TooLong,
}

/// What a request carries beyond its own headers.
pub type Extra = Vec<(String, String)>;

/// Two clients: one that connects to public addresses only, one for where all are allowed.
#[derive(Debug, Clone)]
pub struct Http {
    guarded: reqwest::Client,
    open: reqwest::Client,
    server: String,
    allow_private: bool,
}

impl Http {
    /// Clients; connect at the first request. `server`: the control plane's origin, which may be anywhere.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub fn new(server: String, allow_private: bool) -> Result<Self, HttpError> {
        let build = |builder: reqwest::ClientBuilder| {
            builder.build().map_err(|error| HttpError::Invalid(format!("client: {error}")))
        };
        let guarded = build(builder().dns_resolver(Arc::new(PublicOnly)))?;
        Ok(Self { guarded, open: build(builder())?, server, allow_private })
    }

    /// Sends a request once.
    ///
    /// # Errors
    /// [`HttpError`] saying whether anything may have been sent.
    pub async fn send(&self, request: &Request, extra: &Extra) -> Result<HttpAnswer, HttpError> {
        let url = parse_url(&request.url)?;
        let client = self.client_for(&url)?;
        let method = Method::from_bytes(request.method.as_bytes())
            .map_err(|_| HttpError::Invalid("method".to_owned()))?;
        let mut all = HeaderMap::new();
        for (name, value) in request.headers.iter().chain(extra) {
            let name = HeaderName::from_bytes(name.as_bytes());
            let value = HeaderValue::from_str(value);
            let (Ok(name), Ok(mut value)) = (name, value) else {
                return Err(HttpError::Invalid("headers".to_owned()));
            };
            value.set_sensitive(name == headers::PAYMENT_SIGNATURE || name == headers::X_PAYMENT);
            all.append(name, value);
        }
        let call = client.request(method, url).headers(all).body(request.body.clone());
        let mut response = call.send().await.map_err(failure)?;
        let status = response.status().as_u16();
        let texts = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())));
        let headers = texts.collect();
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failure)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(HttpError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(HttpAnswer { status, headers, body })
    }

    fn client_for(&self, url: &Url) -> Result<&reqwest::Client, HttpError> {
        if self.allow_private || origin_of(url) == self.server {
            let neighbour = literal(url).is_none_or(|address| !is_public(address));
            if url.scheme() == "http" && !neighbour && origin_of(url) != self.server {
                return Err(HttpError::PlainHttp);
            }
            return Ok(&self.open);
        }
        match literal(url) {
            Some(address) if !is_public(address) => Err(HttpError::Private(address.to_string())),
            _ if url.scheme() == "http" => Err(HttpError::PlainHttp),
            _ => Ok(&self.guarded),
        }
    }
}

fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(crate::client::tls())
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .user_agent(concat!("otonix-sdk/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(REQUEST_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(4)
}

/// A URL that may be asked: http or https with a host, no user.
///
/// # Errors
/// [`HttpError::Invalid`].
pub fn parse_url(text: &str) -> Result<Url, HttpError> {
    let invalid = |why: &str| HttpError::Invalid(format!("URL {why}"));
    let mut url = Url::parse(text.trim()).map_err(|_| invalid("cannot be read"))?;
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return Err(invalid("must be http or https with a host"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(invalid("must have no user or password"));
    }
    url.set_fragment(None);
    Ok(url)
}

/// Checks a caller's request and brings it into the form that is stored.
///
/// # Errors
/// [`HttpError::Invalid`] naming the part.
pub fn checked(mut request: Request) -> Result<Request, HttpError> {
    request.url = parse_url(&request.url)?.into();
    request.method.make_ascii_uppercase();
    let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    if !known.contains(&request.method.as_str()) {
        return Err(HttpError::Invalid(format!("method must be one of {}", known.join(", "))));
    }
    if request.body.len() > MAX_BODY {
        return Err(HttpError::Invalid(format!("body must have at most {MAX_BODY} bytes")));
    }
    let bytes: usize = request.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if request.headers.len() > MAX_HEADERS || bytes > MAX_HEADER_BYTES {
        return Err(HttpError::Invalid("headers are too many or too long".to_owned()));
    }
    for (name, value) in &mut request.headers {
        name.make_ascii_lowercase();
        if WITHHELD.contains(&name.as_str()) {
            return Err(HttpError::Invalid(format!("header {name} is not the caller's to set")));
        }
        let fine = HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok();
        if !fine {
            return Err(HttpError::Invalid(format!("header {name} cannot be sent")));
        }
    }
    Ok(request)
}

fn failure(error: reqwest::Error) -> HttpError {
    let sent = !error.is_connect() && !error.is_builder();
    let timeout = error.is_timeout();
    let error = error.without_url();
    let mut why = if timeout { "it took too long".to_owned() } else { error.to_string() };
    let mut source = std::error::Error::source(&error);
    while let Some(inner) = source {
        why = inner.to_string();
        if inner.downcast_ref::<NotPublic>().is_some() {
            return HttpError::Private("the host's address".to_owned());
        }
        source = inner.source();
    }
    if sent { HttpError::NoAnswer(why) } else { HttpError::NotSent(why) }
}

/// The host has no address on the public internet.
#[derive(Debug, thiserror::Error)]
#[error("the host has no address on the public internet")]
struct NotPublic;

/// Resolves names to public addresses only: what a name is checked as is what is connected to.
#[derive(Debug)]
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(NotPublic.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(url: &str) -> Request {
        Request { method: "get".to_owned(), url: url.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    #[test]
    fn a_request_is_brought_into_form_or_refused() {
        let mut request = get(" http://a.example/x#part ");
        request.headers.push(("Accept".to_owned(), "x".to_owned()));
        let request = checked(request).expect("fine");
        assert_eq!((request.url.as_str(), request.method.as_str()), ("http://a.example/x", "GET"));
        assert_eq!(request.headers, [("accept".to_owned(), "x".to_owned())]);
        for bad in ["", "ftp://a.example", "http://user@a.example", "http://", "a.example"] {
            assert!(checked(get(bad)).is_err(), "{bad}");
        }
        for (name, value) in [("X-Payment", "x"), ("HOST", "x"), ("a b", "x"), ("x", "a\r\nb: c")] {
            let mut request = get("https://a.example");
            request.headers.push((name.to_owned(), value.to_owned()));
            assert!(checked(request).is_err(), "{name}");
        }
        let mut request = get("https://a.example");
        request.method = "CONNECT".to_owned();
        assert!(checked(request).is_err());
    }

    #[tokio::test]
    async fn private_addresses_are_refused_unless_allowed_or_the_servers() {
        let http = Http::new("http://127.0.0.1:1".to_owned(), false).expect("a client");
        let error = |url: &str| {
            let (http, request) = (http.clone(), get(url));
            async move { http.send(&request, &Extra::new()).await.expect_err("nothing is there") }
        };
        assert!(matches!(error("http://127.0.0.1:2/").await, HttpError::Private(_)));
        assert!(matches!(error("https://[::ffff:10.0.0.1]/").await, HttpError::Private(_)));
        assert!(matches!(error("https://localhost:2/").await, HttpError::Private(_)));
        assert_eq!(error("http://93.184.216.34/").await, HttpError::PlainHttp);
        // The exact origin of the server may be anywhere.
        assert!(matches!(error("http://127.0.0.1:1/").await, HttpError::NotSent(_)));
        let open = Http::new(String::new(), true).expect("a client");
        let refused = open.send(&get("http://127.0.0.1:1/"), &Extra::new()).await;
        assert!(matches!(refused, Err(HttpError::NotSent(_))));
    }
}
