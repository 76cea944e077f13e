//! Carries purchases out: one replica at a time takes each to its next state. An attempt is written down before it is
//! sent, what became known is written down from the state it was asked in, and after a crash the vendor is looked at.
//! Every write is the lease holder's: a replica that was stopped while it asked and has lost the lease writes nothing.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::purchases::act::{self, Report};
use crate::service::purchases::item::Item;
use crate::service::purchases::machine::{ATTEMPT, DECIDE_WITHIN, Next, SETTLING, Status, TRY_FOR, Todo};
use crate::service::purchases::{book, bootstrap, find, progress};
use crate::store::StoreError;
use crate::store::purchases::{self, Purchase};
use crate::store::writer::Tx;
use crate::upstream::providers::Deadline;
use crate::worker::{ClockPair, Held, begin_anew, deployments, hold};

const LEASE: &str = "purchases";
/// Purchases of one pass.
const BATCH: i64 = 64;
/// Purchases that are carried out at once.
const MAX_RUNNING: usize = 64;
/// How often purchases are looked for that nobody told of.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often the lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(4);
/// How often servers that are being installed are looked at.
const DEPLOYMENTS_EVERY: Duration = Duration::from_secs(10);
/// An attempt is sent so long at most: the rest of its time is for the clocks.
const SEND_FOR: Duration = Duration::from_secs(55);
/// A step that failed by a fault of ours is taken again after this, seconds.
const AGAIN_AFTER_SECS: i64 = 30;
/// Why a purchase ends that a lasting fault of ours stands in the way of.
const OURS: &str = "a fault of this server stands in its way";
/// How often an outcome is tried to be written down before it is left to be found again.
const WRITE_TRIES: u32 = 4;

/// Starts the worker.
pub fn start(app: &Arc<App>, stop: &CancellationToken, tracker: &TaskTracker) {
    tracker.spawn(run(Arc::clone(app), stop.clone(), tracker.clone()));
}

async fn run(app: Arc<App>, stop: CancellationToken, tracker: TaskTracker) {
    let running: Arc<Mutex<HashSet<Uuid>>> = Arc::default();
    let mut lease: Option<(Held, Instant)> = None;
    let mut renewed: Option<Instant> = None;
    let mut clocks = ClockPair::read(app.clock.now());
    let mut deployed = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = app.shared.purchases.notified() => {}
            () = sleep(LOOK_EVERY) => {}
        }
        if renewed.is_none_or(|at| at.elapsed() >= RENEW_EVERY) {
            let held = lease.map(|(held, _)| held);
            match renew(&app, held, &mut clocks).await {
                Ok(held) => lease = held.map(|held| (held, Instant::now())),
                Err(error) => tracing::debug!(%error, "the lease of purchases could not be renewed"),
            }
            renewed = Some(Instant::now());
        }
        let Some((held, at)) = lease else { continue };
        if at.elapsed() > RENEW_EVERY * 3 {
            lease = None;
            continue;
        }
        let due = match due(&app, held).await {
            Ok(due) => due,
            Err(error) => {
                tracing::debug!(%error, "purchases wait");
                continue;
            }
        };
        for purchase in due {
            let free = running.lock().len() < MAX_RUNNING;
            if free && running.lock().insert(purchase.id) {
                let (app, running) = (Arc::clone(&app), Arc::clone(&running));
                tracker.spawn(async move {
                    let id = purchase.id;
                    carry(&app, held, purchase).await;
                    running.lock().remove(&id);
                });
            }
        }
        if deployed.elapsed() >= DEPLOYMENTS_EVERY {
            deployed = Instant::now();
            let app = Arc::clone(&app);
            tracker.spawn(async move {
                if let Err(error) = deployments::look(&app, held).await {
                    tracing::debug!(%error, "new servers could not be looked at");
                }
            });
        }
    }
}

/// Renews the lease. When the clock was set since the last time, what was counted by it counts no more.
async fn renew(app: &App, held: Option<Held>, clocks: &mut ClockPair) -> Result<Option<Held>, Error> {
    let now = app.clock.now();
    if let Some(held) = held.filter(|_| clocks.has_jumped(now)) {
        tracing::warn!("the clock was set: purchases under way are waited for anew");
        begin_anew(app, held).await?;
    }
    *clocks = ClockPair::read(now);
    hold(app, LEASE).await
}

async fn due(app: &App, held: Held) -> Result<Vec<Purchase>, Error> {
    let (now, epoch) = (app.clock.now(), held.epoch());
    Ok(app
        .db
        .read(move |conn| Box::pin(async move { purchases::due(conn, now, epoch, BATCH).await }))
        .await?)
}

