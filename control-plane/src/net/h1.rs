//! HTTP/1.1: one spell of requests on a connection, from a complete head until there is nothing to do.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::server::conn::http1::Builder;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::conn::Alarm;
use super::io::{Stream, Track, Watched};
use super::service::{Connected, Service};
use super::stop::{Ear, Stage};
use super::{Limits, Shared, Stats};

/// How long a lively connection keeps hyper's state after an answer.
const WARM_TIME: Duration = Duration::from_secs(1);
/// hyper's own default; setting it explicitly costs an allocation per request.
const DEFAULT_MAX_HEADERS: usize = 100;
/// The least that hyper allows.
const LEAST_BUFFER_BYTES: usize = 8 * 1024;

pub(crate) fn builder(limits: &Limits) -> Builder {
    let mut builder = Builder::new();
    builder
        .half_close(true)
        .header_read_timeout(None)
        .max_header_size(limits.max_header_bytes)
        .max_buf_size(limits.max_buffer_bytes.max(limits.max_header_bytes).max(LEAST_BUFFER_BYTES));
    if limits.max_headers != DEFAULT_MAX_HEADERS {
        builder.max_headers(limits.max_headers);
    }
    builder
}

/// How a spell ended.
pub(crate) enum Exit {
    /// Everything is answered; these bytes of the next request have arrived.
    Rest(Stream, BytesMut),
    /// The connection is over; the client may still be sending.
    End(Stream),
    /// The connection is over and not worth a farewell.
    Lost,
}

/// What the connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A handler.
    Running,
    /// The next request.
    Warm,
    /// The client, to read.
    Blocked,
    /// The rest of a head, or the end of the connection.
    Other,
}

/// Serves the request whose head is in `prefix`, and what follows it closely.
pub(crate) async fn run<S: Service>(
    shared: &Shared<S>,
    stream: Stream,
    prefix: Bytes,
    track: &Arc<Track>,
    lively: bool,
    alarm: &mut Alarm<'_>,
    ear: &mut Ear<'_, '_>,
) -> Exit {
    let service = Connected { service: shared.service.clone(), track: Arc::clone(track), watch_bodies: true };
    let io = TokioIo::new(Watched::new(stream, prefix, track));
    let mut hyper = Box::new(shared.h1.serve_connection(io, service));
    let mut pulse = Pulse::new(track, lively);
    let mut draining = false;
    let over = poll_fn(|cx| {
        loop {
            if Pin::new(&mut *hyper).poll(cx).is_ready() {
                return Poll::Ready(Over::Done);
            }
            match ear.stage(cx) {
                Stage::Killed => return Poll::Ready(Over::Lost),
                Stage::Draining if !draining => {
                    draining = true;
                    Pin::new(&mut *hyper).graceful_shutdown();
                }
                Stage::Running | Stage::Draining => return pulse.check(shared, track, alarm, cx),
            }
        }
    });
    let over = over.await;
    if matches!(over, Over::Lost) {
        return Exit::Lost;
    }
    let parts = hyper.into_parts();
    let (stream, unread) = parts.io.into_inner().into_inner();
    if matches!(over, Over::Done) {
        return Exit::End(stream);
    }
    // Copied, since even empty they hold on to hyper's buffer.
    let mut rest = BytesMut::new();
    rest.extend_from_slice(&parts.read_buf);
    rest.extend_from_slice(&unread);
    Exit::Rest(stream, rest)
}

enum Over {
    Done,
    Rest,
    Lost,
}

/// Watches what the connection waits for and how long it has.
struct Pulse<'s> {
    began: u32,
    lively: bool,
    warm: Option<Warm<'s>>,
    phase: Phase,
    mark: u32,
    since: Instant,
}

impl<'s> Pulse<'s> {
    fn new(track: &Track, lively: bool) -> Self {
        let began = track.begun();
        Self { began, lively, warm: None, phase: Phase::Other, mark: began, since: Instant::now() }
    }

    fn check<S>(
        &mut self,
        shared: &'s Shared<S>,
        track: &Track,
        alarm: &mut Alarm<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Over> {
        let served = track.begun() != self.began;
        let (phase, mark) = if track.write_blocked() {
            (Phase::Blocked, track.written())
        } else if track.running() > 0 {
            (Phase::Running, 0)
        } else if served && track.at_rest() {
            if self.warm.is_none() {
                self.warm =
                    if self.lively { Warm::enter(&shared.warm, shared.limits.max_warm) } else { None };
            }
            if self.warm.is_none() {
                return Poll::Ready(Over::Rest);
            }
            (Phase::Warm, track.begun())
        } else {
            (Phase::Other, 0)
        };
        if (phase, mark) != (self.phase, self.mark) {
            (self.phase, self.mark) = (phase, mark);
            self.since = Instant::now();
        }
        let time = match phase {
            Phase::Running => return Poll::Pending,
            Phase::Warm => WARM_TIME,
            Phase::Blocked => shared.limits.write_time,
            Phase::Other => shared.limits.header_time,
        };
        if !alarm.due(self.since + time, cx) {
            return Poll::Pending;
        }
        if phase == Phase::Warm {
            return Poll::Ready(Over::Rest);
        }
        Stats::add(&shared.stats.timed_out);
        Poll::Ready(Over::Lost)
    }
}

/// One of the places for connections that keep their buffers.
struct Warm<'s>(&'s AtomicUsize);

impl<'s> Warm<'s> {
    fn enter(warm: &'s AtomicUsize, max: usize) -> Option<Self> {
        let place = Self(warm);
        (warm.fetch_add(1, Ordering::Relaxed) < max).then_some(place)
    }
}

impl Drop for Warm<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
