//! Waiting for something to become true, with a deadline instead of a sleep.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
const STEP: Duration = Duration::from_millis(20);

/// Repeats `look` until it yields something.
///
/// # Panics
/// When it has not within `within`.
pub async fn until<T>(what: &str, within: Duration, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        tokio::time::sleep(STEP).await;
    }
}

/// Repeats `look` until it is true.
///
/// # Panics
/// When it is not within `within`.
pub async fn until_true(what: &str, within: Duration, mut look: impl AsyncFnMut() -> bool) {
    until(what, within, async || look().await.then_some(())).await;
}
