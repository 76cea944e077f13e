//! Until when a request may be written. Measured on a clock that goes on while the machine is suspended, since a
//! request that a paused process writes late would come after everyone else has stopped expecting it.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A point in this machine's time since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Duration);

fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let secs = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
    Duration::new(secs, nanos)
}

impl Deadline {
    /// So long from now. Take it before whatever others read the deadline from is committed.
    pub fn after(time: Duration) -> Self {
        Self(since_boot().saturating_add(time))
    }

    /// What is left; `None` when it has passed.
    pub fn remaining(self) -> Option<Duration> {
        self.0.checked_sub(since_boot()).filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_passes() {
        assert_eq!(Deadline::after(Duration::ZERO).remaining(), None);
        let left = Deadline::after(Duration::from_secs(60)).remaining().expect("time is left");
        assert!(left > Duration::from_secs(59) && left <= Duration::from_secs(60));
    }
}