/// One pass: takes everything that is due one step further. Tells how many there were.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<usize, Error> {
    let Some(held) = hold(app, LEASE).await? else { return Ok(0) };
    let due = due(app, held).await?;
    let taken = due.len();
    join_all(due.into_iter().map(|purchase| carry(app, held, purchase))).await;
    deployments::look(app, held).await?;
    Ok(taken)
}

/// A step; when it fails by a fault of ours it is taken again later, and what lasts is given up.
async fn carry(app: &App, held: Held, purchase: Purchase) {
    let (id, before) = (purchase.id, purchase.clone());
    let done = AssertUnwindSafe(step(app, held, purchase)).catch_unwind().await;
    let Err(error) = done.unwrap_or_else(|_| Err(Error::internal("a step of a purchase panicked"))) else {
        return;
    };
    tracing::warn!(purchase.id = %id, %error, "a step of a purchase failed");
    if let Err(error) = after_fault(app, held, before, &error).await {
        tracing::debug!(purchase.id = %id, %error, "a purchase could not be put off");
    }
}

/// Whether an error may be gone the next time: the database's, not that of what is written.
const fn passes(error: &Error) -> bool {
    matches!(error, Error::Store(StoreError::Unavailable(_) | StoreError::QueueFull | StoreError::LostRace))
}

/// What follows a fault of ours: another try for a while, then the money back when nothing was ever sent, else a person.
async fn after_fault(app: &App, held: Held, before: Purchase, error: &Error) -> Result<(), Error> {
    let is_over = !passes(error) && app.clock.now() - before.since >= TRY_FOR;
    if !is_over {
        let later = held.write(app, move |tx| {
            Box::pin(async move {
                let until = tx.at + chrono::TimeDelta::seconds(AGAIN_AFTER_SECS);
                book::postpone_in(tx, &before, until).await
            })
        });
        return later.await.map(|_| ());
    }
    tracing::error!(purchase.id = %before.id, ?error, "a purchase is given up: a fault of this server lasts");
    let code = error.code();
    if before.status == Status::Paid.as_str() && before.attempts == 0 {
        let row = before.clone();
        let failed = held.write(app, move |tx| {
            Box::pin(async move { Ok(book::fail_in(tx, &row, code, OURS).await?.is_some()) })
        });
        match failed.await {
            Ok(failed) => {
                app.shared.metrics.purchases_failed.inc_by(u64::from(failed));
                return Ok(());
            }
            Err(error) if passes(&error) => return Err(error),
            // The same fault may stand in the way of giving the money back.
            Err(error) => tracing::warn!(purchase.id = %before.id, %error, "a purchase cannot be given back"),
        }
    }
    let escalated =
        held.write(app, move |tx| Box::pin(async move { book::escalate_in(tx, &before, code, OURS).await }));
    app.shared.metrics.purchases_escalated.inc_by(u64::from(escalated.await?));
    Ok(())
}

async fn step(app: &App, held: Held, purchase: Purchase) -> Result<(), Error> {
    let todo = progress(&purchase, held.epoch())?.todo(app.clock.now());
    if todo == Todo::Adopt {
        let adopted =
            held.write(app, move |tx| Box::pin(async move { adopt_in(tx, &purchase, held.epoch()).await }));
        return adopted.await.map(|_| ());
    }
    let item = Item::of(&purchase)?;
    match todo {
        Todo::Nothing | Todo::Adopt => Ok(()),
        Todo::Wait(until) => {
            let wait = held
                .write(app, move |tx| Box::pin(async move { book::postpone_in(tx, &purchase, until).await }));
            wait.await.map(|_| ())
        }
        Todo::Attempt => attempt(app, held, purchase, &item).await,
        Todo::Follow => {
            let report = act::follow(app, &purchase, &item).await;
            conclude(app, held, purchase, report).await
        }
        Todo::Look => {
            let report = find::look(app, &purchase, &item).await;
            conclude(app, held, purchase, report).await
        }
    }
}

async fn attempt(app: &App, held: Held, purchase: Purchase, item: &Item) -> Result<(), Error> {
    let mut ready = match act::prepare(app, &purchase, item).await {
        Ok(ready) => ready,
        Err(report) => return conclude(app, held, purchase, report).await,
    };
    if let Err(report) = bootstrap::complete(app, &purchase, item, &mut ready).await {
        return conclude(app, held, purchase, report).await;
    }
    // Measured before the deadline is written, so that it ends before what others read there.
    let until = Deadline::after(SEND_FOR);
    let begun =
        held.write(app, move |tx| Box::pin(async move { begin_in(tx, &purchase, held.epoch()).await }));
    let Some(executing) = begun.await? else { return Ok(()) };
    let report = act::send(app, &ready, until).await;
    conclude(app, held, executing, report).await
}

