//! The one way to write: jobs and events queue up, and whatever is queued is committed in one transaction.
//!
//! A lane is a task with a database connection of its own; what concerns one agent always takes the same lane.
//! Every waiter is answered after the commit, never before. A caller that hangs up loses its answer, not its write.

use std::any::Any;
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use otonix_sdk::clock::Clock;
use otonix_sdk::standing::Thresholds;
use rand::Rng as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::error::Error;
use crate::store::agents::{self, AgentState};
use crate::store::batch::{self, BatchItem, EventsItem, HelloItem};
use crate::store::idempotency::{self, Claim, Idem, StoredAnswer};
use crate::store::{Conn, Db, StoreError};

/// Items that may wait in one lane.
const QUEUE: usize = 16_384;
/// Items of one transaction.
const GROUP: usize = 2048;
/// Events of one transaction, about.
const GROUP_EVENTS: usize = 4096;
/// Lanes on PostgreSQL; SQLite has one writer.
const POSTGRES_LANES: usize = 2;
/// Shards of the system accounts, and how many of them one replica may use.
const SHARDS: i64 = 64;
const SHARD_STEP: i64 = 8;
/// How often a batch is tried again after another replica was faster.
const MAX_RACES: usize = 5;
/// How long a lost connection is tried again before what waits is refused.
const RECONNECT_EVERY: Duration = Duration::from_millis(250);
/// The longest that one transaction may take before its connection is given up.
const GROUP_TIMEOUT: Duration = Duration::from_secs(20);

/// Something other replicas, streams and caches should hear of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// An agent's row changed.
    Agent(Uuid),
    /// A key was revoked.
    Key(Uuid),
    /// An agent has a new command.
    Command(Uuid),
}

/// A running transaction, with what must be told once it is committed.
#[derive(Debug)]
pub struct Tx {
    /// The connection that is inside the transaction.
    pub conn: Conn,
    /// The time of everything written in it.
    pub at: DateTime<Utc>,
    /// Which shard of the system accounts this lane uses.
    pub shard: i64,
    /// Where tiers begin.
    pub thresholds: Thresholds,
    /// Agents as they are after the commit.
    pub changed: Vec<AgentState>,
    /// What else to tell.
    pub notices: Vec<Notice>,
}

/// Hears of every commit.
pub trait OnCommit: Send + Sync {
    /// Agents changed; things happened.
    fn committed(&self, changed: &[AgentState], notices: &[Notice]);
    /// The database went away or came back.
    fn database(&self, up: bool);
    /// Whether other replicas must be told.
    fn has_peers(&self) -> bool;
    /// A transaction of so many items was committed in so long.
    fn group(&self, items: usize, took: Duration);
}

/// The result of a write that may be a repeat.
#[derive(Debug)]
pub enum Written<T> {
    /// It was done now.
    Fresh(T),
    /// It was done before; this was answered.
    Replayed(StoredAnswer),
}

/// An idempotency key, and how the answer to it is kept.
pub struct IdemFor<T> {
    /// The key and what it stands for.
    pub idem: Idem,
    /// Makes the stored answer, without secrets.
    pub encode: Box<dyn FnOnce(&T) -> StoredAnswer + Send>,
}

/// What a job concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// One agent and nothing else that is locked: its row is locked before any job of the group runs.
    Agent(Uuid),
    /// Rows that no other group holds while it waits; all of these take the same lane.
    Shared,
    /// Agents that are known only on the way, or many of them: on PostgreSQL it gets a transaction of its own, so that
    /// it never holds another group's agents while it waits for more.
    Alone,
}

type Work<T> = Box<dyn for<'c> FnOnce(&'c mut Tx) -> BoxFuture<'c, Result<T, Error>> + Send>;

trait Job: Send {
    fn has_run(&self) -> bool;
    fn run<'c>(&'c mut self, tx: &'c mut Tx) -> BoxFuture<'c, Verdict>;
    fn finish(self: Box<Self>, committed: Result<(), StoreError>);
}

/// What a job did to its transaction.
enum Verdict {
    /// Keep it.
    Keep,
    /// Undo this job's part.
    Undo,
    /// Nothing of the transaction will be: the connection is gone, or another writer was faster.
    Dead(StoreError),
}

