//! Several replicas on one PostgreSQL: hears what the others commit, and looks for what was not heard.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use otonix_sdk::ids::KeyId;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::store::replicas::{Listener, beat};
use crate::store::writer::Notice;
use crate::store::{commands, keys};
use crate::worker::{ClockPair, every};

/// How often other replicas' work is looked for, besides being heard of.
const POLL: Duration = Duration::from_millis(500);
/// Cached agents that one poll reads again.
const REFRESHED: usize = 2_000;
/// A revocation is looked for this long after its time, since clocks differ.
const OVERLAP_SECS: i64 = 30;
/// Agents with waiting commands of one poll.
const MAX_WAITING: i64 = 5_000;

/// Starts hearing and looking.
pub fn start(app: &Arc<App>, stop: &CancellationToken, tracker: &TaskTracker) {
    tracker.spawn(stale(Arc::clone(app), stop.clone()));
    if !app.db.is_postgres() {
        return;
    }
    tracker.spawn(listen(Arc::clone(app), stop.clone()));
    let state = Arc::new(tokio::sync::Mutex::new(Poll::default()));
    tracker.spawn(every(Arc::clone(app), "peers", POLL, stop.clone(), move |app| {
        let state = Arc::clone(&state);
        async move { state.lock().await.run_once(&app).await }
    }));
}

/// Reads agents again whose rows changed without telling the new state.
async fn stale(app: Arc<App>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = app.shared.stale_wake.notified() => {}
        }
        let ids = std::mem::take(&mut *app.shared.stale.lock());
        if let Err(error) = refresh(&app, &ids).await {
            tracing::debug!(%error, "changed agents could not be read again");
            app.shared.stale.lock().extend(ids);
            tokio::time::sleep(POLL).await;
            app.shared.stale_wake.notify_one();
        }
    }
}

async fn refresh(app: &App, ids: &[Uuid]) -> Result<(), Error> {
    let states = app.shared.fleet.refresh(&app.db, ids).await?;
    app.shared.learn(&states, &[]);
    Ok(())
}

async fn listen(app: Arc<App>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        let heard = async {
            let Some(mut listener) = Listener::open(&app.db).await? else { return Ok(()) };
            // What was said while nobody listened is read again.
            app.shared.keys.forget();
            loop {
                hear(&app, listener.next().await?);
            }
        };
        let ended: Result<(), crate::store::StoreError> = tokio::select! {
            () = stop.cancelled() => return,
            ended = heard => ended,
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "listening to other replicas was interrupted");
        }
        tokio::time::sleep(POLL).await;
    }
}

fn hear(app: &App, notices: Vec<Notice>) {
    app.shared.learn(&[], &notices);
}

#[derive(Default)]
struct Poll {
    since: Option<DateTime<Utc>>,
    revoked: HashSet<Uuid>,
    refreshed: usize,
    clocks: Option<(ClockPair, DateTime<Utc>)>,
}

impl Poll {
    async fn run_once(&mut self, app: &App) -> Result<(), Error> {
        let replica = app.replica;
        let (database, others) =
            app.writer.apply_beats(move |tx| Box::pin(async move { Ok(beat(tx, replica).await?) })).await?;
        self.watch_clock(app, database);
        app.shared.set_peers(usize::try_from(others).unwrap_or(0));
        if others == 0 {
            return Ok(());
        }
        self.revocations(app).await?;
        let now = app.clock.now();
        let waiting = app
            .db
            .read(move |conn| Box::pin(async move { commands::waiting(conn, now, MAX_WAITING).await }))
            .await?;
        for agent in waiting {
            app.shared.links.command(agent);
        }
        self.standings(app).await
    }

    /// Silence is counted anew when this replica's clock has jumped against the database's.
    fn watch_clock(&mut self, app: &App, database: DateTime<Utc>) {
        let now = app.clock.now();
        if let Some((ours, database_before)) = self.clocks
            && (ours.has_jumped(now) || ours.with_wall(database_before).has_jumped(database))
        {
            tracing::warn!("a clock jumped; silence is counted anew");
            app.shared.hear_from_now();
        }
        self.clocks = Some((ClockPair::read(now), database));
    }

    async fn revocations(&mut self, app: &App) -> Result<(), Error> {
        let now = app.clock.now();
        let since = self.since.unwrap_or(now) - TimeDelta::seconds(OVERLAP_SECS);
        let found =
            app.db.read(move |conn| Box::pin(async move { keys::revoked_since(conn, since).await })).await?;
        for id in &found {
            if self.revoked.insert(*id) {
                app.shared.keys.revoke(KeyId::from(*id));
                app.shared.links.revoked(KeyId::from(*id));
            }
        }
        self.revoked.retain(|id| found.contains(id));
        self.since = Some(now);
        Ok(())
    }

    /// Reads some of the cached agents again, those with a session here first in every round.
    async fn standings(&mut self, app: &App) -> Result<(), Error> {
        let mut ids = app.shared.links.agents();
        if ids.len() < REFRESHED {
            ids.extend(app.shared.fleet.known());
        }
        if ids.is_empty() {
            return Ok(());
        }
        let start = self.refreshed % ids.len();
        ids.rotate_left(start);
        ids.truncate(REFRESHED);
        self.refreshed = start + ids.len();
        refresh(app, &ids).await
    }
}
