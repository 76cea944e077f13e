//! Requests and answers of the REST contract, one file per resource.

pub mod actions;
pub mod agents;
pub mod attached;
pub mod commands;
pub mod enrolment;
pub mod events;
pub mod keys;
pub mod ledger;
pub mod local;
pub mod payments;
pub mod purchases;
pub mod records;
pub mod usage;
pub mod vendors;
