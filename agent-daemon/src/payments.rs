//! The wallet in the running daemon: unlocked once, in the background, and given to the agent. Whatever is wrong with
//! it is said by name and leaves everything else running.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use otonix_sdk::agent::Agent;
use otonix_sdk::clock::SystemClock;
use otonix_sdk::pay::{Client, PayConfig, Tuning};
use otonix_sdk::secret::Secret;
use otonix_sdk::wallet::{Wallet, keystore};
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cli::{KEYSTORE, passphrase};
use crate::config::Config;
use crate::shared::Shared;

/// The folder of the payment journal in the state directory.
pub const FOLDER: &str = "pay";

/// Whether the wallet can pay.
#[derive(Debug, Clone, Default)]
pub enum Payments {
    /// The wallet is being unlocked.
    #[default]
    Starting,
    /// Nothing is paid, for this reason.
    Off(String),
    /// The wallet pays.
    On(Client),
}

/// How payments are, for people and programs.
#[derive(Debug, Clone, Serialize)]
pub struct PaymentsStatus {
    /// starting, off, waiting or on.
    pub state: &'static str,
    /// Why, unless on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Payments {
    /// For people and programs.
    pub fn status(&self) -> PaymentsStatus {
        match self {
            Self::Starting => PaymentsStatus { state: "starting", detail: None },
            Self::Off(why) => PaymentsStatus { state: "off", detail: Some(why.clone()) },
            Self::On(client) => match client.standstill() {
                Some(why) => PaymentsStatus { state: "waiting", detail: Some(why) },
                None => PaymentsStatus { state: "on", detail: None },
            },
        }
    }
}

/// What a paying client is opened with.
///
/// # Errors
/// A sentence that names what is missing or wrong.
pub fn config(config: &Config, state_dir: &Path, api_key: Option<Secret>) -> anyhow::Result<PayConfig> {
    anyhow::ensure!(
        !config.chain.rpc.0.is_empty(),
        "no node of the chain is configured: set `[chain] rpc` or OTONIX_CHAIN_RPC"
    );
    Ok(PayConfig {
        dir: state_dir.join(FOLDER),
        rules: config.pay_rules()?,
        allow_private: config.pay.allow_private_addresses,
        rpc: config.chain.rpc.0.clone(),
        api_key,
        tuning: Tuning::default(),
    })
}

/// Opens the wallet of a state directory. Takes 128 MiB for a moment, and gives them back.
///
/// # Errors
/// A sentence that names the file and what is wrong with it.
pub fn unlock(state_dir: &Path, file: Option<&Path>) -> anyhow::Result<Wallet> {
    let path = state_dir.join(KEYSTORE);
    let secret = passphrase(file, state_dir)?.context("the wallet has no passphrase")?;
    keystore::open(&path, &secret).context("the wallet cannot be opened")
}

/// Unlocks the wallet and lets the agent pay.
async fn enable(
    agent: &Agent,
    settings: &Config,
    state_dir: &Path,
    api_key: Secret,
) -> anyhow::Result<Client> {
    let config = config(settings, state_dir, Some(api_key))?;
    let dir = state_dir.to_owned();
    let wallet = tokio::task::spawn_blocking(move || unlock(&dir, None)).await.context("unlocking")??;
    Ok(agent.enable_payments(config, wallet, Some(settings.topup_rules())).await?)
}

/// Enables payments, and follows pause and resume, until it is cancelled.
pub async fn run(shared: Shared, api_key: Secret, cancel: CancellationToken) {
    let enabling = enable(&shared.agent, &shared.config, &shared.state_dir, api_key);
    let enabled = tokio::select! {
        () = cancel.cancelled() => return,
        enabled = enabling => enabled,
    };
    let client = match enabled {
        Ok(client) => client,
        Err(error) => {
            let why = format!("{error:#}");
            tracing::warn!(why, "payments are off");
            shared.payments.send_replace(Payments::Off(why));
            return cancel.cancelled().await;
        }
    };
    tracing::info!(wallet = %client.address(), "payments are on");
    let mut settings = shared.settings.subscribe();
    client.set_paused(pause(&shared));
    shared.payments.send_replace(Payments::On(client.clone()));
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = settings.changed() => if changed.is_err() { return },
        }
        client.set_paused(pause(&shared));
    }
}

fn pause(shared: &Shared) -> Option<String> {
    if shared.config.pay.paused {
        return Some("by `[pay] paused` on this machine".to_owned());
    }
    shared.payments_paused().then(|| "by a command; resume_payments lets them go on".to_owned())
}

/// A channel that says how payments are.
pub fn channel() -> watch::Sender<Payments> {
    watch::Sender::new(Payments::Starting)
}

/// A client of a state directory that no daemon runs on.
///
/// # Errors
/// A sentence that names what is missing or wrong.
pub fn alone(settings: &Config, state_dir: &Path, file: Option<&Path>) -> anyhow::Result<Client> {
    let config = config(settings, state_dir, None)?;
    let wallet = unlock(state_dir, file)?;
    let client = Client::open(config, wallet, Arc::new(SystemClock))?;
    if settings.pay.paused {
        client.set_paused(Some("by `[pay] paused` on this machine".to_owned()));
    }
    Ok(client)
}
