//! The agent's process: started, watched, started again, stopped with all it has started.
//!
//! The process runs as a session of its own with an environment built from nothing. It ends with the daemon, however
//! the daemon ends; what an earlier life of the daemon left behind is ended before anything new is started. What
//! should be is told through [`Wanted`]; what is, through [`ProcessStatus`]. It knows nothing of tiers or the server.

mod attend;
pub mod exec;
pub mod leftover;
pub mod output;

use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::accounts::Account;
use output::RotatedFile;

/// Longest pause between two starts of a process that keeps ending.
pub const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A process that ran this long was healthy: the next pause is the shortest again.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// A process alive after this is `running`, not `starting`.
const STARTED_AFTER: Duration = Duration::from_millis(500);

/// When a process that ended by itself is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// Whatever its exit status was.
    #[default]
    Always,
    /// Unless it ended with status 0.
    OnFailure,
    /// Never by itself.
    Never,
}

/// Where the process's output goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Where the daemon's goes: under systemd the journal.
    Inherit,
    /// Into a bounded file.
    File(RotatedFile),
}

/// How the process is started and stopped.
#[derive(Debug, Clone)]
pub struct Launch {
    /// This program; it becomes the command. See [`exec`].
    pub program: PathBuf,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Working directory.
    pub dir: Option<PathBuf>,
    /// Whose rights it has, when not the daemon's.
    pub account: Option<Account>,
    /// How long it may take to end after SIGTERM.
    pub stop_grace: Duration,
    /// Without a sign of progress for this long it is taken as hung.
    pub progress_timeout: Option<Duration>,
    /// When it is started again.
    pub restart: Restart,
    /// Where its output goes.
    pub output: Output,
    /// Where its pid is written down.
    pub record: PathBuf,
    /// This process is the reaper of orphans, so everything below it belongs to the agent's process.
    pub owns_descendants: bool,
}

/// What should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The process should run.
    pub run: bool,
    /// Raised to ask for a fresh start.
    pub generation: u64,
    /// The supervisor should stop the process and end, taking at most this long for it.
    pub finish: Option<Duration>,
    /// Do not wait for the process any more.
    pub force: bool,
}

/// How the process is, in the words of the heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ProcessState {
    /// None is configured.
    #[default]
    None,
    /// Just started.
    Starting,
    /// Alive.
    Running,
    /// Ended by itself; waits before the next start.
    Backoff,
    /// Not meant to run.
    Stopped,
    /// Alive without progress; being stopped.
    Stalled,
}

impl ProcessState {
    /// The word used everywhere.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Backoff => "backoff",
            Self::Stopped => "stopped",
            Self::Stalled => "stalled",
        }
    }
}

/// What is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessStatus {
    /// In one word.
    pub state: ProcessState,
    /// While it is alive.
    pub pid: Option<u32>,
    /// Starts since the daemon began.
    pub starts: u64,
    /// Ends in a row that were too early or by a stall.
    pub failures: u32,
    /// How it ended last.
    pub last_exit: Option<String>,
    /// The [`Wanted::generation`] it was started for.
    pub generation: u64,
}

/// The environment of the next start; asked each time, since tier and model change.
pub type Environment = Box<dyn Fn() -> Vec<(String, String)> + Send + Sync>;

/// Owns the agent's process.
pub struct Supervisor {
    launch: Launch,
    environment: Environment,
    wanted: watch::Receiver<Wanted>,
    progress: watch::Receiver<Instant>,
    status: watch::Sender<ProcessStatus>,
}

/// The pause before the next start.
fn backoff(failures: u32) -> Duration {
    Duration::from_secs(1_u64 << failures.saturating_sub(1).min(6)).min(MAX_BACKOFF)
}

enum End {
    /// By itself.
    Exited(std::process::ExitStatus),
    /// Because it should not run any more, or afresh.
    Stopped,
    /// It made no progress.
    Stalled,
}

impl Supervisor {
    /// A supervisor that follows `wanted` and tells `status`.
    pub const fn new(
        launch: Launch,
        environment: Environment,
        wanted: watch::Receiver<Wanted>,
        progress: watch::Receiver<Instant>,
        status: watch::Sender<ProcessStatus>,
    ) -> Self {
        Self { launch, environment, wanted, progress, status }
    }

    /// Runs until [`Wanted::finish`]; when it returns, the process and all it started have ended.
    pub async fn run(mut self) {
        self.set(|status| status.state = ProcessState::Stopped);
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            if wanted.finish.is_some() {
                break;
            }
            let finished = self.status.borrow().state == ProcessState::Stopped
                && self.status.borrow().starts > 0
                && self.status.borrow().generation == wanted.generation
                && self.status.borrow().last_exit.is_some();
            if !wanted.run || finished {
                if !wanted.run {
                    self.set(|status| {
                        status.state = ProcessState::Stopped;
                        status.last_exit = None;
                    });
                }
                if self.wanted.changed().await.is_err() {
                    break;
                }
                continue;
            }
            self.live_once(wanted.generation).await;
        }
        self.set(|status| status.state = ProcessState::Stopped);
    }

    /// One life of the process and the pause after it.
    async fn live_once(&mut self, generation: u64) {
        let began = Instant::now();
        let (exit, again) = match self.spawn(generation).await {
            Ok(mut child) => match self.attend(&mut child, generation).await {
                End::Stopped => return self.forget_failures(),
                End::Stalled => ("made no progress and was stopped".to_owned(), true),
                End::Exited(status) => (status.to_string(), self.starts_again(status.success())),
            },
            Err(error) => (format!("failed to start: {error}"), true),
        };
        let healthy = began.elapsed() >= HEALTHY_AFTER;
        self.set(|status| {
            status.pid = None;
            status.failures = if healthy { 1 } else { status.failures.saturating_add(1) };
            status.last_exit = Some(exit.clone());
            status.state = if again { ProcessState::Backoff } else { ProcessState::Stopped };
        });
        if !again {
            tracing::info!(exit, "the agent's process ended");
            return;
        }
        let pause = backoff(self.status.borrow().failures);
        tracing::warn!(exit, pause_secs = pause.as_secs(), "the agent's process ended; starting it again");
        self.rest(pause, generation).await;
    }

    const fn starts_again(&self, success: bool) -> bool {
        match self.launch.restart {
            Restart::Always => true,
            Restart::OnFailure => !success,
            Restart::Never => false,
        }
    }

    fn forget_failures(&self) {
        self.set(|status| {
            status.pid = None;
            status.failures = 0;
            status.last_exit = None;
            status.state = ProcessState::Stopped;
        });
    }

    /// Waits out the pause, unless something else is wanted meanwhile.
    async fn rest(&mut self, pause: Duration, generation: u64) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = attend::unwanted(&mut self.wanted, generation) => {}
        }
        if self.wanted.borrow().generation != generation {
            self.set(|status| status.failures = 0);
        }
    }

    fn set(&self, change: impl FnOnce(&mut ProcessStatus)) {
        self.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute() {
        let pauses: Vec<u64> = (1..=9).map(|failures| backoff(failures).as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(backoff(0).as_secs(), 1);
        assert_eq!(backoff(u32::MAX).as_secs(), 60);
    }
}
