//! `otonix-agent doctor`: what is wrong, and what to do about it.

mod files;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use clap::Args;
use otonix_sdk::api::local::LocalStatus;
use otonix_sdk::chain::Rpc;
use otonix_sdk::client::{Client, ClientConfig, ClientError, Credential, RetryPolicy};
use otonix_sdk::clock::{Clock as _, SystemClock};
use otonix_sdk::error::ErrorCode;

use super::client::{self, Call};
use super::{API_KEY, KEYSTORE, PASSPHRASE, Place, api_key, load_config, passphrase, runtime, say};
use crate::config::{self, Config};
use crate::{accounts, local_api, payments, probe};

/// A clock further from the server's than this makes wallet proofs and payments fail.
const MAX_SKEW_SECS: i64 = 60;
/// Below this the spool may not find room.
const LOW_DISK: u64 = 256 * 1024 * 1024;

/// `doctor`.
#[derive(Debug, Args)]
pub(super) struct Doctor {}

/// What was found so far.
#[derive(Debug, Default)]
struct Report {
    problems: u32,
}

impl Report {
    fn fine(&self, what: impl std::fmt::Display) {
        say(format!("ok       {what}"));
    }

    fn note(&self, what: impl std::fmt::Display, advice: &str) {
        say(format!("note     {what}"));
        say(format!("         -> {advice}"));
    }

    fn problem(&mut self, what: impl std::fmt::Display, advice: &str) {
        self.problems += 1;
        say(format!("PROBLEM  {what}"));
        say(format!("         -> {advice}"));
    }
}

impl Doctor {
    /// True when nothing is wrong.
    pub(super) fn run(&self, place: &Place) -> anyhow::Result<bool> {
        let mut report = Report::default();
        let state_dir = place.state_dir();
        if check_state_dir(&mut report, &state_dir) {
            match load_config(place, &state_dir) {
                Ok(config) => check_config(&mut report, place, &config, &state_dir)?,
                Err(error) => report.problem(format!("{error:#}"), "correct the configuration"),
            }
        }
        if report.problems == 0 {
            say("nothing is wrong");
        }
        Ok(report.problems == 0)
    }
}

fn check_state_dir(report: &mut Report, state_dir: &Path) -> bool {
    let metadata = match fs::metadata(state_dir) {
        Ok(metadata) => metadata,
        Err(error) => {
            let advice = "run `otonix-agent init`, or name another directory by --state-dir";
            report.problem(format!("state directory {}: {error}", state_dir.display()), advice);
            return false;
        }
    };
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o066 != 0 {
        let advice = format!("chmod go-rw {}", state_dir.display());
        report.problem(format!("others can list {} (mode {mode:o})", state_dir.display()), &advice);
    } else {
        report.fine(format!("state directory {}", state_dir.display()));
    }
    for name in [API_KEY, KEYSTORE, PASSPHRASE] {
        let path = state_dir.join(name);
        let Ok(metadata) = fs::metadata(&path) else { continue };
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let advice = format!("chmod 600 {}", path.display());
            report.problem(format!("others can read {} (mode {mode:o})", path.display()), &advice);
        }
    }
    let own = rustix::process::getuid().as_raw();
    if own != 0 && metadata.uid() != own {
        report.problem(
            format!("{} belongs to user id {}", state_dir.display(), metadata.uid()),
            "run doctor as the daemon's user",
        );
        return false;
    }
    true
}

fn check_config(report: &mut Report, place: &Place, config: &Config, state_dir: &Path) -> anyhow::Result<()> {
    if config.agent.id.is_none() {
        report.problem("the agent is not registered", "run `otonix-agent init`");
        return Ok(());
    }
    report.fine(format!("configuration of {}", config.agent.name));
    check_wallet(report, config, state_dir);
    check_process(report, config);
    check_disk(report, config, state_dir);
    check_systemd(report);
    let key = api_key(None, std::env::var_os("OTONIX_API_KEY_FILE").as_deref().map(Path::new), state_dir);
    let runtime = runtime()?;
    let socket = state_dir.join(local_api::SOCKET);
    if runtime.block_on(client::listens(&socket)) {
        runtime.block_on(check_daemon(report, &socket));
    } else {
        report.note(
            format!("no daemon is running on {}", place.state_dir().display()),
            "start it by `otonix-agent run`, or systemctl start otonix-agent",
        );
        files::check(report, state_dir, &socket);
    }
    runtime.block_on(check_payments(report, &socket));
    runtime.block_on(check_chain(report, config, state_dir));
    match key {
        Ok(key) => runtime.block_on(check_server(report, config, Credential::ApiKey(key))),
        Err(error) => report.problem(format!("{error:#}"), "run `otonix-agent init` again with the key"),
    }
    Ok(())
}

