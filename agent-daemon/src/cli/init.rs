//! `otonix-agent init`: the wallet, the registration, `agent.toml`. Safe to repeat and to interrupt: the wallet is
//! on disk before anybody hears of it, and a repeat finds the same wallet and the same agent.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use otonix_sdk::api::agents::{Agent, RegisterAgent};
use otonix_sdk::api::events::Standing;
use otonix_sdk::clock::{Clock as _, SystemClock};
use otonix_sdk::limits;
use otonix_sdk::link::standing;
use otonix_sdk::secret::Secret;
use otonix_sdk::standing::Thresholds;
use otonix_sdk::wallet::{Wallet, keystore, random_passphrase};

use super::{API_KEY, KEYSTORE, PASSPHRASE, Place, api_key, enrol, load_config, passphrase, runtime, say};
use crate::config::{self, Config, Identity};
use crate::{app, files};

/// `init`.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// The control plane [default: https://app.otonix.tech]
    #[arg(long, env = "OTONIX_SERVER", value_name = "URL")]
    server: Option<String>,
    /// The API key; better in OTONIX_API_KEY or a file, where other users do not see it
    #[arg(long, env = "OTONIX_API_KEY", hide_env_values = true, value_name = "KEY")]
    api_key: Option<Secret>,
    /// A file with the API key
    #[arg(long, env = "OTONIX_API_KEY_FILE", value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// A one-time enrolment token, in place of an API key; better in OTONIX_ENROL or a file
    #[arg(long, env = "OTONIX_ENROL", hide_env_values = true, value_name = "TOKEN")]
    enrol: Option<Secret>,
    /// A file with the enrolment token
    #[arg(long, env = "OTONIX_ENROL_FILE", value_name = "FILE")]
    enrol_file: Option<PathBuf>,
    /// The agent's name; the same owner and name are the same agent
    #[arg(long, env = "OTONIX_NAME", value_name = "NAME")]
    name: Option<String>,
    /// The model it uses
    #[arg(long, env = "OTONIX_MODEL", value_name = "M")]
    model: Option<String>,
    /// A file with the prompt it was born with
    #[arg(long, env = "OTONIX_GENESIS_PROMPT_FILE", value_name = "FILE")]
    genesis_prompt_file: Option<PathBuf>,
    /// Seconds between heartbeats
    #[arg(long, env = "OTONIX_HEARTBEAT_INTERVAL", value_name = "SECONDS")]
    heartbeat_interval: Option<u32>,
    /// A file with the wallet's passphrase [default: the credential wallet-passphrase, else one is made]
    #[arg(long, env = "OTONIX_PASSPHRASE_FILE", value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Init {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<()> {
        app::harden();
        let state_dir = place.state_dir();
        let state_dir = files::make_state_dir(&state_dir)
            .with_context(|| format!("failed to make {}", state_dir.display()))?;
        let lock = files::Lock::take(&state_dir.join("init.lock"))?;
        let _lock = lock.context("another init runs on this state directory")?;
        let config_file = place.config_file(&state_dir);
        let config = load_config(place, &state_dir)?;
        let token = self.token()?;
        let request = self.request(&config, token.is_some())?;
        let server = config::check_server(self.server.as_deref().unwrap_or(&config.link.server))?;
        let given = api_key(self.api_key.clone(), self.api_key_file.as_deref(), &state_dir);
        // Without a key and without a token nothing is made.
        let given = if token.is_some() { given.ok() } else { Some(given?) };

        let (wallet, made) = open_or_make_wallet(&state_dir, self.passphrase_file.as_deref())?;
        let address = wallet.address().to_string();
        let model = request.model.clone();
        let runtime = runtime()?;
        let (agent, key) = match (token, given) {
            (Some(token), given) => {
                let known = config.agent.id.zip(given);
                let becoming = enrol::enrol(&server, &token, known, &wallet, request, self.name.clone());
                runtime.block_on(becoming)?
            }
            (None, Some(key)) => {
                let known = config.agent.id;
                let becoming = enrol::register(&server, &key, known, &wallet, request);
                (runtime.block_on(becoming)?, key)
            }
            (None, None) => bail!("there is no API key"),
        };
        drop(wallet);
        runtime.block_on(enrol::keep_birth(&server, &key, &agent, &state_dir))?;
        files::write_private(&state_dir.join(API_KEY), format!("{}\n", key.expose()).as_bytes())
            .context("failed to keep the API key")?;
        let identity = Identity {
            server: server.as_str().to_owned(),
            id: agent.id,
            name: agent.name.clone(),
            model: model.unwrap_or_else(|| agent.model.clone()),
            wallet_address: address.clone(),
        };
        remember_standing(&state_dir, &agent).context("failed to keep the standing")?;
        let old = files::read_text(&config_file)?;
        let new = config::with_identity(old.as_deref(), &identity)
            .with_context(|| format!("failed to edit {}", config_file.display()))?;
        if old.as_deref() != Some(&new) {
            files::write_private(&config_file, new.as_bytes())
                .with_context(|| format!("failed to write {}", config_file.display()))?;
        }
        say(format!("agent    {} {}", agent.name, agent.id));
        say(format!("server   {server}"));
        say(format!("wallet   {address}{}", if made { " (new)" } else { "" }));
        say(format!("tier     {}, {} USDC", agent.survival_tier, agent.credits));
        say(format!("config   {}", config_file.display()));
        warn_about_wallet(agent.wallet_address.as_deref(), agent.wallet_proven, &address);
        Ok(())
    }

    fn token(&self) -> anyhow::Result<Option<Secret>> {
        match (&self.enrol, &self.enrol_file) {
            (Some(token), _) => Ok(Some(token.clone())),
            (None, Some(file)) => super::secret_file(file)?
                .with_context(|| format!("there is no enrolment token in {}", file.display()))
                .map(Some),
            (None, None) => Ok(None),
        }
    }

    /// What to register, the wallet apart. Who enrols is who the token says, and leaves open what nobody has chosen.
    fn request(&self, config: &Config, enrols: bool) -> anyhow::Result<RegisterAgent> {
        let known = Some(config.agent.name.clone()).filter(|name| !name.is_empty());
        let name = match self.name.clone().or_else(|| known.clone()) {
            Some(name) => name,
            None if enrols => String::new(),
            None => bail!("the agent needs a name: give --name"),
        };
        if !name.is_empty() {
            limits::check_name("name", &name, limits::NAME)?;
        }
        if let (Some(id), Some(known)) = (config.agent.id, known) {
            ensure!(
                known == name,
                "this state directory belongs to the agent {known} ({id}); use another --state-dir for {name}"
            );
        }
        let genesis_prompt = match &self.genesis_prompt_file {
            Some(file) => {
                let text =
                    files::read_text(file)?.with_context(|| format!("there is no {}", file.display()))?;
                limits::check_text("genesisPrompt", &text, limits::GENESIS_PROMPT)?;
                Some(text)
            }
            None => None,
        };
        let model = self.model.clone().or_else(|| (!enrols).then(|| config.agent.model.clone()));
        if let Some(model) = &model {
            limits::check_name("model", model, limits::MODEL)?;
        }
        let interval =
            self.heartbeat_interval.or_else(|| (!enrols).then_some(config.link.heartbeat_interval));
        Ok(RegisterAgent {
            name,
            model,
            vps_ip: config.link.vps_ip.clone(),
            wallet_address: None,
            wallet_proof: None,
            genesis_prompt,
            heartbeat_interval: interval,
        })
    }
}

