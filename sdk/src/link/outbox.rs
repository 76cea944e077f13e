//! What is on its way: reads the spool a window ahead of the acknowledgements, and settles what is acknowledged.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use otonix_proto::v1 as pb;
use tokio::sync::{Notify, mpsc};
use uuid::Uuid;

use crate::api::events::{Event, Rejected};
use crate::convert;
use crate::ids::EventId;
use crate::link::core::{Core, on_disk};
use crate::link::reader::{Reader, Stored};
use crate::link::spool::View;

/// Most events sent and not acknowledged.
pub(crate) const MAX_IN_FLIGHT: usize = 2000;
/// Most bytes sent and not acknowledged: what a heartbeat may have before it on a slow server.
const MAX_IN_FLIGHT_BYTES: usize = 256 * 1024;
/// Most events in one frame or request.
pub(crate) const FRAME_EVENTS: usize = 200;
/// Bytes after which a frame is closed.
pub(crate) const FRAME_BYTES: usize = 48 * 1024;
/// So many bytes just written are read without leaving the runtime: they are in the page cache.
const WARM_BYTES: u64 = 64 * 1024;

#[derive(Debug, Clone, Copy)]
struct InFlight {
    lsn: u64,
    id: Uuid,
    spent: u64,
    size: usize,
}

#[derive(Debug)]
struct Flight {
    events: VecDeque<InFlight>,
    bytes: usize,
    /// The position sent next.
    next: u64,
    /// Grows when sending starts over.
    turn: u64,
}

/// The window of one session.
#[derive(Debug)]
pub(crate) struct Window {
    view: View,
    flight: Mutex<Flight>,
    changed: Notify,
}

/// Whether the server's memory of this spool is this spool's.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Yes; what it had stored is settled.
    Same,
    /// No: a restored snapshot or a clone reused the numbers.
    Fork(&'static str),
}

impl Window {
    /// Starts after what is acknowledged.
    pub(crate) fn new(core: &Core) -> Self {
        let view = core.spool.view();
        let flight = Flight { events: VecDeque::new(), bytes: 0, next: view.acked + 1, turn: 0 };
        Self { view, flight: Mutex::new(flight), changed: Notify::new() }
    }

