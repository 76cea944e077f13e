//! Old rows go in bounded steps. Money is never deleted.

use chrono::{DateTime, Utc};

use crate::store::writer::Tx;
use crate::store::{StoreError, on};

/// Deletes actions older than a time; at most `limit` at once.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn delete_actions(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    const SQL: &str = "DELETE FROM agent_actions WHERE (agent_id, id) IN \
        (SELECT agent_id, id FROM agent_actions WHERE created_at < $1 ORDER BY created_at LIMIT $2)";
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(before).bind(limit).execute(c).await?.rows_affected()))
}

/// Deletes usage records older than a time; their transfers stay. At most `limit` at once.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn delete_usage(tx: &mut Tx, before: DateTime<Utc>, limit: i64) -> Result<u64, StoreError> {
    const SQL: &str = "DELETE FROM compute_logs WHERE (agent_id, id) IN \
        (SELECT agent_id, id FROM compute_logs WHERE created_at < $1 ORDER BY created_at LIMIT $2)";
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(before).bind(limit).execute(c).await?.rows_affected()))
}
