//! One connection from accept to close: handshake, waiting for a head, serving it, waiting again.

use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::gate::Permit;
use super::head::{Gather, Head, poll_discard};
use super::io::{Stream, Track};
use super::service::Service;
use super::stop::{Ear, Stage};
use super::{Limits, Peer, Shared, Stats, Tls, h1, h2, reply, tls};

/// A connection whose next request comes this soon after the last answer is lively.
const LIVELY_GAP: Duration = Duration::from_millis(100);
/// What is read of a client that goes on sending after the last answer.
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// One timer for all the deadlines of a connection. Later deadlines leave it as it is, so that a request costs
/// the timer wheel nothing.
pub(crate) struct Alarm<'a>(Pin<&'a mut Sleep>);

impl Alarm<'_> {
    /// Whether a time has come; if not, the task is woken when it has.
    pub(crate) fn due(&mut self, at: Instant, cx: &mut Context<'_>) -> bool {
        if self.0.deadline() > at {
            self.0.as_mut().reset(at);
        }
        while self.0.as_mut().poll(cx).is_ready() {
            if Instant::now() >= at {
                return true;
            }
            self.0.as_mut().reset(at);
        }
        false
    }
}

/// Serves a connection to its end.
pub(crate) async fn run<S: Service>(
    shared: Arc<Shared<S>>,
    tcp: TcpStream,
    addr: SocketAddr,
    permit: Permit,
) {
    let _permit = permit;
    let sleep = pin!(sleep_until(Instant::now() + shared.limits.header_time));
    let mut alarm = Alarm(sleep);
    let changed = pin!(shared.stop.changed());
    let mut ear = Ear::new(&shared.stop, changed);

    let stream = match &shared.tls {
        None => Stream::Plain(tcp),
        Some(tls) => match Box::pin(handshake(tls, tcp, &shared, &mut alarm, &mut ear)).await {
            Some(stream) => stream,
            None => return,
        },
    };
    let track = Arc::new(Track::new(Peer { addr, listener: shared.listener, tls: shared.tls.is_some() }));
    if let Stream::Tls(tls) = &stream
        && tls.get_ref().1.alpn_protocol() == Some(tls::ALPN_H2)
    {
        return Box::pin(h2::run(&shared, stream, Bytes::new(), &track, &mut alarm, &mut ear)).await;
    }
    requests(&shared, stream, &track, &mut alarm, &mut ear).await;
}

async fn requests<S: Service>(
    shared: &Shared<S>,
    mut stream: Stream,
    track: &Arc<Track>,
    alarm: &mut Alarm<'_>,
    ear: &mut Ear<'_, '_>,
) {
    let mut bytes = BytesMut::new();
    let mut fresh = true;
    loop {
        let resting = Instant::now();
        let next = gather(&mut stream, &mut bytes, fresh, &shared.limits, alarm, ear).await;
        let head = std::mem::take(&mut bytes).freeze();
        match next {
            Next::Http1 => {}
            Next::Http2 => return Box::pin(h2::run(shared, stream, head, track, alarm, ear)).await,
            Next::Gone => return,
            Next::Silent => return Stats::add(&shared.stats.timed_out),
            Next::TooSlow => {
                Stats::add(&shared.stats.timed_out);
                return Box::pin(dismiss(stream, reply::head_too_slow(), &shared.limits)).await;
            }
            Next::TooLarge => {
                Stats::add(&shared.stats.malformed);
                return Box::pin(dismiss(stream, reply::head_too_large(), &shared.limits)).await;
            }
        }
        let lively = !fresh && resting.elapsed() < LIVELY_GAP;
        fresh = false;
        // Boxed, so that a connection that rests, or speaks HTTP/2, has no room for it.
        match Box::pin(h1::run(shared, stream, head, track, lively, alarm, ear)).await {
            h1::Exit::Rest(rested, next_bytes) => (stream, bytes) = (rested, next_bytes),
            h1::Exit::End(stream) => {
                if track.refused() {
                    Stats::add(&shared.stats.malformed);
                }
                if !track.eof() {
                    Box::pin(dismiss(stream, Bytes::new(), &shared.limits)).await;
                }
                return;
            }
            h1::Exit::Lost => return,
        }
    }
}

