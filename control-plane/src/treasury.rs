//! What is configured for being paid: the chain, the token, whom it is paid to, who settles, how long is waited.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use otonix_sdk::chain::EvmAddress;
use otonix_sdk::money::MicroUsd;
use otonix_sdk::secret::Secret;
use otonix_sdk::wallet::{Wallet, parse_address};

/// USDC on Base.
pub const DEFAULT_ASSET: &str = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913";
/// Base.
pub const DEFAULT_CHAIN: u64 = 8453;
/// How long an order may be paid, seconds.
pub const DEFAULT_ORDER_TTL: u64 = 900;
/// Below this, gas costs more than the payment is worth.
const DEFAULT_MIN_EXACT: MicroUsd = MicroUsd::from_micros(50_000);

/// Who carries out signed payments.
#[derive(Debug, Clone)]
pub enum Settler {
    /// Nobody: only orders are taken.
    None,
    /// This server, with a key of its own that pays the gas.
    Key(Arc<Wallet>),
    /// A facilitator at this address.
    Facilitator(Secret),
}

/// How deep in the chain a payment must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confirmations {
    /// By amount.
    Auto,
    /// So many blocks, its own among them, whatever the amount.
    Blocks(u64),
}

/// A depth in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// So many blocks, its own among them.
    Blocks(u64),
    /// The chain's own finality.
    Finalized,
}

/// Amounts below (USDC) and the blocks that are waited for; above all of them, the chain's own finality.
pub const STEPS: [(i32, u64); 3] = [(10, 1), (100, 3), (1000, 12)];

impl Confirmations {
    /// The depth that an amount needs.
    pub fn depth(self, amount: MicroUsd) -> Depth {
        match self {
            Self::Blocks(blocks) => Depth::Blocks(blocks.max(1)),
            Self::Auto => STEPS
                .iter()
                .find(|(below, _)| amount < MicroUsd::from_usdc(*below))
                .map_or(Depth::Finalized, |(_, blocks)| Depth::Blocks(*blocks)),
        }
    }
}

/// The configuration of payments.
#[derive(Debug, Clone)]
pub struct PaymentSettings {
    /// Nodes of the chain; their addresses may hold keys.
    pub rpc: Vec<Secret>,
    /// The chain.
    pub chain_id: u64,
    /// USDC there.
    pub asset: EvmAddress,
    /// Whom everything is paid to.
    pub treasury: EvmAddress,
    /// From which block on everything that moves is booked.
    pub start_block: Option<u64>,
    /// Holds the key that carries out signed payments.
    pub settle_key_file: Option<PathBuf>,
    /// Carries out signed payments in place of a key.
    pub facilitator: Option<Secret>,
    /// How deep payments must be.
    pub confirmations: Confirmations,
    /// How long an order may be paid, seconds.
    pub order_ttl: u64,
    /// The least price that a signed payment is taken for.
    pub min_exact: MicroUsd,
}

impl PaymentSettings {
    /// Who carries out signed payments; reads the key.
    ///
    /// # Errors
    /// What is wrong, naming the option.
    pub fn settler(&self) -> anyhow::Result<Settler> {
        match (&self.settle_key_file, &self.facilitator) {
            (Some(_), Some(_)) => bail!("settle-key-file and facilitator exclude each other"),
            (Some(path), None) => Ok(Settler::Key(key(path)?)),
            (None, Some(url)) => Ok(Settler::Facilitator(url.clone())),
            (None, None) => Ok(Settler::None),
        }
    }
}

/// The options, as they were given.
#[derive(Debug, Default)]
pub struct Given {
    /// chain-rpc
    pub rpc: Option<Vec<String>>,
    /// chain-id
    pub chain_id: Option<u64>,
    /// asset
    pub asset: Option<String>,
    /// treasury
    pub treasury: Option<String>,
    /// chain-start-block
    pub start_block: Option<u64>,
    /// settle-key-file
    pub settle_key_file: Option<PathBuf>,
    /// facilitator
    pub facilitator: Option<String>,
    /// confirmations
    pub confirmations: Option<String>,
    /// order-ttl
    pub order_ttl: Option<u64>,
    /// min-exact
    pub min_exact: Option<String>,
}

fn address(name: &str, text: &str) -> anyhow::Result<EvmAddress> {
    parse_address(text.trim()).map_err(|why| anyhow::anyhow!("{name} `{text}` {why}"))
}

/// Whether a text is an http or https URL with a host.
pub(crate) fn is_web(url: &str) -> bool {
    let read: Result<http::Uri, _> = url.parse();
    read.is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    })
}

fn key(path: &Path) -> anyhow::Result<Arc<Wallet>> {
    let name = || format!("settle-key-file {}", path.display());
    let text = Secret::from_file_text(std::fs::read_to_string(path).with_context(name)?);
    Ok(Arc::new(Wallet::from_hex(text.expose()).with_context(name)?))
}

