//! The durable queue of events: an append-only log of segments that is on disk before the caller is answered.
//!
//! Positions in the log (`lsn`) rise for ever and have no gaps; the number of an event in the session is its
//! position less the base of the current epoch, so a new epoch is one small write and moves no event.
//! What cannot be read back is reported as lost under its own number. The spool never drops what is not
//! acknowledged, and never reads the whole backlog into memory.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::fs::{FlockOperation, flock};
use tokio::sync::{mpsc, oneshot, watch};
use uuid::Uuid;

use crate::api::local::SpoolStatus;
use crate::link::reader::Reader;
use crate::link::recovery::{self, Ranges};
use crate::link::segment::{MAX_PAYLOAD, RECORD_HEAD};
use crate::link::writer::{Append, Job, Writer};

/// Appends, acknowledgements and the rest that may wait for the disk.
const MAX_WAITING: usize = 1024;
/// Of the bound, the part that only usage, payments and command results may use: one in so many.
const RESERVE_PART: u64 = 8;
/// Stack of the thread that waits for the disk.
const THREAD_STACK: usize = 256 * 1024;

/// Why the spool did not take or give something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpoolError {
    /// At its bound.
    #[error("the spool is full")]
    Full,
    /// The disk has no room.
    #[error("the disk is full")]
    DiskFull,
    /// One event is larger than allowed.
    #[error("the event is too large")]
    TooLarge,
    /// The disk failed otherwise.
    #[error("the disk failed")]
    Disk,
    /// Closed.
    #[error("the spool is closed")]
    Closed,
}

/// Why a spool cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("the spool is in use by another process")]
    Locked,
    /// Not what it should be, or the disk failed.
    #[error("failed to use {}", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// What the file system says.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn of(path: &Path, source: io::Error) -> Self {
        Self::Unusable { path: path.to_owned(), source }
    }
}

/// What may still be written near the bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Refused first.
    Action,
    /// May use the reserve: usage, payments, command results, tier effects.
    Vital,
}

/// A segment as the readers see it: `len` counts durable bytes only.
#[derive(Debug, Clone)]
pub(crate) struct SegmentMeta {
    pub first: u64,
    pub path: PathBuf,
    pub len: u64,
    pub log: Uuid,
}

/// Where the log stands.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Made with the log; never changes.
    pub log: Uuid,
    /// The current epoch.
    pub epoch: Uuid,
    /// The position before the epoch's first event.
    pub base: u64,
    /// Everything up to here is acknowledged.
    pub acked: u64,
    /// The id of the event at `acked`, when known.
    pub acked_id: Option<Uuid>,
    /// The position of the next event.
    pub next: u64,
    /// The id of the event before it, when known.
    pub last_id: Option<Uuid>,
}

impl View {
    /// The number in the session of a position.
    pub fn seq(&self, lsn: u64) -> u64 {
        lsn.saturating_sub(self.base)
    }

    /// The position of a number in the session.
    pub fn lsn(&self, seq: u64) -> u64 {
        seq.saturating_add(self.base)
    }
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub view: View,
    pub segments: Vec<SegmentMeta>,
    pub bytes: u64,
    pub lost: Ranges,
}

/// What the writer publishes and the readers see.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    pub next: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn new(inner: Inner) -> Self {
        let next = watch::Sender::new(inner.view.next);
        Self { inner: Mutex::new(inner), next }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The spool; a cheap handle.
#[derive(Debug, Clone)]
pub struct Spool {
    shared: Arc<Shared>,
    jobs: mpsc::Sender<Job>,
}

/// The bounds of a spool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub actions: u64,
    pub all: u64,
    pub segment: u64,
}

impl Limits {
    fn of(max_bytes: u64) -> Self {
        Self {
            actions: max_bytes - max_bytes / RESERVE_PART,
            all: max_bytes,
            segment: (max_bytes / 32).clamp(16 * 1024, 4 * 1024 * 1024),
        }
    }
}