/// The wallet of the state directory; a new one when there is none. The second value says which.
fn open_or_make_wallet(state_dir: &Path, file: Option<&Path>) -> anyhow::Result<(Wallet, bool)> {
    let path = state_dir.join(KEYSTORE);
    let known = passphrase(file, state_dir)?;
    if path.try_exists().with_context(|| format!("failed to look for {}", path.display()))? {
        let secret = known.with_context(|| {
            let place = state_dir.join(PASSPHRASE);
            format!(
                "there is a wallet but no passphrase: restore {}, or give --passphrase-file",
                place.display()
            )
        })?;
        let wallet = keystore::open(&path, &secret).context("failed to open the wallet")?;
        return Ok((wallet, false));
    }
    let secret = match known {
        Some(secret) => secret,
        None => {
            let secret = random_passphrase();
            // First the passphrase: a keystore that nothing opens would be a lost wallet.
            files::write_private(&state_dir.join(PASSPHRASE), format!("{}\n", secret.expose()).as_bytes())
                .context("failed to keep the wallet's passphrase")?;
            secret
        }
    };
    let wallet = Wallet::generate();
    keystore::create(&path, &wallet, &secret).context("failed to keep the wallet")?;
    Ok((wallet, true))
}

/// Keeps where the agent stands for a daemon that first starts without a server; one that has run knows better.
fn remember_standing(state_dir: &Path, agent: &Agent) -> std::io::Result<()> {
    if state_dir.join("standing.json").exists() {
        return Ok(());
    }
    let standing = Standing {
        survival_tier: agent.survival_tier,
        status: agent.status,
        credits: agent.credits,
        funded: agent.funded,
        grace_until: agent.grace_until,
        heartbeat_interval: agent.heartbeat_interval,
        killed: agent.killed_at.is_some(),
    };
    standing::store(state_dir, &standing, Thresholds::default(), SystemClock.now())
}

fn warn_about_wallet(registered: Option<&str>, proven: bool, own: &str) {
    let same = registered.is_some_and(|registered| registered.eq_ignore_ascii_case(own));
    if !same {
        say(format!(
            "warning  the server knows this agent by another wallet ({}); deposits to the one above are not seen",
            registered.unwrap_or("none")
        ));
    } else if !proven {
        say("warning  the server could not verify the wallet's proof; is its public URL the one given here?");
    }
}
