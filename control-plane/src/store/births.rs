//! Children from their parent's grant until their machine has enrolled.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A birth.
#[derive(Debug, Clone, Copy, FromRow)]
pub struct Birth {
    pub agent_id: Uuid,
    pub parent_id: Uuid,
    /// Micro-USDC.
    pub budget: i64,
}

/// Notes a child whose machine has yet to enrol.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(
    tx: &mut Tx,
    birth: &Birth,
    purchase: Option<Uuid>,
    expires_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO births (agent_id, parent_id, budget, status, purchase_id, expires_at, created_at) \
        VALUES ($1, $2, $3, 'waiting', $6, $4, $5)";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(birth.agent_id)
        .bind(birth.parent_id)
        .bind(birth.budget)
        .bind(expires_at)
        .bind(at)
        .bind(purchase)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// The child's machine has enrolled; tells whether that was waited for.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn enrolled(tx: &mut Tx, agent: Uuid) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE births SET status = 'enrolled' WHERE agent_id = $1 AND status = 'waiting'";
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(agent).execute(c).await?.rows_affected()) == 1)
}

/// Ends a birth that is still waited for; its terms when it was.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn undo(tx: &mut Tx, agent: Uuid) -> Result<Option<Birth>, StoreError> {
    const SQL: &str = "UPDATE births SET status = 'undone' WHERE agent_id = $1 AND status = 'waiting' \
        RETURNING agent_id, parent_id, budget";
    Ok(on!(&mut tx.conn, |c| sqlx::query_as(SQL).bind(agent).fetch_optional(c).await?))
}

/// A later time until which a child's machine may enrol.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn wait_until(tx: &mut Tx, agent: Uuid, expires_at: DateTime<Utc>) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE births SET expires_at = $2 WHERE agent_id = $1 AND status = 'waiting' \
        AND expires_at < $2";
    on!(&mut tx.conn, |c| sqlx::query(SQL).bind(agent).bind(expires_at).execute(c).await?.rows_affected());
    Ok(())
}

/// Children whose machine has not enrolled in time, or whose server could not be bought.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn overdue(conn: &mut Conn, now: DateTime<Utc>, limit: i64) -> Result<Vec<Uuid>, StoreError> {
    const SQL: &str = "SELECT b.agent_id FROM births b WHERE b.status = 'waiting' AND (b.expires_at <= $1 OR EXISTS \
        (SELECT 1 FROM purchases p WHERE p.id = b.purchase_id AND p.status = 'failed')) \
        ORDER BY b.expires_at LIMIT $2";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).bind(now).bind(limit).fetch_all(c).await?))
}

/// Whether a birth is waited for in vain.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn is_overdue(tx: &mut Tx, agent: Uuid) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT 1 FROM births b WHERE b.agent_id = $1 AND b.status = 'waiting' AND (b.expires_at <= $2 \
        OR EXISTS (SELECT 1 FROM purchases p WHERE p.id = b.purchase_id AND p.status = 'failed'))";
    let at = tx.at;
    Ok(on!(&mut tx.conn, |c| sqlx::query(SQL).bind(agent).bind(at).fetch_all(c).await?.len()) == 1)
}
