//! How vendors are spoken to: bounded in time, size and rate; reads are repeated, writes never; no redirect is
//! followed, so that a token goes to the configured address and nowhere else.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http_body::{Body, Frame, SizeHint};
use otonix_sdk::secret::Secret;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, Response, Url, redirect};

use crate::upstream::deadline::Deadline;
use crate::upstream::providers::{Refusal, VendorError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(15);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a read is tried.
const READ_ATTEMPTS: u32 = 3;
/// The first pause between two tries of a read; each next one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// A vendor that wants a longer pause is not asked again within the same read.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A write is given up this long before nobody expects it any more.
const MARGIN: Duration = Duration::from_secs(1);
/// Largest answer read.
const MAX_ANSWER: usize = 8 * 1024 * 1024;
/// Longest text of a vendor that is passed on.
const MAX_WORDS: usize = 200;

/// What was asked of a vendor, counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests sent, repeats too.
    pub requests: AtomicU64,
    /// Answers that said no, or that were none.
    pub failures: AtomicU64,
    /// Answers that said: too often.
    pub limited: AtomicU64,
    /// Writes whose outcome was not known.
    pub unknown: AtomicU64,
    /// Whether the last answer was one: 0 nothing was asked yet, 1 no, 2 yes.
    up: AtomicU8,
}

impl Counts {
    /// Whether the last answer was one; `None` before the first.
    pub fn is_up(&self) -> Option<bool> {
        match self.up.load(Ordering::Relaxed) {
            0 => None,
            up => Some(up == 2),
        }
    }

    fn heard(&self, answered: bool) {
        self.up.store(if answered { 2 } else { 1 }, Ordering::Relaxed);
    }
}

/// One request.
pub struct Ask<'a> {
    pub method: Method,
    /// Segments of the path; each comes from a type that cannot leave it.
    pub path: &'a [&'a str],
    pub query: &'a [(&'a str, String)],
    pub body: Option<Vec<u8>>,
    /// What must not be repeated to anyone, should the vendor echo it.
    pub secrets: &'a [&'a Secret],
}

impl<'a> Ask<'a> {
    /// A read.
    pub fn get(path: &'a [&'a str]) -> Self {
        Self { method: Method::GET, path, query: &[], body: None, secrets: &[] }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub body: Vec<u8>,
    /// How many rows the whole list has, when it says so.
    pub total: Option<usize>,
    retry_after: Option<Duration>,
}

/// An answer that said no.
#[derive(Debug)]
pub struct Refused<'a> {
    pub status: u16,
    pub body: &'a [u8],
}

/// How a vendor says no.
pub trait Tongue: Send + Sync {
    /// The reason and the vendor's words; `None` when the answer is not the vendor's.
    fn reason(&self, refused: &Refused<'_>) -> Option<(Refusal, String)>;

    /// How long the vendor wants to be left alone, when it says so in the body.
    fn pause(&self, body: &[u8]) -> Option<Duration>;
}

/// How often a vendor is asked.
struct Pace {
    /// Everybody's part.
    common: Arc<DefaultDirectRateLimiter>,
    /// A part for these requests alone.
    own: Option<DefaultDirectRateLimiter>,
}

impl Pace {
    fn new(common: Quota) -> Self {
        Self { common: Arc::new(RateLimiter::direct(common)), own: None }
    }

    fn with_share(&self, share: Quota) -> Self {
        Self { common: Arc::clone(&self.common), own: Some(RateLimiter::direct(share)) }
    }

