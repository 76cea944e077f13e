//! `agent.toml`: one struct per section, every default visible. Environment variables `OTONIX_<SECTION>_<KEY>`
//! win over the file, flags over both. A key that is not known is an error.

mod edit;
mod environment;
mod pay;
mod values;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use figment::Figment;
use figment::providers::{Format as _, Toml};
use otonix_sdk::agent::Transport;
use otonix_sdk::client::ServerUrl;
use otonix_sdk::ids::AgentId;
use otonix_sdk::limits;
use otonix_sdk::standing::SurvivalTier;
use serde::Deserialize;

use crate::supervise::Restart;
use crate::telemetry;

pub use edit::{Identity, with_identity, with_wallet};
pub use pay::{ChainSection, PaySection, TopupSection};
pub use values::{CommandLine, List, Usdc, Variables};

/// The name of the file in the state directory.
pub const FILE: &str = "agent.toml";
/// Where an agent registers when nothing else is said.
pub const DEFAULT_SERVER: &str = "https://app.otonix.tech";

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What is logged: a level, or target=level separated by commas. `--log` and `OTONIX_LOG` win over it.
    pub log: String,
    /// Who the agent is and how its process runs.
    pub agent: AgentSection,
    /// How the control plane is reached.
    pub link: LinkSection,
    /// What each tier means on this machine.
    pub tier: TierSection,
    /// Where the wallet's money is.
    pub chain: ChainSection,
    /// What may be paid.
    pub pay: PaySection,
    /// When credits are bought.
    pub topup: TopupSection,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            log: telemetry::DEFAULT_FILTER.to_owned(),
            agent: AgentSection::default(),
            link: LinkSection::default(),
            tier: TierSection::default(),
            chain: ChainSection::default(),
            pay: PaySection::default(),
            topup: TopupSection::default(),
        }
    }
}

/// `[agent]`: who the agent is and how its process runs.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentSection {
    /// As registered; written by `init`.
    pub id: Option<AgentId>,
    /// As registered; written by `init`.
    pub name: String,
    /// The model it uses unless its tier says otherwise.
    pub model: String,
    /// The address of its wallet; written by `init`.
    pub wallet_address: Option<String>,
    /// The supervised process: a list of program and arguments, or one text for `/bin/sh -c`.
    pub command: Option<CommandLine>,
    /// Its working directory; the daemon's when absent.
    pub dir: Option<PathBuf>,
    /// Whose rights it has: a name, `uid` or `uid:gid`; the daemon's when absent.
    pub user: Option<String>,
    /// More variables: a table, or a list of `NAME=value` and of `NAME` (taken from the daemon's environment).
    pub env: Variables,
    /// When it is started again after it ended: always, on-failure, never.
    pub restart: Restart,
    /// Seconds it may take to end after SIGTERM.
    pub stop_grace: u64,
    /// Seconds without `POST /v1/progress` after which it is taken as hung and started again; 0: never.
    pub progress_timeout: u64,
    /// Where its output goes: journal (the daemon's own output) or file.
    pub output: OutputKind,
    /// With `output = "file"`: the file; `agent.log` in the state directory when absent.
    pub output_file: Option<PathBuf>,
    /// With `output = "file"`: bytes of one part.
    pub output_max_bytes: u64,
    /// With `output = "file"`: how many older parts are kept.
    pub output_keep: u32,
}

impl Default for AgentSection {
    fn default() -> Self {
        Self {
            id: None,
            name: String::new(),
            model: limits::DEFAULT_MODEL.to_owned(),
            wallet_address: None,
            command: None,
            dir: None,
            user: None,
            env: Variables::default(),
            restart: Restart::Always,
            stop_grace: 10,
            progress_timeout: 0,
            output: OutputKind::Journal,
            output_file: None,
            output_max_bytes: 10 * 1024 * 1024,
            output_keep: 3,
        }
    }
}

/// Where the output of the agent's process goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// Where the daemon's goes.
    Journal,
    /// Into a bounded file.
    File,
}

