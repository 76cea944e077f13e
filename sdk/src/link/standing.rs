//! Where the agent stands as far as this machine knows: the server's last word less what was spent since.
//!
//! Own spending may lower the tier; silence never does, and an offline machine never ends a grace.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::api::events::Standing;
use crate::link::files;
use crate::money::MicroUsd;
use crate::standing::{AgentStatus, SurvivalTier, Thresholds, standing};

/// The file in the state directory.
pub(crate) const FILE: &str = "standing.json";

/// The last known standing less local spending since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LocalStanding {
    /// The tier by the balance below.
    pub survival_tier: SurvivalTier,
    /// As the server last said.
    pub status: AgentStatus,
    /// The server's last figure less what was spent here and is not yet in it.
    pub credits: MicroUsd,
    /// Credits were given at least once.
    pub funded: bool,
    /// Until when an agent that was never funded lives.
    pub grace_until: Option<DateTime<Utc>>,
    /// Effective, seconds.
    pub heartbeat_interval: u32,
    /// Ended for good by the operator or the owner.
    pub killed: bool,
    /// False until the server has been heard once in the life of the state directory.
    pub known: bool,
    /// When the server last said it.
    pub as_of: Option<DateTime<Utc>>,
    /// Where the tiers begin, as the server last said.
    pub thresholds: Thresholds,
}

/// What the server said, as it is kept on disk.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Heard {
    standing: Standing,
    thresholds: Thresholds,
    as_of: DateTime<Utc>,
    /// Spending that the server has stored, but had not yet counted when it said this.
    #[serde(default)]
    uncounted: MicroUsd,
}

impl Heard {
    /// Of an agent of which the server says no more than that it has ended.
    fn of_none(heartbeat_interval: u32, thresholds: Thresholds, as_of: DateTime<Utc>) -> Self {
        let standing = Standing {
            survival_tier: SurvivalTier::Terminated,
            status: AgentStatus::Terminated,
            credits: MicroUsd::ZERO,
            funded: false,
            grace_until: None,
            heartbeat_interval,
            killed: true,
        };
        Self { standing, thresholds, as_of, uncounted: MicroUsd::ZERO }
    }
}

#[derive(Debug)]
struct Books {
    heard: Option<Heard>,
    thresholds: Thresholds,
    interval: u32,
    /// Beats are wanted at least this often, seconds; what the server says may be more often still.
    max_interval: Option<u32>,
    /// Spending that is not acknowledged.
    unacked: u64,
}

/// Keeps the standing; tells of changes.
#[derive(Debug)]
pub(crate) struct Keeper {
    books: Mutex<Books>,
    path: PathBuf,
    current: watch::Sender<LocalStanding>,
    dirty: Notify,
    /// When the server had said what was found on disk.
    kept: Option<DateTime<Utc>>,
}

/// Writes down where an agent stands, before its first session: what its registration said.
///
/// # Errors
/// When the state directory cannot be written.
pub fn store(
    state_dir: &Path,
    standing: &Standing,
    thresholds: Thresholds,
    now: DateTime<Utc>,
) -> io::Result<()> {
    let heard = Heard { standing: *standing, thresholds, as_of: now, uncounted: MicroUsd::ZERO };
    write(&state_dir.join(FILE), &heard)
}

fn write(path: &Path, heard: &Heard) -> io::Result<()> {
    files::replace(path, &serde_json::to_vec_pretty(heard)?)
}

fn micros(amount: u64) -> MicroUsd {
    MicroUsd::from_micros(i64::try_from(amount).unwrap_or(i64::MAX))
}

impl Books {
    fn at_most(&self, interval: u32) -> u32 {
        self.max_interval.map_or(interval, |max| max.min(interval))
    }

    fn local(&self) -> LocalStanding {
        let Some(heard) = &self.heard else {
            return LocalStanding {
                survival_tier: SurvivalTier::Critical,
                status: AgentStatus::Active,
                credits: MicroUsd::ZERO,
                funded: false,
                grace_until: None,
                heartbeat_interval: self.at_most(self.interval),
                killed: false,
                known: false,
                as_of: None,
                thresholds: self.thresholds,
            };
        };
        let said = heard.standing;
        let spent = micros(self.unacked).saturating_add(heard.uncounted);
        let credits = said.credits.saturating_sub(spent);
        // By the time of the server's word: only the server ends a grace.
        let by_balance = standing(credits, said.funded, said.grace_until, heard.as_of, &heard.thresholds);
        let survival_tier = match (said.killed, spent == MicroUsd::ZERO) {
            (true, _) => SurvivalTier::Terminated,
            (false, true) => said.survival_tier,
            (false, false) => said.survival_tier.min(by_balance),
        };
        let interval = if said.heartbeat_interval == 0 { self.interval } else { said.heartbeat_interval };
        LocalStanding {
            survival_tier,
            status: said.status,
            credits,
            funded: said.funded,
            grace_until: said.grace_until,
            heartbeat_interval: self.at_most(interval),
            killed: said.killed,
            known: true,
            as_of: Some(heard.as_of),
            thresholds: heard.thresholds,
        }
    }
}

