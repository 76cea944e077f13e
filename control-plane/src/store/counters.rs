//! What was done since the beginning, whichever replica did it and however often it was restarted.

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// What a transaction has done, or all of them together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub tier_changes: u64,
    pub healing_attempts: u64,
    pub healing_successes: u64,
}

impl Counts {
    fn named(&self) -> [(&'static str, u64); 3] {
        [
            ("healing_attempts", self.healing_attempts),
            ("healing_successes", self.healing_successes),
            ("tier_changes", self.tier_changes),
        ]
    }
}

/// Adds what a transaction has done. The last thing before its commit, and in one order, so that nobody waits for
/// these rows while holding what another needs.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn add(tx: &mut Tx) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO counters (name, value) VALUES ($1, $2) \
        ON CONFLICT (name) DO UPDATE SET value = counters.value + excluded.value";
    for (name, count) in tx.counts.named() {
        if count > 0 {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            on!(&mut tx.conn, |c| sqlx::query(SQL).bind(name).bind(count).execute(c).await?.rows_affected());
        }
    }
    Ok(())
}

/// Reads them.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn read(conn: &mut Conn) -> Result<Counts, StoreError> {
    let rows: Vec<(String, i64)> =
        on!(conn, |c| sqlx::query_as("SELECT name, value FROM counters").fetch_all(c).await?);
    let of = |wanted: &str| {
        let found = rows.iter().find(|(name, _)| name == wanted);
        found.map_or(0, |(_, value)| u64::try_from(*value).unwrap_or(0))
    };
    Ok(Counts {
        tier_changes: of("tier_changes"),
        healing_attempts: of("healing_attempts"),
        healing_successes: of("healing_successes"),
    })
}
