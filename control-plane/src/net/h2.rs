//! HTTP/2: a connection from its preface to its end. hyper and h2 hold the protocol, this file the time.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::conn::Alarm;
use super::io::{Stream, Track, Watched};
use super::service::{Connected, Service};
use super::stop::{Ear, Stage};
use super::{Limits, Shared, Stats};

/// Spawns each stream where a stop can wait for it.
#[derive(Debug, Clone)]
pub(crate) struct Streams(pub(crate) TaskTracker);

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

pub(crate) fn builder(limits: &Limits, streams: Streams) -> Builder<Streams> {
    let mut builder = Builder::new(streams);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.h2_max_streams)
        .initial_stream_window_size(limits.h2_stream_window)
        .initial_connection_window_size(limits.h2_connection_window)
        .max_send_buf_size(limits.h2_send_buffer)
        .max_header_list_size(limits.h2_max_header_list)
        .max_pending_accept_reset_streams(limits.h2_max_pending_reset)
        .max_local_error_reset_streams(limits.h2_max_error_reset)
        .keep_alive_interval(limits.h2_keepalive_interval)
        .keep_alive_timeout(limits.h2_keepalive_timeout);
    builder
}

/// What the connection waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its first stream.
    Fresh,
    /// Streams to end.
    Busy,
    /// Another stream.
    Idle,
    /// The client, to read.
    Blocked,
    /// The client, to take note of the farewell.
    Leaving,
}

/// Serves a connection whose first bytes are in `prefix`, to its end.
pub(crate) async fn run<S: Service>(
    shared: &Shared<S>,
    stream: Stream,
    prefix: Bytes,
    track: &Arc<Track>,
    alarm: &mut Alarm<'_>,
    ear: &mut Ear<'_, '_>,
) {
    let service =
        Connected { service: shared.service.clone(), track: Arc::clone(track), watch_bodies: false };
    let io = TokioIo::new(Watched::new(stream, prefix, track));
    let mut hyper = Box::pin(shared.h2.serve_connection(io, service));
    let mut pulse = Pulse { phase: Phase::Fresh, mark: 0, since: Instant::now(), leaving: false };
    poll_fn(|cx| {
        loop {
            if hyper.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            let leave = match ear.stage(cx) {
                Stage::Killed => return Poll::Ready(()),
                Stage::Draining => true,
                Stage::Running => false,
            };
            let verdict =
                if leave && !pulse.leaving { Verdict::Leave } else { pulse.check(shared, track, alarm, cx) };
            match verdict {
                Verdict::Wait => return Poll::Pending,
                Verdict::Leave => {
                    pulse.leaving = true;
                    hyper.as_mut().graceful_shutdown();
                }
                Verdict::Drop => {
                    Stats::add(&shared.stats.timed_out);
                    return Poll::Ready(());
                }
            }
        }
    })
    .await;
}

enum Verdict {
    Wait,
    Leave,
    Drop,
}

/// Watches what the connection waits for and how long it has.
struct Pulse {
    phase: Phase,
    mark: u32,
    since: Instant,
    leaving: bool,
}

impl Pulse {
    fn check<S>(
        &mut self,
        shared: &Shared<S>,
        track: &Track,
        alarm: &mut Alarm<'_>,
        cx: &mut Context<'_>,
    ) -> Verdict {
        let limits = &shared.limits;
        loop {
            let (phase, mark) = if track.write_blocked() {
                (Phase::Blocked, track.written())
            } else if track.running() > 0 {
                (Phase::Busy, 0)
            } else if self.leaving {
                (Phase::Leaving, 0)
            } else if track.begun() == 0 {
                (Phase::Fresh, 0)
            } else {
                (Phase::Idle, track.begun())
            };
            if (phase, mark) != (self.phase, self.mark) {
                (self.phase, self.mark) = (phase, mark);
                self.since = Instant::now();
            }
            let time = match phase {
                Phase::Fresh => limits.header_time,
                Phase::Busy | Phase::Idle => limits.idle_time,
                Phase::Blocked => limits.write_time,
                Phase::Leaving => limits.linger_time,
            };
            if !alarm.due(self.since + time, cx) {
                return Verdict::Wait;
            }
            match phase {
                // A stream's end is not always seen at once: look again later.
                Phase::Busy => self.since = Instant::now(),
                Phase::Idle => return Verdict::Leave,
                Phase::Fresh | Phase::Blocked | Phase::Leaving => return Verdict::Drop,
            }
        }
    }
}
