//! One request and its answer: credentials, idempotency keys, repeats, bounded bodies, errors.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::header::{
    AUTHORIZATION, CONTENT_TYPE, DATE, HeaderMap, HeaderName, HeaderValue, LINK, RETRY_AFTER,
};
use reqwest::{Method, Response, Url, redirect};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ClientError;
use super::retry::RetryPolicy;
use super::server::ServerUrl;
use crate::clock::new_id;
use crate::error::Problem;
use crate::secret::Secret;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer read. A full page of the largest agents is larger; ask for smaller pages then.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Longest error text shown of an answer that is not of the contract.
const MAX_EXCERPT: usize = 200;

const X_API_KEY: HeaderName = HeaderName::from_static("x-api-key");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// As whom to speak.
#[derive(Debug, Clone)]
pub enum Credential {
    /// A key of an owner or of one agent.
    ApiKey(Secret),
    /// The operator's token.
    Operator(Secret),
    /// Nobody.
    Anonymous,
}

/// Where to and as whom.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// The control plane.
    pub server: ServerUrl,
    /// As whom.
    pub credential: Credential,
    /// How often to try.
    pub retry: RetryPolicy,
}

/// A REST client of one control plane; cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    server: ServerUrl,
    retry: RetryPolicy,
    key: Option<Arc<str>>,
}

/// What a method sends.
pub(super) struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    pub query: &'a [(&'static str, String)],
    pub body: Option<Vec<u8>>,
    /// Sent with an idempotency key, so that it may be repeated.
    pub keyed: bool,
}

/// What came back: the body, and where the next page is.
pub(super) struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
    pub next: Option<String>,
}

impl Client {
    /// A client; connects at the first request.
    ///
    /// # Errors
    /// [`ClientError::Unsendable`] when the credential cannot be sent.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls())
            .redirect(redirect::Policy::none())
            .default_headers(headers(&config.credential)?)
            .user_agent(concat!("otonix-sdk/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(4);
        if config.server.is_loopback() {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|_| ClientError::Unsendable("credential"))?;
        Ok(Self { http, server: config.server, retry: config.retry, key: None })
    }

    /// The server it speaks to.
    pub const fn server(&self) -> &ServerUrl {
        &self.server
    }

    /// The same client with another way to retry.
    #[must_use]
    pub fn with_retry(&self, retry: RetryPolicy) -> Self {
        Self { retry, ..self.clone() }
    }

    /// The same client for one POST that may be sent again later, even after a restart: it carries this
    /// `Idempotency-Key` in place of a random one.
    #[must_use]
    pub fn once(&self, key: &str) -> Self {
        Self { key: Some(Arc::from(key)), ..self.clone() }
    }

    /// What the server's clock says, in whole seconds; `None` when its answer has no date.
    ///
    /// # Errors
    /// [`ClientError::NoAnswer`] when none came.
    pub async fn server_time(&self) -> Result<Option<DateTime<Utc>>, ClientError> {
        let url = self.server.url("/healthz")?;
        let no_answer = |source: reqwest::Error| ClientError::NoAnswer {
            sent: !source.is_connect() && !source.is_builder(),
            source: source.without_url(),
        };
        let response = self.http.get(url).send().await.map_err(no_answer)?;
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        Ok(date.and_then(|date| DateTime::parse_from_rfc2822(date).ok()).map(|date| date.to_utc()))
    }

    /// Sends a call, again when that is safe and of use, and returns its 2xx answer.
    pub(super) async fn send(&self, call: Call<'_>) -> Result<Answer, ClientError> {
        let mut url = self.server.url(call.path)?;
        if !call.query.is_empty() {
            url.query_pairs_mut().extend_pairs(call.query);
        }
        let key = call.keyed.then(|| self.key.clone().unwrap_or_else(|| Arc::from(new_id().to_string())));
        let repeatable = call.method == Method::GET || key.is_some();
        let mut attempt = 0;
        loop {
            let error = match self.try_once(&call, &url, key.as_deref()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let wait = self.retry.wait(attempt, error.retry_after());
            let Some(wait) = wait.filter(|_| repeatable && error.is_transient()) else {
                return Err(error);
            };
            tracing::debug!(path = call.path, attempt, error = %error, "sending the request again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    async fn try_once(&self, call: &Call<'_>, url: &Url, key: Option<&str>) -> Result<Answer, ClientError> {
        let mut request = self.http.request(call.method.clone(), url.clone());
        if let Some(key) = key {
            let key = HeaderValue::from_str(key).map_err(|_| ClientError::Unsendable("idempotency key"))?;
            request = request.header(IDEMPOTENCY_KEY, key);
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.clone());
        }
        let no_answer = |source: reqwest::Error| ClientError::NoAnswer {
            sent: !source.is_connect() && !source.is_builder(),
            source: source.without_url(),
        };
        let mut response = request.send().await.map_err(no_answer)?;
        let status = response.status();
        let retry_after = retry_after(&response);
        let next = next_cursor(&response, url);
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(no_answer)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                let why = format!("is larger than {MAX_ANSWER} bytes");
                return Err(ClientError::BadAnswer { status: status.as_u16(), why });
            }
            body.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(Answer { status: status.as_u16(), body, next });
        }
        Err(refusal(status.as_u16(), &body, retry_after))
    }
}

impl Answer {
    /// Reads the body.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|why| ClientError::BadAnswer {
            status: self.status,
            why: format!("is not of the contract: {why}"),
        })
    }
}