/// `[link]`: how the control plane is reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LinkSection {
    /// Its address; plain http only for loopback.
    pub server: String,
    /// auto (gRPC, REST while that fails), grpc or rest.
    pub transport: Transport,
    /// Seconds between heartbeats until the server says otherwise.
    pub heartbeat_interval: u32,
    /// Bound of the spool, bytes.
    pub spool_max_bytes: u64,
    /// The machine's public address; the server sees the peer's when absent.
    pub vps_ip: Option<String>,
}

impl Default for LinkSection {
    fn default() -> Self {
        Self {
            server: DEFAULT_SERVER.to_owned(),
            transport: Transport::Auto,
            heartbeat_interval: limits::DEFAULT_HEARTBEAT_INTERVAL,
            spool_max_bytes: 256 * 1024 * 1024,
            vps_ip: None,
        }
    }
}

/// `[tier]`: what each tier means on this machine.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TierSection {
    /// No restrictions.
    pub full: TierEffects,
    /// Cheap models, no optional work.
    pub conservation: TierEffects,
    /// Only what keeps the agent alive.
    pub critical: TierEffects,
    /// Out of money: the agent's process is stopped.
    pub terminated: TierEffects,
}

impl TierSection {
    /// The effects of a tier.
    pub const fn of(&self, tier: SurvivalTier) -> &TierEffects {
        match tier {
            SurvivalTier::Full => &self.full,
            SurvivalTier::Conservation => &self.conservation,
            SurvivalTier::Critical => &self.critical,
            SurvivalTier::Terminated => &self.terminated,
        }
    }

    /// Whether work that can wait should be done in a tier: unless configured, only in `full`.
    pub fn optional_work(&self, tier: SurvivalTier) -> bool {
        self.of(tier).optional_work.unwrap_or(tier == SurvivalTier::Full)
    }
}

/// `[tier.<name>]`: what one tier means.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TierEffects {
    /// Longest time between heartbeats, seconds; the server's when absent.
    pub interval: Option<u32>,
    /// The model to use; chosen by tier and budget when absent.
    pub model: Option<String>,
    /// Whether work that can wait is done.
    pub optional_work: Option<bool>,
}

impl Config {
    /// Reads a file (which may be absent) and the environment over it, and checks every value.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn load(file: &Path, variables: &[(String, String)]) -> anyhow::Result<Self> {
        let text = crate::files::read_text(file)
            .with_context(|| format!("failed to read {}", file.display()))?
            .unwrap_or_default();
        Self::parse(&text, variables).with_context(|| format!("failed to use {}", file.display()))
    }

    /// Reads a text and the environment over it, and checks every value.
    ///
    /// # Errors
    /// A sentence that names the key.
    pub fn parse(text: &str, variables: &[(String, String)]) -> anyhow::Result<Self> {
        let config: Self = Figment::new()
            .merge(Toml::string(text))
            .merge(environment::provider(variables)?)
            .extract()
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> anyhow::Result<()> {
        telemetry::filter(&self.log).context("`log` is no filter")?;
        limits::check_name("agent.model", &self.agent.model, limits::MODEL)?;
        if !self.agent.name.is_empty() {
            limits::check_name("agent.name", &self.agent.name, limits::NAME)?;
        }
        let interval = |name: &str, value: u32| {
            if limits::HEARTBEAT_INTERVAL.contains(&value) {
                return Ok(());
            }
            let range = limits::HEARTBEAT_INTERVAL;
            bail!("`{name}` must be {} to {} seconds", range.start(), range.end())
        };
        interval("link.heartbeat_interval", self.link.heartbeat_interval)?;
        for tier in
            [SurvivalTier::Full, SurvivalTier::Conservation, SurvivalTier::Critical, SurvivalTier::Terminated]
        {
            let effects = self.tier.of(tier);
            if let Some(value) = effects.interval {
                interval(&format!("tier.{tier}.interval"), value)?;
            }
            if let Some(model) = &effects.model {
                limits::check_name("tier model", model, limits::MODEL)?;
            }
        }
        if self.agent.stop_grace > 3600 {
            bail!("`agent.stop_grace` must be at most 3600 seconds");
        }
        if self.agent.output_max_bytes < 4096 || self.agent.output_keep > 100 {
            bail!("`agent.output_max_bytes` must be at least 4096, `agent.output_keep` at most 100");
        }
        if self.link.spool_max_bytes < 1024 * 1024 {
            bail!("`link.spool_max_bytes` must be at least 1048576");
        }
        if self.agent.command.as_ref().is_some_and(CommandLine::is_empty) {
            bail!("`agent.command` must not be empty");
        }
        check_server(&self.link.server)?;
        self.chain.token()?;
        Ok(())
    }
}

