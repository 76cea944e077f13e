//! Before the first payment of a life: is this the configured chain and token, and has money left the wallet that the
//! journal knows nothing of (a journal put back from an old copy)? Without an answer nothing is paid.

use std::collections::HashMap;
use std::sync::Arc;

use super::PayError;
use super::client::Inner;
use super::record::{Checkpoint, Record, Stray, Token};
use crate::chain::usdc::{self, AUTHORIZATION_USED_TOPIC, TransferLog};
use crate::chain::{At, ChainError, Hash, LogFilter};
use crate::money::MicroUsd;
use crate::x402::TokenDomain;
use crate::x402::eip3009::Domain;

/// Blocks asked for at a time; more than nodes commonly allow is refused by them.
const SPAN: u64 = 2_000;
/// The newest blocks may still change: the next comparison looks at them again.
const UNSURE: u64 = 64;
/// USDC's; another token is not paid with.
const DECIMALS: u64 = 6;

/// Checks chain and token, and compares chain and journal.
pub(super) async fn run(inner: &Arc<Inner>) -> Result<(), PayError> {
    token(inner).await?;
    compare(inner).await
}

/// The token as the chain describes it: as configured, and as it was before.
async fn token(inner: &Arc<Inner>) -> Result<(), PayError> {
    let rules = &inner.config.rules;
    let chain_id = inner.rpc.chain_id().await?;
    if chain_id != rules.chain_id {
        let why = format!("the node is of the chain {chain_id}, not {}", rules.chain_id);
        return Err(PayError::WrongChain(why));
    }
    let facts = inner.rpc.token_facts(rules.asset).await?;
    let domain =
        Domain { name: facts.name.clone(), version: facts.version.clone(), chain_id, asset: rules.asset };
    if facts.decimals != DECIMALS || domain.separator() != facts.domain_separator {
        let why = format!("{} is not USDC with {DECIMALS} decimals and a plain domain", rules.asset);
        return Err(PayError::WrongChain(why));
    }
    let found = Token { chain_id, asset: rules.asset, name: facts.name, version: facts.version };
    inner
        .book(move |book| match &book.content().token {
            Some(pinned) if *pinned == found => Ok(()),
            Some(pinned) if pinned.chain_id == found.chain_id && pinned.asset == found.asset => {
                Err(PayError::WrongChain(format!(
                    "the token was {} version {}, now it is {} version {}",
                    pinned.name, pinned.version, found.name, found.version
                )))
            }
            _ => Ok(book.commit(vec![Record::Token(found)])?),
        })
        .await?
}

/// Compares the wallet's transfers since the last time with the journal.
async fn compare(inner: &Arc<Inner>) -> Result<(), PayError> {
    let payer = inner.wallet.address();
    let head = inner.rpc.block_number().await?;
    let account_nonce = inner.rpc.transaction_count(payer, At::Latest).await?;
    let now = inner.clock.now();
    let checkpoint = inner.book(|book| book.content().checkpoint.clone()).await?;
    // A new journal, or one of another wallet, begins here.
    let Some(last) = checkpoint.filter(|last| last.payer == payer) else {
        let first = Checkpoint { block: head, account_nonce, at: now, payer };
        return Ok(inner.book(move |book| book.commit(vec![Record::Checkpoint(first)])).await??);
    };
    let moved = transfers(inner, last.block.saturating_add(1), head).await?;
    inner
        .book(move |book| {
            let (hashes, nonces) = book.content().known();
            let strays = strays(moved, &hashes, &nonces);
            let new: Vec<Stray> = strays
                .into_iter()
                .filter(|log| !book.content().knows_stray(log.tx_hash, log.log_index))
                .map(|log| Stray {
                    tx_hash: log.tx_hash,
                    log_index: log.log_index,
                    amount: MicroUsd::from_micros(i64::try_from(log.value).unwrap_or(i64::MAX)),
                    to: log.to,
                    at: now,
                })
                .collect();
            let expected = book.content().next_nonce(payer).unwrap_or(0).max(last.account_nonce);
            let mut records = Vec::new();
            if let Some(first) = new.first() {
                let why = format!(
                    "{} USDC left the wallet in {} without a payment of this journal",
                    first.amount, first.tx_hash
                );
                records.push(Record::Suspect { why });
            } else if account_nonce > expected {
                let why = format!(
                    "the wallet has sent {account_nonce} transactions, the journal knows of {expected}"
                );
                records.push(Record::Suspect { why });
            }
            records.extend(new.into_iter().map(Record::Stray));
            let block = head.saturating_sub(UNSURE).max(last.block);
            let account_nonce = account_nonce.max(last.account_nonce);
            records.push(Record::Checkpoint(Checkpoint { block, account_nonce, at: now, payer }));
            book.commit(records)
        })
        .await??;
    Ok(())
}

/// A transfer out of the wallet, and the authorization that it carried out.
struct Moved {
    log: TransferLog,
    nonces: Vec<Hash>,
}

async fn transfers(inner: &Inner, from: u64, to: u64) -> Result<Vec<Moved>, ChainError> {
    let payer = inner.wallet.address();
    let asset = inner.config.rules.asset;
    let mut moved = Vec::new();
    let mut start = from;
    while start <= to {
        let end = to.min(start.saturating_add(SPAN - 1));
        let logs = inner.rpc.logs(&usdc::transfers(asset, Some(payer), None, start..=end)).await?;
        if !logs.is_empty() {
            let used = inner.rpc.logs(&used_by(inner, start, end)).await?;
            let mut by_tx: HashMap<Hash, Vec<Hash>> = HashMap::new();
            for log in &used {
                if let Some((_, nonce)) = usdc::read_authorization_used(log) {
                    by_tx.entry(log.tx_hash).or_default().push(Hash(nonce));
                }
            }
            moved.extend(
                logs.iter()
                    .filter_map(usdc::read_transfer_log)
                    .map(|log| Moved { nonces: by_tx.get(&log.tx_hash).cloned().unwrap_or_default(), log }),
            );
        }
        start = end.saturating_add(1);
    }
    Ok(moved)
}

fn used_by(inner: &Inner, from: u64, to: u64) -> LogFilter {
    let mut word = [0; 32];
    word[12..].copy_from_slice(&inner.wallet.address().bytes());
    let topics = vec![Some(AUTHORIZATION_USED_TOPIC), Some(Hash(word))];
    LogFilter { address: inner.config.rules.asset, topics, from, to }
}

/// Transfers that no intent explains. Each authorization explains one transfer of its amount.
fn strays(
    moved: Vec<Moved>,
    hashes: &std::collections::HashSet<Hash>,
    nonces: &HashMap<Hash, u128>,
) -> Vec<TransferLog> {
    let mut spent: std::collections::HashSet<Hash> = std::collections::HashSet::new();
    let unexplained = moved.into_iter().filter(|moved| {
        if hashes.contains(&moved.log.tx_hash) || moved.log.value == 0 {
            return false;
        }
        let explained = moved
            .nonces
            .iter()
            .find(|nonce| !spent.contains(*nonce) && nonces.get(*nonce) == Some(&moved.log.value));
        match explained.copied() {
            Some(nonce) => !spent.insert(nonce),
            None => true,
        }
    });
    unexplained.map(|moved| moved.log).collect()
}

/// The pinned token's domain.
pub(super) fn domain(token: &Token) -> TokenDomain {
    TokenDomain { name: token.name.clone(), version: token.version.clone() }
}
