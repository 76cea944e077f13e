//! Reconcilers: each reads what is, compares it with what should be, and takes one idempotent step.
//!
//! What one replica must do alone runs under a lease with an epoch; the epoch is checked again in the transaction
//! that writes.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;
use crate::error::Error;
use crate::store::leases;
use crate::store::writer::{Target, Tx};

pub mod beats;
pub mod births;
pub mod calendar;
pub mod commands;
pub mod deployments;
pub mod deposits;
pub mod finality;
pub mod given_up;
pub mod grace;
pub mod healing;
pub mod lifetime;
pub mod liveness;
pub mod peers;
mod periods;
pub mod purchases;
pub mod recovery;
pub mod registrations;
pub mod renewal;
pub mod settler;
pub mod treasury;
pub mod zones;

/// How long a lease lasts; a replica that does not renew it loses the work.
const LEASE_SECS: i64 = 15;

/// A lease that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    name: &'static str,
    epoch: i64,
}

/// Takes or renews a lease; `None` while another replica has it.
///
/// # Errors
/// 503 without database.
pub async fn hold(app: &App, name: &'static str) -> Result<Option<Held>, Error> {
    let replica = app.replica;
    let epoch = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move { Ok(leases::hold(tx, name, replica, LEASE_SECS).await?) })
    });
    Ok(epoch.await?.map(|epoch| Held { name, epoch }))
}

/// Gives up a lease's epoch: what was counted under it is counted anew, by whoever holds it next.
///
/// # Errors
/// 503 without database.
pub async fn begin_anew(app: &App, held: Held) -> Result<(), Error> {
    let replica = app.replica;
    let given_up = app.writer.apply(Target::Alone, move |tx| {
        Box::pin(async move { Ok(leases::raise(tx, held.name, replica, held.epoch).await?) })
    });
    given_up.await
}

impl Held {
    /// It rises with every change of hands.
    pub const fn epoch(self) -> i64 {
        self.epoch
    }

    /// Refuses to go on when the lease was lost while something was asked of others.
    ///
    /// # Errors
    /// As [`Self::check`]; 503 without database.
    pub async fn still(self, app: &App) -> Result<(), Error> {
        let replica = app.replica;
        let asked =
            app.writer.apply(Target::Alone, move |tx| Box::pin(async move { self.check(tx, replica).await }));
        asked.await
    }

    /// Refuses to go on when the lease was lost.
    ///
    /// # Errors
    /// [`Error::Internal`] when another replica has it now.
    pub async fn check(self, tx: &mut Tx, replica: uuid::Uuid) -> Result<(), Error> {
        if leases::is_held(tx, self.name, replica, self.epoch).await? {
            return Ok(());
        }
        tracing::warn!(
            lease = self.name,
            epoch = self.epoch,
            "a lease was lost: what was to be written is not"
        );
        Err(Error::internal(format!("the lease {} was lost", self.name)))
    }

    /// Writes as the holder, or not at all: the lease is looked at in the transaction that writes.
    ///
    /// # Errors
    /// [`Error::Internal`] when another replica has it now; whatever `work` comes to.
    pub async fn write<T, F>(self, app: &App, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut Tx) -> BoxFuture<'c, Result<T, Error>> + Send + 'static,
    {
        let replica = app.replica;
        let done = app.writer.apply(Target::Alone, move |tx| {
            Box::pin(async move {
                self.check(tx, replica).await?;
                work(tx).await
            })
        });
        done.await
    }
}

/// Runs a step every so often until the stop; an error or a panic ends the step, not the worker.
async fn every<F, S>(app: Arc<App>, name: &'static str, period: Duration, stop: CancellationToken, step: S)
where
    S: Fn(Arc<App>) -> F,
    F: Future<Output = Result<(), Error>>,
{
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let done = std::panic::AssertUnwindSafe(step(Arc::clone(&app))).catch_unwind().await;
        match done {
            Ok(Ok(())) => failing = false,
            // A lasting trouble, such as a database that is away, is told once.
            Ok(Err(error)) if failing => {
                tracing::debug!(worker = name, %error, "a worker's step failed again")
            }
            Ok(Err(error)) => {
                failing = true;
                tracing::warn!(worker = name, %error, "a worker's step failed");
            }
            Err(_) => tracing::error!(worker = name, "a worker's step panicked"),
        }
    }
}

/// Starts all workers.
pub fn start(app: &Arc<App>, stop: &CancellationToken, tracker: &TaskTracker) {
    let second = Duration::from_secs(1);
    macro_rules! worker {
        ($name:literal, $period:expr, $step:path) => {
            tracker.spawn(every(Arc::clone(app), $name, $period, stop.clone(), |app| async move {
                $step(&app).await
            }))
        };
    }
    worker!("beats", second, beats::run_once);
    worker!("grace", second, grace::run_once);
    worker!("commands", second * 5, commands::run_once);
    worker!("healing", second * 10, healing::run_once);
    worker!("births", second * 10, births::run_once);
    if app.vendors.compute.is_some() {
        worker!("lifetime", second * 10, lifetime::run_once);
        worker!("recovery", second * 10, recovery::run_once);
    }
    if app.vendors.registrar.is_some() {
        worker!("registrations", second * 10, registrations::run_once);
    }
    if app.vendors.dns.is_some() {
        worker!("zones", second * 10, zones::run_once);
    }
    worker!("tidy", second * 60, calendar::tidy);
    let liveness = Arc::new(tokio::sync::Mutex::new(liveness::Liveness::default()));
    tracker.spawn(every(Arc::clone(app), "liveness", second * 3, stop.clone(), move |app| {
        let liveness = Arc::clone(&liveness);
        async move { liveness.lock().await.run_once(&app).await }
    }));
    peers::start(app, stop, tracker);
    settler::start(app, stop, tracker);
    purchases::start(app, stop, tracker);
    if app.payments.is_some() {
        worker!("chain", second, treasury::watch_chain);
        worker!("deposits", second * 3, deposits::run_once);
        let finality = Arc::new(tokio::sync::Mutex::new(finality::Finality::default()));
        tracker.spawn(every(Arc::clone(app), "finality", second * 3, stop.clone(), move |app| {
            let finality = Arc::clone(&finality);
            async move { finality.lock().await.run_once(&app).await }
        }));
        let given_up = Arc::new(tokio::sync::Mutex::new(given_up::GivenUp::default()));
        tracker.spawn(every(Arc::clone(app), "given-up", second * 3, stop.clone(), move |app| {
            let given_up = Arc::clone(&given_up);
            async move { given_up.lock().await.run_once(&app).await }
        }));
    }
}

/// A clock that moves this much against the steady one was set.
const MAX_JUMP: TimeDelta = TimeDelta::seconds(5);

/// Two clocks read together: one that can be set, one that cannot.
#[derive(Debug, Clone, Copy)]
pub struct ClockPair {
    wall: DateTime<Utc>,
    steady: Instant,
}

impl ClockPair {
    /// Reads both.
    pub fn read(wall: DateTime<Utc>) -> Self {
        Self { wall, steady: Instant::now() }
    }

    /// The same steady time beside another clock's.
    pub fn with_wall(self, wall: DateTime<Utc>) -> Self {
        Self { wall, ..self }
    }

    /// Whether the first was set since: it has moved otherwise than the steady one.
    pub fn has_jumped(self, wall: DateTime<Utc>) -> bool {
        let passed = TimeDelta::from_std(self.steady.elapsed()).unwrap_or(TimeDelta::MAX);
        ((wall - self.wall) - passed).abs() > MAX_JUMP
    }
}
