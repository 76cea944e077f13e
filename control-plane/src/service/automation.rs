//! What acts without a human, as far as people are told of it.

use crate::app::App;
use crate::error::Error;
use crate::store::keeping::{self, Renewals};

/// So many days before its end a domain is renewed.
pub const RENEWAL_WINDOW_DAYS: u32 = 30;

/// How many renewals were tried, and how many there were.
///
/// # Errors
/// 503 without database.
pub async fn renewals(app: &App) -> Result<Renewals, Error> {
    Ok(app.db.read(move |conn| Box::pin(async move { keeping::renewals(conn).await })).await?)
}
