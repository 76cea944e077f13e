//! The whole agent in one type: what the daemon runs and what Rust agents embed.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Url;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};

use crate::api::actions::LogAction;
use crate::api::commands::Command;
use crate::api::events::EventBody;
use crate::api::usage::LogUsage;
use crate::clock::SystemClock;
use crate::ids::{AgentId, EventId};
use crate::limits::{self, Invalid};
use crate::link::core::{Core, LinkConfig, on_disk, tidy};
use crate::link::run;
use crate::link::spool::OpenError;
use crate::money::{Cost, MicroUsd};
use crate::pay::topup::TopupRules;
use crate::pay::{self, Asker, Fetch, Fetched, PayConfig, PayError, Request, keep};
use crate::standing::SurvivalTier;
use crate::wallet::Wallet;

pub use crate::link::{LinkStatus, LocalStanding, RecordError, Secret, Transport, Tuning, Vitals};

/// What an agent needs to start.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The control plane's address, e.g. `https://otonix.example`; plain http only for loopback.
    pub server: String,
    /// The key sent with every call.
    pub api_key: Secret,
    /// As registered.
    pub agent_id: AgentId,
    /// As registered.
    pub name: String,
    /// Where spool, standing and journals are kept; one agent per directory.
    pub state_dir: PathBuf,
    /// Shown to the server.
    pub wallet_address: Option<String>,
    /// Bound of the spool, bytes.
    pub spool_max_bytes: u64,
    /// How the server is reached.
    pub transport: Transport,
    /// The model in use.
    pub model: String,
    /// Seconds between heartbeats until the server says otherwise.
    pub heartbeat_interval: u32,
    /// The machine's public address, when known.
    pub vps_ip: Option<String>,
    /// The version of the program, for the server's records.
    pub version: String,
}

impl AgentConfig {
    /// The needed parts; everything else at its default.
    pub fn new(
        server: impl Into<String>,
        api_key: Secret,
        agent_id: AgentId,
        state_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            server: server.into(),
            api_key,
            agent_id,
            name: String::new(),
            state_dir: state_dir.into(),
            wallet_address: None,
            spool_max_bytes: 256 * 1024 * 1024,
            transport: Transport::Auto,
            model: limits::DEFAULT_MODEL.to_owned(),
            heartbeat_interval: limits::DEFAULT_HEARTBEAT_INTERVAL,
            vps_ip: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The configuration is wrong.
    #[error("configuration: {0}")]
    Config(String),
    /// A file or folder of the state directory cannot be used.
    #[error("failed to use {}", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// What the file system says.
        source: std::io::Error,
    },
    /// Another process has the state directory.
    #[error("the state directory is in use by another process")]
    Locked,
}

/// A live agent; a cheap handle. Dropping the last one stops the link where it is; nothing recorded is lost.
#[derive(Clone, Debug)]
pub struct Agent(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    core: Arc<Core>,
    commands: Mutex<Option<mpsc::Receiver<Command>>>,
    link: Mutex<Option<JoinHandle<()>>>,
    link_abort: AbortHandle,
    persist: AbortHandle,
    closed: AtomicBool,
    payer: Mutex<Option<pay::Client>>,
    paying: Mutex<Vec<AbortHandle>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop_paying();
        self.link_abort.abort();
        self.persist.abort();
    }
}

