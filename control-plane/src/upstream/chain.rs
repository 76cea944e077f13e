//! The chain as this server sees it: whether it can be relied on, its head, and the few questions that payments ask.
//!
//! Nothing is offered and nothing decided while the chain is away, is another chain than configured, or has another
//! token at the asset's address. Every answer about a transfer is checked against the block that the chain has now.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use otonix_sdk::chain::token::Facts;
use otonix_sdk::chain::{At, Block, ChainError, EvmAddress, Fees, Receipt, Rpc, Transaction};
use otonix_sdk::x402::eip3009::Domain;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::treasury::PaymentSettings;

mod questions;

pub use questions::settlement_call;

/// A head as old as this is new enough to quote a price by.
const FRESH: Duration = Duration::from_millis(250);
/// How many quotes a second ask for the very newest block.
const QUOTES_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// How long a quote waits for a newer head.
const QUOTE_WAIT: Duration = Duration::from_millis(200);
/// For so long the last good answer counts when the chain does not answer.
const LAST_GOOD: Duration = Duration::from_secs(3);
/// With a slow chain, for so long.
const SLOW_GOOD: Duration = Duration::from_secs(10);
/// How often chain id and token are asked for again.
const IDENTITY_EVERY: Duration = Duration::from_secs(10);
/// How often fees and the settling key's gas are asked for.
const GAS_EVERY: Duration = Duration::from_secs(5);
/// Gas that a settlement may use, simulated and sent.
pub const SETTLE_GAS: u64 = 300_000;
/// Wei of a unit of gas that is never exceeded: 50 gwei.
pub const MAX_FEE_CAP: u128 = 50_000_000_000;
/// Below the gas for so many settlements, signed payments are not offered.
const RESERVE_SETTLEMENTS: u128 = 10;

/// Why the chain cannot be relied on now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It does not answer, or not sensibly.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The node is of another chain.
    #[error("the node is of chain {0}, not of the one configured")]
    WrongChain(u64),
    /// The token is not what is expected.
    #[error("{0}")]
    WrongToken(String),
}

/// A chain that can be relied on.
#[derive(Debug, Clone)]
pub struct Ready {
    /// The newest block known.
    pub head: Block,
    /// What the token says of itself.
    pub facts: Arc<Facts>,
}

/// A transaction that is in a block of the chain as it is now.
#[derive(Debug, Clone)]
pub struct Mined {
    /// What became of it.
    pub receipt: Receipt,
    /// Its block.
    pub block: Block,
}

/// Where a transaction is.
#[derive(Debug, Clone)]
pub enum Seen {
    /// No node knows it.
    Unknown,
    /// It waits for a block.
    Waiting,
    /// It is in a block.
    Mined(Box<(Transaction, Mined)>),
}

#[derive(Debug, Default)]
struct State {
    head: Option<(Block, Instant)>,
    identified: Option<Instant>,
    trouble: Option<Trouble>,
    fees: Option<(Fees, Instant)>,
}

/// The chain.
#[derive(Debug)]
pub struct Chain {
    rpc: Rpc,
    id: u64,
    asset: EvmAddress,
    facts: ArcSwapOption<Facts>,
    state: Mutex<State>,
    asking: tokio::sync::Mutex<()>,
    gas_is_there: AtomicBool,
    /// How often quotes may ask for the very newest block.
    quotes: DefaultDirectRateLimiter,
}

impl Chain {
    /// The configured chain; nothing is asked yet.
    ///
    /// # Errors
    /// When an address is none.
    pub fn new(settings: &PaymentSettings) -> anyhow::Result<Self> {
        let urls: Vec<String> = settings.rpc.iter().map(|url| url.expose().to_owned()).collect();
        Ok(Self {
            rpc: Rpc::new(&urls)?,
            id: settings.chain_id,
            asset: settings.asset,
            facts: ArcSwapOption::empty(),
            state: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
            gas_is_there: AtomicBool::new(true),
            quotes: RateLimiter::direct(Quota::per_second(QUOTES_PER_SECOND)),
        })
    }

    /// The nodes, for questions that need no judgement.
    pub const fn rpc(&self) -> &Rpc {
        &self.rpc
    }

    /// The chain's id.
    pub const fn id(&self) -> u64 {
        self.id
    }

    /// What the token's signatures are made over; `None` until the chain was reached once.
    pub fn domain(&self) -> Option<Domain> {
        let facts = self.facts.load_full()?;
        Some(Domain {
            name: facts.name.clone(),
            version: facts.version.clone(),
            chain_id: self.id,
            asset: self.asset,
        })
    }

    /// Whether the last question was answered.
    pub fn is_up(&self) -> bool {
        let state = self.state.lock();
        state.trouble.is_none() && state.head.is_some()
    }

    /// What is wrong, if anything is.
    pub fn trouble(&self) -> Option<Trouble> {
        self.state.lock().trouble.clone()
    }

    /// Whether the settling key can pay for gas.
    pub fn has_gas(&self) -> bool {
        self.gas_is_there.load(Ordering::Relaxed)
    }

