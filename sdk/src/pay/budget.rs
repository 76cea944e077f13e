//! What was spent in a window of time: pure sums over what the journal knows.

use chrono::{DateTime, TimeDelta, Utc};

use super::policy::Asker;
use crate::money::MicroUsd;

/// One amount that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spent {
    /// When it was reserved.
    pub at: DateTime<Utc>,
    /// How much.
    pub amount: MicroUsd,
    /// For whom; money that moved without an intent counts as the agent's.
    pub asker: Asker,
    /// It could still move, or has not been seen to: it counts whenever it was signed.
    pub open: bool,
}

/// Sums of a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Payments in the last hour.
    pub hour: MicroUsd,
    /// Payments in the last day.
    pub day: MicroUsd,
    /// Top-ups in the last day.
    pub topups_day: MicroUsd,
    /// Signed, not yet known to have moved or to never move.
    pub outstanding: MicroUsd,
}

/// Adds up. What is dated in the future (the clock was set back) counts as now.
pub fn totals(spent: impl IntoIterator<Item = Spent>, now: DateTime<Utc>) -> Totals {
    let mut sums = Totals::default();
    for entry in spent {
        let within = |window: TimeDelta| entry.open || now - entry.at < window;
        if entry.open {
            sums.outstanding = sums.outstanding.saturating_add(entry.amount);
        }
        let hour = within(TimeDelta::hours(1));
        let day = within(TimeDelta::days(1));
        match entry.asker {
            Asker::Agent | Asker::Owner => {
                if hour {
                    sums.hour = sums.hour.saturating_add(entry.amount);
                }
                if day {
                    sums.day = sums.day.saturating_add(entry.amount);
                }
            }
            Asker::Topup if day => sums.topups_day = sums.topups_day.saturating_add(entry.amount),
            Asker::Topup => {}
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spent(secs_ago: i64, micros: i64, asker: Asker, open: bool) -> Spent {
        let at = DateTime::UNIX_EPOCH + TimeDelta::days(30) - TimeDelta::seconds(secs_ago);
        Spent { at, amount: MicroUsd::from_micros(micros), asker, open }
    }

    fn now() -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(30)
    }

    #[test]
    fn windows_end_exactly() {
        let sums = totals(
            [
                spent(0, 1, Asker::Agent, false),
                spent(3599, 10, Asker::Owner, false),
                spent(3600, 100, Asker::Agent, false),
                spent(86_399, 1_000, Asker::Agent, false),
                spent(86_400, 10_000, Asker::Agent, false),
                spent(86_399, 5, Asker::Topup, false),
                spent(86_400, 7, Asker::Topup, false),
                spent(-60, 100_000, Asker::Agent, false),
            ],
            now(),
        );
        assert_eq!((sums.hour.micros(), sums.day.micros()), (100_011, 101_111));
        assert_eq!((sums.topups_day.micros(), sums.outstanding.micros()), (5, 0));
    }

    #[test]
    fn what_may_still_move_counts_whenever_it_was_signed() {
        let sums =
            totals([spent(1_000_000, 3, Asker::Agent, true), spent(1_000_000, 4, Asker::Topup, true)], now());
        assert_eq!((sums.hour.micros(), sums.day.micros()), (3, 3));
        assert_eq!((sums.topups_day.micros(), sums.outstanding.micros()), (4, 7));
    }

    proptest! {
        #[test]
        fn an_hour_is_never_more_than_a_day(list in prop::collection::vec((0i64..200_000, 0i64..1_000, any::<bool>()), 0..40)) {
            let sums = totals(list.iter().map(|(ago, micros, open)| spent(*ago, *micros, Asker::Agent, *open)), now());
            prop_assert!(sums.hour <= sums.day);
            prop_assert!(sums.outstanding <= sums.day);
        }
    }
}