impl Handle {
    fn stop_paying(&self) {
        let tasks = std::mem::take(&mut *self.paying.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.iter().for_each(AbortHandle::abort);
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Reads the control plane's address; plain http is for loopback only.
fn server_url(text: &str) -> Result<Url, AgentError> {
    let url =
        Url::parse(text).map_err(|error| AgentError::Config(format!("`{text}` is no address: {error}")))?;
    match (url.scheme(), url.host_str()) {
        ("https", Some(_)) => Ok(url),
        ("http", Some(host)) if is_loopback(host) => Ok(url),
        ("http", Some(_)) => {
            Err(AgentError::Config("plain http is allowed for this machine only; use https".to_owned()))
        }
        _ => Err(AgentError::Config(format!("`{text}` is no http address"))),
    }
}

impl Agent {
    /// Opens the state directory and starts the link. Works offline.
    ///
    /// # Errors
    /// [`AgentError`] when the configuration is wrong or the directory cannot be used.
    pub async fn start(config: AgentConfig) -> Result<Self, AgentError> {
        Self::start_tuned(config, Tuning::default()).await
    }

    /// Like [`Agent::start`], with other waiting times.
    ///
    /// # Errors
    /// [`AgentError`] when the configuration is wrong or the directory cannot be used.
    pub async fn start_tuned(config: AgentConfig, tuning: Tuning) -> Result<Self, AgentError> {
        // Fails when the program has chosen one before, which then serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let link = LinkConfig {
            server: server_url(&config.server)?,
            api_key: config.api_key,
            agent_id: config.agent_id,
            state_dir: config.state_dir,
            wallet_address: config.wallet_address,
            spool_max_bytes: config.spool_max_bytes,
            transport: config.transport,
            heartbeat_interval: config.heartbeat_interval,
            vps_ip: config.vps_ip,
            version: config.version,
            tuning,
        };
        let path = link.state_dir.clone();
        let opened = on_disk(move || Core::open(link)).await;
        let stopped = || OpenError::of(&path, std::io::Error::other("the opening stopped"));
        let (core, commands) = opened.unwrap_or_else(|| Err(stopped())).map_err(|error| match error {
            OpenError::Locked => AgentError::Locked,
            OpenError::Unusable { path, source } => AgentError::Unusable { path, source },
        })?;
        let link = tokio::spawn(run::run(Arc::clone(&core)));
        let persist = tokio::spawn(run::persist(Arc::clone(&core))).abort_handle();
        Ok(Self(Arc::new(Handle {
            core,
            commands: Mutex::new(Some(commands)),
            link_abort: link.abort_handle(),
            link: Mutex::new(Some(link)),
            persist,
            closed: AtomicBool::new(false),
            payer: Mutex::default(),
            paying: Mutex::default(),
        })))
    }

    /// Records what the agent did; returns once it is on disk. The same key and content get the same id.
    ///
    /// # Errors
    /// [`RecordError`]; nothing was recorded.
    pub async fn log_action(
        &self,
        action: LogAction,
        idempotency_key: Option<&str>,
    ) -> Result<EventId, RecordError> {
        self.checked(EventBody::Action(action), idempotency_key).await
    }

    /// Records a model call; returns once it is on disk. Without a cost the price table's is spent locally.
    ///
    /// # Errors
    /// [`RecordError`]; nothing was recorded.
    pub async fn log_usage(
        &self,
        usage: LogUsage,
        idempotency_key: Option<&str>,
    ) -> Result<EventId, RecordError> {
        self.checked(EventBody::Usage(usage), idempotency_key).await
    }

    /// Records any event: tier effects, command results, payments. A command has one result, the first.
    ///
    /// # Errors
    /// [`RecordError`]; nothing was recorded.
    pub async fn record(&self, body: EventBody) -> Result<EventId, RecordError> {
        self.checked(body, None).await
    }

    async fn checked(&self, mut body: EventBody, key: Option<&str>) -> Result<EventId, RecordError> {
        if self.0.closed.load(Ordering::Acquire) {
            return Err(RecordError::Closed);
        }
        if let Some(key) = key {
            limits::check_text("idempotencyKey", key, limits::NAME)?;
        }
        match &body {
            EventBody::Action(action) => limits::check_action(
                &action.action,
                &action.category,
                action.details.as_deref().unwrap_or_default(),
                action.status.as_deref().unwrap_or("completed"),
            )?,
            EventBody::Usage(usage) => {
                if usage.agent_id.is_some_and(|id| id != self.id()) {
                    return Err(Invalid::new("agentId", "must be this agent's").into());
                }
                let cached = usage.tokens_cached.unwrap_or(0);
                let cost = usage.cost.map(Cost::get);
                limits::check_usage(&usage.model, usage.tokens_in, usage.tokens_out, cached, cost)?;
            }
            EventBody::Payment(_)
            | EventBody::TierEffect(_)
            | EventBody::CommandResult(_)
            | EventBody::Lost(_) => tidy(&mut body),
        }
        self.0.core.record(body, key).await
    }

    /// Lets the agent pay from a wallet: goes on with what is not over, tells the link of every payment, and with
    /// `topup` buys credits when they fall.
    ///
    /// # Errors
    /// [`PayError`] when the journal or the configuration cannot be used.
    pub async fn enable_payments(
        &self,
        config: PayConfig,
        wallet: Wallet,
        topup: Option<TopupRules>,
    ) -> Result<pay::Client, PayError> {
        let opened = on_disk(move || pay::Client::open(config, wallet, Arc::new(SystemClock))).await;
        let client = opened.ok_or(PayError::Closed)??;
        client.resume();
        let core = &self.0.core;
        let mut tasks = vec![tokio::spawn(keep::report(Arc::clone(core), client.clone())).abort_handle()];
        tasks.push(tokio::spawn(keep::compare(client.clone())).abort_handle());
        if let Some(rules) = topup {
            let alive = keep::alive(Arc::clone(core), client.clone(), rules);
            tasks.push(tokio::spawn(alive).abort_handle());
        }
        self.0.paying.lock().unwrap_or_else(PoisonError::into_inner).append(&mut tasks);
        *self.0.payer.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        Ok(client)
    }

    /// The paying client, once payments are enabled.
    pub fn payer(&self) -> Option<pay::Client> {
        self.0.payer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks at any URL, and pays at most `max_amount` when that is asked for and allowed. With a key the same request
    /// is never paid twice; without one it joins a payment of the same request that is not over.
    ///
    /// # Errors
    /// [`PayError`]; nothing was signed for this request.
    pub async fn fetch(
        &self,
        request: Request,
        max_amount: MicroUsd,
        idempotency_key: Option<&str>,
    ) -> Result<Fetched, PayError> {
        let client = self.payer().ok_or_else(|| PayError::Paused("no wallet is enabled".to_owned()))?;
        let key = idempotency_key.map(str::to_owned);
        client.fetch(Fetch { request, max_amount, key, asker: Asker::Agent, tier: self.tier() }).await
    }

    /// The tier that counts for payments.
    pub fn tier(&self) -> SurvivalTier {
        let standing = self.standing();
        if standing.killed { SurvivalTier::Terminated } else { standing.survival_tier }
    }

    /// Where the agent stands: the last known standing less what was spent since.
    pub fn standing(&self) -> LocalStanding {
        self.0.core.keeper.current()
    }

    /// Changes of the standing.
    pub fn standing_changes(&self) -> watch::Receiver<LocalStanding> {
        self.0.core.keeper.changes()
    }

    /// The commands for this machine, each once and none expired. `None` when taken before.
    pub fn take_commands(&self) -> Option<mpsc::Receiver<Command>> {
        self.0.commands.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Sets what the next heartbeats say of the machine.
    pub fn set_vitals(&self, vitals: Vitals) {
        self.0.core.vitals.send_replace(vitals);
    }

    /// Asks for heartbeats at least this often, seconds; `None`: as often as the server says.
    pub fn set_max_interval(&self, secs: Option<u32>) {
        self.0.core.keeper.limit_interval(secs);
    }

    /// How the link is.
    pub fn status(&self) -> LinkStatus {
        self.0.core.status()
    }

    /// The list cost of a call by the last known price table; `None` for an unknown model.
    pub fn price_cost(
        &self,
        model: &str,
        tokens_in: i64,
        tokens_out: i64,
        tokens_cached: i64,
    ) -> Option<MicroUsd> {
        self.0.core.prices.cost(model, tokens_in, tokens_out, tokens_cached)
    }

    /// The agent's id.
    pub fn id(&self) -> AgentId {
        self.0.core.config.agent_id
    }

    /// Sends what is waiting, says goodbye and stops; at most 5 s. Later records are refused; what could not
    /// be sent is sent after the next start.
    pub async fn shutdown(&self) {
        self.0.stop_paying();
        self.0.closed.store(true, Ordering::Release);
        self.0.core.stop.cancel();
        let link = self.0.link.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(link) = link
            && tokio::time::timeout(self.0.core.config.tuning.shutdown, link).await.is_err()
        {
            self.0.link_abort.abort();
        }
        self.0.persist.abort();
        self.0.core.disconnected(None);
        let core = Arc::clone(&self.0.core);
        on_disk(move || core.keeper.persist()).await;
        self.0.core.spool.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_this_machine_only() {
        for fine in
            ["https://otonix.example", "http://127.0.0.1:8402", "http://localhost:1", "http://[::1]:8402/"]
        {
            assert!(server_url(fine).is_ok(), "{fine}");
        }
        for bad in
            ["http://otonix.example", "http://10.0.0.1:8402", "ftp://x", "127.0.0.1:8402", "unix:/x", ""]
        {
            assert!(server_url(bad).is_err(), "{bad}");
        }
    }
}
