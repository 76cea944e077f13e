//! The thread that writes the spool: takes whatever waits, writes it together, syncs once, then answers.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::link::cursor::{State, StateFile};
use crate::link::segment::{self, SEGMENT_HEAD};
use crate::link::spool::{Class, Limits, SegmentMeta, Shared, SpoolError, record_size, sync_dir};

/// Most jobs taken at once.
const MAX_GROUP: usize = 512;
/// Bytes written with one sync.
const GROUP_BYTES: usize = 1024 * 1024;
/// A buffer beyond this is given back when it is no longer needed.
const KEEP_BUFFER: usize = 64 * 1024;
/// A wholly acknowledged segment larger than this is replaced by an empty one.
const RETIRE_BYTES: u64 = 256 * 1024;

/// One event to append.
#[derive(Debug)]
pub(crate) struct Append {
    pub payload: Vec<u8>,
    pub id: Uuid,
    pub spent: u64,
    pub class: Class,
    pub done: oneshot::Sender<Result<u64, SpoolError>>,
}

/// What the thread does.
#[derive(Debug)]
pub(crate) enum Job {
    Append(Append),
    Ack { lsn: u64, id: Option<Uuid>, done: oneshot::Sender<Result<(), SpoolError>> },
    NewEpoch { done: oneshot::Sender<Result<(), SpoolError>> },
    Close { done: oneshot::Sender<()> },
}

/// The segment being written.
#[derive(Debug)]
pub(crate) struct Active {
    pub file: File,
    /// Durable bytes; whatever lies beyond does not count.
    pub len: u64,
}

#[derive(Debug)]
pub(crate) struct Writer {
    dir: PathBuf,
    shared: Arc<Shared>,
    state: StateFile,
    active: Option<Active>,
    limits: Limits,
    buffer: Vec<u8>,
    group: Vec<Append>,
}

fn refusal(error: &io::Error) -> SpoolError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            SpoolError::DiskFull
        }
        _ => SpoolError::Disk,
    }
}

impl Writer {
    pub(crate) fn new(
        dir: PathBuf,
        shared: Arc<Shared>,
        state: StateFile,
        active: Option<Active>,
        limits: Limits,
    ) -> Self {
        Self { dir, shared, state, active, limits, buffer: Vec::new(), group: Vec::new() }
    }

    /// Works until the spool is closed or nobody holds it any more; `lock` is let go at the end.
    pub(crate) fn run(mut self, mut queue: mpsc::Receiver<Job>, lock: File) {
        let mut jobs = Vec::new();
        let mut closed = None;
        while closed.is_none() && queue.blocking_recv_many(&mut jobs, MAX_GROUP) > 0 {
            for job in jobs.drain(..) {
                match job {
                    Job::Append(append) => self.take(append),
                    Job::Ack { lsn, id, done } => {
                        self.commit();
                        let _ = done.send(self.ack(lsn, id).map_err(|error| refusal(&error)));
                    }
                    Job::NewEpoch { done } => {
                        self.commit();
                        let _ = done.send(self.new_epoch().map_err(|error| refusal(&error)));
                    }
                    Job::Close { done } => closed = Some(done),
                }
            }
            self.commit();
            if self.buffer.capacity() > KEEP_BUFFER && queue.is_empty() {
                self.buffer = Vec::new();
            }
        }
        queue.close();
        let _ = self.state.sync();
        drop(lock);
        if let Some(done) = closed {
            let _ = done.send(());
        }
    }

    fn take(&mut self, append: Append) {
        let size = record_size(append.payload.len());
        let waiting = self.buffer.len() as u64;
        let used = self.shared.lock().bytes + waiting;
        let limit = match append.class {
            Class::Action => self.limits.actions,
            Class::Vital => self.limits.all,
        };
        // A new segment's header may be needed as well.
        if used + size + SEGMENT_HEAD > limit {
            let _ = append.done.send(Err(SpoolError::Full));
            return;
        }
        let full_segment =
            self.active.as_ref().is_some_and(|active| active.len + waiting + size > self.limits.segment);
        if self.buffer.len() + append.payload.len() > GROUP_BYTES || full_segment {
            self.commit();
        }
        let lsn = self.shared.lock().view.next + self.group.len() as u64;
        self.encode(lsn, &append);
        self.group.push(append);
    }

    fn encode(&mut self, lsn: u64, append: &Append) {
        let seed = segment::seed_of(self.shared.lock().view.log);
        segment::push_record(&mut self.buffer, seed, lsn, append.spent, &append.payload);
    }

    /// Writes and syncs what was taken, and answers. When the disk has no room for all, each is tried alone.
    fn commit(&mut self) {
        let group = std::mem::take(&mut self.group);
        if group.is_empty() {
            return;
        }
        let written = self.write(group.len() as u64);
        self.buffer.clear();
        match written {
            Ok(()) => self.publish(group),
            Err(error) if group.len() > 1 && refusal(&error) == SpoolError::DiskFull => {
                for append in group {
                    let lsn = self.shared.lock().view.next;
                    self.encode(lsn, &append);
                    let written = self.write(1);
                    self.buffer.clear();
                    match written {
                        Ok(()) => self.publish(vec![append]),
                        Err(error) => drop(append.done.send(Err(refusal(&error)))),
                    }
                }
            }
            Err(error) => {
                tracing::warn!(%error, "failed to write to the spool");
                for append in group {
                    let _ = append.done.send(Err(refusal(&error)));
                }
            }
        }
    }

