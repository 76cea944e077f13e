//! What the parts of the running daemon share, and what commands have set (kept over restarts).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use otonix_sdk::agent::{Agent, LocalStanding};
use otonix_sdk::api::local::ModelChoice;
use otonix_sdk::client::Client;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::routing::{self, Catalogue, Criticality};
use otonix_sdk::standing::SurvivalTier;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;

use crate::config::Config;
use crate::files;
use crate::payments::Payments;
use crate::supervise::{ProcessStatus, Wanted};

/// Notices that a slow reader of `GET /v1/events` may be behind.
const MAX_NOTICES: usize = 32;

/// What commands have set. Kept in `daemon.json`, so that a restart of the daemon changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// The agent's process was stopped by a command.
    pub held: bool,
    /// The model set by a command.
    pub model: Option<String>,
    /// The heartbeat interval set by a command.
    pub interval: Option<u32>,
    /// Payments were paused by a command.
    pub payments_paused: bool,
}

/// What the agent's process is told on `GET /v1/events`.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Tier, credits or model changed.
    Standing,
    /// A command was executed.
    Command {
        /// Its id.
        id: String,
        /// What was asked.
        kind: String,
        /// Whether it was done.
        ok: bool,
    },
    /// The agent's process is about to be stopped.
    Shutdown {
        /// Why.
        reason: &'static str,
        /// Seconds until it is killed.
        grace_secs: u64,
    },
}

/// Cheap to clone.
pub type Shared = Arc<Parts>;

/// The parts.
#[derive(Debug)]
pub struct Parts {
    /// The link to the server.
    pub agent: Agent,
    /// For what the link does not carry.
    pub control_plane: Client,
    /// As read at the start.
    pub config: Config,
    /// Absolute.
    pub state_dir: PathBuf,
    /// There is a process to supervise.
    pub has_command: bool,
    /// What the process should do.
    pub wanted: watch::Sender<Wanted>,
    /// What the process does.
    pub process: watch::Sender<ProcessStatus>,
    /// When the process last said that it gets on.
    pub progress: watch::Sender<Instant>,
    /// For `GET /v1/events`.
    pub notices: broadcast::Sender<Notice>,
    /// What commands have set.
    pub settings: watch::Sender<Settings>,
    /// Whether the wallet can pay.
    pub payments: watch::Sender<Payments>,
    /// Who shows it on the socket is the machine's owner.
    pub owner_token: String,
    /// When the daemon began.
    pub began: Instant,
}

impl Parts {
    /// Where the settings are kept.
    pub fn settings_path(state_dir: &Path) -> PathBuf {
        state_dir.join("daemon.json")
    }

    /// A channel for notices.
    pub fn notices() -> broadcast::Sender<Notice> {
        broadcast::channel(MAX_NOTICES).0
    }

    /// Tells the agent's process, if it listens.
    pub fn tell(&self, notice: Notice) {
        // Nobody listening is the usual case.
        let _ = self.notices.send(notice);
    }

    /// Changes what commands have set; on disk before it counts.
    ///
    /// # Errors
    /// What the disk says; nothing was changed.
    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) -> std::io::Result<()> {
        let mut settings = self.settings.borrow().clone();
        change(&mut settings);
        files::write_json(&Self::settings_path(&self.state_dir), &settings)?;
        self.settings.send_if_modified(|current| {
            let changed = *current != settings;
            *current = settings;
            changed
        });
        Ok(())
    }

    /// Asks for beats more often than the server does; a rarer beat would be taken for silence.
    pub fn beat_at_least_every(&self, interval_secs: Option<u32>) {
        self.agent.set_max_interval(interval_secs);
    }

    /// Nothing is paid: by the machine's owner or by a command.
    pub fn payments_paused(&self) -> bool {
        self.config.pay.paused || self.settings.borrow().payments_paused
    }

    /// The model for a call. A model configured for the tier wins over one set by a command, both over the choice by
    /// budget.
    pub fn model(&self, criticality: Criticality, max_latency_ms: Option<u32>) -> ModelChoice {
        let standing = self.agent.standing();
        let tier = tier_of(&standing);
        if let Some(model) = &self.config.tier.of(tier).model {
            return ModelChoice { model: model.clone(), reason: format!("configured for the tier {tier}") };
        }
        if let Some(model) = &self.settings.borrow().model {
            return ModelChoice { model: model.clone(), reason: "set by a command".to_owned() };
        }
        let preferred = &self.config.agent.model;
        let budget = if standing.known { standing.credits } else { MicroUsd::from_micros(i64::MAX) };
        routing::choose(tier, budget, criticality, max_latency_ms, &Catalogue::default(), preferred)
    }

    /// The model for everyday calls.
    pub fn usual_model(&self) -> String {
        self.model(Criticality::Normal, None).model
    }
}

/// The tier that counts here.
pub const fn tier_of(standing: &LocalStanding) -> SurvivalTier {
    if standing.killed { SurvivalTier::Terminated } else { standing.survival_tier }
}
