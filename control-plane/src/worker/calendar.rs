//! What has its time of the day: old rows go, small memories are tidied.

use std::sync::Arc;

use chrono::TimeDelta;
use tokio_cron_scheduler::{Job, JobScheduler};

use crate::app::App;
use crate::error::Error;
use crate::store::writer::Target;
use crate::store::{idempotency, presentations, retention, streams};
use crate::worker::{hold, renewal};

/// Rows of one step.
const PAGE: i64 = 5_000;
/// Steps of one night.
const MAX_STEPS: usize = 2_000;

/// Starts the calendar jobs; they end with the scheduler.
///
/// # Errors
/// When the scheduler cannot be started.
pub async fn start(app: &Arc<App>) -> anyhow::Result<JobScheduler> {
    let scheduler = JobScheduler::new().await?;
    let nightly = Arc::clone(app);
    scheduler
        .add(Job::new_async("0 17 3 * * *", move |_, _| {
            let app = Arc::clone(&nightly);
            Box::pin(async move {
                if let Err(error) = forget_old_rows(&app).await {
                    tracing::warn!(%error, "old rows could not be deleted");
                }
            })
        })?)
        .await?;
    let hourly = Arc::clone(app);
    scheduler
        .add(Job::new_async("0 29 * * * *", move |_, _| {
            let app = Arc::clone(&hourly);
            Box::pin(async move {
                if let Err(error) = forget_answers(&app).await {
                    tracing::warn!(%error, "stored answers could not be deleted");
                }
            })
        })?)
        .await?;
    if app.vendors.registrar.is_some() {
        let often = Arc::clone(app);
        // Each domain has its own turn, once a day and in its last days every hour.
        scheduler
            .add(Job::new_async("*/20 * * * * *", move |_, _| {
                let app = Arc::clone(&often);
                Box::pin(async move {
                    if let Err(error) = renewal::run_once(&app).await {
                        tracing::warn!(%error, "domains could not be renewed");
                    }
                })
            })?)
            .await?;
    }
    scheduler.start().await?;
    Ok(scheduler)
}

/// Deletes actions and usage records beyond the retention time, in small steps.
///
/// # Errors
/// 503 without database.
pub async fn forget_old_rows(app: &App) -> Result<(), Error> {
    let Some(days) = app.settings.retention_days else { return Ok(()) };
    let before = app.clock.now() - TimeDelta::days(i64::from(days));
    for _ in 0..MAX_STEPS {
        if hold(app, "retention").await?.is_none() {
            return Ok(());
        }
        let gone = app.writer.apply(Target::Shared, move |tx| {
            Box::pin(async move {
                let actions = retention::delete_actions(tx, before, PAGE).await?;
                let usage = retention::delete_usage(tx, before, PAGE).await?;
                let rejects = streams::forget_rejects(tx, before, PAGE).await?;
                Ok(actions + usage + rejects)
            })
        });
        if gone.await? == 0 {
            break;
        }
    }
    Ok(())
}

/// Deletes stored answers that are old enough, and for what public payments were shown, in small steps.
///
/// # Errors
/// 503 without database.
pub async fn forget_answers(app: &App) -> Result<(), Error> {
    let before = app.clock.now() - TimeDelta::from_std(idempotency::KEPT).unwrap_or(TimeDelta::MAX);
    for _ in 0..MAX_STEPS {
        if hold(app, "retention").await?.is_none() {
            return Ok(());
        }
        let gone = app.writer.apply(Target::Shared, move |tx| {
            Box::pin(async move {
                Ok(idempotency::forget(tx, before, PAGE).await?
                    + presentations::forget(tx, before, PAGE).await?)
            })
        });
        if gone.await? == 0 {
            break;
        }
    }
    Ok(())
}

/// Forgets limits of callers that have been quiet.
///
/// # Errors
/// None; a worker's step answers so.
pub async fn tidy(app: &App) -> Result<(), Error> {
    app.shared.keys.tidy();
    app.rate_limits.tidy();
    Ok(())
}
