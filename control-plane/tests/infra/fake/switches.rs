//! What a test can turn: faults, time, prices, stock; and what it can ask afterwards.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::{Fake, Seen, World};

/// How a request goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Done at once, answered after so long.
    Late(Duration),
    /// Done only after so long, whether or not the caller still waits.
    ActLater(Duration),
    /// Done, and the answer is lost.
    Lost,
    /// Not done, and no answer.
    Unheard,
    /// Done, and answered twice on the same connection.
    Twice,
    /// Done, and half of the answer.
    Half,
    /// Done, and something that is no HTTP for an answer.
    Noise,
    /// Not done; this status.
    Instead(u16),
    /// Done; this status all the same.
    ActThen(u16),
    /// Not done: 429.
    TooOften,
}

/// A fault that waits for its request.
#[derive(Debug, Clone)]
pub struct Fault {
    /// The operation's id in the documents; `*` for any.
    pub operation: String,
    pub how: How,
    /// How many requests it still meets.
    pub times: u32,
}

impl World {
    /// The fault that meets a request of an operation.
    pub(super) fn fault(&mut self, operation: &str) -> Option<How> {
        let fits = |fault: &&mut Fault| fault.operation == operation || fault.operation == "*";
        let fault = self.faults.iter_mut().find(fits)?;
        fault.times -= 1;
        let how = fault.how;
        self.faults.retain(|fault| fault.times > 0);
        Some(how)
    }

    pub(super) fn add_fault(&mut self, fault: Fault) {
        if fault.times > 0 {
            self.faults.push(fault);
        }
    }

    pub(super) fn advance(&mut self, time: TimeDelta) {
        self.ahead += time;
    }

    pub(super) fn limit(&mut self, per_second: Option<usize>) {
        self.per_second = per_second;
    }
}

impl Fake {
    /// The next request of an operation goes wrong.
    pub fn fail(&self, operation: &str, how: How) {
        self.fail_times(operation, how, 1);
    }

    /// The next requests of an operation go wrong.
    pub fn fail_times(&self, operation: &str, how: How, times: u32) {
        self.with(|world| world.add_fault(Fault { operation: operation.to_owned(), how, times }));
    }

    /// No request goes wrong any more.
    pub fn mend(&self) {
        self.with(|world| world.faults.clear());
    }

    /// At most so many requests a second; `None`: as many as come.
    pub fn limit(&self, per_second: Option<usize>) {
        self.with(|world| world.limit(per_second));
    }

    /// The vendors' clock goes ahead.
    pub fn advance(&self, time: TimeDelta) {
        self.with(|world| world.advance(time));
    }

    /// The vendors' clock.
    pub fn now(&self) -> DateTime<Utc> {
        self.with(|world| world.now())
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.with(|world| world.seen.clone())
    }

    /// How many requests of an operation there were.
    pub fn count(&self, operation: &str) -> usize {
        self.with(|world| world.seen.iter().filter(|seen| seen.operation == operation).count())
    }

    /// What was not as documented, of requests and of this fake's own answers. A test ends with this empty.
    pub fn violations(&self) -> Vec<String> {
        self.with(|world| world.violations.clone())
    }

    /// What a year of a domain costs from now on, dollars: to buy, to renew.
    pub fn price_domain(&self, domain: &str, purchase: &str, renewal: &str) {
        self.with(|world| {
            world.vercel.prices.insert(domain.to_owned(), (purchase.to_owned(), renewal.to_owned()));
        });
    }

    /// Somebody else has the domain.
    pub fn take_domain(&self, domain: &str) {
        self.with(|world| world.vercel.taken.insert(domain.to_owned()));
    }

    /// What a period of a plan costs from now on; the unit is `Hourly`, `Monthly`…
    pub fn price_plan(&self, plan: &str, unit: &str, price: &str) {
        self.with(|world| {
            world.cherry.prices.insert((plan.to_owned(), unit.to_owned()), price.to_owned());
        });
    }

    /// How many servers of a plan are left in a region.
    pub fn stock(&self, plan: &str, region: &str, left: u64) {
        self.with(|world| {
            world.cherry.stock.insert((plan.to_owned(), region.to_owned()), left);
        });
    }
}
