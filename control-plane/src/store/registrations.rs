//! Domains of ours, from the view of what the registrar says of them beside their end.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// A managed domain, as it was when the registrar was last asked.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Registration {
    pub id: Uuid,
    pub name: String,
    pub status: String,
    pub agent_id: Option<Uuid>,
    pub sandbox_id: Option<Uuid>,
    /// Until when it is ours, if anybody has said.
    pub expires_at: Option<DateTime<Utc>>,
    /// Whether the registrant has confirmed; `None`: not known.
    pub contact_verified: Option<bool>,
    /// Until when it must be.
    pub verify_by: Option<DateTime<Utc>>,
}

/// Managed domains whose turn it is, and those that were never looked at and are here since a time. Of those that have
/// expired only the ones that have since another time: they may be renewed by hand.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn due(
    conn: &mut Conn,
    now: DateTime<Utc>,
    here_since: DateTime<Utc>,
    expired_since: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Registration>, StoreError> {
    const SQL: &str = "SELECT id, name, status, agent_id, sandbox_id, expires_at, contact_verified, verify_by FROM domains \
        WHERE managed AND (status = 'active' OR (status = 'expired' AND expires_at > $4)) AND (registrar_at <= $1 OR (registrar_at IS NULL AND created_at <= $2)) \
        ORDER BY COALESCE(registrar_at, created_at), id LIMIT $3";
    Ok(on!(conn, |c| sqlx::query_as(SQL)
        .bind(now)
        .bind(here_since)
        .bind(limit)
        .bind(expired_since)
        .fetch_all(c)
        .await?))
}

/// Takes the turn of a domain until another time; `false` when somebody else has.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn take_turn(tx: &mut Tx, id: Uuid, next: DateTime<Utc>) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE domains SET registrar_at = $2 WHERE id = $1 AND managed AND status <> 'pending' \
        AND (registrar_at IS NULL OR registrar_at <= $3)";
    let at = tx.at;
    let done = on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(next)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(done == 1)
}

/// Notes whether the registrant has confirmed, until when it must be, and when the registrar is asked again.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn note(
    tx: &mut Tx,
    id: Uuid,
    verified: Option<bool>,
    verify_by: Option<DateTime<Utc>>,
    next: DateTime<Utc>,
) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE domains SET contact_verified = $2, verify_by = $3, registrar_at = $4 \
        WHERE id = $1 AND managed";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(id)
        .bind(verified)
        .bind(verify_by)
        .bind(next)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}
