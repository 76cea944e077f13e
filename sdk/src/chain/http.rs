//! JSON over HTTP to a service that is not trusted: bounded in time and size, no redirects.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Url, redirect};

/// How long a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// The text is no address of a service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be an http or https URL with a host")]
pub struct BadUrl;

/// Why no answer came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// It could not be sent: nothing has reached the service.
    #[error("cannot connect")]
    NotSent,
    /// Sent, perhaps; no whole answer came.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The answer was longer than it may be.
    #[error("the answer is too long")]
    TooLong,
}

/// An answer, whatever its status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posted {
    /// The HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Posts JSON to one address; cheap to clone.
#[derive(Debug, Clone)]
pub struct JsonPost {
    http: reqwest::Client,
    url: Arc<Url>,
    most: usize,
}

impl JsonPost {
    /// A client of one address that reads at most `most` bytes of an answer, and waits `timeout` for it.
    ///
    /// # Errors
    /// [`BadUrl`] when the text is no http or https URL.
    pub fn new(url: &str, timeout: Duration, most: usize) -> Result<Self, BadUrl> {
        let url: Url = url.trim().parse().map_err(|_| BadUrl)?;
        let host = url.host_str().unwrap_or("");
        if !matches!(url.scheme(), "http" | "https") || host.is_empty() {
            return Err(BadUrl);
        }
        let is_local = host == "localhost"
            || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(crate::client::tls())
            .redirect(redirect::Policy::none())
            .user_agent(concat!("otonix-sdk/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
            .tcp_nodelay(true)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(64);
        if is_local {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|_| BadUrl)?;
        Ok(Self { http, url: Arc::new(url), most })
    }

    /// The host, for messages: the rest of the address may hold a key.
    pub fn host(&self) -> &str {
        self.url.host_str().unwrap_or("")
    }

    /// Posts a body and reads the answer.
    ///
    /// # Errors
    /// [`PostError`] saying whether anything may have arrived.
    pub async fn post(&self, body: Vec<u8>) -> Result<Posted, PostError> {
        let request = self
            .http
            .post(self.url.as_ref().clone())
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "application/json")
            .body(body);
        let mut response = request.send().await.map_err(|error| {
            let sent = !error.is_connect() && !error.is_builder();
            if sent { PostError::NoAnswer(why(error)) } else { PostError::NotSent }
        })?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|error| PostError::NoAnswer(why(error)))? {
            if body.len() + part.len() > self.most {
                return Err(PostError::TooLong);
            }
            body.extend_from_slice(&part);
        }
        Ok(Posted { status, body })
    }
}

/// What went wrong without the address, which may hold a key.
fn why(error: reqwest::Error) -> String {
    if error.is_timeout() { "it took too long".to_owned() } else { error.without_url().to_string() }
}
