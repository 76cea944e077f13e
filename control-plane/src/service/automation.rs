//! What acts without a human, as far as people are told of it.

use crate::app::App;
use crate::error::Error;
use crate::store::counters::{self, Counts};
use crate::store::keeping::{self, Renewals};

/// So many days before its end a domain is renewed.
pub const RENEWAL_WINDOW_DAYS: u32 = 30;

/// What was done so far, by all replicas together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    pub renewals: Renewals,
    pub counts: Counts,
}

/// Tells what was done.
///
/// # Errors
/// 503 without database.
pub async fn done(app: &App) -> Result<Done, Error> {
    let read = app.db.read(move |conn| {
        Box::pin(async move {
            let renewals = keeping::renewals(conn).await?;
            Ok(Done { renewals, counts: counters::read(conn).await? })
        })
    });
    Ok(read.await?)
}
