//! Counters and gauges in the text form of Prometheus.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Everything that is counted as it happens.
pub struct Metrics {
    pub requests: Counter,
    pub client_errors: Counter,
    pub server_errors: Counter,
    pub shed: Counter,
    pub panics: Counter,
    pub heartbeats: Counter,
    pub events: Counter,
    pub events_rejected: Counter,
    pub sessions_opened: Counter,
    pub sessions_refused: Counter,
    pub beats_written: Counter,
    pub marked_inactive: Counter,
    pub tier_changes: Counter,
    pub healing_attempts: Counter,
    pub healing_successes: Counter,
    pub payments_settled: Counter,
    pub payments_refused: Counter,
    pub payments_failed: Counter,
    pub deposits_credited: Counter,
    pub payments_reversed: Counter,
    pub purchases_delivered: Counter,
    pub purchases_failed: Counter,
    pub purchases_escalated: Counter,
    groups: Counter,
    group_items: Counter,
    group_seconds: Histogram,
    registry: Registry,
    /// Requests running now.
    pub in_flight: AtomicU64,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("otonix");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let requests = counter("requests", "Requests answered");
        let client_errors = counter("client_errors", "Requests answered with 4xx");
        let server_errors = counter("server_errors", "Requests answered with 5xx");
        let shed = counter("requests_shed", "Requests refused because of overload");
        let panics = counter("panics", "Panics inside a handler");
        let heartbeats = counter("heartbeats", "Heartbeats heard over REST and streams");
        let events = counter("events", "Events taken over REST and streams");
        let events_rejected = counter("events_rejected", "Events refused for good");
        let sessions_opened = counter("sessions_opened", "Sessions opened");
        let sessions_refused = counter("sessions_refused", "Sessions refused because of the admission rate");
        let beats_written = counter("beats_written", "Heartbeats written to the database");
        let marked_inactive = counter("agents_marked_inactive", "Agents found silent");
        let tier_changes = counter("tier_changes", "Survival tiers changed");
        let healing_attempts = counter("healing_attempts", "Agents that were told to restart");
        let healing_successes = counter("healing_successes", "Agents that run again after that");
        let payments_settled = counter("payments_settled", "Payments booked");
        let payments_refused = counter("payments_refused", "Payments answered with 402");
        let payments_failed =
            counter("payments_failed", "Signed payments that were taken and never carried out");
        let deposits_credited = counter("deposits_credited", "Deposits credited");
        let payments_reversed =
            counter("payments_reversed", "Payments that left the chain after they were booked");
        let purchases_delivered = counter("purchases_delivered", "Purchases delivered");
        let purchases_failed = counter("purchases_failed", "Purchases whose money went back");
        let purchases_escalated = counter("purchases_escalated", "Purchases left to the operator");
        let groups = counter("write_groups", "Transactions committed");
        let group_items = counter("write_group_items", "Writes committed");
        let group_seconds = Histogram::new(exponential_buckets(0.0005, 2.0, 14));
        registry.register("write_group_seconds", "Time of one transaction", group_seconds.clone());
        Self {
            requests,
            client_errors,
            server_errors,
            shed,
            panics,
            heartbeats,
            events,
            events_rejected,
            sessions_opened,
            sessions_refused,
            beats_written,
            marked_inactive,
            tier_changes,
            healing_attempts,
            healing_successes,
            payments_settled,
            payments_refused,
            payments_failed,
            deposits_credited,
            payments_reversed,
            purchases_delivered,
            purchases_failed,
            purchases_escalated,
            groups,
            group_items,
            group_seconds,
            registry,
            in_flight: AtomicU64::new(0),
        }
    }
}

impl Metrics {
    /// A transaction was committed.
    pub fn group(&self, items: usize, took: Duration) {
        self.groups.inc();
        self.group_items.inc_by(items as u64);
        self.group_seconds.observe(took.as_secs_f64());
    }

    /// The text of everything, with gauges read now.
    pub fn render(&self, gauges: &[(&str, &str, u64)]) -> String {
        let mut text = String::new();
        for (name, help, value) in gauges {
            let _ = writeln!(
                text,
                "# HELP otonix_{name} {help}.\n# TYPE otonix_{name} gauge\notonix_{name} {value}"
            );
        }
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let _ =
            writeln!(text, "# TYPE otonix_requests_in_flight gauge\notonix_requests_in_flight {in_flight}");
        // Writing to a String cannot fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }
}
