//! Reads the spool back for sending: in order, without gaps, a bounded part at a time.

use std::fs::File;
use std::io;
use std::sync::Arc;

use otonix_proto::v1 as pb;
use prost::Message as _;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::link::segment::{self, Scanner, Step};
use crate::link::spool::{SegmentMeta, Shared};

/// One position of the log.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its position.
    pub lsn: u64,
    /// What it is thought to cost, micro-USDC.
    pub spent: u64,
    /// Bytes on disk.
    pub size: usize,
    /// The event; its number is not set. An event that cannot be read is a `lost`.
    pub event: pb::Event,
}

impl Stored {
    /// The event's id; nil when it is none.
    pub fn id(&self) -> Uuid {
        Uuid::try_parse(&self.event.id).unwrap_or_default()
    }
}

/// A place in the log.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    next: u64,
    open: Option<(u64, Scanner)>,
    ahead: Option<Stored>,
}

/// The id of the event that stands in for one that is lost: the same whenever it is sent.
fn lost_id(log: Uuid, lsn: u64) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(b"otonix lost event");
    hash.update(log.as_bytes());
    hash.update(lsn.to_le_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

impl Reader {
    pub(crate) fn new(shared: Arc<Shared>, from: u64) -> Self {
        Self { shared, next: from, open: None, ahead: None }
    }

    /// The position read next.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Goes to another position.
    pub fn seek(&mut self, lsn: u64) {
        if lsn != self.next {
            self.next = lsn;
            self.open = None;
            self.ahead = None;
        }
    }

    /// Another reader at the same place.
    pub(crate) fn again(&self) -> Self {
        Self::new(Arc::clone(&self.shared), self.next)
    }

    /// The bytes between here and the end lie in the segment already open and are few: reading them now
    /// does not wait for a disk.
    pub fn is_warm(&self, few: u64) -> bool {
        let inner = self.shared.lock();
        match (&self.open, inner.segments.last()) {
            (Some((first, scanner)), Some(last)) => *first == last.first && last.len - scanner.at() <= few,
            _ => false,
        }
    }

    /// Reads up to `max` events of together about `max_bytes`.
    ///
    /// # Errors
    /// When the disk fails, or the position is before what is kept.
    pub fn read(&mut self, max: usize, max_bytes: usize) -> io::Result<Vec<Stored>> {
        let mut out: Vec<Stored> = Vec::new();
        let mut bytes = 0;
        while out.len() < max && bytes < max_bytes {
            let Some(stored) = self.one()? else { break };
            bytes += stored.size;
            out.push(stored);
        }
        if let Some((_, scanner)) = &mut self.open
            && self.ahead.is_none()
            && out.len() < max
            && bytes < max_bytes
        {
            scanner.rest();
        }
        Ok(out)
    }

    fn one(&mut self) -> io::Result<Option<Stored>> {
        if self.next >= self.shared.lock().view.next {
            return Ok(None);
        }
        loop {
            if let Some(stored) = self.ahead.take() {
                if stored.lsn == self.next {
                    self.next += 1;
                    return Ok(Some(stored));
                }
                if stored.lsn > self.next {
                    self.ahead = Some(stored);
                    return Ok(Some(self.lost()));
                }
            }
            self.advance()?;
            if self.ahead.is_none() {
                return Ok(Some(self.lost()));
            }
        }
    }

    /// Finds the next sound record at or after the position; none before the end leaves `ahead` empty.
    fn advance(&mut self) -> io::Result<()> {
        let segment = self.segment()?;
        let first = segment.first;
        if self.open.as_ref().is_none_or(|(open, _)| *open != first) {
            let file = File::open(&segment.path)?;
            let scanner = Scanner::new(file, segment::seed_of(segment.log), first, segment.len);
            self.open = Some((first, scanner));
        }
        let Some((_, scanner)) = &mut self.open else { return Ok(()) };
        scanner.set_end(segment.len);
        loop {
            match scanner.step()? {
                Step::Record(head, payload) if head.lsn >= self.next => {
                    let Ok(event) = pb::Event::decode(payload.as_slice()) else { continue };
                    let size = payload.len() + segment::RECORD_HEAD;
                    self.ahead = Some(Stored { lsn: head.lsn, spent: head.spent, size, event });
                    return Ok(());
                }
                Step::Record(..) | Step::Damage { .. } => {}
                Step::End => return Ok(()),
            }
        }
    }

    /// The segment that the position belongs to.
    fn segment(&self) -> io::Result<SegmentMeta> {
        let inner = self.shared.lock();
        if self.next <= inner.view.acked {
            return Err(io::Error::new(io::ErrorKind::NotFound, "the position is no longer kept"));
        }
        let index = inner.segments.iter().rposition(|segment| segment.first <= self.next).unwrap_or(0);
        inner
            .segments
            .get(index)
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the spool holds no segment"))
    }

    fn lost(&mut self) -> Stored {
        let lsn = self.next;
        self.next += 1;
        let log = {
            let mut inner = self.shared.lock();
            inner.lost.add(lsn, lsn + 1);
            inner.view.log
        };
        let reason = "the record could not be read back from the machine's disk".to_owned();
        let event = pb::Event {
            seq: 0,
            id: lost_id(log, lsn).to_string(),
            at: Some(crate::convert::timestamp(crate::clock::Clock::now(&crate::clock::SystemClock))),
            body: Some(pb::event::Body::Lost(pb::Lost { reason })),
        };
        Stored { lsn, spent: 0, size: segment::RECORD_HEAD, event }
    }
}