struct TypedJob<T> {
    work: Option<Work<T>>,
    idem: Option<IdemFor<T>>,
    outcome: Option<Result<Written<T>, Error>>,
    reply: oneshot::Sender<Result<Written<T>, Error>>,
}

impl<T: Send + 'static> TypedJob<T> {
    async fn attempt(&mut self, tx: &mut Tx) -> Result<Written<T>, Error> {
        if let Some(claim) = &self.idem
            && let Claim::Taken(stored) = idempotency::claim(tx, &claim.idem).await?
        {
            return Ok(Written::Replayed(stored));
        }
        let work = self.work.take().ok_or_else(|| Error::internal("a job ran twice"))?;
        let done = work(tx).await?;
        if let Some(claim) = self.idem.take() {
            let answer = (claim.encode)(&done);
            idempotency::store(tx, &claim.idem, &answer).await?;
        }
        Ok(Written::Fresh(done))
    }
}

impl<T: Send + 'static> Job for TypedJob<T> {
    fn has_run(&self) -> bool {
        self.work.is_none()
    }

    fn run<'c>(&'c mut self, tx: &'c mut Tx) -> BoxFuture<'c, Verdict> {
        Box::pin(async move {
            let outcome = AssertUnwindSafe(self.attempt(tx)).catch_unwind().await.unwrap_or_else(|panic| {
                tracing::error!(panic = panic_text(panic.as_ref()), "a write panicked");
                Err(Error::internal("a write panicked"))
            });
            let verdict = match &outcome {
                Ok(_) => Verdict::Keep,
                Err(Error::Store(error @ (StoreError::Unavailable(_) | StoreError::LostRace))) => {
                    Verdict::Dead(error.again())
                }
                Err(_) => Verdict::Undo,
            };
            self.outcome = Some(outcome);
            verdict
        })
    }

    fn finish(self: Box<Self>, committed: Result<(), StoreError>) {
        let answer = match (committed, self.outcome) {
            (Ok(()), Some(outcome)) => outcome,
            // What this job itself found out stays true without a commit.
            (Err(_), Some(Err(error))) => Err(error),
            (Err(error), _) => Err(Error::Store(error)),
            (Ok(()), None) => Err(Error::internal("a job did not run")),
        };
        let _ = self.reply.send(answer);
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("unknown")
}

type Queued = (Target, Box<dyn Job>);

enum Item {
    Batch(Box<BatchItem>),
    Job(Target, Box<dyn Job>),
}

/// Gives work to the lanes.
#[derive(Clone)]
pub struct Writer {
    lanes: Arc<[mpsc::Sender<Item>]>,
    beats: mpsc::Sender<Item>,
}

impl Writer {
    /// Starts the lanes, and one more for heartbeats so that no backlog delays them. They end when every
    /// handle is dropped and their queues are empty.
    pub fn start(
        db: &Db,
        clock: &Arc<dyn Clock>,
        thresholds: Thresholds,
        hook: &Arc<dyn OnCommit>,
        tracker: &TaskTracker,
    ) -> Self {
        // Replicas rarely share a shard, so they rarely wait for each other's system accounts.
        let first_shard = if db.is_postgres() { rand::rng().random_range(0..SHARDS) * SHARD_STEP } else { 0 };
        let spawn = |lane: usize| {
            let (send, receive) = mpsc::channel(QUEUE);
            let lane = Lane {
                db: db.clone(),
                clock: Arc::clone(clock),
                thresholds,
                hook: Arc::clone(hook),
                shard: first_shard + i64::try_from(lane).unwrap_or(0),
                receive,
                conn: None,
                up: true,
            };
            tracker.spawn(lane.run());
            send
        };
        let lanes = if db.is_postgres() { POSTGRES_LANES } else { 1 };
        let lanes: Arc<[_]> = (0..lanes).map(spawn).collect();
        let beats = if db.is_postgres() { spawn(lanes.len()) } else { lanes[0].clone() };
        Self { lanes, beats }
    }

    fn lane(&self, of: Uuid) -> &mpsc::Sender<Item> {
        // The last bytes of both random and time-ordered ids are random.
        let spread = usize::from(of.as_bytes()[15]);
        &self.lanes[spread % self.lanes.len()]
    }

    fn lane_of(&self, target: Target) -> &mpsc::Sender<Item> {
        match target {
            Target::Agent(id) => self.lane(id),
            Target::Shared | Target::Alone => &self.lanes[0],
        }
    }