    /// The numbering of this session.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Nothing is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().events.is_empty()
    }

    /// The highest position that was sent.
    pub(crate) fn sent(&self) -> u64 {
        self.lock().next - 1
    }

    /// Sends again from a number on.
    pub(crate) fn rewind(&self, seq: u64) {
        let mut flight = self.lock();
        let lsn = self.view.lsn(seq);
        let first = flight.events.front().map_or(flight.next, |event| event.lsn);
        if lsn < first || lsn >= flight.next {
            return;
        }
        flight.events.retain(|event| event.lsn < lsn);
        flight.bytes = flight.events.iter().map(|event| event.size).sum();
        flight.next = lsn;
        flight.turn += 1;
        drop(flight);
        self.changed.notify_one();
    }

    /// Settles everything up to a number; false when nothing new is settled.
    pub(crate) async fn acked(
        &self,
        core: &Arc<Core>,
        seq: u64,
        rejected: Vec<Rejected>,
    ) -> Result<bool, crate::link::spool::SpoolError> {
        // The server may have stored more than this session sent: events of a session before it. They are
        // sent and acknowledged once more, so that only what was sent and checked is settled.
        let lsn = self.view.lsn(seq).min(self.sent());
        keep_rejects(core, &self.view, rejected).await;
        let gone: Vec<InFlight> = {
            let mut flight = self.lock();
            let count = flight.events.iter().take_while(|event| event.lsn <= lsn).count();
            let gone: Vec<_> = flight.events.drain(..count).collect();
            flight.bytes -= gone.iter().map(|event| event.size).sum::<usize>();
            gone
        };
        let Some(last) = gone.last() else { return Ok(false) };
        self.changed.notify_one();
        core.keeper.acked(gone.iter().map(|event| event.spent).sum());
        core.spool.ack(last.lsn, Some(last.id)).await?;
        if core.spool.status().pending == 0 {
            core.keeper.settled();
        }
        Ok(true)
    }

    /// Notes what is about to be sent; false when sending started over meanwhile.
    pub(crate) fn send(&self, turn: u64, events: &[Stored]) -> bool {
        let mut flight = self.lock();
        if flight.turn != turn {
            return false;
        }
        for stored in events {
            let event = InFlight { lsn: stored.lsn, id: stored.id(), spent: stored.spent, size: stored.size };
            flight.bytes += event.size;
            flight.next = event.lsn + 1;
            flight.events.push_back(event);
        }
        true
    }

    /// Waits until there is room and something to send: where, in which turn, and how many events.
    pub(crate) async fn next(&self, core: &Core) -> (u64, u64, usize) {
        let mut grown = core.spool.grown();
        loop {
            let end = *grown.borrow_and_update();
            {
                let flight = self.lock();
                let room = MAX_IN_FLIGHT.saturating_sub(flight.events.len());
                if room > 0 && flight.bytes < MAX_IN_FLIGHT_BYTES && flight.next < end {
                    return (flight.next, flight.turn, room.min(FRAME_EVENTS));
                }
            }
            tokio::select! {
                () = self.changed.notified() => {}
                changed = grown.changed() => if changed.is_err() {
                    std::future::pending::<()>().await;
                },
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Flight> {
        self.flight.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads from a position on; beside the runtime when the disk may be waited for.
pub(crate) async fn read(mut reader: Reader, from: u64, max: usize) -> (Reader, io::Result<Vec<Stored>>) {
    reader.seek(from);
    if reader.is_warm(WARM_BYTES) {
        let found = reader.read(max, FRAME_BYTES);
        return (reader, found);
    }
    let spare = reader.again();
    let done = on_disk(move || {
        let found = reader.read(max, FRAME_BYTES);
        (reader, found)
    });
    done.await.unwrap_or_else(|| (spare, Err(io::Error::other("the reading stopped"))))
}

/// Sends frames of events as long as the session takes them; ends only with an error.
pub(crate) async fn pump(core: Arc<Core>, window: Arc<Window>, frames: mpsc::Sender<pb::Up>) -> io::Error {
    let mut reader = core.spool.reader(window.sent() + 1);
    loop {
        let (from, turn, max) = window.next(&core).await;
        let (back, found) = read(reader, from, max).await;
        reader = back;
        let events = match found {
            Ok(events) => events,
            Err(error) => return error,
        };
        if events.is_empty() || !window.send(turn, &events) {
            continue;
        }
        let view = window.view();
        let events = events
            .into_iter()
            .map(|stored| pb::Event { seq: view.seq(stored.lsn), ..stored.event })
            .collect();
        let frame = pb::Up { msg: Some(pb::up::Msg::Events(pb::Events { events })) };
        if frames.send(frame).await.is_err() {
            return io::Error::from(io::ErrorKind::BrokenPipe);
        }
    }
}

/// An event in the form of REST; `None` when this version cannot read it.
pub(crate) fn to_api(seq: u64, stored: &Stored) -> Option<Event> {
    let at = stored.event.at.as_ref().and_then(convert::time)?;
    let body = convert::body_from_pb(stored.event.body.clone()).ok()?;
    Some(Event::new(seq, EventId::new(stored.id()), at, body))
}

/// Compares the server's memory with this spool and settles what the server has stored.
pub(crate) async fn reconcile(
    core: &Arc<Core>,
    acked_seq: u64,
    acked_id: Option<Uuid>,
) -> io::Result<Verdict> {
    let view = core.spool.view();
    let known = view.seq(view.acked);
    if acked_seq >= view.seq(view.next) {
        return Ok(Verdict::Fork("the server has events of this epoch that this machine never sent"));
    }
    if acked_seq < known {
        return Ok(Verdict::Fork("the server no longer has events that it acknowledged"));
    }
    let Some(acked_id) = acked_id else { return Ok(Verdict::Same) };
    if acked_seq == known {
        let other = known > 0 && view.acked_id.is_some_and(|own| own != acked_id);
        return Ok(if other {
            Verdict::Fork("the server has another event under an acknowledged number")
        } else {
            Verdict::Same
        });
    }
    let target = view.lsn(acked_seq);
    let mut reader = core.spool.reader(view.acked + 1);
    let mut cost: u64 = 0;
    loop {
        let position = reader.position();
        let (back, found) = read(reader, position, FRAME_EVENTS).await;
        reader = back;
        let found = found?;
        if found.is_empty() {
            return Ok(Verdict::Fork("the server has events that this machine no longer has"));
        }
        for stored in found {
            cost = cost.saturating_add(stored.spent);
            if stored.lsn < target {
                continue;
            }
            if stored.id() != acked_id {
                return Ok(Verdict::Fork("the server has another event under a number of this epoch"));
            }
            core.keeper.acked(cost);
            core.spool.ack(target, Some(acked_id)).await.map_err(io::Error::other)?;
            return Ok(Verdict::Same);
        }
    }
}

async fn keep_rejects(core: &Arc<Core>, view: &View, rejected: Vec<Rejected>) {
    if rejected.is_empty() {
        return;
    }
    let (spool, view) = (core.spool.clone(), *view);
    let work = move |file: &mut crate::link::rejects::Rejects| {
        let epoch = view.epoch.to_string();
        for rejected in rejected {
            let lsn = view.lsn(rejected.seq);
            let stored = spool.reader(lsn).read(1, 1).ok().and_then(|found| found.into_iter().next());
            let event = stored.as_ref().and_then(|stored| to_api(rejected.seq, stored));
            tracing::warn!(
                seq = rejected.seq,
                code = rejected.code,
                "the server will never store an event; it is kept in the reject file"
            );
            let now = crate::clock::Clock::now(&crate::clock::SystemClock);
            if let Err(error) = file.keep(now, &epoch, &rejected, event) {
                tracing::warn!(%error, "failed to keep a rejected event");
            }
        }
    };
    core.with_rejects(work).await;
}
