//! The places for connections. When all are taken, a connection on which nothing is being done makes room for a new
//! one: so callers that open connections and do not finish a request keep nobody else out.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// Connections served at a time.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// A request, or part of one, is awaited.
const WAITING: u8 = 0;
/// A request is being answered.
const WORKING: u8 = 1;
/// The place is another's now.
const LEFT: u8 = 2;

/// One connection's place, by the process at its other end.
#[derive(Debug)]
struct Seat {
    pid: Option<i32>,
    state: AtomicU8,
    left: CancellationToken,
}

impl Seat {
    fn change(&self, from: u8, to: u8) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// All places, the one that has waited longest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Seats(Arc<Mutex<Vec<Arc<Seat>>>>);

impl Seats {
    /// A place for a connection of a process; `None` when something is being done on all of them. Room is made by the
    /// process that has the most places.
    pub(super) fn take(&self, pid: Option<i32>) -> Option<Taken> {
        let mut seats = self.lock();
        if seats.len() >= MAX_CONNECTIONS {
            let leaving = longest_waiting(&seats)?;
            seats.remove(leaving).left.cancel();
        }
        let seat = Arc::new(Seat { pid, state: AtomicU8::new(WAITING), left: CancellationToken::new() });
        seats.push(Arc::clone(&seat));
        Some(Taken { seats: self.clone(), seat })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a place from who has waited longest in the process that has the most.
fn longest_waiting(seats: &[Arc<Seat>]) -> Option<usize> {
    let held = |pid| seats.iter().filter(|seat| seat.pid == pid).count();
    let mut waiting: Vec<(usize, usize)> = Vec::new();
    for (index, seat) in seats.iter().enumerate() {
        if seat.state.load(Ordering::Acquire) == WAITING {
            waiting.push((held(seat.pid), index));
        }
    }
    // Stable: of equals the one that has waited longest stays first.
    waiting.sort_by_key(|(held, _)| std::cmp::Reverse(*held));
    waiting.into_iter().map(|(_, index)| index).find(|index| seats[*index].change(WAITING, LEFT))
}

/// A place that is held; free again when dropped.
#[derive(Debug)]
pub(super) struct Taken {
    seats: Seats,
    seat: Arc<Seat>,
}

impl Taken {
    /// A whole request is here. False when the place was given away meanwhile: nothing may be done any more.
    pub(super) fn work(&self) -> bool {
        self.seat.change(WAITING, WORKING) || self.seat.state.load(Ordering::Acquire) == WORKING
    }

    /// It is answered.
    pub(super) fn rest(&self) {
        let mut seats = self.seats.lock();
        if self.seat.change(WORKING, WAITING)
            && let Some(index) = seats.iter().position(|seat| Arc::ptr_eq(seat, &self.seat))
        {
            let seat = seats.remove(index);
            seats.push(seat);
        }
    }

    /// Waits until the place is another's.
    pub(super) async fn left(&self) {
        self.seat.left.cancelled().await;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.seats.lock().retain(|seat| !Arc::ptr_eq(seat, &self.seat));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GREEDY: Option<i32> = Some(1);
    const MODEST: Option<i32> = Some(2);

    fn has_left(taken: &Taken) -> bool {
        taken.seat.left.is_cancelled()
    }

    #[test]
    fn the_greedy_make_room_and_those_at_work_stay() {
        let seats = Seats::default();
        let modest = seats.take(MODEST).expect("a place");
        let greedy: Vec<Taken> = (1..MAX_CONNECTIONS).map(|_| seats.take(GREEDY).expect("a place")).collect();
        assert!(greedy[0].work() && greedy[1].work());
        greedy[1].rest();
        let more = seats.take(MODEST).expect("a place is made");
        assert!(has_left(&greedy[2]), "the one that has waited longest");
        assert!(!greedy[2].work(), "nothing is done any more for who has left");
        assert!(![&modest, &greedy[0], &greedy[1], &more].into_iter().any(has_left));
    }

    #[test]
    fn without_anybody_waiting_there_is_no_place_until_one_is_done() {
        let seats = Seats::default();
        let taken: Vec<Taken> = (0..MAX_CONNECTIONS).map(|_| seats.take(GREEDY).expect("a place")).collect();
        assert!(taken.iter().all(Taken::work));
        assert!(seats.take(MODEST).is_none());
        drop(taken);
        assert_eq!(seats.lock().len(), 0);
        assert!(seats.take(MODEST).is_some());
    }
}