    fn publish(&mut self, group: Vec<Append>) {
        let len = self.active.as_ref().map_or(0, |active| active.len);
        let next = {
            let mut inner = self.shared.lock();
            if let Some(last) = group.last() {
                inner.view.last_id = Some(last.id);
            }
            inner.view.next += group.len() as u64;
            if let Some(segment) = inner.segments.last_mut() {
                let grown = len - segment.len;
                segment.len = len;
                inner.bytes += grown;
            }
            inner.view.next
        };
        self.shared.next.send_replace(next);
        let first = next - group.len() as u64;
        for (lsn, append) in (first..).zip(group) {
            let _ = append.done.send(Ok(lsn));
        }
    }

    fn write(&mut self, records: u64) -> io::Result<()> {
        let size = self.buffer.len() as u64;
        let fits = |active: &Active| active.len <= SEGMENT_HEAD || active.len + size <= self.limits.segment;
        if !self.active.as_ref().is_some_and(fits) {
            self.roll()?;
        }
        let Some(active) = self.active.as_mut() else { return Err(io::Error::other("no segment")) };
        let failed = match active.file.write_all_at(&self.buffer, active.len) {
            Ok(()) => match active.file.sync_data() {
                Ok(()) => {
                    active.len += size;
                    return Ok(());
                }
                // After a failed sync nobody knows what is on disk: this file is not written to again.
                Err(error) => (error, true),
            },
            Err(error) => (error, false),
        };
        let (error, unsure) = failed;
        let cut = active.file.set_len(active.len).is_ok();
        if unsure || !cut {
            // The records may still be there one day; their numbers are not given to others.
            self.active = None;
            let next = {
                let mut inner = self.shared.lock();
                inner.view.next += records;
                inner.view.last_id = None;
                inner.view.next
            };
            self.shared.next.send_replace(next);
        }
        Err(error)
    }

    /// Starts a segment at the next position.
    fn roll(&mut self) -> io::Result<()> {
        let (log, first) = {
            let inner = self.shared.lock();
            (inner.view.log, inner.view.next)
        };
        let path = self.dir.join(segment_name(first));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        let made = file
            .write_all_at(&segment::segment_head(log, first), 0)
            .and_then(|()| file.sync_data())
            .and_then(|()| sync_dir(&self.dir));
        if let Err(error) = made {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        let mut inner = self.shared.lock();
        inner.segments.retain(|segment| segment.first != first);
        inner.segments.push(SegmentMeta { first, path, len: SEGMENT_HEAD, log });
        inner.bytes = inner.segments.iter().map(|segment| segment.len).sum();
        drop(inner);
        self.active = Some(Active { file, len: SEGMENT_HEAD });
        Ok(())
    }

    fn ack(&mut self, lsn: u64, id: Option<Uuid>) -> io::Result<()> {
        let (state, freed, idle) = {
            let mut inner = self.shared.lock();
            let lsn = lsn.min(inner.view.next - 1);
            if lsn <= inner.view.acked {
                return Ok(());
            }
            inner.view.acked = lsn;
            inner.view.acked_id = id;
            let kept = inner.segments.iter().rposition(|segment| segment.first <= lsn + 1).unwrap_or(0);
            (state_of(&inner.view), kept, lsn + 1 == inner.view.next)
        };
        self.state.write(&state)?;
        let most = RETIRE_BYTES.min(self.limits.segment / 2);
        let large = self.active.as_ref().is_none_or(|active| active.len > most);
        let retire = idle && large;
        if freed == 0 && !retire {
            return Ok(());
        }
        // Before a segment goes, it must be certain that nobody will look for what it held.
        self.state.sync()?;
        if !retire {
            self.free(freed);
        } else if self.roll().is_ok() {
            let old = self.shared.lock().segments.len() - 1;
            self.free(old);
        } else {
            // No room even for an empty segment: what was sent makes room, and the next event begins a segment.
            self.active = None;
            let all = self.shared.lock().segments.len();
            self.free(all);
        }
        Ok(())
    }

    fn free(&mut self, count: usize) {
        let gone: Vec<SegmentMeta> = {
            let mut inner = self.shared.lock();
            let gone: Vec<_> = inner.segments.drain(..count).collect();
            inner.bytes = inner.segments.iter().map(|segment| segment.len).sum();
            gone
        };
        for segment in gone {
            let file = File::options().write(true).open(&segment.path);
            if let Err(error) = fs::remove_file(&segment.path) {
                tracing::warn!(%error, path = %segment.path.display(), "failed to remove a sent part of the spool");
            }
            // A reader at its end may still have it open: the room is given back at once all the same.
            let _ = file.and_then(|file| file.set_len(0));
        }
    }

    fn new_epoch(&mut self) -> io::Result<()> {
        let mut view = self.shared.lock().view;
        view.epoch = Uuid::now_v7();
        view.base = view.acked;
        let state = state_of(&view);
        self.state.write(&state)?;
        self.state.sync()?;
        let mut inner = self.shared.lock();
        inner.view.epoch = view.epoch;
        inner.view.base = view.base;
        Ok(())
    }
}

pub(crate) fn segment_name(first: u64) -> String {
    format!("{first:020}.seg")
}

pub(crate) fn state_of(view: &crate::link::spool::View) -> State {
    State {
        log: view.log,
        epoch: view.epoch,
        base: view.base,
        acked: view.acked,
        acked_id: view.acked_id.unwrap_or_default(),
    }
}