/// The address of a control plane: https, or http on loopback.
///
/// # Errors
/// A sentence that says what it must be.
pub fn check_server(server: &str) -> anyhow::Result<ServerUrl> {
    ServerUrl::parse(server).map_err(|why| anyhow::anyhow!("the server's address `{server}` {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> anyhow::Result<Config> {
        Config::parse(text, &[])
    }

    #[test]
    fn the_defaults_are_those_of_the_contract() {
        let config = parse("").expect("empty is fine");
        assert_eq!(config.link.server, DEFAULT_SERVER);
        assert_eq!(config.pay.max_payment.to_string(), "1");
        assert_eq!(config.pay.max_hour.to_string(), "5");
        assert_eq!(config.pay.max_day.to_string(), "20");
        assert_eq!(config.pay.reserve.to_string(), "0");
        assert_eq!(config.topup.below.to_string(), "12");
        assert_eq!(config.topup.amount.to_string(), "10");
        assert_eq!(config.agent.stop_grace, 10);
        assert!(config.tier.optional_work(SurvivalTier::Full));
        assert!(!config.tier.optional_work(SurvivalTier::Conservation));
    }

    #[test]
    fn every_section_is_read() {
        let config = parse(
            r#"
            [agent]
            name = "Alpha"
            command = ["python3", "agent.py"]
            user = "nobody"
            env = ["A=1"]
            restart = "on-failure"
            progress_timeout = 30
            output = "file"
            [link]
            server = "http://127.0.0.1:8402"
            transport = "rest"
            [tier.critical]
            interval = 300
            model = "claude-haiku-4-5"
            [tier.full]
            optional_work = false
            [pay]
            max_day = "2.5"
            reserve = 1
            hosts = ["*"]
            [topup]
            amount = "3"
            "#,
        )
        .expect("parses");
        assert_eq!(config.agent.restart, Restart::OnFailure);
        assert_eq!(config.agent.output, OutputKind::File);
        assert_eq!(config.link.transport, Transport::Rest);
        assert_eq!(config.tier.critical.interval, Some(300));
        assert!(!config.tier.optional_work(SurvivalTier::Full));
        assert_eq!(config.pay.max_day.to_string(), "2.5");
        assert_eq!(config.pay.reserve.to_string(), "1");
    }

    #[test]
    fn what_is_not_known_is_an_error_that_names_it() {
        for (text, named) in [
            ("[agent]\nnmae = 'x'", "nmae"),
            ("[agnet]\n", "agnet"),
            ("[tier.wealthy]\ninterval = 60", "wealthy"),
            ("[pay]\nmax_day = '1.2345678'", "max_day"),
            ("[pay]\nmax_day = 1.5", "max_day"),
            ("[pay]\nmax_day = '-1'", "max_day"),
            ("[link]\nheartbeat_interval = 4", "heartbeat_interval"),
            ("[link]\nserver = 'http://example.com'", "https"),
            ("[agent]\ncommand = []", "command"),
            ("[agent]\nrestart = 'sometimes'", "restart"),
        ] {
            let error = format!("{:#}", parse(text).expect_err(text));
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn plain_http_is_for_loopback_only() {
        for fine in [
            "https://app.otonix.tech",
            "http://127.0.0.1:8402",
            "http://localhost:1/",
            "http://[::1]:8402",
            "http://127.9.9.9",
        ] {
            assert!(check_server(fine).is_ok(), "{fine}");
        }
        for refused in [
            "http://10.0.0.1:8402",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "http://user@127.0.0.1",
            "ftp://localhost",
            "localhost:8402",
            "",
            "https://",
        ] {
            assert!(check_server(refused).is_err(), "{refused}");
        }
    }
}
