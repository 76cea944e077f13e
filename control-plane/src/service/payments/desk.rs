//! Settling with the server's own key: the lease under which its account's numbers are given out, the account's next
//! number as the chain last told it, and the signing, always in the transaction that stores what was signed.

use std::sync::Arc;
use std::time::Duration;

use otonix_sdk::chain::Fees;
use otonix_sdk::wallet::{Signed, Wallet};
use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::payments::Payments;
use crate::service::payments::settlement::{block_of, chain_column, sign, signer_text};
use crate::store::leases;
use crate::store::payments::Payment;
use crate::store::settlements::{self, Settlement};
use crate::store::writer::Tx;
use crate::treasury::Settler;
use crate::upstream::chain::MAX_FEE_CAP;

/// The lease's name: one replica at a time gives numbers out.
pub const LEASE: &str = "settler";
/// A lease that was not renewed for so long is no longer relied on; the transaction that signs has the last word.
pub const LEASE_AGE: Duration = Duration::from_secs(12);
/// A number of the account as old as this is asked for again.
pub const COUNT_AGE: Duration = Duration::from_secs(3);

/// What is known in memory.
#[derive(Debug, Default)]
pub struct Desk {
    /// The lease's epoch, and when it was renewed.
    lease: Mutex<Option<(i64, Instant)>>,
    /// The account's next number by the chain, and when that was.
    count: Mutex<Option<(u64, Instant)>>,
    /// The last number that was given out, as far as is known, and the epoch it was given out in.
    given: Mutex<Option<(i64, u64)>>,
}

impl Desk {
    /// The lease was renewed, or is lost.
    pub fn renewed(&self, epoch: Option<i64>) {
        *self.lease.lock() = epoch.map(|epoch| (epoch, Instant::now()));
    }

    /// The epoch of the lease while it can be relied on.
    pub fn epoch(&self) -> Option<i64> {
        let lease = *self.lease.lock();
        lease.filter(|(_, at)| at.elapsed() <= LEASE_AGE).map(|(epoch, _)| epoch)
    }

    /// The chain told the account's next number when it was asked at a time.
    pub fn counted(&self, count: u64, asked: Instant) {
        *self.count.lock() = Some((count, asked));
    }

    /// The account's next number as it was at most so long ago. The queue's own numbers go on from the highest that
    /// was given out, so an old one can only be too low.
    pub fn count(&self, most: Duration) -> Option<u64> {
        let count = *self.count.lock();
        count.filter(|(_, at)| at.elapsed() < most).map(|(count, _)| count)
    }
}

/// Everything that is needed to sign now.
#[derive(Clone)]
pub struct Pen {
    parts: Arc<Payments>,
    key: Arc<Wallet>,
    replica: Uuid,
    epoch: i64,
    count: u64,
    fees: Fees,
}

impl Pen {
    /// A pen for the holder of the lease.
    pub fn new(app: &App, parts: &Arc<Payments>, key: &Arc<Wallet>, count: u64, fees: Fees) -> Option<Self> {
        let epoch = parts.desk.epoch()?;
        let (parts, key) = (Arc::clone(parts), Arc::clone(key));
        Some(Self { parts, key, replica: app.replica, epoch, count, fees })
    }

    /// The same if nothing needs to be asked for.
    pub fn at_hand(app: &App, parts: &Arc<Payments>) -> Option<Self> {
        let Settler::Key(key) = &parts.settler else { return None };
        Self::new(app, parts, key, parts.desk.count(COUNT_AGE)?, parts.chain.known_fees()?)
    }

    /// Whether this replica still gives the numbers out.
    ///
    /// # Errors
    /// Store errors.
    pub async fn is_held(&self, tx: &mut Tx) -> Result<bool, Error> {
        Ok(leases::is_held(tx, LEASE, self.replica, self.epoch).await?)
    }

    /// The last number that was given out, as it is remembered; whoever relies on it asks the database whether it is.
    pub fn remembered(&self) -> Option<i64> {
        let given = *self.parts.desk.given.lock();
        given.filter(|(epoch, _)| *epoch == self.epoch).and_then(|(_, number)| i64::try_from(number).ok())
    }

    /// A number was given out.
    pub fn gave(&self, number: u64) {
        *self.parts.desk.given.lock() = Some((self.epoch, number));
    }

    /// The last number that was given out, if any; a transaction keeps it so until its end. `None` when another replica
    /// gives them out now.
    ///
    /// # Errors
    /// Store errors.
    pub async fn last_number(&self, tx: &mut Tx) -> Result<Option<Option<i64>>, Error> {
        let signer = signer_text(self.key.address());
        Ok(settlements::last_nonce(tx, self.lease(), chain_column(&self.parts), &signer).await?)
    }

    /// The number to be given out after that.
    pub fn next_after(&self, last: Option<i64>) -> u64 {
        last.map_or(0, |last| block_of(last) + 1).max(self.count)
    }

    /// The lease that this is about: name, holder, epoch.
    pub const fn lease(&self) -> (&'static str, Uuid, i64) {
        (LEASE, self.replica, self.epoch)
    }

    /// Signs the settlement of each claim, with the account's numbers from `first` on. They are to be stored in a
    /// transaction that knows that the one before was the last.
    ///
    /// # Errors
    /// Claims that cannot be read.
    pub fn sign(&self, tx: &Tx, first: u64, claims: &[Payment]) -> Result<Vec<Settlement>, Error> {
        let chain = chain_column(&self.parts);
        let signer = signer_text(self.key.address());
        let fees = self.fees.offer();
        (first..)
            .zip(claims)
            .map(|(nonce, claim)| {
                let signed = sign(&self.parts, &self.key, claim, nonce, fees)?;
                Ok(row_of(tx, chain, &signer, (nonce, 0), claim.id, signed, fees))
            })
            .collect()
    }
}

/// A signed settlement as it is stored.
pub fn row_of(
    tx: &Tx,
    chain: i64,
    signer: &str,
    (nonce, attempt): (u64, i64),
    payment: Uuid,
    signed: Signed,
    (max_fee, priority_fee): (u128, u128),
) -> Settlement {
    let fee = |wei: u128| i64::try_from(wei.min(MAX_FEE_CAP)).unwrap_or(i64::MAX);
    Settlement {
        chain,
        signer: signer.to_owned(),
        account_nonce: i64::try_from(nonce).unwrap_or(i64::MAX),
        attempt,
        payment,
        tx_hash: signed.hash.0,
        raw: signed.raw,
        max_fee: fee(max_fee),
        priority_fee: fee(priority_fee),
        created_at: tx.at,
    }
}
