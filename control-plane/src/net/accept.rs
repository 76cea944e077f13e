//! The listener: lets connections in, turns them away at the limit, ends them all at a stop.

use std::io::{self, ErrorKind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::gate::Gate;
use super::service::Service;
use super::stop::{Stage, Stop};
use super::{Limits, Shared, Stats, Tls, conn, h1, h2};

/// Clients that are told at a time that there is no room; further ones are closed without a word.
const MAX_TURNING_AWAY: usize = 64;
/// Rest after a failure of `accept`: as long as no file descriptor is free, trying again at once only burns time.
const ACCEPT_REST: Duration = Duration::from_millis(20);
const MAX_ACCEPT_REST: Duration = Duration::from_secs(1);
/// Time between two log lines about the same trouble.
const QUIET_TIME: Duration = Duration::from_secs(10);
/// How long connections have to disappear after they were told to.
const KILL_TIME: Duration = Duration::from_secs(1);

/// A listener with all that it needs to serve.
pub struct Front {
    /// From [`super::bind`].
    pub listener: TcpListener,
    /// Certificate and key; without them connections are plain.
    pub tls: Option<Arc<Tls>>,
    /// The bounds.
    pub limits: Limits,
    /// Where to count.
    pub stats: Arc<Stats>,
    /// Fired to stop accepting and drain.
    pub shutdown: CancellationToken,
    /// Where connections and streams are spawned.
    pub tracker: TaskTracker,
}

impl Front {
    /// A plain front with counters of its own.
    pub fn new(
        listener: TcpListener,
        limits: Limits,
        shutdown: CancellationToken,
        tracker: TaskTracker,
    ) -> Self {
        Self { listener, tls: None, limits, stats: Arc::default(), shutdown, tracker }
    }

    /// Serves until the shutdown token fires; then closes the listener, lets running requests end, and closes
    /// what is left after [`Limits::drain_time`].
    ///
    /// # Errors
    /// Only at the start, when the listener has no address.
    pub async fn serve<S: Service>(self, service: S) -> io::Result<()> {
        let Self { listener, tls, limits, stats, shutdown, tracker } = self;
        let shared = Arc::new(Shared {
            service,
            stats: Arc::clone(&stats),
            stop: Stop::default(),
            listener: listener.local_addr()?,
            tls,
            h1: h1::builder(&limits),
            h2: h2::builder(&limits, h2::Streams(tracker.clone())),
            warm: 0.into(),
            limits,
        });
        let gate = Gate::new(&shared.limits, stats);

        shutdown.run_until_cancelled(accept(&listener, &shared, &gate, &tracker)).await;
        drop(listener);
        shared.stop.set(Stage::Draining);
        if timeout(shared.limits.drain_time, gate.empty()).await.is_err() {
            shared.stop.set(Stage::Killed);
            let left = shared.stats.open.load(std::sync::atomic::Ordering::Relaxed);
            tracing::warn!(connections = left, "closing connections that did not end in time");
            // A handler that never yields keeps its connection; the process goes on without it.
            let _ = timeout(KILL_TIME, gate.empty()).await;
        }
        Ok(())
    }
}

async fn accept<S: Service>(
    listener: &TcpListener,
    shared: &Arc<Shared<S>>,
    gate: &Arc<Gate>,
    tracker: &TaskTracker,
) {
    let turning_away = Arc::new(Semaphore::new(MAX_TURNING_AWAY));
    let mut rest = ACCEPT_REST;
    let (mut last_failure, mut last_refusal) = (None, None);
    loop {
        let mut next = pin!(listener.accept());
        let (tcp, addr) = match next.as_mut().await {
            Ok(accepted) => accepted,
            Err(error) if of_the_client(&error) => continue,
            Err(error) => {
                Stats::add(&shared.stats.accept_errors);
                if worth_a_line(&mut last_failure) {
                    tracing::error!(%error, "no connection can be accepted");
                }
                sleep(rest).await;
                rest = (rest * 2).min(MAX_ACCEPT_REST);
                continue;
            }
        };
        rest = ACCEPT_REST;
        Stats::add(&shared.stats.accepted);
        // A socket that is already dead says so at its first read.
        let _ = tcp.set_nodelay(true);
        if let Some(permit) = gate.enter(addr.ip()) {
            tracker.spawn(conn::run(Arc::clone(shared), tcp, addr, permit));
            continue;
        }
        Stats::add(&shared.stats.refused);
        if worth_a_line(&mut last_refusal) {
            tracing::warn!(peer = %addr.ip(), "too many connections");
        }
        refuse(tcp, shared, &turning_away, tracker);
    }
}

fn refuse<S: Service>(
    tcp: TcpStream,
    shared: &Arc<Shared<S>>,
    places: &Arc<Semaphore>,
    tracker: &TaskTracker,
) {
    if shared.tls.is_some() {
        return;
    }
    let Ok(place) = Arc::clone(places).try_acquire_owned() else { return };
    let shared = Arc::clone(shared);
    tracker.spawn(async move {
        conn::turn_away(tcp, &shared.limits).await;
        drop(place);
    });
}

/// Errors that concern one client that is gone before it was accepted.
fn of_the_client(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionRefused
            | ErrorKind::Interrupted
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable
            | ErrorKind::TimedOut
    )
}

fn worth_a_line(last: &mut Option<Instant>) -> bool {
    let quiet = last.is_some_and(|at| at.elapsed() < QUIET_TIME);
    if !quiet {
        *last = Some(Instant::now());
    }
    !quiet
}
