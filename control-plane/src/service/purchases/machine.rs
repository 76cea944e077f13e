//! The states of a purchase and the only ways between them: pure, so that every boundary can be tried.
//!
//! Vendors know no idempotency keys. A request that buys is sent by one attempt, until its deadline, and never again
//! while it may have been carried out: whoever does not know looks, after the deadline and a while more, and only what
//! looks have shown for ten minutes counts as not done. Both are counted by one clock: who takes the work over, or whose
//! clock was set, waits again.

use chrono::{DateTime, TimeDelta, Utc};

/// How long an attempt may take, from the moment it is written down.
pub const ATTEMPT: TimeDelta = TimeDelta::seconds(60);
/// So long after an attempt's deadline nobody looks: what was sent may still be on its way.
pub const SETTLING: TimeDelta = TimeDelta::seconds(60);
/// So long must looks show that nothing was done.
pub const ABSENT_FOR: TimeDelta = TimeDelta::minutes(10);
/// Between two looks.
pub const LOOK_EVERY: TimeDelta = TimeDelta::seconds(30);
/// Between two looks at an order that the vendor is carrying out.
pub const FOLLOW_EVERY: TimeDelta = TimeDelta::seconds(2);
/// Between two tries while the vendor says that it did nothing.
pub const RETRY_EVERY: TimeDelta = TimeDelta::seconds(15);
/// So long a vendor is tried that cannot be reached; then the money goes back.
pub const TRY_FOR: TimeDelta = TimeDelta::minutes(30);
/// After this a person decides.
pub const DECIDE_WITHIN: TimeDelta = TimeDelta::hours(24);
/// Attempts whose outcome was unknown and that turned out not to have been carried out.
pub const MAX_ATTEMPTS: i64 = 3;

/// Where a purchase is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// The money is there, and nothing was sent.
    Paid,
    /// An attempt is under way, or the vendor has an order and carries it out.
    Executing,
    /// An attempt ended without an answer.
    Unknown,
    /// The goods are there.
    Delivered,
    /// They never will be; the money went back.
    Failed,
    /// A person decides.
    NeedsOperator,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 6] =
        [Self::Paid, Self::Executing, Self::Unknown, Self::Delivered, Self::Failed, Self::NeedsOperator];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paid => "paid",
            Self::Executing => "executing",
            Self::Unknown => "unknown",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::NeedsOperator => "needs_operator",
        }
    }

    /// Reads it.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether it has ended.
    pub const fn is_end(self) -> bool {
        matches!(self, Self::Delivered | Self::Failed)
    }
}

/// What is decided from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Where it is.
    pub status: Status,
    /// Attempts begun.
    pub attempts: i64,
    /// Until when the latest attempt may send.
    pub deadline: Option<DateTime<Utc>>,
    /// Whether the vendor has named its order.
    pub has_order: bool,
    /// Since when looks show that nothing was done.
    pub absent_since: Option<DateTime<Utc>>,
    /// From when on it is tried: since it was paid, or was sent on its way again by the operator.
    pub since: DateTime<Utc>,
    /// Whether another attempt may follow one that was not carried out.
    pub may_repeat: bool,
    /// Whether `deadline` and `absent_since` are of the clock that is asked now: written under the same lease.
    pub is_ours: bool,
}

/// What there is to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Todo {
    /// Nothing, ever.
    Nothing,
    /// Nothing before this time.
    Wait(DateTime<Utc>),
    /// Begin to count anew: its times are of another clock.
    Adopt,
    /// Write an attempt down and send it.
    Attempt,
    /// Ask after the order that the vendor has named.
    Follow,
    /// Look whether it was done.
    Look,
}

/// What became known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The vendor has taken the order and carries it out.
    Accepted,
    /// The goods are there.
    Present,
    /// Nothing was done, and the vendor will never do it.
    Refused,
    /// Nothing was done; it may be tried again.
    NotDone,
    /// Whether it was done is not known.
    Lost,
    /// A look has shown that it was not done.
    Absent,
    /// The vendor is carrying it out.
    UnderWay,
    /// A look was not answered.
    Silent,
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Deliver.
    Deliver,
    /// Fail, and give the money back.
    Fail,
    /// Put it there, and look again at that time.
    Stay {
        /// The status.
        status: Status,
        /// Attempts that count.
        attempts: i64,
        /// Since when looks show that nothing was done.
        absent_since: Option<DateTime<Utc>>,
        /// When it is looked at again.
        next_at: DateTime<Utc>,
    },
    /// Leave it to a person.
    Escalate,
}

