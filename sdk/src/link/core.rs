//! What the link's parts share: the state directory, the configuration, the books.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use otonix_proto::v1 as pb;
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::api::commands::Command;
use crate::api::events::{CommandResult, EventBody};
use crate::clock::{Clock as _, SystemClock, new_id};
use crate::convert;
use crate::error::ErrorCode;
use crate::ids::{AgentId, CommandId, EventId};
use crate::limits::{self, Invalid, MAX_EVENT_BYTES};
use crate::link::commands::Journal;
use crate::link::keys::{self, KeyBook, Seen};
use crate::link::prices::Prices;
use crate::link::rejects::Rejects;
use crate::link::spool::{Class, OpenError, Spool, SpoolError};
use crate::link::standing::Keeper;
use crate::link::{LinkStatus, RecordError, Secret, Transport, Vitals};

/// The folder of the spool in the state directory.
pub(crate) const SPOOL: &str = "spool";
/// The file of the commands that came.
pub(crate) const COMMANDS: &str = "commands.jsonl";
/// The file of what the server refused.
pub(crate) const REJECTS: &str = "rejects.jsonl";
/// Commands that wait for the program to take them.
const MAX_COMMANDS_WAITING: usize = 64;

/// Waiting times of the link. The defaults are for production; tests shorten them.
#[derive(Debug, Clone)]
pub struct Tuning {
    /// First wait after a failure.
    pub backoff_base: Duration,
    /// Longest wait after failures.
    pub backoff_cap: Duration,
    /// A session whose events are not acknowledged for so long is given up.
    pub ack_timeout: Duration,
    /// Connecting, and the answer to the first message.
    pub hello_timeout: Duration,
    /// The wait after a newer session took over, at least.
    pub superseded_pause: Duration,
    /// The wait while the key is refused or the agent is not there.
    pub refused_pause: Duration,
    /// How often gRPC is tried again while REST is used.
    pub grpc_probe: Duration,
    /// Failures of gRPC in a row before REST is tried.
    pub grpc_failures: u32,
    /// HTTP/2 ping interval.
    pub keepalive: Duration,
    /// The longest stop.
    pub shutdown: Duration,
    /// The address to connect from.
    pub local_address: Option<IpAddr>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            backoff_base: Duration::from_millis(250),
            backoff_cap: Duration::from_secs(60),
            ack_timeout: Duration::from_secs(30),
            hello_timeout: Duration::from_secs(20),
            superseded_pause: Duration::from_secs(60),
            refused_pause: Duration::from_secs(120),
            grpc_probe: Duration::from_secs(240),
            grpc_failures: 3,
            keepalive: Duration::from_secs(30),
            shutdown: Duration::from_secs(5),
            local_address: None,
        }
    }
}

/// What the link needs to know.
#[derive(Debug, Clone)]
pub(crate) struct LinkConfig {
    pub server: reqwest::Url,
    pub api_key: Secret,
    pub agent_id: AgentId,
    pub state_dir: PathBuf,
    pub wallet_address: Option<String>,
    pub spool_max_bytes: u64,
    pub transport: Transport,
    pub heartbeat_interval: u32,
    pub vps_ip: Option<String>,
    pub version: String,
    pub tuning: Tuning,
}

#[derive(Debug, Default)]
struct Health {
    transport: Option<Transport>,
    last_error: Option<String>,
    /// Why the server takes nothing from this agent, until it takes something again.
    refused: Option<ErrorCode>,
    /// The server's time when it was last heard, and when that was.
    server_time: Option<(DateTime<Utc>, Instant)>,
}

/// The shared parts.
#[derive(Debug)]
pub(crate) struct Core {
    pub config: LinkConfig,
    pub spool: Spool,
    pub keeper: Keeper,
    pub prices: Prices,
    pub vitals: watch::Sender<Vitals>,
    /// Finish what is under way and stop.
    pub stop: CancellationToken,
    rejects: Mutex<Rejects>,
    journal: Mutex<Journal>,
    keys: Mutex<KeyBook>,
    health: Mutex<Health>,
    commands: mpsc::Sender<Command>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs what waits for the disk beside the runtime.
pub(crate) async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

impl Core {
    /// Opens the state directory. Waits for the disk.
    pub(crate) fn open(config: LinkConfig) -> Result<(Arc<Self>, mpsc::Receiver<Command>), OpenError> {
        let dir: &Path = &config.state_dir;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| OpenError::of(dir, error))?;
        let (spool, unacked) = Spool::open(&dir.join(SPOOL), config.spool_max_bytes)?;
        let commands_path = dir.join(COMMANDS);
        let journal = Journal::open(commands_path.clone(), SystemClock.now())
            .map_err(|error| OpenError::of(&commands_path, error))?;
        let (commands, taken) = mpsc::channel(MAX_COMMANDS_WAITING);
        let core = Self {
            keeper: Keeper::open(dir, unacked, config.heartbeat_interval),
            prices: Prices::open(dir),
            rejects: Mutex::new(Rejects::open(dir.join(REJECTS))),
            journal: Mutex::new(journal),
            keys: Mutex::new(KeyBook::open(dir.join("idempotency"))),
            vitals: watch::Sender::new(Vitals::default()),
            stop: CancellationToken::new(),
            health: Mutex::new(Health::default()),
            commands,
            spool,
            config,
        };
        Ok((Arc::new(core), taken))
    }

