//! Looks after what was booked until the chain can lose it no more: a transfer that left the chain is taken back, one
//! that is on it again is given again.

use std::collections::BTreeMap;
use std::time::Duration;

use otonix_sdk::chain::usdc;
use otonix_sdk::chain::{At, Hash};

use crate::app::App;
use crate::error::Error;
use crate::service::payments::book::{Arrived, signed};
use crate::service::payments::settlement::{self, Found, authorization, away, block_of};
use crate::service::payments::{Payments, goods, movements};
use crate::store::payments;
use crate::store::receipts::{self, Receipt, Seen};
use crate::store::writer::Target;
use crate::worker::{Held, hold};

const LEASE: &str = "finality";
/// Blocks near the head that are looked at each time.
const NEAR: u64 = 64;
/// Blocks further back that are looked at each time.
const OTHERS: usize = 32;
/// Blocks read at once.
const MAX_BLOCKS: i64 = 4_000;
/// Blocks closed in one transaction.
const CLOSED_AT_ONCE: usize = 256;
/// So long a transfer may be missing: it may only be between two blocks.
const MISSING_SECS: i64 = 15;

/// Where the last pass ended, so that all blocks have their turn.
#[derive(Debug, Default)]
pub struct Finality {
    turn: usize,
}

impl Finality {
    /// One pass.
    ///
    /// # Errors
    /// 503 without database or chain.
    pub async fn run_once(&mut self, app: &App) -> Result<(), Error> {
        let Some(parts) = &app.payments else { return Ok(()) };
        let Some(held) = hold(app, LEASE).await? else { return Ok(()) };
        let chain = signed(parts.settings.chain_id);
        let blocks = app
            .db
            .read(move |conn| Box::pin(async move { receipts::open_blocks(conn, chain, MAX_BLOCKS).await }));
        let blocks = blocks.await?;
        if blocks.is_empty() {
            return Ok(());
        }
        let head = parts.chain.head(Duration::from_secs(1)).await.map_err(away)?.number;
        let finalized = parts.chain.finalized().await.map_err(away)?;
        let near = |seen: &Seen| block_of(seen.number) + NEAR > head || block_of(seen.number) <= finalized;
        let others: Vec<&Seen> = blocks.iter().filter(|seen| !near(seen)).collect();
        let others: Vec<&Seen> = others
            .iter()
            .cycle()
            .skip(self.turn % others.len().max(1))
            .take(OTHERS.min(others.len()))
            .copied()
            .collect();
        self.turn = self.turn.wrapping_add(OTHERS);
        let mut known: BTreeMap<u64, Option<Hash>> = BTreeMap::new();
        let mut closed: Vec<Seen> = Vec::new();
        let mut outcome = Ok(());
        for seen in blocks.iter().filter(|seen| near(seen)).chain(others) {
            let number = block_of(seen.number);
            let hash = match known.get(&number) {
                Some(hash) => *hash,
                None => match parts.chain.rpc().block(At::Number(number)).await {
                    Ok(block) => {
                        let hash = block.map(|block| block.hash);
                        known.insert(number, hash);
                        hash
                    }
                    Err(error) => {
                        outcome = outcome.and(Err(away(error.into())));
                        break;
                    }
                },
            };
            if hash == Some(Hash(seen.hash)) && !seen.troubled {
                if number <= finalized {
                    closed.push(*seen);
                }
                continue;
            }
            // One block that cannot be looked at keeps no other from its end; a chain that is away is left alone.
            if let Err(error) = look_closely(app, parts, held, seen).await {
                let is_away = matches!(error, Error::Busy { .. });
                outcome = outcome.and(Err(error));
                if is_away {
                    break;
                }
            }
        }
        for blocks in closed.chunks(CLOSED_AT_ONCE) {
            close(app, held, chain, blocks.to_vec()).await?;
        }
        outcome
    }
}

/// What is in a block that is final is final.
async fn close(app: &App, held: Held, chain: i64, blocks: Vec<Seen>) -> Result<(), Error> {
    let replica = app.replica;
    app.writer
        .apply(Target::Shared, move |tx| {
            Box::pin(async move {
                held.check(tx, replica).await?;
                Ok(receipts::close_blocks(tx, chain, &blocks).await?)
            })
        })
        .await
}

