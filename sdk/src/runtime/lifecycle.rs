//! The life of a process: what keeps it up, what stops it, and how long a stop may take.
//!
//! A stop has two steps. The soft token asks: finish what runs, take nothing new. The hard token, fired by a second
//! signal or after the deadline, tells: end now. A critical task that ends before it was asked to stops the process,
//! which then exits with a failure so that its supervisor starts it again.

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::telemetry::panic_message;
use super::worker::{self, Schedule, Worker};

/// How long a stop waits for what runs.
pub const DRAIN_TIME: Duration = Duration::from_secs(10);
/// How long tasks have to notice the hard token.
const KILL_TIME: Duration = Duration::from_secs(1);

/// The process's tokens and tasks; a cheap handle.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    soft: CancellationToken,
    hard: CancellationToken,
    tracker: TaskTracker,
    failed: Arc<AtomicBool>,
    drain_time: Duration,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new(DRAIN_TIME)
    }
}

impl Lifecycle {
    /// A life whose stop takes at most `drain_time`.
    pub fn new(drain_time: Duration) -> Self {
        Self {
            soft: CancellationToken::new(),
            hard: CancellationToken::new(),
            tracker: TaskTracker::new(),
            failed: Arc::default(),
            drain_time,
        }
    }

    /// Fires when the process should finish what it does.
    pub fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Fires when it should end at once.
    pub fn hard(&self) -> &CancellationToken {
        &self.hard
    }

    /// The tasks that a stop waits for.
    pub fn tracker(&self) -> &TaskTracker {
        &self.tracker
    }

    /// Begins an orderly stop.
    pub fn stop(&self) {
        self.soft.cancel();
    }

    /// Begins a stop after which the process reports a failure.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
        self.soft.cancel();
    }

    /// Spawns a task that a stop waits for, and ends at the hard token.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let hard = self.hard.clone();
        self.tracker.spawn(async move { hard.run_until_cancelled(task).await })
    }

    /// Spawns a task without which the process is useless. Its end before the soft token, an error or a panic at any
    /// time stop the process with a failure.
    pub fn spawn_critical<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let life = self.clone();
        let task = self.spawn(task);
        self.tracker.spawn(async move {
            match task.await {
                Ok(Some(Ok(())) | None) if life.soft.is_cancelled() => return,
                Ok(Some(Ok(())) | None) => tracing::error!(task = name, "a critical task ended"),
                Ok(Some(Err(error))) => {
                    tracing::error!(task = name, error = format!("{error:#}"), "a critical task failed");
                }
                Err(panic) => {
                    let what = panic.try_into_panic();
                    let what = what.as_deref().map_or("(aborted)", panic_message);
                    tracing::error!(task = name, panic.message = what, "a critical task panicked");
                }
            }
            life.fail();
        });
    }

    /// Spawns a worker; notify what is returned to make it look now.
    pub fn spawn_worker<W: Worker>(&self, worker: W, schedule: Schedule) -> Arc<Notify> {
        let wake = Arc::new(Notify::new());
        let drive = worker::drive(worker, schedule, Arc::clone(&wake), self.soft.clone());
        self.spawn_critical(W::NAME, async move {
            drive.await;
            Ok(())
        });
        wake
    }

    /// From now on SIGTERM and SIGINT stop the process: the first one softly, the second one at once.
    /// Must be called inside a runtime.
    ///
    /// # Errors
    /// When the system refuses the handlers.
    pub fn handle_signals(&self) -> std::io::Result<()> {
        let mut signals =
            Signals { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? };
        let life = self.clone();
        // Not tracked: it lives as long as the process.
        tokio::spawn(async move {
            let name = signals.next().await;
            tracing::info!(signal = name, "stopping");
            life.soft.cancel();
            let name = signals.next().await;
            tracing::warn!(signal = name, "stopping at once");
            life.hard.cancel();
        });
        Ok(())
    }

    /// Runs one step of a stop unless the hard token fires; `None` if it did.
    pub async fn step<F: Future>(&self, step: F) -> Option<F::Output> {
        self.hard.run_until_cancelled(step).await
    }

    /// Waits for the soft token, then at most the drain time for `finish` and all tasks to end, and tells how the
    /// process should exit. `finish` is the stop in its right order: what must not happen before requests have ended.
    pub async fn run<F: Future<Output = ()>>(&self, finish: F) -> ExitCode {
        self.soft.cancelled().await;
        let ending = async {
            finish.await;
            self.tracker.close();
            self.tracker.wait().await;
        };
        let ended = timeout(self.drain_time, self.step(ending)).await;
        let clean = matches!(ended, Ok(Some(())));
        if !clean {
            tracing::warn!(tasks = self.tracker.len(), "not everything ended in time");
            self.hard.cancel();
            self.tracker.close();
            // What still runs then is cut off by the end of the process.
            let _ = timeout(KILL_TIME, self.tracker.wait()).await;
        }
        if clean && !self.failed.load(Ordering::SeqCst) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.int.recv() => "SIGINT",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    /// `ExitCode` cannot be compared.
    fn is_success(code: ExitCode) -> bool {
        format!("{code:?}") == format!("{:?}", ExitCode::SUCCESS)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_waits_for_tasks_and_is_a_success() {
        let life = Lifecycle::default();
        let done = Arc::new(AtomicBool::new(false));
        let (soft, flag) = (life.soft().clone(), Arc::clone(&done));
        life.spawn_critical("flush", async move {
            soft.cancelled().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            flag.store(true, Ordering::SeqCst);
            Ok(())
        });
        life.stop();
        assert!(is_success(life.run(ready(())).await));
        assert!(done.load(Ordering::SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn a_critical_tasks_end_stops_the_process_with_a_failure() {
        for how in 0..3 {
            let life = Lifecycle::default();
            life.spawn_critical("server", async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                assert!(how != 0, "a panic");
                if how == 1 { Err(anyhow::anyhow!("an error")) } else { Ok(()) }
            });
            assert!(!is_success(life.run(ready(())).await), "way {how}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_end_is_cut_off_at_the_deadline() {
        let life = Lifecycle::default();
        let began = tokio::time::Instant::now();
        life.tracker().spawn(pending::<()>());
        let listening = life.spawn(pending::<()>());
        life.stop();
        assert!(!is_success(life.run(ready(())).await));
        assert_eq!(listening.await.expect("not a panic"), None, "the hard token ends it");
        assert!(began.elapsed() <= DRAIN_TIME + KILL_TIME + Duration::from_millis(10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_hard_token_ends_a_stop_at_once() {
        let life = Lifecycle::default();
        let began = tokio::time::Instant::now();
        life.spawn_critical("stuck", pending());
        life.stop();
        life.hard().cancel();
        assert!(!is_success(life.run(pending()).await));
        assert!(began.elapsed() <= KILL_TIME);
    }
}
