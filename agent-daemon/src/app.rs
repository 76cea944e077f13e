//! The running daemon: builds every part once, watches over them, and ends them in order.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use otonix_sdk::agent::{Agent, AgentConfig, Secret as LinkSecret};
use otonix_sdk::client::{Client, ClientConfig, Credential, RetryPolicy};
use otonix_sdk::ids::AgentId;
use otonix_sdk::secret::Secret;
use rustix::fs::Mode;
use rustix::process::{DumpableBehavior, Pid, WaitOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::accounts::{self, Account};
use crate::cli::enrol::{GENESIS, LAWS};
use crate::config::{Config, OutputKind};
use crate::local_api::{self, LocalApi};
use crate::shared::{Notice, Parts, Settings, Shared, tier_of};
use crate::supervise::output::RotatedFile;
use crate::supervise::{Environment, Launch, Output, ProcessStatus, Supervisor, Wanted, leftover};
use crate::{commands, files, footprint, payments, probe, process_tree, systemd, tier_keeper};

/// Where the agent's process is written down.
pub(crate) const PROCESS_RECORD: &str = "process.json";
/// The lock that one daemon holds.
pub(crate) const LOCK: &str = "daemon.lock";
/// How long the agent's process may take to end when the daemon stops, whatever is configured.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long the last events may take to be sent when the daemon stops.
const FLUSH: Duration = Duration::from_millis(2500);
/// The programs that the agent's process finds without more configuration.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How often machine and link are looked at for heartbeat and status line.
const LOOK: Duration = Duration::from_secs(15);

/// What `run` was told.
#[derive(Debug)]
pub struct Options {
    /// Absolute.
    pub state_dir: PathBuf,
    /// From file, environment and flags.
    pub config: Config,
    /// The key of the agent.
    pub api_key: Secret,
    /// The environment of the daemon.
    pub variables: Vec<(String, String)>,
}

/// Makes the process private: no other user reads its memory, and what it writes is its own.
pub fn harden() {
    rustix::process::umask(Mode::from_raw_mode(0o077));
    if let Err(error) = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "failed to keep the process's memory private");
    }
}

/// Takes the state directory for this process.
///
/// # Errors
/// When another daemon has it.
pub fn lock(state_dir: &Path) -> anyhow::Result<files::Lock> {
    let path = state_dir.join(LOCK);
    let lock = files::Lock::take(&path).with_context(|| format!("failed to lock {}", path.display()))?;
    lock.with_context(|| format!("another otonix-agent runs on {}", state_dir.display()))
}

/// Runs until a signal ends it. Call it on the thread that lives as long as the process: the agent's process
/// dies with the thread that started it.
///
/// # Errors
/// When a part cannot be built, or has died.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let socket = options.state_dir.join(local_api::SOCKET);
    let account = account_of(&options.config)?;
    let ended = leftover::end(&options.state_dir.join(PROCESS_RECORD), &socket).await;
    if ended > 0 {
        tracing::warn!(processes = ended, "ended what an earlier daemon left running");
    }
    if account.is_some() {
        files::make_passable(&options.state_dir)?;
    }
    let api = LocalApi::bind(&socket, account.as_ref())?;
    let api_key = options.api_key.clone();
    let (shared, supervisor) = build(options, account).await?;

    let cancel = CancellationToken::new();
    let mut parts = JoinSet::new();
    parts.spawn(api.serve(Shared::clone(&shared), cancel.clone()));
    parts.spawn(payments::run(Shared::clone(&shared), api_key, cancel.clone()));
    parts.spawn(tier_keeper::run(Shared::clone(&shared), cancel.clone()));
    if let Some(commands) = shared.agent.take_commands() {
        let executing = commands::run(Shared::clone(&shared), commands);
        let cancel = cancel.clone();
        parts.spawn(async move {
            tokio::select! {
                () = executing => {}
                () = cancel.cancelled() => {}
            }
        });
    }
    let mut supervisor = supervisor.map(|supervisor| tokio::spawn(supervisor.run()));
    systemd::ready();
    tokio::spawn(footprint::settle());
    tracing::info!(agent.id = %shared.agent.id(), socket = %socket.display(), "running");

    let outcome = watch_over(&shared, &mut parts, &mut supervisor, &mut signals).await;
    systemd::stopping();
    stop(&shared, supervisor, &cancel, &mut signals).await;
    outcome
}

