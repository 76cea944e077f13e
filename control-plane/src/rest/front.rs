//! What stands before every route: overload, the locality of open mode, panics, the last touch on errors.

use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::{IntoResponse as _, Response};
use futures_util::FutureExt as _;
use http::header::{CONTENT_TYPE, HOST, ORIGIN};
use http::{HeaderMap, HeaderValue, Request};
use otonix_sdk::error::ErrorCode;
use tower::ServiceExt as _;

use crate::app::App;
use crate::auth::Mode;
use crate::error::Error;
use crate::net::{Incoming, Peer};
use crate::rest::call::is_proxied;
use crate::rest::problem;

/// Requests that may run at once; heartbeats may use the room between the two.
const MAX_RUNNING: u64 = 8_192;
const MAX_RUNNING_WITH_HEARTBEATS: u64 = 16_384;

/// The whole server behind the network: REST and gRPC.
#[derive(Clone)]
pub struct Front {
    app: Arc<App>,
    rest: Router,
    grpc: Router,
}

/// Which request of this process it is.
#[derive(Debug, Clone, Copy)]
pub struct Number(u64);

impl Number {
    /// The id that a request's error is shown under.
    pub fn request_id(self, headers: &HeaderMap) -> String {
        request_id(headers.get("x-request-id"), self.0)
    }
}

/// Counts a running request.
struct Running(Arc<App>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.shared.metrics.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Front {
    /// Puts REST and gRPC behind one door.
    pub fn new(app: Arc<App>, rest: Router, grpc: Router) -> Self {
        Self { app, rest, grpc }
    }

    async fn serve(self, mut request: Request<Incoming>) -> Response {
        let is_grpc = request
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        if is_grpc {
            return self.serve_grpc(request).await;
        }
        let metrics = &self.app.shared.metrics;
        let given = request.headers().get("x-request-id").cloned();
        let running = metrics.in_flight.fetch_add(1, Ordering::Relaxed);
        let _running = Running(Arc::clone(&self.app));
        let number = metrics.requests.inc();
        request.extensions_mut().insert(Number(number));
        let response = match self.admit(&request, running) {
            Ok(()) => {
                let answer = self.rest.clone().oneshot(request.map(Body::new));
                match AssertUnwindSafe(answer).catch_unwind().await {
                    Ok(Ok(response)) => response,
                    Ok(Err(never)) => match never {},
                    Err(_) => {
                        metrics.panics.inc();
                        Error::internal("a handler panicked").into_response()
                    }
                }
            }
            Err(error) => error.into_response(),
        };
        let status = response.status();
        if status.is_success() {
            return response;
        }
        let id = request_id(given.as_ref(), number);
        if status.is_server_error() {
            metrics.server_errors.inc();
            tracing::warn!(request.id = %id, status = status.as_u16(), "a request failed");
        } else if status.is_client_error() {
            metrics.client_errors.inc();
        }
        let mut response = problem::finish(response, &id);
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert("x-request-id", value);
        }
        response
    }

    async fn serve_grpc(self, request: Request<Incoming>) -> Response {
        if let Err(error) = self.admit_local(&request) {
            let status = crate::grpc::status::of(&error);
            return status.into_http::<Body>();
        }
        let answer = self.grpc.clone().oneshot(request.map(Body::new));
        match AssertUnwindSafe(answer).catch_unwind().await {
            Ok(Ok(mut response)) => {
                crate::grpc::keep_out_of_table(response.headers_mut(), self.app.clock.now());
                response
            }
            Ok(Err(never)) => match never {},
            Err(_) => tonic::Status::internal("an internal error").into_http::<Body>(),
        }
    }

    fn admit(&self, request: &Request<Incoming>, running: u64) -> Result<(), Error> {
        let path = request.uri().path();
        let most = if path.ends_with("/heartbeat") { MAX_RUNNING_WITH_HEARTBEATS } else { MAX_RUNNING };
        if running >= most {
            self.app.shared.metrics.shed.inc();
            return Err(Error::Busy {
                code: ErrorCode::Overloaded,
                retry_after: Duration::from_secs(1),
                detail: "the server has more requests than it can serve",
            });
        }
        if matches!(path, "/healthz" | "/readyz") {
            return Ok(());
        }
        self.admit_local(request)
    }

    /// Open mode serves direct callers on this machine, and no web page of another site.
    fn admit_local(&self, request: &Request<Incoming>) -> Result<(), Error> {
        if self.app.settings.mode == Mode::Guarded {
            return Ok(());
        }
        let headers = request.headers();
        let local_peer = request
            .extensions()
            .get::<Peer>()
            .is_some_and(|peer| peer.addr.ip().to_canonical().is_loopback());
        let named = headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
        let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
        let mut hosts =
            named.chain(target).map(|host| is_local_host(&String::from_utf8_lossy(host))).peekable();
        let local_host = hosts.peek().is_some() && hosts.all(|local| local);
        let foreign_origin = !headers.get_all(ORIGIN).iter().all(is_local_origin);
        if local_peer && local_host && !foreign_origin && !is_proxied(headers) {
            return Ok(());
        }
        Err(Error::Forbidden {
            code: ErrorCode::OpenModeLocalOnly,
            detail: "open mode serves direct callers on this machine only; start the server with --mode guarded",
        })
    }
}

fn is_local_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn is_local_origin(origin: &HeaderValue) -> bool {
    let Ok(text) = origin.to_str() else { return false };
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    rest.is_some_and(is_local_host)
}

/// The id that a proxy gave, if it is a sane one, else one made of the request's number.
fn request_id(given: Option<&HeaderValue>, number: u64) -> String {
    let given = given.and_then(|value| value.to_str().ok());
    let sane = |id: &&str| {
        (1..=64).contains(&id.len())
            && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    match given.filter(sane) {
        Some(id) => id.to_owned(),
        None => format!("{:016x}", number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
    }
}

impl crate::net::Service for Front {
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response> + Send + 'static {
        self.clone().serve(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_hosts_are_told_from_others() {
        for host in ["localhost", "localhost:8402", "127.0.0.1:1", "127.9.9.9", "[::1]:8402", "[::1]"] {
            assert!(is_local_host(host), "{host}");
        }
        for host in
            ["", "example.com", "localhost.example.com", "10.0.0.1:8402", "[::2]", "127.0.0.1.nip.io:80"]
        {
            assert!(!is_local_host(host), "{host}");
        }
        assert!(is_local_origin(&HeaderValue::from_static("http://localhost:3000")));
        for origin in ["null", "https://example.com", "file://", "http://127.0.0.1.evil.test"] {
            assert!(!is_local_origin(&HeaderValue::from_static(origin)), "{origin}");
        }
    }
}
