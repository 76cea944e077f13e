//! Carries out signed payments: one replica at a time gives account numbers out and sends, and follows each claim to
//! its end. What is signed is stored before it is sent; after a crash the same bytes are sent again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use otonix_sdk::chain::{At, ChainError, Hash};
use otonix_sdk::wallet::Wallet;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::payments::Payments;
use crate::service::payments::settlement::{
    Found, authorization, away, block_of, chain_column, conclude, look, search, sign, signer_text,
};
use crate::store::payments::{self, Payment};
use crate::store::settlements::{self, Settlement};
use crate::store::writer::{Target, Tx};
use crate::treasury::Settler;
use crate::upstream::chain::MAX_FEE_CAP;
use crate::upstream::facilitator::Said;
use crate::worker::{Held, hold};

const LEASE: &str = "settler";
/// Claims that are followed at once.
const MAX_FOLLOWED: usize = 1_024;
/// Claims of one signing.
const BATCH: i64 = 256;
/// How often claims are looked for that nobody told of.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the lease is renewed, and claims that were sent are looked for.
const RENEW_EVERY: Duration = Duration::from_secs(4);
/// How often what waits is sent again.
const KEEP_EVERY: Duration = Duration::from_secs(2);
/// A number of the settling account as old as this is asked for again.
const COUNT_AGE: Duration = Duration::from_secs(3);
/// After this a transaction that is in no block gets a dearer one beside it.
const BUMP_AFTER: i64 = 20;
/// Between two looks at one claim.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_secs(1);
/// After this the token itself is asked, not only for what was sent from here.
const SEARCH_AFTER: Duration = Duration::from_secs(3);
/// Between two requests to a facilitator for one claim, and how many there are at most.
const ASK_AGAIN: Duration = Duration::from_secs(3);
const MAX_ASKED: u32 = 20;

#[derive(Clone)]
struct Settling {
    app: Arc<App>,
    parts: Arc<Payments>,
    followed: Arc<Mutex<HashSet<Uuid>>>,
    /// The settling account's next number by the chain, and when that was.
    counted: Arc<Mutex<Option<(u64, Instant)>>>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// Starts settling, when anything settles here.
pub fn start(app: &Arc<App>, stop: &CancellationToken, tracker: &TaskTracker) {
    let Some(parts) = &app.payments else { return };
    let settling = Settling {
        app: Arc::clone(app),
        parts: Arc::clone(parts),
        followed: Arc::default(),
        counted: Arc::default(),
        stop: stop.clone(),
        tracker: tracker.clone(),
    };
    tracker.spawn(settling.run());
}

impl Settling {
    async fn run(self) {
        let mut lease: Option<(Held, Instant)> = None;
        let mut renewed: Option<Instant> = None;
        let mut kept = Instant::now();
        let mut polled = Instant::now();
        loop {
            let told = tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.parts.claimed.notified() => true,
                () = sleep(LOOK_EVERY) => false,
            };
            let fresh = self.parts.fresh();
            let mut all = false;
            if renewed.is_none_or(|at| at.elapsed() >= RENEW_EVERY) {
                match hold(&self.app, LEASE).await {
                    Ok(held) => lease = held.map(|held| (held, Instant::now())),
                    Err(error) => tracing::debug!(%error, "the settler's lease could not be renewed"),
                }
                renewed = Some(Instant::now());
                all = true;
            }
            let Some((held, at)) = lease else { continue };
            if at.elapsed() > RENEW_EVERY * 3 {
                lease = None;
                continue;
            }
            // Other replicas' claims are in the database only.
            let due = polled.elapsed() >= LOOK_EVERY;
            let fresh = if told && !due && !fresh.is_empty() { Some(fresh) } else { None };
            if fresh.is_none() {
                polled = Instant::now();
            }
            if let Err(error) = self.step(held, fresh, all).await {
                tracing::debug!(%error, "settling waits");
            }
            if kept.elapsed() >= KEEP_EVERY {
                kept = Instant::now();
                if let Err(error) = self.keep(held).await {
                    tracing::debug!(%error, "sending again waits");
                }
            }
        }
    }

    async fn claims(&self, status: &'static str) -> Result<Vec<Payment>, Error> {
        let chain = chain_column(&self.parts);
        let found = self
            .app
            .db
            .read(move |conn| Box::pin(async move { payments::in_status(conn, chain, status, BATCH).await }));
        let mut found = found.await?;
        let followed = self.followed.lock();
        found.retain(|claim| !followed.contains(&claim.id));
        Ok(found)
    }