/// Each receipt of a block that is not there as it was, or that has missing ones.
async fn look_closely(app: &App, parts: &Payments, held: Held, seen: &Seen) -> Result<(), Error> {
    let (chain, block) = (signed(parts.settings.chain_id), *seen);
    let rows = app
        .db
        .read(move |conn| Box::pin(async move { receipts::in_block(conn, chain, &block).await }))
        .await?;
    for row in rows {
        let found = on_chain(parts, &row).await?;
        if found.is_none()
            && let Some(arrived) = elsewhere(app, parts, &row).await?
        {
            let (replica, hash) = (app.replica, arrived.hash_text());
            let done = app.writer.apply(Target::Alone, move |tx| {
                Box::pin(async move {
                    held.check(tx, replica).await?;
                    movements::rehome_in(tx, &row, &arrived).await
                })
            });
            if done.await? {
                tracing::warn!(
                    tx.hash = hash,
                    "a signed payment left the chain and came by another transaction"
                );
            }
            continue;
        }
        let replica = app.replica;
        let target = if row.agent.is_nil() { Target::Shared } else { Target::Agent(row.agent) };
        let now = app.clock.now();
        let missing_for = row.missing_since.map_or(0, |since| (now - since).num_seconds());
        let hash = Hash(row.tx_hash);
        if found.is_none() && missing_for >= MISSING_SECS && row.status == "granted" {
            tracing::error!(tx.hash = %hash, amount_micro = row.amount, "a payment has left the chain; it is taken back");
        }
        let turned = app.writer.apply(target, move |tx| {
            Box::pin(async move {
                held.check(tx, replica).await?;
                match found {
                    Some(place) if row.status == "reversed" => {
                        movements::turn_in(tx, &place, false).await.map(|_| false)
                    }
                    Some(place) => {
                        receipts::note(tx, &place, &row.status).await?;
                        Ok(false)
                    }
                    None if row.status == "reversed" => Ok(false),
                    None if row.missing_since.is_none() => {
                        let missing = Receipt { missing_since: Some(tx.at), ..row.clone() };
                        receipts::note(tx, &missing, &row.status).await?;
                        Ok(false)
                    }
                    None if missing_for < MISSING_SECS => Ok(false),
                    None => movements::turn_in(tx, &row, true).await,
                }
            })
        });
        if turned.await? {
            app.shared.metrics.payments_reversed.inc();
        }
    }
    Ok(())
}

/// The transaction that carries out a signed payment now, when it is another one than before.
async fn elsewhere(app: &App, parts: &Payments, row: &Receipt) -> Result<Option<Arrived>, Error> {
    let sale = row.sale;
    if sale.is_nil() {
        return Ok(None);
    }
    let claim = app.db.read(move |conn| Box::pin(async move { payments::of_sale(conn, sale).await }));
    let Some(claim) = claim.await? else { return Ok(None) };
    let from = block_of(claim.from_block);
    let found = settlement::search(parts, &authorization(&claim)?, from).await.map_err(away)?;
    Ok(match found {
        Found::Settled(arrived) if arrived.tx_hash != row.tx_hash => Some(*arrived),
        _ => None,
    })
}

/// The receipt with the place where its transfer is now; `None` when it is nowhere.
async fn on_chain(parts: &Payments, row: &Receipt) -> Result<Option<Receipt>, Error> {
    let Some(mined) = parts.chain.mined(Hash(row.tx_hash)).await.map_err(away)? else { return Ok(None) };
    let log = usize::try_from(row.log_index).ok().and_then(|index| mined.receipt.logs.get(index));
    let log = log.filter(|log| log.address == parts.settings.asset).and_then(usdc::read_transfer_log);
    let same = log.filter(|log| {
        let amount = goods::micros(log.value).map(otonix_sdk::money::MicroUsd::micros);
        mined.receipt.success
            && log.from.to_string() == row.from
            && log.to.to_string() == row.to
            && amount == Some(row.amount)
    });
    Ok(same.map(|_| Receipt {
        block_number: signed(mined.block.number),
        block_hash: mined.block.hash.0,
        block_time: signed(mined.block.timestamp),
        missing_since: None,
        ..row.clone()
    }))
}
