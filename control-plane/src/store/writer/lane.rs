//! One lane: takes what is queued, commits it as one transaction, answers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use otonix_sdk::clock::Clock;
use otonix_sdk::standing::Thresholds;
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::job::{Item, Queued, Verdict};
use super::{OnCommit, Target, Tx};
use crate::store::agents;
use crate::store::batch::{self, BatchItem};
use crate::store::counters::{self, Counts};
use crate::store::{Conn, Db, StoreError};

/// Items of one transaction.
const GROUP: usize = 2048;
/// Events of one transaction, about.
const GROUP_EVENTS: usize = 4096;
/// How often a batch is tried again after another replica was faster.
const MAX_RACES: usize = 5;
/// How long a lost connection is tried again before what waits is refused.
const RECONNECT_EVERY: Duration = Duration::from_millis(250);
/// How long a new connection may take.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// A transaction that has run so long takes no further job: on a slow database the rest waits for the next one.
const GROUP_TIME: Duration = Duration::from_millis(500);
/// The longest that one transaction may take before its connection is given up.
const GROUP_TIMEOUT: Duration = Duration::from_secs(20);

pub(super) struct Lane {
    pub db: Db,
    pub clock: Arc<dyn Clock>,
    pub thresholds: Thresholds,
    pub hook: Arc<dyn OnCommit>,
    pub shard: i64,
    pub receive: mpsc::Receiver<Item>,
    pub conn: Option<Conn>,
    /// Whether the last transaction of any lane found the database.
    pub up: Arc<AtomicBool>,
}

impl Lane {
    /// Works until every handle is dropped and the queue is empty.
    pub async fn run(mut self) {
        let mut group = Vec::new();
        let mut jobs = Vec::new();
        while self.take(&mut group, jobs.len()).await {
            let mut batch = Vec::new();
            let mut alone = Vec::new();
            let mut events = 0;
            for item in group.drain(..) {
                match item {
                    Item::Batch(item) => {
                        events += item.weight();
                        batch.push(*item);
                        if events >= GROUP_EVENTS {
                            self.commit(std::mem::take(&mut batch), Vec::new()).await;
                            events = 0;
                        }
                    }
                    Item::Job(Target::Alone, job) if self.db.is_postgres() => {
                        alone.push((Target::Alone, job))
                    }
                    Item::Job(target, job) => jobs.push((target, job)),
                }
            }
            if !batch.is_empty() || !jobs.is_empty() {
                jobs = self.commit(batch, std::mem::take(&mut jobs)).await;
            }
            for job in alone {
                self.commit(Vec::new(), vec![job]).await;
            }
        }
    }

    /// Takes what is queued; waits for something only when no job is left over. `false` at the end.
    async fn take(&mut self, group: &mut Vec<Item>, left: usize) -> bool {
        if left == 0 {
            return self.receive.recv_many(group, GROUP).await > 0;
        }
        while left + group.len() < GROUP {
            let Ok(item) = self.receive.try_recv() else { break };
            group.push(item);
        }
        true
    }

