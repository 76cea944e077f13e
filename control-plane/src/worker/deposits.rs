//! Books everything that moved to and from the treasury and that no sale has used, once it is old and deep enough
//! that none can use it any more. The cursor moves in the transaction that books.

use std::collections::BTreeSet;
use std::time::Duration;

use otonix_sdk::chain::usdc::{self, TransferLog};
use otonix_sdk::chain::{At, Block};
use otonix_sdk::money::MicroUsd;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::payments::book::{Arrived, signed};
use crate::service::payments::settlement::{self, Found, authorization, away, block_of};
use crate::service::payments::{Payments, goods, movements};
use crate::store::writer::{Target, Tx};
use crate::store::{agents, cursors, orders, payments, receipts};
use crate::treasury::{Confirmations, Depth};
use crate::upstream::chain::Mined;
use crate::worker::{Held, hold};

const LEASE: &str = "deposits";
/// Blocks that a deposit must be deep at least.
const LEAST_DEPTH: u64 = 12;
/// After the time in which an order may be paid, so much more, seconds.
const GRACE_SECS: u64 = 600;
/// Blocks of one pass.
const CHUNK: u64 = 2_000;
/// Passes of one step.
const MAX_CHUNKS: usize = 20;

/// The name of the cursor: one for each chain, token and treasury.
pub fn cursor_name(parts: &Payments) -> String {
    let settings = &parts.settings;
    format!("moves:{}:{}:{}", settings.chain_id, settings.asset, settings.treasury)
}

/// One step.
///
/// # Errors
/// 503 without database or chain.
pub async fn run_once(app: &App) -> Result<(), Error> {
    let Some(parts) = &app.payments else { return Ok(()) };
    let Some(held) = hold(app, LEASE).await? else { return Ok(()) };
    let head = parts.chain.head(Duration::from_secs(1)).await.map_err(away)?;
    let name = cursor_name(parts);
    for _ in 0..MAX_CHUNKS {
        let from = name.clone();
        let cursor =
            app.db.read(move |conn| Box::pin(async move { cursors::read(conn, from).await })).await?;
        let Some(cursor) = cursor else {
            let first = parts.settings.start_block.unwrap_or(head.number + 1);
            let (name, block) = (name.clone(), signed(first) - 1);
            app.writer
                .apply(Target::Shared, move |tx| {
                    Box::pin(async move {
                        cursors::init(tx, &format!("start:{name}"), block + 1).await?;
                        Ok(cursors::init(tx, &name, block).await?)
                    })
                })
                .await?;
            continue;
        };
        if !pass(app, parts, held, &name, cursor, head).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// Books the next blocks; `false` when there are none that are old enough.
async fn pass(
    app: &App,
    parts: &Payments,
    held: Held,
    name: &str,
    cursor: i64,
    head: Block,
) -> Result<bool, Error> {
    let first = block_of(cursor + 1);
    let Some(last) = last_due(parts, first, head).await? else { return Ok(false) };
    let Some((last, moved)) = moved(app, parts, first, last).await? else { return Ok(false) };
    let (replica, name, to) = (app.replica, name.to_owned(), signed(last));
    let treasury = parts.settings.treasury;
    let credited = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            held.check(tx, replica).await?;
            if !cursors::advance(tx, &name, cursor, to).await? {
                return Err(Error::internal("the cursor of deposits was moved by another"));
            }
            lock_all(tx, &moved).await?;
            let mut credited = 0;
            for each in &moved {
                if each.from == treasury {
                    movements::withdrawal_in(tx, each).await?;
                } else {
                    credited += u64::from(movements::deposit_in(tx, each).await?);
                }
            }
            Ok(credited)
        })
    });
    app.shared.metrics.deposits_credited.inc_by(credited.await?);
    Ok(true)
}

/// Every agent that gets something, locked in one order.
async fn lock_all(tx: &mut Tx, moved: &[Arrived]) -> Result<(), Error> {
    let mut ids = BTreeSet::new();
    for each in moved {
        if let Some((agent, _)) = agents::by_proven_wallet(&mut tx.conn, &each.from.to_string()).await? {
            ids.insert(agent);
        }
    }
    let ids: Vec<Uuid> = ids.into_iter().collect();
    agents::lock_states(tx, &ids).await?;
    Ok(())
}

/// The last block of this pass that is old and deep enough, by the chain's own clock.
async fn last_due(parts: &Payments, first: u64, head: Block) -> Result<Option<u64>, Error> {
    let depth = match parts.settings.confirmations {
        Confirmations::Auto => LEAST_DEPTH,
        Confirmations::Blocks(blocks) => blocks.max(LEAST_DEPTH),
    };
    let Some(deepest) = (head.number + 1).checked_sub(depth) else { return Ok(None) };
    let Some(until) = head.timestamp.checked_sub(parts.settings.order_ttl + GRACE_SECS) else {
        return Ok(None);
    };
    let mut last = deepest.min(first.saturating_add(CHUNK - 1));
    if last < first || !is_before(parts, first, until).await? {
        return Ok(None);
    }
    if is_before(parts, last, until).await? {
        return Ok(Some(last));
    }
    let mut good = first;
    while last - good > 1 {
        let middle = good + (last - good) / 2;
        if is_before(parts, middle, until).await? {
            good = middle;
        } else {
            last = middle;
        }
    }
    Ok(Some(good))
}

