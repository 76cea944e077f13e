//! The command line: flags over environment over `agent.toml`.

mod client;
mod doctor;
pub(crate) mod enrol;
mod init;
mod journal;
mod log;
mod pay;
mod run;
mod status;
mod wallet;

use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Parser, Subcommand};
use otonix_sdk::secret::Secret;

use crate::config::{self, Config};
use crate::{files, local_api, systemd};

/// Where the API key is kept in the state directory.
const API_KEY: &str = "api-key";
/// Where the wallet is kept in the state directory.
pub(crate) const KEYSTORE: &str = "keystore.json";
/// Where the wallet's passphrase is kept unless it is a credential.
pub(crate) const PASSPHRASE: &str = "wallet.passphrase";

/// Makes an autonomous agent a service of its machine.
#[derive(Debug, Parser)]
#[command(name = "otonix-agent", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand takes.
#[derive(Debug, Clone, Args)]
struct Place {
    /// Where the daemon keeps its state [default: $STATE_DIRECTORY, else ./.otonix-agent]
    #[arg(long, env = "OTONIX_STATE_DIR", global = true, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The configuration [default: agent.toml in the state directory]
    #[arg(long, env = "OTONIX_CONFIG", global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// What is logged: a level, or target=level separated by commas [default: `log` of agent.toml, else info]
    #[arg(long, env = "OTONIX_LOG", global = true, value_name = "FILTER")]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the wallet, register, and write agent.toml; safe to repeat
    Init(init::Init),
    /// Run the service, and COMMAND as the supervised agent process
    Run(run::Run),
    /// Show how the running daemon and its agent are
    Status(status::Status),
    /// Record an action of the agent
    Log(log::Log),
    /// Record a model call of the agent
    Usage(log::Usage),
    /// Ask for a URL and pay for it, when that is asked for and allowed
    Pay(pay::Pay),
    /// The wallet: address, balance, new, import, export
    Wallet(wallet::WalletCommand),
    /// What was paid
    Journal(journal::Journal),
    /// Who is paid at each origin
    Pins(journal::Pins),
    /// Find out what is wrong and what to do about it
    Doctor(doctor::Doctor),
}

impl Place {
    fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| {
            let given = std::env::var_os("STATE_DIRECTORY").filter(|dir| !dir.is_empty());
            // systemd separates several by colons.
            let first = given.as_ref().and_then(|dirs| std::env::split_paths(dirs).next());
            first.unwrap_or_else(|| PathBuf::from(".otonix-agent"))
        })
    }

    fn config_file(&self, state_dir: &Path) -> PathBuf {
        self.config.clone().unwrap_or_else(|| state_dir.join(config::FILE))
    }

    /// The socket of the daemon: of the one that started this process, else of the state directory's.
    fn socket(&self) -> PathBuf {
        let told = std::env::var_os("OTONIX_SOCKET").filter(|_| self.state_dir.is_none());
        told.map_or_else(|| self.state_dir().join(local_api::SOCKET), PathBuf::from)
    }
}

/// The environment as texts; what is not UTF-8 is none of ours.
fn variables() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Runs the program.
pub fn run(arguments: Vec<String>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed output leaves nobody to tell.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let outcome = match cli.command {
        Command::Init(init) => init.run(&cli.place).map(|()| 0),
        Command::Run(run) => run.run(&cli.place).map(|()| 0),
        Command::Status(status) => status.run(&cli.place).map(|()| 0),
        Command::Log(log) => log.run(&cli.place).map(|()| 0),
        Command::Usage(usage) => usage.run(&cli.place).map(|()| 0),
        Command::Pay(pay) => pay.run(&cli.place),
        Command::Wallet(wallet) => wallet.run(&cli.place).map(|()| 0),
        Command::Journal(journal) => journal.run(&cli.place).map(|()| 0),
        Command::Pins(pins) => pins.run(&cli.place).map(|()| 0),
        Command::Doctor(doctor) => doctor.run(&cli.place).map(|fine| u8::from(!fine)),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(error) => refuse(&format!("{error:#}")),
    }
}

/// Says what is wrong and fails.
pub fn refuse(why: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "otonix-agent: {why}");
    ExitCode::FAILURE
}

/// Prints a line of the answer.
fn say(line: impl Display) {
    // A reader that has closed its end has what it wanted.
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// A runtime for one command.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("failed to start the runtime")
}

fn load_config(place: &Place, state_dir: &Path) -> anyhow::Result<Config> {
    Config::load(&place.config_file(state_dir), &variables())
}

/// The API key from a flag or the environment, a file, the service manager, or the state directory.
fn api_key(given: Option<Secret>, file: Option<&Path>, state_dir: &Path) -> anyhow::Result<Secret> {
    if let Some(key) = given {
        ensure!(!key.is_empty(), "the API key in --api-key or OTONIX_API_KEY is empty");
        return Ok(key);
    }
    if let Some(file) = file {
        return secret_file(file)?.with_context(|| format!("there is no API key in {}", file.display()));
    }
    if let Some(key) = systemd::credential(API_KEY)? {
        return Ok(key);
    }
    match secret_file(&state_dir.join(API_KEY))? {
        Some(key) => Ok(key),
        None => bail!("there is no API key: give --api-key, OTONIX_API_KEY or --api-key-file"),
    }
}

fn secret_file(path: &Path) -> anyhow::Result<Option<Secret>> {
    let text = files::read_text(path).with_context(|| format!("failed to read {}", path.display()))?;
    Ok(text.map(Secret::from_file_text).filter(|secret| !secret.is_empty()))
}

/// The wallet's passphrase from a file, the service manager, or the state directory.
pub(crate) fn passphrase(file: Option<&Path>, state_dir: &Path) -> anyhow::Result<Option<Secret>> {
    if let Some(file) = file {
        let secret = secret_file(file)?;
        return secret.with_context(|| format!("there is no passphrase in {}", file.display())).map(Some);
    }
    if let Some(secret) = systemd::credential("wallet-passphrase")? {
        return Ok(Some(secret));
    }
    secret_file(&state_dir.join(PASSPHRASE))
}