fn check_wallet(report: &mut Report, config: &Config, state_dir: &Path) {
    if !state_dir.join(KEYSTORE).exists() {
        report.problem("there is no wallet", "run `otonix-agent init` again, or `otonix-agent wallet new`");
        return;
    }
    match passphrase(None, state_dir) {
        Ok(Some(_)) => match payments::unlock(state_dir, None) {
            Ok(wallet) => {
                report.fine(format!("wallet {}", wallet.address()));
                let known = config.agent.wallet_address.as_deref();
                if known.is_some_and(|known| known != wallet.address().to_string()) {
                    report.problem(
                        "`[agent] wallet_address` is of another wallet",
                        "run `otonix-agent wallet import --replace` with the right key, or correct it",
                    );
                }
            }
            Err(error) => report.problem(
                format!("{error:#}"),
                "nothing is paid meanwhile; restore keystore.json and its passphrase (mode 600)",
            ),
        },
        Ok(None) if std::env::var_os("CREDENTIALS_DIRECTORY").is_none() => report.note(
            format!("there is no {PASSPHRASE} in the state directory"),
            "fine when the service gets it as the systemd credential wallet-passphrase",
        ),
        Ok(None) => report.problem("the wallet has no passphrase", "restore it, or give --passphrase-file"),
        Err(error) => report.problem(format!("{error:#}"), "make it readable for the daemon"),
    }
}

async fn check_chain(report: &mut Report, config: &Config, state_dir: &Path) {
    if config.chain.rpc.0.is_empty() {
        return report.note(
            "no node of the chain is configured: nothing is paid, no credits are bought",
            "set `[chain] rpc` or OTONIX_CHAIN_RPC",
        );
    }
    let (Ok(rpc), Ok(asset)) = (Rpc::new(&config.chain.rpc.0), config.chain.token()) else {
        return report.problem("`[chain] rpc` or `asset` cannot be used", "correct them");
    };
    match rpc.chain_id().await {
        Ok(id) if id == config.chain.id => report.fine(format!("the node of the chain {id} answers")),
        Ok(id) => {
            let what = format!("the node is of the chain {id}, not {}", config.chain.id);
            return report.problem(what, "correct `[chain] rpc` or `id`");
        }
        Err(error) => {
            let advice = "nothing is paid meanwhile; check network and `[chain] rpc`";
            return report.problem(format!("the chain: {error}"), advice);
        }
    }
    let Ok(address) = super::wallet::address(state_dir) else { return };
    let held = (rpc.token_balance(asset, address).await, rpc.balance(address).await);
    if let (Ok(usdc), Ok(wei)) = held {
        report.fine(format!("the wallet holds {} micro-USDC, and {wei} wei for the gas of orders", usdc));
    } else {
        report.problem("the wallet's balance cannot be read", "is `[chain] asset` the token's contract?");
    }
}

async fn check_payments(report: &mut Report, socket: &Path) {
    let Ok(status) = client::call::<serde_json::Value>(socket, Call::get("/v1/status")).await else { return };
    let payments = &status["payments"];
    let detail = payments["detail"].as_str().unwrap_or_default();
    match payments["state"].as_str() {
        Some("on") => report.fine("the daemon pays"),
        Some("waiting") => report.problem(
            format!("the daemon pays nothing: {detail}"),
            "`otonix-agent journal list` shows what was paid",
        ),
        Some("off") => report.note(format!("the daemon pays nothing: {detail}"), "then restart the daemon"),
        _ => {}
    }
}

fn check_process(report: &mut Report, config: &Config) {
    let shared_uid = "the agent's process has the daemon's user id and could read the wallet, \
                      so payments asked for by it are off";
    let Some(user) = &config.agent.user else {
        if config.pay.allow_shared_uid {
            report.note(
                "the agent's process has the daemon's user id and may pay (allow_shared_uid)",
                "set `[agent] user` to keep the wallet from it",
            );
        } else {
            report.note(shared_uid, "set `[agent] user` to another user, or `[pay] allow_shared_uid = true`");
        }
        return;
    };
    match accounts::account(user) {
        Err(error) => report.problem(error, "correct `[agent] user`, or add the user"),
        Ok(account) if account.uid == rustix::process::getuid().as_raw() && account.uid != 0 => {
            report.note(shared_uid, "name a user other than the daemon's");
        }
        Ok(_) => report.fine(format!("the agent's process runs as {user}")),
    }
}