impl Progress {
    /// What there is to do at a time.
    pub fn todo(&self, now: DateTime<Utc>) -> Todo {
        match self.status {
            Status::Delivered | Status::Failed | Status::NeedsOperator => Todo::Nothing,
            Status::Paid => Todo::Attempt,
            // An order that the vendor has named is asked after at any time.
            Status::Executing | Status::Unknown if self.has_order => Todo::Follow,
            Status::Executing | Status::Unknown if !self.is_ours => Todo::Adopt,
            Status::Executing | Status::Unknown => {
                let from = self.deadline.map_or(self.since, |deadline| deadline + SETTLING);
                if now < from { Todo::Wait(from) } else { Todo::Look }
            }
        }
    }

    /// What follows from what became known at a time.
    pub fn after(&self, news: &News, now: DateTime<Utc>) -> Next {
        let attempts = self.attempts;
        let stay =
            |status, absent_since, wait| Next::Stay { status, attempts, absent_since, next_at: now + wait };
        let age = now - self.since;
        let too_long = age >= DECIDE_WITHIN;
        match news {
            News::Present => Next::Deliver,
            News::Refused => Next::Fail,
            News::Accepted => stay(Status::Executing, None, TimeDelta::zero()),
            News::NotDone if age >= TRY_FOR => Next::Fail,
            News::NotDone => {
                // An attempt that did nothing does not count.
                let begun = i64::from(self.status == Status::Executing);
                let next_at = now + RETRY_EVERY;
                Next::Stay { status: Status::Paid, attempts: attempts - begun, absent_since: None, next_at }
            }
            News::Lost => {
                let from = self.deadline.map_or(now, |deadline| deadline + SETTLING).max(now);
                stay(Status::Unknown, None, from - now)
            }
            News::UnderWay | News::Silent if too_long => Next::Escalate,
            // The last look before another attempt has shown something: it is in doubt again.
            News::UnderWay if self.status == Status::Paid => stay(Status::Unknown, None, LOOK_EVERY),
            News::UnderWay => stay(self.looked_for(), None, self.follow_wait(now)),
            News::Silent => stay(self.looked_for(), self.absent_since, LOOK_EVERY),
            News::Absent => {
                let since = self.absent_since.unwrap_or(now);
                if now - since < ABSENT_FOR {
                    return if too_long {
                        Next::Escalate
                    } else {
                        stay(self.looked_for(), Some(since), LOOK_EVERY)
                    };
                }
                if self.may_repeat && self.attempts < MAX_ATTEMPTS && !too_long {
                    stay(Status::Paid, None, TimeDelta::zero())
                } else {
                    Next::Fail
                }
            }
        }
    }

    /// Where a purchase is that was looked for: an attempt whose sender died has ended without an answer too.
    const fn looked_for(&self) -> Status {
        match self.status {
            Status::Executing if !self.has_order => Status::Unknown,
            other => other,
        }
    }

