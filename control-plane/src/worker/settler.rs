//! Carries out signed payments: one replica at a time gives account numbers out and sends, and follows each claim to
//! its end. What is signed is stored before it is sent; after a crash the same bytes are sent again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use otonix_sdk::chain::{At, Hash};
use otonix_sdk::wallet::Wallet;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::payments::Payments;
use crate::service::payments::desk::{COUNT_AGE, LEASE, Pen};
use crate::service::payments::settlement::{
    Found, authorization, away, block_of, chain_column, conclude, look, search,
};
use crate::store::payments::{self, Payment, Place};
use crate::store::settlements::{self, Settlement};
use crate::store::writer::Target;
use crate::treasury::Settler;
use crate::upstream::facilitator::Said;
use crate::worker::{Held, hold};

mod unmined;

/// Claims that are followed at once. When there are more, each gives up its place after a while to those that wait.
const MAX_FOLLOWED: usize = 1_024;
const TURN: Duration = Duration::from_secs(10);
/// Rows of one question, and claims of one signing.
const BATCH: i64 = 256;
/// How often claims are looked for that nobody told of.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the lease is renewed, and claims that were sent are looked for.
const RENEW_EVERY: Duration = Duration::from_secs(4);
/// How often what waits is sent again.
const KEEP_EVERY: Duration = Duration::from_secs(2);
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
    turns: Arc<Mutex<Turns>>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

/// What a look at a claim came to.
enum Looked {
    Ended,
    /// What was sent has failed on the chain; somebody else may still carry it out.
    Reverted,
    Open,
}

/// Where the last look at each list has ended, so that every row has its turn.
#[derive(Debug, Default)]
struct Turns {
    claimed: Option<Place>,
    sent: Option<Place>,
    unmined: Option<i64>,
}

impl Turns {
    fn of(&mut self, status: &str) -> &mut Option<Place> {
        if status == "sent" { &mut self.sent } else { &mut self.claimed }
    }
}

/// Starts settling, when anything settles here.
pub fn start(app: &Arc<App>, stop: &CancellationToken, tracker: &TaskTracker) {
    let Some(parts) = &app.payments else { return };
    let settling = Settling {
        app: Arc::clone(app),
        parts: Arc::clone(parts),
        followed: Arc::default(),
        turns: Arc::default(),
        stop: stop.clone(),
        tracker: tracker.clone(),
    };
    tracker.spawn(settling.run());
}

