//! Leases: which replica runs a worker. The epoch rises with every change of hands.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::store::writer::Tx;
use crate::store::{StoreError, on};

/// Takes or renews a lease; gives back its epoch, or `None` while another replica has it.
///
/// On PostgreSQL the database's clock decides, so that replicas with different clocks agree. An embedded database has
/// one server, which takes every lease.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn hold(tx: &mut Tx, name: &str, holder: Uuid, for_secs: i64) -> Result<Option<i64>, StoreError> {
    const SQL: &str = "INSERT INTO leases (name, holder, epoch, expires_at) VALUES ($1, $2, 1, $4) \
        ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at, \
        epoch = CASE WHEN leases.holder = excluded.holder THEN leases.epoch ELSE leases.epoch + 1 END \
        WHERE leases.holder = excluded.holder OR leases.expires_at <= $3 OR $5 RETURNING epoch";
    let alone = !tx.conn.is_postgres();
    let now = database_time(tx).await?;
    let until = now + TimeDelta::seconds(for_secs);
    Ok(on!(&mut tx.conn, |c| sqlx::query_scalar(SQL)
        .bind(name)
        .bind(holder)
        .bind(now)
        .bind(until)
        .bind(alone)
        .fetch_optional(c)
        .await?))
}

/// Whether a lease is still held in an epoch; checked in the transaction that relies on it.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn is_held(tx: &mut Tx, name: &str, holder: Uuid, epoch: i64) -> Result<bool, StoreError> {
    const PG: &str = "SELECT 1 FROM leases WHERE name = $1 AND holder = $2 AND epoch = $3 FOR SHARE";
    const LITE: &str = "SELECT 1 FROM leases WHERE name = $1 AND holder = $2 AND epoch = $3";
    let sql = if tx.conn.is_postgres() { PG } else { LITE };
    let rows =
        on!(&mut tx.conn, |c| sqlx::query(sql).bind(name).bind(holder).bind(epoch).fetch_all(c).await?.len());
    Ok(rows == 1)
}

/// Raises the epoch of a lease that is held; its holder has to take it again.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn raise(tx: &mut Tx, name: &str, holder: Uuid, epoch: i64) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE leases SET epoch = epoch + 1 WHERE name = $1 AND holder = $2 AND epoch = $3";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(name)
        .bind(holder)
        .bind(epoch)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// Gives a lease back, at a clean stop.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn release(tx: &mut Tx, holder: Uuid) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE leases SET expires_at = $2 WHERE holder = $1";
    on!(&mut tx.conn, |c| sqlx::query(SQL)
        .bind(holder)
        .bind(DateTime::UNIX_EPOCH)
        .execute(c)
        .await?
        .rows_affected());
    Ok(())
}

/// The time of the database on PostgreSQL; on SQLite the server's own.
///
/// # Errors
/// [`StoreError`] when the database refuses or is away.
pub async fn database_time(tx: &mut Tx) -> Result<DateTime<Utc>, StoreError> {
    if !tx.conn.is_postgres() {
        return Ok(tx.at);
    }
    Ok(on!(&mut tx.conn, |c| sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(c).await?))
}