    /// An order that takes long is asked after less often.
    fn follow_wait(&self, now: DateTime<Utc>) -> TimeDelta {
        let age = now - self.since;
        (age / 10).clamp(FOLLOW_EVERY, LOOK_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(secs: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + secs, 0).expect("a time")
    }

    fn executing() -> Progress {
        Progress {
            status: Status::Executing,
            attempts: 1,
            deadline: Some(at(60)),
            has_order: false,
            absent_since: None,
            since: at(0),
            may_repeat: true,
            is_ours: true,
        }
    }

    #[test]
    fn nobody_looks_while_a_request_may_be_on_its_way() {
        for status in [Status::Executing, Status::Unknown] {
            let one = Progress { status, ..executing() };
            assert_eq!(one.todo(at(0)), Todo::Wait(at(120)));
            assert_eq!(one.todo(at(119)), Todo::Wait(at(120)));
            assert_eq!(one.todo(at(120)), Todo::Look);
            assert_eq!(Progress { has_order: true, ..one }.todo(at(1)), Todo::Follow);
        }
        let lost = executing().after(&News::Lost, at(5));
        assert!(matches!(lost, Next::Stay { status: Status::Unknown, next_at, .. } if next_at == at(120)));
    }

    #[test]
    fn what_another_clock_has_counted_is_counted_anew() {
        for status in [Status::Executing, Status::Unknown] {
            let one = Progress { status, is_ours: false, ..executing() };
            assert_eq!(one.todo(at(0)), Todo::Adopt);
            assert_eq!(one.todo(at(1_000_000)), Todo::Adopt);
            assert_eq!(Progress { has_order: true, ..one }.todo(at(0)), Todo::Follow);
        }
        let paid = Progress { status: Status::Paid, is_ours: false, ..executing() };
        assert_eq!(paid.todo(at(0)), Todo::Attempt);
    }

    #[test]
    fn a_last_look_that_shows_something_puts_it_in_doubt_again() {
        let paid = Progress { status: Status::Paid, attempts: 1, ..executing() };
        let next = paid.after(&News::UnderWay, at(900));
        assert!(matches!(next, Next::Stay { status: Status::Unknown, absent_since: None, .. }), "{next:?}");
    }

    #[test]
    fn only_ten_minutes_of_looks_are_a_no() {
        let mut one = Progress { status: Status::Unknown, ..executing() };
        let first = one.after(&News::Absent, at(120));
        let Next::Stay { status: Status::Unknown, absent_since: Some(since), .. } = first else {
            panic!("{first:?}")
        };
        assert_eq!(since, at(120));
        // An attempt whose sender died is looked for like one that had no answer.
        for news in [News::Absent, News::Silent, News::UnderWay] {
            let next = executing().after(&news, at(120));
            assert!(matches!(next, Next::Stay { status: Status::Unknown, .. }), "{next:?}");
            let followed = Progress { has_order: true, ..executing() }.after(&news, at(120));
            assert!(matches!(followed, Next::Stay { status: Status::Executing, .. }), "{followed:?}");
        }
        one.absent_since = Some(since);
        // A look that was not answered neither counts nor begins anew.
        let silent = one.after(&News::Silent, at(400));
        assert!(matches!(silent, Next::Stay { absent_since: Some(kept), .. } if kept == since));
        assert!(matches!(one.after(&News::Absent, at(719)), Next::Stay { status: Status::Unknown, .. }));
        assert!(matches!(one.after(&News::Absent, at(720)), Next::Stay { status: Status::Paid, .. }));
        // What shows up meanwhile is delivered, and what is under way begins the count anew.
        assert_eq!(one.after(&News::Present, at(719)), Next::Deliver);
        assert!(matches!(one.after(&News::UnderWay, at(719)), Next::Stay { absent_since: None, .. }));
        let last = Progress { attempts: MAX_ATTEMPTS, ..one };
        assert_eq!(last.after(&News::Absent, at(720)), Next::Fail);
        let once = Progress { may_repeat: false, ..one };
        assert_eq!(once.after(&News::Absent, at(720)), Next::Fail);
    }

    #[test]
    fn after_a_day_a_person_decides() {
        let one = Progress { status: Status::Unknown, ..executing() };
        let day = 86_400;
        for news in [News::Silent, News::UnderWay, News::Absent] {
            assert!(matches!(one.after(&news, at(day - 1)), Next::Stay { .. }), "{news:?}");
            assert_eq!(one.after(&news, at(day)), Next::Escalate, "{news:?}");
        }
        assert_eq!(one.after(&News::Present, at(day)), Next::Deliver);
        assert_eq!(one.after(&News::Refused, at(day)), Next::Fail);
    }

    #[test]
    fn an_attempt_that_did_nothing_does_not_count() {
        let next = executing().after(&News::NotDone, at(1));
        assert!(matches!(next, Next::Stay { status: Status::Paid, attempts: 0, .. }), "{next:?}");
        let paid = Progress { status: Status::Paid, attempts: 0, deadline: None, ..executing() };
        let next = paid.after(&News::NotDone, at(1));
        assert!(matches!(next, Next::Stay { status: Status::Paid, attempts: 0, .. }), "{next:?}");
        assert_eq!(paid.after(&News::NotDone, at(1800)), Next::Fail);
    }

    #[test]
    fn names_are_read_back() {
        for status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
            assert_eq!(status.is_end(), matches!(status, Status::Delivered | Status::Failed));
        }
    }

