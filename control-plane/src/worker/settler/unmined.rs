//! What was signed and is in no block yet: sent, sent again, and dearer when it has waited for long.

use std::sync::Arc;
use std::time::Duration;

use otonix_sdk::chain::{ChainError, Hash};
use otonix_sdk::wallet::Wallet;

use super::{BATCH, Settling};
use crate::error::Error;
use crate::service::payments::desk::{Pen, row_of};
use crate::service::payments::settlement::{away, block_of, chain_column, sign, signer_text};
use crate::store::payments;
use crate::store::settlements::{self, Settlement};
use crate::store::writer::Target;
use crate::treasury::Settler;
use crate::upstream::chain::MAX_FEE_CAP;

/// After this a transaction that is in no block gets a dearer one beside it.
const BUMP_AFTER: i64 = 20;

impl Settling {
    pub(super) async fn send(&self, row: &Settlement) {
        match self.parts.chain.rpc().send_raw(&row.raw).await {
            Ok(()) => {}
            // It, or one beside it, is in a block.
            Err(error) if error.is_nonce_too_low() => {}
            Err(ChainError::Unreachable(why)) => {
                tracing::debug!(error = %why, "a settlement is sent again later")
            }
            Err(error) => {
                tracing::warn!(tx.hash = %Hash(row.tx_hash), %error, "a settlement was not taken by the node")
            }
        }
    }

    /// Sends again what is in no block, and dearer when it has waited for long: no number of the account may stay open.
    pub(super) async fn keep(&self) -> Result<(), Error> {
        let Settler::Key(key) = &self.parts.settler else { return Ok(()) };
        let count = self.account_number(key, Duration::ZERO).await?;
        let (chain, signer) = (chain_column(&self.parts), signer_text(key.address()));
        let first = i64::try_from(count).unwrap_or(i64::MAX);
        let from = self.turns.lock().unmined.map_or(first, |last| last.saturating_add(1)).max(first);
        let rows = self.app.db.read(move |conn| {
            Box::pin(async move { settlements::from_nonce(conn, chain, signer, from, BATCH).await })
        });
        let rows = rows.await?;
        let more = rows.len() as i64 >= BATCH;
        self.turns.lock().unmined = rows.last().filter(|_| more).map(|row| row.account_nonce);
        if from == first && rows.first().is_some_and(|row| row.account_nonce > first) {
            self.fill(key, count).await?;
        }
        let now = self.app.clock.now();
        for row in &rows {
            let age = (now - row.created_at).num_seconds();
            if age < 2 {
                continue;
            }
            let dearer = if age >= BUMP_AFTER { self.dearer(key, row).await } else { Ok(None) };
            let dearer = dearer.unwrap_or_else(|error| {
                tracing::debug!(payment.id = %row.payment, %error, "a settlement is not made dearer now");
                None
            });
            self.send(dearer.as_ref().unwrap_or(row)).await;
        }
        Ok(())
    }

    /// A number that nothing was signed with (a node that told a wrong one) holds up all after it: the first claim that
    /// waits behind it gets it. The token carries each claim out once, whatever is signed for it.
    async fn fill(&self, key: &Arc<Wallet>, number: u64) -> Result<(), Error> {
        let (chain, signer) = (chain_column(&self.parts), signer_text(key.address()));
        let (of, after) = (signer.clone(), i64::try_from(number).unwrap_or(i64::MAX));
        let waiting = self.app.db.read(move |conn| {
            Box::pin(async move {
                match settlements::first_open_after(conn, chain, of, after).await? {
                    Some(id) => payments::by_id(conn, id).await,
                    None => Ok(None),
                }
            })
        });
        let Some(claim) = waiting.await? else { return Ok(()) };
        let fees = self.parts.chain.fees().await.map_err(away)?;
        let Some(pen) = Pen::new(&self.app, &self.parts, key, number, fees) else { return Ok(()) };
        let signed = sign(&self.parts, key, &claim, number, fees.offer())?;
        let (id, offer) = (claim.id, fees.offer());
        let done = self.app.writer.apply(Target::Shared, move |tx| {
            Box::pin(async move {
                if !pen.is_held(tx).await? {
                    return Ok(None);
                }
                let row = row_of(tx, chain, &signer, (number, 0), id, signed, offer);
                settlements::insert(tx, &row).await?;
                Ok(Some(row))
            })
        });
        if let Some(row) = done.await? {
            tracing::warn!(payment.id = %id, number, "an account number that nothing was signed with is used");
            self.send(&row).await;
        }
        Ok(())
    }

    /// The same settlement with the same account number and a higher fee, stored before it is sent.
    async fn dearer(&self, key: &Arc<Wallet>, row: &Settlement) -> Result<Option<Settlement>, Error> {
        let fees = self.parts.chain.fees().await.map_err(away)?;
        let more = |fee: i64| (u128::try_from(fee).unwrap_or(0) * 5 / 4).saturating_add(1);
        let priority = more(row.priority_fee);
        let max = more(row.max_fee).max(fees.base_fee.saturating_mul(2).saturating_add(priority));
        if max > MAX_FEE_CAP {
            return Ok(None);
        }
        let id = row.payment;
        let claim =
            self.app.db.read(move |conn| Box::pin(async move { payments::by_id(conn, id).await })).await?;
        let Some(claim) = claim else { return Ok(None) };
        let nonce = block_of(row.account_nonce);
        let signed = sign(&self.parts, key, &claim, nonce, (max, priority))?;
        let (chain, signer, attempt) = (row.chain, row.signer.clone(), row.attempt + 1);
        let Some(pen) = Pen::new(&self.app, &self.parts, key, nonce, fees) else { return Ok(None) };
        let done = self.app.writer.apply(Target::Shared, move |tx| {
            Box::pin(async move {
                if !pen.is_held(tx).await? {
                    return Ok(None);
                }
                let row = row_of(tx, chain, &signer, (nonce, attempt), id, signed, (max, priority));
                settlements::insert(tx, &row).await?;
                Ok(Some(row))
            })
        });
        done.await
    }
}