async fn build(options: Options, account: Option<Account>) -> anyhow::Result<(Shared, Option<Supervisor>)> {
    let Options { state_dir, config, api_key, variables } = options;
    let Some(agent_id) = config.agent.id else {
        bail!("the agent is not registered; run `otonix-agent init`")
    };
    if let Err(error) = rustix::process::set_child_subreaper(Pid::from_raw(1)) {
        tracing::warn!(%error, "orphans of the agent's process will not be found");
    }
    let settings_path = Parts::settings_path(&state_dir);
    let settings: Settings = files::read_json(&settings_path)
        .with_context(|| format!("failed to read {}", settings_path.display()))?
        .unwrap_or_default();
    let control_plane = Client::new(ClientConfig {
        server: crate::config::check_server(&config.link.server)?,
        credential: Credential::ApiKey(api_key.clone()),
        retry: RetryPolicy::default(),
    })?;
    let agent = Agent::start(link_config(&config, agent_id, &api_key, &state_dir)).await?;
    let (wanted, wants) = watch::channel(Wanted::default());
    let (progress, progresses) = watch::channel(Instant::now());
    let process = watch::Sender::new(ProcessStatus::default());
    let launch = launch(&config, &state_dir, account.clone())?;
    let owner_token = local_api::pay::write_owner_token(&state_dir);
    let shared = Shared::new(Parts {
        agent,
        control_plane,
        config,
        state_dir,
        has_command: launch.is_some(),
        wanted,
        process: process.clone(),
        progress,
        notices: Parts::notices(),
        settings: watch::channel(settings).0,
        payments: payments::channel(),
        owner_token,
        began: Instant::now(),
    });
    let supervisor = launch.map(|launch| {
        let environment = environment(Shared::clone(&shared), account, variables);
        Supervisor::new(launch, environment, wants, progresses, process)
    });
    Ok((shared, supervisor))
}

/// The account of the agent's process, when it is not the daemon's own.
fn account_of(config: &Config) -> anyhow::Result<Option<Account>> {
    let Some(user) = &config.agent.user else { return Ok(None) };
    let account = accounts::account(user).map_err(|why| anyhow::anyhow!("`agent.user`: {why}"))?;
    Ok(Some(account).filter(|account| account.uid != rustix::process::getuid().as_raw()))
}

fn link_config(config: &Config, agent_id: AgentId, api_key: &Secret, state_dir: &Path) -> AgentConfig {
    let mut link =
        AgentConfig::new(&*config.link.server, LinkSecret::new(api_key.expose()), agent_id, state_dir);
    link.name.clone_from(&config.agent.name);
    link.wallet_address.clone_from(&config.agent.wallet_address);
    link.spool_max_bytes = config.link.spool_max_bytes;
    link.transport = config.link.transport;
    link.model.clone_from(&config.agent.model);
    link.heartbeat_interval = config.link.heartbeat_interval;
    link.vps_ip.clone_from(&config.link.vps_ip);
    env!("CARGO_PKG_VERSION").clone_into(&mut link.version);
    link
}

fn launch(config: &Config, state_dir: &Path, account: Option<Account>) -> anyhow::Result<Option<Launch>> {
    let agent = &config.agent;
    let Some(command) = &agent.command else { return Ok(None) };
    let output = match agent.output {
        OutputKind::Journal => Output::Inherit,
        OutputKind::File => Output::File(RotatedFile {
            path: agent.output_file.clone().unwrap_or_else(|| state_dir.join("agent.log")),
            max_bytes: agent.output_max_bytes,
            keep: agent.output_keep,
        }),
    };
    Ok(Some(Launch {
        // This very program, also when its file has been replaced meanwhile.
        program: PathBuf::from("/proc/self/exe"),
        command: command.words().to_vec(),
        dir: agent.dir.clone(),
        account,
        stop_grace: Duration::from_secs(agent.stop_grace),
        progress_timeout: Some(Duration::from_secs(agent.progress_timeout))
            .filter(|timeout| !timeout.is_zero()),
        restart: agent.restart,
        output,
        record: state_dir.join(PROCESS_RECORD),
        owns_descendants: true,
    }))
}

/// The environment of the agent's process, built from nothing.
fn environment(shared: Shared, account: Option<Account>, variables: Vec<(String, String)>) -> Environment {
    let own = rustix::process::getuid().as_raw();
    let home = account.map_or_else(|| accounts::home_of(own), |account| account.home);
    let configured = shared.config.agent.env.resolve(&variables);
    Box::new(move || {
        let mut environment = vec![
            ("PATH".to_owned(), PATH.to_owned()),
            ("HOME".to_owned(), home.clone()),
            ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ];
        environment.extend(configured.iter().cloned());
        let socket = shared.state_dir.join(local_api::SOCKET).display().to_string();
        environment.extend([
            ("OTONIX_SOCKET".to_owned(), socket),
            ("OTONIX_AGENT_ID".to_owned(), shared.agent.id().to_string()),
            ("OTONIX_SURVIVAL_TIER".to_owned(), tier_of(&shared.agent.standing()).to_string()),
            ("OTONIX_MODEL".to_owned(), shared.usual_model()),
        ]);
        for (name, file) in [("OTONIX_LAWS_FILE", LAWS), ("OTONIX_GENESIS_PROMPT_FILE", GENESIS)] {
            let path = shared.state_dir.join(file);
            if path.exists() {
                environment.push((name.to_owned(), path.display().to_string()));
            }
        }
        environment
    })
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    child: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            child: signal(SignalKind::child())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::Stop,
            _ = self.interrupt.recv() => Heard::Stop,
            _ = self.child.recv() => Heard::Child,
            _ = self.hangup.recv() => Heard::Hangup,
        }
    }

    async fn stop(&mut self) {
        while !matches!(self.next().await, Heard::Stop) {}
    }
}

