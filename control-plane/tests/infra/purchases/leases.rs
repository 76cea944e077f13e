//! Replicas that are stopped while they ask, and lose the lease meanwhile; and clocks that do not agree.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::TimeDelta;
use otonix_control_plane::worker::purchases as worker;
use otonix_sdk::clock::{Clock as _, TestClock};
use tokio::task::JoinHandle;

use super::bench::{Bench, DOMAIN, For, domain, stranger};
use super::histories::{What, begin};
use super::shelf::{How, Kill};
use crate::support::{Store, on_each_store};

on_each_store!(
    a_replica_that_was_stopped_at_any_call_and_lost_the_lease_writes_nothing,
    what_a_stopped_replica_has_seen_does_not_count,
    a_replica_whose_clock_is_ahead_does_not_shorten_the_looks,
    a_replica_whose_clock_is_ahead_does_not_look_at_what_may_be_on_its_way,
);

/// A replica at work, until its pass that hangs has ended.
struct Stopped {
    through: Arc<AtomicBool>,
    work: JoinHandle<()>,
}

/// Lets a replica work until it hangs in its call `at`; `None` when it was through before.
async fn stopped(bench: &Bench, kill: Kill) -> Option<Stopped> {
    let at = bench.shelf.world.lock().calls + kill.at;
    bench.shelf.world.lock().kill = Some(Kill { at, ..kill });
    let (app, clock) = (Arc::clone(&bench.app), bench.clock.clone());
    let through = Arc::new(AtomicBool::new(false));
    let ends = Arc::clone(&through);
    let mut work = tokio::spawn(async move {
        for _ in 0..30 {
            while worker::run_once(&app).await.expect("a pass") > 0 {
                if ends.load(Ordering::SeqCst) {
                    return;
                }
            }
            clock.advance(TimeDelta::seconds(10));
        }
    });
    let hung = tokio::select! {
        () = bench.shelf.hanging.notified() => true,
        _ = &mut work => false,
        () = tokio::time::sleep(Duration::from_secs(60)) => panic!("neither through nor stopped"),
    };
    bench.shelf.world.lock().kill = None;
    hung.then_some(Stopped { through, work })
}

impl Stopped {
    /// Goes on, through the pass that it was stopped in.
    async fn wake(self, bench: &Bench) {
        self.through.store(true, Ordering::SeqCst);
        bench.shelf.resume.notify_one();
        self.work.await.expect("no panic");
    }
}

async fn a_replica_that_was_stopped_at_any_call_and_lost_the_lease_writes_nothing(store: Store) {
    for what in [What::Domain, What::Server, What::Renewal] {
        let mut stops = [0_u32, 0];
        for (at, acted) in (1..=9).flat_map(|at| [(at, false), (at, true)]) {
            // One of the calls acts.
            if acted && stops[1] == 1 || !acted && stops[0] + 1 < at {
                continue;
            }
            let one = Bench::open(store).await;
            let (id, count) = begin(&one, what).await;
            let Some(first) = stopped(&one, Kill { at, acted }).await else { continue };
            stops[usize::from(acted)] += 1;
            let two = one.again().await;
            two.live(1800, 20).await;
            let (row, asked) = (two.by_id(id).await, two.shelf.world.lock().asked);
            let place = format!("{what:?} stopped at call {at}, acted {acted}: {row:?}");
            assert!(matches!(row.status.as_str(), "delivered" | "failed"), "{place}");
            first.wake(&one).await;
            assert_eq!(two.by_id(id).await, row, "{place}");
            assert_eq!(two.shelf.world.lock().asked, asked, "nothing is sent: {place}");
            assert!(two.shelf.bought(&count) <= 1, "{place}");
            two.audit().await;
        }
        assert!(stops[0] >= 2 && stops[1] == 1, "{what:?}: {stops:?}");
    }
}

/// A purchase whose only attempt was lost before it arrived, and that was not looked for yet.
async fn lost(store: Store) -> (Bench, uuid::Uuid) {
    let bench = Bench::open(store).await;
    bench.shelf.next(&[How::LostBefore]);
    let sold = bench.pay(domain("a.com"), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    bench.work().await;
    let row = bench.purchase(sold.id).await;
    assert_eq!(row.status, "unknown");
    (bench, row.id)
}

async fn what_a_stopped_replica_has_seen_does_not_count(store: Store) {
    let (one, id) = lost(store).await;
    one.pass(125);
    let first = stopped(&one, Kill { at: 1, acted: false }).await.expect("it looks");
    let two = one.again().await;
    // The other takes over, waits anew, and sees that it is not there.
    two.live(150, 10).await;
    let row = two.by_id(id).await;
    assert!(
        row.absent_since.is_some_and(|since| since >= one.clock.now() - TimeDelta::seconds(60)),
        "{row:?}"
    );
    two.pass(7);
    first.wake(&one).await;
    assert_eq!(two.by_id(id).await, row, "what the first was told while it was stopped is not written");
    // One that only postpones, or fails by itself, writes as little.
    one.shelf.world.lock().panics = true;
    two.lease_is_free().await;
    let held = worker::run_once(&two.app);
    held.await.expect("a pass");
    one.shelf.world.lock().panics = false;
    two.live(900, 20).await;
    assert_eq!(two.by_id(id).await.status, "delivered");
    assert_eq!(two.shelf.bought("a.com"), 1);
    two.audit().await;
}

async fn a_replica_whose_clock_is_ahead_does_not_shorten_the_looks(store: Store) {
    let (one, id) = lost(store).await;
    one.live(140, 10).await;
    let first = one.by_id(id).await;
    assert!(first.absent_since.is_some(), "{first:?}");
    let ahead = TestClock::at(one.clock.now() + TimeDelta::hours(1));
    let two = one.beside(ahead).await;
    one.lease_is_free().await;
    two.live(700, 10).await;
    let row = two.by_id(id).await;
    assert_eq!((row.status.as_str(), row.attempts), ("unknown", 1), "ten minutes are ten minutes");
    // Back again, to a clock that is behind: once more from the start.
    one.pass(700);
    one.lease_is_free().await;
    one.live(700, 10).await;
    let row = one.by_id(id).await;
    assert_eq!((row.status.as_str(), row.attempts), ("unknown", 1));
    one.live(60, 10).await;
    assert_eq!(one.by_id(id).await.attempts, 2);
    one.live(60, 10).await;
    assert_eq!(one.by_id(id).await.status, "delivered");
    one.audit().await;
}

async fn a_replica_whose_clock_is_ahead_does_not_look_at_what_may_be_on_its_way(store: Store) {
    let one = Bench::open(store).await;
    one.shelf.next(&[How::Late(1)]);
    let sold = one.pay(domain("a.com"), &For::default(), DOMAIN, DOMAIN, stranger(1)).await;
    // Two reads come before the request that buys.
    let first = stopped(&one, Kill { at: 3, acted: false }).await;
    let first = first.expect("it buys");
    assert_eq!(one.purchase(sold.id).await.status, "executing");
    let two = one.beside(TestClock::at(one.clock.now() + TimeDelta::hours(1))).await;
    one.lease_is_free().await;
    let looks = two.shelf.world.lock().looks;
    two.live(115, 5).await;
    assert_eq!(two.shelf.world.lock().looks, looks, "it may be on its way");
    first.wake(&one).await;
    two.lease_is_free().await;
    two.live(300, 5).await;
    assert_eq!(two.purchase(sold.id).await.status, "delivered");
    assert_eq!(two.shelf.bought("a.com"), 1);
    two.audit().await;
}