fn check_disk(report: &mut Report, config: &Config, state_dir: &Path) {
    let (_, _, free) = probe::disk(state_dir);
    let megabytes = free / (1024 * 1024);
    if free < LOW_DISK.min(config.link.spool_max_bytes) {
        report.problem(
            format!("only {megabytes} MiB are free for the spool"),
            "free disk space, or lower `[link] spool_max_bytes`",
        );
    } else {
        report.fine(format!("{megabytes} MiB are free for the spool"));
    }
}

fn check_systemd(report: &Report) {
    if !sd_notify::booted().unwrap_or(false) {
        report.note("this machine does not run systemd", "start `otonix-agent run` by what it runs instead");
    } else if std::env::var_os("NOTIFY_SOCKET").is_some() {
        report.fine("systemd listens");
    } else if Path::new("/etc/systemd/system/otonix-agent.service").exists()
        || Path::new("/usr/lib/systemd/system/otonix-agent.service").exists()
    {
        report.fine("the systemd unit is installed");
    } else {
        report.note(
            "the systemd unit is not installed",
            "install deploy/systemd/otonix-agent.service to have the daemon started at boot",
        );
    }
}

async fn check_daemon(report: &mut Report, socket: &Path) {
    match client::call::<LocalStatus>(socket, Call::get("/v1/status")).await {
        Ok(status) => {
            report.fine(format!("the daemon runs, its agent's process is {}", status.agent_process));
            if let Some(code) = status.refused.as_deref() {
                let advice = match ErrorCode::parse(code) {
                    Some(ErrorCode::AgentKilled) => "register another one, in another state directory",
                    _ => "run `otonix-agent init --api-key` with another key, and restart the daemon",
                };
                report.problem(client::refusal_in_words(code), advice);
            }
            check_spool(report, &status);
        }
        Err(error) => report.problem(format!("{error:#}"), "look at the daemon's log"),
    }
}

fn check_spool(report: &mut Report, status: &LocalStatus) {
    let spool = &status.spool;
    if spool.damaged > 0 {
        report.problem(
            format!("{} records of the spool are damaged and set aside", spool.damaged),
            "check the disk; the server was told what is lost",
        );
    }
    if spool.rejected > 0 {
        report.note(
            format!("{} events were refused by the server", spool.rejected),
            "rejects.jsonl in the state directory says which and why",
        );
    }
    if spool.damaged == 0 {
        report.fine(format!("spool: {} waiting, {} bytes", spool.pending, spool.bytes));
    }
}

async fn check_server(report: &mut Report, config: &Config, credential: Credential) {
    let Some(id) = config.agent.id else { return };
    let client = config::check_server(&config.link.server)
        .and_then(|server| Ok(Client::new(ClientConfig { server, credential, retry: RetryPolicy::NEVER })?));
    let client = match client {
        Ok(client) => client,
        Err(error) => return report.problem(format!("{error:#}"), "correct `[link] server`"),
    };
    match client.server_time().await {
        Ok(time) => {
            report.fine(format!("{} answers", config.link.server));
            let skew = time.map_or(0, |time| (SystemClock.now() - time).num_seconds());
            if skew.abs() > MAX_SKEW_SECS {
                report.problem(
                    format!("this machine's clock is {skew} s off the server's"),
                    "set the clock, e.g. by systemd-timesyncd",
                );
            }
        }
        Err(error) => {
            let advice = "events wait in the spool meanwhile; check network, DNS and `[link] server`";
            return report.problem(format!("{}: {error}", config.link.server), advice);
        }
    }
    match client.agent(id).await {
        Ok(agent) => {
            report.fine(format!("the API key is valid; {} is {}", agent.name, agent.survival_tier));
            if agent.killed_at.is_some() {
                report.problem("the agent was killed", "register another one");
            }
        }
        Err(error) => report.problem(format!("the API key: {error}"), advice_for(&error)),
    }
}

fn advice_for(error: &ClientError) -> &'static str {
    match error.code() {
        Some(ErrorCode::RevokedKey | ErrorCode::UnknownKey | ErrorCode::MissingKey) => {
            "make a new key for this owner and run `otonix-agent init --api-key`"
        }
        Some(ErrorCode::NotFound) => "the key's owner has no such agent; is it the right server and key?",
        _ => "try again later; the daemon goes on meanwhile",
    }
}
