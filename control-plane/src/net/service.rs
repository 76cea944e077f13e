//! What serves the requests, and how each request is told where it came from.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use axum::body::Body;
use http::{Request, Response};
use http_body::Body as _;

use super::body::{Incoming, Outgoing, Running, finish_unread};
use super::io::Track;

/// A service that answers every request and is always ready for the next: an axum `Router` is one.
pub trait Service: Clone + Send + Sync + 'static {
    /// The answer to a request.
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send + 'static;
}

impl<T> Service for T
where
    T: tower::Service<Request<Incoming>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + Sync
        + 'static,
    T::Future: Send + 'static,
{
    fn answer(&self, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send + 'static {
        let answer = self.clone().call(request);
        async move {
            match answer.await {
                Ok(answer) => answer,
                Err(never) => match never {},
            }
        }
    }
}

/// One connection's service.
pub(crate) struct Connected<S> {
    pub(crate) service: S,
    pub(crate) track: Arc<Track>,
    /// HTTP/1 connections rest between requests, so their bodies are watched.
    pub(crate) watch_bodies: bool,
}

/// The answer in the making; boxed, so that a stream that lives for days does not carry it along.
pub(crate) type Answer = Pin<Box<dyn Future<Output = Result<Response<Outgoing>, Infallible>> + Send>>;

impl<S: Service> hyper::service::Service<Request<hyper::body::Incoming>> for Connected<S> {
    type Response = Response<Outgoing>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Answer {
        let watched = self.watch_bodies && !request.body().is_end_stream();
        self.track.begin(watched);
        let running = Running(Arc::clone(&self.track));
        let open = watched.then(|| Arc::clone(&self.track));
        // A client that waits to be told to go on has not sent its body: reading on would ask for it.
        let finishes = watched && !request.headers().contains_key(http::header::EXPECT);
        let mut request = request.map(|body| Incoming::new(body, open));
        request.extensions_mut().insert(self.track.peer);
        let answer = self.service.answer(request);
        Box::pin(async move {
            let answer = answer.await;
            if finishes {
                finish_unread(&running.0).await;
            }
            Ok(answer.map(|inner| Outgoing { inner, _running: running }))
        })
    }
}
