//! One life of the agent's process: its start, the watch over it, its end with everything it has started.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::{End, Output, ProcessState, STARTED_AFTER, Supervisor, Wanted, exec, leftover};
use crate::process_tree::{self, Process};

/// How often the remains of a process are looked at while they end.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long processes that were sent SIGKILL are waited for; only ones stuck in the kernel outlive it.
const KILL_WAIT: Duration = Duration::from_secs(2);

/// A process that was started and not yet reaped.
pub(super) struct Life {
    child: Child,
    pid: i32,
    start: u64,
    began: Instant,
}

impl Supervisor {
    /// Starts the process: first our own program, which becomes the command once its pid is on disk.
    pub(super) async fn spawn(&self, generation: u64) -> io::Result<Life> {
        let arguments =
            exec::arguments(std::process::id(), self.launch.account.as_ref(), &self.launch.command);
        let mut command = Command::new(&self.launch.program);
        command.args(arguments).env_clear().envs((self.environment)()).stdin(Stdio::piped());
        if let Some(dir) = &self.launch.dir {
            command.current_dir(dir);
        }
        if let Output::File(file) = &self.launch.output {
            let (reader, writer) = io::pipe()?;
            command.stdout(writer.try_clone()?).stderr(writer);
            tokio::spawn(file.clone().copy(reader));
        }
        command.kill_on_drop(true);
        let mut child = command.spawn()?;
        drop(command);
        let id = child.id().ok_or_else(|| io::Error::other("it ended at once"))?;
        self.set(|status| {
            status.state = ProcessState::Starting;
            status.pid = Some(id);
            status.starts += 1;
            status.generation = generation;
        });
        let pid = i32::try_from(id).map_err(io::Error::other)?;
        let start = process_tree::read(pid).map_or(0, |process| process.start);
        if let Err(error) = leftover::note(&self.launch, pid, start) {
            // A full disk must not keep the agent from running; it still dies with the daemon.
            tracing::warn!(%error, "failed to write down the agent's process");
        }
        if let Some(mut go) = child.stdin.take() {
            // When it has ended already, its exit status says more than this error.
            let _ = go.write_all(&[exec::GO]).await;
        }
        tracing::info!(pid, "the agent's process was started");
        Ok(Life { child, pid, start, began: Instant::now() })
    }

    /// Watches over the process until it has ended, by itself or by us, with everything it has started.
    pub(super) async fn attend(&mut self, life: &mut Life, generation: u64) -> End {
        let mut started = false;
        loop {
            let stalls_at = self
                .launch
                .progress_timeout
                .map(|timeout| (*self.progress.borrow_and_update()).max(life.began) + timeout);
            tokio::select! {
                exit = life.child.wait() => {
                    self.end(life, true, self.launch.stop_grace).await;
                    return exit.map_or(End::Stopped, End::Exited);
                }
                finish = unwanted(&mut self.wanted, generation) => {
                    let grace = finish.unwrap_or(self.launch.stop_grace).min(self.launch.stop_grace);
                    self.end(life, false, grace).await;
                    return End::Stopped;
                }
                () = sleep(STARTED_AFTER), if !started => {
                    started = true;
                    self.set(|status| status.state = ProcessState::Running);
                }
                () = sleep_until(stalls_at), if stalls_at.is_some() => {
                    // Progress may have been made while this slept.
                    if stalls_at.is_some_and(|at| self.stalled(life, at)) {
                        self.set(|status| status.state = ProcessState::Stalled);
                        tracing::warn!(pid = life.pid, "the agent's process makes no progress; stopping it");
                        self.end(life, false, self.launch.stop_grace).await;
                        return End::Stalled;
                    }
                }
            }
        }
    }

    fn stalled(&self, life: &Life, at: Instant) -> bool {
        let timeout = self.launch.progress_timeout.unwrap_or_default();
        (*self.progress.borrow()).max(life.began) + timeout <= at
    }

    /// SIGTERM, the grace, SIGKILL: to the process and all it has started.
    async fn end(&mut self, life: &mut Life, mut reaped: bool, grace: Duration) {
        let deadline = Instant::now() + grace;
        self.signal_all(life, reaped, Signal::TERM);
        while !(reaped && self.remains(life).is_empty()) {
            tokio::select! {
                _ = life.child.wait(), if !reaped => reaped = true,
                () = sleep(LOOK_AGAIN), if reaped => {}
                () = tokio::time::sleep_until(deadline) => break,
                () = forced(&mut self.wanted) => break,
            }
        }
        let give_up = Instant::now() + KILL_WAIT;
        while !(reaped && self.remains(life).is_empty()) && Instant::now() < give_up {
            self.signal_all(life, reaped, Signal::KILL);
            tokio::select! {
                _ = life.child.wait(), if !reaped => reaped = true,
                () = sleep(LOOK_AGAIN) => {}
            }
        }
        leftover::forget(&self.launch);
    }

    fn signal_all(&self, life: &Life, reaped: bool, signal: Signal) {
        // Looked up first: the children of a dead process are no longer known as its own.
        let remains = self.remains(life);
        if !reaped {
            // Until it has made its own group, it is reached by its pid alone.
            let grouped = Pid::from_raw(life.pid).is_some_and(|pid| kill_process_group(pid, signal).is_ok());
            if !grouped {
                process_tree::signal(life.pid, signal);
            }
        }
        for process in remains {
            if reaped || process.group != life.pid {
                process_tree::signal(process.pid, signal);
            }
            if signal == Signal::TERM {
                // A stopped process hears SIGTERM only when it goes on.
                process_tree::signal(process.pid, Signal::CONT);
            }
        }
    }

    /// What the process has started and is still alive. The first process is not counted.
    fn remains(&self, life: &Life) -> Vec<Process> {
        let all = process_tree::all();
        let mine = i32::try_from(std::process::id()).unwrap_or_default();
        let descendants = if self.launch.owns_descendants {
            process_tree::descendants(mine, &all)
        } else {
            process_tree::descendants(life.pid, &all)
        };
        all.iter()
            .filter(|process| process.pid != life.pid && process.pid != mine && !process.zombie)
            .filter(|process| {
                let of_session = process.session == life.pid || process.group == life.pid;
                (of_session && process.start >= life.start)
                    || descendants.iter().any(|found| found.pid == process.pid)
            })
            .copied()
            .collect()
    }
}

/// Waits until the process should not run any more, or afresh; returns the time left when all is to end.
pub(super) async fn unwanted(wanted: &mut watch::Receiver<Wanted>, generation: u64) -> Option<Duration> {
    let other = |wanted: &Wanted| !wanted.run || wanted.finish.is_some() || wanted.generation != generation;
    wanted.wait_for(other).await.ok().and_then(|wanted| wanted.finish)
}

async fn forced(wanted: &mut watch::Receiver<Wanted>) {
    // When nobody is left to ask for anything, nothing is waited for either.
    let _ = wanted.wait_for(|wanted| wanted.force).await;
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