/// Writes an attempt down; `None` when somebody else has changed the purchase, or it is to be bought no more.
async fn begin_in(tx: &mut Tx, before: &Purchase, epoch: i64) -> Result<Option<Purchase>, Error> {
    if let Some((code, why)) = book::objection(tx, before).await? {
        book::fail_in(tx, before, code, why).await?;
        return Ok(None);
    }
    let deadline = tx.at + ATTEMPT;
    let mut after = before.clone();
    Status::Executing.as_str().clone_into(&mut after.status);
    after.attempts += 1;
    after.attempt = otonix_sdk::clock::new_id();
    after.deadline = Some(deadline);
    after.vendor_ref = None;
    after.absent_since = None;
    after.epoch = epoch;
    after.next_at = deadline + SETTLING;
    Ok(purchases::change(tx, before, &after).await?.then_some(after))
}

/// Takes over what was counted by another clock. What was sent was sent before now, so its time ends before the one
/// that is written here; looks begin after that. After a day one look decides.
async fn adopt_in(tx: &mut Tx, before: &Purchase, epoch: i64) -> Result<bool, Error> {
    let is_late = tx.at - before.since >= DECIDE_WITHIN;
    let deadline = Some(tx.at + ATTEMPT).filter(|_| !is_late);
    let mut after = before.clone();
    after.deadline = deadline;
    after.absent_since = None;
    after.epoch = epoch;
    after.next_at = deadline.map_or(tx.at, |deadline| deadline + SETTLING);
    Ok(purchases::change(tx, before, &after).await?)
}

/// Writes down what became known. What cannot be written is found again by a look.
async fn conclude(app: &App, held: Held, before: Purchase, report: Report) -> Result<(), Error> {
    let next = progress(&before, held.epoch())?.after(&report.news, app.clock.now());
    tracing::debug!(purchase.id = %before.id, status = before.status, news = ?report.news, next = ?next,
        detail = report.detail, "a purchase goes on");
    let report = Arc::new(report);
    let mut tries = 0;
    loop {
        let (before, report) = (before.clone(), Arc::clone(&report));
        let done = held.write(app, move |tx| {
            Box::pin(async move { write(tx, &before, next, &report, held.epoch()).await })
        });
        match done.await {
            Ok(()) => break,
            Err(error) if passes(&error) && tries < WRITE_TRIES => {
                tries += 1;
                tracing::debug!(%error, "what became of a purchase is written again");
                sleep(Duration::from_millis(200) * tries).await;
            }
            Err(error) => return Err(error),
        }
    }
    match next {
        Next::Deliver => _ = app.shared.metrics.purchases_delivered.inc(),
        Next::Fail => _ = app.shared.metrics.purchases_failed.inc(),
        Next::Escalate => _ = app.shared.metrics.purchases_escalated.inc(),
        Next::Stay { next_at, .. } if next_at <= app.clock.now() => app.shared.purchases.notify_one(),
        Next::Stay { .. } => {}
    }
    Ok(())
}

async fn write(tx: &mut Tx, before: &Purchase, next: Next, report: &Report, epoch: i64) -> Result<(), Error> {
    match next {
        Next::Deliver => {
            let brought = report.brought.as_ref();
            let brought = brought.ok_or_else(|| Error::internal("a purchase is present without goods"))?;
            book::deliver_in(tx, before, brought).await?;
        }
        Next::Fail => {
            book::fail_in(tx, before, report.code, &report.detail).await?;
        }
        Next::Escalate => {
            book::escalate_in(tx, before, report.code, &report.detail).await?;
        }
        Next::Stay { status, attempts, absent_since, next_at } => {
            let mut after = before.clone();
            status.as_str().clone_into(&mut after.status);
            after.attempts = attempts;
            after.absent_since = absent_since;
            after.epoch = epoch;
            after.next_at = next_at;
            if before.status == Status::Paid.as_str() {
                // Of an attempt long ago, perhaps by another clock.
                after.deadline = None;
            }
            after.failure_code = Some(report.code.as_str().to_owned()).filter(|_| !report.detail.is_empty());
            after.failure = Some(report.detail.clone()).filter(|detail| !detail.is_empty());
            if let Some(vendor_ref) = &report.vendor_ref {
                after.vendor_ref = Some(vendor_ref.clone());
            }
            purchases::change(tx, before, &after).await?;
        }
    }
    Ok(())
}