    /// One round: claims that were handed over, else those that the database has.
    async fn step(&self, held: Held, fresh: Option<Vec<Payment>>, all: bool) -> Result<(), Error> {
        if self.followed.lock().len() >= MAX_FOLLOWED {
            return Ok(());
        }
        if all {
            for claim in self.claims("sent").await? {
                let id = claim.id;
                let sent = self
                    .app
                    .db
                    .read(move |conn| Box::pin(async move { settlements::of_payment(conn, id).await }))
                    .await?;
                self.follow(claim, sent);
            }
        }
        let claims = match fresh {
            Some(fresh) => fresh,
            None => self.claims("claimed").await?,
        };
        if claims.is_empty() {
            return Ok(());
        }
        match &self.parts.settler {
            Settler::Key(key) => {
                let mut signed = self.sign(held, key, &claims).await?;
                for claim in claims {
                    if let Some(row) = signed.remove(&claim.id) {
                        self.follow(claim, vec![row]);
                    }
                }
            }
            Settler::Facilitator(_) | Settler::None => {
                for claim in claims {
                    self.follow(claim, Vec::new());
                }
            }
        }
        Ok(())
    }

    /// Gives each claim an account number and signs its settlement, all stored in one transaction before any is sent.
    async fn sign(
        &self,
        held: Held,
        key: &Arc<Wallet>,
        claims: &[Payment],
    ) -> Result<HashMap<Uuid, Settlement>, Error> {
        let (parts, key) = (Arc::clone(&self.parts), Arc::clone(key));
        let fees = parts.chain.fees().await.map_err(away)?;
        let count = self.account_number(&key, COUNT_AGE).await?;
        let (claims, replica) = (claims.to_vec(), self.app.replica);
        let max_fee = fees.base_fee.saturating_mul(2).saturating_add(fees.priority_fee);
        let done = self.app.writer.apply(Target::Shared, move |tx| {
            Box::pin(async move {
                held.check(tx, replica).await?;
                let signer = signer_text(key.address());
                let chain = chain_column(&parts);
                let last = settlements::last_nonce(tx, chain, &signer).await?;
                let mut nonce = last.map_or(0, |last| block_of(last) + 1).max(count);
                let mut rows = HashMap::new();
                for claim in claims {
                    if !payments::mark_sent(tx, claim.id).await? {
                        continue;
                    }
                    let signed = sign(&parts, &key, &claim, nonce, (max_fee, fees.priority_fee))?;
                    let row = row_of(
                        tx,
                        chain,
                        &signer,
                        (nonce, 0),
                        claim.id,
                        signed,
                        (max_fee, fees.priority_fee),
                    );
                    settlements::insert(tx, &row).await?;
                    rows.insert(claim.id, row);
                    nonce += 1;
                }
                Ok(rows)
            })
        });
        done.await
    }

    /// The chain's next number of the key's account, as it was at most so long ago. The queue's own numbers go on from
    /// the highest that was given out, so an old one can only be too low.
    async fn account_number(&self, key: &Wallet, most: Duration) -> Result<u64, Error> {
        if let Some((count, at)) = *self.counted.lock()
            && at.elapsed() < most
        {
            return Ok(count);
        }
        let asked = Instant::now();
        let count = self.parts.chain.rpc().transaction_count(key.address(), At::Latest).await;
        let count = count.map_err(|error| away(error.into()))?;
        *self.counted.lock() = Some((count, asked));
        Ok(count)
    }

    fn follow(&self, claim: Payment, sent: Vec<Settlement>) {
        if !self.followed.lock().insert(claim.id) {
            return;
        }
        let settling = self.clone();
        self.tracker.spawn(async move {
            let id = claim.id;
            tokio::select! {
                () = settling.stop.cancelled() => {}
                () = settling.to_its_end(claim, sent) => {}
            }
            settling.followed.lock().remove(&id);
        });
    }