    /// Records an event; answers once it is on disk. The same key and content are recorded once.
    pub(crate) async fn record(&self, body: EventBody, key: Option<&str>) -> Result<EventId, RecordError> {
        let command = match &body {
            EventBody::CommandResult(result) => Some(result.command_id),
            _ => None,
        };
        let (class, spent) = self.class_and_cost(&body);
        let undeliverable = self.undeliverable(&body);
        let at = SystemClock.now();
        let mut event = convert::event_to_pb(0, EventId::new(uuid::Uuid::nil()), at, body);
        let content = keys::fingerprint(
            &pb::Event { body: event.body.clone(), ..pb::Event::default() }.encode_to_vec(),
        );
        // One result per command, whoever reports it and how often.
        let id = match (key, command) {
            (Some(key), _) => keys::id_of(self.config.agent_id, key),
            (None, Some(command)) => result_id(self.config.agent_id, command),
            (None, None) => EventId::new(new_id()),
        };
        event.id = id.to_string();
        let payload = event.encode_to_vec();
        if payload.len() > MAX_EVENT_BYTES {
            return Err(Invalid::new(
                "details",
                format!("must keep the event within {MAX_EVENT_BYTES} bytes"),
            )
            .into());
        }
        if key.is_some() {
            match lock(&self.keys).ask(id, content) {
                Seen::Record => {}
                Seen::Recorded => return Ok(id),
                Seen::Reused => return Err(RecordError::IdempotencyKeyReused),
            }
        }
        if let Some(error) = undeliverable {
            if key.is_some() {
                lock(&self.keys).refused(id);
            }
            return Err(error);
        }
        self.keeper.spend(spent);
        let appended = self.spool.append(payload, id.uuid(), spent, class).await;
        if let Err(error) = appended {
            self.keeper.unspend(spent);
            if key.is_some() {
                lock(&self.keys).refused(id);
            }
            return Err(refusal(error));
        }
        if key.is_some() {
            lock(&self.keys).recorded(id, content);
        }
        if let Some(command) = command {
            lock(&self.journal).done(command);
        }
        Ok(id)
    }

    /// Why the server would never store an event; what is accepted here must arrive.
    fn undeliverable(&self, body: &EventBody) -> Option<RecordError> {
        match body {
            _ if self.keeper.current().killed => Some(RecordError::Killed),
            EventBody::Usage(usage) if self.prices.lacks(usage) => {
                Some(RecordError::UnknownModel(usage.model.clone()))
            }
            EventBody::Action(_)
            | EventBody::Usage(_)
            | EventBody::Payment(_)
            | EventBody::TierEffect(_)
            | EventBody::CommandResult(_)
            | EventBody::Lost(_) => None,
        }
    }

    fn class_and_cost(&self, body: &EventBody) -> (Class, u64) {
        match body {
            EventBody::Action(_) => (Class::Action, 0),
            EventBody::Usage(usage) => {
                let cached = usage.tokens_cached.unwrap_or(0);
                let listed = || self.prices.cost(&usage.model, usage.tokens_in, usage.tokens_out, cached);
                let cost = usage.cost.map(crate::money::Cost::get).or_else(listed).unwrap_or_default();
                (Class::Vital, u64::try_from(cost.micros()).unwrap_or(0))
            }
            EventBody::Payment(_)
            | EventBody::TierEffect(_)
            | EventBody::CommandResult(_)
            | EventBody::Lost(_) => (Class::Vital, 0),
        }
    }

    /// A command came from the server: hands it out unless it came before or is too late.
    pub(crate) async fn command(self: &Arc<Self>, command: Command) {
        if lock(&self.journal).knows(command.id) {
            return;
        }
        // Without room it is not noted, so the server's next delivery counts.
        let Ok(place) = self.commands.clone().try_reserve_owned() else {
            tracing::warn!(command.id = %command.id, "too many commands wait; this one is left to a later delivery");
            return;
        };
        let now = self.server_now();
        let core = Arc::clone(self);
        let (id, expires_at) = (command.id, command.expires_at);
        let noted = on_disk(move || lock(&core.journal).receive(id, expires_at, now)).await;
        match noted {
            Some(Ok(true)) if expires_at <= now => self.fail_command(id, "expired before it arrived").await,
            Some(Ok(true)) => drop(place.send(command)),
            Some(Ok(false)) | None => {}
            Some(Err(error)) => {
                tracing::warn!(%error, command.id = %id, "failed to note a command; it is not carried out");
            }
        }
    }