async fn is_before(parts: &Payments, block: u64, until: u64) -> Result<bool, Error> {
    let found = parts.chain.rpc().block(At::Number(block)).await.map_err(|error| away(error.into()))?;
    Ok(found.is_some_and(|block| block.timestamp <= until))
}

/// What moved in some blocks, as far as it can be booked now, and the last block of it.
async fn moved(
    app: &App,
    parts: &Payments,
    first: u64,
    last: u64,
) -> Result<Option<(u64, Vec<Arrived>)>, Error> {
    let treasury = Some(parts.settings.treasury);
    let mut logs = parts.chain.transfers(None, treasury, first..=last).await.map_err(away)?;
    logs.extend(parts.chain.transfers(treasury, None, first..=last).await.map_err(away)?);
    logs.sort_by_key(|log| (log.block_number, log.log_index));
    logs.dedup_by_key(|log| (log.block_number, log.log_index));
    let mut moved = Vec::new();
    let mut mined: Option<Mined> = None;
    for log in &logs {
        let Some(transfer) = usdc::read_transfer_log(log) else { continue };
        if mined.as_ref().is_none_or(|known| known.receipt.tx_hash != log.tx_hash) {
            mined = parts.chain.mined(log.tx_hash).await.map_err(away)?;
        }
        // The chain has changed since the logs were asked for: the next step looks again.
        let Some(known) = &mined else { return Ok(None) };
        let ready = is_deep(parts, &transfer).await? && !waits_for_claim(app, parts, known).await?;
        if !ready {
            return Ok(log.block_number.checked_sub(1).filter(|before| *before >= first).map(|before| {
                moved.retain(|each: &Arrived| each.block_number <= before);
                (before, moved)
            }));
        }
        let index = known.receipt.logs.iter().position(|other| other.log_index == log.log_index);
        let arrived =
            index.and_then(|index| Arrived::of(parts.settings.chain_id, index, &transfer, &known.block));
        let Some(arrived) = arrived else { return Ok(None) };
        moved.push(arrived);
    }
    Ok(Some((last, moved)))
}

/// Large amounts wait for the chain's own finality.
async fn is_deep(parts: &Payments, transfer: &TransferLog) -> Result<bool, Error> {
    let amount = goods::micros(transfer.value).unwrap_or(MicroUsd::from_micros(i64::MAX));
    match parts.settings.confirmations.depth(amount) {
        Depth::Blocks(_) => Ok(true),
        depth @ Depth::Finalized => parts.chain.is_deep(transfer.block_number, depth).await.map_err(away),
    }
}

/// A signed payment in this transaction may belong to a claim: one that is under way is waited for, and one that was
/// given up is served after all.
async fn waits_for_claim(app: &App, parts: &Payments, mined: &Mined) -> Result<bool, Error> {
    let asset = parts.settings.asset;
    let used = mined.receipt.logs.iter().filter(|log| log.address == asset);
    for (from, nonce) in used.filter_map(usdc::read_authorization_used) {
        let (chain, token, from) = (signed(parts.settings.chain_id), asset.to_string(), from.to_string());
        let claim = app.db.read(move |conn| {
            Box::pin(async move { payments::by_nonce(conn, chain, &token, &from, nonce).await })
        });
        let Some(claim) = claim.await? else { continue };
        match claim.status.as_str() {
            "claimed" | "sent" => return Ok(true),
            "failed" => {
                let hash = [mined.receipt.tx_hash];
                let found = settlement::look(parts, &authorization(&claim)?, &hash).await.map_err(away)?;
                if let Found::Settled(arrived) = found {
                    settlement::grant(app, parts, &claim, &arrived).await?;
                }
            }
            "done" => carried_out_again(app, parts, &claim, mined).await?,
            _ => {}
        }
    }
    Ok(false)
}

/// A payment that was booked, left the chain and came by this transaction stays the payment of what it bought.
async fn carried_out_again(
    app: &App,
    parts: &Payments,
    claim: &payments::Payment,
    mined: &Mined,
) -> Result<(), Error> {
    let order = claim.order_hash;
    let row = app.db.read(move |conn| {
        Box::pin(async move {
            match orders::sold(conn, order).await? {
                Some(sold) => receipts::of_sale(conn, sold.id).await,
                None => Ok(None),
            }
        })
    });
    let Some(row) = row.await?.filter(|row| row.tx_hash != mined.receipt.tx_hash.0) else { return Ok(()) };
    let hash = [mined.receipt.tx_hash];
    let found = settlement::look(parts, &authorization(claim)?, &hash).await.map_err(away)?;
    if let Found::Settled(arrived) = found {
        let done = app.writer.apply(Target::Alone, move |tx| {
            Box::pin(async move { movements::rehome_in(tx, &row, &arrived).await })
        });
        done.await?;
    }
    Ok(())
}