impl Spool {
    /// Opens or makes the spool in a directory; reads what is not acknowledged once, to know that it is sound.
    /// Also says what the events not yet acknowledged are thought to cost, in micro-USDC.
    ///
    /// # Errors
    /// [`OpenError`] when another process has it or the disk fails.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<(Self, u64), OpenError> {
        let unusable = |error| OpenError::of(dir, error);
        fs::create_dir_all(dir).map_err(unusable)?;
        let lock = lock(dir)?;
        let recovered = recovery::recover(dir).map_err(unusable)?;
        let unacked_spent = recovered.unacked_spent;
        let shared = Arc::new(Shared::new(recovered.inner));
        let (jobs, queue) = mpsc::channel(MAX_WAITING);
        let writer = Writer::new(
            dir.to_owned(),
            Arc::clone(&shared),
            recovered.state,
            recovered.active,
            Limits::of(max_bytes),
        );
        std::thread::Builder::new()
            .name("spool".to_owned())
            .stack_size(THREAD_STACK)
            .spawn(move || writer.run(queue, lock))
            .map_err(unusable)?;
        Ok((Self { shared, jobs }, unacked_spent))
    }

    /// Appends an encoded event; answers with its position once it is on disk. `spent` is what it is thought
    /// to cost.
    ///
    /// # Errors
    /// [`SpoolError`]; the event was not recorded.
    pub async fn append(
        &self,
        payload: Vec<u8>,
        id: Uuid,
        spent: u64,
        class: Class,
    ) -> Result<u64, SpoolError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(SpoolError::TooLarge);
        }
        let (done, answer) = oneshot::channel();
        self.send(Job::Append(Append { payload, id, spent, class, done })).await?;
        answer.await.unwrap_or(Err(SpoolError::Closed))
    }

    /// Notes that everything up to a position is acknowledged, and frees what is no longer needed.
    ///
    /// # Errors
    /// [`SpoolError`] when the disk fails; the events will be sent again.
    pub async fn ack(&self, lsn: u64, id: Option<Uuid>) -> Result<(), SpoolError> {
        let (done, answer) = oneshot::channel();
        self.send(Job::Ack { lsn, id, done }).await?;
        answer.await.unwrap_or(Err(SpoolError::Closed))
    }

    /// Starts a new epoch: what is not acknowledged is numbered from 1. Durable when it answers.
    ///
    /// # Errors
    /// [`SpoolError`] when the disk fails; the old epoch stays.
    pub async fn new_epoch(&self) -> Result<(), SpoolError> {
        let (done, answer) = oneshot::channel();
        self.send(Job::NewEpoch { done }).await?;
        answer.await.unwrap_or(Err(SpoolError::Closed))
    }

    /// Writes what is queued, then lets the directory go.
    pub async fn close(&self) {
        let (done, answer) = oneshot::channel();
        if self.send(Job::Close { done }).await.is_ok() {
            let _ = answer.await;
        }
    }

    /// Where the log stands.
    pub fn view(&self) -> View {
        self.shared.lock().view
    }

    /// The position of the next event, whenever it moves.
    pub fn grown(&self) -> watch::Receiver<u64> {
        self.shared.next.subscribe()
    }

    /// What waits, and what was damaged.
    pub fn status(&self) -> SpoolStatus {
        status_of(&self.shared.lock())
    }

    /// Reads from a position on.
    pub fn reader(&self, from: u64) -> Reader {
        Reader::new(Arc::clone(&self.shared), from)
    }

    async fn send(&self, job: Job) -> Result<(), SpoolError> {
        self.jobs.send(job).await.map_err(|_| SpoolError::Closed)
    }
}

fn status_of(inner: &Inner) -> SpoolStatus {
    SpoolStatus {
        pending: inner.view.next - 1 - inner.view.acked,
        bytes: inner.bytes,
        damaged: inner.lost.count(),
        rejected: 0,
    }
}

/// What a spool that no process has open holds.
///
/// # Errors
/// When the directory cannot be read.
pub fn inspect(dir: &Path) -> io::Result<SpoolStatus> {
    recovery::look(dir).map(|inner| status_of(&inner))
}

/// The bytes that a record takes on disk.
pub(crate) fn record_size(payload: usize) -> u64 {
    (RECORD_HEAD + payload) as u64
}

/// Makes a directory's entries durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = dir.join("lock");
    let opened = File::options().create(true).truncate(false).write(true).open(&path);
    let file = opened.map_err(|error| OpenError::of(&path, error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::Locked),
        Err(other) => Err(OpenError::of(&path, other.into())),
    }
}
