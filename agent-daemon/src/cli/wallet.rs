//! `otonix-agent wallet`: the key of this state directory. No key is ever overwritten.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use otonix_sdk::chain::Rpc;
use otonix_sdk::clock::{Clock as _, SystemClock};
use otonix_sdk::secret::Secret;
use otonix_sdk::wallet::{EvmAddress, Wallet, keystore, parse_address, random_passphrase};
use serde_json::Value;
use zeroize::Zeroizing;

use super::{KEYSTORE, PASSPHRASE, Place, load_config, passphrase, runtime, say};
use crate::{app, config, files, payments};

/// A key or a keystore is shorter.
const MAX_INPUT: u64 = 64 * 1024;

/// `wallet`.
#[derive(Debug, Args)]
pub(super) struct WalletCommand {
    #[command(subcommand)]
    what: What,
    /// A file with the wallet's passphrase
    #[arg(long, env = "OTONIX_PASSPHRASE_FILE", global = true, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// The wallet's address
    Address,
    /// What the wallet holds
    Balance {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a wallet
    New,
    /// Take a private key (hex) or a keystore (JSON, opened by the same passphrase) from the standard input
    Import {
        /// Put the present wallet aside
        #[arg(long)]
        replace: bool,
    },
    /// Print the private key
    Export {
        /// The encrypted keystore instead
        #[arg(long)]
        keystore: bool,
    },
}

impl WalletCommand {
    pub(super) fn run(self, place: &Place) -> anyhow::Result<()> {
        app::harden();
        let state_dir = place.state_dir();
        let file = self.passphrase_file.as_deref();
        match self.what {
            What::Address => say(address(&state_dir)?),
            What::Balance { json } => balance(place, &state_dir, json)?,
            What::New => {
                let state_dir = files::make_state_dir(&state_dir)?;
                keep(place, &state_dir, file, &Wallet::generate(), false)?;
            }
            What::Import { replace } => {
                let state_dir = files::make_state_dir(&state_dir)?;
                let wallet = read_wallet(&state_dir, file)?;
                keep(place, &state_dir, file, &wallet, replace)?;
            }
            What::Export { keystore: true } => {
                let path = state_dir.join(KEYSTORE);
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                say(text.trim_end());
            }
            What::Export { keystore: false } => {
                let wallet = payments::unlock(&state_dir, file)?;
                let key = wallet.private_key_hex();
                let _ = writeln!(std::io::stdout(), "{}", key.as_str());
            }
        }
        Ok(())
    }
}

/// The address in the keystore; it needs no passphrase.
pub(super) fn address(state_dir: &Path) -> anyhow::Result<EvmAddress> {
    let path = state_dir.join(KEYSTORE);
    let text =
        fs::read_to_string(&path).with_context(|| format!("there is no wallet: {}", path.display()))?;
    let stored: Value = serde_json::from_str(&text).context("the keystore is damaged: it is not JSON")?;
    let digits = stored["address"].as_str().context("the keystore is damaged: it has no address")?;
    let digits = digits.trim_start_matches("0x").to_lowercase();
    parse_address(&format!("0x{digits}")).map_err(|why| anyhow::anyhow!("the keystore's address {why}"))
}

fn balance(place: &Place, state_dir: &Path, json: bool) -> anyhow::Result<()> {
    let config = load_config(place, state_dir)?;
    let of = address(state_dir)?;
    ensure!(
        !config.chain.rpc.0.is_empty(),
        "no node of the chain is configured: set `[chain] rpc` or OTONIX_CHAIN_RPC"
    );
    let asset = config.chain.token()?;
    let rpc = Rpc::new(&config.chain.rpc.0).map_err(|why| anyhow::anyhow!("`chain.rpc` {why}"))?;
    let (usdc, wei) = runtime()?.block_on(async {
        let chain_id = rpc.chain_id().await?;
        ensure!(chain_id == config.chain.id, "the node is of the chain {chain_id}, not {}", config.chain.id);
        Ok((rpc.token_balance(asset, of).await?, rpc.balance(of).await?))
    })?;
    let usdc = otonix_sdk::money::MicroUsd::from_micros(i64::try_from(usdc).unwrap_or(i64::MAX));
    if json {
        say(serde_json::json!({ "address": of, "usdc": usdc, "wei": wei.to_string() }));
    } else {
        say(format!("{usdc} USDC"));
        say(format!("{wei} wei for gas"));
    }
    Ok(())
}

fn read_wallet(state_dir: &Path, file: Option<&Path>) -> anyhow::Result<Wallet> {
    let mut text = Zeroizing::new(String::new());
    std::io::stdin().take(MAX_INPUT).read_to_string(&mut text).context("failed to read the key")?;
    if text.trim_start().starts_with('{') {
        let secret =
            passphrase(file, state_dir)?.context("a keystore needs its passphrase: --passphrase-file")?;
        return keystore::decrypt(text.trim(), &secret).context("the keystore on the standard input");
    }
    Wallet::from_hex(text.trim()).map_err(|why| anyhow::anyhow!("the standard input is {why}"))
}

/// Writes a wallet into the state directory, and its address into the configuration.
fn keep(
    place: &Place,
    state_dir: &Path,
    file: Option<&Path>,
    wallet: &Wallet,
    replace: bool,
) -> anyhow::Result<()> {
    let lock = files::Lock::take(&state_dir.join("init.lock"))?;
    let _lock = lock.context("another init runs on this state directory")?;
    let path = state_dir.join(KEYSTORE);
    if path.try_exists()? {
        if !replace {
            bail!("there is a wallet at {}; `wallet import --replace` puts it aside", path.display());
        }
        let aside = path.with_extension(format!("json.{}", SystemClock.now().timestamp()));
        ensure!(!aside.try_exists()?, "{} is in the way", aside.display());
        fs::rename(&path, &aside).with_context(|| format!("failed to put {} aside", path.display()))?;
        say(format!("the wallet before is in {}", aside.display()));
    }
    let secret = secret(state_dir, file)?;
    keystore::create(&path, wallet, &secret).context("failed to keep the wallet")?;
    let address = wallet.address().to_string();
    remember(place, state_dir, &address)?;
    say(address);
    Ok(())
}

fn secret(state_dir: &Path, file: Option<&Path>) -> anyhow::Result<Secret> {
    if let Some(secret) = passphrase(file, state_dir)? {
        return Ok(secret);
    }
    let secret = random_passphrase();
    files::write_private(&state_dir.join(PASSPHRASE), format!("{}\n", secret.expose()).as_bytes())
        .context("failed to keep the wallet's passphrase")?;
    Ok(secret)
}

/// An agent that is registered goes by this address from its next start.
fn remember(place: &Place, state_dir: &Path, address: &str) -> anyhow::Result<()> {
    let file = place.config_file(state_dir);
    let Some(text) = files::read_text(&file)? else { return Ok(()) };
    let config = load_config(place, state_dir)?;
    if config.agent.wallet_address.as_deref() == Some(address) {
        return Ok(());
    }
    let new = config::with_wallet(&text, address)?;
    files::write_private(&file, new.as_bytes())
        .with_context(|| format!("failed to write {}", file.display()))?;
    if config.agent.id.is_some() {
        say("the daemon uses it from its next start; deposits count once the server knows its address");
    }
    Ok(())
}