/// A body as JSON.
pub(super) fn encode<T: Serialize>(body: &T) -> Result<Option<Vec<u8>>, ClientError> {
    serde_json::to_vec(body).map(Some).map_err(|_| ClientError::Unsendable("body"))
}

fn refusal(status: u16, body: &[u8], retry_after: Option<Duration>) -> ClientError {
    let mut problem = match serde_json::from_slice::<Problem>(body) {
        Ok(problem) if !problem.code.is_empty() => Box::new(problem),
        _ => {
            let excerpt: String = String::from_utf8_lossy(body).chars().take(MAX_EXCERPT).collect();
            // What a proxy in between says about an overload is still an overload.
            return match retry_after {
                Some(_) => ClientError::Problem { problem: Box::new(plain(status, excerpt)), retry_after },
                None => ClientError::BadAnswer { status, why: format!("is no problem body: {excerpt}") },
            };
        }
    };
    problem.status = status;
    ClientError::Problem { problem, retry_after }
}

fn plain(status: u16, detail: String) -> Problem {
    Problem {
        kind: "about:blank".into(),
        title: "".into(),
        status,
        code: "".into(),
        error: detail.clone(),
        detail,
        request_id: String::new(),
    }
}

fn headers(credential: &Credential) -> Result<HeaderMap, ClientError> {
    let (name, text) = match credential {
        Credential::ApiKey(key) => (X_API_KEY, key.clone()),
        Credential::Operator(token) => (AUTHORIZATION, Secret::new(format!("Bearer {}", token.expose()))),
        Credential::Anonymous => return Ok(HeaderMap::new()),
    };
    let mut value =
        HeaderValue::from_str(text.expose()).map_err(|_| ClientError::Unsendable("credential"))?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(name, value)]))
}

/// Roots that are part of the program: a machine without ca-certificates works, and its store cannot be poisoned.
pub fn tls() -> rustls::ClientConfig {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let mut config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring serves the default versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

fn retry_after(response: &Response) -> Option<Duration> {
    let text = response.headers().get(RETRY_AFTER)?.to_str().ok()?;
    text.trim().parse().ok().map(Duration::from_secs)
}

/// The cursor in `Link: <…>; rel="next"`.
fn next_cursor(response: &Response, base: &Url) -> Option<String> {
    let links = response.headers().get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    links.flat_map(|value| value.split(',')).find_map(|link| {
        let (target, params) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = params.split(';').any(|param| matches!(param.trim(), "rel=\"next\"" | "rel=next"));
        let url = base.join(target).ok().filter(|_| is_next)?;
        url.query_pairs().find(|(name, _)| name == "cursor").map(|(_, cursor)| cursor.into_owned())
    })
}