    /// Reports what was handed out before the last stop and never finished.
    pub(crate) async fn fail_unfinished(&self) {
        let unfinished = lock(&self.journal).unfinished();
        for id in unfinished {
            self.fail_command(id, "interrupted by a restart").await;
        }
    }

    async fn fail_command(&self, command_id: CommandId, why: &str) {
        let result = CommandResult { command_id, ok: false, detail: Some(why.to_owned()) };
        if let Err(error) = self.record(EventBody::CommandResult(result), None).await {
            tracing::warn!(%error, command.id = %command_id, "failed to record the end of a command");
        }
    }

    /// The server's time as far as it is known, since the machine's clock may be wrong.
    pub(crate) fn server_now(&self) -> DateTime<Utc> {
        let known = lock(&self.health).server_time;
        known
            .and_then(|(at, heard)| at.checked_add_signed(TimeDelta::from_std(heard.elapsed()).ok()?))
            .unwrap_or_else(|| SystemClock.now())
    }

    pub(crate) fn heard_time(&self, at: DateTime<Utc>) {
        lock(&self.health).server_time = Some((at, Instant::now()));
    }

    pub(crate) fn connected(&self, transport: Transport) {
        let mut health = lock(&self.health);
        if health.transport != Some(transport) {
            tracing::info!(?transport, "connected to the control plane");
        }
        health.transport = Some(transport);
        health.refused = None;
    }

    /// The server takes nothing from this agent until something is changed there or here.
    pub(crate) fn refused(&self, code: ErrorCode) {
        lock(&self.health).refused = Some(code);
    }

    pub(crate) fn disconnected(&self, why: Option<String>) {
        let mut health = lock(&self.health);
        let was = health.transport.take();
        if let Some(why) = why {
            if was.is_some() || health.last_error.as_ref() != Some(&why) {
                tracing::info!(error = %why, "no connection to the control plane; records are kept on disk");
            }
            health.last_error = Some(why);
        }
    }

    pub(crate) fn status(&self) -> LinkStatus {
        let health = lock(&self.health);
        let mut spool = self.spool.status();
        spool.rejected = lock(&self.rejects).count();
        LinkStatus {
            connected: health.transport.is_some(),
            transport: health.transport,
            spool,
            last_error: health.last_error.clone(),
            refused: if self.keeper.current().killed { Some(ErrorCode::AgentKilled) } else { health.refused },
            epoch: self.spool.view().epoch.to_string(),
        }
    }

    /// Runs with the reject file; waits for the disk.
    pub(crate) async fn with_rejects(self: &Arc<Self>, work: impl FnOnce(&mut Rejects) + Send + 'static) {
        let core = Arc::clone(self);
        on_disk(move || work(&mut lock(&core.rejects))).await;
    }
}

fn result_id(agent: AgentId, command: CommandId) -> EventId {
    keys::id_of(agent, &format!("\0command result {command}"))
}

fn refusal(error: SpoolError) -> RecordError {
    match error {
        SpoolError::Full => RecordError::SpoolFull,
        SpoolError::DiskFull => RecordError::DiskFull,
        SpoolError::TooLarge => Invalid::new("details", "must be shorter").into(),
        SpoolError::Disk | SpoolError::Closed => RecordError::Closed,
    }
}

/// Makes a body's free texts such that the server stores them: no NUL, not too long.
pub(crate) fn tidy(body: &mut EventBody) {
    let text = |text: &mut String, most: usize| {
        if text.contains('\0') {
            *text = text.replace('\0', "\u{fffd}");
        }
        if let Some((cut, _)) = text.char_indices().nth(most) {
            text.truncate(cut);
        }
    };
    let details = |part: &mut Option<String>| {
        if let Some(part) = part {
            text(part, *limits::DETAILS.end() / 2);
        }
    };
    match body {
        EventBody::Action(_) | EventBody::Usage(_) => {}
        EventBody::Payment(part) => {
            details(&mut part.detail);
            details(&mut part.url);
        }
        EventBody::TierEffect(part) => details(&mut part.detail),
        EventBody::CommandResult(part) => details(&mut part.detail),
        EventBody::Lost(part) => text(&mut part.reason, 1024),
    }
}
