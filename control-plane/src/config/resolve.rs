//! From the options to the configuration in force: defaults, and what does not go together.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use otonix_sdk::secret::Secret;
use otonix_sdk::standing::Thresholds;

use super::{ModeName, Options, Settings};
use crate::auth::Mode;
use crate::service::children::Lineage;
use crate::service::purchases::bootstrap::Package;
use crate::treasury::{Given, is_web};
use crate::upstream::vendors;

impl Options {
    /// Fills in defaults and checks everything.
    pub(super) fn resolve(self) -> anyhow::Result<Settings> {
        let listen = self.listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8402)));
        let data_dir = self.data_dir.or_else(state_directory).unwrap_or_else(|| PathBuf::from(".otonix"));
        let database = secret("database", self.database, self.database_file)?;
        let database = database
            .unwrap_or_else(|| Secret::new(format!("sqlite://{}", data_dir.join("otonix.db").display())));
        let known = ["sqlite://", "postgres://", "postgresql://"];
        if !known.iter().any(|start| database.expose().starts_with(start)) {
            bail!("database must start with sqlite:// or postgres://");
        }
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
            rpc: chain_rpc(self.chain_rpc, self.chain_rpc_file)?,
            chain_id: self.chain_id,
            asset: self.asset,
            treasury: self.treasury,
            start_block: self.chain_start_block,
            settle_key_file: self.settle_key_file,
            facilitator: secret("facilitator", self.facilitator, self.facilitator_file)?
                .map(|url| url.expose().to_owned()),
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
        if public_url.as_deref().is_some_and(|url| !is_web(url)) {
            bail!("public-url must start with http:// or https://, and name a host");
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

/// The addresses of nodes, which often hold keys: as given, else one a line or separated by commas in a file.
fn chain_rpc(given: Option<Vec<String>>, file: Option<PathBuf>) -> anyhow::Result<Option<Vec<String>>> {
    let given = given.filter(|urls| urls.iter().any(|url| !url.is_empty()));
    if given.is_some() {
        return Ok(given);
    }
    let Some(text) = secret("chain-rpc", None, file)? else { return Ok(None) };
    let urls = text.expose().split(['\n', ',']).map(|url| url.trim().to_owned());
    Ok(Some(urls.filter(|url| !url.is_empty()).collect()))
}

fn addresses(text: &str) -> anyhow::Result<Vec<IpAddr>> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| part.parse().with_context(|| format!("trusted-proxies: `{part}` is no IP address")))
        .collect()
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

#[cfg(test)]
mod tests {
    use super::super::files::read_options;
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
        for bad in [
            "lisen = '127.0.0.1:1'",
            "tls-cert = 'a'",
            "tiers = '1/2/3'",
            "operator-token = 'short'",
            "database = 'mysql://db'",
            "database = 'otonix.db'",
            "public-url = 'http://'",
            "public-url = 'https://a b'",
            "public-url = 'ftp://a'",
        ] {
            assert!(resolve(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_with_keys_in_them_may_come_from_files() {
        let dir = tempfile::tempdir().expect("temp dir");
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).expect("writes");
            path.display().to_string()
        };
        let rpc = file("rpc", "https://a.example/key1\n\n https://b.example/key2, https://c.example\n");
        let facilitator = file("facilitator", "https://f.example/key3/\n");
        let toml = format!(
            "treasury = '0x70997970C51812dc3A010C7d01b50e0d17dc79C8'\nchain-rpc-file = '{rpc}'\nfacilitator-file = '{facilitator}'"
        );
        let payments = resolve(&toml).expect("reads").payments.expect("payments");
        let urls: Vec<_> = payments.rpc.iter().map(Secret::expose).collect();
        assert_eq!(urls, ["https://a.example/key1", "https://b.example/key2", "https://c.example"]);
        assert_eq!(payments.facilitator.as_ref().map(Secret::expose), Some("https://f.example/key3"));
        assert!(resolve("chain-rpc-file = '/does/not/exist'").is_err());
    }
}
