//! What was told once.

use chrono::{DateTime, Utc};

use crate::store::writer::Tx;
use crate::store::{StoreError, on};

/// Notes that something is told of a date; `false` when it was before.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn first(tx: &mut Tx, subject: &str, due_at: DateTime<Utc>) -> Result<bool, StoreError> {
    const SQL: &str = "INSERT INTO warnings (subject, due_at, created_at) VALUES ($1, $2, $3) \
        ON CONFLICT (subject, due_at) DO NOTHING";
    let at = tx.at;
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(subject)
        .bind(due_at)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}
