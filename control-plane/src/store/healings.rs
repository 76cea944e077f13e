//! What was tried to bring agents back.

use chrono::{DateTime, Utc};
use sqlx::FromRow;
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{Conn, StoreError, on};

/// An agent that is silent and has a managed server.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Patient {
    pub agent_id: Uuid,
    pub sandbox_id: Uuid,
    pub vendor_id: String,
    pub last_heartbeat: Option<DateTime<Utc>>,
}

/// Silent agents with a running managed server; not those that were killed or have no credits.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn silent(conn: &mut Conn, limit: i64) -> Result<Vec<Patient>, StoreError> {
    const SQL: &str = "SELECT a.id AS agent_id, s.id AS sandbox_id, s.vendor_id, a.last_heartbeat FROM sandboxes s \
        JOIN agents a ON a.id = s.agent_id WHERE s.managed AND s.status = 'running' AND s.vendor_id IS NOT NULL \
        AND s.powered_off_at IS NULL AND a.status = 'inactive' AND a.killed_at IS NULL \
        AND a.survival_tier <> 'terminated' AND a.last_heartbeat IS NOT NULL ORDER BY a.last_heartbeat, a.id, \
        s.created_at DESC, s.id DESC LIMIT $1";
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(limit).fetch_all(c).await?))
}

/// How many living agents have a running managed server, and so could be healed.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn fleet(conn: &mut Conn) -> Result<i64, StoreError> {
    const SQL: &str = "SELECT count(*) FROM sandboxes s JOIN agents a ON a.id = s.agent_id WHERE s.managed \
        AND s.status = 'running' AND s.vendor_id IS NOT NULL AND a.killed_at IS NULL \
        AND a.survival_tier <> 'terminated' AND a.last_heartbeat IS NOT NULL";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).fetch_one(c).await?))
}

/// Something that was tried.
#[derive(Debug, Clone, PartialEq, Eq, FromRow)]
pub struct Healing {
    pub id: Uuid,
    pub step: String,
    pub command_id: Option<Uuid>,
    pub recovered_at: Option<DateTime<Utc>>,
    pub created_at: DateTime<Utc>,
}

/// What was tried on an agent since a time, latest first.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn since(conn: &mut Conn, agent: Uuid, at: DateTime<Utc>) -> Result<Vec<Healing>, StoreError> {
    const SQL: &str = "SELECT id, step, command_id, recovered_at, created_at FROM healings \
        WHERE agent_id = $1 AND created_at >= $2 ORDER BY created_at DESC, id DESC LIMIT 100";
    Ok(on!(conn, |c| sqlx::query_as(SQL).bind(agent).bind(at).fetch_all(c).await?))
}

/// On how many agents something was begun after a time.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn busy_since(conn: &mut Conn, at: DateTime<Utc>) -> Result<i64, StoreError> {
    const SQL: &str = "SELECT count(DISTINCT agent_id) FROM healings WHERE recovered_at IS NULL \
        AND step <> 'operator' AND created_at > $1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).bind(at).fetch_one(c).await?))
}

/// Notes what is about to be tried.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert(
    tx: &mut Tx,
    agent: Uuid,
    step: &'static str,
    command: Option<Uuid>,
) -> Result<(), StoreError> {
    const SQL: &str =
        "INSERT INTO healings (agent_id, id, step, command_id, created_at) VALUES ($1, $2, $3, $4, $5)";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(agent)
        .bind(otonix_sdk::clock::new_id())
        .bind(step)
        .bind(command)
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// The vendor's id of the running managed server of an agent.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn server_of(conn: &mut Conn, agent: Uuid) -> Result<Option<String>, StoreError> {
    const SQL: &str = "SELECT vendor_id FROM sandboxes WHERE agent_id = $1 AND managed AND status = 'running' \
        AND vendor_id IS NOT NULL AND powered_off_at IS NULL ORDER BY created_at DESC, id DESC LIMIT 1";
    Ok(on!(conn, |c| sqlx::query_scalar(SQL).bind(agent).fetch_optional(c).await?))
}

/// Notes a reboot for an agent that is heard all the while: nothing waits for its recovery.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn insert_reboot(tx: &mut Tx, agent: Uuid) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO healings (agent_id, id, step, recovered_at, created_at) \
        VALUES ($1, $2, 'reboot', $3, $3)";
    let at = tx.at;
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(agent)
        .bind(otonix_sdk::clock::new_id())
        .bind(at)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Closes what was tried on agents that were heard since; gives back who is well again.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn close_recovered(tx: &mut Tx) -> Result<Vec<Uuid>, StoreError> {
    const SQL: &str = "UPDATE healings SET recovered_at = $1 WHERE recovered_at IS NULL AND EXISTS \
        (SELECT 1 FROM agents a WHERE a.id = healings.agent_id AND a.status = 'active' \
        AND a.last_heartbeat > healings.created_at) RETURNING agent_id";
    let at = tx.at;
    let mut ids: Vec<Uuid> = on!(&mut tx.conn, |c| sqlx::query_scalar(SQL).bind(at).fetch_all(c).await?);
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}
