//! Configuration: every option is a flag, an environment variable (`OTONIX_` and its name) and a key of the TOML file;
//! flag wins over environment over file.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use otonix_sdk::api::enrolment::Laws;
use otonix_sdk::api::purchases::Contact;
use otonix_sdk::limits;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::prices::{ModelPrice, PriceTable};
use otonix_sdk::secret::Secret;
use otonix_sdk::standing::Thresholds;
use serde::Deserialize;

use crate::auth::Mode;
use crate::service::children::Lineage;
use crate::service::purchases::bootstrap::Package;
use crate::service::purchases::contact;
use crate::treasury::{Given, PaymentSettings};
use crate::upstream::vendors::{self, VendorSettings};

/// The Otonix control plane.
#[derive(Debug, Parser)]
#[command(name = "otonix-control-plane", version)]
pub struct Cli {
    #[command(flatten)]
    pub options: Options,
    #[command(subcommand)]
    pub command: Option<Command>,
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
enum ModeName {
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

macro_rules! options {
    ($($(#[$attr:meta])* $name:ident: $kind:ty,)*) => {
        /// All options, as they were given.
        #[derive(Debug, Default, Args, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Options {
            /// TOML file with any of these options.
            #[arg(long, global = true, env = "OTONIX_CONFIG")]
            #[serde(skip)]
            config: Option<PathBuf>,
            $($(#[$attr])* #[arg(long, global = true)] $name: Option<$kind>,)*
        }

        impl Options {
            fn or(self, other: Self) -> Self {
                Self { config: self.config, $($name: self.$name.or(other.$name),)* }
            }
        }
    };
}

options! {
    /// Address to listen on; port 0 takes any (default 127.0.0.1:8402).
    #[arg(env = "OTONIX_LISTEN")]
    listen: SocketAddr,
    /// `sqlite://<path>` or `postgres://…` (default: otonix.db in the data directory).
    #[arg(env = "OTONIX_DATABASE", hide_env_values = true)]
    database: String,
    /// File that holds the database URL.
    #[arg(env = "OTONIX_DATABASE_FILE")]
    database_file: PathBuf,
    /// Where files are kept (default: $STATE_DIRECTORY, else ./.otonix).
    #[arg(env = "OTONIX_DATA_DIR")]
    data_dir: PathBuf,
    /// `open` serves this machine alone and asks for few keys; `guarded` serves everyone, by keys (default: open on a
    /// loopback address, else guarded).
    #[arg(env = "OTONIX_MODE", value_enum)]
    mode: ModeName,
    /// The operator token (default: made at the first start, in the data directory).
    #[arg(env = "OTONIX_OPERATOR_TOKEN", hide_env_values = true)]
    operator_token: String,
    /// File that holds the operator token.
    #[arg(env = "OTONIX_OPERATOR_TOKEN_FILE")]
    operator_token_file: PathBuf,
    /// The URL that clients use (default: the listener's).
    #[arg(env = "OTONIX_PUBLIC_URL")]
    public_url: String,
    /// Addresses whose X-Forwarded-For is believed; comma separated.
    #[arg(env = "OTONIX_TRUSTED_PROXIES")]
    trusted_proxies: String,
    /// PEM file with the certificate chain.
    #[arg(env = "OTONIX_TLS_CERT")]
    tls_cert: PathBuf,
    /// PEM file with the key.
    #[arg(env = "OTONIX_TLS_KEY")]
    tls_key: PathBuf,
    /// Where the tiers begin, USDC (default 50/10/1).
    #[arg(env = "OTONIX_TIERS")]
    tiers: String,
    /// How long an agent that was never funded lives, seconds (default 86400).
    #[arg(env = "OTONIX_FUNDING_GRACE")]
    funding_grace: u64,
    /// TOML or JSON file with prices of models, USDC per million tokens: `model = { input, output, cached }`.
    #[arg(env = "OTONIX_PRICE_TABLE")]
    price_table: PathBuf,
    /// Living children that one agent may have; 0 for none (default 8).
    #[arg(env = "OTONIX_MAX_CHILDREN")]
    max_children: u32,
    /// Ancestors that one agent may have (default 3).
    #[arg(env = "OTONIX_MAX_DEPTH")]
    max_depth: u32,
    /// Text file with the laws that every new agent gets and hands down unchanged (default: none).
    #[arg(env = "OTONIX_LAWS_FILE")]
    laws_file: PathBuf,
    /// Actions and usage records older than this are deleted (default: never).
    #[arg(env = "OTONIX_RETENTION_DAYS")]
    retention_days: u32,
    /// Requests a second that one address may make without key or token; 0 for no limit (default 200).
    #[arg(env = "OTONIX_RATE_LIMIT")]
    rate_limit: u32,
    /// Log filter (default info).
    #[arg(env = "OTONIX_LOG")]
    log: String,
    /// Log format (default: human on a terminal, else json).
    #[arg(env = "OTONIX_LOG_FORMAT", value_enum)]
    log_format: LogFormat,
    /// JSON-RPC addresses of nodes of the chain that payments come over, tried in this order; repeatable, comma
    /// separated in the environment (default: none, and paid routes answer 503).
    #[arg(env = "OTONIX_CHAIN_RPC", hide_env_values = true, value_delimiter = ',')]
    #[serde(deserialize_with = "one_or_more")]
    chain_rpc: Vec<String>,
    /// The chain's id (default 8453, Base).
    #[arg(env = "OTONIX_CHAIN_ID")]
    chain_id: u64,
    /// The USDC contract (default: that on Base).
    #[arg(env = "OTONIX_ASSET")]
    asset: String,
    /// The address that is paid. Needed with chain-rpc.
    #[arg(env = "OTONIX_TREASURY")]
    treasury: String,
    /// Money that moves from this block on is booked (default: the newest block at the first start).
    #[arg(env = "OTONIX_CHAIN_START_BLOCK")]
    chain_start_block: u64,
    /// File with the private key (hex) that carries out signed payments and pays their gas; it makes `guarded` the
    /// default mode. Without it and without a facilitator only orders are taken.
    #[arg(env = "OTONIX_SETTLE_KEY_FILE")]
    settle_key_file: PathBuf,
    /// The x402 facilitator that carries out signed payments, in place of a key.
    #[arg(env = "OTONIX_FACILITATOR", hide_env_values = true)]
    facilitator: String,
    /// Blocks that a payment must be deep, its own among them, or `auto`: by amount (default auto).
    #[arg(env = "OTONIX_CONFIRMATIONS")]
    #[serde(deserialize_with = "text_or_number")]
    confirmations: String,
    /// How long an order may be paid, seconds (default 900).
    #[arg(env = "OTONIX_ORDER_TTL")]
    order_ttl: u64,
    /// The least price for which signed payments are taken, USDC (default 0.05).
    #[arg(env = "OTONIX_MIN_EXACT")]
    #[serde(deserialize_with = "text_or_number")]
    min_exact: String,
    /// File with the contact that domains are registered to when a request names none: JSON or TOML with firstName,
    /// lastName, email, phone, address1, city, state, zip, country (default: none, and requests must name one).
    #[arg(env = "OTONIX_REGISTRANT_CONTACT")]
    registrant_contact: PathBuf,
    /// Where new servers get the daemon from: the program, or a tar.gz with it. Goes with agent-package-sha256 (default:
    /// none, and servers for an agent are answered with 503 bootstrap_not_configured).
    #[arg(env = "OTONIX_AGENT_PACKAGE_URL")]
    agent_package_url: String,
    /// SHA-256 of what is there, hex.
    #[arg(env = "OTONIX_AGENT_PACKAGE_SHA256")]
    agent_package_sha256: String,
    /// Where Vercel is asked (default https://api.vercel.com).
    #[arg(env = "OTONIX_VERCEL_URL")]
    vercel_url: String,
    /// Vercel API token: domains are sold and their zones kept with it; it makes `guarded` the default mode.
    #[arg(env = "OTONIX_VERCEL_TOKEN", hide_env_values = true)]
    vercel_token: String,
    /// File that holds the Vercel token.
    #[arg(env = "OTONIX_VERCEL_TOKEN_FILE")]
    vercel_token_file: PathBuf,
    /// The Vercel team that owns the domains (default: the token's own account).
    #[arg(env = "OTONIX_VERCEL_TEAM")]
    vercel_team: String,
    /// Where Cherry Servers is asked (default https://api.cherryservers.com).
    #[arg(env = "OTONIX_CHERRY_URL")]
    cherry_url: String,
    /// Cherry Servers API token: servers are sold with it; it makes `guarded` the default mode.
    #[arg(env = "OTONIX_CHERRY_TOKEN", hide_env_values = true)]
    cherry_token: String,
    /// File that holds the Cherry Servers token.
    #[arg(env = "OTONIX_CHERRY_TOKEN_FILE")]
    cherry_token_file: PathBuf,
    /// The team that is billed, by its number (default: the one that has the project).
    #[arg(env = "OTONIX_CHERRY_TEAM")]
    cherry_team: u64,
    /// The project that servers are bought into, by its number.
    #[arg(env = "OTONIX_CHERRY_PROJECT")]
    cherry_project: u64,
    /// Dollars for one euro, for accounts that are billed in euros. Needs eur-usd-date.
    #[arg(env = "OTONIX_EUR_USD")]
    #[serde(deserialize_with = "text_or_number")]
    eur_usd: String,
    /// The day of that rate, YYYY-MM-DD.
    #[arg(env = "OTONIX_EUR_USD_DATE")]
    #[serde(deserialize_with = "text_or_number")]
    eur_usd_date: String,
    /// How many days the rate counts; after them nothing is sold for euros (default 30).
    #[arg(env = "OTONIX_EUR_USD_DAYS")]
    eur_usd_days: u32,
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

impl Options {
    /// Reads the file, fills in defaults and checks everything.
    ///
    /// # Errors
    /// What is wrong, naming the option.
    pub fn settings(self) -> anyhow::Result<Settings> {
        let file = match &self.config {
            Some(path) => read_options(path)?,
            None => Self::default(),
        };
        self.or(file).resolve()
    }

    fn resolve(self) -> anyhow::Result<Settings> {
        let listen = self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8402)));
        let data_dir = self.data_dir.or_else(state_directory).unwrap_or_else(|| PathBuf::from(".otonix"));
        let database = secret("database", self.database, self.database_file)?;
        let database = database
            .unwrap_or_else(|| Secret::new(format!("sqlite://{}", data_dir.join("otonix.db").display())));
        let vendors = vendors::Given {
            vercel_url: self.vercel_url,
            vercel_token: secret("vercel-token", self.vercel_token, self.vercel_token_file)?,
            vercel_team: self.vercel_team,
            cherry_url: self.cherry_url,
            cherry_token: secret("cherry-token", self.cherry_token, self.cherry_token_file)?,
            cherry_team: self.cherry_team,
            cherry_project: self.cherry_project,
            eur_usd: self.eur_usd,
            eur_usd_date: self.eur_usd_date,
            eur_usd_days: self.eur_usd_days,
        };
        let vendors = vendors.resolve()?;
        let spends = self.settle_key_file.is_some() || vendors.vercel.is_some() || vendors.cherry.is_some();
        let operator_token = secret("operator-token", self.operator_token, self.operator_token_file)?;
        if operator_token.as_ref().is_some_and(|token| token.expose().len() < 16) {
            bail!("operator-token must have at least 16 characters");
        }
        let mode = mode(self.mode, listen, spends)?;
        let payments = Given {
            rpc: self.chain_rpc,
            chain_id: self.chain_id,
            asset: self.asset,
            treasury: self.treasury,
            start_block: self.chain_start_block,
            settle_key_file: self.settle_key_file,
            facilitator: self.facilitator,
            confirmations: self.confirmations,
            order_ttl: self.order_ttl,
            min_exact: self.min_exact,
        };
        let tls = match (self.tls_cert, self.tls_key) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            _ => bail!("tls-cert and tls-key go together"),
        };
        let public_url = self.public_url.filter(|url| !url.is_empty());
        if let Some(url) = &public_url
            && !(url.starts_with("http://") || url.starts_with("https://"))
        {
            bail!("public-url must start with http:// or https://");
        }
        Ok(Settings {
            listen,
            database,
            data_dir,
            mode,
            operator_token,
            public_url: public_url.map(|url| url.trim_end_matches('/').to_owned()),
            trusted_proxies: addresses(self.trusted_proxies.as_deref().unwrap_or(""))?,
            tls,
            tiers: match self.tiers {
                Some(text) => text.parse().map_err(|why| anyhow::anyhow!("tiers: {why}"))?,
                None => Thresholds::default(),
            },
            funding_grace: Duration::from_secs(self.funding_grace.unwrap_or(86_400).min(3_155_760_000)),
            price_table: self.price_table,
            lineage: Lineage {
                max_children: self.max_children.unwrap_or(8),
                max_depth: self.max_depth.unwrap_or(3),
            },
            laws_file: self.laws_file,
            laws: None,
            retention_days: self.retention_days.filter(|days| *days > 0),
            rate_limit: self.rate_limit.unwrap_or(200),
            log: self.log.filter(|log| !log.is_empty()).unwrap_or_else(|| "info".to_owned()),
            log_format: self.log_format,
            payments: payments.resolve()?,
            registrant_contact: self.registrant_contact,
            agent_package: package(self.agent_package_url, self.agent_package_sha256)?,
            vendors,
        })
    }
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

    /// The laws in the file that is configured.
    ///
    /// # Errors
    /// When the file cannot be read, is empty or too long.
    pub fn read_laws(&self) -> anyhow::Result<Option<Laws>> {
        let Some(path) = &self.laws_file else { return Ok(None) };
        let name = format!("laws-file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(|| name.clone())?;
        if text.trim().is_empty() || text.contains('\0') || text.len() > limits::MAX_LAWS_BYTES {
            bail!("{name} must be a text of at most {} bytes", limits::MAX_LAWS_BYTES);
        }
        Ok(Some(Laws::new(text)))
    }

    /// The prices in force.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn prices(&self) -> anyhow::Result<PriceTable> {
        let Some(path) = &self.price_table else { return Ok(PriceTable::default()) };
        read_prices(path).with_context(|| format!("price-table {}", path.display()))
    }

    /// Who domains are registered to when a request names nobody.
    ///
    /// # Errors
    /// When the file cannot be read, or something is missing in it.
    pub fn registrant(&self) -> anyhow::Result<Option<Contact>> {
        self.registrant_contact.as_deref().map(read_contact).transpose()
    }
}

/// A list, or one text with commas, as in the environment.
fn one_or_more<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        More(Vec<String>),
    }
    Ok(Some(match Either::deserialize(deserializer)? {
        Either::One(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
        Either::More(parts) => parts,
    }))
}

/// A text, or a number without quotes.
fn text_or_number<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let value = toml::Value::deserialize(deserializer)?;
    Ok(Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
}

fn mode(asked: Option<ModeName>, listen: SocketAddr, spends: bool) -> anyhow::Result<Mode> {
    match asked {
        Some(ModeName::Guarded) => Ok(Mode::Guarded),
        Some(ModeName::Open) if listen.ip().is_loopback() => Ok(Mode::Open),
        Some(ModeName::Open) => bail!("mode open serves this machine only: listen on a loopback address"),
        None if listen.ip().is_loopback() && !spends => Ok(Mode::Open),
        None => Ok(Mode::Guarded),
    }
}

#[expect(clippy::disallowed_methods, reason = "the one home of the environment")]
fn state_directory() -> Option<PathBuf> {
    let dirs = std::env::var("STATE_DIRECTORY").ok()?;
    dirs.split(':').next().filter(|dir| !dir.is_empty()).map(PathBuf::from)
}

fn secret(name: &str, value: Option<String>, file: Option<PathBuf>) -> anyhow::Result<Option<Secret>> {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        return Ok(Some(Secret::new(value)));
    }
    let Some(path) = file else { return Ok(None) };
    let text = std::fs::read_to_string(&path).with_context(|| format!("{name}-file {}", path.display()))?;
    let secret = Secret::from_file_text(text);
    if secret.expose().is_empty() {
        bail!("{name}-file {} is empty", path.display());
    }
    Ok(Some(secret))
}