impl Settling {
    async fn run(self) {
        let mut renewed: Option<Instant> = None;
        let mut kept = Instant::now();
        let mut polled = Instant::now();
        loop {
            let told = tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.parts.claimed.notified() => true,
                () = sleep(LOOK_EVERY) => false,
            };
            // What was signed is committed: it is sent and followed at once, whoever holds the lease by now.
            let mut fresh = Vec::new();
            for (claim, signed) in self.parts.fresh() {
                match signed {
                    Some(row) => self.follow(claim, vec![row]),
                    None if claim.status == "sent" => self.follow(claim, Vec::new()),
                    None => fresh.push(claim),
                }
            }
            let mut all = false;
            if renewed.is_none_or(|at| at.elapsed() >= RENEW_EVERY) {
                match hold(&self.app, LEASE).await {
                    Ok(held) => self.parts.desk.renewed(held.map(Held::epoch)),
                    Err(error) => tracing::debug!(%error, "the settler's lease could not be renewed"),
                }
                renewed = Some(Instant::now());
                all = true;
            }
            if self.parts.desk.epoch().is_none() {
                continue;
            }
            // Other replicas' claims are in the database only.
            let fresh = if told && polled.elapsed() < LOOK_EVERY {
                if fresh.is_empty() && !all {
                    continue;
                }
                Some(fresh)
            } else {
                polled = Instant::now();
                None
            };
            if let Err(error) = self.step(fresh, all).await {
                tracing::debug!(%error, "settling waits");
            }
            if kept.elapsed() >= KEEP_EVERY {
                kept = Instant::now();
                if let Err(error) = self.keep().await {
                    tracing::debug!(%error, "sending again waits");
                }
            }
        }
    }

    /// The next claims in a state that are not followed, and whether they are the last ones.
    async fn claims(&self, status: &'static str) -> Result<(Vec<Payment>, bool), Error> {
        let (chain, after) = (chain_column(&self.parts), *self.turns.lock().of(status));
        let found = self.app.db.read(move |conn| {
            Box::pin(async move { payments::in_status(conn, chain, status, after, BATCH).await })
        });
        let mut found = found.await?;
        let more = found.len() as i64 >= BATCH;
        let last = found.last().filter(|_| more).map(|claim| (claim.created_at, claim.id));
        *self.turns.lock().of(status) = last;
        let followed = self.followed.lock();
        found.retain(|claim| !followed.contains(&claim.id));
        Ok((found, !more))
    }

    fn is_full(&self) -> bool {
        self.followed.lock().len() >= MAX_FOLLOWED
    }

    /// One round: claims that were handed over, else those that the database has.
    async fn step(&self, fresh: Option<Vec<Payment>>, all: bool) -> Result<(), Error> {
        while all && !self.is_full() {
            let (claims, last) = self.claims("sent").await?;
            for claim in claims {
                let id = claim.id;
                let sent = self
                    .app
                    .db
                    .read(move |conn| Box::pin(async move { settlements::of_payment(conn, id).await }))
                    .await?;
                self.follow(claim, sent);
            }
            if last {
                break;
            }
        }
        if self.is_full() {
            return Ok(());
        }
        let claims = match fresh {
            Some(fresh) => fresh,
            None => self.claims("claimed").await?.0,
        };
        if claims.is_empty() {
            return Ok(());
        }
        match &self.parts.settler {
            Settler::Key(key) => {
                for (claim, row) in self.sign(key, claims).await? {
                    self.follow(claim, vec![row]);
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
        key: &Arc<Wallet>,
        mut claims: Vec<Payment>,
    ) -> Result<Vec<(Payment, Settlement)>, Error> {
        let fees = self.parts.chain.fees().await.map_err(away)?;
        let count = self.account_number(key, COUNT_AGE).await?;
        let Some(pen) = Pen::new(&self.app, &self.parts, key, count, fees) else { return Ok(Vec::new()) };
        let done = self.app.writer.apply(Target::Shared, move |tx| {
            Box::pin(async move {
                let Some(last) = pen.last_number(tx).await? else { return Ok(Vec::new()) };
                let mut open = Vec::with_capacity(claims.len());
                for claim in claims.drain(..) {
                    if payments::mark_sent(tx, claim.id).await? {
                        open.push(claim);
                    }
                }
                let rows = pen.sign(tx, pen.next_after(last), &open)?;
                for row in &rows {
                    settlements::insert(tx, row).await?;
                }
                Ok(open.into_iter().zip(rows).collect())
            })
        });
        done.await
    }

    /// The chain's next number of the key's account, as it was at most so long ago.
    async fn account_number(&self, key: &Wallet, most: Duration) -> Result<u64, Error> {
        if let Some(count) = self.parts.desk.count(most) {
            return Ok(count);
        }
        let asked = Instant::now();
        let count = self.parts.chain.rpc().transaction_count(key.address(), At::Latest).await;
        let count = count.map_err(|error| away(error.into()))?;
        self.parts.desk.counted(count, asked);
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
        // A node that makes its block at once has it by now.
        let mut wait = Duration::ZERO;
        let mut searched = if sent.is_empty() { None } else { Some(Instant::now()) };
        let mut reverted = false;
        loop {
            if started.elapsed() >= TURN && self.is_full() {
                return;
            }
            let said = match &mut asking {
                Some(call) => tokio::select! {
                    said = call => Some(said),
                    () = sleep(wait.max(Duration::from_millis(250))) => None,
                },
                None => {
                    if !wait.is_zero() {
                        sleep(wait).await;
                    }
                    None
                }
            };
            wait = (wait * 2).clamp(FIRST_LOOK, LAST_LOOK);
            let mut now_search = searched.is_none_or(|at| at.elapsed() >= SEARCH_AFTER);
            if let Some(said) = said {
                asking = None;
                ask_at = Instant::now() + ASK_AGAIN;
                wait = FIRST_LOOK;
                now_search = true;
                self.hear(&claim, said, &mut hashes);
            }
            match self.look_once(&claim, &mut hashes, now_search, started).await {
                Ok(Looked::Ended) => return,
                Ok(Looked::Reverted) if !reverted => {
                    reverted = true;
                    self.parts.failed_by(&claim);
                }
                Ok(Looked::Reverted | Looked::Open) => {}
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
    ) -> Result<Looked, Error> {
        let payment = authorization(claim)?;
        let mut found = look(&self.parts, &payment, hashes).await.map_err(away)?;
        let reverted = matches!(found, Found::Reverted);
        if matches!(found, Found::Open | Found::Reverted) && thoroughly {
            if started.elapsed() > SEARCH_AFTER && !hashes.is_empty() {
                self.more_hashes(claim.id, hashes).await?;
            }
            found = search(&self.parts, &payment, block_of(claim.from_block)).await.map_err(away)?;
        }
        Ok(match conclude(&self.app, &self.parts, claim, found).await? {
            true => Looked::Ended,
            false if reverted => Looked::Reverted,
            false => Looked::Open,
        })
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
}