    /// A connection, inside a new transaction unless statements are committed one by one. For a transaction one that died
    /// unused since the last is replaced: nothing was asked of it yet, so nobody need hear of it.
    async fn begin(&mut self, single: bool) -> Result<Conn, StoreError> {
        if let Some(mut conn) = self.conn.take() {
            if single {
                return Ok(conn);
            }
            match conn.begin().await {
                Ok(()) => return Ok(conn),
                Err(StoreError::Unavailable(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut conn = match tokio::time::timeout(CONNECT_TIME, self.db.dedicated()).await {
            Ok(Ok(conn)) => conn,
            Ok(Err(error)) => {
                tokio::time::sleep(RECONNECT_EVERY).await;
                return Err(error);
            }
            Err(_) => return Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
        };
        if !single {
            conn.begin().await?;
        }
        Ok(conn)
    }

    /// One transaction for all of this; gives back the jobs that it had no time for. A batch that the database
    /// refuses is taken apart, so that one bad item never fails the others.
    async fn commit(&mut self, batch: Vec<BatchItem>, jobs: Vec<Queued>) -> Vec<Queued> {
        let started = Instant::now();
        let mut batch = batch;
        let mut jobs = jobs;
        let mut attempted = self.attempt(&mut batch, &mut jobs, false).await;
        for _ in 0..MAX_RACES {
            // A job runs once; a group is tried again only as long as none of its jobs has run.
            let again = matches!(attempted, Err(StoreError::LostRace | StoreError::Taken(_)));
            if !again || jobs.iter().any(|(_, job)| job.has_run()) {
                break;
            }
            batch.iter_mut().for_each(BatchItem::again);
            attempted = self.attempt(&mut batch, &mut jobs, true).await;
        }
        match attempted {
            Ok((tx, ran)) => {
                let left = jobs.split_off(ran);
                self.told(true);
                self.hook.committed(&tx.changed, &tx.notices);
                self.hook.group(batch.len() + ran, started.elapsed());
                self.conn = Some(tx.conn);
                for item in batch {
                    item.finish(None);
                }
                for (_, job) in jobs {
                    job.finish(Ok(()));
                }
                left
            }
            Err(error) => {
                self.failed(error, batch, jobs).await;
                Vec::new()
            }
        }
    }

    /// Whether this is one job whose statements are committed one by one.
    fn is_single(&self, batch: &[BatchItem], jobs: &[Queued]) -> bool {
        self.db.is_postgres() && batch.is_empty() && matches!(jobs, [(Target::Single, _)])
    }

    async fn failed(&mut self, error: StoreError, batch: Vec<BatchItem>, jobs: Vec<Queued>) {
        if matches!(error, StoreError::LostRace) {
            for item in batch {
                item.finish(Some(error.again()));
            }
            for (_, job) in jobs {
                job.finish(Err(error.again()));
            }
            return;
        }
        if let StoreError::Unavailable(source) = &error {
            // A connection that died unused is no outage; whoever asks again finds out.
            if !self.is_single(&batch, &jobs) {
                self.told(false);
            }
            tracing::warn!(error = %source, items = batch.len() + jobs.len(), "a transaction failed");
            for item in batch {
                item.finish(Some(error.again()));
            }
            for (_, job) in jobs {
                job.finish(Err(error.again()));
            }
            return;
        }
        tracing::error!(%error, items = batch.len(), "the database refused a batch; taking it apart");
        for item in batch {
            self.take_apart(item).await;
        }
        // The batch comes first in a transaction, so its failure means that no job has run.
        for mut job in jobs {
            match self.attempt(&mut [], std::slice::from_mut(&mut job), true).await {
                Ok((tx, _)) => {
                    self.hook.committed(&tx.changed, &tx.notices);
                    self.conn = Some(tx.conn);
                    job.1.finish(Ok(()));
                }
                Err(error) => job.1.finish(Err(error)),
            }
        }
    }

    /// Stores the events of an item one by one; one that the database refuses is rejected for good.
    async fn take_apart(&mut self, item: BatchItem) {
        let (mut parts, whole) = item.split();
        let mut failure = None;
        for part in &mut parts {
            let mut stored = self.attempt(std::slice::from_mut(part), &mut [], true).await;
            // An outage or a race says nothing about the event.
            if matches!(&stored, Err(error) if !matches!(error, StoreError::Unavailable(_) | StoreError::LostRace))
            {
                part.reject();
                stored = self.attempt(std::slice::from_mut(part), &mut [], true).await;
            }
            match stored {
                Ok((tx, _)) => {
                    self.hook.committed(&tx.changed, &tx.notices);
                    self.conn = Some(tx.conn);
                }
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            }
        }
        whole.finish_parts(parts, failure);
    }

    fn told(&mut self, up: bool) {
        if self.up.swap(up, Ordering::Relaxed) != up {
            self.hook.database(up);
        }
    }

    /// One transaction; tells how many of the jobs ran in it.
    async fn attempt(
        &mut self,
        batch: &mut [BatchItem],
        jobs: &mut [Queued],
        repeats: bool,
    ) -> Result<(Tx, usize), StoreError> {
        let single = self.is_single(batch, jobs);
        let conn = match tokio::time::timeout(GROUP_TIMEOUT, self.begin(single)).await {
            Ok(begun) => begun?,
            Err(_) => return Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
        };
        let mut tx = Tx {
            conn,
            at: self.clock.now(),
            shard: self.shard,
            thresholds: self.thresholds,
            repeats,
            locked: Vec::new(),
            changed: Vec::new(),
            notices: Vec::new(),
            counts: Counts::default(),
        };
        let peers = self.hook.has_peers();
        let work = transaction(&mut tx, batch, jobs, single, peers);
        match tokio::time::timeout(GROUP_TIMEOUT, work).await {
            Ok(Ok(ran)) => Ok((tx, ran)),
            Ok(Err(error)) => {
                // The connection serves again only when it is certainly out of the transaction.
                let again = !matches!(error, StoreError::Unavailable(_));
                if again && (single || tx.conn.run_raw("ROLLBACK").await.is_ok()) {
                    self.conn = Some(tx.conn);
                }
                Err(error)
            }
            Err(_) => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
        }
    }
}

async fn transaction(
    tx: &mut Tx,
    batch: &mut [BatchItem],
    jobs: &mut [Queued],
    single: bool,
    peers: bool,
) -> Result<usize, StoreError> {
    let until = Instant::now() + GROUP_TIME;
    let ids = known_agents(batch, jobs);
    let alone = batch.is_empty() && jobs.len() == 1;
    if tx.conn.is_postgres() && !jobs.is_empty() && !ids.is_empty() {
        let locked = agents::lock_states(tx, &ids).await?;
        tx.locked = if alone { locked } else { Vec::new() };
    }
    if !batch.is_empty() {
        batch::store(tx, batch).await?;
    }
    tx.repeats = true;
    let mut ran = 0;
    // What the next job needs so that it can be undone by itself.
    let mut savepoint = Some("SAVEPOINT job");
    for (_, job) in jobs.iter_mut() {
        if ran > 0 && Instant::now() >= until {
            break;
        }
        let (changed, notices, counts) = (tx.changed.len(), tx.notices.len(), tx.counts);
        if let Some(sql) = savepoint.filter(|_| !alone) {
            tx.conn.run_raw(sql).await?;
        }
        ran += 1;
        match job.run(tx).await {
            Verdict::Keep => savepoint = Some("RELEASE SAVEPOINT job; SAVEPOINT job"),
            Verdict::Undo => {
                tx.changed.truncate(changed);
                tx.notices.truncate(notices);
                tx.counts = counts;
                if alone {
                    if !single {
                        tx.conn.run_raw("ROLLBACK").await?;
                    }
                    return Ok(ran);
                }
                // The savepoint stays and serves the next job.
                tx.conn.run_raw("ROLLBACK TO SAVEPOINT job").await?;
                savepoint = None;
            }
            Verdict::Dead(error) => return Err(error),
        }
    }
    if peers {
        crate::store::replicas::notify(tx).await?;
    }
    counters::add(tx).await?;
    if !single {
        tx.conn.run_raw("COMMIT").await?;
    }
    Ok(ran)
}

/// Every agent that a group is known to touch. They are locked in one order before anything else, so that groups of
/// other lanes and replicas cannot wait for each other in a ring. (A batch alone does this by itself, and SQLite has
/// one writer.)
fn known_agents(batch: &[BatchItem], jobs: &[Queued]) -> Vec<Uuid> {
    let of_jobs = jobs.iter().filter_map(|(target, _)| match target {
        Target::Agent(id) => Some(*id),
        Target::Shared | Target::Single | Target::Alone => None,
    });
    let ids: BTreeSet<Uuid> = batch.iter().map(BatchItem::agent).chain(of_jobs).collect();
    ids.into_iter().filter(|id| !id.is_nil()).collect()
}
