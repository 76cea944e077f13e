//! The states of a purchase and the only ways between them: pure, so that every boundary can be tried.
//!
//! Vendors know no idempotency keys. A request that buys is sent by one attempt, until its deadline, and never again
//! while it may have been carried out: whoever does not know looks, after the deadline and a while more, and only what
//! looks have shown for ten minutes counts as not done.

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
    /// When it was paid.
    pub created_at: DateTime<Utc>,
    /// Whether another attempt may follow one that was not carried out.
    pub may_repeat: bool,
}

/// What there is to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Todo {
    /// Nothing, ever.
    Nothing,
    /// Nothing before this time.
    Wait(DateTime<Utc>),
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
            Status::Executing | Status::Unknown if self.has_order => Todo::Follow,
            Status::Executing | Status::Unknown => {
                let from = self.deadline.map_or(self.created_at, |deadline| deadline + SETTLING);
                if now < from { Todo::Wait(from) } else { Todo::Look }
            }
        }
    }

    /// What follows from what became known at a time.
    pub fn after(&self, news: &News, now: DateTime<Utc>) -> Next {
        let attempts = self.attempts;
        let stay =
            |status, absent_since, wait| Next::Stay { status, attempts, absent_since, next_at: now + wait };
        let age = now - self.created_at;
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
                Next::Stay {
                    status: Status::Paid,
                    attempts: attempts - begun,
                    absent_since: None,
                    next_at,
                }
            }
            News::Lost => {
                let from = self.deadline.map_or(now, |deadline| deadline + SETTLING).max(now);
                stay(Status::Unknown, None, from - now)
            }
            News::UnderWay | News::Silent if too_long => Next::Escalate,
            News::UnderWay => stay(self.status, None, self.follow_wait(now)),
            News::Silent => stay(self.status, self.absent_since, LOOK_EVERY),
            News::Absent => {
                let since = self.absent_since.unwrap_or(now);
                if now - since < ABSENT_FOR {
                    return if too_long {
                        Next::Escalate
                    } else {
                        stay(self.status, Some(since), LOOK_EVERY)
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

    /// An order that takes long is asked after less often.
    fn follow_wait(&self, now: DateTime<Utc>) -> TimeDelta {
        let age = now - self.created_at;
        (age / 10).clamp(FOLLOW_EVERY, LOOK_EVERY)
    }
}