    /// Takes a turn, of its own share first; or tells how long to wait for one.
    fn take(&self) -> Result<(), Duration> {
        let now = DefaultClock::default().now();
        let wait = |limiter: &DefaultDirectRateLimiter| {
            limiter.check().map_err(|not_yet| not_yet.wait_time_from(now))
        };
        let Some(Err(own)) = self.own.as_ref().map(wait) else {
            return if self.own.is_some() { Ok(()) } else { wait(&self.common) };
        };
        wait(&self.common).map_err(|common| common.min(own))
    }
}

/// One vendor.
pub struct Endpoint {
    name: &'static str,
    base: Url,
    token: Secret,
    /// On every call.
    query: Option<(&'static str, String)>,
    reads: reqwest::Client,
    /// Without kept connections: on a fresh one it is plain whether anything was sent.
    writes: reqwest::Client,
    pace: Pace,
    tongue: Arc<dyn Tongue>,
    pub counts: Arc<Counts>,
}

/// The text is no address of a vendor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be an https URL, or http on this machine")]
pub struct BadVendorUrl;

/// Reads a vendor's address; plain http, which shows the token, is for this machine only.
///
/// # Errors
/// [`BadVendorUrl`].
pub fn vendor_url(text: &str) -> Result<Url, BadVendorUrl> {
    let url: Url = text.trim().parse().map_err(|_| BadVendorUrl)?;
    let host = url.host_str().ok_or(BadVendorUrl)?;
    let is_local = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let is_plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
    match url.scheme() {
        "https" if is_plain => Ok(url),
        "http" if is_plain && is_local => Ok(url),
        _ => Err(BadVendorUrl),
    }
}

fn client(is_local: bool) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(otonix_sdk::client::tls())
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .user_agent(concat!("otonix-control-plane/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true);
    if is_local { builder.no_proxy() } else { builder }
}

impl Endpoint {
    /// A vendor at an address, asked at most so often.
    ///
    /// # Errors
    /// [`BadVendorUrl`] when the address is none.
    pub fn new(
        name: &'static str,
        base: Url,
        token: Secret,
        pace: Quota,
        tongue: impl Tongue + 'static,
    ) -> Result<Self, BadVendorUrl> {
        let is_local = base.scheme() == "http";
        let reads = client(is_local).pool_idle_timeout(IDLE_TIMEOUT).build().map_err(|_| BadVendorUrl)?;
        let writes = client(is_local).pool_max_idle_per_host(0).http1_only();
        let writes = writes.build().map_err(|_| BadVendorUrl)?;
        Ok(Self {
            name,
            base,
            token,
            query: None,
            reads,
            writes,
            pace: Pace::new(pace),
            tongue: Arc::new(tongue),
            counts: Arc::default(),
        })
    }

    /// The same vendor for one purpose, which has a share of the pace that nothing else can use up.
    #[must_use]
    pub fn with_share(&self, share: Quota) -> Self {
        Self {
            name: self.name,
            base: self.base.clone(),
            token: self.token.clone(),
            query: self.query.clone(),
            reads: self.reads.clone(),
            writes: self.writes.clone(),
            pace: self.pace.with_share(share),
            tongue: Arc::clone(&self.tongue),
            counts: Arc::clone(&self.counts),
        }
    }

    /// With a parameter on every call.
    #[must_use]
    pub fn with_query(mut self, name: &'static str, value: Option<String>) -> Self {
        self.query = value.map(|value| (name, value));
        self
    }

    fn url(&self, ask: &Ask<'_>) -> Result<Url, VendorError> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => _ = segments.pop_if_empty().extend(ask.path),
            Err(()) => return Err(VendorError::not_done(Refusal::Other, "the vendor's address has no path")),
        }
        let own = self.query.as_ref().map(|(name, value)| (*name, value));
        let pairs = ask.query.iter().map(|(name, value)| (*name, value)).chain(own);
        for (name, value) in pairs {
            url.query_pairs_mut().append_pair(name, value);
        }
        Ok(url)
    }

    /// Waits for its turn; `false` when that would be too late.
    async fn turn(&self, until: Option<Deadline>) -> bool {
        loop {
            let Err(wait) = self.pace.take() else { return true };
            let left = until.map_or(READ_TIMEOUT, |until| until.remaining().unwrap_or_default());
            if wait > left {
                return false;
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Reads something, with a few tries.
    ///
    /// # Errors
    /// [`VendorError::NotDone`].
    pub async fn read(&self, ask: &Ask<'_>) -> Result<Answer, VendorError> {
        let url = self.url(ask)?;
        let mut pause = FIRST_PAUSE;
        let mut attempt = 0;
        loop {
            attempt += 1;
            if !self.turn(None).await {
                return Err(VendorError::not_done(Refusal::RateLimited, "too much is asked of the vendor"));
            }
            self.counts.requests.fetch_add(1, Ordering::Relaxed);
            let request = self.reads.request(ask.method.clone(), url.clone()).timeout(READ_TIMEOUT);
            let request = match &ask.body {
                Some(body) => request.header(CONTENT_TYPE, "application/json").body(body.clone()),
                None => request,
            };
            let sent =
                request.bearer_auth(self.token.expose()).header(ACCEPT, "application/json").send().await;
            self.counts.heard(sent.as_ref().is_ok_and(|answer| answer.status().as_u16() < 500));
            let failed = match sent {
                Ok(response) => match take(response).await {
                    Ok((200..=299, answer)) => return Ok(answer),
                    Ok((status, answer)) => self.refused(status, &answer, ask),
                    Err(why) => self.away(why),
                },
                Err(why) => self.away(plain(why)),
            };
            self.counts.failures.fetch_add(1, Ordering::Relaxed);
            let VendorError::NotDone { reason, retry_after, .. } = &failed else { return Err(failed) };
            let wanted = retry_after.unwrap_or(pause);
            if attempt >= READ_ATTEMPTS || !reason.passes() || wanted > LONGEST_PAUSE {
                return Err(failed);
            }
            tokio::time::sleep(wanted.max(pause)).await;
            pause *= 2;
        }
    }

    fn away(&self, why: String) -> VendorError {
        VendorError::not_done(Refusal::Unavailable, format!("{} cannot be asked: {why}", self.name))
    }

    /// What a status other than success means when nothing can have been done.
    fn refused(&self, status: u16, answer: &Answer, ask: &Ask<'_>) -> VendorError {
        let said = self.tongue.reason(&Refused { status, body: &answer.body });
        let (own_reason, words) = said.unwrap_or((Refusal::Other, String::new()));
        let reason = match status {
            429 => Refusal::RateLimited,
            401 | 403 => Refusal::Unauthorised,
            300..=399 | 408 | 425 | 500.. => Refusal::Unavailable,
            _ => own_reason,
        };
        if reason == Refusal::RateLimited {
            self.counts.limited.fetch_add(1, Ordering::Relaxed);
        }
        let retry_after = answer.retry_after.or_else(|| self.tongue.pause(&answer.body));
        let words = self.clean(&words, ask.secrets);
        let detail = match (reason, words.is_empty()) {
            (Refusal::Unauthorised, _) => {
                format!("{} does not take this server's token for this ({status})", self.name)
            }
            (_, true) => format!("{} answered with {status}", self.name),
            (_, false) => format!("{} answered with {status}: {words}", self.name),
        };
        VendorError::NotDone { reason, retry_after, detail }
    }

    /// A vendor's words without secrets, control characters and length.
    fn clean(&self, words: &str, secrets: &[&Secret]) -> String {
        let mut words = words.replace(self.token.expose(), "…");
        for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
            words = words.replace(secret.expose(), "…");
        }
        words.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect()
    }

    /// Writes something, once, and not after its time.
    ///
    /// # Errors
    /// [`VendorError`] saying whether it may have been done.
    pub async fn write(&self, ask: &Ask<'_>, until: Deadline) -> Result<Answer, VendorError> {
        let url = self.url(ask)?;
        let late = || VendorError::not_done(Refusal::Late, "the time to send it had passed");
        if !self.turn(Some(until)).await {
            return Err(late());
        }
        let limit = until.remaining().and_then(|left| left.checked_sub(MARGIN)).ok_or_else(late)?;
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        let gate = Arc::new(Gate::default());
        let has_body = ask.body.is_some();
        let request = self.writes.request(ask.method.clone(), url).timeout(limit);
        let request = match &ask.body {
            Some(body) => {
                let body = Gated { bytes: Some(Bytes::from(body.clone())), until, gate: Arc::clone(&gate) };
                request.header(CONTENT_TYPE, "application/json").body(reqwest::Body::wrap(body))
            }
            None => request,
        };
        let sent = request.bearer_auth(self.token.expose()).header(ACCEPT, "application/json").send().await;
        self.counts.heard(sent.as_ref().is_ok_and(|answer| answer.status().as_u16() < 500));
        let outcome = match sent {
            Ok(response) => match take(response).await {
                Ok((200..=299, answer)) => return Ok(answer),
                Ok((status, answer)) => self.written(status, &answer, ask),
                Err(why) => VendorError::unknown(format!("{}: {why}", self.name)),
            },
            Err(_) if gate.shut.load(Ordering::Relaxed) => late(),
            // Without its body a request cannot be acted upon.
            Err(why) if why.is_connect() || why.is_builder() => self.away(plain(why)),
            Err(why) if has_body && !gate.passed.load(Ordering::Relaxed) => self.away(plain(why)),
            Err(why) => VendorError::unknown(format!("{}: {}", self.name, plain(why))),
        };
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        if outcome.refusal().is_none() {
            self.counts.unknown.fetch_add(1, Ordering::Relaxed);
        }
        Err(outcome)
    }

    /// What a status other than success means for a write: only a refusal that is surely the vendor's is one.
    fn written(&self, status: u16, answer: &Answer, ask: &Ask<'_>) -> VendorError {
        let said = self.tongue.reason(&Refused { status, body: &answer.body });
        let surely = match status {
            401 | 402 | 403 | 404 | 409 | 413 | 415 | 422 | 429 => true,
            400..=499 => status != 408 && status != 425 && said.is_some(),
            _ => false,
        };
        if surely {
            return self.refused(status, answer, ask);
        }
        VendorError::unknown(format!("{} answered with {status}", self.name))
    }
}

async fn take(mut response: Response) -> Result<(u16, Answer), String> {
    let status = response.status().as_u16();
    let number = |headers: &HeaderMap<HeaderValue>, name: &str| -> Option<u64> {
        headers.get(name)?.to_str().ok()?.trim().parse().ok()
    };
    let total = number(response.headers(), "x-total-count").and_then(|total| usize::try_from(total).ok());
    let retry_after = number(response.headers(), RETRY_AFTER.as_str()).map(Duration::from_secs);
    let mut body = Vec::new();
    while let Some(part) = response.chunk().await.map_err(plain)? {
        if body.len() + part.len() > MAX_ANSWER {
            return Err("the answer is too long".to_owned());
        }
        body.extend_from_slice(&part);
    }
    Ok((status, Answer { body, total, retry_after }))
}

/// What went wrong, without the address.
fn plain(why: reqwest::Error) -> String {
    if why.is_timeout() {
        return "it took too long".to_owned();
    }
    let why = why.without_url();
    let source = std::error::Error::source(&why).map(ToString::to_string);
    source.map_or_else(|| why.to_string(), |source| format!("{why}: {source}"))
}

/// What became of a body.
#[derive(Debug, Default)]
struct Gate {
    /// It was handed to the connection.
    passed: AtomicBool,
    /// It was kept back: too late.
    shut: AtomicBool,
}

/// A body that looks at the clock immediately before it is written.
struct Gated {
    bytes: Option<Bytes>,
    until: Deadline,
    gate: Arc<Gate>,
}

/// The time had passed.
#[derive(Debug, thiserror::Error)]
#[error("too late")]
struct TooLate;

impl Body for Gated {
    type Data = Bytes;
    type Error = TooLate;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TooLate>>> {
        let Some(bytes) = self.bytes.take() else { return Poll::Ready(None) };
        if self.until.remaining().is_none() {
            self.gate.shut.store(true, Ordering::Relaxed);
            return Poll::Ready(Some(Err(TooLate)));
        }
        self.gate.passed.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purchases_have_turns_when_everybody_else_has_used_theirs_up() {
        // So slow that none comes back while the test runs.
        let turns = |count| {
            let hourly = Quota::with_period(Duration::from_secs(3600)).expect("not zero");
            hourly.allow_burst(std::num::NonZeroU32::new(count).expect("not zero"))
        };
        let others = Pace::new(turns(3));
        let (purchases, quotes) = (others.with_share(turns(2)), others.with_share(turns(1)));
        while others.take().is_ok() {}
        while quotes.take().is_ok() {}
        assert_eq!((purchases.take(), purchases.take()), (Ok(()), Ok(())), "their own");
        assert!(purchases.take().is_err(), "and no more than the vendor takes");
        assert!(others.take().is_err(), "which nobody else gets");
        // While nobody else asks, they have it all.
        let others = Pace::new(turns(3));
        let purchases = others.with_share(turns(2));
        let taken = std::iter::repeat_with(|| purchases.take()).take_while(Result::is_ok).count();
        assert_eq!(taken, 5);
    }
}