/// What came of waiting for a head.
enum Next {
    Http1,
    Http2,
    Gone,
    Silent,
    TooSlow,
    TooLarge,
}

async fn gather(
    stream: &mut Stream,
    bytes: &mut BytesMut,
    fresh: bool,
    limits: &Limits,
    alarm: &mut Alarm<'_>,
    ear: &mut Ear<'_, '_>,
) -> Next {
    let began = Instant::now();
    let mut first_byte = fresh.then_some(began);
    let mut gathered = Gather::new(std::mem::take(bytes));
    let next = poll_fn(|cx| {
        loop {
            let head = gathered.look(limits.max_header_bytes);
            match head {
                Head::Http1 => return Poll::Ready(Next::Http1),
                Head::Http2 => return Poll::Ready(Next::Http2),
                Head::TooLarge => return Poll::Ready(Next::TooLarge),
                Head::Empty | Head::Partial => {}
            }
            match gathered.poll_read(stream, cx) {
                Poll::Ready(Ok(1..)) => continue,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Next::Gone),
                Poll::Pending => {}
            }
            let partial = head == Head::Partial;
            match ear.stage(cx) {
                Stage::Killed => return Poll::Ready(Next::Gone),
                Stage::Draining if !partial => return Poll::Ready(Next::Gone),
                Stage::Draining | Stage::Running => {}
            }
            let deadline = if partial || fresh {
                *first_byte.get_or_insert_with(Instant::now) + limits.header_time
            } else {
                began + limits.idle_time
            };
            return match (alarm.due(deadline, cx), partial) {
                (false, _) => Poll::Pending,
                (true, true) => Poll::Ready(Next::TooSlow),
                (true, false) => Poll::Ready(Next::Silent),
            };
        }
    })
    .await;
    *bytes = gathered.bytes;
    next
}

/// A last word, the end of our side, and a while of reading on: closing a socket with unread bytes would destroy
/// the answer that is still on its way.
async fn dismiss(mut stream: Stream, word: Bytes, limits: &Limits) {
    let farewell = async {
        stream.write_all(&word).await?;
        stream.shutdown().await?;
        let mut left = LINGER_BYTES;
        while left > 0 {
            match poll_fn(|cx| poll_discard(&mut stream, cx)).await? {
                0 => break,
                n => left = left.saturating_sub(n),
            }
        }
        std::io::Result::Ok(())
    };
    // The connection ends now, however that went.
    let _ = timeout(limits.linger_time, farewell).await;
}

/// Tells a client that there is no room for it.
pub(crate) async fn turn_away(tcp: TcpStream, limits: &Limits) {
    dismiss(Stream::Plain(tcp), reply::too_many_connections(), limits).await;
}

async fn handshake<S>(
    tls: &Tls,
    tcp: TcpStream,
    shared: &Shared<S>,
    alarm: &mut Alarm<'_>,
    ear: &mut Ear<'_, '_>,
) -> Option<Stream> {
    let mut accept = pin!(TlsAcceptor::from(tls.config()).accept(tcp));
    let deadline = Instant::now() + shared.limits.tls_handshake_time;
    poll_fn(|cx| {
        match accept.as_mut().poll(cx) {
            Poll::Ready(Ok(stream)) => return Poll::Ready(Some(Stream::Tls(Box::new(stream)))),
            Poll::Ready(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                Stats::add(&shared.stats.malformed);
                return Poll::Ready(None);
            }
            Poll::Pending => {}
        }
        if ear.stage(cx) != Stage::Running {
            return Poll::Ready(None);
        }
        if alarm.due(deadline, cx) {
            Stats::add(&shared.stats.timed_out);
            return Poll::Ready(None);
        }
        Poll::Pending
    })
    .await
}