fn addresses(text: &str) -> anyhow::Result<Vec<IpAddr>> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().with_context(|| format!("trusted-proxies: `{part}` is no IP address")))
        .collect()
}

fn read_contact(path: &Path) -> anyhow::Result<Contact> {
    let read = || -> anyhow::Result<Contact> {
        let text = std::fs::read_to_string(path)?;
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let contact: Contact = if is_json { serde_json::from_str(&text)? } else { toml::from_str(&text)? };
        contact::check(&contact)?;
        Ok(contact)
    };
    read().with_context(|| format!("registrant-contact {}", path.display()))
}

fn package(url: Option<String>, sha256: Option<String>) -> anyhow::Result<Option<Package>> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    match (given(url), given(sha256)) {
        (None, None) => Ok(None),
        (Some(url), Some(sha256)) => {
            if !(url.starts_with("https://") || url.starts_with("http://")) {
                bail!("agent-package-url must start with http:// or https://");
            }
            if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                bail!("agent-package-sha256 must be 64 hex digits");
            }
            Ok(Some(Package { url, sha256: sha256.to_ascii_lowercase() }))
        }
        _ => bail!("agent-package-url and agent-package-sha256 go together"),
    }
}

fn read_options(path: &Path) -> anyhow::Result<Options> {
    let text = std::fs::read_to_string(path).with_context(|| format!("config {}", path.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("config {}", path.display()))?;
    // Both spellings of a key are fine, as in the environment.
    let table: toml::Table = table.into_iter().map(|(key, value)| (key.replace('_', "-"), value)).collect();
    table.try_into().with_context(|| format!("config {}", path.display()))
}

fn read_prices(path: &Path) -> anyhow::Result<PriceTable> {
    let text = std::fs::read_to_string(path)?;
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(serde_json::from_str(&text)?);
    }
    let table: BTreeMap<String, BTreeMap<String, toml::Value>> = toml::from_str(&text)?;
    let mut prices = BTreeMap::new();
    for (model, mut parts) in table {
        let mut part = |name: &str| -> anyhow::Result<Option<MicroUsd>> {
            let Some(value) = parts.remove(name) else { return Ok(None) };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let price = MicroUsd::parse(&text).with_context(|| format!("{model}.{name}"))?;
            if price.is_negative() {
                bail!("{model}.{name} must not be negative");
            }
            Ok(Some(price))
        };
        let input = part("input")?.with_context(|| format!("{model}.input is missing"))?;
        let output = part("output")?.with_context(|| format!("{model}.output is missing"))?;
        let cached = part("cached")?;
        if let Some(unknown) = parts.keys().next() {
            bail!("{model}.{unknown} is not known");
        }
        prices.insert(model, ModelPrice { input, output, cached });
    }
    Ok(PriceTable::new(prices))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(toml: &str) -> anyhow::Result<Settings> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("c.toml");
        std::fs::write(&path, toml)?;
        read_options(&path)?.resolve()
    }

    #[test]
    fn loopback_is_open_and_everything_else_guarded() {
        assert_eq!(resolve("").expect("reads").mode, Mode::Open);
        assert_eq!(resolve("listen = '0.0.0.0:1'").expect("reads").mode, Mode::Guarded);
        assert_eq!(resolve("vercel_token = 'x'").expect("reads").mode, Mode::Guarded);
        assert_eq!(resolve("vercel_token = 'x'\nmode = 'open'").expect("reads").mode, Mode::Open);
        assert!(resolve("listen = '0.0.0.0:1'\nmode = 'open'").is_err());
    }

    #[test]
    fn unknown_keys_and_half_pairs_are_errors() {
        for bad in ["lisen = '127.0.0.1:1'", "tls-cert = 'a'", "tiers = '1/2/3'", "operator-token = 'short'"]
        {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn prices_are_read_exactly_from_toml() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("p.toml");
        std::fs::write(&path, "m = { input = 0.1, output = \"2.000001\", cached = 0 }").expect("writes");
        let table = read_prices(&path).expect("reads");
        assert_eq!(table.cost("m", 1_000_000, 0, 0), Some(MicroUsd::from_micros(100_000)));
        assert_eq!(table.cost("m", 0, 1_000_000, 0), Some(MicroUsd::from_micros(2_000_001)));
    }
}
