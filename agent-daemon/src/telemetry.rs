//! The daemon's own log: one line per event on standard error, plain under journald.

use std::io::{IsTerminal as _, stderr};
use std::str::FromStr as _;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// What is logged unless something else is configured.
pub const DEFAULT_FILTER: &str = "info";

/// Reads a filter: a level, or `target=level` separated by commas.
///
/// # Errors
/// When it cannot be read.
pub fn filter(text: &str) -> anyhow::Result<Targets> {
    Ok(Targets::from_str(text)?)
}

/// Starts logging.
///
/// # Errors
/// When the filter cannot be read, or logging was started before.
pub fn start(what: &str) -> anyhow::Result<()> {
    let filter = filter(what)?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        // The journal has its own times.
        registry.with(lines.without_time()).try_init()?;
    } else {
        registry.with(lines).try_init()?;
    }
    Ok(())
}
