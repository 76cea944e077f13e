//! Marks agents inactive that have been silent for three effective intervals.
//!
//! Silence counts only while the server could hear: from its start, from the return of the database, and from a jump
//! of the clock on. A pass looks at a bounded number of agents and the next one goes on where it stopped.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use otonix_sdk::standing::AgentStatus;
use tokio::time::Instant;
use uuid::Uuid;

use crate::app::App;
use crate::error::Error;
use crate::store::actions::{self, ActionRow};
use crate::store::agents::{self, Heard};
use crate::store::writer::{Target, Tx};
use crate::worker::{ClockPair, Held, hold};

/// Agents of one page, and pages of one pass.
const PAGE: i64 = 1_000;
const PAGES: usize = 20;
/// Intervals of silence.
const MISSED: i64 = 3;
/// Passes come every few seconds; after such a gap the process was frozen, or its database said nothing. Less than
/// two of the shortest intervals, so that a beat lost in it is never the third.
const STALLED: Duration = Duration::from_secs(8);

/// The sweep, and what it knows of the clock.
#[derive(Debug, Default)]
pub struct Liveness {
    next: Uuid,
    clock: Option<ClockPair>,
    /// When the last pass had its answer.
    passed: Option<Instant>,
}

impl Liveness {
    /// One pass, if this replica has the lease.
    ///
    /// # Errors
    /// 503 without database.
    pub async fn run_once(&mut self, app: &App) -> Result<(), Error> {
        let held = hold(app, "liveness").await?;
        let now = app.clock.now();
        if self.passed.is_some_and(|passed| passed.elapsed() > STALLED) {
            tracing::warn!("this process or its database stood still; silence is counted anew");
            app.shared.hear_from_now();
        }
        self.passed = Some(Instant::now());
        if self.clock.is_some_and(|clock| clock.has_jumped(now)) {
            tracing::warn!("the clock jumped; silence is counted anew");
            app.shared.hear_from_now();
        }
        self.clock = Some(ClockPair::read(now));
        let Some(held) = held else { return Ok(()) };
        self.sweep(app, held, now).await
    }

    /// Looks at the next agents.
    ///
    /// # Errors
    /// 503 without database.
    pub async fn sweep(&mut self, app: &App, held: Held, now: DateTime<Utc>) -> Result<(), Error> {
        for _ in 0..PAGES {
            let after = self.next;
            let page = app
                .db
                .read(move |conn| Box::pin(async move { agents::active_after(conn, after, PAGE).await }))
                .await?;
            let full = i64::try_from(page.len()).unwrap_or(0) == PAGE;
            self.next = page.last().filter(|_| full).map_or(Uuid::nil(), |last| last.id);
            let since = app.shared.hearing_since();
            let silent: Vec<Uuid> = page
                .into_iter()
                .filter(|heard| {
                    is_silent(heard, app.shared.fleet.cached(heard.id).and_then(|s| s.heard()), since, now)
                })
                .map(|heard| heard.id)
                .collect();
            if !silent.is_empty() {
                mark(app, held, silent).await?;
            }
            if !full {
                break;
            }
        }
        Ok(())
    }
}

/// Whether an agent has been silent too long: counted from when it was last heard, but never from before `since`.
fn is_silent(heard: &Heard, here: Option<DateTime<Utc>>, since: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    let last = heard.last_heartbeat.unwrap_or(heard.created_at).max(here.unwrap_or(DateTime::UNIX_EPOCH));
    // A time from before a clock was set back says nothing.
    let last = if last > now { since } else { last.max(since) };
    let allowed =
        TimeDelta::try_seconds(heard.interval_secs.saturating_mul(MISSED)).unwrap_or(TimeDelta::MAX);
    now - last > allowed
}

async fn mark(app: &App, held: Held, silent: Vec<Uuid>) -> Result<(), Error> {
    let replica = app.replica;
    let marked =
        app.writer.apply(Target::Alone, move |tx| Box::pin(mark_in(tx, held, replica, silent))).await?;
    app.shared.metrics.marked_inactive.inc_by(marked);
    Ok(())
}

async fn mark_in(tx: &mut Tx, held: Held, replica: Uuid, silent: Vec<Uuid>) -> Result<u64, Error> {
    held.check(tx, replica).await?;
    let mut changes = Vec::new();
    let mut lines = Vec::new();
    for mut state in agents::lock_states(tx, &silent).await? {
        let heard_meanwhile = state.last_heartbeat.is_some_and(|last| {
            let allowed = TimeDelta::seconds(i64::from(state.interval) * MISSED);
            last <= tx.at && tx.at - last <= allowed
        });
        if state.status != AgentStatus::Active || heard_meanwhile {
            continue;
        }
        state.status = AgentStatus::Inactive;
        let details = format!("no heartbeat for {MISSED} intervals of {} s", state.interval);
        lines.push(ActionRow::by_server(&state, "system", "agent is inactive", Some(details), tx.at));
        changes.push(state);
    }
    actions::insert(tx, &lines).await?;
    agents::write_states(tx, &mut changes).await?;
    Ok(changes.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_counted_from_when_the_server_could_hear() {
        let at = |secs: i64| DateTime::from_timestamp(1_000_000 + secs, 0).expect("a time");
        let heard = |last: Option<i64>| Heard {
            id: Uuid::nil(),
            last_heartbeat: last.map(at),
            created_at: at(0),
            interval_secs: 60,
        };
        let long_ago = at(-1_000_000);
        for (last, here, since, now, silent) in [
            (Some(0), None, long_ago, 180, false),
            (Some(0), None, long_ago, 181, true),
            (None, None, long_ago, 181, true),
            (Some(0), Some(10), long_ago, 181, false),
            // The server was away until 100.
            (Some(0), None, at(100), 280, false),
            (Some(0), None, at(100), 281, true),
            // The clock was set back by a day after the beat.
            (Some(86_400), None, at(0), 180, false),
            (Some(86_400), None, at(0), 181, true),
        ] {
            assert_eq!(
                is_silent(&heard(last), here.map(at), since, at(now)),
                silent,
                "{last:?} {here:?} {now}"
            );
        }
    }
}
