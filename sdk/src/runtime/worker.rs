//! Workers: reconcilers that look at what is, compare it with what should be, and take one idempotent step.
//!
//! The driver owns interval, jitter, wake-up, cancellation and the log line. It waits on the monotonic clock only,
//! so a jump of the machine's time neither skips nor piles up passes.

use std::any::Any;
use std::future::{Future, poll_fn, ready};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::telemetry::panic_message;

/// Something that keeps a part of the world as it should be.
pub trait Worker: Send + 'static {
    /// Names it in logs and metrics.
    const NAME: &'static str;

    /// One idempotent pass over the current state. Takes no hint about what changed.
    fn run_once(&mut self) -> impl Future<Output = anyhow::Result<Report>> + Send;
}

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Things looked at.
    pub seen: u64,
    /// Things changed.
    pub changed: u64,
    /// Things that should have been changed and could not be.
    pub failed: u64,
}

/// How a pass went, for metrics.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// The worker.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
    /// What it did, unless it failed as a whole.
    pub report: Option<Report>,
}

/// Hears of every pass.
pub type Observer = Arc<dyn Fn(&Pass) + Send + Sync>;

/// When a worker runs.
#[derive(Clone)]
pub struct Schedule {
    /// From the end of a pass to the next one, when nothing wakes it before.
    pub interval: Duration,
    /// Added to each wait: at random, at most this much.
    pub jitter: Duration,
    /// Least time between two passes, however often it is woken.
    pub least_gap: Duration,
    /// Whether the first pass waits for the interval too.
    pub wait_first: bool,
    /// Hears of every pass.
    pub observer: Option<Observer>,
}

impl Schedule {
    /// A pass now and at each interval after, give or take a tenth.
    pub fn every(interval: Duration) -> Self {
        Self {
            interval,
            jitter: interval / 10,
            least_gap: Duration::from_millis(10),
            wait_first: false,
            observer: None,
        }
    }
}

/// Drives a worker until the token fires; a pass that runs then is finished.
pub async fn drive<W: Worker>(mut worker: W, schedule: Schedule, wake: Arc<Notify>, stop: CancellationToken) {
    let mut waits = schedule.wait_first;
    loop {
        if waits && stop.run_until_cancelled(pause(&schedule, &wake)).await.is_none() {
            return;
        }
        waits = true;
        if stop.is_cancelled() {
            return;
        }
        forget_wake_ups(&wake).await;
        let began = Instant::now();
        let outcome = guarded(worker.run_once()).await;
        let took = began.elapsed();
        let report = log(W::NAME, took, outcome);
        if let Some(observer) = &schedule.observer {
            observer(&Pass { name: W::NAME, took, report });
        }
    }
}

/// What woke the worker until now is served by the pass that begins.
async fn forget_wake_ups(wake: &Notify) {
    tokio::select! {
        biased;
        () = wake.notified() => {}
        () = ready(()) => {}
    }
}

async fn pause(schedule: &Schedule, wake: &Notify) {
    let jitter = schedule.jitter.mul_f64(rand::rng().random_range(0.0..1.0));
    let gap = schedule.least_gap.min(schedule.interval);
    sleep(gap).await;
    tokio::select! {
        () = wake.notified() => {}
        () = sleep(schedule.interval - gap + jitter) => {}
    }
}

fn log(name: &'static str, took: Duration, outcome: Outcome) -> Option<Report> {
    let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match outcome {
        Ok(Ok(report)) => {
            let Report { seen, changed, failed } = report;
            if failed > 0 {
                tracing::warn!(
                    worker = name,
                    seen,
                    changed,
                    failed,
                    took_ms,
                    "worked, not everything succeeded"
                );
            } else if changed > 0 {
                tracing::info!(worker = name, seen, changed, took_ms, "worked");
            } else {
                tracing::debug!(worker = name, seen, took_ms, "nothing to do");
            }
            Some(report)
        }
        Ok(Err(error)) => {
            tracing::warn!(worker = name, took_ms, error = format!("{error:#}"), "failed to work");
            None
        }
        Err(panic) => {
            let what = panic_message(panic.as_ref());
            tracing::error!(worker = name, took_ms, panic.message = what, "panicked at work");
            None
        }
    }
}

type Outcome = Result<anyhow::Result<Report>, Box<dyn Any + Send>>;

/// A pass reads the world anew, so what a panic left behind in the worker does not mislead the next one.
async fn guarded(pass: impl Future<Output = anyhow::Result<Report>> + Send) -> Outcome {
    let mut pass = pin!(pass);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| pass.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(report)) => Poll::Ready(Ok(report)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    struct Counter {
        passes: Arc<AtomicU64>,
        fail: fn(u64) -> anyhow::Result<Report>,
    }

    impl Worker for Counter {
        const NAME: &'static str = "counter";

        async fn run_once(&mut self) -> anyhow::Result<Report> {
            let pass = self.passes.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            (self.fail)(pass)
        }
    }

    struct Driven {
        passes: Arc<AtomicU64>,
        wake: Arc<Notify>,
        stop: CancellationToken,
        task: tokio::task::JoinHandle<()>,
    }

    fn start(schedule: Schedule, fail: fn(u64) -> anyhow::Result<Report>) -> Driven {
        let (passes, wake, stop) = (Arc::default(), Arc::new(Notify::new()), CancellationToken::new());
        let worker = Counter { passes: Arc::clone(&passes), fail };
        let task = tokio::spawn(drive(worker, schedule, Arc::clone(&wake), stop.clone()));
        Driven { passes, wake, stop, task }
    }

    impl Driven {
        async fn after(&self, time: Duration) -> u64 {
            sleep(time).await;
            self.passes.load(Ordering::SeqCst)
        }
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pass_comes_at_once_and_then_at_every_interval() {
        let driven =
            start(
                Schedule { jitter: Duration::ZERO, ..Schedule::every(secs(10)) },
                |_| Ok(Report::default()),
            );
        assert_eq!(driven.after(secs(1)).await, 1);
        assert_eq!(driven.after(secs(98)).await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn jitter_makes_waits_longer_and_never_shorter() {
        let driven =
            start(Schedule { jitter: secs(10), ..Schedule::every(secs(10)) }, |_| Ok(Report::default()));
        let passes = driven.after(secs(1000)).await;
        assert!((50..=100).contains(&passes), "{passes}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_up_brings_a_pass_forward_and_a_thousand_bring_one() {
        let driven = start(Schedule::every(secs(3600)), |_| Ok(Report::default()));
        assert_eq!(driven.after(secs(1)).await, 1);
        for _ in 0..1000 {
            driven.wake.notify_one();
        }
        assert_eq!(driven.after(secs(1)).await, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn errors_and_panics_do_not_end_a_worker() {
        let schedule = Schedule { jitter: Duration::ZERO, ..Schedule::every(secs(10)) };
        let driven = start(schedule, |pass| {
            assert!(pass != 1, "a panic");
            if pass == 0 { Err(anyhow::anyhow!("an error")) } else { Ok(Report::default()) }
        });
        assert_eq!(driven.after(secs(25)).await, 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_wait_and_finishes_the_pass() {
        let driven =
            start(Schedule { wait_first: true, ..Schedule::every(secs(3600)) }, |_| Ok(Report::default()));
        assert_eq!(driven.after(secs(1)).await, 0);
        driven.stop.cancel();
        driven.task.await.expect("ends by itself");
    }
}
