//! One connection to the socket: its requests handed to the routes, its place told when there is something to do.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::response::Response;
use http::{Request, header};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::refusals::Refusals;
use super::seats::Taken;

/// How long a request's head may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of a request's head.
const MAX_HEAD: usize = 16 * 1024;

/// Serves a connection until it ends, its place is needed, or it is cancelled and has nothing more to answer.
pub(super) async fn serve(stream: UnixStream, router: Router, seat: Taken, cancel: CancellationToken) {
    let seat = Arc::new(seat);
    let at_work = Arc::clone(&seat);
    let service =
        service_fn(move |request: Request<Incoming>| answer(router.clone(), Arc::clone(&at_work), request));
    let connection = http1().serve_connection(TokioIo::new(Refusals::new(stream)), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = seat.left() => return,
        () = cancel.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a local connection ended early");
    }
}

/// Answers one request of who got no place.
pub(super) async fn dismiss(stream: UnixStream, router: Router) {
    let service =
        service_fn(move |request: Request<Incoming>| router.clone().oneshot(request.map(Body::new)));
    let mut http = http1();
    let connection = http.keep_alive(false).serve_connection(TokioIo::new(Refusals::new(stream)), service);
    // Who does not listen is told nothing.
    let _ = tokio::time::timeout(Duration::from_secs(1), connection).await;
}

fn http1() -> hyper::server::conn::http1::Builder {
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(MAX_HEAD);
    http
}

async fn answer(
    router: Router,
    seat: Arc<Taken>,
    request: Request<Incoming>,
) -> Result<Response, std::convert::Infallible> {
    if request.body().is_end_stream() && !seat.work() {
        std::future::pending::<()>().await;
    }
    let arriving = |body| Body::new(Arriving { body, seat: Arc::clone(&seat) });
    let response = router.oneshot(request.map(arriving)).await?;
    // A stream of events goes on after its head.
    let is_stream =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/event-stream");
    if !is_stream {
        seat.rest();
    }
    Ok(response)
}

/// A body on its way; when it is whole there is something to do.
struct Arriving {
    body: Incoming,
    seat: Arc<Taken>,
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let is_whole = frame.is_none() || self.body.is_end_stream();
        // Its place is another's: the connection is about to be dropped.
        if is_whole && !self.seat.work() { Poll::Pending } else { Poll::Ready(frame) }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