    /// The chain as it is good enough to quote a price by: hardly ever waits. The head is as it is at this moment,
    /// unless there are more questions than the chain should be asked; then it is a little older.
    ///
    /// # Errors
    /// [`Trouble`] when it cannot be relied on.
    pub async fn ready(&self) -> Result<Ready, Trouble> {
        let most = if self.quotes.check().is_ok() { Duration::ZERO } else { FRESH };
        if let Some(ready) = self.known(most) {
            return Ok(ready);
        }
        match tokio::time::timeout(QUOTE_WAIT, self.head(most)).await {
            Ok(Ok(head)) => self.with_facts(head),
            Ok(Err(error @ (Trouble::WrongChain(_) | Trouble::WrongToken(_)))) => Err(error),
            Ok(Err(error)) => self.known(LAST_GOOD).ok_or(error),
            Err(_) => self.known(SLOW_GOOD).ok_or_else(|| self.slow()),
        }
    }

    fn slow(&self) -> Trouble {
        self.trouble().unwrap_or_else(|| ChainError::Unreachable("no answer in time".to_owned()).into())
    }

    fn known(&self, most: Duration) -> Option<Ready> {
        let state = self.state.lock();
        let (head, at) = state.head?;
        if at.elapsed() > most
            || matches!(state.trouble, Some(Trouble::WrongChain(_) | Trouble::WrongToken(_)))
        {
            return None;
        }
        Some(Ready { head, facts: self.facts.load_full()? })
    }

    fn with_facts(&self, head: Block) -> Result<Ready, Trouble> {
        let facts = self.facts.load_full().ok_or_else(|| self.slow())?;
        Ok(Ready { head, facts })
    }

    /// The newest block, asked for again when it is older than `most`. Callers share one question.
    ///
    /// # Errors
    /// [`Trouble`] when the chain cannot be relied on.
    pub async fn head(&self, most: Duration) -> Result<Block, Trouble> {
        let since = Instant::now();
        let fresh = |state: &State| {
            let (head, at) = state.head?;
            (state.trouble.is_none() && (at >= since || at.elapsed() <= most)).then_some(head)
        };
        if let Some(head) = fresh(&self.state.lock()) {
            return Ok(head);
        }
        let _turn = self.asking.lock().await;
        if let Some(head) = fresh(&self.state.lock()) {
            return Ok(head);
        }
        let asked = Instant::now();
        let found = self.ask().await;
        let mut state = self.state.lock();
        match found {
            Ok(head) => {
                if state.trouble.take().is_some() {
                    tracing::info!("the chain can be relied on again");
                }
                state.head = Some((head, asked));
                Ok(head)
            }
            Err(trouble) => {
                if state.trouble.as_ref() != Some(&trouble) {
                    tracing::error!(error = %trouble, "the chain cannot be relied on; paid routes are closed");
                }
                state.trouble = Some(trouble.clone());
                Err(trouble)
            }
        }
    }

    async fn ask(&self) -> Result<Block, Trouble> {
        let identified = self.state.lock().identified;
        let troubled = self.state.lock().trouble.is_some();
        if troubled || identified.is_none_or(|at| at.elapsed() > IDENTITY_EVERY) {
            self.identify().await?;
            self.state.lock().identified = Some(Instant::now());
        }
        let head = self.rpc.block(At::Latest).await?;
        Ok(head.ok_or_else(|| ChainError::Garbage("there is no newest block".to_owned()))?)
    }

    /// Whether this is the configured chain with the real token on it.
    async fn identify(&self) -> Result<(), Trouble> {
        let id = self.rpc.chain_id().await?;
        if id != self.id {
            return Err(Trouble::WrongChain(id));
        }
        if self.facts.load().is_some() {
            return Ok(());
        }
        let facts = self.rpc.token_facts(self.asset).await?;
        let domain = Domain {
            name: facts.name.clone(),
            version: facts.version.clone(),
            chain_id: id,
            asset: self.asset,
        };
        if facts.decimals != 6 {
            let what = format!("the token {} has {} decimals, not 6", self.asset, facts.decimals);
            return Err(Trouble::WrongToken(what));
        }
        if domain.separator() != facts.domain_separator {
            let what = format!("the token {} signs over another domain than it names", self.asset);
            return Err(Trouble::WrongToken(what));
        }
        self.facts.store(Some(Arc::new(facts)));
        Ok(())
    }

    /// The same if it was asked for a moment ago.
    pub fn known_fees(&self) -> Option<Fees> {
        let fees = self.state.lock().fees;
        fees.filter(|(_, at)| at.elapsed() < GAS_EVERY).map(|(fees, _)| fees)
    }

    /// What a unit of gas costs now; asked for every few seconds.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn fees(&self) -> Result<Fees, Trouble> {
        if let Some(fees) = self.known_fees() {
            return Ok(fees);
        }
        let fees = self.rpc.fees().await?;
        self.state.lock().fees = Some((fees, Instant::now()));
        Ok(fees)
    }

    /// Looks whether the settling key can pay for the next settlements.
    ///
    /// # Errors
    /// [`Trouble`].
    pub async fn watch_gas(&self, key: EvmAddress) -> Result<(), Trouble> {
        let fees = self.fees().await?;
        let wei = self.rpc.balance(key).await?;
        let fee = fees.base_fee.saturating_mul(2).saturating_add(fees.priority_fee);
        let reserve = fee.saturating_mul(u128::from(SETTLE_GAS)).saturating_mul(RESERVE_SETTLEMENTS);
        let enough = wei >= reserve && fees.base_fee < MAX_FEE_CAP;
        if self.gas_is_there.swap(enough, Ordering::Relaxed) != enough {
            if enough {
                tracing::info!(%key, "the settling key can pay for gas again");
            } else {
                tracing::error!(%key, wei, reserve, "the settling key is short of gas; signed payments are not offered");
            }
        }
        Ok(())
    }
}
