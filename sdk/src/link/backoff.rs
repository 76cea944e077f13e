//! How long to wait before trying again: exponential with full jitter, never sooner than the server asked.

use std::time::Duration;

/// The waits of one thing that is tried again and again.
#[derive(Debug)]
pub(crate) struct Backoff {
    base: Duration,
    cap: Duration,
    failures: u32,
}

impl Backoff {
    /// No failures yet.
    pub(crate) fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, failures: 0 }
    }

    /// It worked.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// It failed: the wait before the next try.
    pub(crate) fn next(&mut self, retry_after: Option<Duration>) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        retry_after.unwrap_or_default() + upto(ceiling)
    }

    fn ceiling(&self) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        self.base.checked_mul(factor).unwrap_or(self.cap).min(self.cap)
    }
}

/// Anything from nothing to a duration.
pub(crate) fn upto(most: Duration) -> Duration {
    most.mul_f64(rand::random::<f64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(60));
        for expected in [250, 500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
            assert_eq!(backoff.ceiling(), Duration::from_millis(expected));
            assert!(backoff.next(None) <= Duration::from_millis(expected));
        }
        backoff.failures = u32::MAX;
        assert_eq!(backoff.ceiling(), Duration::from_secs(60));
        assert!(backoff.next(Some(Duration::from_secs(100))) >= Duration::from_secs(100));
        backoff.reset();
        assert_eq!(backoff.ceiling(), Duration::from_millis(250));
    }
}
