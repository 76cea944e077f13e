//! Carries purchases out: one replica at a time takes each to its next state. An attempt is written down before it is
//! sent, what became known is written down from the state it was asked in, and after a crash the vendor is looked at.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use otonix_sdk::error::ErrorCode;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::service::purchases::act::{self, Report};
use crate::service::purchases::item::Item;
use crate::service::purchases::machine::{ATTEMPT, Next, SETTLING, Status, Todo};
use crate::service::purchases::{book, bootstrap, deployment, find, progress};
use crate::store::orders;
use crate::store::purchases::{self, Purchase};
use crate::store::writer::{Target, Tx};
use crate::upstream::providers::Deadline;
use crate::worker::{Held, hold};

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
    let mut deployments = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = app.shared.purchases.notified() => {}
            () = sleep(LOOK_EVERY) => {}
        }
        if renewed.is_none_or(|at| at.elapsed() >= RENEW_EVERY) {
            match hold(&app, LEASE).await {
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
        let due = match due(&app).await {
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
        if deployments.elapsed() >= DEPLOYMENTS_EVERY {
            deployments = Instant::now();
            let app = Arc::clone(&app);
            tracker.spawn(async move {
                if let Err(error) = deployment::look(&app).await {
                    tracing::debug!(%error, "new servers could not be looked at");
                }
            });
        }
    }
}

async fn due(app: &App) -> Result<Vec<Purchase>, Error> {
    let now = app.clock.now();
    Ok(app.db.read(move |conn| Box::pin(async move { purchases::due(conn, now, BATCH).await })).await?)
}

/// One pass: takes everything that is due one step further. Tells how many there were.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<usize, Error> {
    let Some(held) = hold(app, LEASE).await? else { return Ok(0) };
    let due = due(app).await?;
    let taken = due.len();
    join_all(due.into_iter().map(|purchase| carry(app, held, purchase))).await;
    deployment::look(app).await?;
    Ok(taken)
}

/// A step; when it fails by a fault of ours it is taken again later.
async fn carry(app: &App, held: Held, purchase: Purchase) {
    let (id, before) = (purchase.id, purchase.clone());
    let Err(error) = step(app, held, purchase).await else { return };
    tracing::warn!(purchase.id = %id, %error, "a step of a purchase failed");
    let later = app.writer.apply(Target::Shared, move |tx| {
        Box::pin(async move {
            let until = tx.at + chrono::TimeDelta::seconds(AGAIN_AFTER_SECS);
            book::postpone_in(tx, &before, until).await
        })
    });
    if let Err(error) = later.await {
        tracing::debug!(purchase.id = %id, %error, "a purchase could not be put off");
    }
}

async fn step(app: &App, held: Held, purchase: Purchase) -> Result<(), Error> {
    let item = Item::of(&purchase)?;
    match progress(&purchase)?.todo(app.clock.now()) {
        Todo::Nothing => Ok(()),
        Todo::Wait(until) => {
            let wait = app.writer.apply(Target::Shared, move |tx| {
                Box::pin(async move { book::postpone_in(tx, &purchase, until).await })
            });
            wait.await.map(|_| ())
        }
        Todo::Attempt => attempt(app, held, purchase, &item).await,
        Todo::Follow => {
            let report = act::follow(app, &purchase, &item).await;
            conclude(app, purchase, report).await
        }
        Todo::Look => {
            let report = find::look(app, &purchase, &item).await;
            conclude(app, purchase, report).await
        }
    }
}

async fn attempt(app: &App, held: Held, purchase: Purchase, item: &Item) -> Result<(), Error> {
    let mut ready = match act::prepare(app, &purchase, item).await {
        Ok(ready) => ready,
        Err(report) => return conclude(app, purchase, report).await,
    };
    if let Err(report) = bootstrap::complete(app, &purchase, item, &mut ready).await {
        return conclude(app, purchase, report).await;
    }
    // Measured before the deadline is written, so that it ends before what others read there.
    let until = Deadline::after(SEND_FOR);
    let replica = app.replica;
    let begun = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move {
            held.check(tx, replica).await?;
            begin_in(tx, &purchase).await
        })
    });
    let Some(executing) = begun.await? else { return Ok(()) };
    let report = act::send(app, &ready, until).await;
    conclude(app, executing, report).await
}

/// Writes an attempt down; `None` when somebody else has changed the purchase.
async fn begin_in(tx: &mut Tx, before: &Purchase) -> Result<Option<Purchase>, Error> {
    // Nothing is sent for a payment that has left the chain meanwhile.
    if let Some(sale) = before.sale
        && orders::payer(&mut tx.conn, sale).await?.is_some_and(|payer| payer.status == "reversed")
    {
        book::fail_in(tx, before, ErrorCode::PaymentFailed, "its payment left the chain").await?;
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
    after.next_at = deadline + SETTLING;
    Ok(purchases::change(tx, before, &after).await?.then_some(after))
}

/// Writes down what became known. What cannot be written is found again by a look.
async fn conclude(app: &App, before: Purchase, report: Report) -> Result<(), Error> {
    let next = progress(&before)?.after(&report.news, app.clock.now());
    tracing::debug!(purchase.id = %before.id, status = before.status, news = ?report.news, next = ?next,
        detail = report.detail, "a purchase goes on");
    let report = Arc::new(report);
    let mut tries = 0;
    loop {
        let (before, report) = (before.clone(), Arc::clone(&report));
        let done = app
            .writer
            .apply(Target::Alone, move |tx| Box::pin(async move { write(tx, &before, next, &report).await }));
        match done.await {
            Ok(()) => break,
            Err(Error::Store(error)) if tries < WRITE_TRIES => {
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

async fn write(tx: &mut Tx, before: &Purchase, next: Next, report: &Report) -> Result<(), Error> {
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
            after.next_at = next_at;
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
