//! How often one payer and one address may make the server ask the chain for nothing.
//!
//! Only questions that came to nothing count, so that no honest rate of payments is limited.

use std::hash::Hash;
use std::net::IpAddr;
use std::time::Duration;

use dashmap::DashMap;
use otonix_sdk::error::ErrorCode;
use tokio::time::Instant;

use crate::error::Error;

/// The time over which failures count.
const WINDOW: Duration = Duration::from_secs(60);
/// Failures of one payer, and of one address, in that time.
const BY_PAYER: u32 = 20;
const BY_IP: u32 = 200;
/// Payers and addresses remembered.
const MAX_KNOWN: usize = 100_000;

#[derive(Debug)]
struct Failures<K: Hash + Eq>(DashMap<K, (Instant, u32)>);

impl<K: Hash + Eq> Default for Failures<K> {
    fn default() -> Self {
        Self(DashMap::new())
    }
}

impl<K: Hash + Eq> Failures<K> {
    fn check(&self, key: &K, most: u32) -> Result<(), Error> {
        let Some(known) = self.0.get(key) else { return Ok(()) };
        let (since, count) = *known;
        let left = WINDOW.saturating_sub(since.elapsed());
        if count < most || left.is_zero() {
            return Ok(());
        }
        Err(Error::Busy {
            code: ErrorCode::RateLimited,
            retry_after: left,
            detail: "too many payments from here came to nothing",
        })
    }

    fn count(&self, key: K) {
        if self.0.len() >= MAX_KNOWN {
            self.0.retain(|_, (since, _)| since.elapsed() < WINDOW);
        }
        let mut known = self.0.entry(key).or_insert_with(|| (Instant::now(), 0));
        if known.0.elapsed() >= WINDOW {
            *known = (Instant::now(), 0);
        }
        known.1 = known.1.saturating_add(1);
    }
}

/// The budgets of one server.
#[derive(Debug, Default)]
pub struct Budgets {
    payers: Failures<[u8; 20]>,
    ips: Failures<IpAddr>,
}

impl Budgets {
    /// Before the chain is asked. A payer is named only when it signed: nobody closes another's budget.
    ///
    /// # Errors
    /// [`Error::Busy`] when too much came to nothing lately.
    pub fn check(&self, payer: Option<[u8; 20]>, ip: IpAddr) -> Result<(), Error> {
        if let Some(payer) = payer {
            self.payers.check(&payer, BY_PAYER)?;
        }
        self.ips.check(&ip, BY_IP)
    }

    /// A payment that was taken came to nothing.
    pub fn failed_by(&self, payer: [u8; 20]) {
        self.payers.count(payer);
    }

    /// It came to nothing.
    pub fn failed(&self, payer: Option<[u8; 20]>, ip: IpAddr) {
        if let Some(payer) = payer {
            self.payers.count(payer);
        }
        self.ips.count(ip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_close_a_payer_for_a_while_and_no_other() {
        let budgets = Budgets::default();
        let ip = IpAddr::from([192, 0, 2, 1]);
        for _ in 0..BY_PAYER {
            assert!(budgets.check(Some([1; 20]), ip).is_ok());
            budgets.failed(Some([1; 20]), ip);
        }
        assert!(budgets.check(Some([1; 20]), ip).is_err());
        assert!(budgets.check(Some([2; 20]), ip).is_ok());
        tokio::time::advance(WINDOW).await;
        assert!(budgets.check(Some([1; 20]), ip).is_ok());
    }
}
