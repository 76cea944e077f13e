//! How much a caller may ask for, by address.

use std::net::IpAddr;
use std::num::NonZeroU32;

use governor::clock::Clock as _;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use otonix_sdk::error::ErrorCode;

use crate::error::Error;

/// Keys that an address may make without a key, and machines that may enrol from it: five a second, after a first
/// burst.
const ANONYMOUS_KEYS_PER_SECOND: u32 = 5;
const ANONYMOUS_KEYS_BURST: u32 = 300;

/// Limits by address.
pub struct RateLimits {
    anonymous_keys: DefaultKeyedRateLimiter<IpAddr>,
    enrolments: DefaultKeyedRateLimiter<IpAddr>,
    /// Requests without key or token from other machines.
    anonymous: Option<DefaultKeyedRateLimiter<IpAddr>>,
}

fn quota(per_second: u32, burst: u32) -> Quota {
    let of = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(of(per_second)).allow_burst(of(burst))
}

fn check(limiter: &DefaultKeyedRateLimiter<IpAddr>, ip: IpAddr, detail: &'static str) -> Result<(), Error> {
    limiter.check_key(&ip).map_err(|not_until| Error::Busy {
        code: ErrorCode::RateLimited,
        retry_after: not_until.wait_time_from(governor::clock::DefaultClock::default().now()),
        detail,
    })
}

impl RateLimits {
    /// Limits with so many anonymous requests a second; 0 for no limit.
    pub fn new(anonymous_per_second: u32) -> Self {
        let anonymous = (anonymous_per_second > 0)
            .then(|| RateLimiter::keyed(quota(anonymous_per_second, anonymous_per_second.saturating_mul(5))));
        let few = || RateLimiter::keyed(quota(ANONYMOUS_KEYS_PER_SECOND, ANONYMOUS_KEYS_BURST));
        Self { anonymous_keys: few(), enrolments: few(), anonymous }
    }

    /// A key is asked for without a key.
    ///
    /// # Errors
    /// [`Error::Busy`] over the limit.
    pub fn anonymous_key(&self, ip: IpAddr) -> Result<(), Error> {
        check(&self.anonymous_keys, ip, "too many keys were made from this address")
    }

    /// A machine wants to enrol.
    ///
    /// # Errors
    /// [`Error::Busy`] over the limit.
    pub fn enrolment(&self, ip: IpAddr) -> Result<(), Error> {
        check(&self.enrolments, ip, "too many enrolments from this address")
    }

    /// Anything is asked for without key or token. Callers on this machine are not counted.
    ///
    /// # Errors
    /// [`Error::Busy`] over the limit.
    pub fn anonymous(&self, ip: IpAddr) -> Result<(), Error> {
        match &self.anonymous {
            Some(limiter) if !ip.is_loopback() => check(limiter, ip, "too many requests from this address"),
            Some(_) | None => Ok(()),
        }
    }

    /// Forgets addresses that have been quiet.
    pub fn tidy(&self) {
        self.anonymous_keys.retain_recent();
        self.enrolments.retain_recent();
        if let Some(limiter) = &self.anonymous {
            limiter.retain_recent();
        }
    }
}
