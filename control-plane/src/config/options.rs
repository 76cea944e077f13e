//! The options, as they were given. A secret and the file that holds it are one option.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::{LogFormat, ModeName, Settings, files, values};

macro_rules! options {
    ($($(#[$attr:meta])* $name:ident: $kind:ty,)*) => {
        /// All options, as they were given.
        #[derive(Debug, Default, Args, Deserialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Options {
            /// TOML file with any of these options.
            #[arg(long, global = true, env = "OTONIX_CONFIG")]
            #[serde(skip)]
            pub(super) config: Option<PathBuf>,
            $($(#[$attr])* #[arg(long, global = true)] pub(super) $name: Option<$kind>,)*
        }

        impl Options {
            pub(super) fn or(self, other: Self) -> Self {
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
    #[serde(deserialize_with = "values::one_or_more")]
    chain_rpc: Vec<String>,
    /// File that holds them: one a line, or separated by commas.
    #[arg(env = "OTONIX_CHAIN_RPC_FILE")]
    chain_rpc_file: PathBuf,
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
    /// File that holds its address.
    #[arg(env = "OTONIX_FACILITATOR_FILE")]
    facilitator_file: PathBuf,
    /// Blocks that a payment must be deep, its own among them, or `auto`: by amount (default auto).
    #[arg(env = "OTONIX_CONFIRMATIONS")]
    #[serde(deserialize_with = "values::text_or_number")]
    confirmations: String,
    /// How long an order may be paid, seconds (default 900).
    #[arg(env = "OTONIX_ORDER_TTL")]
    order_ttl: u64,
    /// The least price for which signed payments are taken, USDC (default 0.05).
    #[arg(env = "OTONIX_MIN_EXACT")]
    #[serde(deserialize_with = "values::text_or_number")]
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
    #[serde(deserialize_with = "values::text_or_number")]
    eur_usd: String,
    /// The day of that rate, YYYY-MM-DD.
    #[arg(env = "OTONIX_EUR_USD_DATE")]
    #[serde(deserialize_with = "values::text_or_number")]
    eur_usd_date: String,
    /// How many days the rate counts; after them nothing is sold for euros (default 30).
    #[arg(env = "OTONIX_EUR_USD_DAYS")]
    eur_usd_days: u32,
}

impl Options {
    /// Reads the file, fills in defaults and checks everything.
    ///
    /// # Errors
    /// What is wrong, naming the option.
    pub fn settings(self) -> anyhow::Result<Settings> {
        let mut file = match &self.config {
            Some(path) => files::read_options(path)?,
            None => Self::default(),
        };
        let mut given = self;
        given.hides(&mut file);
        given.or(file).resolve()
    }

    /// A secret and the file that holds it are one option: where either is given here, neither counts there.
    fn hides(&mut self, there: &mut Self) {
        for (here, there) in self.secrets().into_iter().zip(there.secrets()) {
            if here.value.is_given() || here.file.is_some() {
                there.value.forget();
                *there.file = None;
            }
        }
    }

    /// Every option that has a file beside it.
    pub(super) fn secrets(&mut self) -> [Pair<'_>; 6] {
        [
            Pair { name: "database", value: &mut self.database, file: &mut self.database_file },
            Pair {
                name: "operator_token",
                value: &mut self.operator_token,
                file: &mut self.operator_token_file,
            },
            Pair { name: "chain_rpc", value: &mut self.chain_rpc, file: &mut self.chain_rpc_file },
            Pair { name: "facilitator", value: &mut self.facilitator, file: &mut self.facilitator_file },
            Pair { name: "vercel_token", value: &mut self.vercel_token, file: &mut self.vercel_token_file },
            Pair { name: "cherry_token", value: &mut self.cherry_token, file: &mut self.cherry_token_file },
        ]
    }
}

/// A secret and the file that holds it.
pub(super) struct Pair<'a> {
    /// As clap names it.
    pub(super) name: &'static str,
    pub(super) value: &'a mut dyn Choice,
    pub(super) file: &'a mut Option<PathBuf>,
}

/// An option of any type, given or not.
pub(super) trait Choice {
    fn is_given(&self) -> bool;
    fn forget(&mut self);
}

impl<T> Choice for Option<T> {
    fn is_given(&self) -> bool {
        self.is_some()
    }

    fn forget(&mut self) {
        *self = None;
    }
}
