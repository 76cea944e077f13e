//! `otonix-agent run`: the service.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use otonix_sdk::secret::Secret;

use super::{Place, api_key, load_config, variables};
use crate::app::{self, Options};
use crate::config::CommandLine;
use crate::{files, telemetry};

/// Threads for disk work; the link needs one, the rest is for moments.
const DISK_THREADS: usize = 4;

/// `run`.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// The API key; better in OTONIX_API_KEY or a file, where other users do not see it
    #[arg(long, env = "OTONIX_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<Secret>,
    /// A file with the API key
    #[arg(long, env = "OTONIX_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// The supervised process; `agent.command` when absent
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

impl Run {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<()> {
        app::harden();
        let state_dir = place.state_dir();
        let state_dir = files::make_state_dir(&state_dir)
            .with_context(|| format!("failed to use {}", state_dir.display()))?;
        let log = match place.log.as_deref().filter(|log| !log.is_empty()) {
            Some(log) => log.to_owned(),
            None => load_config(place, &state_dir)?.log,
        };
        telemetry::start(&log)?;
        let _lock = app::lock(&state_dir)?;
        register_if_new(place, &state_dir)?;
        let mut config = load_config(place, &state_dir)?;
        if !self.command.is_empty() {
            config.agent.command = Some(CommandLine::new(self.command));
        }
        let api_key = api_key(self.api_key, self.api_key_file.as_deref(), &state_dir)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(DISK_THREADS)
            .thread_keep_alive(Duration::from_secs(2))
            .build()?;
        let outcome =
            runtime.block_on(app::run(Options { state_dir, config, api_key, variables: variables() }));
        // Whatever still waits for the disk must not keep the process from ending.
        runtime.shutdown_timeout(Duration::from_millis(200));
        outcome
    }
}

/// Registers at the first start when the environment says as whom; in a process of its own, which takes the memory
/// that the wallet needs with it.
fn register_if_new(place: &Place, state_dir: &Path) -> anyhow::Result<()> {
    let config = load_config(place, state_dir)?;
    let says_who = ["OTONIX_NAME", "OTONIX_ENROL", "OTONIX_ENROL_FILE"];
    if config.agent.id.is_some() || says_who.iter().all(|name| std::env::var_os(name).is_none()) {
        return Ok(());
    }
    let mut init = std::process::Command::new("/proc/self/exe");
    init.arg("--state-dir").arg(state_dir);
    if let Some(config) = &place.config {
        init.arg("--config").arg(config);
    }
    let status = init.arg("init").stdout(std::io::stderr()).status().context("failed to run init")?;
    ensure!(status.success(), "registration failed; the next start tries again");
    Ok(())
}
