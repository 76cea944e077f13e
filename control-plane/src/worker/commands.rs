//! Expires commands that nobody fetched in time.

use crate::app::App;
use crate::error::Error;
use crate::store::commands;
use crate::store::writer::Target;

/// Commands of one pass.
const PAGE: i64 = 1000;

/// Expires what is over.
///
/// # Errors
/// 503 without database.
pub async fn run_once(app: &App) -> Result<(), Error> {
    app.writer
        .apply(Target::Shared, |tx| Box::pin(async move { Ok(commands::expire(tx, PAGE).await?) }))
        .await
        .map(|_| ())
}
