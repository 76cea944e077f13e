//! Configuration: every option is a flag, an environment variable (`OTONIX_` and its name) and a key of the TOML file;
//! flag wins over environment over file. `options` is the list of them, `resolve` fills in defaults and checks,
//! `files` reads what options name, `values` the forms that a value may have.

mod files;
mod options;
mod resolve;
mod values;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use otonix_sdk::api::enrolment::Laws;
use otonix_sdk::secret::Secret;
use otonix_sdk::standing::Thresholds;
use serde::Deserialize;

use crate::auth::Mode;
use crate::service::children::Lineage;
use crate::service::purchases::bootstrap::Package;
use crate::treasury::PaymentSettings;
use crate::upstream::vendors::VendorSettings;

pub use options::Options;

/// The Otonix control plane.
#[derive(Debug, Parser)]
#[command(name = "otonix-control-plane", version)]
pub struct Cli {
    #[command(flatten)]
    pub options: Options,
    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Cli {
    /// Reads arguments and environment; ends the program where they cannot be read.
    pub fn read() -> Self {
        let matches = Self::command().get_matches();
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        // A secret and the file that holds it are one option: a flag for either wins over the environment.
        for secret in cli.options.secrets() {
            let file = matches.value_source(&format!("{}_file", secret.name));
            if file == Some(ValueSource::CommandLine)
                && matches.value_source(secret.name) == Some(ValueSource::EnvVariable)
            {
                secret.value.forget();
            }
        }
        cli
    }
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Serve REST and gRPC (the default).
    Serve,
    /// Bring the database up to date and stop.
    Migrate,
    /// Read the configuration, say what it comes to, and stop.
    CheckConfig,
    /// Tell what is wrong and what to do about it.
    Doctor,
    /// Prove that the books balance; exits non-zero when they do not.
    Audit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ModeName {
    Open,
    Guarded,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// The configuration in force.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    pub database: Secret,
    pub data_dir: PathBuf,
    pub mode: Mode,
    pub operator_token: Option<Secret>,
    /// As configured, without a slash at its end.
    pub public_url: Option<String>,
    pub trusted_proxies: Vec<IpAddr>,
    pub tls: Option<(PathBuf, PathBuf)>,
    pub tiers: Thresholds,
    pub funding_grace: Duration,
    pub price_table: Option<PathBuf>,
    /// How far lineages may grow.
    pub lineage: Lineage,
    pub laws_file: Option<PathBuf>,
    /// What every new agent gets; read from its file when the server starts.
    pub laws: Option<Laws>,
    pub retention_days: Option<u32>,
    pub rate_limit: u32,
    pub log: String,
    pub log_format: Option<LogFormat>,
    /// How this server is paid; `None` when it is not.
    pub payments: Option<PaymentSettings>,
    /// The file with whoever domains are registered to when a request names nobody.
    pub registrant_contact: Option<PathBuf>,
    /// Where new servers get the daemon from.
    pub agent_package: Option<Package>,
    /// The accounts at vendors.
    pub vendors: VendorSettings,
}

impl Settings {
    /// The URLs under which clients may know this server, for wallet proofs: the public one, else the listener's.
    pub fn proof_urls(&self) -> Vec<String> {
        if let Some(url) = &self.public_url {
            return vec![url.clone()];
        }
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let mut urls = vec![format!("{scheme}://{}", self.listen)];
        if self.listen.ip().is_loopback() {
            let port = self.listen.port();
            urls.extend(["127.0.0.1", "localhost", "[::1]"].map(|host| format!("{scheme}://{host}:{port}")));
        }
        urls
    }
}
