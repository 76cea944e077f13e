//! Watches the chain that payments come over.

use std::time::Duration;

use crate::app::App;
use crate::error::Error;
use crate::treasury::Settler;

/// A head as old as this is asked for again.
const HEAD_AGE: Duration = Duration::from_millis(900);

/// Keeps what is known of the chain fresh: its head, whether it can be relied on, whether the settling key has gas.
///
/// # Errors
/// None: trouble is noted where requests see it.
pub async fn watch_chain(app: &App) -> Result<(), Error> {
    let Some(parts) = &app.payments else { return Ok(()) };
    if parts.chain.head(HEAD_AGE).await.is_ok()
        && let Settler::Key(key) = &parts.settler
        && let Err(trouble) = parts.chain.watch_gas(key.address()).await
    {
        tracing::debug!(error = %trouble, "the settling key's gas is not known");
    }
    Ok(())
}