    async fn to_its_end(&self, claim: Payment, sent: Vec<Settlement>) {
        let started = Instant::now();
        let mut hashes: Vec<Hash> = sent.iter().map(|row| Hash(row.tx_hash)).collect();
        if let Some(last) = sent.last() {
            self.send(last).await;
        }
        let facilitator = self.parts.facilitator.clone().zip(claim.facilitator_body.clone());
        let mut asking = facilitator.as_ref().map(|(service, body)| Box::pin(service.settle(body)));
        let (mut asked, mut ask_at) = (1, Instant::now());
        let mut wait = FIRST_LOOK;
        let mut searched = if sent.is_empty() { None } else { Some(Instant::now()) };
        loop {
            let said = match &mut asking {
                Some(call) => tokio::select! {
                    said = call => Some(said),
                    () = sleep(wait.max(Duration::from_millis(250))) => None,
                },
                None => {
                    sleep(wait).await;
                    None
                }
            };
            wait = (wait * 2).min(LAST_LOOK);
            let mut now_search = searched.is_none_or(|at| at.elapsed() >= SEARCH_AFTER);
            if let Some(said) = said {
                asking = None;
                ask_at = Instant::now() + ASK_AGAIN;
                wait = FIRST_LOOK;
                now_search = true;
                self.hear(&claim, said, &mut hashes);
            }
            match self.look_once(&claim, &mut hashes, now_search, started).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::debug!(payment.id = %claim.id, %error, "a claim is looked at again"),
            }
            if now_search {
                searched = Some(Instant::now());
            }
            if let Some((service, body)) = &facilitator
                && asking.is_none()
                && asked < MAX_ASKED
                && Instant::now() >= ask_at
            {
                asked += 1;
                asking = Some(Box::pin(service.settle(body)));
            }
        }
    }

    /// What a facilitator says is a hint where to look, no more.
    fn hear(&self, claim: &Payment, said: Said, hashes: &mut Vec<Hash>) {
        match said {
            Said::Settled(hash) => {
                if let Ok(hash) = hash.parse()
                    && !hashes.contains(&hash)
                {
                    hashes.push(hash);
                }
            }
            Said::Refused(why) => {
                tracing::info!(payment.id = %claim.id, reason = %why, "the facilitator refused; the chain decides");
            }
            Said::Unknown(why) => {
                tracing::info!(payment.id = %claim.id, reason = %why, "the facilitator gave no answer; the chain decides");
            }
        }
    }

    async fn look_once(
        &self,
        claim: &Payment,
        hashes: &mut Vec<Hash>,
        thoroughly: bool,
        started: Instant,
    ) -> Result<bool, Error> {
        let payment = authorization(claim)?;
        let mut found = look(&self.parts, &payment, hashes).await.map_err(away)?;
        if matches!(found, Found::Open) && thoroughly {
            if started.elapsed() > SEARCH_AFTER && !hashes.is_empty() {
                self.more_hashes(claim.id, hashes).await?;
            }
            let now = u64::try_from(self.app.clock.now().timestamp()).unwrap_or(0);
            let from = block_of(claim.from_block);
            found = search(&self.parts, &payment, from, now).await.map_err(away)?;
        }
        conclude(&self.app, &self.parts, claim, found).await
    }

    /// Dearer transactions that were sent beside the first.
    async fn more_hashes(&self, id: Uuid, hashes: &mut Vec<Hash>) -> Result<(), Error> {
        let rows =
            self.app.db.read(move |conn| Box::pin(async move { settlements::of_payment(conn, id).await }));
        for row in rows.await? {
            if !hashes.contains(&Hash(row.tx_hash)) {
                hashes.push(Hash(row.tx_hash));
            }
        }
        Ok(())
    }

    async fn send(&self, row: &Settlement) {
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
    async fn keep(&self, held: Held) -> Result<(), Error> {
        let Settler::Key(key) = &self.parts.settler else { return Ok(()) };
        let count = self.account_number(key, Duration::ZERO).await?;
        let (chain, signer) = (chain_column(&self.parts), signer_text(key.address()));
        let from = i64::try_from(count).unwrap_or(i64::MAX);
        let rows = self.app.db.read(move |conn| {
            Box::pin(async move { settlements::from_nonce(conn, chain, signer, from, BATCH).await })
        });
        let rows = rows.await?;
        let now = self.app.clock.now();
        for (at, row) in rows.iter().enumerate() {
            let is_last = rows.get(at + 1).is_none_or(|next| next.account_nonce != row.account_nonce);
            let age = (now - row.created_at).num_seconds();
            if !is_last || age < 2 {
                continue;
            }
            let dearer = if age >= BUMP_AFTER { self.dearer(held, key, row).await? } else { None };
            self.send(dearer.as_ref().unwrap_or(row)).await;
        }
        Ok(())
    }

    /// The same settlement with the same account number and a higher fee, stored before it is sent.
    async fn dearer(
        &self,
        held: Held,
        key: &Arc<Wallet>,
        row: &Settlement,
    ) -> Result<Option<Settlement>, Error> {
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
        let (chain, signer, replica, attempt) =
            (row.chain, row.signer.clone(), self.app.replica, row.attempt + 1);
        let done = self.app.writer.apply(Target::Shared, move |tx| {
            Box::pin(async move {
                held.check(tx, replica).await?;
                let row = row_of(tx, chain, &signer, (nonce, attempt), id, signed, (max, priority));
                settlements::insert(tx, &row).await?;
                Ok(row)
            })
        });
        done.await.map(Some)
    }
}

fn row_of(
    tx: &Tx,
    chain: i64,
    signer: &str,
    (nonce, attempt): (u64, i64),
    payment: Uuid,
    signed: otonix_sdk::wallet::Signed,
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
