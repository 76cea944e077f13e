//! The one way to write: jobs and events queue up, and whatever is queued is committed in one transaction.
//!
//! A lane is a task with a database connection of its own. What one agent's streams bring always takes the same lane,
//! single records another and jobs others, so that a slow job holds up no records.
//! Every waiter is answered after the commit, never before. A caller that hangs up loses its answer, not its write.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use otonix_sdk::clock::Clock;
use otonix_sdk::standing::Thresholds;
use rand::Rng as _;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::error::Error;
use crate::store::agents::AgentState;
use crate::store::batch::{BatchItem, EventsItem, HelloItem};
use crate::store::counters::Counts;
use crate::store::idempotency::{Idem, StoredAnswer};
use crate::store::{Conn, Db, StoreError};

mod job;
mod lane;

use job::{Item, TypedJob};
use lane::Lane;

/// Items that may wait in one lane.
const QUEUE: usize = 16_384;
/// Lanes on PostgreSQL; SQLite has one writer. Single records share one, since a transaction costs more than a record
/// and the more records share it the better; what streams bring comes in batches already.
const POSTGRES_STREAM_LANES: usize = 2;
const POSTGRES_JOB_LANES: usize = 4;
/// Shards of the system accounts, and how many of them one replica may use.
const SHARDS: i64 = 64;
const SHARD_STEP: i64 = 8;

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
    /// Whether an event that is there already is looked for. A batch is first tried without: repeats are rare, and
    /// the search costs as much as the insertion.
    pub repeats: bool,
    /// Agents as the lane locked them for the one job of this transaction, each until it is asked for.
    pub locked: Vec<AgentState>,
    /// Agents as they are after the commit.
    pub changed: Vec<AgentState>,
    /// What else to tell.
    pub notices: Vec<Notice>,
    /// What it adds to the counters.
    pub counts: Counts,
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
    /// The same, and each of the job's statements is right by itself whatever became of those before: on PostgreSQL,
    /// alone in its group, they are committed one by one, which saves two ways to the database. Such a job tells nothing
    /// and counts nothing, and asks again when it finds a connection that died unused.
    Single,
    /// Agents that are known only on the way, or many of them: on PostgreSQL it gets a transaction of its own, so that
    /// it never holds another group's agents while it waits for more.
    Alone,
}

/// Gives work to the lanes.
#[derive(Clone)]
pub struct Writer {
    /// For what comes by streams.
    streams: Arc<[mpsc::Sender<Item>]>,
    /// For single records.
    singles: mpsc::Sender<Item>,
    /// The first is for jobs that concern no single agent.
    jobs: Arc<[mpsc::Sender<Item>]>,
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
        let up = Arc::new(AtomicBool::new(true));
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
                up: Arc::clone(&up),
            };
            tracker.spawn(lane.run());
            send
        };
        if !db.is_postgres() {
            let lane = spawn(0);
            let one: Arc<[_]> = Arc::new([lane.clone()]);
            return Self { streams: Arc::clone(&one), singles: lane.clone(), jobs: one, beats: lane };
        }
        let mut lanes = 0..;
        let mut next = || spawn(lanes.next().unwrap_or(0));
        Self {
            streams: std::iter::repeat_with(&mut next).take(POSTGRES_STREAM_LANES).collect(),
            jobs: std::iter::repeat_with(&mut next).take(POSTGRES_JOB_LANES).collect(),
            singles: next(),
            beats: next(),
        }
    }

    fn stream_lane(&self, of: Uuid) -> &mpsc::Sender<Item> {
        &self.streams[spread(of) % self.streams.len()]
    }

    fn lane_of(&self, target: Target) -> &mpsc::Sender<Item> {
        match (target, self.jobs.len()) {
            (Target::Agent(id), 2..) => &self.jobs[1 + spread(id) % (self.jobs.len() - 1)],
            (Target::Agent(_) | Target::Shared | Target::Single | Target::Alone, _) => &self.jobs[0],
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
        let lane = if item.stream.is_some() { self.stream_lane(item.agent) } else { &self.singles };
        lane.try_send(Item::Batch(Box::new(BatchItem::Events(item)))).map_err(|_| StoreError::QueueFull)
    }

    /// Queues the opening of a session; the answer comes through the item.
    ///
    /// # Errors
    /// [`StoreError::QueueFull`] when the lane is full.
    pub fn send_hello(&self, item: HelloItem) -> Result<(), StoreError> {
        let lane = self.stream_lane(item.agent);
        lane.try_send(Item::Batch(Box::new(BatchItem::Hello(item)))).map_err(|_| StoreError::QueueFull)
    }

    /// Items waiting in all lanes.
    pub fn queued(&self) -> usize {
        let waiting = |lane: &mpsc::Sender<Item>| lane.max_capacity() - lane.capacity();
        if self.jobs.len() == 1 {
            return waiting(&self.singles);
        }
        self.streams.iter().chain(&self.jobs[..]).chain([&self.singles]).map(waiting).sum()
    }
}

/// The last bytes of both random and time-ordered ids are random.
fn spread(id: Uuid) -> usize {
    usize::from(id.as_bytes()[15])
}

fn fresh<T>(written: Written<T>) -> Result<T, Error> {
    match written {
        Written::Fresh(done) => Ok(done),
        Written::Replayed(_) => Err(Error::internal("a write without a key was replayed")),
    }
}
