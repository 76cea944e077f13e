//! The control plane held to its contract from the outside, on SQLite and on PostgreSQL: one module per resource,
//! then what goes across them (access, errors, lists, idempotency, races, replicas) and the session.

#![expect(clippy::disallowed_methods, reason = "a client from outside has its own clock and environment")]

#[expect(dead_code, reason = "shared with the tests of faults, which use the rest of it")]
#[path = "../support/mod.rs"]
mod support;

mod access;
mod actions;
mod agents;
mod children;
mod commands;
mod compute;
mod configuration;
mod domains;
mod enrolment;
mod errors;
mod events;
mod grants;
mod heartbeat;
mod idempotency;
mod keys;
mod kill;
mod ledger;
mod lists;
mod liveness;
mod outage;
mod races;
mod replicas;
mod sandboxes;
mod sanitising;
mod service_manager;
mod session;
mod status;
mod tls;
mod transactions;