    fn news() -> impl Strategy<Value = News> {
        prop_oneof![
            Just(News::Accepted),
            Just(News::Present),
            Just(News::Refused),
            Just(News::NotDone),
            Just(News::Lost),
            Just(News::Absent),
            Just(News::UnderWay),
            Just(News::Silent),
        ]
    }

    proptest! {
        /// Whatever a vendor says, and whenever, and whoever holds the lease with whatever clock: a request is sent
        /// again only after ten minutes of looks that began after the last one could have arrived.
        #[test]
        fn no_history_sends_twice_what_may_have_been_done(
            steps in prop::collection::vec((news(), 0_i64..7_200, prop::option::weighted(0.1, -7_200_i64..7_200)), 1..200),
            may_repeat: bool,
        ) {
            let mut now = 0;
            // How far the holder's clock is ahead.
            let mut ahead = 0;
            let mut one = Progress {
                status: Status::Paid, attempts: 0, deadline: None, has_order: false, absent_since: None,
                since: at(0), may_repeat, is_ours: true,
            };
            let mut maybe_done_since: Option<i64> = None;
            for (news, wait, taken_over) in steps {
                if let Some(skew) = taken_over {
                    ahead = skew;
                    one.is_ours = false;
                }
                let clock = at(now + ahead);
                let news = match one.todo(clock) {
                    Todo::Nothing => break,
                    Todo::Wait(until) => {
                        now = (until - at(0)).num_seconds() - ahead;
                        continue;
                    }
                    Todo::Adopt => {
                        one.deadline = Some(clock + ATTEMPT);
                        one.absent_since = None;
                        one.is_ours = true;
                        continue;
                    }
                    Todo::Attempt => {
                        prop_assert!(maybe_done_since.is_none(), "sent again too early");
                        prop_assert!(one.attempts < MAX_ATTEMPTS);
                        prop_assert!(may_repeat || one.attempts == 0);
                        one.status = Status::Executing;
                        one.attempts += 1;
                        one.deadline = Some(clock + ATTEMPT);
                        one.has_order = false;
                        one.absent_since = None;
                        one.is_ours = true;
                        match news {
                            News::Absent | News::UnderWay | News::Silent => News::Lost,
                            other => other,
                        }
                    }
                    Todo::Follow => match news {
                        News::Accepted | News::NotDone | News::Lost | News::Absent => News::UnderWay,
                        other => other,
                    },
                    Todo::Look => match news {
                        News::Accepted | News::NotDone | News::Lost | News::Refused => News::Silent,
                        other => other,
                    },
                };
                match news {
                    News::Lost => maybe_done_since = Some(now + 60),
                    News::NotDone => maybe_done_since = None,
                    News::Accepted => { one.has_order = true; maybe_done_since = Some(now); }
                    _ => {}
                }
                match one.after(&news, clock) {
                    Next::Deliver => one.status = Status::Delivered,
                    Next::Fail => one.status = Status::Failed,
                    Next::Escalate => one.status = Status::NeedsOperator,
                    Next::Stay { status, attempts, absent_since, next_at } => {
                        if status == Status::Paid && news == News::Absent {
                            let since = maybe_done_since.expect("something was sent");
                            prop_assert!(now >= since + 60 + 600, "given up at {now}, sent until {since}");
                            maybe_done_since = None;
                        }
                        one.status = status;
                        one.attempts = attempts;
                        one.absent_since = absent_since;
                        prop_assert!(next_at >= clock);
                        now = now.max((next_at - at(0)).num_seconds() - ahead) + wait;
                    }
                }
                if now >= 2 * 86_400 {
                    prop_assert!(one.status != Status::Unknown || maybe_done_since.is_some());
                }
            }
        }
    }
}