impl Given {
    /// Checks everything; `None` when no chain is configured.
    ///
    /// # Errors
    /// What is wrong, naming the option.
    pub fn resolve(self) -> anyhow::Result<Option<PaymentSettings>> {
        let rpc: Vec<String> =
            self.rpc.unwrap_or_default().into_iter().filter(|url| !url.is_empty()).collect();
        let confirmations = match self.confirmations.as_deref() {
            None | Some("" | "auto") => Confirmations::Auto,
            Some(text) => {
                let blocks = text.parse().ok().filter(|blocks| (1..=100_000).contains(blocks));
                Confirmations::Blocks(blocks.context("confirmations must be `auto` or 1 to 100000")?)
            }
        };
        let min_exact = match &self.min_exact {
            None => DEFAULT_MIN_EXACT,
            Some(text) => MicroUsd::parse(text)
                .ok()
                .filter(|amount| !amount.is_negative())
                .context("min-exact must be USDC")?,
        };
        let order_ttl = self.order_ttl.unwrap_or(DEFAULT_ORDER_TTL);
        if !(1..=86_400).contains(&order_ttl) {
            bail!("order-ttl must be 1 to 86400 seconds");
        }
        if rpc.is_empty() {
            return Ok(None);
        }
        otonix_sdk::chain::Rpc::new(&rpc).map_err(|why| anyhow::anyhow!("chain-rpc {why}"))?;
        let treasury =
            self.treasury.context("treasury is needed with chain-rpc: the address that is paid")?;
        let facilitator = self.facilitator.filter(|url| !url.is_empty());
        if facilitator.as_deref().is_some_and(|url| !is_web(url)) {
            bail!("facilitator must be an http or https URL with a host");
        }
        let asset = address("asset", self.asset.as_deref().unwrap_or(DEFAULT_ASSET))?;
        let treasury = address("treasury", &treasury)?;
        if treasury == asset || treasury.bytes() == [0; 20] {
            bail!("treasury must be an address that can be paid");
        }
        let settings = PaymentSettings {
            rpc: rpc.into_iter().map(Secret::new).collect(),
            chain_id: self.chain_id.unwrap_or(DEFAULT_CHAIN),
            asset,
            treasury,
            start_block: self.start_block,
            settle_key_file: self.settle_key_file,
            facilitator: facilitator.map(|url| Secret::new(url.trim_end_matches('/').to_owned())),
            confirmations,
            order_ttl,
            min_exact,
        };
        Ok(Some(settings))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_depth_grows_with_the_amount() {
        let usdc = |text: &str| MicroUsd::parse(text).expect("an amount");
        for (amount, depth) in [
            ("0.01", Depth::Blocks(1)),
            ("9.999999", Depth::Blocks(1)),
            ("10", Depth::Blocks(3)),
            ("99.999999", Depth::Blocks(3)),
            ("100", Depth::Blocks(12)),
            ("999.999999", Depth::Blocks(12)),
            ("1000", Depth::Finalized),
        ] {
            assert_eq!(Confirmations::Auto.depth(usdc(amount)), depth, "{amount}");
        }
        assert_eq!(Confirmations::Blocks(2).depth(usdc("5000")), Depth::Blocks(2));
    }

    #[test]
    fn half_a_configuration_is_an_error_and_none_is_none() {
        assert!(Given::default().resolve().expect("reads").is_none());
        let rpc = || Some(vec!["http://127.0.0.1:1".to_owned()]);
        let treasury = || Some("0x70997970C51812dc3A010C7d01b50e0d17dc79C8".to_owned());
        assert!(Given { rpc: rpc(), ..Given::default() }.resolve().is_err());
        let whole = Given { rpc: rpc(), treasury: treasury(), ..Given::default() };
        let settings = whole.resolve().expect("reads").expect("payments");
        assert_eq!((settings.chain_id, settings.order_ttl), (8453, 900));
        for (name, broken) in [
            (
                "rpc",
                Given { rpc: Some(vec!["ftp://x".to_owned()]), treasury: treasury(), ..Given::default() },
            ),
            ("treasury", Given { rpc: rpc(), treasury: Some("0x12".to_owned()), ..Given::default() }),
            (
                "confirmations",
                Given {
                    rpc: rpc(),
                    treasury: treasury(),
                    confirmations: Some("0".to_owned()),
                    ..Given::default()
                },
            ),
            (
                "nobody",
                Given { rpc: rpc(), treasury: Some(format!("0x{}", "0".repeat(40))), ..Given::default() },
            ),
            ("the token", Given { rpc: rpc(), treasury: Some(DEFAULT_ASSET.to_owned()), ..Given::default() }),
            (
                "facilitator",
                Given {
                    rpc: rpc(),
                    treasury: treasury(),
                    facilitator: Some("ftp://x".to_owned()),
                    ..Given::default()
                },
            ),
            ("ttl", Given { rpc: rpc(), treasury: treasury(), order_ttl: Some(0), ..Given::default() }),
        ] {
            assert!(broken.resolve().is_err(), "{name}");
        }
    }
}
