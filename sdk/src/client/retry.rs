//! How long to wait before the next try: exponential backoff with full jitter, and `Retry-After` as the least.

use std::time::Duration;

use rand::Rng as _;

/// Longest wait that a `Retry-After` is followed for within one call; beyond it the error is returned.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);

/// How often one call tries, and how long it waits in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Tries in all, the first included.
    pub attempts: u32,
    /// Upper end of the first wait.
    pub base: Duration,
    /// Upper end of every wait.
    pub cap: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { attempts: 4, base: Duration::from_millis(200), cap: Duration::from_secs(5) }
    }
}

impl RetryPolicy {
    /// One try, no waiting: for callers with a loop of their own.
    pub const NEVER: Self = Self { attempts: 1, base: Duration::ZERO, cap: Duration::ZERO };

    /// How long to wait after the try numbered `attempt` (from 0) failed; `None`: give up.
    pub fn wait(&self, attempt: u32, retry_after: Option<Duration>) -> Option<Duration> {
        let last = attempt.saturating_add(1) >= self.attempts;
        if last || retry_after.is_some_and(|least| least > MAX_RETRY_AFTER) {
            return None;
        }
        Some(full_jitter(self.base, self.cap, attempt, retry_after, rand::rng().random()))
    }
}

/// A wait somewhere between nothing and `base * 2^attempt` (at most `cap`), after `least` when the server asks for it.
/// `chance` is a random number from 0 to 1.
pub fn full_jitter(
    base: Duration,
    cap: Duration,
    attempt: u32,
    least: Option<Duration>,
    chance: f64,
) -> Duration {
    let ceiling = base.saturating_mul(2_u32.saturating_pow(attempt)).min(cap);
    least.unwrap_or_default().saturating_add(ceiling.mul_f64(chance.clamp(0.0, 1.0)))
}

/// The waits of a loop that never gives up, such as a reconnecting session.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// Waits from `base` up to `cap`.
    pub const fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0 }
    }

    /// The next wait, at least as long as the server asks for.
    pub fn wait(&mut self, least: Option<Duration>) -> Duration {
        let wait = full_jitter(self.base, self.cap, self.attempt, least, rand::rng().random());
        self.attempt = self.attempt.saturating_add(1);
        wait
    }

    /// Something worked: the next wait is short again.
    pub const fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn waits_double_up_to_the_cap_and_spread_below() {
        for (attempt, ceiling) in
            [(0, 100), (1, 200), (2, 400), (5, 3200), (6, 5000), (31, 5000), (u32::MAX, 5000)]
        {
            let wait = |chance| full_jitter(ms(100), ms(5000), attempt, None, chance);
            assert_eq!(wait(0.0), ms(0), "{attempt}");
            assert_eq!(wait(0.5), ms(ceiling / 2), "{attempt}");
            assert_eq!(wait(1.0), ms(ceiling), "{attempt}");
        }
        assert_eq!(full_jitter(ms(100), ms(5000), 0, Some(ms(7000)), 0.5), ms(7050));
        assert_eq!(full_jitter(ms(100), ms(5000), 0, Some(Duration::MAX), 1.0), Duration::MAX);
    }

    #[test]
    fn a_policy_ends() {
        let policy = RetryPolicy { attempts: 3, base: ms(10), cap: ms(20) };
        assert!(policy.wait(0, None).is_some_and(|wait| wait <= ms(10)));
        assert!(policy.wait(1, Some(ms(50))).is_some_and(|wait| wait >= ms(50) && wait <= ms(70)));
        assert_eq!(policy.wait(2, None), None);
        assert_eq!(policy.wait(0, Some(ms(30_001))), None, "too long to wait within a call");
        assert_eq!(RetryPolicy::NEVER.wait(0, None), None);
    }

    #[test]
    fn a_backoff_is_short_again_after_success() {
        let mut backoff = Backoff::new(ms(10), ms(100));
        for ceiling in [10, 20, 40, 80, 100, 100] {
            assert!(backoff.wait(None) <= ms(ceiling));
        }
        backoff.reset();
        assert!(backoff.wait(None) <= ms(10));
    }
}