    /// Runs a job in the next transaction of its lane, and answers after the commit.
    ///
    /// # Errors
    /// What the job answers; [`StoreError::QueueFull`] when the lane is full; [`StoreError::Unavailable`] when the
    /// database is away, and then the write may have happened.
    pub async fn run<T, F>(
        &self,
        target: Target,
        idem: Option<IdemFor<T>>,
        work: F,
    ) -> Result<Written<T>, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Tx) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        self.send_job(self.lane_of(target), target, idem, work).await
    }

    /// The same without an idempotency key.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn apply<T, F>(&self, target: Target, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Tx) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        fresh(self.run(target, None, work).await?)
    }

    /// Runs a job in the heartbeats' lane.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn apply_beats<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Tx) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        fresh(self.send_job(&self.beats, Target::Shared, None, work).await?)
    }

    async fn send_job<T, F>(
        &self,
        lane: &mpsc::Sender<Item>,
        target: Target,
        idem: Option<IdemFor<T>>,
        work: F,
    ) -> Result<Written<T>, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Tx) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = TypedJob { work: Some(Box::new(work)), idem, outcome: None, reply };
        lane.try_send(Item::Job(target, Box::new(job))).map_err(|_| StoreError::QueueFull)?;
        answer.await.map_err(|_| StoreError::Unavailable(sqlx::Error::WorkerCrashed))?
    }

    /// Queues events of one agent; the answer comes through the item.
    ///
    /// # Errors
    /// [`StoreError::QueueFull`] when the lane is full.
    pub fn send_events(&self, item: EventsItem) -> Result<(), StoreError> {
        let lane = self.lane(item.agent);
        lane.try_send(Item::Batch(Box::new(BatchItem::Events(item)))).map_err(|_| StoreError::QueueFull)
    }

    /// Queues the opening of a session; the answer comes through the item.
    ///
    /// # Errors
    /// [`StoreError::QueueFull`] when the lane is full.
    pub fn send_hello(&self, item: HelloItem) -> Result<(), StoreError> {
        let lane = self.lane(item.agent);
        lane.try_send(Item::Batch(Box::new(BatchItem::Hello(item)))).map_err(|_| StoreError::QueueFull)
    }

    /// Items waiting in all lanes.
    pub fn queued(&self) -> usize {
        self.lanes.iter().map(|lane| lane.max_capacity() - lane.capacity()).sum()
    }
}

fn fresh<T>(written: Written<T>) -> Result<T, Error> {
    match written {
        Written::Fresh(done) => Ok(done),
        Written::Replayed(_) => Err(Error::internal("a write without a key was replayed")),
    }
}

struct Lane {
    db: Db,
    clock: Arc<dyn Clock>,
    thresholds: Thresholds,
    hook: Arc<dyn OnCommit>,
    shard: i64,
    receive: mpsc::Receiver<Item>,
    conn: Option<Conn>,
    up: bool,
}

