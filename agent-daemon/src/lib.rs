//! What turns the SDK's `Agent` into a service of the machine: `otonix-agent`.
//!
//! It supervises the agent's process, gives it a local API on a unix socket, acts on the survival tier, obeys the
//! closed list of commands and speaks systemd. Everything that must reach the server goes through the SDK's link.

pub mod accounts;
pub mod app;
pub mod cli;
pub mod commands;
pub mod config;
pub mod files;
pub mod footprint;
pub mod local_api;
pub mod payments;
pub mod probe;
pub mod process_tree;
pub mod shared;
pub mod supervise;
pub mod systemd;
pub mod telemetry;
pub mod tier_keeper;