/// A signal that the daemon acts on.
enum Heard {
    /// Asked to stop.
    Stop,
    /// A child of this process has ended.
    Child,
    /// A terminal was closed, which does not end a service.
    Hangup,
}

/// The main loop: until a signal asks to stop, or a part has died.
async fn watch_over(
    shared: &Shared,
    parts: &mut JoinSet<()>,
    supervisor: &mut Option<JoinHandle<()>>,
    signals: &mut Signals,
) -> anyhow::Result<()> {
    let mut watchdog = tokio::time::interval(systemd::watchdog_interval().unwrap_or(LOOK));
    let mut look = tokio::time::interval(LOOK);
    for timer in [&mut watchdog, &mut look] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut process = shared.process.subscribe();
    let mut standings = shared.agent.standing_changes();
    loop {
        tokio::select! {
            heard = signals.next() => match heard {
                Heard::Stop => break,
                Heard::Child => reap_orphans(shared),
                Heard::Hangup => {}
            },
            _ = watchdog.tick() => systemd::alive(),
            _ = look.tick() => report(shared),
            Ok(()) = process.changed() => report(shared),
            Ok(()) = standings.changed() => report(shared),
            Some(ended) = parts.join_next() => {
                ended.context("a part of the daemon has died")?;
                bail!("a part of the daemon has ended");
            }
            _ = ended(supervisor) => {
                *supervisor = None;
                bail!("the supervisor has died");
            }
        }
    }
    Ok(())
}

async fn ended(supervisor: &mut Option<JoinHandle<()>>) {
    match supervisor {
        // Its outcome is a panic, which was logged.
        Some(supervisor) => drop(supervisor.await),
        None => std::future::pending().await,
    }
}

/// Tells the next heartbeats and the service manager how things are.
fn report(shared: &Shared) {
    let word = shared.process.borrow().state.as_str();
    shared.agent.set_vitals(probe::vitals(&shared.state_dir, word));
    let standing = shared.agent.standing();
    let connected = if shared.agent.status().connected { "connected" } else { "not connected" };
    let (tier, credits) = (tier_of(&standing), standing.credits);
    systemd::status(&format!("{connected}, {tier}, {credits} USDC, agent process {word}"));
}

/// Reaps what the agent's process has left behind: as their reaper, nobody else does.
fn reap_orphans(shared: &Shared) {
    let Ok(mine) = i32::try_from(std::process::id()) else { return };
    let supervised = shared.process.borrow().pid;
    for process in process_tree::all() {
        let orphan =
            process.parent == mine && process.zombie && u32::try_from(process.pid).ok() != supervised;
        if orphan && let Some(pid) = Pid::from_raw(process.pid) {
            // Gone already is fine.
            let _ = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

/// Ends every part in order, within ten seconds; a second signal does not wait.
async fn stop(
    shared: &Shared,
    supervisor: Option<JoinHandle<()>>,
    cancel: &CancellationToken,
    signals: &mut Signals,
) {
    tracing::info!("stopping");
    let grace = Duration::from_secs(shared.config.agent.stop_grace).min(STOP_GRACE);
    shared.tell(Notice::Shutdown { reason: "the daemon stops", grace_secs: grace.as_secs() });
    shared.wanted.send_modify(|wanted| wanted.finish = Some(grace));
    let mut forced = false;
    if let Some(mut supervisor) = supervisor {
        loop {
            tokio::select! {
                _ = &mut supervisor => break,
                again = signals.next() => match again {
                    Heard::Child => reap_orphans(shared),
                    Heard::Stop => {
                        forced = true;
                        shared.wanted.send_modify(|wanted| wanted.force = true);
                    }
                    Heard::Hangup => {}
                },
            }
        }
    }
    cancel.cancel();
    if forced {
        return;
    }
    tokio::select! {
        () = shared.agent.shutdown() => {}
        () = tokio::time::sleep(FLUSH) => tracing::info!("what was not sent waits in the spool"),
        () = signals.stop() => {}
    }
}
