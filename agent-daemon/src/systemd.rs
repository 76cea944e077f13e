//! The service manager: readiness, watchdog, status line, credentials. Without one, all of it does nothing.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use otonix_sdk::secret::Secret;
use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

/// The service is up.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The service is going down.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The main loop is alive.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// How often [`alive`] must be told, with room to spare; `None` without a watchdog.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| (limit / 3).max(Duration::from_millis(100)))
}

/// A file of `LoadCredential=`; `None` when there is no such credential.
///
/// # Errors
/// When it is there and cannot be read.
pub fn credential(name: &str) -> anyhow::Result<Option<Secret>> {
    let Some(dir) = std::env::var_os("CREDENTIALS_DIRECTORY") else { return Ok(None) };
    let path = PathBuf::from(dir).join(name);
    let text = crate::files::read_text(&path).with_context(|| format!("failed to read credential {name}"))?;
    Ok(text.map(Secret::from_file_text))
}