impl Lane {
    async fn run(mut self) {
        let mut group = Vec::new();
        while self.receive.recv_many(&mut group, GROUP).await > 0 {
            let mut batch = Vec::new();
            let mut jobs = Vec::new();
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
                self.commit(batch, jobs).await;
            }
            for job in alone {
                self.commit(Vec::new(), vec![job]).await;
            }
        }
    }

    async fn connection(&mut self) -> Result<Conn, StoreError> {
        if let Some(conn) = self.conn.take() {
            return Ok(conn);
        }
        match tokio::time::timeout(Duration::from_secs(3), self.db.dedicated()).await {
            Ok(Ok(conn)) => Ok(conn),
            Ok(Err(error)) => {
                tokio::time::sleep(RECONNECT_EVERY).await;
                Err(error)
            }
            Err(_) => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
        }
    }

    /// One transaction for all of this. A batch that the database refuses is taken apart, so that one bad item
    /// never fails the others.
    async fn commit(&mut self, batch: Vec<BatchItem>, jobs: Vec<Queued>) {
        let started = tokio::time::Instant::now();
        let items = batch.len() + jobs.len();
        let mut batch = batch;
        let mut jobs = jobs;
        let mut attempted = self.attempt(&mut batch, &mut jobs).await;
        for _ in 0..MAX_RACES {
            // A job runs once; a group is tried again only as long as none of its jobs has run.
            if !matches!(attempted, Err(StoreError::LostRace)) || jobs.iter().any(|(_, job)| job.has_run()) {
                break;
            }
            batch.iter_mut().for_each(BatchItem::again);
            attempted = self.attempt(&mut batch, &mut jobs).await;
        }
        match attempted {
            Ok(tx) => {
                self.told(true);
                self.hook.committed(&tx.changed, &tx.notices);
                self.hook.group(items, started.elapsed());
                self.conn = Some(tx.conn);
                for item in batch {
                    item.finish(None);
                }
                for (_, job) in jobs {
                    job.finish(Ok(()));
                }
            }
            Err(error) => self.failed(error, batch, jobs).await,
        }
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
            self.told(false);
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
            match self.attempt(&mut [], std::slice::from_mut(&mut job)).await {
                Ok(tx) => {
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
            let mut stored = self.attempt(std::slice::from_mut(part), &mut []).await;
            // An outage or a race says nothing about the event.
            if matches!(&stored, Err(error) if !matches!(error, StoreError::Unavailable(_) | StoreError::LostRace))
            {
                part.reject();
                stored = self.attempt(std::slice::from_mut(part), &mut []).await;
            }
            match stored {
                Ok(tx) => {
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
        if self.up != up {
            self.up = up;
            self.hook.database(up);
        }
    }

    async fn attempt(&mut self, batch: &mut [BatchItem], jobs: &mut [Queued]) -> Result<Tx, StoreError> {
        let conn = self.connection().await?;
        let mut tx = Tx {
            conn,
            at: self.clock.now(),
            shard: self.shard,
            thresholds: self.thresholds,
            changed: Vec::new(),
            notices: Vec::new(),
        };
        let peers = self.hook.has_peers();
        let work = transaction(&mut tx, batch, jobs, peers);
        match tokio::time::timeout(GROUP_TIMEOUT, work).await {
            Ok(Ok(())) => Ok(tx),
            Ok(Err(error)) => {
                // The connection serves again only when it is certainly out of the transaction.
                if !matches!(error, StoreError::Unavailable(_)) && tx.conn.run_raw("ROLLBACK").await.is_ok() {
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
    peers: bool,
) -> Result<(), StoreError> {
    tx.conn.run_raw(if tx.conn.is_postgres() { "BEGIN" } else { "BEGIN IMMEDIATE" }).await?;
    let ids = known_agents(batch, jobs);
    if tx.conn.is_postgres() && !jobs.is_empty() && !ids.is_empty() {
        agents::lock_states(tx, &ids).await?;
    }
    if !batch.is_empty() {
        batch::store(tx, batch).await?;
    }
    let alone = batch.is_empty() && jobs.len() == 1;
    for (_, job) in jobs.iter_mut() {
        let (changed, notices) = (tx.changed.len(), tx.notices.len());
        if !alone {
            tx.conn.run_raw("SAVEPOINT job").await?;
        }
        match job.run(tx).await {
            Verdict::Keep if alone => {}
            Verdict::Keep => tx.conn.run_raw("RELEASE SAVEPOINT job").await?,
            Verdict::Undo => {
                tx.changed.truncate(changed);
                tx.notices.truncate(notices);
                if alone {
                    return tx.conn.run_raw("ROLLBACK").await;
                }
                tx.conn.run_raw("ROLLBACK TO SAVEPOINT job; RELEASE SAVEPOINT job").await?;
            }
            Verdict::Dead(error) => return Err(error),
        }
    }
    if peers {
        crate::store::replicas::notify(tx).await?;
    }
    tx.conn.run_raw("COMMIT").await
}

/// Every agent that a group is known to touch. They are locked in one order before anything else, so that groups of
/// other lanes and replicas cannot wait for each other in a ring. (A batch alone does this by itself, and SQLite has
/// one writer.)
fn known_agents(batch: &[BatchItem], jobs: &[Queued]) -> Vec<Uuid> {
    let of_jobs = jobs.iter().filter_map(|(target, _)| match target {
        Target::Agent(id) => Some(*id),
        Target::Shared | Target::Alone => None,
    });
    let ids: BTreeSet<Uuid> = batch.iter().map(BatchItem::agent).chain(of_jobs).collect();
    ids.into_iter().filter(|id| !id.is_nil()).collect()
}