impl Keeper {
    /// Goes on from disk; `unacked` is what the spool's events are thought to cost.
    pub(crate) fn open(state_dir: &Path, unacked: u64, interval: u32) -> Self {
        let path = state_dir.join(FILE);
        let heard = std::fs::read(&path).ok().and_then(|bytes| match serde_json::from_slice(&bytes) {
            Ok(heard) => Some(heard),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the kept standing cannot be read");
                None
            }
        });
        let thresholds = heard.map_or_else(Thresholds::default, |heard: Heard| heard.thresholds);
        let books = Books { heard, thresholds, interval, max_interval: None, unacked };
        let current = watch::Sender::new(books.local());
        let kept = heard.map(|heard| heard.as_of);
        Self { books: Mutex::new(books), path, current, dirty: Notify::new(), kept }
    }

    /// Whether the server has spoken in this life, or only in an earlier one.
    pub(crate) fn is_heard(&self) -> bool {
        self.current.borrow().as_of != self.kept
    }

    pub(crate) fn current(&self) -> LocalStanding {
        *self.current.borrow()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<LocalStanding> {
        self.current.subscribe()
    }

    /// Asks for beats at least this often. A rarer beat than the server's would be taken for silence.
    pub(crate) fn limit_interval(&self, max_secs: Option<u32>) {
        self.change(|books| books.max_interval = max_secs);
    }

    /// An event of this cost is being recorded.
    pub(crate) fn spend(&self, cost: u64) {
        if cost > 0 {
            self.change(|books| books.unacked = books.unacked.saturating_add(cost));
        }
    }

    /// The event was not recorded after all.
    pub(crate) fn unspend(&self, cost: u64) {
        if cost > 0 {
            self.change(|books| books.unacked = books.unacked.saturating_sub(cost));
        }
    }

    /// The server said where the agent stands. It acknowledges before it says so: what is acknowledged by now
    /// is counted in its figure, what is not is not.
    pub(crate) fn heard(&self, standing: Standing, thresholds: Option<Thresholds>, now: DateTime<Utc>) {
        self.change(|books| {
            if let Some(thresholds) = thresholds {
                books.thresholds = thresholds;
            }
            let thresholds = books.thresholds;
            books.heard = Some(Heard { standing, thresholds, as_of: now, uncounted: MicroUsd::ZERO });
        });
        self.dirty.notify_one();
    }

    /// Events of this cost were acknowledged: the server's next word counts them.
    pub(crate) fn acked(&self, cost: u64) {
        if cost == 0 {
            return;
        }
        self.change(|books| {
            books.unacked = books.unacked.saturating_sub(cost);
            if let Some(heard) = &mut books.heard {
                heard.uncounted = heard.uncounted.saturating_add(micros(cost));
            }
        });
        self.dirty.notify_one();
    }

    /// Nothing waits any more: what damage may have left over is dropped.
    pub(crate) fn settled(&self) {
        self.change(|books| books.unacked = 0);
    }

    /// The agent was ended for good, as the server says.
    pub(crate) fn killed(&self, now: DateTime<Utc>) {
        self.change(|books| {
            let (interval, thresholds) = (books.interval, books.thresholds);
            let heard = books.heard.get_or_insert_with(|| Heard::of_none(interval, thresholds, now));
            heard.standing.killed = true;
            heard.standing.status = AgentStatus::Terminated;
        });
        self.dirty.notify_one();
    }

    /// Waits until there is something to write down.
    pub(crate) async fn dirty(&self) {
        self.dirty.notified().await;
    }

    /// Writes down what the server said.
    pub(crate) fn persist(&self) {
        let Some(heard) = self.lock().heard else { return };
        if let Err(error) = write(&self.path, &heard) {
            tracing::warn!(%error, path = %self.path.display(), "failed to keep the standing");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Books)) {
        let mut books = self.lock();
        change(&mut books);
        let local = books.local();
        self.current.send_if_modified(|current| {
            let changed = *current != local;
            *current = local;
            changed
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

    fn said(usdc: i32) -> Standing {
        let credits = MicroUsd::from_usdc(usdc);
        Standing {
            survival_tier: Thresholds::default().tier_of(credits),
            status: AgentStatus::Active,
            credits,
            funded: true,
            grace_until: None,
            heartbeat_interval: 60,
            killed: false,
        }
    }

    fn keeper() -> (tempfile::TempDir, Keeper) {
        let dir = tempfile::tempdir().expect("a directory");
        let keeper = Keeper::open(dir.path(), 0, 30);
        (dir, keeper)
    }

    fn credits(keeper: &Keeper) -> i64 {
        keeper.current().credits.micros() / 1_000_000
    }

    #[test]
    fn nothing_known_is_not_zero() {
        let (_dir, keeper) = keeper();
        keeper.spend(5_000_000);
        let local = keeper.current();
        assert_eq!((local.known, local.survival_tier), (false, SurvivalTier::Critical));
        assert_eq!(local.heartbeat_interval, 30);
    }

    #[test]
    fn spending_counts_once_before_and_after_the_server_counts_it() {
        let (_dir, keeper) = keeper();
        keeper.heard(said(60), None, NOW);
        keeper.spend(15_000_000);
        assert_eq!((credits(&keeper), keeper.current().survival_tier), (45, SurvivalTier::Conservation));
        keeper.acked(15_000_000);
        assert_eq!(credits(&keeper), 45);
        keeper.spend(5_000_000);
        keeper.heard(said(45), None, NOW);
        assert_eq!(credits(&keeper), 40);
        keeper.acked(5_000_000);
        assert_eq!(credits(&keeper), 40);
        keeper.heard(said(40), None, NOW);
        assert_eq!(credits(&keeper), 40);
    }

    #[test]
    fn the_more_frequent_beat_wins() {
        let (_dir, keeper) = keeper();
        keeper.heard(said(60), None, NOW);
        keeper.limit_interval(Some(20));
        assert_eq!(keeper.current().heartbeat_interval, 20);
        keeper.limit_interval(Some(600));
        assert_eq!(keeper.current().heartbeat_interval, 60);
        keeper.limit_interval(None);
        assert_eq!(keeper.current().heartbeat_interval, 60);
    }

    #[test]
    fn own_spending_lowers_the_tier_and_a_refused_record_gives_it_back() {
        let (_dir, keeper) = keeper();
        keeper.heard(said(2), None, NOW);
        keeper.spend(1_500_000);
        assert_eq!(keeper.current().survival_tier, SurvivalTier::Terminated);
        keeper.unspend(1_500_000);
        assert_eq!(keeper.current().survival_tier, SurvivalTier::Critical);
    }

    #[test]
    fn an_offline_machine_does_not_end_a_grace() {
        let (_dir, keeper) = keeper();
        let unfunded = Standing {
            credits: MicroUsd::ZERO,
            funded: false,
            grace_until: Some(NOW + TimeDelta::seconds(1)),
            survival_tier: SurvivalTier::Critical,
            ..said(0)
        };
        keeper.heard(unfunded, None, NOW);
        keeper.spend(0);
        assert_eq!(keeper.current().survival_tier, SurvivalTier::Critical);
    }

    #[test]
    fn an_end_for_good_is_remembered_and_taken_back_only_by_the_server() {
        let (dir, keeper) = keeper();
        keeper.killed(NOW);
        keeper.persist();
        let again = Keeper::open(dir.path(), 0, 30).current();
        assert!(again.killed && again.known && again.survival_tier == SurvivalTier::Terminated);
        keeper.heard(said(60), None, NOW);
        assert!(!keeper.current().killed);
    }

    #[test]
    fn a_restart_goes_on_from_disk() {
        let (dir, keeper) = keeper();
        let tiers = "90/20/2".parse().expect("thresholds");
        keeper.heard(said(60), Some(tiers), NOW);
        keeper.spend(3_000_000);
        keeper.acked(3_000_000);
        keeper.persist();
        let again = Keeper::open(dir.path(), 7_000_000, 30);
        assert_eq!(credits(&again), 50);
        assert_eq!((again.current().thresholds, again.current().known), (tiers, true));
    }
}
